//! What must hold, whatever happened: the invariants of the design's section 19, asked of disks and manifests alone.
//!
//! The oracle never looks at records to decide what should be there: it knows what people wrote, what they had before
//! their eyes when they replaced or removed something, and what power cuts and old images took from the disks.
//!
//! | invariant | asked when | how |
//! | --- | --- | --- |
//! | No invention | often, and after each crash | each content in a tree was finished by a user somewhere, made by a power cut of a user's file, or is being written there now |
//! | Convergence | at rest | all trees are equal: names, kinds, bytes, attributes, times of files |
//! | No loss | at rest | each content that a user finished and nobody ended is in the tree, or preserved with a manifest entry |
//! | No race | at rest | … and where it is preserved, it is so as *unseen*: it would be purged as something replaced knowingly |
//! | Intent | in the middle of passes, one writer | what a member's records show is what the writer's showed at some time |
//! | Intent | at rest, one writer | the tree is the writer's, and nothing was preserved as unseen, but by a member that was put back to an image: what it replaces then counts as unseen (section 11), and what a failed sync made of a file (section 8) |
//! | Agreement | at rest | members that have a record of one thing have the same one, its maps too |
//! | No reversal | at rest, where people keep to their own and no disk took anything | what one wrote and nobody ended is in the tree, under the name that he gave it and in the directory that the steward gave it; what one ended is not |
//! | No resurrection | at rest, no power cuts or old images since | what one user ended, and nobody else touched, is in no tree |
//! | Once | often, and at rest | a version names the same value, and is of the same thing, wherever and whenever it is known |
//! | Clock | often | no record carries a time more than ten minutes ahead of what a member's own clock ever showed |
//! | Bounds | at rest | staging within its quota; no private file in the tree; the manifest names what is preserved |
//! | Progress | | rest is reached |

use std::collections::{BTreeMap, BTreeSet};

use anabranch_model::{Hlc, Knowledge, Record, Uid};
use anabranch_volume::fs::Kind;
use anabranch_volume::simulated::{Damage, Deed, SimFs, Thing, Tree, Wreck};

use crate::machine::{Kept, Machine, Named};
use crate::plan::{Habits, Plan};
use crate::users::{Moved, fold_path};

/// One thing that must not be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Violation {
    /// Which invariant.
    pub(crate) invariant: &'static str,
    /// What was found.
    pub(crate) text: String,
}

/// What became of a content.
#[derive(Default)]
struct Fate {
    /// How often somebody finished writing it, and when last.
    finished: u64,
    first: u64,
    last: u64,
    /// Who ended it.
    ended: Vec<End>,
    /// How many names it was given besides its first one, and how many somebody took from it while it seemed to have more: on
    /// other members each name is a file of its own, and one that was replaced there is still here for a moment.
    linked: u64,
    unlinked: u64,
    /// Names that it was given besides, and to which it was moved, and by whom: who moves it elsewhere to such a name makes one
    /// file of the two.
    names: BTreeSet<(Vec<u8>, usize)>,
    moved_to: BTreeSet<(Vec<u8>, usize)>,
    /// Who gave it another place or other attributes, or wrote or ended it.
    handled: BTreeSet<usize>,
    /// The only disk that had it lost it.
    taken: bool,
    /// A power cut took it from the disk of somebody who had it, or an image from a place in which it was.
    cut: bool,
    /// Who gave it another path.
    movers: BTreeSet<usize>,
    /// The file, as its writer goes on writing it. None where it was never finished.
    lines: Lines,
    /// The name that it was given last, and the path that it was moved to last, itself or with its directory.
    name: Vec<u8>,
    path: Vec<u8>,
    /// A disk made it of what a user had written: it is there, and nobody asks for it.
    made: bool,
    /// What the disk damaged to make this of it: who ends one ends the other.
    was: Option<Thing>,
}

impl Fate {
    /// How many of its names became one with another that it was moved to elsewhere.
    fn joined(&self) -> u64 {
        let moved =
            |(name, who): &&(Vec<u8>, usize)| self.moved_to.iter().any(|(to, other)| to == name && other != who);
        self.names.iter().filter(moved).count() as u64
    }
}

