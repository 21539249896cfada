//! What the commands make: the objects of a new member, group or folder.
//!
//! They are checked alone here, and together with all others by [`crate::problems_of_change`].

use anabranch_model::FolderId;

use crate::object::{
    Connection, Folder, Group, Member, Membership, Names, Object, Policy, Topology, check_address, check_path,
};
use crate::{FolderName, KeyFingerprint, ObjectName};

/// The object of a new member.
///
/// # Errors
/// A sentence that says which address is none.
pub fn member(name: ObjectName, key: KeyFingerprint, addresses: Vec<String>) -> Result<Object, String> {
    addresses.iter().try_for_each(|address| check_address(address))?;
    Ok(Object::Member(name, Member { key, addresses }))
}

/// The object of a new group (`anabranch group create`). `connections` are those of a custom topology.
///
/// # Errors
/// A sentence, where connections are given for another topology.
pub fn group(
    name: ObjectName,
    members: Vec<ObjectName>,
    topology: Topology,
    connections: Vec<Connection>,
) -> Result<Object, String> {
    let topology = match topology {
        Topology::Custom(mut listed) => {
            listed.extend(connections);
            Topology::Custom(listed)
        }
        Topology::Mesh | Topology::Hub(_) | Topology::Chain if !connections.is_empty() => {
            return Err("connections are listed only where the topology is `custom`".into());
        }
        other @ (Topology::Mesh | Topology::Hub(_) | Topology::Chain) => other,
    };
    Ok(Object::Group(name, Group { members, topology }))
}

/// The objects of a new folder and its memberships (`anabranch folder create`). `id` is random; `paths` says where
/// each member keeps it.
///
/// # Errors
/// A sentence that says which path is none, or which member has two.
pub fn folder(
    name: &FolderName,
    id: FolderId,
    primary: ObjectName,
    paths: &[(ObjectName, String)],
    policy: Policy,
    names: Names,
) -> Result<Vec<Object>, String> {
    let mut objects = vec![Object::Folder(name.clone(), Folder { id, primary, policy, names })];
    for (at, (member, path)) in paths.iter().enumerate() {
        // A slash at the end is what completion in a shell leaves.
        let path = path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(path);
        check_path(path)?;
        if paths[..at].iter().any(|(other, _)| other == member) {
            return Err(format!("member {member} has two paths"));
        }
        let membership = Membership { path: path.to_owned(), ..Membership::default() };
        objects.push(Object::Membership(name.clone(), member.clone(), membership));
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    fn name(text: &str) -> ObjectName {
        text.parse().unwrap()
    }

    #[test]
    fn what_the_commands_make_comes_back_from_its_files() {
        let paths = [(name("hq1"), "/srv/site/".to_owned()), (name("hq2"), "/srv/site".to_owned())];
        let site = "web/site".parse().unwrap();
        let mut objects = folder(&site, FolderId([7; 16]), name("hq1"), &paths, Policy::Keep, Names::Windows).unwrap();
        objects.push(member(name("hq1"), KeyFingerprint([1; 32]), vec!["hq1:7400".into()]).unwrap());
        objects.push(group(name("web"), vec![name("hq1"), name("hq2")], Topology::Mesh, vec![]).unwrap());
        let files: Vec<_> = objects.iter().map(Object::file).collect();
        assert_eq!(
            files,
            [
                "folders/web/site.toml",
                "memberships/web/site/hq1.toml",
                "memberships/web/site/hq2.toml",
                "members/hq1.toml",
                "groups/web.toml"
            ]
        );
        for object in &objects {
            assert_eq!(parse(&object.file(), &object.to_text()).as_ref(), Ok(object));
        }
        match &objects[1] {
            Object::Membership(_, _, membership) => assert_eq!(membership.path, "/srv/site"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let site = "web/site".parse().unwrap();
        let folder = |paths: &[(ObjectName, String)]| {
            folder(&site, FolderId([7; 16]), name("hq1"), paths, Policy::Preserve, Names::Bytes)
        };
        let at = |member: &str, path: &str| (name(member), path.to_owned());
        assert!(folder(&[at("hq1", "srv")]).unwrap_err().contains("not absolute"));
        assert!(folder(&[at("hq1", "/")]).unwrap_err().contains("cannot be"));
        assert!(folder(&[at("hq1", "/a"), at("hq1", "/b")]).unwrap_err().contains("two paths"));
        assert!(member(name("hq1"), KeyFingerprint([1; 32]), vec!["hq1".into()]).unwrap_err().contains("no port"));
        let connection = Connection { downstream: name("a"), upstream: name("b") };
        assert!(group(name("web"), vec![], Topology::Chain, vec![connection.clone()]).is_err());
        assert!(group(name("web"), vec![], Topology::Custom(vec![]), vec![connection]).is_ok());
    }
}
