//! The effective configuration: what all objects mean together.
//!
//! It is a function of the objects and of nothing else, so that it is the same on every member (design, section 13).
//! An object that does not fit to the others is not in force, and a [`Problem`] says so; what a member already keeps
//! on the strength of it must not be deleted because of that ([`Effective::invalid`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anabranch_model::FolderId;

use crate::object::{
    Connection, Folder, Group, Member, Membership, Names, Object, ObjectError, ObjectKey, Policy, Topology, is_within,
    parse,
};
use crate::{FolderName, KeyFingerprint, ObjectName};

/// The most members of a mesh (design, section 20).
pub const MESH_MEMBERS_MAX: usize = 64;
/// The most members of a group (design, section 20).
pub const GROUP_MEMBERS_MAX: usize = 256;

/// Something that is wrong with the objects together: object, key, cause, next step.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Problem {
    /// The object.
    pub object: ObjectKey,
    /// Its key, where it is about one.
    pub key: Option<&'static str>,
    /// What is wrong.
    pub cause: String,
    /// What an administrator can do.
    pub next: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.object)?;
        if let Some(key) = self.key {
            write!(f, ", key `{key}`")?;
        }
        write!(f, ": {}; {}", self.cause, self.next)
    }
}

impl std::error::Error for Problem {}

/// A group in force.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EffectiveGroup {
    /// Its members, in the order of the object.
    pub members: Vec<ObjectName>,
    /// Its connections.
    pub connections: BTreeSet<Connection>,
}

/// A folder in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EffectiveFolder {
    /// Its id.
    pub id: FolderId,
    /// The member whose files it begins with.
    pub primary: ObjectName,
    /// What becomes of a file that loses its name.
    pub policy: Policy,
    /// When two names are one.
    pub names: Names,
    /// Who keeps it where.
    pub memberships: BTreeMap<ObjectName, Membership>,
}

/// The effective configuration.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Effective {
    /// The members of the domain.
    pub members: BTreeMap<ObjectName, Member>,
    /// The replication groups.
    pub groups: BTreeMap<ObjectName, EffectiveGroup>,
    /// The replicated folders.
    pub folders: BTreeMap<FolderName, EffectiveFolder>,
    /// Objects that are there and not, or not wholly, in force.
    pub invalid: BTreeSet<ObjectKey>,
}

/// Reads files of `$domain`, each with its path there and its text.
pub fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> (Vec<Object>, Vec<ObjectError>) {
    let (mut objects, mut errors) = (Vec::new(), Vec::new());
    for (file, text) in files {
        match parse(file, text) {
            Ok(object) => objects.push(object),
            Err(error) => errors.push(error),
        }
    }
    (objects, errors)
}

/// What would be wrong after a change that is not wrong before it: objects put (new or in place of an older one) and
/// removed. Old problems do not stand in the way of new work.
#[must_use]
pub fn problems_of_change(before: &[Object], put: &[Object], remove: &[ObjectKey]) -> Vec<Problem> {
    let replaced: BTreeSet<_> = put.iter().map(Object::key).chain(remove.iter().cloned()).collect();
    let kept = before.iter().filter(|object| !replaced.contains(&object.key()));
    let after: Vec<_> = kept.chain(put).cloned().collect();
    let (_, old) = Effective::of(before);
    let (_, mut new) = Effective::of(&after);
    new.retain(|problem| !old.contains(problem));
    new.extend(put.iter().filter_map(|object| renamed_rule(before, object)));
    new
}

/// The rule for names of a folder is fixed when it is created: with another one all members would derive another tree.
fn renamed_rule(before: &[Object], put: &Object) -> Option<Problem> {
    let Object::Folder(_, now) = put else { return None };
    let was = before.iter().find_map(|object| match object {
        Object::Folder(_, was) if was.id == now.id => Some(was.names),
        _ => None,
    });
    let was = was.filter(|was| *was != now.names)?;
    Some(Problem {
        object: put.key(),
        key: Some("names"),
        cause: format!("it was `{}` when the folder was created, and cannot become `{}`", was.word(), now.names.word()),
        next: "leave it, or create another folder".into(),
    })
}