/// Which files a content may be of: numbers of [`Oracle::files`]. Two files that change places, or one that is moved over another,
/// are still what they were wherever nobody has heard of it.
#[derive(Clone, Default)]
struct Lines {
    /// On members whose users did nothing that says so: all that it ever was.
    ever: BTreeSet<usize>,
    of: BTreeMap<usize, BTreeSet<usize>>,
}

impl Lines {
    fn on(&self, member: usize) -> &BTreeSet<usize> {
        self.of.get(&member).unwrap_or(&self.ever)
    }

    /// A user of this member made it be of these; others hear of it sooner or later.
    fn set(&mut self, member: usize, files: &BTreeSet<usize>) {
        for other in self.of.values_mut().chain([&mut self.ever]) {
            other.extend(files);
        }
        self.of.insert(member, files.clone());
    }
}

/// Somebody replaced, changed or removed it.
#[derive(Clone, Copy)]
struct End {
    who: usize,
    when: u64,
    /// What his member's clock showed: what it records of this is not earlier.
    clock: u64,
}

/// What people did to a file, whatever it held for them.
#[derive(Default)]
struct File {
    /// Who removed it.
    removers: BTreeSet<usize>,
    /// Who gave it another path, and the latest time that his member may have recorded this with.
    movers: BTreeMap<usize, u64>,
    /// What it held when a member's users moved that onto another file, which removed this one, and what the member's clock
    /// showed: whoever keeps this one has that in it.
    left: BTreeMap<usize, (Thing, u64)>,
}

/// What had a name until somebody ended or moved it.
struct Left {
    files: BTreeSet<usize>,
    when: u64,
    /// Somebody writes into it: it has its name still.
    rewritten: bool,
}

/// Knows what people did.
#[derive(Default)]
pub(crate) struct Oracle {
    fates: BTreeMap<Thing, Fate>,
    /// Members that were put back to an image.
    put_back: BTreeSet<String>,
    /// Files, as their writers go on writing them.
    files: Vec<File>,
    /// Which file each member's users ended last at a path.
    ended_last: BTreeMap<(usize, Vec<u8>), Left>,
    /// From which names each member's users moved which file last: what takes such a name soon after goes on with that file
    /// (design, section 5), as when an editor puts the old text aside and writes the new one under its name.
    vacated: BTreeMap<(usize, Vec<u8>), Left>,
    /// For how long, microseconds.
    name_memory: u64,
    /// Files that each member's users moved, and that it has not looked at since.
    unnoticed: BTreeMap<usize, BTreeSet<usize>>,
    /// Files that each member's users made, and that it has not looked at since.
    unseen: BTreeMap<usize, BTreeSet<usize>>,
    /// Files that each member's users removed, and that it has not looked at since.
    unmissed: BTreeMap<usize, BTreeSet<usize>>,
    /// What members' users moved over another file, and of which files it was until then, where the member has not looked since.
    moved_over: BTreeMap<(usize, Thing), BTreeSet<usize>>,
    /// Members that were put back to an image and have not looked since: what is missing then was perhaps removed by nobody.
    returned: BTreeSet<usize>,
    /// What disks that failed to write made of what users had written.
    damaged: BTreeSet<Thing>,
    /// When a disk last lost power or went back to an image.
    disturbed: Option<u64>,
    /// Version -> value.
    versions: BTreeMap<Named, u64>,
}

/// What a member has at rest.
pub(crate) struct AtRest {
    /// Its name.
    pub(crate) name: String,
    /// Its tree.
    pub(crate) tree: Tree,
    /// The program's own directory.
    pub(crate) private: Tree,
    /// Its manifest.
    pub(crate) kept: Vec<Kept>,
    /// Versions and values.
    pub(crate) versions: Vec<(Named, u64)>,
    /// UIDs and records.
    pub(crate) records: Vec<(Uid, Record)>,
}

impl AtRest {
    /// Looks at a member; at versions with numbers through `until`.
    ///
    /// # Errors
    /// A sentence, when its database cannot be read.
    pub(crate) fn of(name: &str, fs: &SimFs, machine: &dyn Machine, until: Hlc) -> Result<Self, String> {
        Ok(Self {
            name: name.to_owned(),
            tree: fs.tree(),
            private: fs.private_tree(),
            kept: machine.preserved()?,
            versions: machine.versions(until)?,
            records: machine.records()?,
        })
    }
}

impl Oracle {
    /// Nothing was done yet. `name_memory`: for how long a name that was vacated is continued, microseconds.
    pub(crate) fn new(name_memory: u64) -> Self {
        Self { name_memory, ..Self::default() }
    }

