//! Nodes: what is really on disk, beside the records (design, section 5: "what was really on disk").
//!
//! A node is one entry of the tree that replication has taken note of. Its parent is another node, so moving a
//! directory costs one row, and a directory that is shown under another UID than before is relabelled, not rebuilt.
//! Node 1 is the root, node 2 the staging directory (where an entry is parked while its name is needed by another).
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | Nodes | node number, 8 bytes big-endian | see `encode` |
//! | NodeNames | parent node, name | node |
//! | NodeObjects | length of object (1 byte), object, node | - |
//! | NodeUids | UID, 24 bytes | node |
//! | NodeHashes | first 8 bytes of the hash, node | - |

use anabranch_engine::kv::{Kv, KvError, Table, after_prefix};
use anabranch_model::codec::{DecodeError, Reader, Writer, decode_attributes, encode_attributes};
use anabranch_model::{Attributes, Content, Knowledge, ReplicaId, Sequence, Uid, Version};
use anabranch_volume::fs::{FileStamp, Kind, Object};

/// The number of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub(crate) struct NodeId(pub u64);

/// The folder's root.
pub(crate) const ROOT_NODE: NodeId = NodeId(1);
/// The staging directory.
pub(crate) const STAGING_NODE: NodeId = NodeId(2);
const FIRST_FREE: u64 = 16;

/// Content as it lies on disk, and what its reader had thereby seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct OnDisk {
    /// The bytes.
    pub value: Content,
    /// The version that last changed these bytes; `None` for a candidate, which has no version.
    pub bytes: Option<Version>,
    /// The facet's version (a touch makes another one).
    pub version: Version,
    /// History of that facet: what somebody who edits or removes this content has seen. Of a candidate that a disk made of
    /// what was known: what whoever removes it has seen, who takes it for that.
    pub history: Knowledge,
    /// No lease stood guard when it was hashed.
    pub provisional: bool,
}

impl OnDisk {
    /// What somebody who edits this content has seen: of what is recorded, nothing where it is a candidate.
    pub(crate) fn seen(&self) -> Knowledge {
        self.bytes.map(|_| self.history.clone()).unwrap_or_default()
    }
}

/// One entry of the tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Node {
    /// Its number.
    pub id: NodeId,
    /// The directory that it is in.
    pub parent: NodeId,
    /// Its name there.
    pub name: Vec<u8>,
    /// The UID that it shows; `None` for a directory that is being dissolved into another.
    pub uid: Option<Uid>,
    /// File, directory or symlink.
    pub kind: Kind,
    /// Which thing it is.
    pub object: Object,
    /// Its stamp when it was last compared.
    pub stamp: FileStamp,
    /// Content; directories have none.
    pub content: Option<OnDisk>,
    /// The version of the attributes facet that was applied; zero if none.
    pub attributes_version: Version,
    /// Attributes read back after that.
    pub attributes: Attributes,
}

fn damaged(error: DecodeError) -> KvError {
    KvError::damaged("read a node", error)
}

/// 24 bytes: replica id, sequence big-endian.
#[must_use]
pub(crate) fn uid_key(uid: Uid) -> [u8; 24] {
    let mut key = [0; 24];
    key[..16].copy_from_slice(&uid.0.replica.0);
    key[16..].copy_from_slice(&uid.0.sequence.0.to_be_bytes());
    key
}

/// Reads [`uid_key`] back.
///
/// # Errors
/// [`KvError`] if these are not 24 bytes.
pub(crate) fn read_uid(key: &[u8]) -> Result<Uid, KvError> {
    read_version(&mut Reader(key)).map(Uid).map_err(|e| KvError::damaged("read a UID", e))
}

pub(crate) fn write_version(out: &mut Writer, version: Version) {
    out.raw(&uid_key(Uid(version)));
}

pub(crate) fn read_version(input: &mut Reader<'_>) -> Result<Version, DecodeError> {
    let replica = ReplicaId(input.array()?);
    Ok(Version { replica, sequence: Sequence(u64::from_be_bytes(input.array()?)) })
}

pub(crate) fn write_knowledge(out: &mut Writer, map: &Knowledge) {
    out.number(map.len() as u64);
    for (replica, sequence) in map.iter() {
        write_version(out, Version { replica, sequence });
    }
}