impl Effective {
    /// The effective configuration of these objects, and all that is wrong with them, by object. The order of the
    /// objects does not count; one that stands twice counts as it stands first.
    #[must_use]
    pub fn of(objects: &[Object]) -> (Self, Vec<Problem>) {
        let mut sorted = Sorted::default();
        objects.iter().for_each(|object| sorted.add(object));
        let mut out = Builder::default();
        out.members(&sorted);
        out.groups(&sorted);
        out.folders(&sorted);
        out.memberships(&sorted);
        out.primaries();
        out.problems.sort();
        out.effective.invalid = out.problems.iter().map(|problem| problem.object.clone()).collect();
        (out.effective, out.problems)
    }

    /// The member with this key.
    #[must_use]
    pub fn member_by_key(&self, key: &KeyFingerprint) -> Option<&ObjectName> {
        self.members.iter().find(|(_, member)| member.key == *key).map(|(name, _)| name)
    }

    /// The folder with this id.
    #[must_use]
    pub fn folder_by_id(&self, id: FolderId) -> Option<(&FolderName, &EffectiveFolder)> {
        self.folders.iter().find(|(_, folder)| folder.id == id)
    }

    /// From whom `member` pulls this folder.
    #[must_use]
    pub fn upstreams(&self, folder: &FolderName, member: &ObjectName) -> Vec<&ObjectName> {
        self.connections(folder).filter(|c| c.downstream == *member).map(|c| &c.upstream).collect()
    }

    /// Who pulls this folder from `member`.
    #[must_use]
    pub fn downstreams(&self, folder: &FolderName, member: &ObjectName) -> Vec<&ObjectName> {
        self.connections(folder).filter(|c| c.upstream == *member).map(|c| &c.downstream).collect()
    }

    /// The connections of a folder: those of its group between members that keep it.
    pub fn connections(&self, folder: &FolderName) -> impl Iterator<Item = &Connection> {
        let group = self.groups.get(&folder.group).map(|group| &group.connections);
        let memberships = self.folders.get(folder).map(|folder| &folder.memberships);
        group.into_iter().flatten().filter(move |connection| {
            memberships.is_some_and(|keeps| {
                keeps.contains_key(&connection.downstream) && keeps.contains_key(&connection.upstream)
            })
        })
    }

    /// What a member keeps, and where.
    pub fn folders_of(
        &self,
        member: &ObjectName,
    ) -> impl Iterator<Item = (&FolderName, &EffectiveFolder, &Membership)> {
        self.folders.iter().filter_map(move |(name, folder)| Some((name, folder, folder.memberships.get(member)?)))
    }
}

/// The objects by kind, in the order of their names.
#[derive(Default)]
struct Sorted<'a> {
    members: BTreeMap<&'a ObjectName, &'a Member>,
    groups: BTreeMap<&'a ObjectName, &'a Group>,
    folders: BTreeMap<&'a FolderName, &'a Folder>,
    memberships: BTreeMap<(&'a FolderName, &'a ObjectName), &'a Membership>,
}

impl<'a> Sorted<'a> {
    fn add(&mut self, object: &'a Object) {
        match object {
            Object::Member(name, member) => {
                self.members.entry(name).or_insert(member);
            }
            Object::Group(name, group) => {
                self.groups.entry(name).or_insert(group);
            }
            Object::Folder(name, folder) => {
                self.folders.entry(name).or_insert(folder);
            }
            Object::Membership(folder, member, membership) => {
                self.memberships.entry((folder, member)).or_insert(membership);
            }
        }
    }
}

#[derive(Default)]
struct Builder {
    effective: Effective,
    problems: Vec<Problem>,
}

