//! The schema of the database file, and the steps from each schema to the next.
//!
//! | where | what |
//! | --- | --- |
//! | `application_id` | [`APPLICATION_ID`]: this is a metadata database |
//! | `user_version` | the schema's number |
//! | `made_by` | schema number -> the first version of the program that could read it |
//! | one table for each [`Table`] | `k BLOB PRIMARY KEY, v BLOB NOT NULL`, without row id |
//!
//! A step never changes once it was released; a new schema is a new step, and a file of it is stored in `tests/data`.

use anabranch_engine::kv::{KvError, Table};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use crate::sqlite::explain;

/// "ANBR".
pub(crate) const APPLICATION_ID: i32 = i32::from_be_bytes(*b"ANBR");

/// One step: what leads to a schema from the one before it (the first one: from an empty file).
pub(crate) struct Step {
    /// The first version of the program that knows this schema.
    pub(crate) program: &'static str,
    /// What changes.
    pub(crate) run: fn(&Connection) -> rusqlite::Result<()>,
}

/// The steps: the one at index `i` leads to schema `i + 1`.
pub(crate) const STEPS: &[Step] = &[Step { program: "0.1.0", run: first }];

/// The schema that these steps lead to.
pub(crate) const fn newest(steps: &[Step]) -> u32 {
    steps.len() as u32
}

/// The tables of schema 1. This is not made from [`Table::ALL`], which may grow.
const FIRST: [&str; 26] = [
    "meta",
    "replicas",
    "attributes",
    "attributes_by_hash",
    "records",
    "changes",
    "slots",
    "children",
    "derived",
    "unresolved",
    "todo",
    "nodes",
    "node_names",
    "node_objects",
    "node_uids",
    "node_hashes",
    "aside",
    "cursors",
    "intents",
    "preserved",
    "staged",
    "partners",
    "acknowledged",
    "sums",
    "events",
    "tombstones",
];

fn first(db: &Connection) -> rusqlite::Result<()> {
    FIRST.iter().try_for_each(|name| {
        db.execute_batch(&format!("CREATE TABLE {name} (k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID, STRICT"))
    })
}

/// What a table is called in the file.
pub(crate) const fn name(table: Table) -> &'static str {
    match table {
        Table::Meta => "meta",
        Table::Replicas => "replicas",
        Table::Attributes => "attributes",
        Table::AttributesByHash => "attributes_by_hash",
        Table::Records => "records",
        Table::Changes => "changes",
        Table::Slots => "slots",
        Table::Children => "children",
        Table::Derived => "derived",
        Table::Unresolved => "unresolved",
        Table::Todo => "todo",
        Table::Nodes => "nodes",
        Table::NodeNames => "node_names",
        Table::NodeObjects => "node_objects",
        Table::NodeUids => "node_uids",
        Table::NodeHashes => "node_hashes",
        Table::Aside => "aside",
        Table::Cursors => "cursors",
        Table::Intents => "intents",
        Table::Preserved => "preserved",
        Table::Staged => "staged",
        Table::Partners => "partners",
        Table::Acknowledged => "acknowledged",
        Table::Sums => "sums",
        Table::Events => "events",
        Table::Tombstones => "tombstones",
    }
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the file belongs to another program (application id {0:#010x})")]
    Foreign(i64),
    #[error("the file has tables but no application id, so it belongs to another program")]
    Unnamed,
    #[error("the file is of a later version of the program: it has schema {schema}, and needs anabranch {program}")]
    Later { schema: u32, program: String },
    #[error("the schema number {0} is impossible")]
    Number(i64),
    #[error("the table {0} is missing or has another form")]
    Table(&'static str),
}

/// What the file is before it was brought to the newest schema.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Was {
    /// Empty.
    Empty,
    /// Of this schema.
    Schema(u32),
}

/// Says what the file is, and changes nothing in it.
///
/// # Errors
/// [`KvError`]: damaged where the file is another program's; not damaged where it is of a later version of this one.
pub(crate) fn look(db: &Connection, steps: &[Step]) -> Result<Was, KvError> {
    const DOING: &str = "look at what the file is";
    let sql = |e| explain(DOING, e);
    let number = |pragma| db.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).map_err(sql);
    let (application, schema) = (number("application_id")?, number("user_version")?);
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(sql)?;
    if application == i64::from(APPLICATION_ID) {
        let number = u32::try_from(schema).ok().filter(|&n| n > 0);
        let number = number.ok_or_else(|| KvError::damaged(DOING, Refused::Number(schema)))?;
        if number > newest(steps) {
            let program = needs(db, number).map_err(sql)?;
            return Err(KvError::failed(DOING, Refused::Later { schema: number, program }));
        }
        Ok(Was::Schema(number))
    } else if application != 0 {
        Err(KvError::damaged(DOING, Refused::Foreign(application)))
    } else if tables != 0 || schema != 0 {
        Err(KvError::damaged(DOING, Refused::Unnamed))
    } else {
        // Also what is left when the machine stopped between the creation of the file and the first commit.
        Ok(Was::Empty)
    }
}