pub(crate) fn read_knowledge(input: &mut Reader<'_>) -> Result<Knowledge, DecodeError> {
    let count = input.number()?;
    (0..count).map(|_| read_version(input).map(|v| (v.replica, v.sequence))).collect()
}

pub(crate) fn write_content(out: &mut Writer, value: &Content) {
    match value {
        Content::File { size, hash } => {
            out.number(0);
            out.number(*size);
            out.raw(hash);
        }
        Content::Symlink { target } => {
            out.number(1);
            out.bytes(target);
        }
    }
}

pub(crate) fn read_content(input: &mut Reader<'_>) -> Result<Content, DecodeError> {
    Ok(match input.number()? {
        0 => Content::File { size: input.number()?, hash: input.array()? },
        1 => Content::Symlink { target: input.bytes(4096, "a link target")?.into() },
        _ => return Err(DecodeError::Range("a kind of content")),
    })
}

pub(crate) fn write_stamp(out: &mut Writer, stamp: &FileStamp) {
    out.number(stamp.size);
    out.timestamp(stamp.mtime);
    out.timestamp(stamp.ctime);
    out.number(stamp.cookie);
}

pub(crate) fn read_stamp(input: &mut Reader<'_>) -> Result<FileStamp, DecodeError> {
    Ok(FileStamp {
        size: input.number()?,
        mtime: input.timestamp()?,
        ctime: input.timestamp()?,
        cookie: input.number()?,
    })
}

impl Node {
    /// parent, name, kind, object, stamp, flags (1 UID, 2 content, 4 provisional, 8 content has a version), what the
    /// flags announce, version of attributes, attributes.
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(192));
        out.number(self.parent.0);
        out.bytes(&self.name);
        out.number(match self.kind {
            Kind::File => 0,
            Kind::Directory => 1,
            Kind::Symlink => 2,
            Kind::Other => 3,
        });
        out.bytes(&self.object.0);
        write_stamp(&mut out, &self.stamp);
        let content = self.content.as_ref();
        out.number(
            u64::from(self.uid.is_some())
                | u64::from(content.is_some()) << 1
                | u64::from(content.is_some_and(|c| c.provisional)) << 2
                | u64::from(content.is_some_and(|c| c.bytes.is_some())) << 3,
        );
        if let Some(uid) = self.uid {
            write_version(&mut out, uid.0);
        }
        if let Some(content) = content {
            write_content(&mut out, &content.value);
            if let Some(bytes) = content.bytes {
                write_version(&mut out, bytes);
            }
            write_version(&mut out, content.version);
            write_knowledge(&mut out, &content.history);
        }
        write_version(&mut out, self.attributes_version);
        out.raw(&encode_attributes(&self.attributes));
        out.0
    }

    fn decode(id: NodeId, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader(bytes);
        let parent = NodeId(input.number()?);
        let name = input.bytes(255, "a name")?.to_vec();
        let kind = match input.number()? {
            0 => Kind::File,
            1 => Kind::Directory,
            2 => Kind::Symlink,
            _ => return Err(DecodeError::Range("a kind")),
        };
        let object = Object(input.bytes(255, "an object")?.into());
        let stamp = read_stamp(&mut input)?;
        let flags = input.number()?;
        let uid = if flags & 1 == 0 { None } else { Some(Uid(read_version(&mut input)?)) };
        let content = if flags & 2 == 0 {
            None
        } else {
            Some(OnDisk {
                value: read_content(&mut input)?,
                bytes: if flags & 8 == 0 { None } else { Some(read_version(&mut input)?) },
                version: read_version(&mut input)?,
                history: read_knowledge(&mut input)?,
                provisional: flags & 4 != 0,
            })
        };
        let attributes_version = read_version(&mut input)?;
        let attributes = decode_attributes(input.0)?;
        Ok(Self { id, parent, name, uid, kind, object, stamp, content, attributes_version, attributes })
    }

    /// Is it a directory?
    #[must_use]
    pub(crate) fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }
}

fn name_key(parent: NodeId, name: &[u8]) -> Vec<u8> {
    [&parent.0.to_be_bytes()[..], name].concat()
}

