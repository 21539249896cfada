//! Records: what the database holds about one UID, in three facets (design, section 4).

use std::collections::BTreeMap;

use crate::{Hlc, Knowledge, Name, Uid, Version};

/// BLAKE3 of a file's data.
pub type Hash = [u8; 32];

/// When and by whom a user's change was made, and how often it was resolved since.
///
/// `Ord` is derived, so fields compare in the order written. A descendant is always later than what it descends
/// from, so this order never contradicts causality. Put nothing in front of it (design, section 4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Time {
    /// Clock of the user's change.
    pub clock: Hlc,
    /// Version of the user's change.
    pub change: Version,
    /// How many resolutions came after it: 0 for the user's change itself.
    pub resolutions: u32,
}

/// When a facet got its value: the greater stamp wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Stamp {
    /// Of the user's change.
    pub time: Time,
    /// Of the facet.
    pub version: Version,
}

/// What each facet carries besides its value.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Written {
    /// The facet's version.
    pub version: Version,
    /// Time of the user's change behind it.
    pub time: Time,
    /// The versions of this facet that its author had seen, itself included.
    pub history: Knowledge,
    /// Its maps were joined since its author wrote it (design, section 6: such a row is never skipped).
    pub merged: bool,
}

impl Written {
    /// The stamp by which it is compared.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp { time: self.time, version: self.version }
    }
}

/// Where a thing is.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Placement {
    /// The directory that it is in.
    pub parent: Uid,
    /// Its name there.
    pub name: Name,
    /// A directory, for life; else a file or symlink.
    pub directory: bool,
    /// A tombstone: it keeps its last parent and name.
    pub deleted: bool,
    /// The name that the author's member or device bore then (for names of files kept beside).
    pub author: Box<str>,
}

/// The placement facet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlacementFacet {
    /// Where it is.
    pub value: Placement,
    /// Version, time, history.
    pub written: Written,
    /// The content that deletes of this UID had seen: always joined, never shrinks.
    pub seen: Knowledge,
}

/// A point in time, nanoseconds since 1970; before it too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// What is in a file or symlink. A directory has no content facet.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum Content {
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// BLAKE3 of the data.
        hash: Hash,
    },
    /// A symbolic link.
    Symlink {
        /// What it points to: any bytes but NUL, 1 to 4,095.
        target: Box<[u8]>,
    },
}

/// The content facet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContentFacet {
    /// The bytes.
    pub value: Content,
    /// Rides along: a change of it alone is a touch.
    pub mtime: Timestamp,
    /// Rides along where the file system has it.
    pub birth: Option<Timestamp>,
    /// Version, time, history.
    pub written: Written,
    /// Stamp of the last change of bytes; a touch leaves it.
    pub bytes: Stamp,
}

impl ContentFacet {
    /// What decides between two: the last change of bytes first, so that a touch never beats a write.
    #[must_use]
    pub fn rank(&self) -> (Stamp, Stamp) {
        (self.bytes, self.written.stamp())
    }
}

/// An owner or group: the number where the record was made and, where it had one, the name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Owner {
    /// uid or gid.
    pub number: u32,
    /// The name on the author's machine.
    pub name: Option<Box<str>>,
}

/// Mode, owners and extended attributes (POSIX ACLs and `security.NTACL` among them).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Attributes {
    /// Permission and set-id bits, `0o7777`.
    pub mode: u32,
    /// Owner.
    pub owner: Owner,
    /// Group.
    pub group: Owner,
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

/// The attributes facet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttributesFacet {
    /// The attributes.
    pub value: Attributes,
    /// For a directory, its mtime when it was made or explicitly touched; a file's rides with its content.
    pub directory_mtime: Option<Timestamp>,
    /// Version, time, history.
    pub written: Written,
}

/// What the database holds about one UID.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Whose.
    pub uid: Uid,
    /// Where it is. Every record has it.
    pub placement: PlacementFacet,
    /// Files and symlinks have it.
    pub content: Option<ContentFacet>,
    /// Files and directories have it.
    pub attributes: Option<AttributesFacet>,
    /// Fields of later versions of the program, passed on byte for byte, ascending by field.
    pub unknown: Box<[u8]>,
}

impl Record {
    /// The versions of its facets.
    pub fn versions(&self) -> impl Iterator<Item = Version> + '_ {
        self.written().map(|w| w.version)
    }

    /// What its facets carry besides their values.
    pub fn written(&self) -> impl Iterator<Item = &Written> + '_ {
        std::iter::once(&self.placement.written)
            .chain(self.content.as_ref().map(|f| &f.written))
            .chain(self.attributes.as_ref().map(|f| &f.written))
    }

    /// The latest clock in it.
    #[must_use]
    pub fn clock(&self) -> Hlc {
        self.written().map(|w| w.time.clock).max().unwrap_or_default()
    }
}