    /// What had this name until a short while ago, and was moved away here.
    fn vacated(&self, member: usize, path: &[u8], now: u64) -> Option<BTreeSet<usize>> {
        let left = self.vacated.get(&(member, path.to_vec()))?;
        (left.when + self.name_memory > now).then(|| left.files.clone())
    }

    /// Has a member looked at a file since its users made or moved it, and since it was put back itself? Else it need not know that
    /// the file has its name.
    fn knows(&self, member: usize, file: usize) -> bool {
        let lists = [&self.unnoticed, &self.unseen].map(|lists| lists.get(&member));
        !self.returned.contains(&member) && !lists.into_iter().flatten().any(|list| list.contains(&file))
    }

    /// What somebody writes into here, or removed from this name a short while ago.
    fn goes_on(&mut self, member: usize, path: &[u8], now: u64) -> Option<BTreeSet<usize>> {
        let left = self.ended_last.remove(&(member, path.to_vec()))?;
        (left.rewritten || left.when + self.name_memory > now).then_some(left.files)
    }

    /// These hold something new here.
    fn hold(&mut self, member: usize, files: &BTreeSet<usize>) {
        for file in files {
            self.files[*file].left.remove(&member);
        }
    }

    /// Somebody gave these another path.
    fn gave_path(&mut self, member: usize, files: &BTreeSet<usize>) {
        for file in files {
            self.files[*file].movers.insert(member, u64::MAX);
        }
        self.unnoticed.entry(member).or_default().extend(files);
    }

    /// A user did this, while his member's clock showed this. `elsewhere` says whether a content is on any other disk.
    pub(crate) fn deed(
        &mut self,
        member: usize,
        (now, clock): (u64, u64),
        deed: Deed,
        elsewhere: &dyn Fn(&Thing) -> bool,
    ) {
        match deed {
            Deed::Finished { path, content } => {
                let goes_on = self.goes_on(member, &path, now).or_else(|| self.vacated(member, &path, now));
                let files = goes_on.unwrap_or_else(|| {
                    self.files.push(File::default());
                    self.unseen.entry(member).or_default().insert(self.files.len() - 1);
                    BTreeSet::from([self.files.len() - 1])
                });
                self.hold(member, &files);
                let fate = self.fates.entry(content).or_default();
                fate.lines.set(member, &files);
                fate.name = split(&path).1.to_vec();
                fate.path = path;
                if fate.finished == 0 {
                    fate.first = now;
                }
                fate.finished += 1;
                fate.last = now;
                fate.handled.insert(member);
            }
            Deed::Ended { path, content, rewritten } => {
                let fate = self.fates.entry(content).or_default();
                let files = fate.lines.on(member).clone();
                if !files.is_empty() {
                    self.unmissed.entry(member).or_default().extend(&files);
                    for file in &files {
                        self.files[*file].removers.insert(member);
                    }
                    self.ended_last.insert((member, path), Left { files, when: now, rewritten });
                }
                let end = End { who: member, when: now, clock };
                fate.ended.push(end);
                fate.handled.insert(member);
                let was = fate.was.take();
                if let Some(before) = was.and_then(|was| self.fates.get_mut(&was)) {
                    before.ended.push(end);
                }
            }
            Deed::Linked { content, to } => {
                let fate = self.fates.entry(content).or_default();
                fate.linked += 1;
                fate.names.extend(to.map(|to| (to, member)));
            }
            Deed::Unlinked { content } => {
                let fate = self.fates.entry(content).or_default();
                fate.unlinked += 1;
                fate.handled.insert(member);
            }
            Deed::Damaged { before, after } => {
                self.disturbed = Some(now);
                let lines = self.fates.get(&before).map(|fate| fate.lines.clone()).unwrap_or_default();
                let fate = self.fates.entry(after.clone()).or_default();
                (fate.made, fate.was) = (true, Some(before.clone()));
                if fate.lines.ever.is_empty() {
                    fate.lines = lines;
                }
                self.damaged.insert(after);
                self.take(&before, elsewhere);
            }
        }
    }

    /// A user gave what holds this another place or other attributes.
    pub(crate) fn handled(&mut self, member: usize, content: Thing) {
        self.fates.entry(content).or_default().handled.insert(member);
    }

