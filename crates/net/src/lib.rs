//! Identities (pinned keys, mutual TLS), the wire protocol, links and invitations.
//!
//! Owns what goes over a socket between two members, from the first byte on. Must never decide anything about
//! replication, touch the replicated files, or know the domain's configuration: which keys are let in is asked of the
//! caller.

pub mod error;
pub mod identity;
pub mod message;
pub mod tls;
pub mod wire;

pub use anabranch_domain::KeyFingerprint;
pub use error::PeerError;
pub use identity::{Identity, IdentityError};
pub use tls::Pins;
