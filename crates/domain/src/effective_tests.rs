//! What objects mean together, and what is said where they do not fit.

use super::*;

fn name(text: &str) -> ObjectName {
    text.parse().unwrap()
}

fn folder_name(text: &str) -> FolderName {
    text.parse().unwrap()
}

fn member(text: &str, key: u8) -> Object {
    Object::Member(name(text), Member { key: KeyFingerprint([key; 32]), addresses: vec![] })
}

fn names(list: &str) -> Vec<ObjectName> {
    list.split_whitespace().map(name).collect()
}

fn group(text: &str, members: &str, topology: Topology) -> Object {
    Object::Group(name(text), Group { members: names(members), topology })
}

fn connection(downstream: &str, upstream: &str) -> Connection {
    Connection { downstream: name(downstream), upstream: name(upstream) }
}

fn folder(text: &str, id: u8, primary: &str) -> Object {
    let (policy, names) = (Policy::Preserve, Names::Bytes);
    Object::Folder(folder_name(text), Folder { id: FolderId([id; 16]), primary: name(primary), policy, names })
}

fn at(folder: &str, member: &str, path: &str) -> Object {
    let membership = Membership { path: path.to_owned(), ..Membership::default() };
    Object::Membership(folder_name(folder), name(member), membership)
}

/// Three members, a group, a folder: all in order.
fn good() -> Vec<Object> {
    vec![
        member("hq1", 1),
        member("hq2", 2),
        member("hq3", 3),
        group("web", "hq1 hq2 hq3", Topology::Mesh),
        folder("web/site", 1, "hq1"),
        at("web/site", "hq1", "/srv/site"),
        at("web/site", "hq2", "/srv/site"),
    ]
}

#[test]
fn what_is_in_order_is_in_force() {
    let (effective, problems) = Effective::of(&good());
    assert_eq!(problems, []);
    assert!(effective.invalid.is_empty());
    let site = folder_name("web/site");
    // hq3 is in the group and does not keep this folder.
    assert_eq!(effective.groups[&name("web")].connections.len(), 6);
    assert_eq!(effective.upstreams(&site, &name("hq1")), [&name("hq2")]);
    assert_eq!(effective.downstreams(&site, &name("hq1")), [&name("hq2")]);
    assert!(effective.upstreams(&site, &name("hq3")).is_empty());
    assert!(effective.upstreams(&folder_name("web/other"), &name("hq1")).is_empty());
    assert_eq!(effective.member_by_key(&KeyFingerprint([2; 32])), Some(&name("hq2")));
    assert_eq!(effective.member_by_key(&KeyFingerprint([9; 32])), None);
    assert_eq!(effective.folder_by_id(FolderId([1; 16])).map(|(found, _)| found), Some(&site));
    let kept: Vec<_> = effective.folders_of(&name("hq2")).map(|(name, _, m)| (name, m.path.as_str())).collect();
    assert_eq!(kept, [(&site, "/srv/site")]);
    assert_eq!(effective.folders_of(&name("hq3")).count(), 0);
}

#[test]
fn the_order_of_objects_does_not_count() {
    let mut objects = good();
    objects.extend([member("hq9", 1), at("web/site", "hq9", "/x"), at("web/gone", "hq1", "/y")]);
    let want = Effective::of(&objects);
    for _ in 0..objects.len() {
        objects.rotate_left(1);
        assert_eq!(Effective::of(&objects), want);
        let reversed: Vec<_> = objects.iter().rev().cloned().collect();
        assert_eq!(Effective::of(&reversed), want);
    }
}

