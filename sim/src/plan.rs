//! What a history will be: drawn from its seed before it begins.

use anabranch_model::Names;
use anabranch_volume::simulated::Rng;

/// How members are joined.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Topology {
    /// Each with each.
    Mesh,
    /// All with the first.
    Hub,
    /// Each with the next.
    Chain,
}

/// What people do to one another's files.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Habits {
    /// Whatever they like.
    Free,
    /// Each writes and renames only his own files, and makes new ones under names that are free; only the steward renames
    /// and removes directories; everybody may remove, touch and change the attributes of everything. So nobody's writing
    /// or renaming ever conflicts with another's, and each must stand as it was done, whoever else did what meanwhile.
    Orderly {
        /// The member whose users look after the directories.
        steward: usize,
    },
}

/// What befalls a member or the network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Trouble {
    /// Power cut in the middle of something.
    PowerCut,
    /// The daemon is killed in the middle of something.
    Kill,
    /// The service is restarted properly.
    Restart,
    /// The network falls into two parts for a while.
    Partition,
    /// Nothing comes through in one direction for a while.
    OneWayCut,
    /// A connection breaks while a pass is under way.
    BrokenPass,
    /// A connection breaks.
    BrokenLink,
    /// A link is slow for a while.
    SlowLink,
    /// Calls fail for a while.
    Faults,
    /// The disk is full for a while.
    FullDisk,
    /// Syncing takes long for a while.
    SlowDisk,
    /// The clock is set forwards or back, a little or much.
    ClockJump,
    /// The clock shows a time far ahead for a while.
    ClockFuture,
    /// The watcher's queue overflows.
    Overflow,
    /// An image of disk and database is put aside now, and put back later.
    Rollback,
    /// The same, on other hardware.
    Copied,
    /// The volume is not mounted for a while.
    Unmounted,
    /// Something is mounted over a directory for a while.
    MountedOver,
    /// While the daemon is down, somebody moves many directories into each other and into new ones.
    Reordered,
}

impl Trouble {
    /// All but [`Self::Reordered`], and how often each comes in a hundred histories.
    pub(crate) const RATES: [(Self, u64); 18] = [
        (Self::PowerCut, 200),
        (Self::Kill, 70),
        (Self::Restart, 30),
        (Self::Partition, 150),
        (Self::OneWayCut, 50),
        (Self::BrokenPass, 250),
        (Self::BrokenLink, 80),
        (Self::SlowLink, 50),
        (Self::Faults, 100),
        (Self::FullDisk, 20),
        (Self::SlowDisk, 30),
        (Self::ClockJump, 30),
        (Self::ClockFuture, 20),
        (Self::Overflow, 40),
        (Self::Rollback, 40),
        (Self::Copied, 8),
        (Self::Unmounted, 8),
        (Self::MountedOver, 10),
    ];

    /// Takes from a disk what users wrote there: then the last writer's tree is not what he left.
    fn takes_from_the_writer(self) -> bool {
        matches!(self, Self::PowerCut | Self::Rollback | Self::Copied | Self::MountedOver)
    }
}

/// A history before it happens.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) members: usize,
    pub(crate) topology: Topology,
    /// The only member whose users write.
    pub(crate) writer: Option<usize>,
    pub(crate) keep_beside: bool,
    /// What counts as one name.
    pub(crate) rule: Names,
    /// Files before replication begins, by member.
    pub(crate) populate: Vec<u64>,
    /// Users' operations.
    pub(crate) operations: u64,
    /// When users stop, microseconds.
    pub(crate) ends: u64,
    /// In a thousand calls, how often a user acts just before one.
    pub(crate) worst_moment: u64,
    /// When what happens, and to which member.
    pub(crate) troubles: Vec<(u64, Trouble, usize)>,
    pub(crate) staging_bytes: u64,
    /// Clock of each member at the start, microseconds ahead.
    pub(crate) skews: Vec<i64>,
    /// Messages of one link may overtake one another between lanes.
    pub(crate) lanes: bool,
    /// How many names people use, and how deep they go: with few they meet all the time.
    pub(crate) names: usize,
    pub(crate) depth: usize,
    /// Bytes of one page of records, about.
    pub(crate) page_bytes: usize,
    pub(crate) habits: Habits,
    /// For how long a name that was vacated is continued by what comes to it, microseconds.
    pub(crate) name_memory: u64,
    /// Most connections are cut most of the time: members know little of one another until the end.
    pub(crate) islands: bool,
}

