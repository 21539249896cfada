//! A small repository that breaks no rule, and the same with each rule broken in turn.

use super::{Finding, all};
use crate::repository::Repository;

const CLIPPY: &str = r#"
disallowed-methods = [{ path = "std::time::Instant::now" }, "std::time::SystemTime::now"]
disallowed-types = [{ path = "std::collections::HashMap" }, { path = "std::collections::HashSet" }]
"#;

fn crate_manifest(name: &str, rest: &str) -> String {
    format!("[package]\nname = \"{name}\"\n{rest}")
}

fn sound() -> Repository {
    let mut repository = Repository::default();
    let mut put = |path: &str, text: &str| {
        repository.files.insert(path.to_owned(), text.to_owned());
    };
    put(
        "Cargo.toml",
        "[workspace]\nmembers = [\"crates/volume\", \"crates/store\", \"crates/engine\", \"crates/domain\", \"crates/model\", \"sim\"]\n",
    );
    put("Cargo.lock", "[[package]]\nname = \"x\"\n");
    put(
        "crates/store/Cargo.toml",
        &crate_manifest("anabranch-store", "[dependencies]\nanabranch-engine = {}\nrusqlite = \"1\"\n"),
    );
    put(
        "crates/engine/Cargo.toml",
        &crate_manifest("anabranch-engine", "[dependencies]\nanabranch-model = {}\nthiserror = \"2\"\n"),
    );
    put(
        "crates/domain/Cargo.toml",
        &crate_manifest("anabranch-domain", "[dependencies]\nanabranch-model = {}\nserde = \"1\"\n"),
    );
    put("crates/model/Cargo.toml", &crate_manifest("anabranch-model", "[dev-dependencies]\nproptest = \"1\"\n"));
    put("crates/volume/Cargo.toml", &crate_manifest("anabranch-volume", "[dependencies]\nanabranch-store = {}\n"));
    put("sim/Cargo.toml", &crate_manifest("sim", "[dependencies]\nanabranch-store = {}\n"));
    for dir in ["engine", "domain", "model"] {
        put(&format!("crates/{dir}/clippy.toml"), CLIPPY);
        put(&format!("crates/{dir}/src/lib.rs"), "//! Owns rules.\nuse std::time::Duration;\n// std::fs is not ours\n");
    }
    put(
        "crates/store/src/lib.rs",
        "//! Owns tables.\nuse std::{fs, collections::HashMap};\nfn f() { std::thread::sleep(d) }\n",
    );
    put("sim/src/main.rs", "//! Owns worlds.\nfn main() {}\n");
    put("tests/src/until.rs", "//! Owns waiting.\nfn f() { std::thread::sleep(d) }\n");
    put(
        "README.md",
        "See [the design](docs/design.md#words), [the folder](docs), [elsewhere](https://example.org/x).\n",
    );
    put("docs/design.md", "Under {dir}/work/x. Back to [the start](../README.md).\n```\n[not a link](nowhere)\n```\n");
    repository
}

fn with(path: &str, text: &str) -> Vec<Finding> {
    let mut repository = sound();
    repository.files.insert(path.to_owned(), text.to_owned());
    all(&repository)
}

#[test]
fn a_sound_repository_has_no_findings() {
    assert_eq!(all(&sound()), []);
}

