//! Invitations: one line of text that lets one machine join (design, section 13).
//!
//! `anb1-` and base 32 ([`anabranch_domain::base32`]) of these bytes. Integers are little-endian.
//!
//! | bytes | what |
//! | --- | --- |
//! | 2 | length n of the body |
//! | n | the body, protobuf: 1 secret (16 bytes), 2 inviter's key fingerprint (32 bytes), 3 address (text, each), 4 expires (seconds since 1970), 5 role (0 member, 1 device), 6 name (text; absent where any goes), 7 domain key's fingerprint (32 bytes; absent where there is none yet) |
//! | 4 | the first bytes of BLAKE3 over the length and the body |
//!
//! The text is a secret until it was redeemed: whoever has it joins.

use std::fmt;
use std::str::FromStr;

use anabranch_domain::base32;
use bytes::Bytes;
use prost::Message as _;

use crate::wire::cut;
use crate::wire::proto::{Limit, bytes, check, number, texts};
use crate::{KeyFingerprint, PeerError};

/// What every invitation begins with.
pub const PREFIX: &str = "anb1-";
/// The most addresses of one invitation.
pub const ADDRESSES_MAX: usize = 16;
const TEXT_BYTES_MAX: usize = 512;
const HEAD_BYTES: usize = 2;
const CHECK_BYTES: usize = 4;

/// What the invited becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// A server.
    Member,
    /// A person's machine.
    Device,
}

/// An invitation.
#[derive(Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Known to the inviter and to whoever has the text.
    pub secret: [u8; 16],
    /// The key that the inviting member must show.
    pub inviter: KeyFingerprint,
    /// The key that signs the domain's objects, where there is one.
    pub domain: Option<KeyFingerprint>,
    /// Where the inviter listens, `host:port`, in the order to try; at most [`ADDRESSES_MAX`].
    pub addresses: Vec<String>,
    /// Until when it can be redeemed, seconds since 1970.
    pub expires: u64,
    /// What the invited becomes.
    pub role: Role,
    /// The name that it must take, where one was given.
    pub name: Option<String>,
}

impl fmt::Debug for Invitation {
    /// Without the secret, which must not get into a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invitation")
            .field("inviter", &self.inviter)
            .field("addresses", &self.addresses)
            .field("expires", &self.expires)
            .field("role", &self.role)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Why a text is no invitation.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvitationError {
    /// Something else altogether.
    #[error("this is no invitation: invitations begin with `anb1-`")]
    Prefix,
    /// A character that cannot be in one.
    #[error("this is no invitation: {0:?} cannot be in one")]
    Character(char),
    /// The end is missing.
    #[error("the invitation is cut short by {missing} of its characters")]
    Short {
        /// How many, at least.
        missing: usize,
    },
    /// There is something after its end.
    #[error("there are {surplus} characters after the end of the invitation")]
    Long {
        /// How many.
        surplus: usize,
    },
    /// Something was changed on the way.
    #[error("the invitation was damaged on the way: its checksum is wrong")]
    Checksum,
    /// The checksum is right and the content is not: a later version of the program made it.
    #[error("the invitation cannot be read; the member that made it may run a later version")]
    Content(#[source] PeerError),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Body {
    #[prost(bytes = "bytes", tag = "1")]
    secret: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    inviter: Bytes,
    #[prost(string, repeated, tag = "3")]
    addresses: Vec<String>,
    #[prost(uint64, tag = "4")]
    expires: u64,
    #[prost(uint32, tag = "5")]
    role: u32,
    #[prost(string, optional, tag = "6")]
    name: Option<String>,
    #[prost(bytes = "bytes", optional, tag = "7")]
    domain: Option<Bytes>,
}

const BODY: &[Limit] = &[
    bytes(1, "the secret", 16),
    bytes(2, "the inviter's key", 32),
    texts(3, "an address", ADDRESSES_MAX, TEXT_BYTES_MAX),
    number(4, "the time"),
    number(5, "the role"),
    bytes(6, "the name", TEXT_BYTES_MAX),
    bytes(7, "the domain's key", 32),
];

impl Invitation {
    /// Is it too late for it? `now` is in seconds since 1970.
    #[must_use]
    pub fn is_expired(&self, now: u64) -> bool {
        now >= self.expires
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let hash = blake3::hash(bytes);
    std::array::from_fn(|at| hash.as_bytes()[at])
}

impl fmt::Display for Invitation {
    /// The text. Addresses beyond [`ADDRESSES_MAX`], or longer than any can be, are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = Body {
            secret: Bytes::copy_from_slice(&self.secret),
            inviter: Bytes::copy_from_slice(&self.inviter.0),
            addresses: self
                .addresses
                .iter()
                .filter(|address| address.len() <= TEXT_BYTES_MAX)
                .take(ADDRESSES_MAX)
                .cloned()
                .collect(),
            expires: self.expires,
            role: match self.role {
                Role::Member => 0,
                Role::Device => 1,
            },
            name: self.name.clone().map(|name| cut(name, TEXT_BYTES_MAX)),
            domain: self.domain.map(|key| Bytes::copy_from_slice(&key.0)),
        };
        let length = u16::try_from(body.encoded_len()).map_err(|_| fmt::Error)?;
        let mut out = length.to_le_bytes().to_vec();
        out.extend(body.encode_to_vec());
        out.extend(checksum(&out));
        write!(f, "{PREFIX}{}", base32::encode(&out))
    }
}

impl FromStr for Invitation {
    type Err = InvitationError;