    /// A user gave something another path.
    pub(crate) fn moved(&mut self, member: usize, (now, clock): (u64, u64), moved: Moved) {
        let Moved { content, from, to, itself } = moved;
        let vacated = self.vacated(member, &to, now);
        let before = self.ended_last.get(&(member, to.clone()));
        let before = before.filter(|left| left.when == now).map(|left| left.files.clone());
        let unknown = before.iter().flatten().any(|file| !self.knows(member, *file));
        let continued = if itself { BTreeSet::new() } else { self.continued(member, &content, &to) };
        // Somebody writes into it: what he finishes there is of that file.
        if let Some(left) = self.ended_last.remove(&(member, from.clone())) {
            if left.rewritten {
                let files = before.clone().or_else(|| vacated.clone()).filter(|_| itself).unwrap_or(left.files);
                if itself {
                    self.gave_path(member, &files);
                }
                self.ended_last.insert((member, to.clone()), Left { files, ..left });
            } else {
                self.ended_last.insert((member, from.clone()), left);
            }
        }
        let fate = self.fates.entry(content.clone()).or_default();
        fate.movers.insert(member);
        let own = fate.lines.on(member).clone();
        if !continued.is_empty() {
            fate.lines.set(member, &own.union(&continued).copied().collect());
        }
        if itself {
            fate.name = split(&to).1.to_vec();
            fate.moved_to.insert((to.clone(), member));
        }
        fate.path.clone_from(&to);
        if !itself || own.is_empty() && before.is_none() && vacated.is_none() {
            return;
        }
        // What takes a name goes on with the file that had it until then. Where the member may not know that one, this file may
        // be what has another path now.
        let mut files = before.or(vacated).unwrap_or_else(|| own.clone());
        // It has left such a name again before its member looked: then it is what it was before.
        let was = self.moved_over.remove(&(member, content.clone())).unwrap_or_default();
        if files == own {
            files.extend(&was);
        } else {
            self.moved_over.insert((member, content.clone()), own.union(&was).copied().collect());
        }
        fate.lines.set(member, &files);
        self.hold(member, &files);
        for file in own.difference(&files) {
            self.files[*file].left.insert(member, (content.clone(), clock));
        }
        self.gave_path(member, &files);
        if unknown {
            self.gave_path(member, &own);
        }
        if !own.is_empty() {
            self.vacated.insert((member, from), Left { files: own, when: now, rewritten: false });
        }
    }

    /// A directory that its member has not looked at continues the one that had its name, and so do the files in it (design,
    /// section 5): what a file that comes to a name with its directory may go on with, besides what it is.
    fn continued(&self, member: usize, content: &Thing, to: &[u8]) -> BTreeSet<usize> {
        let own = self.fates.get(content).map(|fate| fate.lines.on(member).clone()).unwrap_or_default();
        if own.iter().all(|file| self.knows(member, *file)) {
            return BTreeSet::new();
        }
        let at = (member, to.to_vec());
        let left = [self.ended_last.get(&at), self.vacated.get(&at)].into_iter().flatten().flat_map(|left| &left.files);
        let lists = [&self.unmissed, &self.unnoticed].map(|lists| lists.get(&member));
        let missed = |file: &usize| lists.into_iter().flatten().any(|list| list.contains(file));
        left.copied().filter(missed).collect()
    }

    /// A user made two files change places: each name goes on with the file that it had, which holds this now.
    pub(crate) fn swapped(&mut self, member: usize, [(one, here), (other, there)]: [(Thing, Vec<u8>); 2]) {
        let lines = |content| self.fates.get(content).map(|fate| fate.lines.on(member).clone()).unwrap_or_default();
        let files = [lines(&other), lines(&one)];
        for ((content, path), files) in [(one, here), (other, there)].into_iter().zip(files) {
            let fate = self.fates.entry(content).or_default();
            if !files.is_empty() {
                fate.lines.set(member, &files);
            }
            fate.path = path;
        }
    }

    /// Is there anything that this member has not looked at since its users made, moved or removed it, or it was put back?
    pub(crate) fn unnoticed(&self, member: usize) -> bool {
        let lists = [&self.unnoticed, &self.unseen, &self.unmissed];
        lists.into_iter().any(|list| list.contains_key(&member)) || self.returned.contains(&member)
    }

