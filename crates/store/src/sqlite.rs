//! [`SqliteKv`]: the database in one SQLite file.
//!
//! What the settings are for (measured in the design's dependency notes, and by `examples/inserts.rs`):
//! - write-ahead log with `synchronous = FULL`: a commit is one append and one fsync, and durable when it returns;
//! - 8 KiB pages, a checkpoint every 8,000 of them, the log cut to 128 MiB when it was longer;
//! - exclusive locking: no shared-memory file, and no lock and unlock around each read;
//! - `REPLACE INTO` a table without row id whose only index is its key: one descent of the tree for each put.
//!
//! What a transaction writes waits in memory, at most [`PENDING_BYTES_MAX`] of it, and is given to SQLite in the order of the
//! keys: a row written twice is written once, and neighbours are found on pages that are at hand. Reads look there first.
//!
//! A copy of the database file and its log, taken together at any instant between two calls, is a database that holds all
//! that was committed then.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anabranch_engine::kv::{Kv, KvError, Pair, Table};
use rusqlite::config::DbConfig;
use rusqlite::{CachedStatement, Connection, ErrorCode, OpenFlags, OptionalExtension, Row, ffi};

use crate::cache::Cache;
use crate::lock::Lock;
use crate::reserve::{Reserve, Room};
use crate::schema::{self, STEPS, Was};

/// The longest key, bytes.
const KEY_BYTES_MAX: usize = 1024;
/// The longest value, bytes.
const VALUE_BYTES_MAX: usize = 1 << 20;
const PAGE_BYTES: u32 = 8192;
const CHECKPOINT_PAGES: u32 = 8000;
const LOG_BYTES_KEPT: u32 = 128 << 20;
/// Bytes that a transaction may have written and not yet given to SQLite.
const PENDING_BYTES_MAX: usize = 4 << 20;
/// What a pending row costs beside its bytes.
const PENDING_ROW_BYTES: usize = 64;
/// So many pending rows are merged into the answer to a question about a range; where there are more, SQLite gets them.
const MERGED_MAX: usize = 64;

/// The schema that this version of the program writes.
pub const SCHEMA: u32 = schema::newest(STEPS);

/// The part of the memory for pages that rows may take besides it.
const ROWS_SHARE: u64 = 2;

/// How a database is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Most memory for pages, bytes; rows kept in memory take half of it besides. 64 MiB unless set.
    pub cache_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20 }
    }
}

/// What was found when a database was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// There was none, or an empty file: it holds nothing.
    pub created: bool,
    /// It was of this older schema, and has been upgraded.
    pub upgraded_from: Option<u32>,
    /// A write-ahead log lay there: the last user did not close the database. Its commits have been taken in.
    pub log_left: bool,
}

/// The statements of one table, as SQL.
#[derive(Debug)]
struct Statements {
    get: String,
    put: String,
    delete: String,
    range: String,
    range_open: String,
    last: String,
}

impl Statements {
    fn of(table: Table) -> Self {
        let t = schema::name(table);
        Self {
            get: format!("SELECT v FROM {t} WHERE k = ?1"),
            put: format!("REPLACE INTO {t} VALUES (?1, ?2)"),
            delete: format!("DELETE FROM {t} WHERE k = ?1"),
            range: format!("SELECT k, v FROM {t} WHERE k >= ?1 AND k < ?3 ORDER BY k LIMIT ?2"),
            range_open: format!("SELECT k, v FROM {t} WHERE k >= ?1 ORDER BY k LIMIT ?2"),
            last: format!("SELECT k, v FROM {t} ORDER BY k DESC LIMIT 1"),
        }
    }

    /// How many they are.
    const COUNT: usize = 6;
}

/// Where the transaction stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    /// None is under way.
    No,
    /// Under way.
    Open,
    /// A write of it failed, so it can only be taken back. SQLite may have done that by itself.
    Broken,
}

/// A metadata database in a SQLite file. One opener at a time; a drop closes it, and takes back an open transaction.
#[derive(Debug)]
pub struct SqliteKv {
    db: Connection,
    statements: Vec<Statements>,
    change: Cell<Change>,
    commits: u64,
    rows: RefCell<Cache>,
    pending: RefCell<Pending>,
    last_keys: RefCell<LastKeys>,
    // The last fields: released only when the database is closed.
    reserve: Reserve,
    _lock: Lock,
}

/// Of one table, by key.
type Changed = BTreeMap<Box<[u8]>, Option<Box<[u8]>>>;

