//! Content that the tree lacks: asked for in batches, received in order, verified before anything sees it.
//!
//! What is asked for is bounded by the window of [`crate::config::Limits`], so memory is, whatever a partner does. Small
//! files arrive whole and wait in memory for their batch; larger ones are written to a private file piece by piece, and
//! go on where they were cut when a link breaks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use anabranch_engine::kv::Kv;
use anabranch_model::{AttributesFacet, Content, ContentFacet, Hash, Hlc, Timestamp, Uid, Version};
use anabranch_net::message::{Bytes, Message, PIECE_BYTES_MAX, Piece, WANTS_MAX, Want};
use anabranch_volume::fs::{Fs, Room};
use anabranch_volume::hash::read_hash;

use crate::events::EventKind;
use crate::install::{Arrived, Ready};
use crate::nodes;
use crate::partial::{Incoming, Partial};
use crate::replica::{LinkId, Partner, Replica, Result};
use crate::tables;

/// Bytes asked for in one request.
const REQUEST_BYTES: u64 = 2 << 20;
/// Of a large file so many bytes at a time are given to the disk.
const WRITE_BACK_BYTES: u64 = 8 << 20;
/// Contents that nobody had which are looked for here again, at each retry.
const AGAIN: usize = 256;
/// Requests under way on one link.
const REQUESTS: usize = 6;

/// One content that is wanted.
pub(crate) struct Wanted<File> {
    version: Version,
    pub(crate) hash: Hash,
    pub(crate) size: u64,
    /// Links whose partner does not hold it.
    refused: BTreeSet<LinkId>,
    /// The link that it is asked of.
    asked: Option<LinkId>,
    /// Nobody had it, or the rest of it, when all were asked: what can be had does not wait for it.
    nobody: bool,
    /// Bytes asked for so far, and written so far.
    asked_to: u64,
    pub(crate) received: u64,
    /// Of a large file: its private file and the hash of what was received.
    pub(crate) file: Option<Incoming<File>>,
    /// What else its private file was to have when it was asked for.
    mtime: Timestamp,
    attributes: Option<AttributesFacet>,
}

struct Request {
    link: LinkId,
    wants: Vec<Want>,
    next: usize,
}

/// What is wanted and what is on its way.
pub(crate) struct Fetching<File> {
    wanted: BTreeMap<Uid, Wanted<File>>,
    idle: BTreeSet<Uid>,
    requests: BTreeMap<u64, Request>,
    next_request: u64,
    bytes: u64,
    pub(crate) retry_at: Option<Hlc>,
    /// What was fetched of large files before the last start and is not gone on with yet.
    pub(crate) kept: BTreeMap<Uid, Partial>,
    /// UIDs with a row that says how far they have come, and when the rows are written anew.
    pub(crate) noted: BTreeSet<Uid>,
    pub(crate) note_at: Option<Hlc>,
}

impl<File> Default for Fetching<File> {
    fn default() -> Self {
        Self {
            wanted: BTreeMap::new(),
            idle: BTreeSet::new(),
            requests: BTreeMap::new(),
            next_request: 1,
            bytes: 0,
            retry_at: None,
            kept: BTreeMap::new(),
            noted: BTreeSet::new(),
            note_at: None,
        }
    }
}

impl<File> Fetching<File> {
    /// Bytes in memory that what is wanted may come to take.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Counts as wanted bytes: a large file is bounded by its requests, not by its size.
    fn weight(size: u64) -> u64 {
        size.min(u64::from(PIECE_BYTES_MAX)) + 512
    }

    pub(crate) fn wants(&self, uid: Uid, hash: &Hash) -> bool {
        self.wanted.get(&uid).is_some_and(|w| w.hash == *hash)
    }

    /// Is some content of this UID wanted?
    pub(crate) fn wants_any(&self, uid: Uid) -> bool {
        self.wanted.contains_key(&uid)
    }

    /// Contents wanted.
    pub(crate) fn len(&self) -> usize {
        self.wanted.len()
    }

