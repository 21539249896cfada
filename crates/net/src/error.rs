//! What a peer can do wrong, and why a link does not come about.
//!
//! A [`PeerError`] closes the link and says which rule was broken; it never harms the folder.

use std::io;
use std::time::Duration;

use anabranch_model::FolderId;
use rustls::AlertDescription;

use crate::KeyFingerprint;
use crate::tls::KeyNotPinned;

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

/// A link, or a request to join, did not come about.
#[derive(Debug, thiserror::Error)]
#[error("cannot link with {address}")]
pub struct LinkError {
    /// The peer's address, as it was given or seen.
    pub address: String,
    /// Why.
    #[source]
    pub cause: LinkCause,
}

/// Why a link did not come about.
#[derive(Debug, thiserror::Error)]
pub enum LinkCause {
    /// The name has no address.
    #[error("the name cannot be resolved")]
    Resolve(#[source] io::Error),
    /// Nobody listens there, or the network does not reach it.
    #[error("no connection")]
    Connect(#[source] io::Error),
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// The peer has shown another key than ours let in.
    #[error("the peer has another key: {0}")]
    Key(KeyNotPinned),
    /// The peer does not let in our key.
    #[error("the peer does not know our key {own}")]
    KeyRefused {
        /// Our key.
        own: KeyFingerprint,
    },
    /// The peer refused in words.
    #[error("refused: {reason}")]
    Refused {
        /// The peer's words.
        reason: String,
    },
    /// TLS failed in another way.
    #[error("TLS failed")]
    Tls(#[source] rustls::Error),
    /// The peer broke a rule.
    #[error("the peer broke a rule")]
    Peer(#[from] PeerError),
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[source] io::Error),
    /// Too many of that key's connections are waiting for their other lane.
    #[error("too many connections without their second lane")]
    Halves,
    /// The two connections of one link do not fit together.
    #[error("both connections of the link are the same lane")]
    Lanes,
}

impl From<io::Error> for LinkCause {
    /// Takes out what TLS and the pins have to say.
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => KeyNotPinned::within(tls).map_or_else(|| Self::Tls(tls.clone()), Self::Key),
            None => Self::Io(error),
        }
    }
}

impl LinkCause {
    /// Puts a peer's TLS alert about our certificate into words.
    pub(crate) fn of_dialing(self, own: KeyFingerprint) -> Self {
        match self {
            Self::Tls(rustls::Error::AlertReceived(
                AlertDescription::CertificateUnknown
                | AlertDescription::AccessDenied
                | AlertDescription::BadCertificate
                | AlertDescription::UnknownCA,
            )) => Self::KeyRefused { own },
            other => other,
        }
    }

    pub(crate) fn with(self, address: impl Into<String>) -> LinkError {
        LinkError { address: address.into(), cause: self }
    }
}
