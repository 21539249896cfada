//! Names of directory entries: bytes, checked once at the border.

use std::fmt;

use crate::Uid;

/// The longest name, in bytes (design, section 20).
pub const NAME_BYTES_MAX: usize = 255;

/// Names that begin so are ours: never taken from users, partners or decoders (design, sections 8 and 9).
pub const RESERVED_PREFIX: &[u8] = b".anabranch";

/// Is this name kept for the program itself?
#[must_use]
pub fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(RESERVED_PREFIX)
}

/// Why some bytes are no name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// No bytes at all.
    #[error("a name cannot be empty")]
    Empty,
    /// Longer than [`NAME_BYTES_MAX`].
    #[error("a name cannot be longer than 255 bytes")]
    TooLong,
    /// `.`, `..`, or a slash or NUL within.
    #[error("a name cannot be `.` or `..` nor contain a slash or NUL")]
    Invalid,
    /// Begins with [`RESERVED_PREFIX`].
    #[error("names that begin with `.anabranch` are reserved")]
    Reserved,
}

/// One component of a path: 1 to 255 bytes, no slash, no NUL, not `.` or `..`, not reserved. Any other bytes go,
/// UTF-8 or not.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

impl Name {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`NameError`] says what is wrong with it.
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Result<Self, NameError> {
        let bytes = bytes.into();
        match &*bytes {
            [] => Err(NameError::Empty),
            b"." | b".." => Err(NameError::Invalid),
            b if b.len() > NAME_BYTES_MAX => Err(NameError::TooLong),
            b if b.contains(&b'/') || b.contains(&0) => Err(NameError::Invalid),
            b if is_reserved(b) => Err(NameError::Reserved),
            _ => Ok(Self(bytes)),
        }
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// `name~UID`, cut so that it fits 255 bytes: where a cut cycle hangs in the root (design, section 4).
    #[must_use]
    pub fn beside(&self, uid: Uid) -> Self {
        let suffix = format!("~{uid}");
        Self(cut(&self.0, &[], suffix.as_bytes(), &[]))
    }

    /// `stem-AUTHOR-UID.ext`, cut so that it fits: where a loser is kept beside the winner (design, sections 4, 16).
    #[must_use]
    pub fn kept_beside(&self, author: &str, uid: Uid) -> Self {
        let dot = self.0.iter().rposition(|&b| b == b'.').filter(|&at| at > 0 && self.0.len() - at <= 16);
        let (stem, ext) = self.0.split_at(dot.unwrap_or(self.0.len()));
        let author: String = author.chars().filter(|c| *c != '/' && *c != '\0').take(32).collect();
        let suffix = if author.is_empty() { format!("-{uid}") } else { format!("-{author}-{uid}") };
        Self(cut(stem, &[], suffix.as_bytes(), ext))
    }
}

/// Joins the parts, cutting `stem` so that the whole fits, at the start of a UTF-8 character where it is UTF-8.
fn cut(stem: &[u8], middle: &[u8], suffix: &[u8], ext: &[u8]) -> Box<[u8]> {
    let room = NAME_BYTES_MAX.saturating_sub(middle.len() + suffix.len() + ext.len());
    let mut end = stem.len().min(room);
    while end > 0 && end < stem.len() && stem[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    [&stem[..end], middle, suffix, ext].concat().into()
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for Name {
    /// As UTF-8 with what is not replaced: for people, never for going back to bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ReplicaId, Sequence, Version};

    #[test]
    fn what_is_a_name() {
        let cases: [(&[u8], Result<(), NameError>); 9] = [
            (b"a", Ok(())),
            (b"\xff\n ", Ok(())),
            (&[b'x'; 255], Ok(())),
            (&[b'x'; 256], Err(NameError::TooLong)),
            (b"", Err(NameError::Empty)),
            (b"..", Err(NameError::Invalid)),
            (b"a/b", Err(NameError::Invalid)),
            (b"a\0", Err(NameError::Invalid)),
            (b".anabranch-x", Err(NameError::Reserved)),
        ];
        for (bytes, want) in cases {
            assert_eq!(Name::new(bytes).map(|_| ()), want, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn derived_names_fit_and_are_cut_between_characters() {
        let uid = Uid(Version { replica: ReplicaId([9; 16]), sequence: Sequence(u64::MAX) });
        let long = Name::new("ü".repeat(127).into_bytes()).unwrap();
        for derived in [long.beside(uid), long.kept_beside("laptop", uid)] {
            assert!(derived.bytes().len() <= NAME_BYTES_MAX);
            assert!(std::str::from_utf8(derived.bytes()).is_ok());
            assert_eq!(Name::new(derived.bytes()), Ok(derived.clone()));
        }
        let plan = Name::new(*b"plan.txt").unwrap();
        assert_eq!(plan.kept_beside("hq1", uid).to_string(), format!("plan-hq1-{uid}.txt"));
    }
}