#[test]
fn each_rule_broken_in_turn_is_reported_where_it_is_broken() {
    let absolute = format!("cd {}work{}main\n", "/", "/");
    let shared = format!("see ..{}shared{}style.md\n", "/", "/");
    let store = |rest: &str| crate_manifest("anabranch-store", rest);
    let engine = |rest: &str| crate_manifest("anabranch-engine", rest);
    let lock = "[[package]]\n".repeat(261);
    let cases: Vec<(&str, &str, String, &str, usize)> = vec![
        // what is broken, file, its text, rule, line
        ("arrow up", "crates/store/Cargo.toml", store("[dependencies]\nanabranch-volume = {}\n"), "layers", 0),
        (
            "arrow up in a build",
            "crates/store/Cargo.toml",
            store("[build-dependencies]\nanabranch-volume = {}\n"),
            "layers",
            0,
        ),
        (
            "arrow to itself",
            "crates/store/Cargo.toml",
            store("[dev-dependencies]\nanabranch-store = {}\n"),
            "layers",
            0,
        ),
        (
            "arrow under another name",
            "crates/store/Cargo.toml",
            store("[dependencies]\ns = { package = \"anabranch-volume\" }\n"),
            "layers",
            0,
        ),
        (
            "arrow for one target",
            "crates/store/Cargo.toml",
            store("[target.'cfg(unix)'.dependencies]\nanabranch-volume = {}\n"),
            "layers",
            0,
        ),
        (
            "arrow to a tool",
            "crates/store/Cargo.toml",
            crate_manifest("anabranch-store", "[dependencies]\nsim = {}\n"),
            "layers",
            0,
        ),
        ("crate outside the workspace", "crates/new/Cargo.toml", crate_manifest("new", ""), "layers", 0),
        ("broken manifest", "crates/engine/Cargo.toml", "[package".to_owned(), "layers", 0),
        ("too many packages", "Cargo.lock", lock, "packages", 0),
        ("runtime in a pure crate", "crates/engine/Cargo.toml", engine("[dependencies]\ntokio = \"1\"\n"), "purity", 0),
        (
            "randomness in a pure crate",
            "crates/model/Cargo.toml",
            crate_manifest("anabranch-model", "[dependencies]\ngetrandom = \"1\"\n"),
            "purity",
            0,
        ),
        (
            "lints let a clock through",
            "crates/model/clippy.toml",
            CLIPPY.replace("Instant::now", "Instant::elapsed"),
            "purity",
            0,
        ),
        ("lints let an order through", "crates/domain/clippy.toml", CLIPPY.replace("HashSet", "BTreeSet"), "purity", 0),
        (
            "clock",
            "crates/engine/src/a.rs",
            "//! Owns.\nfn f() { std::time::Instant::now(); }\n".to_owned(),
            "purity",
            2,
        ),
        (
            "clock by use",
            "crates/engine/src/a.rs",
            "//! Owns.\nuse std::{cmp, time::{Duration, SystemTime}};\n".to_owned(),
            "purity",
            2,
        ),
        ("disk", "crates/engine/src/a.rs", "//! Owns.\n\nuse std::{fs as f};\n".to_owned(), "purity", 3),
        ("socket", "crates/domain/src/a.rs", "//! Owns.\nfn f(x: std::net::TcpStream) {}\n".to_owned(), "purity", 2),
        ("thread", "crates/model/src/a.rs", "//! Owns.\nuse std::thread::spawn;\n".to_owned(), "purity", 2),
        ("environment", "crates/model/src/a.rs", "//! Owns.\nfn f() { std::env::var(x); }\n".to_owned(), "purity", 2),
        (
            "order",
            "crates/model/src/a.rs",
            "//! Owns.\nuse std::collections::*;\nfn f(m: HashMap<u8, u8>) {}\n".to_owned(),
            "purity",
            3,
        ),
        ("no head", "crates/store/src/a.rs", "use x;\n//! Owns.\n".to_owned(), "head", 1),
        ("stub", "crates/store/src/a.rs", "//! Owns.\nfn f() { todo!() }\n".to_owned(), "unfinished", 2),
        (
            "another stub",
            "crates/store/src/a.rs",
            "//! Owns.\nfn f() { unimplemented!(\"x\") }\n".to_owned(),
            "unfinished",
            2,
        ),
        (
            "test left out",
            "crates/store/src/a.rs",
            "//! Owns.\n#[ignore = \"slow\"]\nfn f() {}\n".to_owned(),
            "ignored",
            2,
        ),
        (
            "sleep in a test",
            "crates/store/tests/a.rs",
            "//! Owns.\nfn f() { std::thread::sleep(d); }\n".to_owned(),
            "sleep",
            2,
        ),
        (
            "sleep in a test module",
            "crates/store/src/a.rs",
            "//! Owns.\n#[cfg(test)]\nmod tests {\n use std::thread::sleep;\n}\n".to_owned(),
            "sleep",
            4,
        ),
        (
            "sleep in the simulator",
            "sim/src/world.rs",
            "//! Owns.\nuse std::thread;\nfn f() { thread::sleep(d); }\n".to_owned(),
            "sleep",
            3,
        ),
        (
            "unsafe outside volume",
            "crates/store/src/a.rs",
            "//! Owns.\n#![allow(unsafe_code, reason = \"x\")]\n".to_owned(),
            "unsafe",
            2,
        ),
        ("machine path", "README.md", absolute, "machine path", 1),
        ("path beside the repository", "README.md", shared, "machine path", 1),
        ("dead link", "docs/design.md", "\nSee [this](adr/0001-x.md).\n".to_owned(), "link", 2),
    ];
    for (what, path, text, rule, line) in cases {
        let found = with(path, &text);
        assert!(
            found.iter().any(|finding| finding.path == path && finding.rule == rule && finding.line == line),
            "{what}: no finding `{rule}` at {path}:{line} in {found:?}"
        );
        let others: Vec<&Finding> = found.iter().filter(|finding| finding.rule != rule).collect();
        assert!(others.is_empty(), "{what}: also found {others:?}");
    }
}

#[test]
fn a_missing_lint_file_or_manifest_is_reported() {
    for path in ["crates/engine/clippy.toml", "crates/engine/Cargo.toml", "Cargo.toml"] {
        let mut repository = sound();
        repository.files.remove(path);
        assert!(all(&repository).iter().any(|finding| finding.path == path), "{path}");
    }
}

#[test]
fn words_in_comments_and_strings_break_nothing() {
    let text =
        "//! Owns.\n// std::fs, todo!(), #[ignore]\nconst A: &str = \"std::fs todo!() HashMap\";\n/* Instant */\n";
    assert_eq!(with("crates/engine/src/a.rs", text), []);
}
