//! Private files that are written ahead: a small content goes to its private file as soon as it has come and been verified,
//! beside the folder's thread, which meanwhile takes in more and decides.
//!
//! What is written ahead is written for the attributes and the time that were wanted when it was asked for. A batch that
//! wants others finishes the file anew; one that cannot have it (an error of the disk) writes it itself, from the bytes.

use std::io;

use anabranch_engine::kv::Kv;
use anabranch_model::{Attributes, AttributesFacet, Hash, Timestamp, Uid, Version};
use anabranch_net::message::Bytes;
use anabranch_volume::fs::{Fs, Stat};

use super::{Ready, write_sparse};
use crate::beside::Outcome;
use crate::fetch::private_name;
use crate::replica::Replica;

/// A private file, or symlink, that is ready to be put in place.
pub(crate) struct Prepared<File> {
    pub(super) private: Vec<u8>,
    pub(super) stat: Stat,
    pub(super) attributes: Attributes,
    pub(super) file: Option<File>,
}

impl<File> Prepared<File> {
    /// With its descriptor, or without: of many files they would be more than a process may have.
    pub(super) fn keep_open(self, keep: bool) -> Self {
        Self { file: self.file.filter(|_| keep), ..self }
    }
}

/// What a private file was finished with, beside its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MadeFor {
    pub(super) mtime: Timestamp,
    pub(super) attributes: Option<Version>,
}

impl MadeFor {
    pub(super) fn of(mtime: Timestamp, wanted: Option<&AttributesFacet>) -> Self {
        Self { mtime, attributes: wanted.map(|facet| facet.written.version) }
    }
}

/// A small content that has come.
pub(crate) struct Arrived {
    pub(crate) uid: Uid,
    pub(crate) bytes: Bytes,
    pub(crate) hash: Hash,
    pub(crate) mtime: Timestamp,
    pub(crate) wanted: Option<AttributesFacet>,
}

type Written<File> = Vec<(Arrived, io::Result<Prepared<File>>)>;

/// What is being written ahead, the first first: whose contents, and what comes of it.
pub(crate) struct Ahead<File>(Vec<(Vec<Uid>, Outcome<Written<File>>)>);

impl<File> Default for Ahead<File> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// Writes a private file: data, owner, POSIX ACL, mode, other xattrs, NTACL, times (design, section 8).
pub(super) fn write_private<F: Fs>(
    fs: &F,
    staging: &F::Dir,
    uid: Uid,
    bytes: &[u8],
    wanted: Option<&Attributes>,
    mtime: Timestamp,
) -> io::Result<Prepared<F::File>> {
    let private = private_name(uid);
    // Nobody but us gets into staging, so its bytes are no more readable for it than they will be.
    let create = || match wanted {
        Some(wanted) => fs.create_file_for(staging, &private, wanted.mode),
        None => fs.create_file(staging, &private),
    };
    let file = match create() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs.remove_file(staging, &private)?;
            create()?
        }
        other => other?,
    };
    write_sparse(fs, &file, bytes, 0)?;
    let (stat, attributes) = fs.finish_private(staging, &private, &file, wanted, mtime)?;
    Ok(Prepared { private, stat, attributes, file: Some(file) })
}

impl<F: Fs, K: Kv> Replica<F, K> {
    /// Has what has come written to its private files.
    pub(crate) fn write_ahead(&mut self, arrived: Vec<Arrived>) {
        if arrived.is_empty() {
            return;
        }
        if arrived.iter().any(|a| self.ready.get(a.uid).is_some()) {
            // Another content of it may be on its way to the same file.
            self.take_up_written();
        }
        let uids = arrived.iter().map(|a| a.uid).collect();
        for Arrived { uid, bytes, hash, .. } in &arrived {
            self.ready.insert(*uid, Ready::Writing { size: bytes.len() as u64, hash: *hash });
        }
        let (fs, staging) = (self.fs.clone(), self.private.staging.clone());
        let few = self.ready.len() < self.config.limits.sync_all_from;
        let written = self.beside.run(move || {
            let write = |a: Arrived| {
                let wanted = a.wanted.as_ref().map(|facet| &facet.value);
                let prepared = write_private(&fs, &staging, a.uid, &a.bytes, wanted, a.mtime);
                (a, prepared.map(|prepared| prepared.keep_open(few)))
            };
            arrived.into_iter().map(write).collect::<Written<F::File>>()
        });
        self.ahead.0.push((uids, written));
    }

    /// Waits for all that is being written ahead.
    pub(crate) fn take_up_written(&mut self) {
        for (uids, written) in std::mem::take(&mut self.ahead.0) {
            self.written_ahead(&uids, written.wait());
        }
    }

    /// Takes up what has been written ahead. Waits for more, the first first, only as long as that is less than `enough`
    /// contents: the rest is written while a batch of these is put in place.
    pub(super) fn take_up_some(&mut self, enough: usize) {
        let mut there = self.ready.written();
        for (uids, written) in std::mem::take(&mut self.ahead.0) {
            let written = match written.take() {
                Err(coming) if there >= enough => {
                    self.ahead.0.push((uids, coming));
                    continue;
                }
                Err(coming) => coming.wait(),
                Ok(written) => written,
            };
            there += uids.len();
            self.written_ahead(&uids, written);
        }
    }

    /// What could not be written is in memory again. `None`: its thread panicked; those contents are asked for again.
    fn written_ahead(&mut self, uids: &[Uid], written: Option<Written<F::File>>) {
        for (arrived, prepared) in written.into_iter().flatten() {
            let Arrived { uid, bytes, hash, mtime, wanted } = arrived;
            let ready = match prepared {
                Ok(prepared) => {
                    let (size, made_for) = (bytes.len() as u64, MadeFor::of(mtime, wanted.as_ref()));
                    Ready::Written { size, hash, made_for, prepared: Box::new(prepared), flushed: false }
                }
                // Not a share of the frame: that would hold all of it for as long as the last of its pieces waits.
                Err(_) => {
                    self.leave_for_later(uid);
                    Ready::Bytes { bytes: Bytes::copy_from_slice(&bytes), hash }
                }
            };
            self.ready.insert(uid, ready);
        }
        for uid in uids {
            if self.ready.is_being_written(*uid) {
                self.ready.remove(*uid);
                self.due_now(*uid);
            }
        }
    }
}
