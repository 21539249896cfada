//! Joining by invitation: what a member-to-be asks, what it is answered, and how often anybody may ask.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::time::Instant;

/// The most bytes of an accepting reply's payload.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Attempts to join that one address has in each [`RATE_WINDOW`].
pub const ATTEMPTS_PER_ADDRESS: usize = 5;
/// Attempts to join that all addresses together have in each [`RATE_WINDOW`].
pub const ATTEMPTS_IN_ALL: usize = 100;
/// The window of the limits.
pub const RATE_WINDOW: Duration = Duration::from_secs(60);

/// What a member-to-be asks. Its key is the one that TLS has seen.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// Of the invitation.
    pub secret: [u8; 16],
    /// The name that it wants in the domain.
    pub name: String,
    /// Where it can be dialed, `host:port`; empty where it cannot.
    pub address: String,
}

impl std::fmt::Debug for JoinRequest {
    /// Without the secret, which must not get into a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest").field("name", &self.name).field("address", &self.address).finish_non_exhaustive()
    }
}

/// What it is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JoinReply {
    /// It is a member now.
    Accepted {
        /// What it needs to begin, at most [`PAYLOAD_BYTES_MAX`].
        payload: Vec<u8>,
    },
    /// It is not.
    Refused {
        /// A full sentence for the administrator.
        reason: String,
    },
}

/// Compares two secrets in a time that does not depend on where they differ.
#[must_use]
pub fn secrets_equal(one: &[u8; 16], other: &[u8; 16]) -> bool {
    one.iter().zip(other).fold(0, |difference, (a, b)| black_box(difference | (a ^ b))) == 0
}

/// Counts attempts to join. Holds at most [`ATTEMPTS_IN_ALL`] entries, whoever asks how often.
#[derive(Debug, Default)]
pub(crate) struct JoinRate {
    attempts: BTreeMap<IpAddr, Vec<Instant>>,
}

impl JoinRate {
    /// Is one more attempt from this address allowed now? Then it is counted.
    pub(crate) fn allow(&mut self, address: IpAddr, now: Instant) -> bool {
        self.attempts.retain(|_, times| {
            times.retain(|&time| now.duration_since(time) < RATE_WINDOW);
            !times.is_empty()
        });
        if self.attempts.values().map(Vec::len).sum::<usize>() >= ATTEMPTS_IN_ALL {
            return false;
        }
        let times = self.attempts.entry(network_of(address)).or_default();
        let allowed = times.len() < ATTEMPTS_PER_ADDRESS;
        if allowed {
            times.push(now);
        }
        allowed
    }
}

/// What counts as one address: with IPv6 everybody has a network of 2^64.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_wherever_they_differ() {
        let secret = [0x5a; 16];
        assert!(secrets_equal(&secret, &secret));
        for bit in 0..128 {
            let mut other = secret;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!secrets_equal(&secret, &other), "bit {bit}");
        }
    }

    #[test]
    fn the_secret_is_not_shown() {
        let request = JoinRequest { secret: [0xee; 16], name: "hq2".into(), address: String::new() };
        assert_eq!(format!("{request:?}"), r#"JoinRequest { name: "hq2", address: "", .. }"#);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_are_limited_by_address_and_in_all() {
        let mut rate = JoinRate::default();
        let address = |a: u16| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, a, 0, 0, 0, 9));
        let start = Instant::now();
        let try_many = |rate: &mut JoinRate, a, now| (0..20).filter(|_| rate.allow(address(a), now)).count();
        assert_eq!(try_many(&mut rate, 1, start), ATTEMPTS_PER_ADDRESS);
        assert!(!rate.allow(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 7, 7, 7, 7).into(), start), "the same network");
        let all: usize = (1..50).map(|a| try_many(&mut rate, a, start)).sum();
        assert_eq!(all, ATTEMPTS_IN_ALL - ATTEMPTS_PER_ADDRESS);
        assert_eq!(try_many(&mut rate, 99, start + RATE_WINDOW / 2), 0);
        assert_eq!(try_many(&mut rate, 1, start + RATE_WINDOW), ATTEMPTS_PER_ADDRESS);
    }
}