    /// A member has looked at everything. No clock ever showed more than `latest`, so nothing that it recorded is later.
    pub(crate) fn noticed(&mut self, member: usize, latest: u64) {
        self.unseen.remove(&member);
        self.unmissed.remove(&member);
        self.moved_over.retain(|(who, _), _| *who != member);
        self.returned.remove(&member);
        for file in self.unnoticed.remove(&member).unwrap_or_default() {
            self.files[file].movers.insert(member, latest);
        }
    }

    /// Did somebody else move the file, or one that held this last and was removed when that was moved onto another one, perhaps
    /// with what it had held before, and may have the later time? Whoever removed it does not undo that: what wins then has a
    /// place (design, section 4). A member records a move when it looks, perhaps long after it was made, as where the service was
    /// down.
    fn moved_by_another(&self, content: &Thing, fate: &Fate, end: End) -> bool {
        let held = fate.lines.on(end.who).iter().filter_map(|file| Some((self.files.get(*file)?, end.clock)));
        let left = self.files.iter().filter_map(|file| {
            let (last, clock) = file.left.get(&end.who)?;
            (last == content).then_some((file, *clock))
        });
        let later = |(file, clock): (&File, u64)| {
            file.movers.iter().any(|(mover, latest)| *mover != end.who && *latest >= clock)
        };
        held.chain(left).any(later)
    }

    /// A member lost power. `elsewhere` says whether a content is on any other disk.
    pub(crate) fn wrecked(&mut self, now: u64, wreck: &Wreck, elsewhere: &dyn Fn(&Thing) -> bool) -> Vec<Violation> {
        self.disturbed = Some(now);
        let mut out = Vec::new();
        for changed in &wreck.changed {
            if changed.damage == Damage::Revived {
                // What somebody wrote into a file that had lost its name by then was in no tree so far.
                let fate = self.fates.entry(changed.after.clone()).or_default();
                fate.made |= changed.by_user && fate.finished == 0;
            } else if changed.by_user {
                // The disk made it of what a user wrote: from now on it is there like any content.
                self.fates.entry(changed.after.clone()).or_default().made = true;
            } else if !changed.path.starts_with(b".anabranch/") {
                out.push(Violation {
                    invariant: "No invention",
                    text: format!(
                        "power cut: /{} was installed before its bytes were durable: {:?}, {}",
                        changed.path.escape_ascii(),
                        changed.damage,
                        show(&changed.after)
                    ),
                });
            }
        }
        for vanished in wreck.vanished.iter().filter(|v| v.by_user) {
            // Whoever writes there next knows nothing of it.
            self.fates.entry(vanished.content.clone()).or_default().cut = true;
            self.take(&vanished.content, elsewhere);
        }
        out
    }

    /// A member's disk went back to an image: what is on it now, and what is not any more. What somebody had only half
    /// written when the image was taken will never be finished, and is there all the same. `elsewhere` says whether a content
    /// is in another tree.
    pub(crate) fn rolled_back(
        &mut self,
        (number, member): (usize, &str),
        now: u64,
        there: &BTreeSet<Thing>,
        gone: &[Thing],
        elsewhere: &dyn Fn(&Thing) -> bool,
    ) {
        self.disturbed = Some(now);
        self.put_back.insert(member.to_owned());
        self.returned.insert(number);
        for content in there {
            self.fates.entry(content.clone()).or_default().made = true;
        }
        gone.iter().for_each(|content| self.take(content, elsewhere));
    }

    /// An image took contents from places in which they were, perhaps the only ones in which nobody had replaced them
    /// knowingly.
    pub(crate) fn left_places(&mut self, contents: impl Iterator<Item = Thing>) {
        for content in contents {
            self.fates.entry(content).or_default().cut = true;
        }
    }

    fn take(&mut self, content: &Thing, elsewhere: &dyn Fn(&Thing) -> bool) {
        if let Some(fate) = self.fates.get_mut(content)
            && !elsewhere(content)
        {
            fate.taken = true;
        }
    }

    /// Is everything that can be seen there what somebody wrote?
    pub(crate) fn look(&self, name: &str, fs: &SimFs, out: &mut Vec<Violation>) {
        let mut unfinished: Option<Vec<Thing>> = None;
        for (path, entry) in fs.tree() {
            let Some(content) = entry.content else { continue };
            if self.fates.get(&content).is_some_and(|f| f.finished > 0 || f.made) {
                continue;
            }
            if unfinished.get_or_insert_with(|| fs.unfinished()).contains(&content) {
                continue;
            }
            out.push(Violation {
                invariant: "No invention",
                text: format!("{name}: /{} holds what nobody wrote: {}", path.escape_ascii(), show(&content)),
            });
        }
    }