    /// Wants a content no longer. `true`: something of it lies in its private file.
    pub(crate) fn forget(&mut self, uid: Uid) -> bool {
        let Some(wanted) = self.wanted.remove(&uid) else { return false };
        self.bytes = self.bytes.saturating_sub(Self::weight(wanted.size));
        self.idle.remove(&uid);
        wanted.file.is_some()
    }

    pub(crate) fn wanted(&self) -> impl Iterator<Item = &Wanted<File>> {
        self.wanted.values()
    }

    /// Large files of which something was received.
    pub(crate) fn incoming(&mut self) -> impl Iterator<Item = (&Uid, &mut Wanted<File>)> {
        self.wanted.iter_mut().filter(|(_, wanted)| wanted.file.is_some())
    }

    /// Is more content on its way?
    pub(crate) fn under_way(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Is anything wanted that somebody may have?
    fn expected(&self) -> bool {
        self.wanted.values().any(|wanted| !wanted.nobody)
    }

    /// A partner holds now what it had refused: ask again. No UIDs: whatever it had refused.
    pub(crate) fn held(&mut self, link: LinkId, uids: &[Uid]) {
        let all: Vec<Uid> = if uids.is_empty() { self.wanted.keys().copied().collect() } else { uids.to_vec() };
        for uid in all {
            if let Some(wanted) = self.wanted.get_mut(&uid) {
                wanted.refused.remove(&link);
                if wanted.asked.is_none() {
                    self.idle.insert(uid);
                }
            }
        }
    }

    /// A request is answered: what it left open, and no other request will bring, is asked for once more.
    fn ask_again(&mut self, link: LinkId) {
        let open: BTreeSet<Uid> = self.requests.values().flat_map(|r| r.wants.iter().map(|w| w.uid)).collect();
        for (uid, wanted) in &mut self.wanted {
            if wanted.asked == Some(link) && wanted.received < wanted.asked_to && !open.contains(uid) {
                wanted.asked_to = wanted.received;
                self.idle.insert(*uid);
            }
        }
    }

    /// A link is gone: what was asked of it is asked of another.
    pub(crate) fn link_down(&mut self, link: LinkId) {
        self.requests.retain(|_, r| r.link != link);
        for (uid, wanted) in &mut self.wanted {
            wanted.refused.remove(&link);
            if wanted.asked == Some(link) {
                wanted.asked = None;
                wanted.asked_to = wanted.received;
                self.idle.insert(*uid);
            }
        }
    }
}

/// Bytes of a disk that contents may take: replication leaves a part free, for people and for the database (design,
/// section 7).
pub(crate) fn room_for_contents(room: Room) -> u64 {
    /// Most that is left free, bytes.
    const FREE_BYTES: u64 = 64 << 20;
    /// The part of the file system that is left free, where that is less.
    const FREE_SHARE: u64 = 32;
    room.free.saturating_sub(FREE_BYTES.min(room.total / FREE_SHARE))
}

/// The name of the private file in staging for the content of a UID.
pub(crate) fn private_name(uid: Uid) -> Vec<u8> {
    format!("f-{uid}").into_bytes()
}

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// Wants a content, in a transaction. `false`: the window is full, ask later.
    pub(crate) fn want(
        &mut self,
        uid: Uid,
        facet: &ContentFacet,
        attributes: Option<&AttributesFacet>,
    ) -> Result<bool> {
        let Content::File { size, hash } = facet.value else { return Ok(true) };
        if self.fetching.wants(uid, &hash) {
            return Ok(true);
        }
        if self.fetching.kept.get(&uid).is_none_or(|kept| kept.hash != hash) {
            self.stop_fetching(uid)?;
        }
        let large = size > u64::from(self.config.limits.piece_bytes);
        if large {
            self.make_room_in_staging(uid, size)?;
        }
        let limits = &self.config.limits;
        let weight = Fetching::<F::File>::weight(size);
        let (items, bytes) =
            (self.fetching.wanted.len() + self.ready.len(), self.fetching.bytes + self.ready.small_bytes() + weight);
        let staged = if large { self.staged_bytes(uid) } else { 0 };
        let full = items >= limits.window_items
            || bytes > limits.window_bytes
            || (large && staged + size > limits.staging_bytes);
        // Beside what nobody has there is as much room again, and in staging for one file more.
        let twice =
            items >= 2 * limits.window_items || bytes > 2 * limits.window_bytes || staged > limits.staging_bytes;
        let alone = self.fetching.wanted.is_empty();
        if full && (self.fetching.expected() || self.ready.len() > 0 || twice && !alone) {
            return Ok(false);
        }
        let (file, received) = self.go_on_with(uid, &hash)?.unzip();
        let received = received.unwrap_or(0);
        self.fetching.bytes += weight;
        self.fetching.idle.insert(uid);
        let wanted = Wanted {
            version: facet.written.version,
            hash,
            size,
            refused: BTreeSet::new(),
            asked: None,
            nobody: false,
            asked_to: received,
            received,
            file,
            mtime: facet.mtime,
            attributes: attributes.cloned(),
        };
        self.fetching.wanted.insert(uid, wanted);
        Ok(true)
    }

