//! Events on disk: one JSON object a line, bounded.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anabranch_member::Event;
use anabranch_member::host::now;
use serde_json::{Value, json};

/// The newest file is put aside at this size, and the one put aside before is dropped.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// The events of a member.
pub(crate) struct Journal {
    dir: PathBuf,
    file: Mutex<Option<(File, u64)>>,
}

impl Journal {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, file: Mutex::new(None) }
    }

    /// Writes an event down, and to the log.
    pub(crate) fn put(&self, folder: &str, event: &Event) {
        let kind = event.kind;
        match kind.level() {
            anabranch_member::Level::Information => {
                tracing::info!(event = kind.number(), folder, detail = event.detail, "{}", kind.text());
            }
            anabranch_member::Level::Warning => {
                tracing::warn!(event = kind.number(), folder, detail = event.detail, "{}", kind.text());
            }
            anabranch_member::Level::Error => {
                tracing::error!(event = kind.number(), folder, detail = event.detail, "{}", kind.text());
            }
        }
        let line = json!({
            "time": now().0,
            "number": kind.number(),
            "level": kind.level().to_string(),
            "folder": folder,
            "text": kind.text(),
            "detail": event.detail,
            "remedy": kind.remedy(),
        });
        if let Err(error) = self.append(&line) {
            tracing::error!(%error, "cannot write an event down");
        }
    }

    fn append(&self, line: &Value) -> io::Result<()> {
        let mut held = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.dir.join("events.jsonl");
        if held.as_ref().is_some_and(|(_, bytes)| *bytes > FILE_BYTES_MAX) {
            *held = None;
            fs::rename(&path, self.dir.join("events.1.jsonl"))?;
        }
        if held.is_none() {
            let file = File::options().create(true).append(true).open(&path)?;
            let bytes = file.metadata()?.len();
            *held = Some((file, bytes));
        }
        if let Some((file, bytes)) = held.as_mut() {
            let text = format!("{line}\n");
            file.write_all(text.as_bytes())?;
            *bytes += text.len() as u64;
        }
        Ok(())
    }

    /// The last events, oldest first, at most `limit`, later than `after` (microseconds since 1970).
    pub(crate) fn last(&self, after: u64, limit: usize) -> io::Result<Vec<Value>> {
        let mut out = std::collections::VecDeque::new();
        for name in ["events.1.jsonl", "events.jsonl"] {
            let file = match File::open(self.dir.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            for line in BufReader::new(file).lines() {
                // A line that a crash cut is no event.
                let Ok(event) = serde_json::from_str::<Value>(&line?) else { continue };
                if event["time"].as_u64().unwrap_or(0) > after {
                    out.push_back(event);
                    if out.len() > limit {
                        out.pop_front();
                    }
                }
            }
        }
        Ok(out.into())
    }
}
