//! Identities (pinned keys, mutual TLS), the wire protocol, links and invitations.
//!
//! Owns what goes over a socket between two members, from the first byte on. Must never decide anything about
//! replication, touch the replicated files, or know the domain's configuration: which keys are let in is asked of the
//! caller.
//!
//! A member [`dial`]s its upstream partner and gets a [`Link`]; the [`Listener`] there gives out the other end. Messages
//! ([`message`]) go into a [`LinkSender`], are encoded ([`wire`]), queued within bounds, carried by one of two TLS
//! connections ([`link`]), checked, and come out of the [`LinkReceiver`].
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use anabranch_model::{ChangeNumber, FolderId};
//! use anabranch_net::message::{Envelope, Message};
//! use anabranch_net::{Accepted, Identity, Listener, dial};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let [up, down] = [Identity::in_memory()?, Identity::in_memory()?];
//! let known = down.fingerprint();
//! let mut listener = Listener::bind(([127, 0, 0, 1], 0).into(), &up, Arc::new(move |key| *key == known)).await?;
//! let address = listener.local_address().to_string();
//! let link = dial(&address, &down, up.fingerprint(), "", Duration::from_secs(30)).await?;
//! let asked = Envelope { folder: FolderId([7; 16]), message: Message::Grown { number: ChangeNumber(1) } };
//! link.sender.send(asked.clone()).await?;
//! let Some(Accepted::Link(mut other)) = listener.accept().await else { return Err("nobody came".into()) };
//! assert_eq!(other.receiver.recv().await, Some(Ok(asked)));
//! # Ok(())
//! # }
//! ```

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
