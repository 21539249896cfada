//! Identities (pinned keys, mutual TLS), the wire protocol, bandwidth.
pub mod message;
