//! Which of two facets stays (design, section 4): the four cases, and nothing else.
//!
//! Pure functions over plain values. Must never look at anything but the two facets: a rank that depended on who holds
//! them would make members diverge for ever.

use std::cmp::Ordering;

use anabranch_model::codec::{Reader, Writer};
use anabranch_model::{
    AttributesFacet, Content, ContentFacet, Hlc, Knowledge, PlacementFacet, Record, Stamp, Time, Uid, Version, Written,
};

/// The rules, each of which some history needs. Only the feature `mutants`, for tests, can break one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// The winner is the highest stamp, with no other rank in front of it.
    LatestStampWins,
    /// Equal values are no conflict, and still the higher stamp stays.
    EqualValuesKeepTheHigherStamp,
    /// An edit that no deleter had seen keeps the file.
    EditBeatsUnseenDelete,
    /// A touch leaves the stamp of the last change of bytes as it was.
    ATouchIsNoEdit,
    /// What deletes had seen is always joined.
    DeletesPoolWhatTheySaw,
    /// A replica preserves what it loses, even if the upstream had seen it and lost it too.
    PreserveWhatLostElsewhere,
    /// A resolution keeps the clock and version of the user's change.
    ResolutionsKeepTheClock,
    /// A pass is merged in one step, at its end.
    PassesAreAtomic,
    /// A pass ends at an instant at which the upstream has no row beyond those fetched.
    APassEndsWhereNothingIsNewer,
    /// A row of which only joined maps changed has a new change number.
    ChangeNumbersCarryMerges,
    /// A row with a merged facet is never skipped.
    AMergedRowIsNotSkipped,
    /// That directories are merged is not written down in their children.
    MergedDirectoriesKeepTheirChildren,
    /// What a user does to a merged directory is done to all that it consists of.
    AMoveTakesAllThatIsMerged,
    /// Numbers are not dense: they follow the clock (section 11). Only a return to an old image needs it, which records
    /// alone do not know of; so it is none of [`Self::ALL`].
    NumbersFollowTheClock,
}

impl Rule {
    /// The rules of section 4 and 6, each of which some history of records needs.
    pub const ALL: [Self; 13] = [
        Self::LatestStampWins,
        Self::EqualValuesKeepTheHigherStamp,
        Self::EditBeatsUnseenDelete,
        Self::ATouchIsNoEdit,
        Self::DeletesPoolWhatTheySaw,
        Self::PreserveWhatLostElsewhere,
        Self::ResolutionsKeepTheClock,
        Self::PassesAreAtomic,
        Self::APassEndsWhereNothingIsNewer,
        Self::ChangeNumbersCarryMerges,
        Self::AMergedRowIsNotSkipped,
        Self::MergedDirectoriesKeepTheirChildren,
        Self::AMoveTakesAllThatIsMerged,
    ];
}

/// Is this rule switched off? Never, without the feature `mutants`.
#[cfg(not(feature = "mutants"))]
#[inline]
#[must_use]
pub const fn broken(_rule: Rule) -> bool {
    false
}

#[cfg(feature = "mutants")]
mod mutants {
    use super::Rule;
    use std::cell::Cell;

    thread_local! {
        static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// Is this rule switched off on this thread?
    #[must_use]
    pub fn broken(rule: Rule) -> bool {
        BROKEN.get() == Some(rule)
    }

    /// Switches one rule off on this thread, or none.
    pub fn break_rule(rule: Option<Rule>) {
        BROKEN.set(rule);
    }
}
#[cfg(feature = "mutants")]
pub use mutants::{break_rule, broken};

/// How a partner's facet stood to the one here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Case {
    /// There was none here.
    New,
    /// Case 1: the one here had seen it.
    Old,
    /// Case 2: it had seen the one here.
    Descendant,
    /// Case 3: concurrent, of one value.
    Equal,
    /// Case 4: concurrent. `taken`: the partner's won.
    Concurrent {
        /// The partner's won.
        taken: bool,
    },
    /// One version with two values: a number used twice (design, section 11). As case 4.
    Twice {
        /// The partner's won.
        taken: bool,
    },
}

/// What came of taking in one record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Whose record.
    pub uid: Uid,
    /// The case of each facet that the partner's record has.
    pub placement: Case,
    /// Of the content.
    pub content: Option<Case>,
    /// Of the attributes.
    pub attributes: Option<Case>,
    /// The record here differs from before.
    pub changed: bool,
    /// The partner knows what is kept here and has what loses to it: it held this for beaten by a time in the future, which
    /// was stamped anew since, and is told again.
    pub again: bool,
    /// The content here before, where it lost to one whose author had not seen its bytes: whoever holds it preserves it.
    pub lost_content: Option<ContentFacet>,
    /// The attributes here before, where they lost to ones whose author had not seen them: kept in the manifest.
    pub lost_attributes: Option<AttributesFacet>,
}