impl Builder {
    fn problem(&mut self, object: ObjectKey, key: &'static str, cause: String, next: impl Into<String>) {
        self.problems.push(Problem { object, key: Some(key), cause, next: next.into() });
    }

    fn members(&mut self, sorted: &Sorted<'_>) {
        for (&name, &member) in &sorted.members {
            // The same key twice is one machine under two names: nobody could tell who acknowledges what.
            if let Some(first) = self.effective.member_by_key(&member.key) {
                let cause = format!("member {first} has the same key");
                let next = "remove one of them; each member has a key of its own";
                self.problem(ObjectKey::Member(name.clone()), "key", cause, next);
                continue;
            }
            self.effective.members.insert(name.clone(), member.clone());
        }
    }

    fn groups(&mut self, sorted: &Sorted<'_>) {
        for (&name, &group) in &sorted.groups {
            let members = self.group_members(name, group);
            let connections = self.group_connections(name, group, &members);
            self.effective.groups.insert(name.clone(), EffectiveGroup { members, connections });
        }
    }

    /// The members that exist, each once.
    fn group_members(&mut self, name: &ObjectName, group: &Group) -> Vec<ObjectName> {
        let object = || ObjectKey::Group(name.clone());
        let mut members = Vec::new();
        for member in &group.members {
            if !self.effective.members.contains_key(member) {
                let cause = format!("{member} is no member of this domain");
                self.problem(object(), "members", cause, "invite it first, or take it out of the group");
            } else if members.contains(member) {
                self.problem(object(), "members", format!("{member} stands twice"), "name it once");
            } else {
                members.push(member.clone());
            }
        }
        if members.is_empty() {
            self.problem(object(), "members", "the group has no members".into(), "name some, or remove the group");
        }
        let max = if group.topology == Topology::Mesh { MESH_MEMBERS_MAX } else { GROUP_MEMBERS_MAX };
        if members.len() > max {
            let cause = format!("{} members are more than the {max} that are supported", members.len());
            self.problem(object(), "members", cause, "use a hub, or several groups");
            members.truncate(max);
        }
        members
    }

    fn group_connections(&mut self, name: &ObjectName, group: &Group, members: &[ObjectName]) -> BTreeSet<Connection> {
        let object = || ObjectKey::Group(name.clone());
        let one = |downstream: &ObjectName, upstream: &ObjectName| Connection {
            downstream: downstream.clone(),
            upstream: upstream.clone(),
        };
        let both = |a: &ObjectName, b: &ObjectName| [one(a, b), one(b, a)];
        match &group.topology {
            Topology::Mesh => {
                members.iter().flat_map(|a| members.iter().filter(move |b| *b != a).map(move |b| one(a, b))).collect()
            }
            Topology::Hub(hub) if members.contains(hub) => {
                members.iter().filter(|member| *member != hub).flat_map(|member| both(member, hub)).collect()
            }
            Topology::Hub(hub) => {
                let cause = format!("the hub {hub} is no member of the group");
                self.problem(object(), "topology", cause, "name one of its members");
                BTreeSet::new()
            }
            Topology::Chain => members.windows(2).flat_map(|pair| both(&pair[0], &pair[1])).collect(),
            Topology::Custom(connections) => {
                let mut out = BTreeSet::new();
                for connection in connections {
                    let Connection { downstream, upstream } = connection;
                    if downstream == upstream {
                        let cause = format!("{downstream} cannot pull from itself");
                        self.problem(object(), "connections", cause, "remove this connection");
                    } else if let Some(stranger) = [downstream, upstream].into_iter().find(|e| !members.contains(e)) {
                        let cause = format!("a connection ends at {stranger}, which is no member of the group");
                        self.problem(object(), "connections", cause, "add it to the group, or remove the connection");
                    } else if !out.insert(connection.clone()) {
                        let cause = format!("the connection from {upstream} to {downstream} stands twice");
                        self.problem(object(), "connections", cause, "list it once");
                    }
                }
                out
            }
        }
    }

