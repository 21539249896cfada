//! One writer, whatever he does: at rest every member has exactly his tree (invariant *Intent*). A git repository, a
//! SQLite database and a Cargo project are writers that rename, lock, map and delete as few people would.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use e2e::cluster::Cluster;
use e2e::program::tool;
use e2e::random::Random;
use e2e::skip;
use e2e::snapshot::Snapshot;
use e2e::trees;

fn git(dir: &Path, arguments: &[&str]) -> Result<String> {
    tool(dir, "git", arguments)
}

/// Copies a member's tree and opens the copy: looking must not change what is looked at.
fn in_a_copy(tree: &Path, look: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let copy = e2e::cluster::scratch()?;
    tool(copy.path(), "cp", &["-a", "--", &format!("{}/.", tree.display()), "."])?;
    look(copy.path())
}

#[test]
fn a_git_repository_is_worked_in_while_it_is_replicated() -> Result<()> {
    if !skip::programs_or_skip(&["git"]) {
        return Ok(());
    }
    let cluster = Cluster::mesh(3)?;
    let mut random = Random::for_test("git");
    let origin = cluster.dir().join("origin");
    fs::create_dir(&origin)?;
    git(&origin, &["init", "--quiet", "--initial-branch=main"])?;
    for round in 0..5 {
        trees::many(&origin, 100 + round * 20, &mut random)?;
        git(&origin, &["add", "--all"])?;
        git(&origin, &["commit", "--quiet", "--message", &format!("round {round}")])?;
    }
    let tree = cluster.members[0].tree();
    git(&tree, &["clone", "--quiet", "--no-hardlinks", &origin.display().to_string(), "clone"])?;
    let clone = tree.join("clone");
    for round in 0..10 {
        trees::many(&clone.join("work"), 40, &mut random)?;
        fs::remove_dir_all(clone.join("work/d000"))?;
        git(&clone, &["add", "--all"])?;
        git(&clone, &["commit", "--quiet", "--message", &format!("work {round}")])?;
        git(&clone, &["checkout", "--quiet", "HEAD~2"])?;
        git(&clone, &["checkout", "--quiet", "main"])?;
        if round % 4 == 3 {
            git(&clone, &["gc", "--quiet", "--prune=now"])?;
        }
    }
    git(&clone, &["mv", "work", "worked"])?;
    git(&clone, &["commit", "--quiet", "--message", "a new name"])?;
    cluster.settle()?;
    cluster.expect_intent(&Snapshot::take(&tree)?)?;
    for member in &cluster.members {
        in_a_copy(&member.tree().join("clone"), |copy| {
            git(copy, &["fsck", "--full", "--strict"])?;
            let state = git(copy, &["status", "--porcelain"])?;
            ensure!(state.is_empty(), "{}: git sees changes:\n{state}", member.name);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_sqlite_database_is_written_while_it_is_replicated() -> Result<()> {
    if !skip::programs_or_skip(&["sqlite3"]) {
        return Ok(());
    }
    let cluster = Cluster::mesh(3)?;
    let tree = cluster.members[0].tree();
    for mode in ["wal", "delete", "truncate"] {
        let file = format!("{mode}.db");
        tool(&tree, "sqlite3", &[&file, &format!("PRAGMA journal_mode={mode}; CREATE TABLE t(id INTEGER, v BLOB);")])?;
        for round in 0..15 {
            let statements = format!(
                "BEGIN; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<200) \
                 INSERT INTO t SELECT {round}*1000+i, randomblob(500) FROM n; COMMIT; \
                 DELETE FROM t WHERE id%7={round}%7; UPDATE t SET v=randomblob(300) WHERE id%5=0;"
            );
            tool(&tree, "sqlite3", &[&file, &statements])?;
        }
    }
    cluster.settle()?;
    cluster.expect_intent(&Snapshot::take(&tree)?)?;
    let rows = |dir: &Path, file: &str| tool(dir, "sqlite3", &[file, "SELECT count(*), total(id) FROM t;"]);
    for member in &cluster.members {
        in_a_copy(&member.tree(), |copy| {
            for file in ["wal.db", "delete.db", "truncate.db"] {
                let check = tool(copy, "sqlite3", &[file, "PRAGMA integrity_check;"])?;
                ensure!(check == "ok", "{}: {file}: {check}", member.name);
                ensure!(rows(copy, file)? == rows(&tree, file)?, "{}: {file} has other rows", member.name);
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_cargo_project_is_compiled_while_it_is_replicated() -> Result<()> {
    let cluster = Cluster::mesh(3)?;
    let tree = cluster.members[0].tree();
    let project = tree.join("project");
    trees::write(
        &project.join("Cargo.toml"),
        b"[package]\nname = \"greeter\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
    )?;
    trees::write(&project.join("src/lib.rs"), b"pub fn greeting() -> &'static str { \"good morning\" }\n")?;
    trees::write(&project.join("src/main.rs"), b"fn main() { print!(\"{}\", greeter::greeting()) }\n")?;
    let build = |dir: &Path| {
        // Within the tree, whatever the outer build uses.
        tool(dir, "env", &["-u", "CARGO_TARGET_DIR", "-u", "RUSTFLAGS", "cargo", "build", "--offline", "--quiet"])
    };
    build(&project)?;
    trees::write(&project.join("src/lib.rs"), b"pub fn greeting() -> &'static str { \"good evening\" }\n")?;
    build(&project)?;
    cluster.settle()?;
    cluster.expect_intent(&Snapshot::take(&tree)?)?;
    for member in &cluster.members {
        let program = member.tree().join("project/target/debug/greeter");
        let said = tool(&member.tree(), &program.display().to_string(), &[] as &[&str])?;
        ensure!(said == "good evening", "{}: {said}", member.name);
        in_a_copy(&member.tree().join("project"), |copy| build(copy).map(drop))?;
    }
    Ok(())
}

#[test]
fn editors_save_in_their_own_ways_and_every_version_is_one_file() -> Result<()> {
    let cluster = Cluster::mesh(2)?;
    let tree = cluster.members[0].tree();
    let path = tree.join("text");
    trees::write(&path, b"version 0")?;
    cluster.settle()?;
    // In place; write beside and rename over; backup first, then anew under the old name; through a swap of names.
    for (version, way) in ["place", "beside", "backup", "swap"].iter().enumerate() {
        let bytes = format!("version {} by {way}", version + 1);
        match *way {
            "place" => fs::write(&path, &bytes)?,
            "beside" => {
                fs::write(tree.join("text.tmp"), &bytes)?;
                fs::rename(tree.join("text.tmp"), &path)?;
            }
            "backup" => {
                fs::rename(&path, tree.join("text~"))?;
                fs::write(&path, &bytes)?;
                fs::remove_file(tree.join("text~"))?;
            }
            _ => {
                fs::write(tree.join("text.new"), &bytes)?;
                fs::rename(&path, tree.join("text.old"))?;
                fs::rename(tree.join("text.new"), &path)?;
                fs::remove_file(tree.join("text.old"))?;
            }
        }
        cluster.settle()?;
        cluster.expect_intent(&Snapshot::take(&tree)?)?;
    }
    ensure!(fs::read(cluster.members[1].tree().join("text"))? == b"version 4 by swap");
    Ok(())
}

#[test]
fn a_log_that_is_appended_to_and_rotated_arrives() -> Result<()> {
    use std::io::Write as _;
    let cluster = Cluster::mesh(2)?;
    let tree = cluster.members[0].tree();
    let log = tree.join("log");
    for line in 0..600 {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(&log)?;
        writeln!(file, "line {line}")?;
        if line % 100 == 99 {
            for number in (1..4).rev() {
                let old = tree.join(format!("log.{number}"));
                if old.exists() {
                    fs::rename(&old, tree.join(format!("log.{}", number + 1)))?;
                }
            }
            fs::rename(&log, tree.join("log.1"))?;
        }
    }
    cluster.settle()?;
    cluster.expect_intent(&Snapshot::take(&tree)?)
}
