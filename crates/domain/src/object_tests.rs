//! Texts of objects: what they mean, and what is said of wrong ones.

use super::*;

const KEY: &str = "aeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaq";

fn name(text: &str) -> ObjectName {
    text.parse().unwrap()
}

#[test]
fn files_say_which_object() {
    let cases = ["members/hq1.toml", "groups/web.toml", "folders/web/site.toml", "memberships/web/site/hq1.toml"];
    for file in cases {
        assert_eq!(ObjectKey::of_file(file).unwrap().file(), file);
    }
    for file in [
        "",
        "hq1.toml",
        "members/hq1",
        "members/.toml",
        "members/HQ1.toml",
        "members/a/b.toml",
        "folders/site.toml",
        "members/../x.toml",
        "/members/hq1.toml",
        "memberships/web/hq1.toml",
        "other/x.toml",
    ] {
        assert!(ObjectKey::of_file(file).is_err(), "{file}");
    }
}

#[test]
fn golden_texts() {
    let connection = |downstream, upstream| Connection { downstream: name(downstream), upstream: name(upstream) };
    let cases = [
        (
            "members/hq1.toml",
            format!("key = \"{KEY}\"\naddresses = [\"hq1.example.org:7400\", \"[2001:db8::1]:7400\"]\n"),
            Object::Member(
                name("hq1"),
                Member {
                    key: KeyFingerprint([1; 32]),
                    addresses: vec!["hq1.example.org:7400".into(), "[2001:db8::1]:7400".into()],
                },
            ),
        ),
        (
            "groups/web.toml",
            "members = [\"hq1\", \"hq2\"]\ntopology = \"hub:hq1\"\n".into(),
            Object::Group(
                name("web"),
                Group { members: vec![name("hq1"), name("hq2")], topology: Topology::Hub(name("hq1")) },
            ),
        ),
        (
            "groups/odd.toml",
            "members = [\"hq1\", \"hq2\"]\ntopology = \"custom\"\n\n[[connections]]\ndownstream = \"hq2\"\n\
             upstream = \"hq1\"\n"
                .into(),
            Object::Group(
                name("odd"),
                Group {
                    members: vec![name("hq1"), name("hq2")],
                    topology: Topology::Custom(vec![connection("hq2", "hq1")]),
                },
            ),
        ),
        (
            "folders/web/site.toml",
            "id = \"07070707070707070707070707070707\"\nprimary = \"hq1\"\npolicy = \"preserve\"\n\
             names = \"windows\"\n"
                .into(),
            Object::Folder(
                "web/site".parse().unwrap(),
                Folder { id: FolderId([7; 16]), primary: name("hq1"), policy: Policy::Preserve, names: Names::Windows },
            ),
        ),
        (
            "memberships/web/site/hq1.toml",
            "path = \"/srv/site\"\nstaging_bytes = 10737418240\n".into(),
            Object::Membership(
                "web/site".parse().unwrap(),
                name("hq1"),
                Membership { path: "/srv/site".into(), staging_bytes: Some(10 << 30), ..Membership::default() },
            ),
        ),
    ];
    for (file, text, object) in cases {
        assert_eq!(parse(file, &text).as_ref(), Ok(&object), "{file}");
        assert_eq!(object.to_text(), text, "{file}");
        assert_eq!(object.file(), file);
    }
}

#[test]
fn what_may_be_left_out() {
    let folder = parse("folders/web/site.toml", &format!("id = '{}'\nprimary = 'hq1'", "0".repeat(32)));
    assert!(matches!(folder, Ok(Object::Folder(_, Folder { policy: Policy::Preserve, names: Names::Bytes, .. }))));
    let member = parse("members/hq1.toml", &format!("# by hand\nkey = '{KEY}'"));
    assert!(matches!(member, Ok(Object::Member(_, Member { addresses, .. })) if addresses.is_empty()));
}

