//! Names of objects: safe as file names on every system, and in a command line.

use std::fmt;
use std::str::FromStr;

/// The longest name of an object.
pub const OBJECT_NAME_BYTES_MAX: usize = 63;

/// The name of a member, group or folder: 1 to 63 of `a` to `z`, digits, `.`, `_` and `-`, beginning with a letter or
/// digit. There are no capitals, so that no two names differ in case only.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(Box<str>);

/// Why a text is no name of an object.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// Nothing.
    #[error("a name cannot be empty")]
    Empty,
    /// Too long.
    #[error("the name `{0}` is longer than 63 characters")]
    Long(String),
    /// A character that cannot be in a name.
    #[error("the name `{name}` has {found:?}; names are made of a to z, digits, `.`, `_` and `-`")]
    Character {
        /// The text.
        name: String,
        /// The first such character.
        found: char,
    },
    /// A first character that cannot be one.
    #[error("the name `{0}` must begin with a letter or digit")]
    Begin(String),
    /// Not `group/folder`.
    #[error("`{0}` is no folder: folders are named GROUP/FOLDER, like web/site")]
    Folder(String),
}

impl ObjectName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ObjectName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some(first) = text.chars().next() else { return Err(NameError::Empty) };
        let inside = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-');
        if let Some(found) = text.chars().find(|&c| !inside(c)) {
            return Err(NameError::Character { name: text.to_owned(), found });
        }
        if !first.is_ascii_alphanumeric() {
            return Err(NameError::Begin(text.to_owned()));
        }
        if text.len() > OBJECT_NAME_BYTES_MAX {
            return Err(NameError::Long(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The full name of a replicated folder: `group/folder`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FolderName {
    /// Its group.
    pub group: ObjectName,
    /// Its name in the group.
    pub folder: ObjectName,
}

impl FromStr for FolderName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((group, folder)) if !folder.contains('/') => {
                Ok(Self { group: group.parse()?, folder: folder.parse()? })
            }
            _ => Err(NameError::Folder(text.to_owned())),
        }
    }
}

impl fmt::Display for FolderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.folder)
    }
}

impl fmt::Debug for FolderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_name() {
        for good in ["a", "9", "hq1", "a.b_c-d", &"x".repeat(63), "a..b"] {
            assert_eq!(good.parse::<ObjectName>().unwrap().as_str(), good);
        }
        let character = |name: &str, found| NameError::Character { name: name.to_owned(), found };
        let cases = [
            ("", NameError::Empty),
            ("HQ1", character("HQ1", 'H')),
            ("a/b", character("a/b", '/')),
            ("a b", character("a b", ' ')),
            ("ü", character("ü", 'ü')),
            ("a\0", character("a\0", '\0')),
            (".a", NameError::Begin(".a".into())),
            ("..", NameError::Begin("..".into())),
            ("-a", NameError::Begin("-a".into())),
            (&"x".repeat(64), NameError::Long("x".repeat(64))),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse::<ObjectName>(), Err(want), "{text}");
        }
    }

    #[test]
    fn what_is_a_folder() {
        assert_eq!("web/site".parse::<FolderName>().unwrap().to_string(), "web/site");
        for bad in ["", "web", "web/", "/site", "web/site/x", "web/Site", "$domain"] {
            assert!(bad.parse::<FolderName>().is_err(), "{bad}");
        }
    }
}
