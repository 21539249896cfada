//! What a member's key is known by.

use std::fmt;
use std::str::FromStr;

use crate::base32;

/// SHA-256 of a public key (its SubjectPublicKeyInfo): the pinned identity of a member or device (design, section 13).
///
/// Its text form is 52 characters of [`base32`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyFingerprint(pub [u8; 32]);

impl fmt::Display for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32::encode(&self.0))
    }
}

impl fmt::Debug for KeyFingerprint {
    /// The first eight characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32::encode(&self.0[..5]))
    }
}

/// Why a text is no fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FingerprintError {
    /// Not 52 characters.
    #[error("a key's fingerprint has 52 characters, this has {0}")]
    Length(usize),
    /// Neither a letter nor 2 to 7.
    #[error("a key's fingerprint has only letters and the digits 2 to 7, not {0:?}")]
    Character(char),
    /// The last character carries four bits that are always 0.
    #[error("this is no key's fingerprint: its last character must be `a` or `q`")]
    End,
}

impl FromStr for KeyFingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let bytes = base32::decode(text).map_err(FingerprintError::Character)?;
        match <[u8; 32]>::try_from(bytes) {
            Ok(bytes) if text.len() == 52 => match Self(bytes) {
                found if found.to_string().eq_ignore_ascii_case(text) => Ok(found),
                _ => Err(FingerprintError::End),
            },
            _ => Err(FingerprintError::Length(text.chars().count())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_back_and_other_text_is_refused() {
        let fingerprint = KeyFingerprint(std::array::from_fn(|at| (at * 37) as u8));
        let text = fingerprint.to_string();
        assert_eq!((text.len(), text.parse()), (52, Ok(fingerprint)));
        assert_eq!(text.to_uppercase().parse(), Ok(fingerprint));
        let cases = [
            (String::new(), FingerprintError::Length(0)),
            (text[..51].to_owned(), FingerprintError::Length(51)),
            (format!("{text}a"), FingerprintError::Length(53)),
            (text.replacen(&text[..1], "1", 1), FingerprintError::Character('1')),
            (format!("{}b", &text[..51]), FingerprintError::End),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse::<KeyFingerprint>(), Err(want), "{text}");
        }
    }
}
