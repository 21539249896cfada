//! The demonstration, from its first to its last word.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::program::{anabranch, run};
use e2e::random::Random;
use e2e::trees;

#[test]
fn the_demonstration_ends_with_equal_trees_and_shows_where_the_losing_copy_is() -> Result<()> {
    let dir = e2e::cluster::scratch()?;
    trees::many(dir.path(), 300, &mut Random::for_test("demonstration"))?;
    let mut command = Command::new(anabranch()?);
    command.args(["demo", "--once", "--from"]).arg(dir.path()).env_remove("ANABRANCH_DATA");
    let said = run(&mut command, Duration::from_secs(180))?.done()?;
    for word in ["equal", "conflict", "ConflictAndDeleted"] {
        ensure!(said.contains(word), "the summary does not mention {word}:\n{said}");
    }
    Ok(())
}