    /// Reads the text. White space within is left out, since mail programs put some there; capitals are taken.
    fn from_str(text: &str) -> Result<Self, InvitationError> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (prefix, rest) = text.split_at_checked(PREFIX.len()).ok_or(InvitationError::Prefix)?;
        if !prefix.eq_ignore_ascii_case(PREFIX) {
            return Err(InvitationError::Prefix);
        }
        let sent = base32::decode(rest).map_err(InvitationError::Character)?;
        let characters = |bytes: usize| (bytes * 8).div_ceil(5);
        let length = match sent.first_chunk::<HEAD_BYTES>() {
            Some(head) => HEAD_BYTES + usize::from(u16::from_le_bytes(*head)) + CHECK_BYTES,
            None => HEAD_BYTES + CHECK_BYTES,
        };
        match rest.len() {
            found if found < characters(length) => {
                return Err(InvitationError::Short { missing: characters(length) - found });
            }
            found if found > characters(length) => {
                // A damaged length looks like this too; the checksum of the rest tells them apart only by guessing.
                return Err(InvitationError::Long { surplus: found - characters(length) });
            }
            _ => {}
        }
        let (summed, check) = sent.split_at(length - CHECK_BYTES);
        if checksum(summed) != check || !base32::encode(&sent).eq_ignore_ascii_case(rest) {
            return Err(InvitationError::Checksum);
        }
        read(&summed[HEAD_BYTES..]).map_err(InvitationError::Content)
    }
}