impl Plan {
    /// Draws a history.
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut plan = Self::free(seed, &mut rng);
        if plan.writer.is_none() && rng.chance(1, 4) {
            plan.make_orderly(&mut rng);
        }
        plan.islands = rng.chance(1, 4);
        plan.rule = if rng.chance(1, 4) { Names::Windows } else { Names::Bytes };
        // Drawn last: all other histories are what they were before there was this.
        if plan.habits == Habits::Free && rng.chance(1, 6) {
            plan.reorder(&mut rng);
        }
        plan
    }

    /// Somebody puts the tree of one member in another order again and again, while its daemon is down; it may be killed
    /// while it takes that up.
    fn reorder(&mut self, rng: &mut Rng) {
        let member = self.writer.unwrap_or_else(|| rng.index(self.members));
        for _ in 0..rng.between(2, 5) {
            let at = rng.below(self.ends);
            self.troubles.push((at, Trouble::Reordered, member));
            if rng.chance(1, 2) {
                self.troubles.push((at + rng.below(3_000_000), Trouble::Kill, member));
            }
        }
        self.troubles.sort_unstable();
    }

    /// Nothing that a disk takes from its users may be between what they did and what is there.
    fn make_orderly(&mut self, rng: &mut Rng) {
        self.habits = Habits::Orderly { steward: rng.index(self.members) };
        self.troubles.retain(|(_, trouble, _)| !trouble.takes_from_the_writer());
        self.populate.iter_mut().skip(1).for_each(|count| *count = 0);
        self.worst_moment = 0;
        // Who takes a name soon after another's file left it would continue that one's identity, and own it too.
        self.name_memory = 0;
        self.names = self.names.max(4);
        self.keep_beside = rng.chance(3, 4);
    }

    fn free(seed: u64, rng: &mut Rng) -> Self {
        let members = match rng.below(20) {
            0..=5 => 2,
            6..=12 => 3,
            13..=15 => 4,
            16 | 17 => 5,
            18 => 6,
            _ => 7 + rng.index(2),
        };
        let topology = *rng.pick(&[Topology::Mesh, Topology::Hub, Topology::Chain]).unwrap_or(&Topology::Mesh);
        let writer = rng.chance(1, 4).then(|| rng.index(members));
        let populate = (0..members)
            .map(|m| if writer.is_some_and(|w| w != m) || rng.chance(1, 3) { 0 } else { rng.below(12) })
            .collect();
        let operations = rng.between(200, 260);
        // Some histories are a burst, some a day at the office.
        let ends = operations * *rng.pick(&[20_000, 200_000, 1_000_000, 3_000_000]).unwrap_or(&200_000);
        let mut troubles = Vec::new();
        for (trouble, rate) in Trouble::RATES {
            let count = rate / 100 + u64::from(rng.chance(rate % 100, 100));
            // Spread around the mean, so that some histories have none and some have many.
            let count = rng.below(2 * count + 1);
            for _ in 0..count {
                let member = rng.index(members);
                if writer == Some(member) && trouble.takes_from_the_writer() {
                    continue;
                }
                troubles.push((rng.below(ends), trouble, member));
            }
        }
        troubles.sort_unstable();
        let skews = (0..members)
            .map(|_| if rng.chance(1, 2) { 0 } else { i64::try_from(rng.below(4_000_000)).unwrap_or(0) - 2_000_000 })
            .collect();
        Self {
            seed,
            members,
            topology,
            writer,
            keep_beside: rng.chance(1, 4),
            rule: Names::Bytes,
            populate,
            operations,
            ends,
            worst_moment: *rng.pick(&[0, 2, 10, 30]).unwrap_or(&0),
            troubles,
            staging_bytes: *rng.pick(&[4 << 10, 64 << 10, 4 << 20]).unwrap_or(&(4 << 20)),
            skews,
            lanes: rng.chance(1, 2),
            names: *rng.pick(&[2, 3, 9, 9]).unwrap_or(&9),
            depth: *rng.pick(&[1, 2, 3, 3]).unwrap_or(&3),
            page_bytes: *rng.pick(&[300, 3000, 1 << 20]).unwrap_or(&(1 << 20)),
            habits: Habits::Free,
            name_memory: 15_000_000,
            islands: false,
        }
    }

    /// Pairs that are connected, in both directions.
    pub(crate) fn pairs(&self) -> Vec<(usize, usize)> {
        let all = (0..self.members).flat_map(|a| (a + 1..self.members).map(move |b| (a, b)));
        match self.topology {
            Topology::Mesh => all.collect(),
            Topology::Hub => (1..self.members).map(|m| (0, m)).collect(),
            Topology::Chain => (1..self.members).map(|m| (m - 1, m)).collect(),
        }
    }
}
