//! The upstream side: content for partners.

use anabranch_engine::kv::{Kv, Table};
use anabranch_model::{Content, Hash};
use anabranch_net::message::{MESSAGE_BYTES_MAX, Message, PIECE_BYTES_MAX, Piece, Want};
use anabranch_volume::fs::{FileStamp, Fs};

use crate::nodes;
use crate::replica::{Link, LinkId, Replica, Result};
use crate::tables;

/// Bytes of content in one answer.
const ANSWER_BYTES: usize = 1 << 20;
/// UIDs remembered for a partner whose content was not here.
const REFUSED_MAX: usize = 4096;

/// What a partner was sent of a content, from its beginning on.
pub(crate) struct Served {
    hash: Hash,
    length: u64,
    whole: bool,
}

/// A content that is being served: its file, and the stamp under which it is what was asked for.
struct Source<File> {
    want: Want,
    file: File,
    stamp: FileStamp,
}

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    /// Answers a request for content, in the order asked.
    pub(crate) fn serve_content(&mut self, id: LinkId, request: u64, wants: &[Want]) -> Result<()> {
        let mut pieces: Vec<Piece> = Vec::new();
        let (mut first, mut bytes) = (0, 0);
        let mut open: Option<Source<F::File>> = None;
        let mut doubted = None;
        for (at, want) in wants.iter().enumerate() {
            let before = |link: &Link| link.served.get(&want.uid).is_some_and(|s| s.whole && s.hash == want.hash);
            let again = want.offset == 0 && self.links.get(&id).is_some_and(before);
            let piece = if again {
                self.doubt_content(want.uid)?;
                doubted = Some(want.uid);
                Piece::Busy
            } else if doubted == Some(want.uid) {
                Piece::Busy
            } else {
                self.piece(want, &mut open)?
            };
            if let Some(link) = self.links.get_mut(&id) {
                let length = want.offset + u64::from(want.length);
                let whole = open.as_ref().is_some_and(|s| length >= s.stamp.size);
                let sent = link.served.get(&want.uid).filter(|s| s.hash == want.hash).map_or(0, |s| s.length);
                if again || link.served.len() >= REFUSED_MAX {
                    link.served.remove(&want.uid);
                } else if (want.offset == 0 || want.offset == sent) && matches!(piece, Piece::Data(_)) {
                    // Not what was asked for before the beginning was refused: that goes nowhere.
                    link.served.insert(want.uid, Served { hash: want.hash, length, whole });
                }
            }
            if piece == Piece::NotHeld
                && let Some(link) = self.links.get_mut(&id).filter(|l| l.refused.len() < REFUSED_MAX)
            {
                link.refused.insert(want.uid);
            }
            if let Piece::Data(data) = &piece {
                bytes += data.len();
                self.counters.content_sent += data.len() as u64;
            }
            pieces.push(piece);
            if bytes >= ANSWER_BYTES.min(MESSAGE_BYTES_MAX / 2) || at + 1 == wants.len() {
                let count = pieces.len();
                let pieces = std::mem::take(&mut pieces);
                self.send(id, Message::Pieces { request, first: u32::try_from(first).unwrap_or(u32::MAX), pieces });
                first += count;
                bytes = 0;
            }
        }
        Ok(())
    }

    /// One piece, read from the tree if the file there is still the recorded one.
    fn piece(&mut self, want: &Want, open: &mut Option<Source<F::File>>) -> Result<Piece> {
        let same = open.as_ref().is_some_and(|s| s.want.uid == want.uid && s.want.hash == want.hash);
        if !same {
            *open = self.open_content(want)?;
        }
        let Some(Source { file, stamp, .. }) = open.as_ref() else { return Ok(Piece::NotHeld) };
        let length = u64::from(want.length.min(PIECE_BYTES_MAX));
        if want.offset + length > stamp.size {
            return Ok(Piece::NotHeld);
        }
        let length = usize::try_from(length).unwrap_or_default();
        let read = self.fs.read_vec(file, want.offset, length);
        // What changed while it was read is retried, never sent as if it were the recorded content (design, section 7).
        let unchanged = self.fs.stat_file(file).is_ok_and(|s| s.stamp == *stamp);
        Ok(match read {
            Ok(bytes) if bytes.len() == length && unchanged => Piece::Data(bytes.into()),
            Ok(_) => Piece::Busy,
            Err(error) => {
                let path = self.record_path(want.uid)?;
                self.report_once(crate::events::EventKind::CannotRead, format!("{path}: {error}"));
                Piece::Busy
            }
        })
    }

    /// The content in the tree or, where it was taken out again before all had it, among what is preserved: a record of
    /// ours can win anew, and then nobody else may hold what it says.
    fn open_content(&mut self, want: &Want) -> Result<Option<Source<F::File>>> {
        if let Some(own) = nodes::of(self.records.kv(), want.uid)?
            && let Some(source) = self.open_node_content(want, &own)?
        {
            return Ok(Some(source));
        }
        for node in nodes::by_hash(self.records.kv(), &want.hash)? {
            if let Some(source) = self.open_node_content(want, &node)? {
                return Ok(Some(source));
            }
        }
        for item in tables::preserved_by_hash(self.records.kv(), &want.hash)? {
            let dir = self.preserved_dir(item.reason);
            let Ok(file) = self.fs.open_file(&dir, &item.file_name()) else { continue };
            if let Ok(stat) = self.fs.stat_file(&file)
                && stat.stamp.size == item.size
            {
                return Ok(Some(Source { want: want.clone(), file, stamp: stat.stamp }));
            }
        }
        Ok(None)
    }

    /// The file of a node, if it is still what the database says and that is what is wanted.
    fn open_node_content(&mut self, want: &Want, node: &nodes::Node) -> Result<Option<Source<F::File>>> {
        if !matches!(node.content.as_ref().map(|c| &c.value), Some(Content::File { hash, .. }) if *hash == want.hash) {
            return Ok(None);
        }
        let fs = self.fs.clone();
        let is_it = |file: &F::File| fs.stat_file(file).is_ok_and(|s| s.object == node.object && s.stamp == node.stamp);
        let mut file = fs.open_object(&node.object).filter(is_it);
        if file.is_none() {
            let Some(dir) = self.dir(node.parent)? else { return Ok(None) };
            file = fs.open_file(&dir, &node.name).ok().filter(is_it);
        }
        if let Some(file) = file {
            return Ok(Some(Source { want: want.clone(), file, stamp: node.stamp }));
        }
        // It is not as the database has it, and perhaps no hint said so: another name of the same file is gone, say.
        self.local_change(node.parent, &node.name);
        Ok(None)
    }

    /// Reads all bytes of the tree and compares them with the records; paths whose bytes are not the recorded ones.
    ///
    /// # Errors
    /// [`crate::Stop::Database`].
    pub fn verify_data(&mut self) -> Result<Vec<String>> {
        self.begin_call();
        let mut wrong = Vec::new();
        let mut after = None;
        loop {
            let page = self.records.records(after, 256)?;
            let Some(last) = page.last() else { return Ok(wrong) };
            after = Some(last.uid);
            for record in page {
                let Some(node) = nodes::of(self.records.kv(), record.uid)? else { continue };
                let Some(Content::File { hash, .. }) = node.content.as_ref().map(|c| c.value.clone()) else { continue };
                let Some(dir) = self.dir(node.parent)? else { continue };
                let read = self
                    .fs
                    .open_file(&dir, &node.name)
                    .and_then(|file| anabranch_volume::hash::read_hash(&self.fs, &file, node.stamp.size));
                if !matches!(read, Ok(Some(found)) if found == hash) && wrong.len() < 1000 {
                    wrong.push(self.record_path(record.uid)?);
                }
            }
        }
    }

    /// Counts for status: live records, and items outstanding here.
    ///
    /// # Errors
    /// [`crate::Stop::Database`].
    pub fn counts(&self) -> Result<(u64, u64)> {
        let rows = self.records.kv().range(Table::NodeUids, &[], None, usize::MAX)?.len() as u64;
        Ok((rows, self.outstanding(1 << 20)? as u64))
    }
}
