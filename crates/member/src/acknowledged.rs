//! What members acknowledged, and which of two acknowledgements of one member counts (design, sections 11 and 12).
//!
//! Who tells them is in [`crate::link`], their rows are in [`crate::tables`].

use std::collections::BTreeMap;

use anabranch_engine::kv::{Kv, KvError};
use anabranch_model::Version;
use anabranch_net::message::Acknowledgement;

use crate::tables;

/// The members' newest acknowledgements as the database has them: they are looked at with nearly every message.
#[derive(Default)]
pub(crate) struct Acknowledgements {
    by_member: BTreeMap<String, Acknowledgement>,
    /// How often one was put since they were loaded.
    changes: u64,
}

/// Which of them a partner has been told.
#[derive(Default)]
pub(crate) struct Told {
    serials: BTreeMap<String, u64>,
    /// Of [`Acknowledgements::changes`], when it had been told all.
    all: Option<u64>,
}

impl Told {
    /// The partner has that one, or a later one.
    pub(crate) fn has(&mut self, ack: &Acknowledgement) {
        let serial = self.serials.entry(ack.member.clone()).or_default();
        *serial = (*serial).max(ack.serial);
    }

    /// What it has of that member does not count.
    pub(crate) fn forget(&mut self, member: &str) {
        self.serials.remove(member);
        self.all = None;
    }
}

impl Acknowledgements {
    /// What the database has.
    pub(crate) fn load(kv: &impl Kv) -> Result<Self, KvError> {
        let rows = tables::acknowledgements(kv)?;
        Ok(Self { by_member: rows.into_iter().map(|ack| (ack.member.clone(), ack)).collect(), changes: 0 })
    }

    /// Puts one in the place of its member's last one, in the transaction under way. If that fails, the replica must not go
    /// on.
    pub(crate) fn put(&mut self, kv: &mut impl Kv, ack: Acknowledgement) -> Result<(), KvError> {
        tables::put_acknowledgement(kv, &ack)?;
        self.by_member.insert(ack.member.clone(), ack);
        self.changes += 1;
        Ok(())
    }

    /// That of a member.
    pub(crate) fn of(&self, member: &str) -> Option<&Acknowledgement> {
        self.by_member.get(member)
    }

    /// What a partner has not been told yet, ascending by member; it counts as told from now on.
    pub(crate) fn news_for(&self, told: &mut Told) -> Vec<Acknowledgement> {
        if told.all == Some(self.changes) {
            return Vec::new();
        }
        let is_news = |ack: &&Acknowledgement| told.serials.get(&ack.member) < Some(&ack.serial);
        let news: Vec<_> = self.by_member.values().filter(is_news).cloned().collect();
        news.iter().for_each(|ack| told.has(ack));
        told.all = Some(self.changes);
        news
    }
}

/// What becomes of an acknowledgement that was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Judgement {
    /// It is news, and is kept.
    Take,
    /// Nothing new.
    Known,
    /// The one that is kept stands, and whoever told this one is told so.
    Refuse,
}

/// Judges what was told against what is kept. A later one that holds less than an earlier one, the `closed` replica ids
/// aside, is of a member that was returned to an earlier state and does not know it yet: what it had acknowledged stands.
pub(crate) fn judge(closed: &[Version], kept: Option<&Acknowledgement>, told: &Acknowledgement) -> Judgement {
    let Some(kept) = kept else { return Judgement::Take };
    match (falls_short(closed, kept, told), kept.serial < told.serial) {
        (false, true) => Judgement::Take,
        (false, false) => Judgement::Known,
        (true, true) => Judgement::Refuse,
        // What is kept should not have been taken.
        (true, false) => Judgement::Take,
    }
}

/// Does the later of two acknowledgements of one replica hold less than the earlier one, closed replica ids aside?
pub(crate) fn falls_short(closed: &[Version], one: &Acknowledgement, other: &Acknowledgement) -> bool {
    let (earlier, later) = if one.serial <= other.serial { (one, other) } else { (other, one) };
    let mut held = earlier.held.clone();
    for version in closed {
        held.lower(version.replica, version.sequence);
    }
    earlier.replica == later.replica && !later.held.includes(&held)
}

#[cfg(test)]
mod tests {
    use anabranch_model::{Knowledge, ReplicaId, Sequence};

    use super::*;

    const AUTHOR: ReplicaId = ReplicaId([1; 16]);

    fn version(sequence: u64) -> Version {
        Version { replica: AUTHOR, sequence: Sequence(sequence) }
    }

    fn said(serial: u64, held: u64) -> Acknowledgement {
        let held = Knowledge::of(version(held));
        Acknowledgement { member: "m".into(), replica: ReplicaId([2; 16]), serial, held }
    }

    #[test]
    fn a_later_one_counts_unless_it_holds_less() {
        let (before, more, less) = (said(5, 100), said(6, 101), said(7, 50));
        assert_eq!(judge(&[], None, &before), Judgement::Take);
        assert_eq!(judge(&[], Some(&before), &more), Judgement::Take);
        assert_eq!(judge(&[], Some(&before), &before), Judgement::Known);
        assert_eq!(judge(&[], Some(&more), &before), Judgement::Known);
        assert_eq!(judge(&[], Some(&more), &less), Judgement::Refuse);
        // The id that it held more of was closed there.
        assert_eq!(judge(&[version(50)], Some(&more), &less), Judgement::Take);
        let other = Acknowledgement { replica: ReplicaId([3; 16]), ..less };
        assert_eq!(judge(&[], Some(&more), &other), Judgement::Take);
    }

    #[test]
    fn two_that_kept_different_ones_agree_and_fall_silent() {
        for (mut here, mut there) in [(said(5, 100), said(7, 50)), (said(7, 50), said(5, 100))] {
            let mut told = 0;
            loop {
                told += 1;
                assert!(told < 10, "they tell each other for ever");
                match judge(&[], Some(&there), &here) {
                    Judgement::Take => there = here.clone(),
                    Judgement::Known => break,
                    Judgement::Refuse => std::mem::swap(&mut here, &mut there),
                }
            }
            assert_eq!((&here, &there), (&said(5, 100), &said(5, 100)));
        }
    }
}