    /// All that must hold at rest. `writer`: the only one who wrote, and the tree as he left it.
    pub(crate) fn rest(&mut self, members: &[AtRest], writer: Option<&Tree>, plan: &Plan) -> Vec<Violation> {
        let mut out = Vec::new();
        converged(members, &mut out);
        agreed(members, &mut out);
        if let (Habits::Orderly { steward }, true, None) = (plan.habits, out.is_empty(), self.disturbed) {
            self.reversed(members, steward, plan, &mut out);
        }
        self.lost(members, &mut out);
        self.resurrected(members, &mut out);
        members.iter().for_each(|m| self.once(&m.name, &m.versions, &mut out));
        members.iter().for_each(|m| bounds(m, plan.staging_bytes, &mut out));
        if let Some(tree) = writer {
            self.intent(members, tree, &mut out);
        }
        out
    }

    fn intent(&self, members: &[AtRest], writer: &Tree, out: &mut Vec<Violation>) {
        for member in members {
            if let Some(text) = difference("the writer", writer, &member.name, &member.tree) {
                out.push(Violation { invariant: "Intent", text });
            }
            let returned = self.put_back.contains(&member.name);
            let damaged = |kept: &&Kept| {
                let content = member.private.get(&kept.place).and_then(|entry| entry.content.as_ref());
                content.is_some_and(|content| self.damaged.contains(content))
            };
            for kept in member.kept.iter().filter(|k| k.unseen && !returned && !damaged(k)) {
                let text = format!("{}: /{} was preserved: {}", member.name, kept.path.escape_ascii(), kept.reason);
                out.push(Violation { invariant: "Intent", text });
            }
        }
    }

    fn lost(&self, members: &[AtRest], out: &mut Vec<Violation>) {
        let mut there: BTreeSet<&Thing> = members.iter().flat_map(|m| contents(&m.tree)).collect();
        let mut seen = BTreeSet::new();
        for member in members {
            for (path, entry) in &member.private {
                let Some(content) = &entry.content else { continue };
                for kept in member.kept.iter().filter(|k| !k.pending && below(path, &k.place)) {
                    let class = if kept.unseen { &mut there } else { &mut seen };
                    class.insert(content);
                }
            }
        }
        for (content, fate) in &self.fates {
            // Whoever takes the last of its names ends it, even where the one before it was taken elsewhere.
            let ended = !fate.ended.is_empty() || fate.unlinked + fate.joined() > fate.linked;
            let required = fate.finished > 0 && !ended && !fate.taken && !content.bytes().is_empty();
            if !required || there.contains(content) {
                continue;
            }
            if fate.cut && seen.contains(content) {
                continue;
            }
            let (invariant, where_) = if seen.contains(content) {
                ("No race", "it is preserved only as something that was replaced knowingly")
            } else {
                ("No loss", "it is neither in a tree nor preserved")
            };
            let text =
                format!("{} was finished at {}, nobody ended it, and {where_}", show(content), seconds(fate.last));
            out.push(Violation { invariant, text });
        }
    }

    fn resurrected(&self, members: &[AtRest], out: &mut Vec<Violation>) {
        for member in members {
            for (path, entry) in &member.tree {
                let Some(content) = &entry.content else { continue };
                let Some(fate) = self.fates.get(content) else { continue };
                let quiet = self.disturbed.is_none_or(|at| at < fate.first);
                if let [end] = fate.ended[..]
                    && fate.finished == 1
                    && fate.last <= end.when
                    && fate.handled.iter().all(|h| *h == end.who)
                    && quiet
                    && !self.moved_by_another(content, fate, end)
                    && !content.bytes().is_empty()
                {
                    let (who, when) = (end.who, end.when);
                    let text = format!(
                        "{}: /{} holds {}, which member {who} ended at {}",
                        member.name,
                        path.escape_ascii(),
                        show(content),
                        seconds(when)
                    );
                    out.push(Violation { invariant: "No resurrection", text });
                }
            }
        }
    }

