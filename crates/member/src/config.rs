//! What one replica is told about itself, and the limits that bound it.

use anabranch_model::{FolderId, Names, ReplicaId};
use anabranch_net::message::{PAGE_BYTES_MAX, PIECE_BYTES_MAX};

/// Where fresh replica ids come from: random bits in the program, the seed in the simulator.
pub type FreshIds = Box<dyn FnMut() -> ReplicaId + Send>;

/// What to do after an unexpected shutdown (design, section 11).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RecoveryPolicy {
    /// Recover at once.
    #[default]
    Auto,
    /// Wait for `anabranch recovery resume`.
    Manual,
}

/// Limits and times; all times in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a batch of hints may settle.
    pub settle: u64,
    /// How long until something in use, refused or failed is tried again.
    pub retry: u64,
    /// How long nobody may have had a content before its author gives it up (10 min).
    pub lost: u64,
    /// How long a conflict that another should have resolved may stand.
    pub resolve: u64,
    /// A name vacated less than this ago is continued by what comes to it (15 s).
    pub name_memory: u64,
    /// After a power cut: how long local edits wait for a partner to be compared with (10 min).
    pub hold: u64,
    /// After a power cut: what was changed this long before, at least, and twice as long at most, is read again (1 h).
    pub verify_after_power_cut: u64,
    /// How far a partner's time may be ahead (10 min).
    pub ahead: u64,
    /// Entries looked at in one batch.
    pub batch_entries: usize,
    /// Files installed in one batch.
    pub batch_installs: usize,
    /// Bytes of small files that make a batch full.
    pub batch_bytes: u64,
    /// How long a batch that is not full waits while more content is on its way (at most 200 ms: design, section 8).
    pub batch_wait: u64,
    /// As `batch_wait`, while an eighth of a batch's files or more is still on its way (at most 200 ms).
    pub batch_wait_many: u64,
    /// Items of content wanted or on their way at once.
    pub window_items: usize,
    /// Bytes of content wanted or on their way at once.
    pub window_bytes: u64,
    /// Bytes of one piece of content, at most; what is larger is a large file, and comes in pieces.
    pub piece_bytes: u32,
    /// Bytes of a local file that are hashed at one time: of a larger one as many, then everything else has its turn.
    pub slice_bytes: u64,
    /// So many new bytes of a large file are worth a note of how far it has come.
    pub note_bytes: u64,
    /// How often such notes are written at most.
    pub note_every: u64,
    /// Bytes of one page of records, about: a pass is taken in page by page.
    pub page_bytes: usize,
    /// Staging quota in bytes; a larger file still gets through, alone.
    pub staging_bytes: u64,
    /// From this many files on, a batch is made durable by `syncfs` and not by single `fsync`s.
    pub sync_all_from: usize,
    /// Quota of preserved files of the class *seen*, bytes.
    pub seen_bytes: u64,
    /// Quota of preserved files of the class *unseen*, bytes.
    pub unseen_bytes: u64,
    /// How long an item of the class *unseen* is kept at least.
    pub unseen_age: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            settle: 8_000,
            retry: 1_000_000,
            lost: 600_000_000,
            resolve: 60_000_000,
            name_memory: 15_000_000,
            hold: 600_000_000,
            verify_after_power_cut: 3_600_000_000,
            ahead: 600_000_000,
            batch_entries: 8192,
            batch_installs: 2048,
            batch_bytes: 12 << 20,
            batch_wait: 40_000,
            batch_wait_many: 120_000,
            window_items: 4096,
            window_bytes: 32 << 20,
            piece_bytes: PIECE_BYTES_MAX,
            slice_bytes: 64 << 20,
            note_bytes: 8 << 20,
            note_every: 2_000_000,
            page_bytes: PAGE_BYTES_MAX,
            staging_bytes: 4 << 30,
            sync_all_from: 12,
            seen_bytes: 4 << 30,
            unseen_bytes: 4 << 30,
            unseen_age: 30 * 86_400 * 1_000_000,
        }
    }
}

/// What one replica is told about itself.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder.
    pub folder: FolderId,
    /// Its name, `group/folder`, for events.
    pub folder_name: String,
    /// This member's name.
    pub member: String,
    /// All members that keep the folder, this one included: who must acknowledge.
    pub members: Vec<String>,
    /// This member holds the first content (design, section 10). Counts only when the database is made.
    pub primary: bool,
    /// What happens to a file that loses its name.
    pub keep_beside: bool,
    /// What counts as one name in the folder. Fixed: a database made under another rule is not opened.
    pub names: Names,
    /// After an unexpected shutdown.
    pub recovery: RecoveryPolicy,
    /// Identifies this start of the machine.
    pub boot: Vec<u8>,
    /// Identifies the machine and file system, so that a copied database is noticed.
    pub place: Vec<u8>,
    /// The token of the root, if this member kept the folder before: a root without its database is then not taken.
    pub token: Option<Vec<u8>>,
    /// Limits.
    pub limits: Limits,
}