fn object_key(object: &Object, id: Option<NodeId>) -> Vec<u8> {
    let length = u8::try_from(object.0.len()).unwrap_or(u8::MAX);
    let mut key = [&[length][..], &object.0].concat();
    if let Some(id) = id {
        key.extend(id.0.to_be_bytes());
    }
    key
}

fn hash_key(content: Option<&OnDisk>, id: NodeId) -> Option<[u8; 16]> {
    let Content::File { size, hash } = &content?.value else { return None };
    if *size == 0 {
        return None;
    }
    let mut key = [0; 16];
    key[..8].copy_from_slice(hash.get(..8)?);
    key[8..].copy_from_slice(&id.0.to_be_bytes());
    Some(key)
}

fn read_id(bytes: &[u8]) -> Result<NodeId, KvError> {
    let bytes = bytes.try_into().map_err(|_| KvError::damaged("read a node number", "not 8 bytes"))?;
    Ok(NodeId(u64::from_be_bytes(bytes)))
}

fn id_at_end(key: &[u8]) -> Result<NodeId, KvError> {
    read_id(key.get(key.len().saturating_sub(8)..).unwrap_or_default())
}

/// The node with this number.
pub(crate) fn get(kv: &impl Kv, id: NodeId) -> Result<Option<Node>, KvError> {
    let bytes = kv.get(Table::Nodes, &id.0.to_be_bytes())?;
    bytes.map(|b| Node::decode(id, &b).map_err(damaged)).transpose()
}

/// The node with this name in this directory.
pub(crate) fn at(kv: &impl Kv, parent: NodeId, name: &[u8]) -> Result<Option<Node>, KvError> {
    match kv.get(Table::NodeNames, &name_key(parent, name))? {
        Some(id) => get(kv, read_id(&id)?),
        None => Ok(None),
    }
}

/// The node that shows this UID. The root shows [`Uid::ROOT`].
pub(crate) fn of(kv: &impl Kv, uid: Uid) -> Result<Option<Node>, KvError> {
    if uid == Uid::ROOT {
        return get(kv, ROOT_NODE);
    }
    match kv.get(Table::NodeUids, &uid_key(uid))? {
        Some(id) => get(kv, read_id(&id)?),
        None => Ok(None),
    }
}

/// Nodes of this object: more than one only where something was hard-linked.
pub(crate) fn by_object(kv: &impl Kv, object: &Object) -> Result<Vec<Node>, KvError> {
    let from = object_key(object, None);
    let rows = kv.range(Table::NodeObjects, &from, after_prefix(&from).as_deref(), 16)?;
    let mut out = Vec::new();
    for (key, _) in rows {
        out.extend(get(kv, id_at_end(&key)?)?);
    }
    Ok(out)
}

/// Some nodes whose content has this hash.
pub(crate) fn by_hash(kv: &impl Kv, hash: &[u8; 32]) -> Result<Vec<Node>, KvError> {
    let from = &hash[..8];
    let mut out = Vec::new();
    for (key, _) in kv.range(Table::NodeHashes, from, after_prefix(from).as_deref(), 8)? {
        let node = get(kv, id_at_end(&key)?)?;
        out.extend(node.filter(
            |n| matches!(n.content.as_ref().map(|c| &c.value), Some(Content::File { hash: h, .. }) if h == hash),
        ));
    }
    Ok(out)
}

/// Children of a directory with names after `after`, ascending.
pub(crate) fn children(kv: &impl Kv, parent: NodeId, after: Option<&[u8]>, limit: usize) -> Result<Vec<Node>, KvError> {
    let mut from = name_key(parent, after.unwrap_or_default());
    if after.is_some() {
        from.push(0);
    }
    let to = NodeId(parent.0 + 1).0.to_be_bytes();
    let mut out = Vec::new();
    for (_, id) in kv.range(Table::NodeNames, &from, Some(&to), limit)? {
        let id = read_id(&id)?;
        out.push(get(kv, id)?.ok_or_else(|| KvError::damaged("read a node", "a name without its node"))?);
    }
    Ok(out)
}

/// The number for a new node.
pub(crate) fn next_id(kv: &impl Kv) -> Result<NodeId, KvError> {
    let last = kv.last(Table::Nodes)?;
    let last = last.map(|(key, _)| read_id(&key)).transpose()?;
    Ok(NodeId(last.map_or(FIRST_FREE, |id| (id.0 + 1).max(FIRST_FREE))))
}

