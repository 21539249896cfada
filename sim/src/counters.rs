//! What occurred: one table over all histories, so that a fault or a branch that never came is seen.

use std::collections::BTreeMap;
use std::fmt;

use crate::plan::Trouble;
use crate::trouble;
use crate::users;

/// What a long run must have seen besides troubles, faults and the habits of users.
const REQUIRED: [&str; 61] = [
    // The four cases (design, section 4), and what comes of them.
    "replica: case 1: old",
    "replica: case 2: descendant",
    "replica: case 3: equal",
    "replica: case 4: concurrent",
    "replica: resolutions",
    "replica: preserved as unseen",
    "replica: adopted",
    "replica: contents reused",
    "replica: installs",
    "replica: passes",
    "histories that keep losers of a name beside",
    "histories that preserve losers of a name",
    "histories where case does not count",
    // Power cuts, and what they leave of what was not synced.
    "power cuts",
    "processes killed",
    "names lost by power cuts",
    "file after power cut: Old",
    "file after power cut: Empty",
    "file after power cut: Zeros",
    "file after power cut: Torn",
    "file after power cut: Unfinished",
    "stops in the middle of an install",
    "stops shortly after somebody changed something",
    "replica: intents completed or undone",
    "files damaged by a sync that failed",
    // Errors where they matter most.
    "fault: Io on List",
    "fault: Io on Stat",
    "fault: Io on Read",
    "fault: Io on Write",
    "fault: Io on SyncFile",
    "fault: Io on SyncDir",
    "fault: Io on SyncAll",
    "fault: NoSpace on Write",
    "syncs that took long",
    // Leases, and users who come at the worst moment.
    "operations in the middle of a call",
    "opens that waited for a lease",
    "opens past their lookup in the middle of a call",
    "replica: in use before the exchange",
    "replica: taken back after the exchange",
    // Clocks.
    "histories with clocks that differ",
    "clocks set forwards",
    "clocks set back",
    "clocks far in the future",
    "event 7003",
    // Networks.
    "messages lost",
    "messages that others overtook",
    "broken passes",
    "links closed by a member",
    "looks in the middle of a pass",
    // Old images.
    "members put back to an image",
    "members put back and left alone",
    "members put back just after a partner heard of them",
    "members copied to other hardware",
    "event 2004",
    // Sizes and forms.
    "histories with one writer",
    "histories with many writers",
    "histories of people who keep to their own",
    "histories of islands",
    "histories in a Mesh",
    "histories in a Hub",
    "histories in a Chain",
];

/// Counts by name.
#[derive(Clone, Default, Debug)]
pub(crate) struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// One more.
    pub(crate) fn count(&mut self, name: &str) {
        self.add(name, 1);
    }

    /// So many more.
    pub(crate) fn add(&mut self, name: &str, count: u64) {
        match self.0.get_mut(name) {
            Some(sum) => *sum += count,
            None => {
                self.0.insert(name.to_owned(), count);
            }
        }
    }

    /// Adds another table.
    pub(crate) fn join(&mut self, other: &Self) {
        for (name, count) in &other.0 {
            self.add(name, *count);
        }
    }

    /// How often.
    pub(crate) fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// What a long run must have seen, and did not.
    pub(crate) fn never(&self) -> Vec<String> {
        required().into_iter().filter(|name| self.of(name) == 0).collect()
    }
}

/// Names of all that a long run must have seen.
fn required() -> Vec<String> {
    let mut names: Vec<String> = REQUIRED.iter().map(|&name| name.to_owned()).collect();
    let troubles = Trouble::RATES.iter().map(|(trouble, _)| *trouble).chain([Trouble::Reordered]);
    names.extend(troubles.map(|trouble| format!("trouble: {trouble:?}")));
    names.extend(trouble::FAULTS.iter().map(|(fault, ..)| format!("faults: {fault}")));
    names.extend(users::KINDS.iter().map(|(kind, _)| format!("user: {kind}")));
    names.extend((2..=8).map(|members| format!("histories of {members} members")));
    names
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = self.clone();
        // A row for what never came, too.
        required().iter().for_each(|name| all.add(name, 0));
        all.0.iter().try_for_each(|(name, count)| writeln!(f, "{count:>12}  {name}"))
    }
}
