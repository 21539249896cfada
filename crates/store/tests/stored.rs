//! A stored file of every schema opens and keeps what it held.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use anabranch_engine::kv::{Kv, Table};
use anabranch_store::{Options, SCHEMA, SqliteKv};

#[test]
fn a_file_of_every_schema_opens_with_what_it_held() {
    for schema in 1..=SCHEMA {
        let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/schema-{schema}.db"));
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("database.db");
        std::fs::copy(&stored, &path).unwrap_or_else(|e| panic!("{}: {e}", stored.display()));
        let (kv, opened) = SqliteKv::open(&path, Options::default()).unwrap();
        assert_eq!(opened.upgraded_from, Some(schema).filter(|&s| s < SCHEMA));
        assert!(!opened.created);
        kv.check().unwrap();
        // Tables that came with a later schema hold nothing.
        for table in Table::ALL.into_iter().filter(|&t| schema > 1 || t <= Table::Tombstones) {
            let value = kv.get(table, &[table as u8, 0, 0xff]).unwrap();
            assert_eq!(value.as_deref(), Some(format!("{table:?}").as_bytes()), "schema {schema}");
        }
    }
}