/// Rows that the transaction under way has written, by table, and SQLite has not; `None`: to be deleted.
#[derive(Debug)]
struct Pending {
    tables: Vec<Changed>,
    bytes: usize,
}

impl Pending {
    fn new() -> Self {
        Self { tables: vec![BTreeMap::new(); Table::ALL.len()], bytes: 0 }
    }

    fn clear(&mut self) {
        self.tables.iter_mut().for_each(BTreeMap::clear);
        self.bytes = 0;
    }

    /// At most `limit` of them with `from <= key`, and `key < to` where `to` is given.
    fn range(&self, table: Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Vec<(&[u8], Option<&[u8]>)> {
        let rows = &self.tables[table as usize];
        if rows.is_empty() || to.is_some_and(|to| to <= from) {
            return Vec::new();
        }
        let bounds = (Bound::Included(from), to.map_or(Bound::Unbounded, Bound::Excluded));
        rows.range::<[u8], _>(bounds).take(limit).map(|(key, value)| (&**key, value.as_deref())).collect()
    }
}

/// Of each table a key that none which SQLite has is beyond: what is asked for beyond it is not there, and need not be asked of
/// SQLite. Most of what a first sync asks for in vain is: numbers and identifiers rise.
///
/// It only ever rises, whatever is deleted or taken back: a key too high costs a question, and nothing else.
#[derive(Debug)]
struct LastKeys(Vec<LastKey>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum LastKey {
    /// SQLite has not been asked.
    Unknown,
    /// The table is empty.
    None,
    /// This one, or one before it.
    Some(Box<[u8]>),
}

impl LastKeys {
    fn new() -> Self {
        Self(vec![LastKey::Unknown; Table::ALL.len()])
    }

    /// SQLite is about to get a row.
    fn raise(&mut self, table: Table, key: &[u8]) {
        let last = &mut self.0[table as usize];
        match last {
            LastKey::Unknown => {}
            LastKey::Some(before) if &**before >= key => {}
            LastKey::None | LastKey::Some(_) => *last = LastKey::Some(key.into()),
        }
    }
}

/// Rows of the database with what the transaction has changed of them, ascending, at most `limit`.
fn merged(stored: Vec<Pair>, changed: &[(&[u8], Option<&[u8]>)], limit: usize) -> Vec<Pair> {
    let mut out = Vec::with_capacity(limit.min(stored.len() + changed.len()));
    let mut stored = stored.into_iter().peekable();
    let mut changed = changed.iter().peekable();
    while out.len() < limit {
        let (row, change) = (stored.peek().map(|(key, _)| &key[..]), changed.peek().map(|(key, _)| *key));
        let from_change = match (row, change) {
            (None, None) => break,
            (Some(row), Some(change)) => change <= row,
            (row, _) => row.is_none(),
        };
        if !from_change {
            out.extend(stored.next());
            continue;
        }
        if row == change {
            stored.next();
        }
        out.extend(changed.next().and_then(|(key, value)| value.map(|value| (key.to_vec(), value.to_vec()))));
    }
    out
}

#[derive(Debug, thiserror::Error)]
enum Misuse {
    #[error("no transaction is under way")]
    NoTransaction,
    #[error("a transaction is under way already")]
    Nested,
    #[error("a write of this transaction failed, so it can only be taken back")]
    Broken,
    #[error("a key of {0} bytes is too long")]
    Key(usize),
    #[error("a value of {0} bytes is too long")]
    Value(usize),
    #[error("the database cannot keep a write-ahead log here (its journal mode is {0})")]
    Journal(String),
}

/// What the check of the whole database found.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Found(String);

/// Says what an error of SQLite means: the file is damaged, or an operation could not be done.
pub(crate) fn explain(doing: &'static str, e: rusqlite::Error) -> KvError {
    let damaged = match &e {
        rusqlite::Error::SqliteFailure(cause, _) => {
            matches!(cause.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::TypeMismatch)
                || matches!(cause.extended_code, ffi::SQLITE_IOERR_CORRUPTFS | ffi::SQLITE_IOERR_DATA)
        }
        // A column holds what no put has written.
        rusqlite::Error::InvalidColumnType(..) | rusqlite::Error::IntegralValueOutOfRange(..) => true,
        _ => false,
    };
    if damaged { KvError::damaged(doing, e) } else { KvError::failed(doing, e) }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes the file if it is not there, durably, and lets nobody but its owner read it. SQLite gives its log the same mode.
fn prepare_file(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            file.sync_all()?;
            let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::File::open(directory)?.sync_all()
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            for file in [path.to_owned(), beside(path, "-wal")] {
                match fs::symlink_metadata(&file) {
                    Ok(m) if m.is_file() && m.permissions().mode() & 0o077 != 0 => {
                        fs::set_permissions(&file, Permissions::from_mode(0o600))?;
                    }
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(())
        }
        Err(e) => Err(e),
    }
}

/// What must be set before the file is read, and changes nothing in it: exclusive locking counts only before the log is
/// opened.
fn guard(db: &Connection) -> rusqlite::Result<()> {
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    // Else SQLite looks at the values bound to a statement, and plans it anew whenever they are others.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    db.pragma_update(None, "cell_size_check", 1)
}

fn configure(db: &Connection, options: Options) -> Result<(), KvError> {
    const DOING: &str = "open";
    let sql = |e| explain(DOING, e);
    let set = |name: &str, value: i64| db.pragma_update(None, name, value).map_err(sql);
    // The page size counts only before the first page is written.
    set("page_size", PAGE_BYTES.into())?;
    let mode: String = db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(sql)?;
    if mode != "wal" {
        return Err(KvError::failed(DOING, Misuse::Journal(mode)));
    }
    db.pragma_update(None, "synchronous", "FULL").map_err(sql)?;
    set("wal_autocheckpoint", CHECKPOINT_PAGES.into())?;
    set("journal_size_limit", LOG_BYTES_KEPT.into())?;
    // A negative size is in KiB.
    set("cache_size", -i64::try_from(options.cache_bytes >> 10).unwrap_or(i64::MAX).max(1))
}

impl SqliteKv {
    /// Opens the database in this file; makes it if the file is missing or empty; upgrades it if it is of an older
    /// schema. Locks the file of the same name with the extension `lock`.
    ///
    /// # Errors
    /// [`KvError`]. Damaged: not a database, another program's, or tables missing. Not damaged: in use by another
    /// process, of a later version of the program, or the file system refuses.
    pub fn open(path: &Path, options: Options) -> Result<(Self, Opened), KvError> {
        let lock = Lock::take(&path.with_extension("lock"))?;
        prepare_file(path).map_err(|e| KvError::failed("make the file", e))?;
        let log_left = fs::metadata(beside(path, "-wal")).is_ok_and(|m| m.len() > 0);
        let flags =
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let reserve = Reserve::of(path, beside(path, "-wal")).map_err(|e| KvError::failed("open the file", e))?;
        let mut db = Connection::open_with_flags(path, flags).map_err(|e| explain("open", e))?;
        guard(&db).map_err(|e| explain("open", e))?;
        let was = schema::look(&db, STEPS)?;
        configure(&db, options)?;
        schema::upgrade(&mut db, STEPS, was)?;
        schema::verify(&db)?;
        db.set_prepared_statement_cache_capacity(Table::ALL.len() * Statements::COUNT + 8);
        let statements = Table::ALL.into_iter().map(Statements::of).collect();
        let opened = Opened {
            created: was == Was::Empty,
            upgraded_from: match was {
                Was::Schema(from) if from < SCHEMA => Some(from),
                Was::Schema(_) | Was::Empty => None,
            },
            log_left,
        };
        let rows = RefCell::new(Cache::new(usize::try_from(options.cache_bytes / ROWS_SHARE).unwrap_or(usize::MAX)));
        let (change, pending) = (Cell::new(Change::No), RefCell::new(Pending::new()));
        let last_keys = RefCell::new(LastKeys::new());
        Ok((Self { db, statements, change, commits: 0, rows, pending, last_keys, reserve, _lock: lock }, opened))
    }

    /// How many transactions were committed since it was opened; each costs one fsync.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.commits
    }

    /// Reads the whole database and looks for damage. Takes as long as reading the file does.
    ///
    /// # Errors
    /// [`KvError`], damaged, with the first thing found.
    pub fn check(&self) -> Result<(), KvError> {
        const DOING: &str = "check";
        let found: String =
            self.db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(|e| explain(DOING, e))?;
        if found == "ok" { Ok(()) } else { Err(KvError::damaged(DOING, Found(found))) }
    }

    /// Takes the log into the database file and closes it; an open transaction is taken back.
    ///
    /// # Errors
    /// [`KvError`]. What was committed is durable even then, in the log.
    pub fn close(self) -> Result<(), KvError> {
        self.db.close().map_err(|(_, e)| explain("close", e))
    }

    fn statement(
        &self,
        sql: impl FnOnce(&Statements) -> &String,
        table: Table,
    ) -> rusqlite::Result<CachedStatement<'_>> {
        self.db.prepare_cached(sql(&self.statements[table as usize]))
    }

    /// Nothing may be written outside a transaction; nor after SQLite gave one up by itself, as it does on some errors:
    /// each further write would then be a commit of its own.
    fn writable(&self, doing: &'static str) -> Result<(), KvError> {
        match self.change.get() {
            Change::No => Err(KvError::failed(doing, Misuse::NoTransaction)),
            Change::Broken => Err(KvError::failed(doing, Misuse::Broken)),
            Change::Open if self.db.is_autocommit() => Err(KvError::failed(doing, Misuse::Broken)),
            Change::Open => Ok(()),
        }
    }

    /// A write failed: the transaction can only be taken back.
    fn failed(&self, doing: &'static str, e: rusqlite::Error) -> KvError {
        self.change.set(Change::Broken);
        self.rows.borrow_mut().clear();
        self.pending.borrow_mut().clear();
        explain(doing, e)
    }

    /// Keeps a row of the transaction under way until SQLite gets it.
    fn keep(&mut self, doing: &'static str, table: Table, key: &[u8], value: Option<&[u8]>) -> Result<(), KvError> {
        let pending = self.pending.get_mut();
        pending.bytes += PENDING_ROW_BYTES + key.len() + value.map_or(0, <[u8]>::len);
        pending.tables[table as usize].insert(key.into(), value.map(Into::into));
        if pending.bytes > PENDING_BYTES_MAX {
            self.write_all(doing)?;
        }
        Ok(())
    }

    /// Gives SQLite all that is pending.
    fn write_all(&self, doing: &'static str) -> Result<(), KvError> {
        for table in Table::ALL {
            self.write(doing, table)?;
        }
        self.pending.borrow_mut().bytes = 0;
        Ok(())
    }

    /// Gives SQLite what is pending of one table.
    fn write(&self, doing: &'static str, table: Table) -> Result<(), KvError> {
        let rows = std::mem::take(&mut self.pending.borrow_mut().tables[table as usize]);
        if rows.is_empty() {
            return Ok(());
        }
        // Had SQLite given the transaction up, each row would be a commit of its own.
        self.writable(doing)?;
        if let Some((key, _)) = rows.iter().rev().find(|(_, value)| value.is_some()) {
            self.last_keys.borrow_mut().raise(table, key);
        }
        let write = || {
            let mut put = self.statement(|s| &s.put, table)?;
            let mut delete = self.statement(|s| &s.delete, table)?;
            let mut cache = self.rows.borrow_mut();
            for (key, value) in rows {
                match &value {
                    Some(value) => put.execute((&key[..], &value[..]))?,
                    None => delete.execute([&key[..]])?,
                };
                cache.wrote(table, key, value);
            }
            Ok(())
        };
        write().map_err(|e| self.failed(doing, e))
    }
}

impl SqliteKv {
    /// The last row of a table, as SQLite has it.
    fn last_stored(&self, doing: &'static str, table: Table) -> Result<Option<Pair>, KvError> {
        self.statement(|s| &s.last, table)
            .and_then(|mut s| s.query_row([], pair).optional())
            .map_err(|e| explain(doing, e))
    }

