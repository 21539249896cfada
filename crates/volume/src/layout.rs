//! What lies in `.anabranch/` at the root of a replicated folder (design, section 9): never replicated, mode 0700.

/// The directory in the root that holds everything of ours.
pub const PRIVATE_DIR: &[u8] = b".anabranch";
/// The metadata database.
pub const DATABASE: &[u8] = b"database";
/// Private files on their way in.
pub const STAGING: &[u8] = b"staging";
/// What lost or was deleted.
pub const CONFLICT_AND_DELETED: &[u8] = b"ConflictAndDeleted";
/// What was there before the first sync.
pub const PRE_EXISTING: &[u8] = b"PreExisting";
/// The identity token of the root.
pub const TOKEN: &[u8] = b"folder";