#[test]
fn topologies_give_connections() {
    let pairs = |list: &str| -> BTreeSet<Connection> {
        list.split_whitespace().map(|pair| pair.split_once('<').map(|(d, u)| connection(d, u)).unwrap()).collect()
    };
    let cases = [
        (Topology::Mesh, "a b c", "a<b a<c b<a b<c c<a c<b"),
        (Topology::Mesh, "a", ""),
        (Topology::Hub(name("b")), "a b c", "a<b b<a c<b b<c"),
        (Topology::Chain, "c a b", "c<a a<c a<b b<a"),
        (Topology::Custom(vec![connection("a", "b")]), "a b c", "a<b"),
        (Topology::Custom(vec![]), "a b", ""),
    ];
    for (topology, members, want) in cases {
        let objects = [member("a", 1), member("b", 2), member("c", 3), group("g", members, topology.clone())];
        let (effective, problems) = Effective::of(&objects);
        assert_eq!(problems, [], "{topology:?}");
        assert_eq!(effective.groups[&name("g")].connections, pairs(want), "{topology:?}");
    }
}

#[test]
fn what_does_not_fit_is_named_with_its_next_step() {
    let hub = Topology::Hub(name("hq9"));
    let custom = |d, u| Topology::Custom(vec![connection(d, u), connection("hq1", "hq2"), connection("hq1", "hq2")]);
    let many: Vec<_> = (0..65).map(|at| format!("m{at}")).collect();
    let cases: Vec<(Vec<Object>, &[&str])> = vec![
        (
            vec![member("hq4", 1)],
            &[
                "member hq4, key `key`: member hq1 has the same key; remove one of them; each member has a key of its own",
            ],
        ),
        (
            vec![group("g", "hq1 hq9", Topology::Mesh)],
            &["group g, key `members`: hq9 is no member of this domain; invite it first, or take it out of the group"],
        ),
        (vec![group("g", "hq1 hq1", Topology::Mesh)], &["group g, key `members`: hq1 stands twice; name it once"]),
        (
            vec![group("g", "", Topology::Mesh)],
            &["group g, key `members`: the group has no members; name some, or remove the group"],
        ),
        (
            vec![group("g", "hq1 hq2", hub)],
            &["group g, key `topology`: the hub hq9 is no member of the group; name one of its members"],
        ),
        (
            vec![group("g", "hq1 hq2", custom("hq1", "hq3"))],
            &[
                "group g, key `connections`: a connection ends at hq3, which is no member of the group; add it to the group, or remove the connection",
                "group g, key `connections`: the connection from hq2 to hq1 stands twice; list it once",
            ],
        ),
        (
            vec![group("g", "hq1 hq2", custom("hq2", "hq2"))],
            &[
                "group g, key `connections`: hq2 cannot pull from itself; remove this connection",
                "group g, key `connections`: the connection from hq2 to hq1 stands twice; list it once",
            ],
        ),
        (
            many.iter()
                .enumerate()
                .map(|(at, text)| member(text, at as u8 + 10))
                .chain([group("g", &many.join(" "), Topology::Mesh)])
                .collect(),
            &[
                "group g, key `members`: 65 members are more than the 64 that are supported; use a hub, or several groups",
            ],
        ),
        (
            vec![folder("none/x", 2, "hq1")],
            &[
                "folder none/x: there is no group none; create it with `anabranch group create none`, or remove the folder",
            ],
        ),
        (
            vec![folder("web/x", 2, "hq9")],
            &["folder web/x, key `primary`: the primary hq9 is no member of the group web; name one of its members"],
        ),
        (
            vec![folder("web/x", 1, "hq1"), at("web/x", "hq1", "/x")],
            &[
                "folder web/x, key `id`: folder web/site has the same id; each folder has an id of its own: create this one anew",
                "membership of hq1 in web/x: the folder web/x is not in force; settle what is wrong with it",
            ],
        ),
        (
            vec![folder("web/x", 2, "hq1")],
            &[
                "folder web/x, key `primary`: the primary hq1 has no path for this folder; add one with `--path hq1=DIRECTORY`, or name another primary",
            ],
        ),
        (
            vec![at("web/x", "hq1", "/x")],
            &["membership of hq1 in web/x: there is no folder web/x; create it, or remove this membership"],
        ),
        (
            vec![at("web/site", "hq9", "/x")],
            &[
                "membership of hq9 in web/site: hq9 is no member of the group web; add it to the group, or remove this membership",
            ],
        ),
        (
            vec![folder("web/x", 2, "hq1"), at("web/x", "hq1", "/srv/site")],
            &[
                "folder web/x, key `primary`: the primary hq1 has no path for this folder; add one with `--path hq1=DIRECTORY`, or name another primary",
                "membership of hq1 in web/x, key `path`: folder web/site lies at /srv/site too; give it a path of its own on hq1",
            ],
        ),
        (
            vec![
                folder("web/x", 2, "hq3"),
                at("web/x", "hq3", "/srv/site"),
                at("web/x", "hq1", "/srv/site/sub"),
                at("web/x", "hq2", "/srv"),
            ],
            &[
                "membership of hq1 in web/x, key `path`: /srv/site/sub and /srv/site, where folder web/site lies, are one inside the other; give it a path of its own on hq1",
                "membership of hq2 in web/x, key `path`: /srv and /srv/site, where folder web/site lies, are one inside the other; give it a path of its own on hq2",
            ],
        ),
        (vec![folder("web/x", 2, "hq1"), at("web/x", "hq1", "/srv/site2")], &[]),
    ];
    for (more, want) in cases {
        let objects = [good(), more.clone()].concat();
        let (effective, problems) = Effective::of(&objects);
        let said: Vec<_> = problems.iter().map(Problem::to_string).collect();
        assert_eq!(said, want, "{more:?}");
        let objects: BTreeSet<_> = problems.iter().map(|problem| problem.object.clone()).collect();
        assert_eq!(effective.invalid, objects);
        // What is in order stays in force beside it.
        let (before, _) = Effective::of(&good());
        assert_eq!(effective.folders[&folder_name("web/site")], before.folders[&folder_name("web/site")]);
    }
}

