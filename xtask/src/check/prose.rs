//! Rules for text: no path of somebody's machine, and no link within the repository that leads nowhere.

use super::Finding;
use crate::code::line_of;
use crate::repository::Repository;

/// Absolute paths that mean something on one machine only. Spelt in two parts, so that this list is not itself a
/// finding.
const MACHINE_PATHS: [(&str, &str); 3] = [("/work", "/"), ("/root", "/"), ("../sha", "red/")];

/// All findings in text files.
pub(crate) fn all(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in &repository.files {
        findings.extend(machine_paths(path, text));
        if path.ends_with(".md") {
            findings.extend(dead_links(repository, path, text));
        }
    }
    findings
}

fn machine_paths(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (start, end) in MACHINE_PATHS {
        let word = format!("{start}{end}");
        for (at, _) in text.match_indices(&word) {
            // `target/work/x` and `{dir}/work/x` go on from something; only a path that begins here is absolute.
            let before = text[..at].chars().next_back();
            let goes_on = before.is_some_and(|c| c.is_alphanumeric() || "_-.}*)$/".contains(c));
            if !goes_on || word.starts_with('.') {
                let line = line_of(text, at);
                findings.push(Finding::new(path, line, "machine path", format!("names {word}, a path of one machine")));
            }
        }
    }
    findings
}

/// Links of Markdown to files that are not there. Fenced code is left out.
fn dead_links(repository: &Repository, path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut fenced = false;
    for (number, line) in text.lines().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        for rest in line.split("](").skip(1) {
            let Some(target) = rest.split([')', '#', ' ']).next().filter(|target| !target.is_empty()) else { continue };
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let wanted = resolve(path, target);
            let exists = repository.files.contains_key(&wanted)
                || repository.files.keys().any(|file| file.starts_with(&format!("{}/", wanted.trim_end_matches('/'))));
            if !exists {
                findings.push(Finding::new(path, number + 1, "link", format!("leads to {wanted}, which is not there")));
            }
        }
    }
    findings
}

/// `target` as seen from the file `path`, from the root.
fn resolve(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join("/")
}
