//! What the view wants of an item against what is on disk: what is to be put in place, changed or taken out, decided row by
//! row (design, section 8).

use std::io;

use anabranch_engine::Rule;
use anabranch_engine::kv::{Kv, Table};
use anabranch_model::{Content, ContentFacet, Record, Timestamp, Uid};
use anabranch_net::message::Bytes;
use anabranch_volume::fs::{FileStamp, Fs, Kind, Stat};

use super::{Batch, Looked, Outcome, Planned, Ready, Removal};
use crate::events::EventKind;
use crate::fetch::room_for_contents;
use crate::nodes::{self, Node, NodeId};
use crate::observe::written_since;
use crate::replica::{Phase, Replica, Result, Waiting};
use crate::tables::Reason;

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// What the view wants of one UID, against what is on disk.
    pub(super) fn look_at(&mut self, batch: &mut Batch<F>, uid: Uid, depth: usize) -> Result<Looked> {
        // What waited for the order while another was looked at may put things aside when its own turn comes.
        let again = |before: &Option<Looked>| depth == 0 && *before == Some(Looked::Wait(Waiting::Order));
        if let Some(before) = batch.visited.get(&uid).filter(|before| !again(before)) {
            return Ok(before.unwrap_or(Looked::Wait(Waiting::Order)));
        }
        if depth > 64 {
            return Ok(Looked::Wait(Waiting::Order));
        }
        batch.visited.insert(uid, None);
        let looked = self.look_at_new(batch, uid, depth)?;
        batch.visited.insert(uid, Some(looked));
        if looked == Looked::Done {
            self.records.kv_mut().delete(Table::Todo, &nodes::uid_key(uid))?;
        }
        Ok(looked)
    }

    fn look_at_new(&mut self, batch: &mut Batch<F>, uid: Uid, depth: usize) -> Result<Looked> {
        let Some((record, Some(shown))) = self.records.record_and_shown(uid)? else {
            self.drop_content(uid)?;
            return match nodes::of(self.records.kv(), uid)? {
                // It has to be noted before it can be taken out; and who has none of it has let its record go.
                None if self.is_unnoted(uid)? => Ok(Looked::Wait(Waiting::LocalChange)),
                None => Ok(Looked::Done),
                Some(node) if node.is_dir() => self.take_out_dir(batch, uid, &node, depth),
                Some(node) => self.plan_removal(batch, uid, node),
            };
        };
        // The directory first: so it is at its final place, and nothing is moved into itself.
        if shown.parent != Uid::ROOT {
            let key = nodes::uid_key(shown.parent);
            if self.records.kv().get(Table::Todo, &key)?.is_some() {
                self.look_at(batch, shown.parent, depth + 1)?;
            }
        }
        let Some(parent) = nodes::of(self.records.kv(), shown.parent)?.filter(Node::is_dir) else {
            return Ok(Looked::Wait(Waiting::Order));
        };
        let name = shown.name.bytes();
        // Only now: the look at its directory may have moved it, parked it or made it part of another.
        let node = match nodes::of(self.records.kv(), uid)? {
            Some(node) if (node.parent, &node.name[..]) != (parent.id, name) => {
                match self.move_node(batch, &node, &parent, name, depth)? {
                    Ok(node) => Some(node),
                    Err(why) => return Ok(Looked::Wait(why)),
                }
            }
            node => node,
        };
        if shown.directory {
            return match node {
                Some(node) => self.fix_attributes(batch, &record, node),
                // A second one would be left where the first is by now, and look like a user's own.
                None if self.is_unnoted(uid)? => Ok(Looked::Wait(Waiting::LocalChange)),
                None => self.make_dir(batch, &record, &parent, name, depth),
            };
        }
        let Some(facet) = record.content.clone() else { return Ok(Looked::Done) };
        match node {
            Some(node)
                if node.content.as_ref().is_some_and(|c| c.value == facet.value)
                    && !self.would_write_through_a_link(&record, &facet, &node)? =>
            {
                self.drop_content(uid)?;
                self.same_content(batch, &record, &facet, node)
            }
            node => self.plan_install(batch, &record, facet, &parent, name, node, depth),
        }
    }

    pub(super) fn drop_content(&mut self, uid: Uid) -> Result<()> {
        self.stop_fetching(uid)?;
        if self.ready.is_being_written(uid) {
            self.take_up_written();
        }
        match self.ready.remove(uid) {
            Some(ready) if ready.has_file() => self.drop_partial(uid),
            _ => Ok(()),
        }
    }

    /// Opens a directory of the tree; where another one is there than the database expects, or none, that is a local change.
    fn expect_dir(&mut self, id: NodeId) -> Result<std::result::Result<F::Dir, Waiting>> {
        if let Some(dir) = self.dir(id)? {
            return Ok(Ok(dir));
        }
        if let Some(node) = nodes::get(self.records.kv(), id)? {
            self.local_change(node.parent, &node.name);
        }
        Ok(Err(Waiting::LocalChange))
    }

    /// Looks at an entry of the tree; what the database does not expect there is a local change.
    pub(super) fn expect_at(
        &mut self,
        parent: NodeId,
        name: &[u8],
        node: Option<&Node>,
    ) -> Result<std::result::Result<F::Dir, Waiting>> {
        let dir = match self.expect_dir(parent)? {
            Ok(dir) => dir,
            Err(why) => return Ok(Err(why)),
        };
        match self.fs.stat(&dir, name) {
            Ok(found) => {
                let same = match (&found, node) {
                    (None, None) => true,
                    (Some(stat), Some(node)) => stat.object == node.object,
                    _ => false,
                };
                if same && found.is_some_and(|stat| self.is_doubted(node, &stat)) {
                    self.observe_at.get_or_insert(self.now);
                    Ok(Err(Waiting::LocalChange))
                } else if same {
                    Ok(Ok(dir))
                } else {
                    self.local_change(parent, name);
                    Ok(Err(Waiting::LocalChange))
                }
            }
            Err(error) => Ok(Err(self.failed(parent, name, &error)?)),
        }
    }

    /// After a power cut: may a file have other bytes than its stamp says? Somebody's last ones may have reached the disk and
    /// the time not. Until all is compared nothing of it is taken out: it would be preserved as what it is not.
    fn is_doubted(&self, node: Option<&Node>, stat: &Stat) -> bool {
        let known = node.and_then(|node| node.content.as_ref()).is_some_and(|content| content.bytes.is_some());
        // Later only what lies where nothing could be read is in doubt: each file is then read before it is taken out.
        let comparing = self.suspect && self.compared_at.is_none();
        let comparing = comparing && self.phase == Phase::Normal && stat.kind == Kind::File;
        comparing && known && written_since(stat, self.checkpoint)
    }

    /// Makes a name free for something of the view: what has it must leave. `Ok(None)`: it is free.
    /// `Ok(Some(node))`: a file has it that is to be taken out of the tree, so it can be exchanged.
    pub(super) fn make_room(
        &mut self,
        batch: &mut Batch<F>,
        uid: Uid,
        parent: NodeId,
        name: &[u8],
        depth: usize,
    ) -> Result<std::result::Result<Option<Node>, Waiting>> {
        let Some(occupant) = nodes::at(self.records.kv(), parent, name)?.filter(|n| n.uid != Some(uid)) else {
            return Ok(Ok(None));
        };
        let Some(other) = occupant.uid else { return Ok(Err(Waiting::Order)) };
        if self.records.shown(other)?.is_none() {
            if occupant.is_dir() {
                self.look_at(batch, other, depth + 1)?;
                let still = nodes::at(self.records.kv(), parent, name)?.is_some_and(|n| n.uid != Some(uid));
                return Ok(if still { Err(Waiting::Order) } else { Ok(None) });
            }
            return Ok(Ok(Some(occupant)));
        }
        self.look_at(batch, other, depth + 1)?;
        match nodes::at(self.records.kv(), parent, name)?.filter(|n| n.uid != Some(uid)) {
            None => Ok(Ok(None)),
            Some(still) if still.id == occupant.id => {
                let away = match self.records.shown(other)? {
                    Some(shown) => {
                        let above = match shown.parent {
                            Uid::ROOT => Some(nodes::ROOT_NODE),
                            above => nodes::of(self.records.kv(), above)?.map(|n| n.id),
                        };
                        shown.name.bytes() != name || above != Some(parent)
                    }
                    None => false,
                };
                if away && depth == 0 { self.park(batch, still) } else { Ok(Err(Waiting::Order)) }
            }
            Some(_) => Ok(Err(Waiting::Order)),
        }
    }

    /// Would a time or attributes be written to a file that has other names, too? Each path is a file of its own (design,
    /// section 5): it is installed anew then.
    fn would_write_through_a_link(&mut self, record: &Record, facet: &ContentFacet, node: &Node) -> Result<bool> {
        let attributes = record.attributes.as_ref().is_some_and(|attributes| {
            node.attributes_version != attributes.written.version && node.attributes != attributes.value
        });
        let time = node.content.as_ref().is_some_and(|c| c.version != facet.written.version)
            && node.stamp.mtime != facet.mtime;
        if !attributes && !time {
            return Ok(false);
        }
        let Some(dir) = self.dir(node.parent)? else { return Ok(false) };
        Ok(self.fs.stat(&dir, &node.name).is_ok_and(|s| s.is_some_and(|s| s.object == node.object && s.links > 1)))
    }

    /// The content is there; its time and the attributes may differ.
    fn same_content(
        &mut self,
        batch: &mut Batch<F>,
        record: &Record,
        facet: &ContentFacet,
        mut node: Node,
    ) -> Result<Looked> {
        let old = node.clone();
        let disk = node.content.as_mut();
        let newer =
            disk.as_ref().is_some_and(|c| c.version != facet.written.version || c.history != facet.written.history);
        if newer {
            let mtime_differs = node.stamp.mtime != facet.mtime;
            if mtime_differs {
                let dir = match self.expect_at(old.parent, &old.name, Some(&old))? {
                    Ok(dir) => dir,
                    Err(why) => return Ok(Looked::Wait(why)),
                };
                // A write between the look and this call would bear our time afterwards, and a ctime that is ours: the lease
                // keeps it out. A link's target does not change.
                let guard = match old.kind == Kind::File {
                    true => match self.guard(&dir, &old.name, &old)? {
                        Ok(guard) => Some(guard),
                        Err(why) => return Ok(Looked::Wait(why)),
                    },
                    false => None,
                };
                match self.set_time(&dir, &old, facet.mtime) {
                    Ok(Some(stamp)) => node.stamp = stamp,
                    Ok(None) => {
                        self.local_change(old.parent, &old.name);
                        return Ok(Looked::Wait(Waiting::LocalChange));
                    }
                    Err(error) => return Ok(Looked::Wait(self.failed(old.parent, &old.name, &error)?)),
                }
                if let (Some((_, _, leased)), Some(disk)) = (&guard, node.content.as_mut()) {
                    disk.provisional |= !leased;
                }
                batch.unopened += 1;
                batch.moved.insert(node.id);
            }
            if let Some(disk) = node.content.as_mut() {
                disk.bytes = Some(facet.bytes.version);
                disk.version = facet.written.version;
                disk.history.clone_from(&facet.written.history);
            }
            nodes::put(self.records.kv_mut(), Some(&old), &node)?;
        }
        self.fix_attributes(batch, record, node)
    }

    /// Sets the mtime if nothing changed since the database's stamp; returns the stamp afterwards, with the time that we set:
    /// another one that is there by then is somebody's touch, and shows when it is compared.
    fn set_time(&self, dir: &F::Dir, node: &Node, mtime: Timestamp) -> io::Result<Option<FileStamp>> {
        let unchanged = |stat: &Stat| stat.object == node.object && stat.stamp == node.stamp;
        if !self.fs.stat(dir, &node.name)?.is_some_and(|s| unchanged(&s)) {
            return Ok(None);
        }
        self.fs.set_mtime(dir, &node.name, mtime)?;
        let after = self.fs.stat(dir, &node.name)?;
        let after = after.filter(|s| s.object == node.object && s.stamp.size == node.stamp.size).map(|s| s.stamp);
        // Where times are coarser than ours, it is what is left of ours.
        let ours = |there: Timestamp| there <= mtime && there.seconds == mtime.seconds;
        Ok(after.map(|stamp| if ours(stamp.mtime) { stamp } else { FileStamp::doubted(mtime) }))
    }

    /// Applies attributes in place where they are not the record's.
    pub(super) fn fix_attributes(&mut self, batch: &mut Batch<F>, record: &Record, node: Node) -> Result<Looked> {
        let Some(facet) = &record.attributes else { return Ok(Looked::Done) };
        if node.attributes_version == facet.written.version {
            return Ok(Looked::Done);
        }
        let mut after = node.clone();
        if node.attributes != facet.value {
            let dir = match self.expect_at(node.parent, &node.name, Some(&node))? {
                Ok(dir) => dir,
                Err(why) => return Ok(Looked::Wait(why)),
            };
            let written = (|| -> io::Result<Option<(anabranch_model::Attributes, Stat)>> {
                let before = self.fs.stat(&dir, &node.name)?.filter(|s| s.object == node.object);
                if before.is_none_or(|s| !node.is_dir() && s.stamp != node.stamp)
                    || self.fs.read_attributes(&dir, &node.name)? != node.attributes
                {
                    return Ok(None);
                }
                let attributes = self.fs.write_attributes(&dir, &node.name, &facet.value)?;
                let mut after = self.fs.stat(&dir, &node.name)?.filter(|s| s.object == node.object);
                if self.fs.read_attributes(&dir, &node.name)? != attributes {
                    // Somebody came right after us: the stamp stays what it was, so that it shows.
                    after = after.map(|s| Stat { stamp: node.stamp, ..s });
                }
                Ok(after.map(|s| (attributes, s)))
            })();
            match written {
                Ok(Some((attributes, stat))) => {
                    if attributes != facet.value {
                        let path = self.record_path(record.uid)?;
                        self.report_once(EventKind::AttributesNotHeld, path);
                    }
                    after.attributes = attributes;
                    let same = (stat.stamp.size, stat.stamp.mtime) == (node.stamp.size, node.stamp.mtime);
                    if same || node.is_dir() {
                        after.stamp = stat.stamp;
                    }
                    batch.unopened += 1;
                    batch.moved.insert(node.id);
                }
                Ok(None) => {
                    // The stamp may not show it: two changes within a tick of the clock.
                    let doubted = Node { stamp: FileStamp::doubted(node.stamp.mtime), ..node.clone() };
                    nodes::put(self.records.kv_mut(), Some(&node), &doubted)?;
                    self.local_change(node.parent, &node.name);
                    return Ok(Looked::Wait(Waiting::LocalChange));
                }
                Err(error) => return Ok(Looked::Wait(self.failed(node.parent, &node.name, &error)?)),
            }
        }
        after.attributes_version = facet.written.version;
        nodes::put(self.records.kv_mut(), Some(&node), &after)?;
        Ok(Looked::Done)
    }

    /// Prepares a private file for a content, if it is here.
    #[expect(clippy::too_many_arguments, reason = "what the view wants and what is on disk")]
    fn plan_install(
        &mut self,
        batch: &mut Batch<F>,
        record: &Record,
        facet: ContentFacet,
        parent: &Node,
        name: &[u8],
        node: Option<Node>,
        depth: usize,
    ) -> Result<Looked> {
        let uid = record.uid;
        if self.ready.is_being_written(uid) {
            // Its own row would have waited for that; something else led here.
            self.take_up_written();
        }
        if matches!(facet.value, Content::Symlink { .. }) && self.ready.get(uid).is_some() {
            // It was a file when that was fetched.
            self.drop_content(uid)?;
        }
        if let Content::File { size, hash } = &facet.value {
            if self.ready.get(uid).is_some_and(|r| r.hash() != hash) {
                self.drop_content(uid)?;
            }
            if self.ready.get(uid).is_none() {
                let here = if *size == 0 {
                    Some(Ready::Bytes { bytes: Bytes::new(), hash: *hash })
                } else if self.fetching.wants(uid, hash) {
                    None
                } else {
                    match self.kept_whole(uid, *size, hash)? {
                        None => {
                            let missing = self.small_room_missing(batch, *size);
                            if missing > 0 {
                                return self.no_room(uid, missing);
                            }
                            self.reuse(uid, *size, hash)?.inspect(|_| self.counters.reused += 1)
                        }
                        whole => whole,
                    }
                };
                match here {
                    Some(ready) => {
                        self.ready.insert(uid, ready);
                    }
                    None => {
                        let large = *size > u64::from(self.config.limits.piece_bytes);
                        let missing = if large && !self.fetching.wants(uid, hash) {
                            self.room_missing_for(uid, *size)?
                        } else {
                            0
                        };
                        if missing > 0 {
                            return self.no_room(uid, missing);
                        }
                        self.want(uid, &facet, record.attributes.as_ref())?;
                        return Ok(Looked::Wait(Waiting::Content));
                    }
                }
            }
        }
        let replaces = match node {
            Some(node) => Some(node),
            None => match self.make_room(batch, uid, parent.id, name, depth)? {
                Ok(occupant) => occupant,
                Err(why) => return Ok(Looked::Wait(why)),
            },
        };
        let dir = match &replaces {
            Some(node) => self.expect_at(parent.id, name, Some(node))?,
            // What has the name for all that shows when it is put in place: nothing is replaced there.
            None => self.expect_dir(parent.id)?,
        };
        let dir = match dir {
            Ok(dir) => dir,
            Err(why) => return Ok(Looked::Wait(why)),
        };
        let number = batch.next_preserved;
        batch.next_preserved += u64::from(replaces.is_some());
        if let Some(other) = replaces.as_ref().and_then(|n| n.uid).filter(|o| *o != uid) {
            // It comes out when its name is given away, and is not taken out of there as well.
            batch.removals.retain(|removal| removal.node.uid != Some(other));
            batch.visited.insert(other, Some(Looked::Planned));
        }
        let (wanted, name) = (record.attributes.clone(), name.to_vec());
        batch.planned.push(Planned { uid, facet, wanted, parent: parent.id, dir, name, replaces, preserved: number });
        Ok(Looked::Planned)
    }

    /// Bytes that are missing on the disk for a small content, besides what is on its way.
    fn small_room_missing(&self, batch: &mut Batch<F>, size: u64) -> u64 {
        if size > u64::from(self.config.limits.piece_bytes) {
            return 0;
        }
        let room = *batch.room.get_or_insert_with(|| self.fs.room().map_or(u64::MAX, room_for_contents));
        (size + self.fetching.bytes() + self.ready.small_bytes()).saturating_sub(room)
    }

    /// A content waits for room on the disk.
    fn no_room(&mut self, uid: Uid, missing: u64) -> Result<Looked> {
        let path = self.record_path(uid)?;
        self.report_once(EventKind::StagingFull, format!("{path}: no space: {missing} bytes are missing"));
        Ok(Looked::Wait(Waiting::Failed))
    }

    fn plan_removal(&mut self, batch: &mut Batch<F>, uid: Uid, node: Node) -> Result<Looked> {
        let dir = match self.expect_at(node.parent, &node.name, Some(&node))? {
            Ok(dir) => dir,
            Err(why) => return Ok(Looked::Wait(why)),
        };
        let reason = self.reason_for(uid, &node, None)?;
        let number = batch.next_preserved;
        batch.next_preserved += 1;
        batch.removals.push(Removal { node, dir, reason, number, guard: None, outcome: Outcome::Under });
        Ok(Looked::Planned)
    }

    /// Which class something belongs to that replication takes out of the tree (design, sections 4 and 9).
    fn reason_for(&self, uid: Uid, node: &Node, winner: Option<&ContentFacet>) -> Result<Reason> {
        if self.phase == Phase::Returning {
            let known = self.records.record(uid)?.is_some();
            return Ok(if known { Reason::Differed } else { Reason::PreExisting });
        }
        let Some(disk) = node.content.as_ref() else { return Ok(Reason::Deleted) };
        let Some(held) = disk.bytes else { return Ok(Reason::Differed) };
        if let Some(facet) = winner {
            let elsewhere = anabranch_engine::broken(Rule::PreserveWhatLostElsewhere)
                && self.partner_known.values().any(|known| known.covers(held));
            // The very bytes that are installed: only the name is taken from a file that has others.
            let same = disk.value == facet.value;
            let seen = (facet.written.history.covers(held) && facet.bytes.version != held) || same || elsewhere;
            return Ok(if seen { Reason::Overwritten } else { Reason::LostEdit });
        }
        let beside = |other: Option<Uid>| -> Result<bool> {
            let Some(other) = other else { return Ok(false) };
            let record = self.records.record(other)?;
            Ok(record.and_then(|r| r.content).is_some_and(|f| f.value == disk.value))
        };
        let Some(record) = self.records.record(uid)? else { return Ok(Reason::PreExisting) };
        if let Some(winner) = self.name_winner(&record)? {
            return Ok(if beside(winner)? { Reason::Deleted } else { Reason::LostName });
        }
        let placement = &record.placement;
        // It had lost to another content that nobody brought here before both were deleted: whoever deleted saw that one.
        if record.content.as_ref().is_some_and(|facet| anabranch_engine::must_preserve(facet, &disk.value, held)) {
            return Ok(Reason::LostEdit);
        }
        Ok(match anabranch_engine::must_preserve_deleted(placement, held) {
            // Somebody deleted an earlier content, and a resolution that took its name from this one lost against that.
            true if placement.seen.covers(held) => Reason::LostName,
            true => Reason::LostEdit,
            false => Reason::Deleted,
        })
    }

    /// What has the name that this one lost; the outer `None`: it lost none.
    fn name_winner(&self, record: &Record) -> Result<Option<Option<Uid>>> {
        if let Some(winner) = self.records.loser(record.uid)? {
            return Ok(Some(Some(winner)));
        }
        let placement = &record.placement;
        if placement.value.deleted && placement.written.time.resolutions > 0 {
            return Ok(Some(self.records.shown_at(placement.value.parent, placement.value.name.bytes())?));
        }
        Ok(None)
    }

    /// Did somebody remove, move or change the file that has the name of this one, and its bytes? He saw this one here still.
    pub(super) fn lost_its_winner(&mut self, node: &Node) -> Result<bool> {
        let Some(record) = node.uid.map(|uid| self.records.record(uid)).transpose()?.flatten() else {
            return Ok(false);
        };
        let Some(winner) = self.name_winner(&record)?.flatten() else { return Ok(false) };
        let Some(winner) = nodes::of(self.records.kv(), winner)? else { return Ok(false) };
        let Some(dir) = self.dir(winner.parent)? else { return Ok(true) };
        let there = self.fs.stat(&dir, &winner.name).ok().flatten();
        let unchanged = |stat: Stat| {
            stat.object == winner.object
                && (stat.stamp.size, stat.stamp.mtime) == (winner.stamp.size, winner.stamp.mtime)
        };
        Ok(!there.is_some_and(unchanged))
    }

    pub(super) fn replaced_reason(&self, uid: Uid, facet: &ContentFacet, node: &Node) -> Result<Reason> {
        match node.uid {
            Some(other) if other != uid => self.reason_for(other, node, None),
            _ => self.reason_for(uid, node, Some(facet)),
        }
    }
}
