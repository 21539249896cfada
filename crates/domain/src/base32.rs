//! Base 32 as people can read it out: lower-case letters and the digits 2 to 7 (RFC 4648 without padding).

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Writes bytes as text, eight characters for each five bytes.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(5) * 8);
    for group in bytes.chunks(5) {
        let value = (0..5).fold(0u64, |value, at| value << 8 | u64::from(group.get(at).copied().unwrap_or(0)));
        for at in 0..(group.len() * 8).div_ceil(5) {
            out.push(char::from(ALPHABET[(value >> (35 - 5 * at) & 31) as usize]));
        }
    }
    out
}

/// Reads text back, capital letters too. Bits that do not fill a byte are dropped, so that the beginning of a text
/// gives the beginning of its bytes.
///
/// # Errors
/// The first character that is none of the alphabet.
pub fn decode(text: &str) -> Result<Vec<u8>, char> {
    let mut out = Vec::with_capacity(text.len() * 5 / 8);
    let (mut value, mut bits) = (0u32, 0);
    for c in text.chars() {
        let digit = match c.to_ascii_lowercase() {
            c @ 'a'..='z' => u32::from(c) - u32::from('a'),
            c @ '2'..='7' => u32::from(c) - u32::from('2') + 26,
            _ => return Err(c),
        };
        value = value << 5 | digit;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            out.push((value >> bits & 0xff) as u8);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_rfc_4648() {
        let cases =
            [("", ""), ("f", "my"), ("fo", "mzxq"), ("foo", "mzxw6"), ("foob", "mzxw6yq"), ("foobar", "mzxw6ytboi")];
        for (bytes, text) in cases {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text).as_deref(), Ok(bytes.as_bytes()));
            assert_eq!(decode(&text.to_uppercase()).as_deref(), Ok(bytes.as_bytes()));
        }
        assert_eq!(decode("mz1"), Err('1'));
        assert_eq!(decode("mzxw6y").as_deref(), Ok(&b"foo"[..]), "cut short");
    }
}
