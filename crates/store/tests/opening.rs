//! Opening: what is made, what is refused, and how it is said.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::error::Error;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anabranch_engine::kv::{Kv, KvError, Table};
use anabranch_store::{Opened, Options, SqliteKv};

fn open(path: &Path) -> Result<(SqliteKv, Opened), KvError> {
    SqliteKv::open(path, Options::default())
}

fn refused(path: &Path) -> (bool, String) {
    let e = open(path).unwrap_err();
    (e.damaged, e.source().unwrap().to_string())
}

fn put(kv: &mut SqliteKv, key: &[u8]) {
    kv.begin().unwrap();
    kv.put(Table::Records, key, b"value").unwrap();
    kv.commit().unwrap();
}

#[test]
fn the_first_opening_makes_it_and_the_next_finds_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database.db");
    let (mut kv, opened) = open(&path).unwrap();
    assert_eq!(opened, Opened { created: true, upgraded_from: None, log_left: false });
    put(&mut kv, b"key");
    assert_eq!(kv.commits(), 1);
    kv.close().unwrap();
    let (kv, opened) = open(&path).unwrap();
    assert_eq!(opened, Opened { created: false, upgraded_from: None, log_left: false });
    assert_eq!(kv.get(Table::Records, b"key").unwrap().as_deref(), Some(&b"value"[..]));
    assert_eq!(kv.get(Table::Meta, b"key").unwrap(), None);
}

#[test]
fn a_drop_takes_back_what_was_not_committed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database.db");
    let (mut kv, _) = open(&path).unwrap();
    put(&mut kv, b"kept");
    kv.begin().unwrap();
    kv.put(Table::Records, b"open", b"value").unwrap();
    assert!(kv.get(Table::Records, b"open").unwrap().is_some());
    drop(kv);
    let (kv, _) = open(&path).unwrap();
    assert_eq!(kv.range(Table::Records, b"", None, 9).unwrap(), [(b"kept".to_vec(), b"value".to_vec())]);
}

#[test]
fn a_log_that_was_left_is_taken_in_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database.db");
    let (mut kv, _) = open(&path).unwrap();
    put(&mut kv, b"key");
    let copy = dir.path().join("copy.db");
    fs::copy(&path, &copy).unwrap();
    fs::copy(dir.path().join("database.db-wal"), dir.path().join("copy.db-wal")).unwrap();
    let (kv, opened) = open(&copy).unwrap();
    assert!(opened.log_left && !opened.created);
    assert!(kv.get(Table::Records, b"key").unwrap().is_some());
}

#[test]
fn a_second_opener_is_told_who_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database.db");
    let (first, _) = open(&path).unwrap();
    let message = format!("the database is in use by process {}", std::process::id());
    assert_eq!(refused(&path), (false, message));
    drop(first);
    open(&path).unwrap();
}

#[test]
fn nobody_else_can_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database.db");
    let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
    let (mut kv, _) = open(&path).unwrap();
    put(&mut kv, b"key");
    let files: Vec<String> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(files.contains(&"database.db-wal".to_owned()), "{files:?}");
    for file in &files {
        assert_eq!(mode(file), 0o600, "{file}");
    }
    kv.close().unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    open(&path).unwrap();
    assert_eq!(mode("database.db"), 0o600);
}

#[test]
fn what_is_no_database_is_refused_and_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database.db");
    fs::write(&path, vec![b'x'; 20_000]).unwrap();
    let (damaged, text) = refused(&path);
    assert!(damaged, "{text}");
    let foreign = dir.path().join("foreign.db");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE bookmarks (url)").unwrap();
    let before = fs::read(&foreign).unwrap();
    let (damaged, text) = refused(&foreign);
    assert!(damaged && text.contains("another program"), "{text}");
    assert_eq!(fs::read(&foreign).unwrap(), before);
}

#[test]
fn a_database_of_a_later_version_names_what_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database.db");
    drop(open(&path).unwrap());
    let later = "PRAGMA user_version = 900; INSERT INTO made_by VALUES (900, '7.5.0')";
    rusqlite::Connection::open(&path).unwrap().execute_batch(later).unwrap();
    let text = "the file is of a later version of the program: it has schema 900, and needs anabranch 7.5.0";
    assert_eq!(refused(&path), (false, text.to_owned()));
}

#[test]
fn a_symlink_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(&dir.path().join("database.db")).unwrap());
    let link = dir.path().join("link.db");
    std::os::unix::fs::symlink(dir.path().join("database.db"), &link).unwrap();
    assert!(!open(&link).unwrap_err().damaged);
}

#[test]
fn damage_is_found_and_called_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database.db");
    let (mut kv, _) = open(&path).unwrap();
    kv.begin().unwrap();
    for n in 0..4_000u32 {
        kv.put(Table::Records, &n.to_be_bytes(), &[7; 100]).unwrap();
    }
    kv.commit().unwrap();
    kv.check().unwrap();
    kv.close().unwrap();
    let whole = fs::read(&path).unwrap();
    let page = 8192;
    assert!(whole.len() > 60 * page);
    let mut bytes = whole.clone();
    bytes[40 * page..60 * page].fill(0x55);
    fs::write(&path, &bytes).unwrap();
    let (kv, _) = open(&path).unwrap();
    assert!(kv.check().unwrap_err().damaged);
    assert!(kv.range(Table::Records, b"", None, 10_000).unwrap_err().damaged);
    drop(kv);
    fs::write(&path, &whole[..30 * page]).unwrap();
    assert!(open(&path).and_then(|(kv, _)| kv.check()).unwrap_err().damaged);
}

#[test]
fn misuse_is_an_error_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut kv, _) = open(&dir.path().join("database.db")).unwrap();
    assert!(kv.put(Table::Meta, b"a", b"").is_err());
    assert!(kv.delete(Table::Meta, b"a").is_err());
    assert!(kv.commit().is_err());
    assert!(kv.rollback().is_err());
    kv.begin().unwrap();
    assert!(kv.begin().is_err());
    assert!(kv.put(Table::Meta, &[0; 1025], b"").is_err());
    assert!(kv.put(Table::Meta, b"a", &vec![0; (1 << 20) + 1]).is_err());
    kv.put(Table::Meta, &[0; 1024], &vec![1; 1 << 20]).unwrap();
    kv.put(Table::Meta, b"", b"the empty key").unwrap();
    kv.delete(Table::Meta, b"absent").unwrap();
    kv.commit().unwrap();
    assert_eq!(kv.range(Table::Meta, b"", None, 0).unwrap(), []);
    assert_eq!(kv.last(Table::Meta).unwrap().unwrap().1.len(), 1 << 20);
    assert_eq!(kv.get(Table::Meta, b"").unwrap().as_deref(), Some(&b"the empty key"[..]));
}