    /// Is there room for a large file, besides those on their way? How much is missing, where there is not.
    pub(crate) fn room_missing(&self, size: u64) -> u64 {
        let coming: u64 = self.fetching.wanted.values().map(|w| w.size.saturating_sub(w.received)).sum();
        self.fs.room().map_or(0, |room| (size + coming).saturating_sub(room_for_contents(room)))
    }

    /// Bytes of large files on their way, waiting for their install, or kept since before the start; but for one.
    pub(crate) fn staged_bytes(&self, but: Uid) -> u64 {
        let large = |size: u64| if size > u64::from(self.config.limits.piece_bytes) { size } else { 0 };
        let kept = self.fetching.kept.iter().filter(|(uid, _)| **uid != but).map(|(_, partial)| partial.received());
        self.fetching.wanted.values().map(|w| large(w.size)).chain(kept).sum::<u64>() + self.ready.large_bytes()
    }

    /// Asks partners for what is wanted and not yet asked for.
    pub(crate) fn fetch(&mut self) -> Result<()> {
        if self.fetching.retry_at.is_some_and(|at| at <= self.now) {
            self.fetching.retry_at = None;
            self.forget_found()?;
            let mut hopeless = Vec::new();
            let mut nobody = Vec::new();
            let partners: Vec<LinkId> =
                self.links.iter().filter(|(_, l)| l.partner == Partner::Upstream).map(|(id, _)| *id).collect();
            for (uid, wanted) in &mut self.fetching.wanted {
                if wanted.asked.is_none() {
                    if partners.iter().all(|id| wanted.refused.contains(id)) {
                        nobody.push((*uid, wanted.version));
                        wanted.nobody = true;
                    }
                    if !wanted.refused.is_empty() && wanted.received == 0 && hopeless.len() < AGAIN {
                        hopeless.push(*uid);
                    }
                    wanted.refused.clear();
                    self.fetching.idle.insert(*uid);
                }
            }
            for &(uid, version) in &nobody {
                self.nobody_has(uid, version)?;
            }
            // What waits for room in the window goes first: it may be what can be had.
            if self.window_full && !(nobody.is_empty() && hopeless.is_empty()) {
                self.window_full = false;
                self.work_at = Some(self.now);
            }
            // Nobody had it: it may have come to lie here meanwhile, preserved or under another name.
            for uid in hopeless {
                self.fetching.forget(uid);
                // It comes again after a while.
                self.due_at(uid, crate::replica::Waiting::Nobody);
            }
        }
        if self.fetching.idle.is_empty() {
            return Ok(());
        }
        self.ask_partners();
        let hopeless = self.fetching.idle.iter().any(|uid| {
            self.fetching.wanted.get(uid).is_some_and(|w| {
                self.links.iter().filter(|(_, l)| l.partner == Partner::Upstream).all(|(id, _)| w.refused.contains(id))
            })
        });
        if hopeless && self.fetching.retry_at.is_none() && !self.links.is_empty() {
            self.fetching.retry_at = Some(Hlc(self.now.0 + self.config.limits.retry));
        }
        Ok(())
    }

