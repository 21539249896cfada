//! Numbered events, declared once: log, listing and book are made from this table (design, section 18).
//!
//! Windows' numbers where Windows has such an event (2002, 2212, 2213, 2214, 4302, 4304, 13568, ...), ours from 7000 on.

use std::fmt;

/// How grave an event is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// For the record.
    Information,
    /// Something waits, or should be looked at.
    Warning,
    /// Something stands still until somebody acts.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Information => "information",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

macro_rules! events {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $level:ident, $text:literal, $remedy:literal;)+) => {
        /// What can be said about a replicated folder.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
        pub enum EventKind {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl EventKind {
            /// All of them, ascending by number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Its number.
            #[must_use]
            pub fn number(self) -> u32 {
                self as u32
            }

            /// How grave it is.
            #[must_use]
            pub fn level(self) -> Level {
                match self { $(Self::$name => Level::$level,)+ }
            }

            /// What happened, without the particulars.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// What to do about it.
            #[must_use]
            pub fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)+ }
            }

            /// The event of this number.
            #[must_use]
            pub fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

events! {
    /// The folder began to replicate.
    Started = 2002, Information, "replication of the folder started", "Nothing to do.";
    /// The root is not what it was.
    RootChanged = 2004, Error, "the folder's root is missing or is another directory than before; replication of it is stopped, nothing is deleted anywhere", "Mount the disk, or put back the directory with its `.anabranch`; replication goes on by itself.";
    /// The database was damaged and set aside.
    DatabaseRebuilt = 2104, Warning, "the metadata database was damaged: it was set aside and is rebuilt from the folder", "Look at the disk; what differs from partners is preserved.";
    /// The database cannot be used now.
    DatabaseFailed = 2106, Error, "the metadata database cannot be used now; replication of the folder is stopped", "See the cause (often a full disk); it is tried again by itself.";
    /// Unexpected shutdown found at start.
    UnexpectedShutdown = 2212, Warning, "the folder was not closed properly; recovery begins", "Nothing to do.";
    /// Recovery waits for an order.
    RecoveryWaits = 2213, Error, "the folder was not closed properly, and its recovery policy is manual: replication of it is stopped", "Back up the data, then run `anabranch recovery resume FOLDER`.";
    /// Recovery has ended.
    Recovered = 2214, Information, "recovery after an unexpected shutdown has ended", "Nothing to do.";
    /// The first sync has begun.
    InitialSyncBegan = 4102, Information, "initial sync began", "Nothing to do.";
    /// The first sync is complete.
    InitialSyncEnded = 4104, Information, "initial sync is complete", "Nothing to do.";
    /// No room for staging.
    StagingFull = 4206, Warning, "no room for files on their way in; they wait", "Free room on the volume, or raise the staging quota.";
    /// A file is in use.
    InUse = 4302, Warning, "a file is in use here, so a change of it from a partner waits", "It is installed when the file is closed.";
    /// One item cannot be installed.
    CannotInstall = 4304, Warning, "an item from a partner cannot be installed here; the others go on", "See the cause; it is tried again by itself.";
    /// One item cannot be read.
    CannotRead = 4305, Warning, "an item cannot be read here and is not replicated; nothing is deleted on the strength of it", "See the cause; it is tried again by itself.";
    /// A conflict was preserved.
    Conflict = 4412, Information, "a version of a file lost a conflict and was preserved", "`anabranch preserved list FOLDER` shows it; `restore` brings it back.";
    /// A partner's name or key is not the expected one.
    PartnerRefused = 5002, Warning, "a connection with a partner failed", "See the cause; it is tried again by itself.";
    /// A partner is connected.
    PartnerConnected = 5004, Information, "connected to a partner", "Nothing to do.";
    /// Journal wrap.
    JournalWrap = 13568, Warning, "changes may have been missed; the folder is compared with the database", "Nothing to do.";
    /// A path of the domain is not taken here.
    PathRefused = 6804, Error, "a folder of the domain cannot be kept at the path that is named for this member", "Change the path, or what is wrong with it; it is tried again by itself.";
    /// An object of the domain is invalid.
    InvalidObject = 6806, Warning, "an object of the domain is invalid and is left out", "Correct the object that is named.";
    /// Another rule for names than before.
    NamesChanged = 6808, Error, "the setting `names` of a folder is another than when the folder was created; replication of it is stopped here", "Set `names` in the folder's object to what it was; for another rule create another folder.";
    /// Not carried.
    Skipped = 7001, Information, "a socket, device or FIFO is not replicated", "Nothing to do.";
    /// Hard links.
    HardLinks = 7002, Information, "hard links are replicated as files of their own", "Nothing to do.";
    /// A clock in the future.
    ClockAhead = 7003, Error, "a clock is more than 10 minutes ahead; what it stamped is not taken in", "Set the clock of the member named; replication goes on by itself.";
    /// The database was rolled back or copied.
    RolledBack = 7004, Warning, "the database was returned to an earlier state; the member goes on under a fresh replica id", "Nothing to do: what differed is preserved.";
    /// A preserved item was purged.
    Purged = 7005, Information, "a preserved item was purged", "Nothing to do.";
    /// A name that cannot be replicated.
    ReservedName = 7006, Warning, "an entry has a name that is reserved for the program and is not replicated", "Give it another name.";
    /// The owner or other attributes could not be held.
    AttributesNotHeld = 7007, Information, "attributes cannot all be held here; what is missing is not taken from the others", "Run as root, or use a file system that has them.";
    /// Nobody has a content that is recorded.
    ContentLost = 7008, Warning, "a content that this member once wrote is nowhere any more (it was put back to an older state, or a user removed it)", "Put the file back from a backup if it is needed.";
    /// What a clock in the future had stamped.
    StampedAnew = 7009, Information, "this member's clock was ahead and is right again; what it had stamped is stamped anew", "Nothing to do.";
    /// The private directory is not usable.
    PrivateUnusable = 7010, Error, "what the folder keeps for itself in `.anabranch` cannot be used; replication of it is stopped, nothing is deleted anywhere", "Put back what is missing, with the daemon's user as its owner and mode 0700; replication goes on by itself.";
    /// What the initial sync took out of the tree.
    WentToPreExisting = 7011, Warning, "items lay here at the initial sync that no partner has: they are not replicated, and were put into PreExisting", "`anabranch preserved list FOLDER` shows them; `restore` brings them back.";
    /// Directories that were moved into each other.
    CycleCut = 7012, Warning, "directories were moved into each other on different members; one of them is in the folder's root now, under a name of its own", "Move it where it should be.";
    /// A local change has not been recorded for long.
    ChangeWaits = 7013, Warning, "a change made here has waited for minutes and is not replicated yet; the others go on", "Close the file that is in use, or make readable what is not; it is looked at again by itself.";
}

/// Something that happened, with its particulars.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// The path, partner or cause, as a phrase.
    pub detail: String,
}

impl Event {
    /// An event with its particulars.
    #[must_use]
    pub fn new(kind: EventKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind.number(), self.kind.text(), self.detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back_and_every_event_has_text_and_remedy() {
        for &kind in EventKind::ALL {
            assert_eq!(EventKind::from_number(kind.number()), Some(kind));
            assert!(!kind.text().is_empty() && kind.remedy().ends_with('.'), "{kind:?}");
        }
        assert_eq!(EventKind::from_number(0), None);
    }
}