    /// What must stand where people keep to their own.
    fn reversed(&self, members: &[AtRest], steward: usize, plan: &Plan, out: &mut Vec<Violation>) {
        let Some(member) = members.first() else { return };
        let mut places: BTreeMap<&Thing, &[u8]> = BTreeMap::new();
        for (path, entry) in &member.tree {
            places.extend(entry.content.as_ref().map(|content| (content, &path[..])));
        }
        // What lost its name, or lay in the folder before its member joined, may be preserved and not be in the tree.
        let mut excused = BTreeSet::new();
        for member in members {
            for (path, entry) in &member.private {
                let excuse = |k: &Kept| {
                    let right = k.unseen && k.reason != "lost-edit" && !(plan.keep_beside && k.reason == "lost-name");
                    right && below(path, &k.place)
                };
                excused.extend(entry.content.as_ref().filter(|_| member.kept.iter().any(excuse)));
            }
        }
        let mut push = |text: String| out.push(Violation { invariant: "No reversal", text });
        for (content, fate) in self.fates.iter().filter(|(c, f)| f.finished == 1 && !c.bytes().is_empty()) {
            let Some(path) = places.get(content) else {
                if fate.ended.is_empty() && !excused.contains(content) {
                    push(format!("{} was written and never ended, and is in no tree", show(content)));
                }
                continue;
            };
            let (now, before) = (path.escape_ascii(), fate.path.escape_ascii());
            if let [end] = fate.ended[..]
                && fate.movers.iter().all(|mover| *mover == end.who)
                && !self.moved_by_another(content, fate, end)
            {
                push(format!("member {} ended {}, and it is at /{now}", end.who, show(content)));
            }
            // Who removed the file meanwhile, whatever it held for him, gave it its place: that which it had there.
            let files = fate.lines.ever.iter().filter_map(|file| self.files.get(*file));
            if files.flat_map(|file| &file.removers).collect::<BTreeSet<_>>().len() > 1 {
                continue;
            }
            let ((directory, name), wanted) = (split(path), split(&fate.path).0);
            let stem = fate.name.split(|b| *b == b'.').next().unwrap_or_default();
            if !name.starts_with(stem) {
                let called = fate.name.escape_ascii();
                push(format!("{} is at /{now}, and its writer called it {called}", show(content)));
            } else if fold_path(directory, plan.rule) != fold_path(wanted, plan.rule)
                && fate.movers.iter().eq([&steward])
            {
                push(format!("{} is at /{now}, and the steward moved it to /{before}", show(content)));
            }
        }
    }

    /// Takes note of what a member's versions name, and asks whether they ever named anything else.
    pub(crate) fn once(&mut self, name: &str, versions: &[(Named, u64)], out: &mut Vec<Violation>) {
        for (version, value) in versions {
            if *self.versions.entry(*version).or_insert(*value) != *value {
                let text = format!("{name}: {version:?} has another value than elsewhere");
                out.push(Violation { invariant: "Once", text });
            }
        }
    }
}

/// The directory and the name of a path.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn contents(tree: &Tree) -> impl Iterator<Item = &Thing> {
    tree.values().filter_map(|e| e.content.as_ref())
}

fn below(path: &[u8], place: &[u8]) -> bool {
    path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
}

fn converged(members: &[AtRest], out: &mut Vec<Violation>) {
    let Some((first, others)) = members.split_first() else { return };
    for other in others {
        if let Some(text) = difference(&first.name, &first.tree, &other.name, &other.tree) {
            out.push(Violation { invariant: "Convergence", text });
        }
    }
}

/// Tombstones are collected here earlier than there: only what two members have is compared. Where a member between the two
/// has collected one already, it carries no more to the one which histories the other joined: all know the versions by then
/// that these speak of, so nothing is decided by them any more.
fn agreed(members: &[AtRest], out: &mut Vec<Violation>) {
    let mut known: BTreeMap<Uid, Vec<(&str, &Record)>> = BTreeMap::new();
    for member in members {
        for (uid, record) in &member.records {
            known.entry(*uid).or_default().push((&member.name, record));
        }
    }
    for (_, kept) in known {
        let collected = kept.len() < members.len() && kept.iter().all(|(_, record)| record.placement.value.deleted);
        let compared = |record: &Record| {
            let mut record = record.clone();
            if collected {
                record.placement.written.history = Knowledge::default();
                record.content.iter_mut().for_each(|f| f.written.history = Knowledge::default());
                record.attributes.iter_mut().for_each(|f| f.written.history = Knowledge::default());
            }
            record
        };
        let Some(((name, first), others)) = kept.split_first() else { continue };
        if let Some((other, record)) = others.iter().find(|(_, record)| compared(record) != compared(first)) {
            let text = format!("{name} and {other} have other records: {first:?} and {record:?}");
            out.push(Violation { invariant: "Agreement", text });
            return;
        }
    }
}

