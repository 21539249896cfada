//! Plain data shared by every layer: identifiers, versions, knowledge, names, records and their encoding.
//!
//! Owns the types of the design's section 4 and the one encoding of a record. Must never do I/O, read a clock,
//! draw randomness, or decide anything: the rules are in `engine`.
//!
//! ```
//! use anabranch_model::{Knowledge, ReplicaId, Sequence, Version};
//! let a = ReplicaId([1; 16]);
//! let mut known = Knowledge::default();
//! known.learn(Version { replica: a, sequence: Sequence(7) });
//! assert!(known.covers(Version { replica: a, sequence: Sequence(3) }));
//! ```

pub mod codec;
mod fold;
mod ids;
mod knowledge;
mod name;
mod record;

pub use fold::{FOLD_TABLE, FOLDED_BYTES_MAX, Names, fold, same_name};
pub use ids::{ChangeNumber, FolderId, Hlc, ReplicaId, Sequence, Uid, Version};
pub use knowledge::Knowledge;
pub use name::{NAME_BYTES_MAX, Name, NameError, RESERVED_PREFIX, is_reserved};
pub use record::{
    Attributes, AttributesFacet, Content, ContentFacet, Hash, Owner, Placement, PlacementFacet, Record, Stamp, Time,
    Timestamp, Written,
};