/// Must a member that holds bytes preserve them as *unseen* when it replaces them by `winner`? `held` and `held_bytes`
/// are the content it holds and the version of its last change of bytes.
#[must_use]
pub fn must_preserve(winner: &ContentFacet, held: &Content, held_bytes: Version) -> bool {
    winner.value != *held && (!winner.written.history.covers(held_bytes) || winner.bytes.version == held_bytes)
}

/// Must a member that holds bytes preserve them as *unseen* when it takes them out of the tree, because their record is
/// deleted? `held_bytes` is the version of their last change.
///
/// Yes if no deleter had seen them; if the delete is a resolution (but not where they equal the winner's, which the caller
/// may know); and if maps were joined since the delete was written, or its author had not seen all that they say: a resolution
/// that lost against it may be all that had seen them, and nobody else says so.
#[must_use]
pub fn must_preserve_deleted(placement: &PlacementFacet, held_bytes: Version) -> bool {
    !placement.seen.covers(held_bytes) || placement.written.time.resolutions > 0 || placement.written.merged
}

/// Is it live by its record alone: not deleted, or with content that no deleter had seen?
#[must_use]
pub fn live_by_record(record: &Record) -> bool {
    let unseen = |content: &ContentFacet| !record.placement.seen.covers(content.bytes.version);
    !record.placement.value.deleted
        || record.content.as_ref().is_some_and(unseen) && !broken(Rule::EditBeatsUnseenDelete)
}

/// One last-writer-wins register.
trait Facet: Clone + PartialEq {
    fn written(&self) -> &Written;
    fn written_mut(&mut self) -> &mut Written;
    /// What decides. The second part is the facet's stamp; before it only what does not contradict causality.
    fn rank(&self) -> (Stamp, Stamp);
    fn same_value(&self, other: &Self) -> bool;
    /// A total order of everything a version names: decides only between two values of one number.
    fn order_values(&self, other: &Self) -> Ordering;
    fn join_seen(&mut self, _other: &Self) {}
    /// Did the author of this one, which loses, know the very change that beats it, while the winner had not seen this one?
    /// Then the winner's time is one of a clock in the future, whose author has stamped it anew since (design, section 4):
    /// this one is the later.
    fn had_seen_what_beats_it(&self, winner: &Self) -> bool {
        has_seen(self.written(), self.written().stamp(), winner.written(), winner.written().stamp())
    }
    /// Makes it rank above `winner`, of the version and time that it bears now. `seen`: it had seen
    /// the user's last change of that one.
    fn outrank(&mut self, _winner: &Self, _seen: bool) {}
}

impl Facet for PlacementFacet {
    fn written(&self) -> &Written {
        &self.written
    }
    fn written_mut(&mut self) -> &mut Written {
        &mut self.written
    }
    fn rank(&self) -> (Stamp, Stamp) {
        (self.written.stamp(), self.written.stamp())
    }
    /// The name of the author's member is no part of where a thing is.
    fn same_value(&self, other: &Self) -> bool {
        let (a, b) = (&self.value, &other.value);
        (a.parent, &a.name, a.directory, a.deleted) == (b.parent, &b.name, b.directory, b.deleted)
    }
    fn order_values(&self, other: &Self) -> Ordering {
        let (a, b) = (&self.value, &other.value);
        (a.parent, &a.name, a.directory, a.deleted, &a.author).cmp(&(
            b.parent,
            &b.name,
            b.directory,
            b.deleted,
            &b.author,
        ))
    }
    fn join_seen(&mut self, other: &Self) {
        self.seen.join(&other.seen);
    }
}

