//! Configuration objects: small TOML files, one an object.
//!
//! | file | keys |
//! | --- | --- |
//! | `members/NAME.toml` | `key` (fingerprint), `addresses` (list of `host:port`) |
//! | `groups/NAME.toml` | `members` (list of names), `topology` (`mesh`, `hub:NAME`, `chain`, `custom`), `connections` (with `custom`: list of `{ downstream, upstream }`) |
//! | `folders/GROUP/NAME.toml` | `id` (32 hexadecimal digits), `primary` (a member), `policy` (`preserve`, `keep`), `names` (`bytes`, `windows`) |
//! | `memberships/GROUP/FOLDER/MEMBER.toml` | `path` (absolute), and where set `staging_bytes`, `seen_bytes`, `unseen_bytes` |
//!
//! What can be judged from one file alone is judged here; what needs the others, in [`crate::Effective`].

use std::fmt;
use std::ops::Range;

use anabranch_model::FolderId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::{FolderName, KeyFingerprint, ObjectName};

/// The most bytes of one object.
pub const OBJECT_BYTES_MAX: usize = 64 * 1024;

/// A server of the domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// What its key is known by.
    pub key: KeyFingerprint,
    /// Where it listens, `host:port`, in the order to try. Empty where it cannot be dialed.
    pub addresses: Vec<String>,
}

/// Who pulls from whom in a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Topology {
    /// Everybody from everybody.
    Mesh,
    /// Everybody from the hub, and the hub from everybody.
    Hub(ObjectName),
    /// Neighbours in the order of the members, in both directions.
    Chain,
    /// As listed.
    Custom(Vec<Connection>),
}

/// A directed connection: the downstream partner pulls from the upstream partner.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Connection {
    /// Who pulls.
    pub downstream: ObjectName,
    /// From whom.
    pub upstream: ObjectName,
}

/// A replication group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// Its members; the order counts for [`Topology::Chain`].
    pub members: Vec<ObjectName>,
    /// The connections between them.
    pub topology: Topology,
}

/// What becomes of a file that loses its name to another one (design, section 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// It is preserved, out of the tree: the default between servers.
    #[default]
    Preserve,
    /// It is kept beside the winner.
    Keep,
}

/// When two names are one (design, section 4). Fixed when the folder is created.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Names {
    /// When their bytes are equal.
    #[default]
    Bytes,
    /// When they are equal without regard to case, in NFC ([`anabranch_model::fold`]).
    Windows,
}

impl From<Names> for anabranch_model::Names {
    fn from(names: Names) -> Self {
        match names {
            Names::Bytes => Self::Bytes,
            Names::Windows => Self::Windows,
        }
    }
}

impl Names {
    /// Reads the word, as in a folder's file and on the command line.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn of_word(word: &str) -> Result<Self, String> {
        match word {
            "bytes" => Ok(Self::Bytes),
            "windows" => Ok(Self::Windows),
            other => Err(format!("`{other}` is no rule for names; there are bytes and windows")),
        }
    }

    /// The word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Windows => "windows",
        }
    }
}

/// A replicated folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Folder {
    /// Its random id.
    pub id: FolderId,
    /// The member whose files it begins with.
    pub primary: ObjectName,
    /// What becomes of a file that loses its name.
    pub policy: Policy,
    /// When two names are one.
    pub names: Names,
}

/// Where one member keeps a folder.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Membership {
    /// The folder's root there: absolute, without `.`, `..`, doubled slashes or one at the end.
    pub path: String,
    /// Quota of staging; the default where none is set.
    pub staging_bytes: Option<u64>,
    /// Quota of what was preserved and had been seen.
    pub seen_bytes: Option<u64>,
    /// Quota of what was preserved and had not been seen.
    pub unseen_bytes: Option<u64>,
}

/// Which object: what its file is called by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ObjectKey {
    /// A member.
    Member(ObjectName),
    /// A group.
    Group(ObjectName),
    /// A replicated folder.
    Folder(FolderName),
    /// A folder at a member.
    Membership(FolderName, ObjectName),
}

