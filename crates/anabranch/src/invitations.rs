//! Invitations: given by a running member, redeemed once, at the member that gave them (design, section 13).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anabranch_console::Failure;
use anabranch_domain::{ObjectName, create};
use anabranch_member::EventKind;
use anabranch_member::host::now;
use anabranch_net::listen::JoinAttempt;
use anabranch_net::{Invitation, JoinReply, Role, secrets_equal};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::daemon::{DOMAIN, Daemon};
use crate::local::write_whole;
use crate::reach::said_from;

/// The most invitations outstanding.
const OUTSTANDING_MAX: usize = 1000;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Given {
    secret: String,
    name: Option<String>,
    expires: u64,
    #[serde(default)]
    used: bool,
}

/// The invitations that this member gave.
pub(crate) struct Invitations {
    path: PathBuf,
    given: Mutex<Vec<Given>>,
    changed: Notify,
}

fn hex(secret: &[u8; 16]) -> String {
    secret.iter().map(|b| format!("{b:02x}")).collect()
}

fn seconds() -> u64 {
    now().0 / 1_000_000
}

impl Invitations {
    pub(crate) fn load(path: PathBuf) -> Result<Self, Failure> {
        let given = match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .map_err(|e| Failure::failed(format!("{} cannot be read", path.display())).because(e.to_string()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(Failure::failed(format!("{} cannot be read", path.display())).because(error.to_string()));
            }
        };
        Ok(Self { path, given: Mutex::new(given), changed: Notify::new() })
    }

    /// Might somebody come with one of them? Expired and used ones too, for an hour: so that he is told why.
    pub(crate) fn outstanding(&self) -> bool {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.iter().any(|g| g.expires + 3600 > seconds())
    }

    pub(crate) async fn changed(&self) {
        // Looked at every minute too, for those that expire.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(60), self.changed.notified()).await;
    }

    fn save(&self, given: &[Given]) -> Result<(), Failure> {
        let text = serde_json::to_string(given).map_err(|e| Failure::failed(e.to_string()))?;
        write_whole(&self.path, text.as_bytes())
            .map_err(|e| Failure::failed(format!("cannot write {}", self.path.display())).because(e.to_string()))
    }

    fn give(&self, secret: &[u8; 16], name: Option<String>, expires: u64) -> Result<(), Failure> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.retain(|g| g.expires + 3600 > seconds());
        if given.len() >= OUTSTANDING_MAX {
            return Err(Failure::failed(format!("{OUTSTANDING_MAX} invitations are outstanding"))
                .hint("wait until some have expired"));
        }
        given.push(Given { secret: hex(secret), name, expires, used: false });
        self.save(&given)?;
        self.changed.notify_one();
        Ok(())
    }

    /// Uses one up; the error is what the newcomer is told.
    fn take(&self, secret: &[u8; 16], name: &str) -> Result<(), String> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let parse = |text: &str| -> Option<[u8; 16]> {
            let id: anabranch_model::FolderId = text.parse().ok()?;
            Some(id.0)
        };
        let found = given.iter_mut().find(|g| parse(&g.secret).is_some_and(|s| secrets_equal(&s, secret)));
        let Some(found) = found else { return Err("the invitation is not one that this member gave".into()) };
        if found.used {
            return Err("the invitation was used already".into());
        }
        if found.expires <= seconds() {
            return Err("the invitation has expired; ask for a new one".into());
        }
        if let Some(bound) = found.name.as_ref().filter(|n| *n != name) {
            return Err(format!("the invitation is bound to the name {bound}, not {name}"));
        }
        found.used = true;
        let all = given.clone();
        self.save(&all).map_err(|e| e.to_string())
    }
}

/// Longest that an invitation can be redeemed, seconds: a year.
pub(crate) const INVITATION_SECONDS_MAX: u64 = 365 * 86_400;

/// Makes an invitation; the text is all that is needed to join.
pub(crate) fn invite(daemon: &Daemon, name: Option<String>, valid_seconds: u64) -> Result<String, Failure> {
    if let Some(name) = &name {
        let parsed: ObjectName = name.parse().map_err(|e| Failure::usage(format!("{name:?} is no name: {e}")))?;
        let domain = daemon.domain.read().unwrap_or_else(PoisonError::into_inner);
        if domain.0.members.contains_key(&parsed) {
            return Err(Failure::usage(format!("there is a member {name} already")).hint("choose another name"));
        }
    }
    let mut secret = [0; 16];
    getrandom::fill(&mut secret)
        .map_err(|e| Failure::failed("the system gives no random bytes").because(e.to_string()))?;
    if !(1..=INVITATION_SECONDS_MAX).contains(&valid_seconds) {
        return Err(Failure::usage(format!("an invitation cannot be valid for {valid_seconds} seconds"))
            .hint(format!("say 1 to {INVITATION_SECONDS_MAX} seconds")));
    }
    let expires = seconds() + valid_seconds;
    let own: ObjectName = daemon.local.name.parse().map_err(|e| Failure::usage(format!("{e}")))?;
    let addresses = {
        let domain = daemon.domain.read().unwrap_or_else(PoisonError::into_inner);
        domain.0.members.get(&own).map(|m| m.addresses.clone()).unwrap_or_default()
    };
    daemon.invitations.give(&secret, name.clone(), expires)?;
    let invitation = Invitation {
        secret,
        inviter: daemon.identity.fingerprint(),
        domain: None,
        addresses,
        expires,
        role: Role::Member,
        name,
    };
    Ok(invitation.to_string())
}

/// What a new member needs to begin.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// The folder id of `$domain`.
    pub(crate) domain: String,
    /// The objects, by file name.
    pub(crate) files: BTreeMap<String, String>,
}

/// Answers a request to join.
pub(crate) fn redeem(daemon: &Arc<Daemon>, attempt: JoinAttempt) {
    let name = attempt.request.name.clone();
    let reply = match try_redeem(daemon, &attempt) {
        Ok(welcome) => match serde_json::to_vec(&welcome) {
            Ok(payload) => JoinReply::Accepted { payload },
            Err(error) => JoinReply::Refused { reason: error.to_string() },
        },
        Err(reason) => {
            daemon.event(
                DOMAIN,
                EventKind::PartnerRefused,
                format!("{name} asked to join from {}: {reason}", attempt.address),
            );
            JoinReply::Refused { reason }
        }
    };
    // The newcomer may have gone away; the invitation is used up all the same.
    let _ = attempt.reply.send(reply);
}

fn try_redeem(daemon: &Arc<Daemon>, attempt: &JoinAttempt) -> Result<Welcome, String> {
    let request = &attempt.request;
    let name: ObjectName = request.name.parse().map_err(|e| format!("{:?} is no name: {e}", request.name))?;
    {
        let domain = daemon.domain.read().unwrap_or_else(PoisonError::into_inner);
        if domain.0.members.contains_key(&name) {
            return Err(format!("there is a member {name} already; choose another name"));
        }
    }
    let address = said_from(&request.address, attempt.address.ip());
    let member = create::member(name, attempt.fingerprint, vec![address])?;
    daemon.invitations.take(&request.secret, &request.name)?;
    daemon.write_objects(&[member]).map_err(|e| e.to_string())?;
    let domain = daemon.domain.read().unwrap_or_else(PoisonError::into_inner);
    let files = domain.1.iter().map(|o| (o.file(), o.to_text())).collect();
    Ok(Welcome { domain: daemon.local.domain.clone(), files })
}