fn read(body: &[u8]) -> Result<Invitation, PeerError> {
    check(body, BODY)?;
    let body = Body::decode(body).map_err(|_| PeerError::Malformed("the body"))?;
    let key = |bytes: &[u8], what| bytes.try_into().map(KeyFingerprint).map_err(|_| PeerError::Range(what));
    Ok(Invitation {
        secret: body.secret.as_ref().try_into().map_err(|_| PeerError::Range("the secret"))?,
        inviter: key(&body.inviter, "the inviter's key")?,
        domain: body.domain.map(|bytes| key(&bytes, "the domain's key")).transpose()?,
        addresses: body.addresses,
        expires: body.expires,
        role: match body.role {
            0 => Role::Member,
            1 => Role::Device,
            _ => return Err(PeerError::Range("the role")),
        },
        name: body.name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Invitation {
        Invitation {
            secret: [1; 16],
            inviter: KeyFingerprint([2; 32]),
            domain: Some(KeyFingerprint([3; 32])),
            addresses: vec!["hq1.example.org:7400".into(), "[2001:db8::1]:7400".into()],
            expires: 1_800_000_000,
            role: Role::Device,
            name: Some("hq2".into()),
        }
    }

    fn plain() -> Invitation {
        let addresses = vec!["hq1:7400".into()];
        Invitation { domain: None, name: None, role: Role::Member, addresses, ..full() }
    }

    const GOLDEN: &str = "anb1-iqaaueabaeaqcaibaeaqcaibaeaqcaibciqaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaq2bbuhc\
                          mj2g42dambaqcskpwqgajdwtua";

    #[test]
    fn the_text_is_fixed() {
        assert_eq!(plain().to_string(), GOLDEN);
        let bytes = base32::decode(&GOLDEN[PREFIX.len()..]).unwrap();
        let secret = [&[0x0a, 16][..], &[1; 16]].concat();
        let inviter = [&[0x12, 32][..], &[2; 32]].concat();
        let address = b"\x1a\x08hq1:7400";
        let expires = [0x20, 0x80, 0xa4, 0xa7, 0xda, 0x06];
        let body = [&secret[..], &inviter, address, &expires].concat();
        assert_eq!(bytes[..bytes.len() - CHECK_BYTES], [&[68, 0][..], &body].concat());
    }

    #[test]
    fn text_comes_back() {
        for invitation in [full(), plain(), Invitation { addresses: vec![], ..plain() }] {
            let text = invitation.to_string();
            assert_eq!(text.parse(), Ok(invitation.clone()));
            assert_eq!(text.to_uppercase().parse(), Ok(invitation.clone()));
            let folded: String = text
                .chars()
                .enumerate()
                .flat_map(|(at, c)| [(at % 60 == 0).then_some('\n'), Some(c)])
                .flatten()
                .collect();
            assert_eq!(format!("  {folded}\r\n").parse(), Ok(invitation));
        }
        let invitation = full();
        assert!(!invitation.is_expired(1_799_999_999) && invitation.is_expired(1_800_000_000));
        let shown = format!("{invitation:?}");
        assert!(shown.contains("hq2") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn what_is_wrong_with_a_text_is_said() {
        let text = full().to_string();
        for end in 0..PREFIX.len() {
            assert_eq!(text[..end].parse::<Invitation>(), Err(InvitationError::Prefix), "{end}");
        }
        for end in PREFIX.len()..text.len() {
            let error = text[..end].parse::<Invitation>().unwrap_err();
            match error {
                InvitationError::Short { missing } if end >= PREFIX.len() + 4 => assert_eq!(missing, text.len() - end),
                InvitationError::Short { .. } => {}
                other => panic!("{end}: {other}"),
            }
        }
        assert_eq!(format!("{text}aa").parse::<Invitation>(), Err(InvitationError::Long { surplus: 2 }));
        assert_eq!("https://example.org".parse::<Invitation>(), Err(InvitationError::Prefix));
        assert_eq!("äääää".parse::<Invitation>(), Err(InvitationError::Prefix));
        assert_eq!("anb1-hello!".parse::<Invitation>(), Err(InvitationError::Character('!')));
        // Every single character counts; the first four are the length.
        for at in PREFIX.len()..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'a' { b'b' } else { b'a' };
            let error = String::from_utf8(changed).unwrap().parse::<Invitation>().unwrap_err();
            if at >= PREFIX.len() + 4 {
                assert_eq!(error, InvitationError::Checksum, "{at}");
            }
        }
        // A right checksum over something else.
        let mut other = 3u16.to_le_bytes().to_vec();
        other.extend([0x28, 0x09, 0x08]);
        other.extend(checksum(&other));
        let error = format!("{PREFIX}{}", base32::encode(&other)).parse::<Invitation>().unwrap_err();
        assert!(matches!(error, InvitationError::Content(_)), "{error:?}");
    }
}