    /// Makes as many requests of each partner as may be under way.
    fn ask_partners(&mut self) {
        let links: Vec<LinkId> = self
            .links
            .iter()
            .filter(|(_, l)| l.partner == Partner::Upstream && l.peer.is_some())
            .map(|(id, _)| *id)
            .collect();
        for link in links {
            loop {
                let under_way = self.fetching.requests.values().filter(|r| r.link == link).count();
                if under_way >= REQUESTS || !self.ask(link) {
                    break;
                }
            }
        }
    }

    /// Makes one request of a partner; `false` if there is nothing to ask of it.
    fn ask(&mut self, link: LinkId) -> bool {
        let piece = self.config.limits.piece_bytes;
        let mut wants = Vec::new();
        let mut bytes = 0;
        let mut done = Vec::new();
        for uid in &self.fetching.idle {
            if wants.len() >= WANTS_MAX || bytes >= REQUEST_BYTES {
                break;
            }
            let Some(wanted) = self.fetching.wanted.get_mut(uid) else {
                done.push(*uid);
                continue;
            };
            if wanted.refused.contains(&link) || wanted.asked.is_some_and(|asked| asked != link) {
                continue;
            }
            wanted.asked = Some(link);
            while wanted.asked_to < wanted.size && bytes < REQUEST_BYTES && wants.len() < WANTS_MAX {
                let length = (wanted.size - wanted.asked_to).min(u64::from(piece));
                wants.push(Want {
                    uid: *uid,
                    version: wanted.version,
                    hash: wanted.hash,
                    offset: wanted.asked_to,
                    length: u32::try_from(length).unwrap_or(piece),
                });
                wanted.asked_to += length;
                bytes += length + 64;
            }
            if wanted.asked_to >= wanted.size {
                done.push(*uid);
            }
        }
        for uid in done {
            self.fetching.idle.remove(&uid);
        }
        if wants.is_empty() {
            return false;
        }
        let request = self.fetching.next_request;
        self.fetching.next_request += 1;
        self.fetching.requests.insert(request, Request { link, wants: wants.clone(), next: 0 });
        self.send(link, Message::Fetch { request, wants });
        true
    }

    /// Pieces came. `Err` text: the partner broke the protocol.
    pub(crate) fn take_pieces(
        &mut self,
        link: LinkId,
        number: u64,
        first: u32,
        pieces: Vec<Piece>,
    ) -> Result<std::result::Result<(), String>> {
        let mut arrived = Vec::new();
        let taken = self.take_each(link, number, first, pieces, &mut arrived);
        // What came before a mistake of the partner's is right.
        self.write_ahead(arrived);
        // At once, not after the batch that may be put in place first: the next ones come meanwhile.
        self.ask_partners();
        taken
    }

    fn take_each(
        &mut self,
        link: LinkId,
        number: u64,
        first: u32,
        pieces: Vec<Piece>,
        arrived: &mut Vec<Arrived>,
    ) -> Result<std::result::Result<(), String>> {
        for (at, piece) in pieces.into_iter().enumerate() {
            let Some(request) = self.fetching.requests.get_mut(&number).filter(|r| r.link == link) else {
                // A request of before the link broke: nothing waits for it.
                return Ok(Ok(()));
            };
            if request.next != first as usize + at {
                return Ok(Err(format!("pieces of request {number} out of order")));
            }
            let Some(want) = request.wants.get(request.next).cloned() else {
                return Ok(Err(format!("more pieces than request {number} asked for")));
            };
            request.next += 1;
            let last = request.next == request.wants.len();
            if last {
                self.fetching.requests.remove(&number);
            }
            match piece {
                Piece::Data(bytes) if bytes.len() != want.length as usize => {
                    return Ok(Err(format!("a piece of {} bytes where {} were asked for", bytes.len(), want.length)));
                }
                Piece::Data(bytes) => arrived.extend(self.take_piece(link, &want, bytes)?),
                Piece::NotHeld => self.refuse(link, &want, true),
                Piece::Busy => self.refuse(link, &want, false),
            }
            if last {
                self.fetching.ask_again(link);
            }
        }
        Ok(Ok(()))
    }

