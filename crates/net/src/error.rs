//! What a peer can do wrong. Such an error closes the link and says which rule was broken; it never harms the folder.

use anabranch_model::FolderId;

/// The peer broke a rule of the protocol.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PeerError {
    /// The first bytes of the connection are not ours: another program speaks.
    #[error("the peer does not speak the protocol of Anabranch (the first bytes are wrong)")]
    Magic,
    /// Another version of the protocol.
    #[error("the peer speaks version {theirs} of the protocol, and this program version {ours}: update the older one")]
    Version {
        /// What the peer said.
        theirs: u16,
        /// [`crate::wire::PROTOCOL_VERSION`].
        ours: u16,
    },
    /// Bytes that are no message of the kind they say they are.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// A value of a length, or a number, outside what the protocol allows.
    #[error("{0} is out of range")]
    Range(&'static str),
    /// More bytes than the protocol allows.
    #[error("{what} is longer than {max} bytes")]
    TooLong {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// More elements than the protocol allows.
    #[error("{what} has more than {max} entries")]
    TooMany {
        /// What.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// A needed value is absent.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// Something stands twice, or not in its order.
    #[error("{0} stands twice or out of order")]
    Twice(&'static str),
    /// A message of a later version of the program. The only one of these errors after which the link goes on: the
    /// caller may answer with [`crate::message::Message::Refused`].
    #[error("a message of the unknown kind {kind} about the folder {folder}")]
    Unknown {
        /// The folder it is about.
        folder: FolderId,
        /// Its number.
        kind: u32,
    },
}

impl PeerError {
    /// Can the link go on after this?
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}
