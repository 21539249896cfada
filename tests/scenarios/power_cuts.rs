//! Power cuts under two working members on one disk: what replication installed is whole, what a member acknowledged is
//! there, and both come back in step. On ext4, XFS and btrfs; the disk is of `anabranch-powercut`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anabranch_powercut::{Bed, Cut, Error, FileSystem, Recording};
use anyhow::{Context, Result, ensure};
use e2e::closed::Ledger;
use e2e::cluster::{Cluster, scratch};
use e2e::load::{Allowance, User};
use e2e::member;
use e2e::mount::Mount;
use e2e::random::Random;
use e2e::skip;
use e2e::snapshot::{Snapshot, preserved_hashes};

/// A mount namespace that is made while another test has a disk mounted would keep that disk busy.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The disk of both members.
const DISK_BYTES: u64 = 768 << 20;

/// Rounds of work, each followed by rest in which both members are in step.
const ROUNDS: u64 = 8;

/// The event that says that a database was returned to an earlier state: a power cut is none.
const EVENT_ROLLED_BACK: u64 = 7004;

#[test]
fn power_cuts_on_ext4() -> Result<()> {
    power_cuts(FileSystem::Ext4)
}

#[test]
fn power_cuts_on_xfs() -> Result<()> {
    power_cuts(FileSystem::Xfs)
}

#[test]
fn power_cuts_on_btrfs() -> Result<()> {
    power_cuts(FileSystem::Btrfs)
}

fn power_cuts(file_system: FileSystem) -> Result<()> {
    if !(skip::root_or_skip("a disk that records what is written") && skip::programs_or_skip(&["unshare", "mount"])) {
        return Ok(());
    }
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let bed = match Bed::start(file_system, DISK_BYTES) {
        Err(Error::Unavailable(reason)) => {
            skip::skip(&reason);
            return Ok(());
        }
        bed => bed?,
    };
    let mut run = Run::record(&bed)?;
    let recording = bed.finish()?;
    let cuts = usize::try_from(e2e::setting("CUTS", 30).div_ceil(3)).context("CUTS is out of range")?;
    for (number, cut) in recording.cuts(cuts, run.random.word()).into_iter().enumerate() {
        run.cut(&recording, cut, number).with_context(|| cut.to_string())?;
    }
    Ok(())
}

/// What was recorded, beside what happened on the disk.
struct Run {
    cluster: Cluster,
    disk: PathBuf,
    ledger: Ledger,
    /// The trees at rest, by round.
    at_rest: Vec<Snapshot>,
    random: Random,
}

impl Run {
    fn record(bed: &Bed) -> Result<Self> {
        let dir = scratch()?;
        let disk = dir.path().join("disk");
        fs::create_dir(&disk)?;
        let _mount = Mount::bind(bed.path(), &disk)?;
        let mut cluster = Cluster::joined_at(&disk, dir, 2, member::User::Same)?;
        cluster.create_folder("mesh")?;
        cluster.settle()?;

        let (ledger, allowance) = (Ledger::default(), Allowance::default());
        let users = cluster
            .members
            .iter()
            .map(|member| User::start(&member.name, &member.tree(), &ledger, &allowance))
            .collect::<Result<Vec<_>>>()?;
        let mut random = Random::for_test("power cuts");
        let mut at_rest = Vec::new();
        for round in 0..ROUNDS {
            allowance.spend(random.within(20..120))?;
            cluster.settle()?;
            at_rest.push(Snapshot::take(&cluster.members[0].tree())?);
            bed.mark(round.to_string());
        }
        // Cuts also fall into work that no rest followed.
        allowance.spend(60)?;
        allowance.end();
        for member in &mut cluster.members {
            member.kill()?;
        }
        users.into_iter().try_for_each(|user| user.end().map(drop))?;
        Ok(Self { cluster, disk, ledger, at_rest, random })
    }

    /// What stood at one path through the last rest before a cut and the first one after it: nobody touched it between.
    fn untouched(&self, round: usize) -> BTreeMap<PathBuf, blake3::Hash> {
        let Some(before) = self.at_rest.get(round) else { return BTreeMap::new() };
        let Some(after) = self.at_rest.get(round + 1) else { return BTreeMap::new() };
        let same = |path: &[u8]| before.items.get(path) == after.items.get(path);
        let files = before.files().filter(|(path, _)| same(path));
        files.map(|(path, hash)| (PathBuf::from(String::from_utf8_lossy(path).into_owned()), hash)).collect()
    }

    fn cut(&mut self, recording: &Recording, cut: Cut, number: usize) -> Result<()> {
        let boot_id = self.cluster.dir().join("boot_id");
        fs::write(&boot_id, format!("00000000-0000-4000-8000-{number:012}\n"))?;
        recording.replay(cut, |replayed| {
            let round = replayed.marks.last().and_then(|mark| mark.parse::<usize>().ok());
            let untouched = round.map(|round| self.untouched(round)).unwrap_or_default();
            eprintln!("{cut}: round {round:?}, {} files untouched", untouched.len());
            let mount = Mount::bind(replayed.path, &self.disk)?;
            let outcome = self.look(&untouched, round.is_some(), &boot_id);
            for member in &mut self.cluster.members {
                member.kill()?;
            }
            drop(mount);
            outcome
        })?
    }

    /// Looks at the disk as the cut left it, and again when both members have recovered.
    fn look(&mut self, untouched: &BTreeMap<PathBuf, blake3::Hash>, joined: bool, boot_id: &Path) -> Result<()> {
        for member in &self.cluster.members {
            for author in &self.cluster.members {
                if author.name == member.name {
                    continue;
                }
                // Here nobody but replication writes.
                self.ledger.inspect(&member.tree().join(&author.name))?;
                for (path, hash) in untouched.iter().filter(|(path, _)| path.starts_with(&author.name)) {
                    let found = fs::read(member.tree().join(path)).ok().map(|bytes| blake3::hash(&bytes));
                    ensure!(found == Some(*hash), "{} had acknowledged {}", member.name, path.display());
                }
            }
        }
        if !joined {
            // Before the first rest a cut may fall into `init` or `join` themselves: there is nothing to come back to.
            return Ok(());
        }
        for member in &mut self.cluster.members {
            member.boot_anew(boot_id.to_path_buf());
            member.start()?;
        }
        self.cluster.all_ready()?;
        self.cluster.settle()?;
        let mut known = Vec::new();
        for member in &self.cluster.members {
            let rolled_back = member.events(EVENT_ROLLED_BACK)?;
            ensure!(rolled_back.is_empty(), "{} took back what it had said: {rolled_back:?}", member.name);
            known.extend(Snapshot::take(&member.tree())?.files().map(|(_, hash)| hash));
            known.extend(preserved_hashes(&member.tree())?);
        }
        for (path, hash) in untouched {
            ensure!(known.contains(hash), "what stood in {} is nowhere", path.display());
        }
        self.cluster.expect_verified()
    }
}