    /// The partner has not got it, or not now.
    fn refuse(&mut self, link: LinkId, want: &Want, _for_good: bool) {
        let Some(wanted) = self.fetching.wanted.get_mut(&want.uid).filter(|w| w.hash == want.hash) else { return };
        wanted.refused.insert(link);
        // It may have been asked for an earlier wish for that content, and somebody else for this one.
        if wanted.asked.is_some_and(|asked| asked != link) {
            return;
        }
        wanted.asked = None;
        wanted.asked_to = wanted.received;
        self.fetching.idle.insert(want.uid);
    }

    /// One piece. A small content that is whole with it is given back, to be written.
    fn take_piece(&mut self, link: LinkId, want: &Want, bytes: Bytes) -> Result<Option<Arrived>> {
        self.counters.content_received += bytes.len() as u64;
        let Some(wanted) = self.fetching.wanted.get_mut(&want.uid) else { return Ok(None) };
        if wanted.hash != want.hash || want.offset != wanted.received {
            return Ok(None);
        }
        let small = wanted.size <= u64::from(self.config.limits.piece_bytes);
        // All of a content is welcome whoever is asked for it by now; pieces come in order from one.
        if !small && wanted.asked != Some(link) {
            return Ok(None);
        }
        if small {
            if *blake3::hash(&bytes).as_bytes() != wanted.hash {
                self.wrong_content(link, want);
                return Ok(None);
            }
            let (mtime, wanted) = (wanted.mtime, wanted.attributes.take());
            self.fetching.forget(want.uid);
            self.due_now(want.uid);
            return Ok(Some(Arrived { uid: want.uid, bytes, hash: want.hash, mtime, wanted }));
        }
        if let Err(error) = self.append(want, &bytes) {
            let path = self.record_path(want.uid)?;
            self.report_once(EventKind::StagingFull, format!("{path}: {error}"));
            // What was received gives its room back: the others must not wait for it.
            self.records.begin()?;
            self.stop_fetching(want.uid)?;
            self.records.commit()?;
            self.due_at(want.uid, crate::replica::Waiting::Failed);
            self.fetching.retry_at = Some(Hlc(self.now.0 + self.config.limits.retry));
            return Ok(None);
        }
        let Some(wanted) = self.fetching.wanted.get_mut(&want.uid) else { return Ok(None) };
        if wanted.received < wanted.size {
            if wanted.asked_to < wanted.size {
                self.fetching.idle.insert(want.uid);
            }
            return Ok(None);
        }
        let Some(incoming) = wanted.file.take() else { return Ok(None) };
        if *incoming.hasher.finalize().as_bytes() != wanted.hash {
            self.records.begin()?;
            self.drop_partial(want.uid)?;
            self.records.commit()?;
            if incoming.resumed {
                // Which part is wrong cannot be told, so nobody is to blame: once more, from the beginning.
                self.begin_again(want.uid);
            } else {
                self.wrong_content(link, want);
            }
            return Ok(None);
        }
        let size = wanted.size;
        self.fetching.forget(want.uid);
        self.ready.insert(want.uid, Ready::Staged { name: private_name(want.uid), size, hash: want.hash });
        self.due_now(want.uid);
        Ok(None)
    }

    /// What came is not what was asked for: it is asked of another, and of this one again later.
    fn wrong_content(&mut self, link: LinkId, want: &Want) {
        self.begin_again(want.uid);
        self.refuse(link, want, true);
    }

    pub(crate) fn begin_again(&mut self, uid: Uid) {
        if let Some(wanted) = self.fetching.wanted.get_mut(&uid) {
            wanted.received = 0;
            wanted.asked_to = 0;
            wanted.asked = None;
            wanted.file = None;
            self.fetching.idle.insert(uid);
        }
    }