    fn folders(&mut self, sorted: &Sorted<'_>) {
        for (&name, &folder) in &sorted.folders {
            let object = || ObjectKey::Folder(name.clone());
            let Some(group) = self.effective.groups.get(&name.group) else {
                let cause = format!("there is no group {}", name.group);
                self.problems.push(Problem {
                    object: object(),
                    key: None,
                    cause,
                    next: format!("create it with `anabranch group create {}`, or remove the folder", name.group),
                });
                continue;
            };
            if !group.members.contains(&folder.primary) {
                let cause = format!("the primary {} is no member of the group {}", folder.primary, name.group);
                self.problem(object(), "primary", cause, "name one of its members");
                continue;
            }
            if let Some((first, _)) = self.effective.folder_by_id(folder.id) {
                let cause = format!("folder {first} has the same id");
                self.problem(object(), "id", cause, "each folder has an id of its own: create this one anew");
                continue;
            }
            let (id, primary) = (folder.id, folder.primary.clone());
            let (policy, names, memberships) = (folder.policy, folder.names, BTreeMap::new());
            let folder = EffectiveFolder { id, primary, policy, names, memberships };
            self.effective.folders.insert(name.clone(), folder);
        }
    }

    fn memberships(&mut self, sorted: &Sorted<'_>) {
        // Paths that are taken, by member.
        let mut taken: BTreeMap<&ObjectName, Vec<(&str, &FolderName)>> = BTreeMap::new();
        for (&(name, member), &membership) in &sorted.memberships {
            let object = || ObjectKey::Membership(name.clone(), member.clone());
            if !self.effective.folders.contains_key(name) {
                // A folder that is there and not in force is reported already.
                if !sorted.folders.contains_key(name) {
                    self.problems.push(Problem {
                        object: object(),
                        key: None,
                        cause: format!("there is no folder {name}"),
                        next: "create it, or remove this membership".into(),
                    });
                } else {
                    self.problems.push(Problem {
                        object: object(),
                        key: None,
                        cause: format!("the folder {name} is not in force"),
                        next: "settle what is wrong with it".into(),
                    });
                }
                continue;
            }
            let in_group = self.effective.groups.get(&name.group).is_some_and(|g| g.members.contains(member));
            if !in_group {
                self.problems.push(Problem {
                    object: object(),
                    key: None,
                    cause: format!("{member} is no member of the group {}", name.group),
                    next: "add it to the group, or remove this membership".into(),
                });
                continue;
            }
            let taken = taken.entry(member).or_default();
            let path = membership.path.as_str();
            if let Some((other, first)) =
                taken.iter().find(|(other, _)| is_within(path, other) || is_within(other, path))
            {
                let cause = if *other == path {
                    format!("folder {first} lies at {path} too")
                } else {
                    format!("{path} and {other}, where folder {first} lies, are one inside the other")
                };
                self.problem(object(), "path", cause, format!("give it a path of its own on {member}"));
                continue;
            }
            taken.push((path, name));
            if let Some(folder) = self.effective.folders.get_mut(name) {
                folder.memberships.insert(member.clone(), membership.clone());
            }
        }
    }

    /// A folder whose primary keeps it nowhere never begins.
    fn primaries(&mut self) {
        let homeless: Vec<_> = self
            .effective
            .folders
            .iter()
            .filter(|(_, folder)| !folder.memberships.contains_key(&folder.primary))
            .map(|(name, folder)| (name.clone(), folder.primary.clone()))
            .collect();
        for (name, primary) in homeless {
            let cause = format!("the primary {primary} has no path for this folder");
            let next = format!("add one with `--path {primary}=DIRECTORY`, or name another primary");
            self.problem(ObjectKey::Folder(name), "primary", cause, next);
        }
    }
}

#[cfg(test)]
#[path = "effective_tests.rs"]
mod tests;
