//! The repository's text files, in memory: what the checks read, so that tests can make a broken one out of strings.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Directories that hold nothing of ours: build products, version control, generated books.
const SKIPPED: [&str; 6] = [".git", "target", "corpus", "artifacts", "book", "__pycache__"];

/// Text files by their path from the root, `/` between components.
#[derive(Clone, Debug, Default)]
pub(crate) struct Repository {
    /// Path to text. Files that are not UTF-8 are absent.
    pub(crate) files: BTreeMap<String, String>,
}

impl Repository {
    /// Reads every text file beneath `root` that is ours.
    pub(crate) fn load(root: &Path) -> Result<Self> {
        let mut repository = Self::default();
        repository.walk(root, "")?;
        Ok(repository)
    }

    fn walk(&mut self, dir: &Path, prefix: &str) -> Result<()> {
        for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
            let entry = entry.with_context(|| format!("list {}", dir.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().with_context(|| format!("look at {}", entry.path().display()))?;
            let path = format!("{prefix}{name}");
            if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
                self.walk(&entry.path(), &format!("{path}/"))?;
            } else if kind.is_file() {
                let bytes = fs::read(entry.path()).with_context(|| format!("read {path}"))?;
                if let Ok(text) = String::from_utf8(bytes) {
                    self.files.insert(path, text);
                }
            }
        }
        Ok(())
    }

    /// The Rust sources: path and text, ascending.
    pub(crate) fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter(|(path, _)| path.ends_with(".rs")).map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The text of one file.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }
}
