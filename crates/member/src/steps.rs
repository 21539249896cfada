//! The steps by which nothing is lost (design, sections 4, 5, 8 and 11), each of which can be left out on purpose.
//!
//! With the feature `mutants` the simulator breaks one at a time and must catch it; without it nothing can be broken.
//! The last step of section 8, that the commit itself is durable before anything rests on it, is the database's: the
//! simulator breaks it in the database that it gives to the member.

/// A step of seeing, publishing, installing or starting.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Step {
    /// Data of the batch is made durable before intents and names.
    DataDurable,
    /// Install intents are written before names are put in place.
    Intents,
    /// A read lease is taken on what is to leave.
    Lease,
    /// Object and stamp are compared with the database under the lease.
    Compare,
    /// The lease is kept a millisecond.
    GuardPause,
    /// What came out is compared with what the database said.
    LookAtWhatCameOut,
    /// Names are made durable before the database says what is held.
    NamesDurable,
    /// What a partner may see of a local change is made durable before (section 5; "nothing counts before it is
    /// durable").
    PublishedDurable,
    /// What could not be looked at or enumerated is not taken for absent (section 5).
    ErrorIsNotAbsence,
    /// What carries a time far ahead of our clock is not taken in (section 4).
    TimesAhead,
    /// A partner's echo of our mark is compared with what we know of ourselves (section 11).
    MarkEcho,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::DataDurable,
        Self::Intents,
        Self::Lease,
        Self::Compare,
        Self::GuardPause,
        Self::LookAtWhatCameOut,
        Self::NamesDurable,
        Self::PublishedDurable,
        Self::ErrorIsNotAbsence,
        Self::TimesAhead,
        Self::MarkEcho,
    ];
}

#[cfg(feature = "mutants")]
std::thread_local! {
    static BROKEN: std::cell::Cell<Option<Step>> = const { std::cell::Cell::new(None) };
}

/// Leaves a step out, on this thread.
#[cfg(feature = "mutants")]
pub fn break_step(step: Option<Step>) {
    BROKEN.set(step);
}

/// Is this step left out?
#[cfg(feature = "mutants")]
pub(crate) fn broken(step: Step) -> bool {
    BROKEN.get() == Some(step)
}

/// Is this step left out? Never.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn broken(_step: Step) -> bool {
    false
}