#[test]
fn a_change_answers_for_itself_only() {
    let mut before = good();
    before.push(group("broken", "hq9", Topology::Mesh));
    assert_eq!(problems_of_change(&before, &[folder("web/x", 2, "hq1"), at("web/x", "hq1", "/x")], &[]), []);
    let said = problems_of_change(&before, &[folder("web/x", 1, "hq1"), at("web/x", "hq1", "/x")], &[]);
    assert_eq!(said.len(), 2, "{said:?}");
    // In place of an older one.
    assert_eq!(problems_of_change(&before, &[at("web/site", "hq1", "/srv/new")], &[]), []);
    // The rule for names stays what it was when the folder was created.
    let Some(Object::Folder(site, was)) = before.iter().find(|o| matches!(o, Object::Folder(..))).cloned() else {
        panic!("there is a folder");
    };
    assert_eq!(problems_of_change(&before, &[Object::Folder(site.clone(), was.clone())], &[]), []);
    let said = problems_of_change(&before, &[Object::Folder(site, Folder { names: Names::Windows, ..was })], &[]);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].to_string().contains("key `names`: it was `bytes` when the folder was created"), "{}", said[0]);
    // What stays must still fit.
    let said = problems_of_change(&before, &[], &[ObjectKey::Member(name("hq1"))]);
    let objects: Vec<_> = said.iter().map(|problem| problem.object.to_string()).collect();
    assert_eq!(
        objects,
        ["group web", "folder web/site", "membership of hq1 in web/site", "membership of hq2 in web/site"]
    );
    assert_eq!(problems_of_change(&before, &[], &[ObjectKey::Group(name("broken"))]), []);
}

#[test]
fn files_are_read_and_wrong_ones_set_aside() {
    let files: Vec<_> = good().iter().map(|object| (object.file(), object.to_text())).collect();
    let wrong = [("groups/bad.toml".to_owned(), "members = 3".to_owned()), ("notes.txt".to_owned(), String::new())];
    let (objects, errors) = read(files.iter().chain(&wrong).map(|(file, text)| (file.as_str(), text.as_str())));
    assert_eq!(objects, good());
    let files: Vec<_> = errors.iter().map(|error| error.file.as_str()).collect();
    assert_eq!(files, ["groups/bad.toml", "notes.txt"]);
}
