//! The metadata database: [`anabranch_engine::kv::Kv`] kept by SQLite ([`SqliteKv`]), or in memory ([`MemoryKv`]).
//!
//! Owns the database file of one membership, its lock, its schema and how a schema is upgraded. It must never know what
//! the tables mean: keys and values are bytes, and what they hold is decided in `engine` and `model`.
//!
//! ```
//! use anabranch_engine::kv::{Kv, Table};
//! use anabranch_store::{Options, SqliteKv};
//!
//! let dir = tempfile::tempdir()?;
//! let (mut kv, opened) = SqliteKv::open(&dir.path().join("database.db"), Options::default())?;
//! assert!(opened.created);
//! kv.begin()?;
//! kv.put(Table::Meta, b"name", b"value")?;
//! kv.commit()?; // Durable from here on.
//! assert_eq!(kv.get(Table::Meta, b"name")?.as_deref(), Some(&b"value"[..]));
//! kv.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cache;
mod lock;
mod reserve;
mod schema;
mod sqlite;

pub use anabranch_engine::MemoryKv;
pub use sqlite::{Opened, Options, SCHEMA, SqliteKv};
