//! What may go wrong with a call: which calls there are, which faults, how often, and the switch of the power.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Rng;

/// A call that the member makes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[expect(missing_docs, reason = "each is named as its method in `Fs`")]
pub enum Call {
    Room,
    OpenDir,
    List,
    Stat,
    StatDir,
    StatFile,
    OpenFile,
    Read,
    DataRange,
    ReadLink,
    Lease,
    LeaseUnbroken,
    Release,
    Pause,
    ReadAttributes,
    Locate,
    CreateFile,
    OpenPrivate,
    Write,
    SetSize,
    CloneRange,
    CreateDir,
    CreateSymlink,
    WriteAttributes,
    SetMtime,
    RenameNew,
    Exchange,
    RemoveFile,
    RemoveDir,
    SyncFile,
    SyncDir,
    SyncAll,
}

impl Call {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 32] = [
        Self::Room,
        Self::OpenDir,
        Self::List,
        Self::Stat,
        Self::StatDir,
        Self::StatFile,
        Self::OpenFile,
        Self::Read,
        Self::DataRange,
        Self::ReadLink,
        Self::Lease,
        Self::LeaseUnbroken,
        Self::Release,
        Self::Pause,
        Self::ReadAttributes,
        Self::Locate,
        Self::CreateFile,
        Self::OpenPrivate,
        Self::Write,
        Self::SetSize,
        Self::CloneRange,
        Self::CreateDir,
        Self::CreateSymlink,
        Self::WriteAttributes,
        Self::SetMtime,
        Self::RenameNew,
        Self::Exchange,
        Self::RemoveFile,
        Self::RemoveDir,
        Self::SyncFile,
        Self::SyncDir,
        Self::SyncAll,
    ];

    /// Changes the disk or what is durable on it: a power cut may come before each of these.
    #[must_use]
    pub fn mutates(self) -> bool {
        self >= Self::CreateFile
    }

    /// Other processes may run before this one: it changes something, or what it says is soon relied upon.
    #[must_use]
    pub fn lets_others_in(self) -> bool {
        self.mutates() || matches!(self, Self::Read | Self::Lease | Self::LeaseUnbroken | Self::Release | Self::Pause)
    }
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// EIO.
    Io,
    /// ENOSPC.
    NoSpace,
    /// EDQUOT.
    Quota,
    /// EPERM.
    NotPermitted,
    /// EMFILE: too many files open.
    TooManyOpen,
}

impl Fault {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Io, Self::NoSpace, Self::Quota, Self::NotPermitted, Self::TooManyOpen];

    pub(super) fn error(self) -> io::Error {
        io::Error::from_raw_os_error(match self {
            Self::Io => libc::EIO,
            Self::NoSpace => libc::ENOSPC,
            Self::Quota => libc::EDQUOT,
            Self::NotPermitted => libc::EPERM,
            Self::TooManyOpen => libc::EMFILE,
        })
    }
}

const CALLS: usize = Call::ALL.len();
const FAULTS: usize = Fault::ALL.len();

/// Which faults come how often, and how often each came.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Faults in a million calls.
    rates: [[u32; FAULTS]; CALLS],
    /// Any rate that is not zero, so that a quiet disk draws nothing.
    any: bool,
    /// The one fault that comes after this many more calls.
    planned: Option<(u64, Fault)>,
    happened: [[u64; FAULTS]; CALLS],
    calls: [u64; CALLS],
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            rates: [[0; FAULTS]; CALLS],
            any: false,
            planned: None,
            happened: [[0; FAULTS]; CALLS],
            calls: [0; CALLS],
        }
    }
}

impl Faults {
    /// How often a fault comes: `rate` times in a million of these calls.
    pub fn set(&mut self, call: Call, fault: Fault, rate: u32) {
        self.rates[call as usize][fault as usize] = rate;
        self.any = self.rates.iter().flatten().any(|&r| r > 0);
    }

    /// No more faults; the counters stay.
    pub fn clear(&mut self) {
        self.rates = [[0; FAULTS]; CALLS];
        self.any = false;
        self.planned = None;
    }

