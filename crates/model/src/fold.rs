//! When two names are one name (design, section 4): the key of a name under the folder's rule.
//!
//! Owns the one table that all members must share. The key depends on the bytes and the rule alone: never on a locale, a
//! file system or the system's own tables. Keys are compared and never shown: a thing keeps its own name.

use std::borrow::Cow;
use std::fmt;

use unicode_normalization::{UnicodeNormalization, is_nfc};

/// What counts as one name. Fixed when the folder is created.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Names {
    /// The same bytes.
    #[default]
    Bytes,
    /// The same characters, in whatever normalisation form, without regard to case. What is not UTF-8 is compared as
    /// bytes: it has no characters.
    Windows,
}

impl fmt::Display for Names {
    /// `bytes`, or `windows` and the version of the table: members with equal texts have equal keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes => f.write_str("bytes"),
            Self::Windows => write!(f, "windows {FOLD_TABLE}"),
        }
    }
}

/// Names the table of [`Names::Windows`]: the version of Unicode that it is made from. Two tables give two keys to some
/// names, so members compare this before they compare names. It changes whenever a key does; a test holds it to the table.
pub const FOLD_TABLE: &str = "16.0.0";

/// The longest key of a name of [`NAME_BYTES_MAX`](crate::NAME_BYTES_MAX) bytes.
pub const FOLDED_BYTES_MAX: usize = 3 * crate::NAME_BYTES_MAX;

/// The key of a name: two names of one directory are one name exactly if their keys are equal.
///
/// With [`Names::Windows`]: NFC, then Unicode's simple case folding character by character, then NFC again, since a
/// folded letter may compose with a mark where the capital did not (`J` and a caron). Simple folding keeps `ß` and `ss`
/// apart, and `ı`, `İ` and `i`, as Windows does. O(length); borrows where the name is its own key.
///
/// ```
/// use anabranch_model::{Names, fold};
/// assert_eq!(fold("R\u{e9}sum\u{e9}.TXT".as_bytes(), Names::Windows), fold("re\u{301}sume\u{301}.txt".as_bytes(), Names::Windows));
/// assert_ne!(fold(b"Report", Names::Bytes), fold(b"report", Names::Bytes));
/// ```
#[must_use]
pub fn fold(name: &[u8], rule: Names) -> Cow<'_, [u8]> {
    match (rule, std::str::from_utf8(name)) {
        (Names::Bytes, _) | (Names::Windows, Err(_)) => Cow::Borrowed(name),
        (Names::Windows, Ok(_)) if name.is_ascii() => {
            if name.iter().any(u8::is_ascii_uppercase) {
                Cow::Owned(name.to_ascii_lowercase())
            } else {
                Cow::Borrowed(name)
            }
        }
        (Names::Windows, Ok(text)) => {
            let folded: String = text.nfc().map(fold_char).collect();
            Cow::Owned(if is_nfc(&folded) { folded } else { folded.nfc().collect() }.into_bytes())
        }
    }
}

/// Are these one name?
#[must_use]
pub fn same_name(one: &[u8], other: &[u8], rule: Names) -> bool {
    one == other || rule != Names::Bytes && fold(one, rule) == fold(other, rule)
}

fn fold_char(c: char) -> char {
    unicode_case_mapping::case_folded(c).and_then(|folded| char::from_u32(folded.get())).unwrap_or(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use unicode_normalization::char::canonical_combining_class;

    fn key(text: &str) -> String {
        String::from_utf8(fold(text.as_bytes(), Names::Windows).into_owned()).unwrap()
    }

    /// All characters but those of the planes that have none assigned, or are for private use.
    fn characters() -> impl Iterator<Item = char> {
        (0..0x4_0000).chain(0xe_0000..0xe_1000).filter_map(char::from_u32)
    }

    #[test]
    fn what_is_one_name() {
        let cases = [
            // one, other, one name for Windows
            ("Report.txt", "report.TXT", true),
            ("caf\u{e9}", "CAFE\u{301}", true),
            ("\u{212b}ngstr\u{f6}m", "\u{e5}NGSTRO\u{308}M", true),
            ("\u{1f0}", "J\u{30c}", true),
            ("\u{1e9b}", "\u{1e61}", true),
            ("\u{3a3}\u{3a3}", "\u{3c3}\u{3c2}", true),
            ("\u{1e9e}", "\u{df}", true),
            ("\u{1f600}\u{10400}", "\u{1f600}\u{10428}", true),
            ("stra\u{df}e", "STRASSE", false),
            ("\u{130}", "i", false),
            ("\u{131}", "I", false),
            ("\u{fb01}", "fi", false),
            ("a", "b", false),
            ("a ", "a", false),
        ];
        for (one, other, want) in cases {
            assert_eq!(same_name(one.as_bytes(), other.as_bytes(), Names::Windows), want, "{one} {other}");
            assert!(!same_name(one.as_bytes(), other.as_bytes(), Names::Bytes), "{one} {other}");
        }
    }

    #[test]
    fn what_is_not_utf_8_is_compared_as_bytes() {
        assert!(!same_name(b"A\xff", b"a\xff", Names::Windows));
        assert!(same_name(b"A\xff", b"A\xff", Names::Windows));
    }

    #[test]
    fn a_key_is_its_own_key_and_does_not_depend_on_the_form() {
        for c in characters() {
            // Alone, and with marks that compose, that do not, and that stand in the wrong order.
            for text in [format!("{c}"), format!("{c}\u{301}"), format!("J{c}\u{30c}"), format!("{c}\u{345}\u{301}")] {
                let folded = key(&text);
                assert_eq!(key(&folded), folded, "{text:?}");
                assert_eq!(key(&text.nfd().collect::<String>()), folded, "{text:?}");
                assert!(folded.len() <= 3 * text.len(), "{text:?}");
                // A key has the zero bytes and slashes of its name and no others: slots are told apart by a zero byte.
                for byte in ['\0', '/'] {
                    assert_eq!(folded.matches(byte).count(), text.matches(byte).count(), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn the_table_is_the_one_that_is_named() {
        assert_eq!(FOLD_TABLE, "16.0.0");
        assert_eq!(unicode_normalization::UNICODE_VERSION, (16, 0, 0));
        assert_eq!(unicode_case_mapping::UNICODE_VERSION, (16, 0, 0));
        // FNV-1a over each character, its class and its key. Where this differs `FOLD_TABLE` must be another one, too.
        let mut sum = 0xcbf2_9ce4_8422_2325_u64;
        for c in characters() {
            let class = [canonical_combining_class(c)];
            let bytes = u32::from(c).to_be_bytes();
            for byte in bytes.iter().chain(&class).chain(key(&c.to_string()).as_bytes()) {
                sum = (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
        assert_eq!(sum, 0x2a25_14cc_c52e_8743, "{sum:#x}");
    }
}
