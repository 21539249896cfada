//! placeholder
use std::path::PathBuf;
use anabranch_console::Failure;
pub(crate) fn run(_: Option<PathBuf>, _: bool) -> Result<u8, Failure> { Ok(0) }