/// Brings a file that was `was` to the last of these steps' schemas, in one transaction.
///
/// # Errors
/// [`KvError`]; then the file is as it was.
pub(crate) fn upgrade(db: &mut Connection, steps: &[Step], was: Was) -> Result<(), KvError> {
    const DOING: &str = "bring the schema up to date";
    let sql = |e| explain(DOING, e);
    let (newest, from) = match was {
        Was::Empty => (newest(steps), 0),
        Was::Schema(schema) => (newest(steps), schema),
    };
    if from == newest {
        return Ok(());
    }
    let change = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    if from == 0 {
        let table = "CREATE TABLE made_by (schema INTEGER PRIMARY KEY, program TEXT NOT NULL) STRICT";
        change.execute_batch(table).map_err(sql)?;
        change.pragma_update(None, "application_id", APPLICATION_ID).map_err(sql)?;
    }
    for (schema, step) in (1..=newest).zip(steps).filter(|&(schema, _)| schema > from) {
        (step.run)(&change).map_err(sql)?;
        change.execute("INSERT INTO made_by VALUES (?1, ?2)", (schema, step.program)).map_err(sql)?;
    }
    change.pragma_update(None, "user_version", newest).map_err(sql)?;
    change.commit().map_err(sql)
}

/// The version of the program that a schema needs, as the file itself says.
fn needs(db: &Connection, schema: u32) -> rusqlite::Result<String> {
    let program =
        db.query_row("SELECT program FROM made_by WHERE schema = ?1", [schema], |row| row.get(0)).optional()?;
    Ok(program.unwrap_or_else(|| "of a version that the file does not name".to_owned()))
}

