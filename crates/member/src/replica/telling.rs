//! What partners are told: that there is more, and what is held here by now; and what may be collected when all have told.

use anabranch_engine::kv::{Kv, Table};
use anabranch_model::{Knowledge, Version};
use anabranch_net::message::{Acknowledgement, Message};
use anabranch_volume::fs::Fs;

use super::{Link, Partner, Phase, Replica, Result};

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// Tells downstream partners that the change number has grown, or that initial sync is complete; not before that.
    pub(super) fn push(&mut self) -> Result<()> {
        if self.phase == Phase::Joining {
            return Ok(());
        }
        let number = self.records.change_number();
        let links: Vec<_> = self
            .links
            .iter()
            .filter(|(_, l)| l.partner == Partner::Downstream && l.peer.is_some() && (l.pushed < number || l.joining))
            .map(|(id, _)| *id)
            .collect();
        for id in links {
            if let Some(link) = self.links.get_mut(&id) {
                link.pushed = number;
                link.joining = false;
            }
            self.send(id, Message::Grown { number });
        }
        let waiting = |link: &Link| link.unanswered.filter(|after| *after < number || !self.first_scan);
        let waiting: Vec<_> = self.links.iter().filter_map(|(id, l)| waiting(l).map(|after| (*id, after))).collect();
        for (id, after) in waiting {
            if let Some(link) = self.links.get_mut(&id) {
                link.unanswered = None;
            }
            self.serve_page(id, after, &Knowledge::default(), false)?;
        }
        Ok(())
    }

    /// Says what is held here, once nothing is outstanding; collects tombstones that everybody acknowledged.
    pub(super) fn acknowledge(&mut self) -> Result<()> {
        if self.phase != Phase::Normal || !self.records.kv().range(Table::Todo, &[], None, 1)?.is_empty() {
            return Ok(());
        }
        let own = self.acknowledged.of(&self.config.member);
        let (held, replica) = (self.records.known(), self.records.replica());
        if own.is_none_or(|a| a.held != *held || a.replica != replica) {
            let serial = own.map_or(0, |a| a.serial + 1).max(self.now.0);
            self.first_serial.get_or_insert(serial);
            let ack = Acknowledgement { member: self.config.member.clone(), replica, serial, held: held.clone() };
            self.records.begin()?;
            self.acknowledged.put(self.records.kv_mut(), ack)?;
            self.collect()?;
            self.records.commit()?;
        }
        self.tell_acknowledgements();
        Ok(())
    }

    /// Collects tombstones, in the transaction under way: what every member of the folder has acknowledged.
    pub(crate) fn collect(&mut self) -> Result<()> {
        // A page that is on its way may speak of what is collected meanwhile.
        if self.links.values().any(|l| l.pulling) {
            return Ok(());
        }
        let mut all: Option<Knowledge> = None;
        for member in &self.config.members {
            let Some(ack) = self.acknowledged.of(member) else { return Ok(()) };
            // What that member changed before it acknowledged may keep something that is dead here: it is heard first.
            if !self.records.known().includes(&ack.held) {
                return Ok(());
            }
            all = Some(match all {
                None => ack.held.clone(),
                Some(all) => all.iter().map(|(r, s)| (r, s.min(ack.held.sequence(r)))).collect(),
            });
        }
        if let Some(all) = all {
            self.records.collect(&all, 4096)?;
        }
        Ok(())
    }

    /// Tells every partner what it has not been told of the members' acknowledgements.
    pub(crate) fn tell_acknowledgements(&mut self) {
        let mut news = Vec::new();
        for (id, link) in self.links.iter_mut().filter(|(_, l)| l.peer.is_some()) {
            let members = self.acknowledged.news_for(&mut link.told_acknowledgements);
            if !members.is_empty() {
                news.push((*id, members));
            }
        }
        for (id, members) in news {
            self.send(id, Message::Acknowledged { members });
        }
    }

    /// A version counts unless it lies beyond the point at which its replica id was closed.
    pub(crate) fn cap_closed(closed: &[Version], knowledge: &mut Knowledge) {
        for version in closed {
            knowledge.lower(version.replica, version.sequence);
        }
    }
}
