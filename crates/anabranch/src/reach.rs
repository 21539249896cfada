//! Where members are reached: the addresses of their objects, what they say themselves, and what follows when an
//! administrator changes `listen` in a local file.
//!
//! A member that listens elsewhere than before can still dial the others, and they cannot dial it: it could never tell
//! them in `$domain`. So whoever dials says where it listens, and that is tried beside what its object says, which
//! follows as soon as it can be fetched.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use anabranch_domain::object::check_address;

/// The address that partners dial: one that says "all addresses" is named by the machine's name.
pub(crate) fn dialable(listen: SocketAddr) -> String {
    if listen.ip().is_unspecified() {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        format!("{host}:{}", listen.port())
    } else {
        listen.to_string()
    }
}

/// What a peer says of where it listens, as it is dialled: a listener on all addresses is reached where it came from.
pub(crate) fn said_from(said: &str, from: IpAddr) -> String {
    match said.parse::<SocketAddr>() {
        Ok(listen) if listen.ip().is_unspecified() => SocketAddr::new(from, listen.port()).to_string(),
        _ => said.to_owned(),
    }
}

/// A member's addresses after it has come to listen elsewhere: what came of the former place makes room for the new one,
/// and what an administrator entered besides stays.
pub(crate) fn moved(addresses: &[String], before: SocketAddr, now: SocketAddr) -> Vec<String> {
    let port_of = |address: &str| address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    let came_of_it = |address: &String| {
        *address == dialable(before) || before.ip().is_unspecified() && port_of(address) == Some(before.port())
    };
    let follow = |address: &String| match address.rsplit_once(':') {
        Some((host, _)) if now.ip().is_unspecified() => format!("{host}:{}", now.port()),
        _ => dialable(now),
    };
    let mut out: Vec<String> = Vec::with_capacity(addresses.len() + 1);
    if !addresses.iter().any(came_of_it) {
        out.push(dialable(now));
    }
    for address in addresses {
        let address = if came_of_it(address) { follow(address) } else { address.clone() };
        if !out.contains(&address) {
            out.push(address);
        }
    }
    out
}

/// What members said of where they listen when they dialled us, since the start of the daemon; one address a member.
#[derive(Default)]
pub(crate) struct Heard(Mutex<BTreeMap<String, String>>);

impl Heard {
    /// A member says that it listens there. `true`: that is news. What is no address is not taken note of.
    pub(crate) fn hear(&self, member: &str, said: &str, from: IpAddr) -> bool {
        if said.is_empty() {
            return false;
        }
        let address = said_from(said, from);
        if check_address(&address).is_err() {
            return false;
        }
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.insert(member.to_owned(), address.clone()) != Some(address)
    }

    /// Where a member is dialled: first where its object says, then where it said itself.
    pub(crate) fn with(&self, member: &str, mut addresses: Vec<String>) -> Vec<String> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = heard.get(member).filter(|address| !addresses.contains(address)) {
            addresses.push(address.clone());
        }
        addresses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_the_place_where_a_member_listens() {
        let here = dialable("0.0.0.0:7400".parse().unwrap());
        let there = dialable("0.0.0.0:7500".parse().unwrap());
        let cases: [(&[&str], &str, &str, &[&str]); 7] = [
            (&["192.0.2.1:4700"], "192.0.2.1:4700", "192.0.2.1:4800", &["192.0.2.1:4800"]),
            // What an administrator entered stays.
            (
                &["hq1.example.org:99", "192.0.2.1:4700"],
                "192.0.2.1:4700",
                "192.0.2.9:1",
                &["hq1.example.org:99", "192.0.2.9:1"],
            ),
            (&["hq1.example.org:99"], "192.0.2.1:4700", "192.0.2.9:1", &["192.0.2.9:1", "hq1.example.org:99"]),
            // On all addresses: the host stays as others know it.
            (&["192.0.2.1:7400"], "0.0.0.0:7400", "0.0.0.0:7500", &["192.0.2.1:7500"]),
            (&[&here], "0.0.0.0:7400", "0.0.0.0:7500", &[&there]),
            (&["192.0.2.1:4700"], "192.0.2.1:4700", "0.0.0.0:4700", &["192.0.2.1:4700"]),
            (&["192.0.2.1:4700", "[2001:db8::1]:4700"], "[::]:4700", "[2001:db8::2]:1", &["[2001:db8::2]:1"]),
        ];
        for (addresses, before, now, want) in cases {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let moved = moved(&addresses, before.parse().unwrap(), now.parse().unwrap());
            assert_eq!(moved, want, "{addresses:?}: {before} to {now}");
        }
    }

    #[test]
    fn what_a_member_says_is_tried_beside_its_object() {
        let (heard, from) = (Heard::default(), "198.51.100.7".parse().unwrap());
        assert!(!heard.hear("hq2", "", from));
        assert!(!heard.hear("hq2", "no address", from));
        assert!(heard.hear("hq2", "0.0.0.0:4800", from));
        assert!(!heard.hear("hq2", "0.0.0.0:4800", from), "the same once more is no news");
        assert_eq!(heard.with("hq2", vec!["192.0.2.2:4700".into()]), ["192.0.2.2:4700", "198.51.100.7:4800"]);
        assert_eq!(heard.with("hq2", vec!["198.51.100.7:4800".into()]), ["198.51.100.7:4800"]);
        assert!(heard.hear("hq2", "192.0.2.2:4900", from));
        assert_eq!(heard.with("hq2", vec![]), ["192.0.2.2:4900"]);
        assert_eq!(heard.with("hq3", vec![]), Vec::<String>::new());
    }
}