    /// Has SQLite no row of a table at or after this key, as far as can be told without asking? See [`LastKeys`].
    fn is_beyond(&self, doing: &'static str, table: Table, key: &[u8]) -> Result<bool, KvError> {
        let last = &mut self.last_keys.borrow_mut().0[table as usize];
        if *last == LastKey::Unknown {
            let stored = self.last_stored(doing, table)?;
            *last = stored.map_or(LastKey::None, |(key, _)| LastKey::Some(key.into()));
        }
        Ok(match last {
            LastKey::Unknown => false,
            LastKey::None => true,
            LastKey::Some(last) => key > &**last,
        })
    }
}

fn pair(row: &Row<'_>) -> rusqlite::Result<Pair> {
    Ok((row.get_ref(0)?.as_blob()?.into(), row.get_ref(1)?.as_blob()?.into()))
}

impl Kv for SqliteKv {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        if let Some(value) = self.pending.borrow().tables[table as usize].get(key) {
            return Ok(value.as_deref().map(<[u8]>::to_vec));
        }
        if let Some(value) = self.rows.borrow_mut().get(table, key) {
            return Ok(value);
        }
        if self.is_beyond("get", table, key)? {
            return Ok(None);
        }
        let value = |row: &Row<'_>| Ok(row.get_ref(0)?.as_blob()?.to_vec());
        let value = self
            .statement(|s| &s.get, table)
            .and_then(|mut s| s.query_row([key], value).optional())
            .map_err(|e| explain("get", e))?;
        self.rows.borrow_mut().put_owned(table, key.into(), value.as_deref().map(Into::into));
        Ok(value)
    }

    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        const DOING: &str = "put";
        self.writable(DOING)?;
        if key.len() > KEY_BYTES_MAX {
            return Err(KvError::failed(DOING, Misuse::Key(key.len())));
        }
        if value.len() > VALUE_BYTES_MAX {
            return Err(KvError::failed(DOING, Misuse::Value(value.len())));
        }
        self.keep(DOING, table, key, Some(value))
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), KvError> {
        const DOING: &str = "delete";
        self.writable(DOING)?;
        self.keep(DOING, table, key, None)
    }

    fn range(&self, table: Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Pair>, KvError> {
        const DOING: &str = "range";
        let read = |limit: usize| {
            if self.is_beyond(DOING, table, from)? {
                return Ok(Vec::new());
            }
            let most = i64::try_from(limit).unwrap_or(i64::MAX);
            let read = || match to {
                Some(to) => {
                    self.statement(|s| &s.range, table)?.query_map((from, most, to), pair)?.collect::<Result<_, _>>()
                }
                None => self.statement(|s| &s.range_open, table)?.query_map((from, most), pair)?.collect(),
            };
            read().map_err(|e| explain(DOING, e))
        };
        let pending = self.pending.borrow();
        let changed = pending.range(table, from, to, MERGED_MAX + 1);
        if changed.len() > MERGED_MAX {
            drop(changed);
            drop(pending);
            self.write(DOING, table)?;
            return read(limit);
        }
        // As many more as may be left out.
        let deleted = changed.iter().filter(|(_, value)| value.is_none()).count();
        let stored = read(limit.saturating_add(deleted))?;
        Ok(if changed.is_empty() { stored } else { merged(stored, &changed, limit) })
    }

    fn last(&self, table: Table) -> Result<Option<Pair>, KvError> {
        self.write("last", table)?;
        self.last_stored("last", table)
    }

    fn begin(&mut self) -> Result<(), KvError> {
        const DOING: &str = "begin";
        if self.change.get() != Change::No {
            return Err(KvError::failed(DOING, Misuse::Nested));
        }
        self.db.prepare_cached("BEGIN IMMEDIATE").and_then(|mut s| s.execute([])).map_err(|e| explain(DOING, e))?;
        self.change.set(Change::Open);
        Ok(())
    }

    /// If it fails, take the transaction back; whether it is found after a power cut is then open.
    fn commit(&mut self) -> Result<(), KvError> {
        const DOING: &str = "commit";
        self.writable(DOING)?;
        self.write_all(DOING)?;
        self.db.prepare_cached("COMMIT").and_then(|mut s| s.execute([])).map_err(|e| self.failed(DOING, e))?;
        self.change.set(Change::No);
        self.commits += 1;
        if self.reserve.after_commit() == Room::Short {
            // It is durable as it is; where the log cannot be taken in now, it grows.
            let _ = self.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        }
        Ok(())
    }

    fn rollback(&mut self) -> Result<(), KvError> {
        const DOING: &str = "rollback";
        if self.change.get() == Change::No {
            return Err(KvError::failed(DOING, Misuse::NoTransaction));
        }
        self.rows.get_mut().clear();
        self.pending.get_mut().clear();
        if !self.db.is_autocommit() {
            self.db.prepare_cached("ROLLBACK").and_then(|mut s| s.execute([])).map_err(|e| explain(DOING, e))?;
        }
        self.change.set(Change::No);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_fails_and_the_transaction_can_only_be_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let (mut kv, _) = SqliteKv::open(&dir.path().join("database.db"), Options::default()).unwrap();
        kv.begin().unwrap();
        kv.put(Table::Meta, b"before", b"1").unwrap();
        kv.commit().unwrap();
        let pages: i64 = kv.db.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        kv.db.pragma_update_and_check(None, "max_page_count", pages + 4, |_| Ok(())).unwrap();
        kv.begin().unwrap();
        kv.put(Table::Meta, b"fits", b"1").unwrap();
        let too_much = 0..=u8::try_from(PENDING_BYTES_MAX >> 20).unwrap();
        let full = too_much.into_iter().find_map(|row| kv.put(Table::Meta, &[row], &[1; 1 << 20]).err()).unwrap();
        assert!(!full.damaged, "{full:?}");
        assert!(!kv.put(Table::Meta, b"more", b"1").unwrap_err().damaged);
        assert!(!kv.commit().unwrap_err().damaged);
        kv.rollback().unwrap();
        assert_eq!(kv.get(Table::Meta, b"fits").unwrap(), None);
        kv.begin().unwrap();
        kv.put(Table::Meta, b"after", b"1").unwrap();
        kv.commit().unwrap();
        assert_eq!(kv.range(Table::Meta, b"", None, 9).unwrap().len(), 2);
    }

    #[test]
    fn a_transaction_that_sqlite_gave_up_is_not_written_on() {
        let dir = tempfile::tempdir().unwrap();
        let (mut kv, _) = SqliteKv::open(&dir.path().join("database.db"), Options::default()).unwrap();
        kv.begin().unwrap();
        kv.put(Table::Meta, b"first", b"1").unwrap();
        kv.db.execute_batch("ROLLBACK").unwrap();
        assert!(kv.put(Table::Meta, b"second", b"2").is_err());
        assert!(kv.commit().is_err());
        kv.rollback().unwrap();
        assert_eq!(kv.range(Table::Meta, b"", None, 9).unwrap(), []);
    }

    /// What lies beyond all that SQLite has is not asked of it; whatever was deleted or taken back, and opened anew.
    #[test]
    fn what_lies_beyond_the_last_row_is_absent_and_what_does_not_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("database.db");
        let rows = |kv: &SqliteKv, from: &[u8]| kv.range(Table::Nodes, from, None, 9).unwrap().len();
        {
            let (mut kv, _) = SqliteKv::open(&path, Options::default()).unwrap();
            assert_eq!((kv.get(Table::Nodes, b"b").unwrap(), rows(&kv, b"")), (None, 0), "empty");
            kv.begin().unwrap();
            kv.put(Table::Nodes, b"c", b"1").unwrap();
            kv.put(Table::Nodes, b"a", b"1").unwrap();
            assert_eq!((rows(&kv, b""), rows(&kv, b"b"), rows(&kv, b"d")), (2, 1, 0), "not given to SQLite yet");
            kv.commit().unwrap();
            kv.begin().unwrap();
            kv.put(Table::Nodes, b"e", b"1").unwrap();
            kv.write_all("test").unwrap();
            kv.rollback().unwrap();
            assert_eq!((kv.get(Table::Nodes, b"e").unwrap(), rows(&kv, b"c"), rows(&kv, b"d")), (None, 1, 0));
            kv.begin().unwrap();
            kv.delete(Table::Nodes, b"c").unwrap();
            kv.put(Table::Nodes, b"d", b"1").unwrap();
            kv.commit().unwrap();
            assert_eq!((kv.get(Table::Nodes, b"d").unwrap().is_some(), rows(&kv, b"b"), rows(&kv, b"d")), (true, 1, 1));
        }
        let (mut kv, _) = SqliteKv::open(&path, Options::default()).unwrap();
        assert_eq!(
            (rows(&kv, b"d"), rows(&kv, b"e"), kv.get(Table::Nodes, b"e").unwrap()),
            (1, 0, None),
            "opened anew"
        );
        kv.begin().unwrap();
        kv.delete(Table::Nodes, b"f").unwrap();
        kv.commit().unwrap();
        assert_eq!((rows(&kv, b"a"), rows(&kv, b"e")), (2, 0));
    }

    #[test]
    fn settings_hold() {
        let dir = tempfile::tempdir().unwrap();
        let (kv, _) = SqliteKv::open(&dir.path().join("database.db"), Options { cache_bytes: 1 << 20 }).unwrap();
        let number = |pragma| kv.db.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).unwrap();
        let cases = [("page_size", 8192), ("synchronous", 2), ("wal_autocheckpoint", 8000), ("cache_size", -1024)];
        for (pragma, value) in cases {
            assert_eq!(number(pragma), value, "{pragma}");
        }
    }
}