    /// Exactly the call after `calls` more ones fails, whatever it is (for loops that fail every call in turn).
    pub fn plan(&mut self, calls: u64, fault: Fault) {
        self.planned = Some((calls, fault));
    }

    /// Has the planned fault come?
    #[must_use]
    pub fn planned_came(&self) -> bool {
        self.planned.is_none()
    }

    /// How often this fault came of this call.
    #[must_use]
    pub fn happened(&self, call: Call, fault: Fault) -> u64 {
        self.happened[call as usize][fault as usize]
    }

    /// How often this call was made.
    #[must_use]
    pub fn calls(&self, call: Call) -> u64 {
        self.calls[call as usize]
    }

    /// Every fault that came at all, with its count.
    pub fn all_happened(&self) -> impl Iterator<Item = (Call, Fault, u64)> + '_ {
        Call::ALL
            .iter()
            .flat_map(move |&c| Fault::ALL.iter().map(move |&f| (c, f, self.happened(c, f))))
            .filter(|&(_, _, count)| count > 0)
    }

    /// Counts the call, and says whether it fails.
    pub(super) fn draw(&mut self, call: Call, rng: &mut Rng) -> Option<Fault> {
        self.calls[call as usize] += 1;
        if let Some((left, fault)) = self.planned {
            if left == 0 {
                self.planned = None;
                self.happened[call as usize][fault as usize] += 1;
                return Some(fault);
            }
            self.planned = Some((left - 1, fault));
        }
        if !self.any {
            return None;
        }
        let rates = &self.rates[call as usize];
        let sum: u64 = rates.iter().map(|&r| u64::from(r)).sum();
        if sum == 0 {
            return None;
        }
        let mut at = rng.below(1_000_000);
        for (fault, &rate) in Fault::ALL.iter().zip(rates) {
            if at < u64::from(rate) {
                self.happened[call as usize][*fault as usize] += 1;
                return Some(*fault);
            }
            at -= u64::from(rate);
        }
        None
    }
}

/// The switch of one machine's power, shared by its disk and its database, so that a cut falls between any two steps
/// of either. While it is off nothing changes any more and every call fails: the member runs on like somebody who has
/// not yet noticed, and nothing that it does then leaves a trace.
#[derive(Clone, Debug)]
pub struct Power(Arc<PowerState>);

#[derive(Debug)]
struct PowerState {
    on: AtomicBool,
    /// Steps until it goes off; `u64::MAX` for never.
    left: AtomicU64,
    steps: AtomicU64,
}

impl Default for Power {
    fn default() -> Self {
        Self(Arc::new(PowerState {
            on: AtomicBool::new(true),
            left: AtomicU64::new(u64::MAX),
            steps: AtomicU64::new(0),
        }))
    }
}

impl Power {
    /// Is it on?
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.on.load(Ordering::Relaxed)
    }

    /// Goes off before the step after `steps` more ones.
    pub fn cut_after(&self, steps: u64) {
        self.0.left.store(steps, Ordering::Relaxed);
    }

    /// Goes off now.
    pub fn cut(&self) {
        self.0.on.store(false, Ordering::Relaxed);
        self.0.left.store(u64::MAX, Ordering::Relaxed);
    }

    /// Goes on again, and no cut is planned.
    pub fn restore(&self) {
        self.0.left.store(u64::MAX, Ordering::Relaxed);
        self.0.on.store(true, Ordering::Relaxed);
    }

    /// Steps taken so far: for loops that cut after each of them in turn.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.0.steps.load(Ordering::Relaxed)
    }

    /// Takes one step (a change on the disk, a commit of the database). Says whether the power is still on; if not,
    /// the step must not happen.
    #[must_use]
    pub fn step(&self) -> bool {
        if !self.is_on() {
            return false;
        }
        let left = self.0.left.load(Ordering::Relaxed);
        if left == 0 {
            self.cut();
            return false;
        }
        if left != u64::MAX {
            self.0.left.store(left - 1, Ordering::Relaxed);
        }
        self.0.steps.fetch_add(1, Ordering::Relaxed);
        true
    }
}
