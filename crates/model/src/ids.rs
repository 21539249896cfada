//! Identifiers and numbers, one type for each kind, so that swapped arguments do not compile.

use std::fmt;

/// The random 128-bit name of one metadata database's life (design, section 2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ReplicaId(pub [u8; 16]);

/// The random 128-bit name of a replicated folder.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FolderId(pub [u8; 16]);

/// A number issued by one replica; ascending, not dense (design, section 11).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Sequence(pub u64);

/// A local change number: raised whenever anything that partners receive of a row changes (design, section 6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct ChangeNumber(pub u64);

/// A hybrid logical clock reading, in microseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Hlc(pub u64);

/// A version (GVSN): which replica issued it and under which number.
///
/// `Ord` is derived: replica first, then sequence. That order is a tie-break only and says nothing of time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version {
    /// Who issued it.
    pub replica: ReplicaId,
    /// Its number there.
    pub sequence: Sequence,
}

/// The identity of a file or directory for its whole life: the version under which it was created.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uid(pub Version);

impl Uid {
    /// The root of every replicated folder; it has no record.
    pub const ROOT: Self = Self(Version { replica: ReplicaId([0; 16]), sequence: Sequence(0) });
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
}

fn parse_hex16(text: &str) -> Option<[u8; 16]> {
    let mut out = [0; 16];
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(out)
}

macro_rules! hex_id {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                hex(&self.0, f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                hex(&self.0[..4], f)
            }
        }
        impl std::str::FromStr for $name {
            type Err = ();
            /// Reads 32 hexadecimal digits.
            fn from_str(text: &str) -> Result<Self, ()> {
                parse_hex16(text).map(Self).ok_or(())
            }
        }
    };
}
hex_id!(ReplicaId);
hex_id!(FolderId);

impl fmt::Display for Version {
    /// 32 hexadecimal digits, a full stop, the sequence in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}", self.replica, self.sequence.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}.{:x}", self.replica, self.sequence.0)
    }
}

impl std::str::FromStr for Version {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (replica, sequence) = text.split_once('.').ok_or(())?;
        let sequence = u64::from_str_radix(sequence, 16).map_err(|_| ())?;
        Ok(Self { replica: replica.parse()?, sequence: Sequence(sequence) })
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ROOT { f.write_str("ROOT") } else { write!(f, "{:?}", self.0) }
    }
}

impl std::str::FromStr for Uid {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_come_back() {
        let version = Version { replica: ReplicaId([0xab; 16]), sequence: Sequence(0x1f) };
        assert_eq!(version.to_string(), format!("{}.1f", "ab".repeat(16)));
        assert_eq!(version.to_string().parse(), Ok(version));
        for bad in ["", ".", "ab.1", &format!("{}.", "ab".repeat(16)), &format!("{}.g", "é".repeat(16))] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }
}
