//! What the compiler does not enforce: layers, purity, module heads, words that must not stand in the sources.
//!
//! Every rule is a function from the repository's text to findings; the tests break each rule in turn.

use std::fmt;

use crate::repository::Repository;

mod layers;
mod prose;
mod purity;
mod sources;
#[cfg(test)]
mod tests;

/// One violation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Finding {
    /// File, from the root.
    pub(crate) path: String,
    /// Line, from 1; 0 when it concerns the whole file.
    pub(crate) line: usize,
    /// The rule's short name.
    pub(crate) rule: &'static str,
    /// What is wrong, and what to do.
    pub(crate) text: String,
}

impl Finding {
    fn new(path: &str, line: usize, rule: &'static str, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, rule, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.rule, self.text)
    }
}

/// All findings, in order of their place.
pub(crate) fn all(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    match layers::Workspace::read(repository) {
        Ok(workspace) => {
            findings.extend(workspace.arrows());
            findings.extend(workspace.strangers(repository));
            findings.extend(purity::dependencies(&workspace));
        }
        Err(finding) => findings.push(finding),
    }
    findings.extend(layers::lock_size(repository));
    findings.extend(purity::lint_files(repository));
    findings.extend(purity::sources(repository));
    findings.extend(sources::all(repository));
    findings.extend(prose::all(repository));
    findings.sort();
    findings
}