#[test]
fn wrong_texts_are_named_by_file_line_and_key() {
    let member = |rest: &str| format!("key = '{KEY}'\n{rest}");
    let folder = |rest: &str| format!("id = '{}'\n{rest}", "0".repeat(32));
    let cases = [
        (
            "members/hq1.toml",
            member("addreses = []"),
            "members/hq1.toml, line 2, key `addreses`: unknown key `addreses`, expected `key` or `addresses`",
        ),
        ("members/hq1.toml", String::new(), "members/hq1.toml: missing key `key`"),
        (
            "members/hq1.toml",
            "key = 7".into(),
            "members/hq1.toml, line 1, key `key`: invalid type: integer `7`, expected a string",
        ),
        (
            "members/hq1.toml",
            "key = 'abc'".into(),
            "members/hq1.toml, line 1, key `key`: a key's fingerprint has 52 characters, this has 3",
        ),
        (
            "members/hq1.toml",
            member("addresses = [\n  'a:1',\n  'b',\n]"),
            "members/hq1.toml, line 4, key `addresses`: `b` is no address: it has no port; addresses are HOST:PORT or [IPv6]:PORT",
        ),
        ("members/hq1.toml", "\nkey = ".into(), "members/hq1.toml, line 2, key `key`: "),
        ("members/hq1.toml", member(&format!("key = '{KEY}'")), "members/hq1.toml, line 2, key `key`: duplicate key"),
        (
            "groups/web.toml",
            "members = ['HQ1']\ntopology = 'mesh'".into(),
            "groups/web.toml, line 1, key `members`: the name `HQ1` has 'H'; names are made of a to z, digits, `.`, `_` and `-`",
        ),
        (
            "groups/web.toml",
            "members = []\ntopology = 'ring'".into(),
            "groups/web.toml, line 2, key `topology`: `ring` is no topology; there are mesh, hub:NAME, chain and custom",
        ),
        (
            "groups/web.toml",
            "members = []\ntopology = 'hub:'".into(),
            "groups/web.toml, line 2, key `topology`: a name cannot be empty",
        ),
        (
            "groups/web.toml",
            "members = []\ntopology = 'mesh'\nconnections = [{ downstream = 'a', upstream = 'b' }]".into(),
            "groups/web.toml, line 2, key `topology`: connections are listed only where the topology is `custom`",
        ),
        (
            "groups/web.toml",
            "members = []\ntopology = 'custom'\n[[connections]]\ndownstream = 'a'\nupstream = 'B'".into(),
            "groups/web.toml, line 5, key `upstream`: the name `B` has 'B'; names are made of a to z, digits, `.`, `_` and `-`",
        ),
        (
            "folders/web/site.toml",
            "id = '7'\nprimary = 'hq1'".into(),
            "folders/web/site.toml, line 1, key `id`: a folder's id has 32 hexadecimal digits",
        ),
        (
            "folders/web/site.toml",
            folder("primary = 'hq1'\npolicy = 'drop'"),
            "folders/web/site.toml, line 3, key `policy`: unknown variant `drop`, expected `preserve` or `keep`",
        ),
        (
            "memberships/web/site/hq1.toml",
            "path = 'srv'".into(),
            "memberships/web/site/hq1.toml, line 1, key `path`: the path `srv` is not absolute: it must begin with a slash",
        ),
        (
            "memberships/web/site/hq1.toml",
            "path = '/a'\nstaging_bytes = -1".into(),
            "memberships/web/site/hq1.toml, line 2, key `staging_bytes`: invalid value",
        ),
        (
            "memberships/web/site/HQ1.toml",
            "path = '/a'".into(),
            "memberships/web/site/HQ1.toml: the name `HQ1` has 'H'",
        ),
        (
            "members/hq1.toml",
            "#".repeat(OBJECT_BYTES_MAX + 1),
            "members/hq1.toml: an object cannot be longer than 65536 bytes",
        ),
    ];
    for (file, text, want) in cases {
        let error = parse(file, &text).unwrap_err().to_string();
        assert!(error.starts_with(want), "{error}\n{want}");
    }
}

#[test]
fn addresses_and_paths() {
    for good in ["hq1:7400", "hq1.example.org:1", "10.0.0.1:65535", "[::1]:7400", "a_b:1"] {
        assert_eq!(check_address(good), Ok(()), "{good}");
    }
    for bad in
        ["", "hq1", ":7400", "hq1:", "hq1:0", "hq1:65536", "hq1:+1", "::1:7400", "[hq1]:7400", "[fe]:1", "a b:1", "ü:1"]
    {
        assert!(check_address(bad).is_err(), "{bad}");
    }
    for good in ["/srv", "/srv/site", "/srv/ä b/..x"] {
        assert_eq!(check_path(good), Ok(()), "{good}");
    }
    let long = format!("/{}", "x".repeat(256));
    for bad in ["", "srv", "/", "//srv", "/srv/", "/srv/../etc", "/./a", "/a\0b", "/srv/.anabranch/x", &long] {
        assert!(check_path(bad).is_err(), "{bad}");
    }
    let cases = [
        ("/srv", "/srv", true),
        ("/srv/a", "/srv", true),
        ("/srvx", "/srv", false),
        ("/srv", "/srv/a", false),
        ("/srv", "/", true),
        ("/srv/a", "/srv/", true),
    ];
    for (path, root, want) in cases {
        assert_eq!(is_within(path, root), want, "{path} in {root}");
    }
}