impl ObjectKey {
    /// Reads the path of a file in the folder `$domain`, with slashes.
    ///
    /// # Errors
    /// [`ObjectError`] says what is wrong with the file's name.
    pub fn of_file(file: &str) -> Result<Self, ObjectError> {
        let wrong = |cause: String| ObjectError { file: file.to_owned(), line: None, key: None, cause };
        let parts: Vec<_> = file.strip_suffix(".toml").unwrap_or("").split('/').collect();
        let name = |text: &str| text.parse::<ObjectName>().map_err(|e| wrong(e.to_string()));
        let folder = |group, folder| Ok(FolderName { group: name(group)?, folder: name(folder)? });
        match *parts.as_slice() {
            ["members", member] => Ok(Self::Member(name(member)?)),
            ["groups", group] => Ok(Self::Group(name(group)?)),
            ["folders", group, leaf] => Ok(Self::Folder(folder(group, leaf)?)),
            ["memberships", group, leaf, member] => Ok(Self::Membership(folder(group, leaf)?, name(member)?)),
            _ => Err(wrong(
                "no object has this file name; objects are members/NAME.toml, groups/NAME.toml, \
                 folders/GROUP/NAME.toml and memberships/GROUP/FOLDER/MEMBER.toml"
                    .into(),
            )),
        }
    }

    /// The path of its file in the folder `$domain`.
    #[must_use]
    pub fn file(&self) -> String {
        match self {
            Self::Member(name) => format!("members/{name}.toml"),
            Self::Group(name) => format!("groups/{name}.toml"),
            Self::Folder(folder) => format!("folders/{folder}.toml"),
            Self::Membership(folder, member) => format!("memberships/{folder}/{member}.toml"),
        }
    }
}

impl fmt::Display for ObjectKey {
    /// For people: `group web`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(name) => write!(f, "member {name}"),
            Self::Group(name) => write!(f, "group {name}"),
            Self::Folder(folder) => write!(f, "folder {folder}"),
            Self::Membership(folder, member) => write!(f, "membership of {member} in {folder}"),
        }
    }
}

/// A configuration object, under its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    /// A server.
    Member(ObjectName, Member),
    /// A replication group.
    Group(ObjectName, Group),
    /// A replicated folder.
    Folder(FolderName, Folder),
    /// Where one member keeps it.
    Membership(FolderName, ObjectName, Membership),
}

/// What is wrong with one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectError {
    /// The file, within `$domain` or as the user named it.
    pub file: String,
    /// Its line, from 1.
    pub line: Option<usize>,
    /// The key on that line.
    pub key: Option<String>,
    /// What is wrong.
    pub cause: String,
}

impl fmt::Display for ObjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ", key `{key}`")?;
        }
        write!(f, ": {}", self.cause)
    }
}

impl std::error::Error for ObjectError {}

/// Reads one object. `file` is its path in `$domain`, which says what it is and how it is called.
///
/// # Errors
/// [`ObjectError`] names file, line and key. A key that is not known is an error: a mistyped quota must not be silent.
pub fn parse(file: &str, text: &str) -> Result<Object, ObjectError> {
    let source = Source { file, text };
    let key = ObjectKey::of_file(file)?;
    if text.len() > OBJECT_BYTES_MAX {
        let cause = format!("an object cannot be longer than {OBJECT_BYTES_MAX} bytes");
        return Err(ObjectError { file: file.to_owned(), line: None, key: None, cause });
    }
    match key {
        ObjectKey::Member(name) => Ok(Object::Member(name, source.member(source.read()?)?)),
        ObjectKey::Group(name) => Ok(Object::Group(name, source.group(source.read()?)?)),
        ObjectKey::Folder(name) => Ok(Object::Folder(name, source.folder(source.read()?)?)),
        ObjectKey::Membership(folder, member) => {
            Ok(Object::Membership(folder, member, source.membership(source.read()?)?))
        }
    }
}

