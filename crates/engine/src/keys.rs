//! The bytes of keys, and which table holds what.
//!
//! A replica id is interned as a `u32`; number 0 is the id of zeros, so the root's key is twelve zeros. The key of a UID
//! is that number and the sequence, both big-endian, so that one replica's things lie together in the order of their
//! making. Integers in keys are big-endian; in values they are varints unless said otherwise.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | Meta | `records` | format (1), replica (16 bytes), highest, clock, change number, rows in Derived, cuts, unresolved, policy, names (0 bytes, 1 windows), [version of the table] |
//! | Meta | `known` | count, then replica number and sequence of each |
//! | Replicas | number (4) | the id (16) |
//! | Attributes | number (4) | [`encode_attributes`](anabranch_model::codec::encode_attributes) |
//! | AttributesByHash | BLAKE3 of that (32) | number (4, big-endian) |
//! | Records | UID (12) | change number (8, big-endian), then [`encode_record`](anabranch_model::codec::encode_record) with this database's numbers |
//! | Changes | change number (8) | UID (12) |
//! | Slots | placed parent (12), key of the name, 0, UID (12) | flags: 1 directory, 2 hidden, 4 derived name; the name, where it is not its own key |
//! | Children | recorded parent (12), UID (12) | empty; only live directories that the view places elsewhere (cut cycles) |
//! | Derived | UID (12) | flags: 1 kept by a child, 2 cut, 4 merged, 8 group, 16 loser; [shown as (12)], [count, UIDs], [winner (12)] |
//! | Unresolved | UID (12) | empty |
//! | Aside | upstream number (4), UID (12) | latest clock (8, big-endian), then the record |
//! | Cursors | upstream number (4) | cursor, reached, latest clock laid aside |
//! | Tombstones | UID (12) | empty, or where a facet is merged: the knowledge here when the row last changed, as under `known` |

use anabranch_model::ChangeNumber;

/// The key of a UID.
pub(crate) type UidKey = [u8; UID_BYTES];
/// Its length.
pub(crate) const UID_BYTES: usize = 12;

/// The key of a change number.
pub(crate) fn change(number: ChangeNumber) -> [u8; 8] {
    number.0.to_be_bytes()
}

/// What all slots of this name in this directory begin with. `name` is the key of a name ([`anabranch_model::fold`]): it
/// holds no zero byte, as no name does, so no other name's slots begin so.
pub(crate) fn slot_name(parent: UidKey, name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 * UID_BYTES + 1 + name.len());
    out.extend_from_slice(&parent);
    out.extend_from_slice(name);
    out.push(0);
    out
}

/// The key of a slot of a thing whose name has the key `name`.
pub(crate) fn slot(parent: UidKey, name: &[u8], uid: UidKey) -> Vec<u8> {
    let mut out = slot_name(parent, name);
    out.extend_from_slice(&uid);
    out
}

/// Two keys, one after the other.
pub(crate) fn pair(first: &[u8], second: UidKey) -> Vec<u8> {
    let mut out = Vec::with_capacity(first.len() + UID_BYTES);
    out.extend_from_slice(first);
    out.extend_from_slice(&second);
    out
}

/// The parent, key of the name, and UID of a slot's key; `None` if it is too short.
pub(crate) fn split_slot(key: &[u8]) -> Option<(UidKey, &[u8], UidKey)> {
    let (parent, rest) = key.split_first_chunk::<UID_BYTES>()?;
    let (rest, uid) = rest.split_last_chunk::<UID_BYTES>()?;
    let (_, name) = rest.split_last()?;
    Some((*parent, name, *uid))
}