/// Writes a node and corrects the indexes; `old` is what the database had under this number.
pub(crate) fn put(kv: &mut impl Kv, old: Option<&Node>, node: &Node) -> Result<(), KvError> {
    let id = node.id.0.to_be_bytes();
    debug_assert_eq!(
        kv.get(Table::Nodes, &id)?.as_deref(),
        old.map(Node::encode).as_deref(),
        "what is written is not what was read: {old:?} becomes {node:?}"
    );
    if let Some(old) = old {
        if (old.parent, &old.name) != (node.parent, &node.name) {
            drop_name(kv, old)?;
        }
        if old.object != node.object {
            kv.delete(Table::NodeObjects, &object_key(&old.object, Some(old.id)))?;
        }
        if old.uid != node.uid {
            drop_uid(kv, old)?;
        }
        let key = hash_key(old.content.as_ref(), old.id);
        if let Some(key) = key.filter(|k| hash_key(node.content.as_ref(), node.id) != Some(*k)) {
            kv.delete(Table::NodeHashes, &key)?;
        }
    }
    kv.put(Table::Nodes, &id, &node.encode())?;
    if node.id != ROOT_NODE && old.is_none_or(|o| (o.parent, &o.name) != (node.parent, &node.name)) {
        kv.put(Table::NodeNames, &name_key(node.parent, &node.name), &id)?;
    }
    if old.is_none_or(|o| o.object != node.object) {
        kv.put(Table::NodeObjects, &object_key(&node.object, Some(node.id)), &[])?;
    }
    if let Some(uid) = node.uid.filter(|_| old.is_none_or(|o| o.uid != node.uid)) {
        kv.put(Table::NodeUids, &uid_key(uid), &id)?;
    }
    if let Some(key) = hash_key(node.content.as_ref(), node.id)
        && old.is_none_or(|o| hash_key(o.content.as_ref(), o.id) != Some(key))
    {
        kv.put(Table::NodeHashes, &key, &[])?;
    }
    Ok(())
}

/// Writes a node that has no name in any directory: the root, and staging.
pub(crate) fn put_without_name(kv: &mut impl Kv, old: Option<&Node>, node: &Node) -> Result<(), KvError> {
    if let Some(old) = old.filter(|o| o.object != node.object) {
        kv.delete(Table::NodeObjects, &object_key(&old.object, Some(old.id)))?;
    }
    kv.put(Table::Nodes, &node.id.0.to_be_bytes(), &node.encode())?;
    kv.put(Table::NodeObjects, &object_key(&node.object, Some(node.id)), &[])
}

/// Only if the name still leads to this node: another one may have taken it meanwhile.
fn drop_name(kv: &mut impl Kv, node: &Node) -> Result<(), KvError> {
    let key = name_key(node.parent, &node.name);
    if kv.get(Table::NodeNames, &key)?.as_deref() == Some(&node.id.0.to_be_bytes()[..]) {
        kv.delete(Table::NodeNames, &key)?;
    }
    Ok(())
}

fn drop_uid(kv: &mut impl Kv, node: &Node) -> Result<(), KvError> {
    let Some(uid) = node.uid else { return Ok(()) };
    if kv.get(Table::NodeUids, &uid_key(uid))?.as_deref() == Some(&node.id.0.to_be_bytes()[..]) {
        kv.delete(Table::NodeUids, &uid_key(uid))?;
    }
    Ok(())
}

/// Removes a node and its index rows.
pub(crate) fn remove(kv: &mut impl Kv, node: &Node) -> Result<(), KvError> {
    debug_assert!(!node.is_dir() || children(kv, node.id, None, 1)?.is_empty(), "something is left in a directory");
    drop_name(kv, node)?;
    drop_uid(kv, node)?;
    kv.delete(Table::NodeObjects, &object_key(&node.object, Some(node.id)))?;
    if let Some(key) = hash_key(node.content.as_ref(), node.id) {
        kv.delete(Table::NodeHashes, &key)?;
    }
    kv.delete(Table::Nodes, &node.id.0.to_be_bytes())
}