impl Object {
    /// Which object it is.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Member(name, _) => ObjectKey::Member(name.clone()),
            Self::Group(name, _) => ObjectKey::Group(name.clone()),
            Self::Folder(name, _) => ObjectKey::Folder(name.clone()),
            Self::Membership(folder, member, _) => ObjectKey::Membership(folder.clone(), member.clone()),
        }
    }

    /// The path of its file in the folder `$domain`.
    #[must_use]
    pub fn file(&self) -> String {
        self.key().file()
    }

    /// The text of its file; [`parse`] gives the same object back.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            Self::Member(_, member) => write(&RawMember {
                key: unspanned(member.key.to_string()),
                addresses: member.addresses.iter().cloned().map(unspanned).collect(),
            }),
            Self::Group(_, group) => {
                let (topology, connections) = match &group.topology {
                    Topology::Mesh => ("mesh".to_owned(), Vec::new()),
                    Topology::Hub(hub) => (format!("hub:{hub}"), Vec::new()),
                    Topology::Chain => ("chain".to_owned(), Vec::new()),
                    Topology::Custom(connections) => ("custom".to_owned(), connections.iter().map(raw).collect()),
                };
                let members = group.members.iter().map(|name| unspanned(name.to_string())).collect();
                write(&RawGroup { members, topology: unspanned(topology), connections })
            }
            Self::Folder(_, folder) => write(&RawFolder {
                id: unspanned(folder.id.to_string()),
                primary: unspanned(folder.primary.to_string()),
                policy: folder.policy,
                names: folder.names,
            }),
            Self::Membership(_, _, membership) => write(&RawMembership {
                path: unspanned(membership.path.clone()),
                staging_bytes: membership.staging_bytes,
                seen_bytes: membership.seen_bytes,
                unseen_bytes: membership.unseen_bytes,
            }),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMember {
    key: Spanned<String>,
    #[serde(default)]
    addresses: Vec<Spanned<String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    members: Vec<Spanned<String>>,
    topology: Spanned<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    connections: Vec<RawConnection>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConnection {
    downstream: Spanned<String>,
    upstream: Spanned<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFolder {
    id: Spanned<String>,
    primary: Spanned<String>,
    #[serde(default)]
    policy: Policy,
    #[serde(default)]
    names: Names,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMembership {
    path: Spanned<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    staging_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seen_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unseen_bytes: Option<u64>,
}

fn unspanned(text: String) -> Spanned<String> {
    Spanned::new(0..0, text)
}

fn raw(connection: &Connection) -> RawConnection {
    RawConnection {
        downstream: unspanned(connection.downstream.to_string()),
        upstream: unspanned(connection.upstream.to_string()),
    }
}

fn write(raw: &impl Serialize) -> String {
    toml::to_string(raw).expect("texts, numbers and lists of them always have a TOML form")
}

/// A file while it is read, for saying where something is wrong.
#[derive(Clone, Copy)]
struct Source<'a> {
    file: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn read<T: DeserializeOwned>(self) -> Result<T, ObjectError> {
        toml::from_str(self.text).map_err(|error| {
            // A missing key has no place in the text; the reader gives the whole of it then.
            let missing = error.message().starts_with("missing field");
            let span = error.span().filter(|_| !missing);
            self.wrong(span, error.message().trim_end().replace("field", "key"))
        })
    }

    fn wrong(self, span: Option<Range<usize>>, cause: String) -> ObjectError {
        let before = span.and_then(|span| self.text.get(..span.start));
        let line = before.map(|before| before.matches('\n').count() + 1);
        let key = line.and_then(|line| self.key_of(line));
        ObjectError { file: self.file.to_owned(), line, key, cause }
    }

    /// The key on a line, or of the list that goes on there.
    fn key_of(self, line: usize) -> Option<String> {
        let before: Vec<_> = self.text.lines().take(line).collect();
        before.iter().rev().find_map(|text| {
            let (key, _) = text.split_once('=')?;
            let key = key.trim().trim_start_matches(['{', ' ']);
            let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
            plain.then(|| key.to_owned())
        })
    }

    /// Reads a value that has a form of its own.
    fn value<T: std::str::FromStr>(
        self,
        text: &Spanned<String>,
        cause: impl Fn(T::Err) -> String,
    ) -> Result<T, ObjectError> {
        text.get_ref().parse().map_err(|error| self.wrong(Some(text.span()), cause(error)))
    }

    fn name(self, text: &Spanned<String>) -> Result<ObjectName, ObjectError> {
        self.value(text, |error: crate::NameError| error.to_string())
    }

    fn member(self, raw: RawMember) -> Result<Member, ObjectError> {
        let key = self.value(&raw.key, |error: crate::FingerprintError| error.to_string())?;
        for address in &raw.addresses {
            check_address(address.get_ref()).map_err(|cause| self.wrong(Some(address.span()), cause))?;
        }
        Ok(Member { key, addresses: raw.addresses.into_iter().map(Spanned::into_inner).collect() })
    }

    fn group(self, raw: RawGroup) -> Result<Group, ObjectError> {
        let members = raw.members.iter().map(|name| self.name(name)).collect::<Result<Vec<_>, _>>()?;
        let connections = raw
            .connections
            .iter()
            .map(|raw| Ok(Connection { downstream: self.name(&raw.downstream)?, upstream: self.name(&raw.upstream)? }))
            .collect::<Result<Vec<_>, ObjectError>>()?;
        let at_topology = |cause: String| self.wrong(Some(raw.topology.span()), cause);
        let topology = match raw.topology.get_ref().as_str() {
            "custom" => Topology::Custom(connections),
            _ if !connections.is_empty() => {
                return Err(at_topology("connections are listed only where the topology is `custom`".into()));
            }
            other => parse_topology(other).map_err(at_topology)?,
        };
        Ok(Group { members, topology })
    }

    fn folder(self, raw: RawFolder) -> Result<Folder, ObjectError> {
        let id = self.value(&raw.id, |()| "a folder's id has 32 hexadecimal digits".to_owned())?;
        Ok(Folder { id, primary: self.name(&raw.primary)?, policy: raw.policy, names: raw.names })
    }

    fn membership(self, raw: RawMembership) -> Result<Membership, ObjectError> {
        check_path(raw.path.get_ref()).map_err(|cause| self.wrong(Some(raw.path.span()), cause))?;
        Ok(Membership {
            path: raw.path.into_inner(),
            staging_bytes: raw.staging_bytes,
            seen_bytes: raw.seen_bytes,
            unseen_bytes: raw.unseen_bytes,
        })
    }
}

/// Reads the word for a topology, as in a group's file and on the command line: `mesh`, `hub:NAME`, `chain`; `custom`
/// gives one without connections.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn parse_topology(text: &str) -> Result<Topology, String> {
    match (text, text.strip_prefix("hub:")) {
        ("mesh", _) => Ok(Topology::Mesh),
        ("chain", _) => Ok(Topology::Chain),
        ("custom", _) => Ok(Topology::Custom(Vec::new())),
        (_, Some(hub)) => hub.parse().map(Topology::Hub).map_err(|error: crate::NameError| error.to_string()),
        _ => Err(format!("`{text}` is no topology; there are mesh, hub:NAME, chain and custom")),
    }
}

/// Checks an address: `host:port`, `[v6]:port`.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn check_address(text: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("`{text}` is no address: {why}; addresses are HOST:PORT or [IPv6]:PORT"));
    let Some((host, port)) = text.rsplit_once(':') else { return wrong("it has no port") };
    if text.len() > 255 {
        return wrong("it is longer than 255 characters");
    }
    if !port.bytes().all(|b| b.is_ascii_digit()) || !matches!(port.parse::<u16>(), Ok(1..)) {
        return wrong("the port is no number from 1 to 65535");
    }
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) if v6.matches(':').count() >= 2 && v6.bytes().all(|b| b.is_ascii_hexdigit() || b":.".contains(&b)) => {
            Ok(())
        }
        Some(_) => wrong("what is in brackets is no IPv6 address"),
        None if host.is_empty() => wrong("it has no host"),
        None if host.contains(':') => wrong("an IPv6 address stands in brackets"),
        None if host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) => Ok(()),
        None => wrong("the host has a character that no host name has"),
    }
}