impl Facet for ContentFacet {
    fn written(&self) -> &Written {
        &self.written
    }
    fn written_mut(&mut self) -> &mut Written {
        &mut self.written
    }
    fn rank(&self) -> (Stamp, Stamp) {
        self.rank()
    }
    /// The last change of bytes decides where there is a difference, so a touch beats nothing that had seen those bytes. Bytes
    /// that were stamped anew keep their version: whether the winner had seen that is told by the facet's own.
    fn had_seen_what_beats_it(&self, winner: &Self) -> bool {
        if self.bytes.time == winner.bytes.time {
            return has_seen(&self.written, self.written.stamp(), &winner.written, winner.written.stamp());
        }
        let same = self.bytes.version == winner.bytes.version;
        let version = if same { self.written.version } else { self.bytes.version };
        has_seen(&self.written, Stamp { version, ..self.bytes }, &winner.written, winner.bytes)
    }
    /// The bytes keep the version that names them, which removals may have seen. A touch of the same bytes stands.
    fn outrank(&mut self, winner: &Self, seen: bool) {
        self.bytes.time = made_again(self.bytes.time, winner.bytes.time);
        if self.value == winner.value && !seen {
            self.mtime = winner.mtime;
        }
    }
    fn same_value(&self, other: &Self) -> bool {
        self.value == other.value
    }
    fn order_values(&self, other: &Self) -> Ordering {
        fn key(content: &Content) -> (u64, &[u8]) {
            match content {
                Content::File { size, hash } => (*size, hash),
                // A target is never empty and a size never this large.
                Content::Symlink { target } => (u64::MAX, target),
            }
        }
        (key(&self.value), self.mtime, self.birth).cmp(&(key(&other.value), other.mtime, other.birth))
    }
}

impl Facet for AttributesFacet {
    fn written(&self) -> &Written {
        &self.written
    }
    fn written_mut(&mut self) -> &mut Written {
        &mut self.written
    }
    fn rank(&self) -> (Stamp, Stamp) {
        (self.written.stamp(), self.written.stamp())
    }
    fn same_value(&self, other: &Self) -> bool {
        self.value == other.value
    }
    fn order_values(&self, other: &Self) -> Ordering {
        (&self.value, self.directory_mtime).cmp(&(&other.value, other.directory_mtime))
    }
}

/// The order by which the winner is found.
fn compare<F: Facet>(a: &F, b: &F, equal: bool) -> Ordering {
    if equal && broken(Rule::EqualValuesKeepTheHigherStamp) {
        return a.written().version.cmp(&b.written().version);
    }
    if broken(Rule::LatestStampWins) {
        let odd = |f: &F| (f.written().time.clock.0 % 2, f.rank());
        return odd(a).cmp(&odd(b));
    }
    a.rank().cmp(&b.rank()).then_with(|| a.order_values(b))
}

/// The time of a resolution of what bears this one.
pub(crate) fn resolved(time: Time) -> Time {
    Time { resolutions: time.resolutions.saturating_add(1), ..time }
}

/// The time of a user's change that is written again because a time in the future beats it: it remains that change, right
/// after what beat it.
fn made_again(change: Time, winner: Time) -> Time {
    Time { clock: Hlc(winner.clock.max(change.clock).0.saturating_add(1)), ..change }
}

fn has_seen(loser: &Written, lost: Stamp, winner: &Written, won: Stamp) -> bool {
    // Resolutions of one change are as late as one another; what was brought back keeps the change and has another clock.
    let change = |time: Time| (time.clock, time.change);
    change(lost.time) < change(won.time)
        && loser.history.covers(won.time.change)
        && !winner.history.covers(lost.version)
}

struct Merged<F> {
    facet: F,
    case: Case,
    /// The one here lost, and the winner's author had not seen it.
    lost: bool,
    /// The partner knows the one here, which wins over its own.
    again: bool,
}

/// The facet to keep. The cases say what happened; the winner is the maximum in all of them, because a descendant's stamp
/// is the higher one. Where it is not, for the sake of a time in the future, what would lose is written again, at the time
/// right after what would win and of the version that `issue` gives for that: it outranks both, everywhere.
fn merge<F: Facet>(
    local: &F,
    remote: &F,
    upstream: &Knowledge,
    seen: impl Fn(&F, &Knowledge) -> bool,
    issue: &mut dyn FnMut(Hlc) -> Option<Version>,
) -> Merged<F> {
    let equal = local.same_value(remote);
    let taken = compare(local, remote, equal) == Ordering::Less;
    let (l, r) = (local.written(), remote.written());
    let case = if l.version == r.version && !equal {
        Case::Twice { taken }
    } else if l.history.covers(r.version) {
        Case::Old
    } else if r.history.covers(l.version) {
        Case::Descendant
    } else if equal {
        Case::Equal
    } else {
        Case::Concurrent { taken }
    };
    let (winner, other) = if taken { (remote, local) } else { (local, remote) };
    let time = made_again(other.written().time, winner.written().time);
    if other.had_seen_what_beats_it(winner)
        && let Some(version) = issue(time.clock)
    {
        let mut facet = other.clone();
        facet.join_seen(winner);
        // Of a delete: what it says now that it saw is more than its author had seen.
        let merged = other.written().merged || facet != *other;
        let mut history = other.written().history.clone();
        history.join(&winner.written().history);
        history.learn(version);
        *facet.written_mut() = Written { version, time, history, merged };
        facet.outrank(winner, other.written().history.covers(winner.written().time.change));
        return Merged { facet, case, lost: !taken && !equal && !seen(local, &r.history), again: false };
    }
    let mut facet = winner.clone();
    if equal {
        facet.written_mut().history.join(&other.written().history);
    }
    if !broken(Rule::DeletesPoolWhatTheySaw) {
        facet.join_seen(other);
    }
    let again = case == Case::Concurrent { taken: false } && upstream.covers(l.version);
    if again {
        facet.written_mut().merged = true;
    }
    // Apart from its maps the facet is the winner's, so any difference is a joined map.
    if facet != *winner {
        facet.written_mut().merged = true;
    }
    let lost = taken && !equal && (matches!(case, Case::Twice { .. }) || !seen(local, &r.history));
    Merged { facet, case, lost, again }
}