/// The first few differences of two trees; `None` where there is none. Times of directories and links do not count.
fn difference(one: &str, left: &Tree, other: &str, right: &Tree) -> Option<String> {
    let mut found = Vec::new();
    let paths: BTreeSet<_> = left.keys().chain(right.keys()).collect();
    for path in paths {
        let what = match (left.get(path), right.get(path)) {
            (Some(_), None) => format!("only on {one}"),
            (None, Some(_)) => format!("only on {other}"),
            (Some(a), Some(b)) if a.kind != b.kind => format!("{:?} and {:?}", a.kind, b.kind),
            (Some(a), Some(b)) if a.content != b.content => {
                let text = |t: &Option<Thing>| t.as_ref().map_or_else(String::new, show);
                format!("{} and {}", text(&a.content), text(&b.content))
            }
            (Some(a), Some(b)) if a.kind != Kind::Symlink && a.attributes != b.attributes => {
                format!("{:?} and {:?}", a.attributes, b.attributes)
            }
            (Some(a), Some(b)) if a.kind == Kind::File && a.mtime != b.mtime => {
                format!("{:?} and {:?}", a.mtime, b.mtime)
            }
            _ => continue,
        };
        found.push(format!("/{}: {what}", path.escape_ascii()));
    }
    let more = found.len().saturating_sub(6);
    found.truncate(6);
    (!found.is_empty()).then(|| {
        let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
        format!("{one} and {other} differ: {}{rest}", found.join("; "))
    })
}

fn bounds(member: &AtRest, staging_bytes: u64, out: &mut Vec<Violation>) {
    let name = &member.name;
    let mut push = |text: String| out.push(Violation { invariant: "Bounds", text });
    for path in member.tree.keys().filter(|p| p.split(|&b| b == b'/').any(|part| part.starts_with(b".anabranch"))) {
        push(format!("{name}: private file left in the tree: /{}", path.escape_ascii()));
    }
    let size = |e: &Option<Thing>| e.as_ref().map_or(0, |t| t.bytes().len() as u64);
    let staged: Vec<(String, u64)> = member
        .private
        .iter()
        .filter(|(p, _)| p.starts_with(b"staging/"))
        .map(|(p, e)| (p.escape_ascii().to_string(), size(&e.content)))
        .collect();
    let (sum, largest) = (staged.iter().map(|s| s.1).sum::<u64>(), staged.iter().map(|s| s.1).max().unwrap_or(0));
    if sum > staging_bytes.max(largest) {
        push(format!("{name}: {sum} bytes in staging, with a quota of {staging_bytes}: {staged:?}"));
    }
    for path in member.private.keys() {
        let top = path.iter().position(|&b| b == b'/').map_or(&path[..], |at| &path[..at]);
        let preserved = top == b"ConflictAndDeleted" || top == b"PreExisting";
        if preserved && path.len() > top.len() && !member.kept.iter().any(|k| below(path, &k.place)) {
            push(format!("{name}: {} is preserved without a manifest entry", path.escape_ascii()));
        }
    }
    for kept in member.kept.iter().filter(|k| !k.pending && !member.private.contains_key(&k.place)) {
        push(format!("{name}: the manifest names {}, which is not there", kept.place.escape_ascii()));
    }
}

fn seconds(time: u64) -> String {
    format!("{}.{:06}", time / 1_000_000, time % 1_000_000)
}

/// A content in a few words.
pub(crate) fn show(content: &Thing) -> String {
    let bytes = content.bytes();
    let text = bytes[..bytes.len().min(24)].escape_ascii();
    let kind = if content.is_link() { "link to " } else { "" };
    if bytes.len() > 24 { format!("{kind}\"{text}…\" ({} bytes)", bytes.len()) } else { format!("{kind}\"{text}\"") }
}

#[cfg(test)]
mod tests;
