//! Writes the file that `tests/stored.rs` upgrades: a small database of the newest schema, with a pair in every table.
//!
//! Run it once for each new schema, with the path of the file to make, and keep the file:
//! `cargo run -p anabranch-store --example schema_file -- crates/store/tests/data/schema-N.db`

use std::error::Error;
use std::path::PathBuf;

use anabranch_engine::kv::{Kv, Table};
use anabranch_store::{Options, SqliteKv};

fn main() -> Result<(), Box<dyn Error>> {
    let path = PathBuf::from(std::env::args_os().nth(1).ok_or("which file?")?);
    let (mut kv, opened) = SqliteKv::open(&path, Options::default())?;
    if !opened.created {
        return Err("the file exists; a stored file never changes".into());
    }
    kv.begin()?;
    for table in Table::ALL {
        kv.put(table, &[table as u8, 0, 0xff], format!("{table:?}").as_bytes())?;
    }
    kv.commit()?;
    kv.close()?;
    std::fs::remove_file(path.with_extension("lock"))?;
    Ok(())
}