/// The record that a replica keeps of its own and a partner's; `upstream` is the partner's knowledge, which no rule may
/// use to find a winner (it is here to tell it again what it lost, and for the mutant that shows why). `issue` gives the version of what is written again at a
/// time, or none where none may be written.
pub(crate) fn merge_records(
    local: &Record,
    remote: &Record,
    upstream: &Knowledge,
    issue: &mut dyn FnMut(Hlc) -> Option<Version>,
) -> (Record, Taken) {
    let placement =
        merge(&local.placement, &remote.placement, upstream, |l, history| history.covers(l.written.version), issue);
    let mut taken = Taken {
        uid: local.uid,
        placement: placement.case,
        content: None,
        attributes: None,
        changed: false,
        again: placement.again,
        lost_content: None,
        lost_attributes: None,
    };
    let content = match (&local.content, &remote.content) {
        (Some(l), Some(r)) => {
            // A number used twice names two contents: having seen one is not having seen the other.
            let seen = |l: &ContentFacet, history: &Knowledge| {
                history.covers(l.bytes.version) && l.bytes.version != r.bytes.version
            };
            let merged = merge(l, r, upstream, seen, issue);
            taken.again |= merged.again;
            let elsewhere = broken(Rule::PreserveWhatLostElsewhere) && upstream.covers(l.written.version);
            taken.content = Some(merged.case);
            taken.lost_content = Some(l).filter(|_| merged.lost && !elsewhere).cloned();
            Some(merged.facet)
        }
        (None, Some(r)) => {
            taken.content = Some(Case::New);
            Some(r.clone())
        }
        (l, None) => l.clone(),
    };
    let attributes = match (&local.attributes, &remote.attributes) {
        (Some(l), Some(r)) => {
            let merged = merge(l, r, upstream, |l, history| history.covers(l.written.version), issue);
            taken.again |= merged.again;
            taken.attributes = Some(merged.case);
            taken.lost_attributes = Some(l).filter(|_| merged.lost).cloned();
            Some(merged.facet)
        }
        (None, Some(r)) => {
            taken.attributes = Some(Case::New);
            Some(r.clone())
        }
        (l, None) => l.clone(),
    };
    // A thing is a directory or not for life. Only a number used twice can bring both: then the placement decides.
    let content = content.filter(|_| !placement.facet.value.directory);
    let unknown = join_unknown(&local.unknown, &remote.unknown);
    let record = Record { uid: local.uid, placement: placement.facet, content, attributes, unknown };
    taken.changed = record != *local;
    (record, taken)
}

/// The fields of both; of two with one number the greater bytes, so that members agree whatever they are.
fn join_unknown(a: &[u8], b: &[u8]) -> Box<[u8]> {
    if a == b || b.is_empty() {
        return a.into();
    }
    if a.is_empty() {
        return b.into();
    }
    let fields = |bytes| {
        let mut input = Reader(bytes);
        std::iter::from_fn(move || Some((input.number().ok()?, input.bytes(usize::MAX, "a field").ok()?)))
    };
    let mut joined: std::collections::BTreeMap<u64, &[u8]> = fields(a).collect();
    for (number, bytes) in fields(b) {
        let entry = joined.entry(number).or_insert(bytes);
        *entry = bytes.max(entry);
    }
    let mut out = Writer::default();
    for (number, bytes) in joined {
        out.number(number);
        out.bytes(bytes);
    }
    out.0.into()
}

#[cfg(test)]
mod tests;