/// Every table of [`Table::ALL`] is there in its form.
///
/// # Errors
/// [`KvError`], damaged, naming the first that is not.
pub(crate) fn verify(db: &Connection) -> Result<(), KvError> {
    const DOING: &str = "look at the schema";
    let query = "SELECT group_concat(name || ' ' || type || ' ' || pk) FROM pragma_table_info(?1)";
    for table in Table::ALL {
        let name = name(table);
        let form: Option<String> = db.query_row(query, [name], |row| row.get(0)).map_err(|e| explain(DOING, e))?;
        if form.as_deref() != Some("k BLOB 1,v BLOB 0") {
            return Err(KvError::damaged(DOING, Refused::Table(name)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Connection {
        Connection::open_in_memory().unwrap()
    }

    fn cause(e: &KvError) -> String {
        std::error::Error::source(e).unwrap().to_string()
    }

    fn upgrade(db: &mut Connection, steps: &[Step]) -> Result<Was, KvError> {
        let was = look(db, steps)?;
        super::upgrade(db, steps, was).map(|()| was)
    }

    fn number(db: &Connection, pragma: &str) -> i64 {
        db.pragma_query_value(None, pragma, |row| row.get(0)).unwrap()
    }

    const fn good(program: &'static str, run: fn(&Connection) -> rusqlite::Result<()>) -> Step {
        Step { program, run }
    }

    const LATER: [Step; 3] = [
        good("0.1.0", first),
        good("0.2.0", |db| db.execute_batch("CREATE TABLE second (k)")),
        good("0.3.0", |db| db.execute_batch("INSERT INTO second VALUES (3)")),
    ];

    #[test]
    fn the_steps_lead_to_the_tables_of_the_program() {
        let mut db = memory();
        assert_eq!(upgrade(&mut db, STEPS).unwrap(), Was::Empty);
        verify(&db).unwrap();
        assert_eq!(number(&db, "application_id"), 0x414e_4252);
        assert_eq!(upgrade(&mut db, STEPS).unwrap(), Was::Schema(newest(STEPS)));
    }

    #[test]
    fn each_step_runs_once_and_in_order() {
        let mut db = memory();
        upgrade(&mut db, STEPS).unwrap();
        assert_eq!(upgrade(&mut db, &LATER[..2]).unwrap(), Was::Schema(1));
        assert_eq!(upgrade(&mut db, &LATER).unwrap(), Was::Schema(2));
        assert_eq!(upgrade(&mut db, &LATER).unwrap(), Was::Schema(3));
        let rows: i64 = db.query_row("SELECT count(*) FROM second", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 1);
    }

    #[test]
    fn a_step_that_fails_changes_nothing() {
        let broken =
            [LATER[0].run, LATER[1].run, |db: &Connection| db.execute_batch("DROP TABLE second; SELECT nonsense")]
                .map(|run| Step { program: "0.9.0", run });
        let mut db = memory();
        upgrade(&mut db, STEPS).unwrap();
        assert!(!upgrade(&mut db, &broken).unwrap_err().damaged);
        assert_eq!(number(&db, "user_version"), 1);
        assert!(db.execute_batch("SELECT * FROM second").is_err());
        let mut empty = memory();
        upgrade(&mut empty, &broken).unwrap_err();
        assert_eq!(number(&empty, "application_id"), 0);
        assert_eq!(upgrade(&mut empty, STEPS).unwrap(), Was::Empty);
    }

    #[test]
    fn a_later_schema_is_refused_but_not_called_damaged() {
        let mut db = memory();
        upgrade(&mut db, &LATER).unwrap();
        let e = upgrade(&mut db, STEPS).unwrap_err();
        assert!(!e.damaged);
        let text = "the file is of a later version of the program: it has schema 3, and needs anabranch 0.3.0";
        assert_eq!(cause(&e), text);
    }

    #[test]
    fn other_programs_files_are_refused() {
        let mut db = memory();
        db.execute_batch("CREATE TABLE bookmarks (url)").unwrap();
        let e = upgrade(&mut db, STEPS).unwrap_err();
        assert!(e.damaged && cause(&e).contains("another program"), "{}", cause(&e));
        let mut db = memory();
        db.pragma_update(None, "application_id", 7).unwrap();
        let e = upgrade(&mut db, STEPS).unwrap_err();
        assert!(e.damaged && cause(&e).contains("0x00000007"), "{}", cause(&e));
    }

    #[test]
    fn a_missing_or_changed_table_is_damage() {
        let mut db = memory();
        upgrade(&mut db, STEPS).unwrap();
        db.execute_batch("ALTER TABLE sums RENAME COLUMN v TO w").unwrap();
        let e = verify(&db).unwrap_err();
        assert!(e.damaged && cause(&e).contains("sums"));
        db.execute_batch("DROP TABLE records").unwrap();
        assert!(cause(&verify(&db).unwrap_err()).contains("records"));
    }
}