    /// Writes a piece behind what was received of a large file.
    fn append(&mut self, want: &Want, bytes: &[u8]) -> io::Result<()> {
        let Some(wanted) = self.fetching.wanted.get_mut(&want.uid) else { return Ok(()) };
        if wanted.file.is_none() {
            let name = private_name(want.uid);
            let file = match self.fs.create_file(&self.private.staging, &name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.fs.remove_file(&self.private.staging, &name)?;
                    self.fs.create_file(&self.private.staging, &name)?
                }
                other => other?,
            };
            wanted.file = Some(Incoming::new(file));
        }
        if let Some(Incoming { file, hasher, points, .. }) = &mut wanted.file {
            crate::install::write_sparse(&self.fs, file, bytes, want.offset)?;
            hasher.update(bytes);
            wanted.received += bytes.len() as u64;
            wanted.nobody = false;
            // On its way to the disk while the rest comes: less is left to wait for when all of it must be there.
            let begun = wanted.received - wanted.received % WRITE_BACK_BYTES;
            if begun > want.offset {
                self.fs.begin_write_back(file, begun - WRITE_BACK_BYTES, WRITE_BACK_BYTES);
            }
            let noted = points.last().map_or(0, |p| p.length);
            if wanted.received >= noted + self.config.limits.note_bytes {
                self.fetching.note_at.get_or_insert(Hlc(self.now.0 + self.config.limits.note_every));
            }
        }
        Ok(())
    }

    /// The same content lies elsewhere in the tree, or among what is preserved: copied from there, verified on the way
    /// (design, section 7).
    pub(crate) fn reuse(&mut self, uid: Uid, size: u64, hash: &Hash) -> Result<Option<Ready<F::File>>> {
        let mut places = Vec::new();
        for node in nodes::by_hash(self.records.kv(), hash)? {
            places.extend(self.dir(node.parent)?.map(|dir| (dir, node.name, Some(node.object))));
        }
        for item in tables::preserved_by_hash(self.records.kv(), hash)? {
            places.push((self.preserved_dir(item.reason), item.file_name(), None));
        }
        for (dir, name, object) in places {
            let Ok(file) = self.fs.open_file(&dir, &name) else { continue };
            let same = |o: &anabranch_volume::fs::Object| object.as_ref().is_none_or(|object| object == o);
            if !self.fs.stat_file(&file).is_ok_and(|s| same(&s.object) && s.stamp.size == size) {
                continue;
            }
            if size <= u64::from(self.config.limits.piece_bytes) {
                let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
                let whole = self.fs.read_at(&file, &mut bytes, 0).is_ok_and(|n| n as u64 == size);
                if whole && blake3::hash(&bytes).as_bytes() == hash {
                    return Ok(Some(Ready::Bytes { bytes: bytes.into(), hash: *hash }));
                }
                continue;
            }
            match self.copy(uid, &file, size, hash) {
                Ok(Some(ready)) => return Ok(Some(ready)),
                Ok(None) => {}
                Err(error) => self.report_once(EventKind::StagingFull, error.to_string()),
            }
        }
        Ok(None)
    }

    fn copy(&mut self, uid: Uid, from: &F::File, size: u64, hash: &Hash) -> io::Result<Option<Ready<F::File>>> {
        let name = private_name(uid);
        match self.fs.remove_file(&self.private.staging, &name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = self.fs.create_file(&self.private.staging, &name)?;
        let copied = match self.fs.clone_range(from, &file, size) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.copy_data(from, &file, size),
            Err(error) => Err(error),
        };
        let same = copied.and_then(|()| read_hash(&self.fs, &file, size));
        if matches!(&same, Ok(Some(found)) if found == hash) {
            return Ok(Some(Ready::Staged { name, size, hash: *hash }));
        }
        self.drop_private(uid);
        same.map(|_| None)
    }

    fn copy_data(&self, from: &F::File, to: &F::File, size: u64) -> io::Result<()> {
        self.fs.set_size(to, size)?;
        let mut buffer = vec![0; 256 * 1024];
        let mut offset = 0;
        while let Some((start, end)) = self.fs.data_range(from, offset)? {
            let mut at = start;
            while at < end.min(size) {
                let length = usize::try_from((end.min(size) - at).min(buffer.len() as u64)).unwrap_or(0);
                let count = self.fs.read_at(from, &mut buffer[..length], at)?;
                if count == 0 {
                    return Ok(());
                }
                self.fs.write_at(to, &buffer[..count], at)?;
                at += count as u64;
            }
            offset = end;
        }
        Ok(())
    }
}