/// Checks the root of a folder at a member: absolute, not `/` itself, and in its plain form, so that equal paths are
/// equal texts.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn check_path(text: &str) -> Result<(), String> {
    let Some(rest) = text.strip_prefix('/') else {
        return Err(format!("the path `{text}` is not absolute: it must begin with a slash"));
    };
    if rest.is_empty() {
        return Err("the path `/` cannot be a replicated folder; give one a directory of its own".into());
    }
    if text.len() > 4095 {
        return Err("the path is longer than 4095 bytes".into());
    }
    for part in rest.split('/') {
        let why = match part {
            "" => "has two slashes in a row, or one at the end",
            "." | ".." => "has `.` or `..` in it",
            part if part.contains('\0') => "has a zero byte in it",
            part if part.len() > 255 => "has a part longer than 255 bytes",
            part if part.starts_with(".anabranch") => "has a part that begins with `.anabranch`, which is reserved",
            _ => continue,
        };
        return Err(format!("the path `{text}` {why}"));
    }
    Ok(())
}

/// Is `path` the same as `root`, or beneath it? Both in the form of [`check_path`]; `/` may be the root.
#[must_use]
pub fn is_within(path: &str, root: &str) -> bool {
    match path.strip_prefix(root.strip_suffix('/').unwrap_or(root)) {
        Some(rest) => rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}

#[cfg(test)]
#[path = "object_tests.rs"]
mod tests;
