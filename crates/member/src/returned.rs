//! At which point a member was returned to an earlier state, and what becomes of what it did since (design, section 11).
//!
//! Numbers grow within one life of a database. Where the clock was ahead in the life that was forgotten, its numbers lie
//! beyond those issued since: then they say nothing of the point of return, and whoever knows them seems to have seen what
//! was done here since.

use anabranch_engine::kv::{Kv, Table};
use anabranch_model::{Sequence, Version};
use anabranch_volume::fs::Fs;

use crate::nodes;
use crate::replica::{Replica, Result};
use crate::tables::{self, Gap, Meta};

/// To which state a member was returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Point {
    /// A mark of ours from before it, as late as is certain.
    pub(crate) mark: Sequence,
    /// The life that was forgotten may have issued numbers beyond those issued since.
    pub(crate) mixed: bool,
}

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// Where `partner`, or somebody, knows a `number` of ours that was not issued here.
    pub(crate) fn point_of_return(&self, number: u64, partner: Option<&str>) -> Result<Point> {
        if let Some(gap) = self.gaps.iter().find(|gap| gap.has_sequence(Sequence(number))) {
            return self.point_before(gap);
        }
        let before = self.newest_mark_before(number)?;
        let confirmed = partner.map(|partner| self.confirmed(partner)).transpose()?.flatten().unwrap_or_default();
        // Any start since may have been the first one after the return.
        let first = self.gaps.iter().find(|gap| gap.sequences.0 >= confirmed);
        let first = first.map(|gap| self.point_before(gap)).transpose()?;
        Ok(Point { mark: first.map_or(before, |first| before.min(first.mark)), mixed: true })
    }

    /// Where somebody knows a number that was passed over at a start.
    pub(crate) fn point_before(&self, gap: &Gap) -> Result<Point> {
        Ok(Point { mark: self.newest_mark_before(gap.sequences.0.0.saturating_add(1))?, mixed: false })
    }

    /// A partner has heard nothing of us that is not here: we were not returned by now, as far as it knows.
    pub(crate) fn confirm(&mut self, partner: &str) -> Result<()> {
        let last = self.gaps.last().map_or(Sequence(0), |gap| gap.sequences.0);
        if self.confirmed(partner)?.is_some_and(|confirmed| confirmed > last) {
            return Ok(());
        }
        let highest = self.records.highest();
        self.records.begin()?;
        self.records.kv_mut().put(Table::Meta, &key(partner), &highest.0.to_be_bytes())?;
        self.records.commit()?;
        Ok(())
    }

    /// Our highest number when that partner last confirmed that it knew of no other life of ours.
    fn confirmed(&self, partner: &str) -> Result<Option<Sequence>> {
        let number = self.records.kv().get(Table::Meta, &key(partner))?;
        Ok(number.map(|bytes| tables::read_number(&bytes)).transpose()?.map(Sequence))
    }

    /// In the transaction under way: the id that partners confirmed is closed.
    pub(crate) fn forget_confirmed(&mut self) -> Result<()> {
        let to = anabranch_engine::kv::after_prefix(Meta::CONFIRMED);
        for (key, _) in self.records.kv().range(Table::Meta, Meta::CONFIRMED, to.as_deref(), usize::MAX)? {
            self.records.kv_mut().delete(Table::Meta, &key)?;
        }
        Ok(())
    }

    /// In the transaction under way: what was issued under the id that is closed, after the point of return and by this
    /// life, is issued anew. That has an id of its own: what goes on under the next one, as what was written in the forgotten
    /// life and is stamped anew by us, has not seen it.
    pub(crate) fn issue_second_life_anew(&mut self, closed: Version, gaps: &[Gap]) -> Result<()> {
        let own = (self.fresh)();
        self.records.set_replica(own);
        let of_this_life = |version: Version| {
            version.replica == closed.replica
                && version.sequence > closed.sequence
                && !gaps.iter().any(|gap| gap.has_sequence(version.sequence))
        };
        let anew = self.records.issue_anew(self.now, closed, of_this_life)?;
        if !anew.is_empty() {
            self.note_former(own)?;
        }
        for (uid, pairs) in anew {
            let Some(node) = nodes::of(self.records.kv(), uid)? else { continue };
            let mut changed = node.clone();
            for (old, new) in pairs {
                if changed.attributes_version == old {
                    changed.attributes_version = new;
                }
                let Some(content) = &mut changed.content else { continue };
                content.history.lower(closed.replica, closed.sequence);
                if content.bytes == Some(old) {
                    content.bytes = Some(new);
                    content.history.learn(new);
                }
                if content.version == old {
                    content.version = new;
                    content.history.learn(new);
                }
            }
            nodes::put(self.records.kv_mut(), Some(&node), &changed)?;
        }
        self.note_touched()
    }
}

fn key(partner: &str) -> Vec<u8> {
    [Meta::CONFIRMED, partner.as_bytes()].concat()
}
