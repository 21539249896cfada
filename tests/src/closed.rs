//! Contents that prove themselves: who wrote them, which one it was, and that it is whole.
//!
//! A content is a head line `e2e WRITER NUMBER LENGTH HASH` and a body of that length and hash. A torn, mixed or
//! truncated file cannot pass for one, and neither can an empty one.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};

use crate::random::Random;

/// Makes the content number `number` of a writer.
#[must_use]
pub fn content(writer: &str, number: u64, random: &mut Random) -> Vec<u8> {
    // Mostly small files, some of many pages: a torn one must have room to be torn.
    let length = if random.percent(10) { random.within(60_000..400_000) } else { random.within(1..6_000) };
    let body = random.bytes(usize::try_from(length).unwrap_or(1));
    let mut bytes = format!("e2e {writer} {number} {} {}\n", body.len(), blake3::hash(&body).to_hex()).into_bytes();
    bytes.extend(body);
    bytes
}

/// Who wrote a content and which one it was; `None` where it is not whole.
#[must_use]
pub fn author(bytes: &[u8]) -> Option<(String, u64)> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let body = &bytes[end + 1..];
    let words: Vec<&str> = head.split(' ').collect();
    let ["e2e", writer, number, length, hash] = words[..] else { return None };
    let whole = length.parse() == Ok(body.len()) && hash == blake3::hash(body).to_hex().as_str();
    whole.then_some(())?;
    Some((writer.to_owned(), number.parse().ok()?))
}

/// The contents that writers began to write, shared between them and whoever watches. What is seen elsewhere must be
/// among them, and whole.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<BTreeSet<(String, u64)>>>);

impl Ledger {
    /// Notes a content before its first byte is written.
    pub fn note(&self, writer: &str, number: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((writer.to_owned(), number));
    }

    /// Whether that content was ever written.
    #[must_use]
    pub fn knows(&self, writer: &str, number: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&(writer.to_owned(), number))
    }

    /// Holds every file beneath `dir` to be whole and written by somebody; gives how many there are. A file or
    /// directory that goes away meanwhile is none.
    ///
    /// # Errors
    /// When a file shows what nobody wrote: with its path.
    pub fn inspect(&self, dir: &Path) -> Result<usize> {
        let Ok(entries) = fs::read_dir(dir) else { return Ok(0) };
        let mut seen = 0;
        for entry in entries.map_while(Result::ok) {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                seen += self.inspect(&path)?;
            } else if let Ok(bytes) = fs::read(&path) {
                let whole = author(&bytes).is_some_and(|(writer, number)| self.knows(&writer, number));
                let head = String::from_utf8_lossy(&bytes[..bytes.len().min(100)]).into_owned();
                ensure!(whole, "{} shows what nobody wrote: {} bytes, {head:?}", path.display(), bytes.len());
                seen += 1;
            }
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_content_has_an_author() {
        let mut random = Random::for_test("closed");
        let whole = content("hq1", 7, &mut random);
        let other = content("hq2", 8, &mut random);
        assert_eq!(author(&whole), Some(("hq1".to_owned(), 7)));
        let mut mixed = whole.clone();
        let last = mixed.len() - 1;
        mixed[last] ^= 1;
        let torn: [&[u8]; 4] = [b"", &whole[..last], &mixed, &[whole.as_slice(), &other].concat()];
        for bytes in torn {
            assert_eq!(author(bytes), None);
        }
    }

    #[test]
    fn a_file_that_nobody_wrote_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::default();
        let bytes = content("hq1", 1, &mut Random::for_test("ledger"));
        fs::write(dir.path().join("a"), &bytes).unwrap();
        assert!(ledger.inspect(dir.path()).is_err(), "not noted");
        ledger.note("hq1", 1);
        assert_eq!(ledger.inspect(dir.path()).unwrap(), 1);
        fs::write(dir.path().join("b"), &bytes[..bytes.len() - 1]).unwrap();
        let error = ledger.inspect(dir.path()).unwrap_err().to_string();
        assert!(error.contains("/b shows"), "{error}");
    }
}
