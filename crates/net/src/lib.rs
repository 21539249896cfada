//! Identities (pinned keys, mutual TLS), the wire protocol, links and invitations.
//!
//! Owns what goes over a socket between two members, from the first byte on. Must never decide anything about
//! replication, touch the replicated files, or know the domain's configuration: which keys are let in is asked of the
//! caller.

mod connect;
pub mod error;
mod greeting;
pub mod identity;
pub mod invitation;
pub mod join;
pub mod link;
pub mod listen;
pub mod message;
pub mod tls;
pub mod wire;

pub use anabranch_domain::KeyFingerprint;
pub use connect::{JOIN_LIMIT, dial, dial_with, join};
pub use error::{LinkCause, LinkError, PeerError};
pub use identity::{Identity, IdentityError};
pub use invitation::{Invitation, InvitationError, Role};
pub use join::{JoinReply, JoinRequest, secrets_equal};
pub use link::{Ended, Lane, Link, LinkCounters, LinkLimits, LinkReceiver, LinkSender, SendError, TrySendError};
pub use listen::{Accepted, JoinAttempt, JoinGate, Listener};
pub use tls::Pins;
