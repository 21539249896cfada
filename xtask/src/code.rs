//! Just enough of Rust's grammar to look for words in code: comments and literals blanked, `use` trees spread out,
//! test modules found. It need not accept every program, only never take prose for code.

use std::ops::Range;

/// Replaces comments, strings and character literals by spaces; line numbers stay.
pub(crate) fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        if end > at {
            for byte in &mut out[at..end] {
                if *byte != b'\n' {
                    *byte = b' ';
                }
            }
            at = end;
        } else {
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Where the comment or literal that begins at `at` ends; `at` itself when none begins there.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        return at + rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
    }
    if rest.starts_with(b"/*") {
        return at + block_comment(rest);
    }
    // A prefix letter belongs to a literal only where no identifier runs into it.
    let fresh = at == 0 || !is_word(bytes[at - 1]);
    if let Some(length) = raw_string(rest).filter(|_| fresh) {
        return at + length;
    }
    match rest {
        [b'"', ..] => at + quoted(rest, b'"'),
        [b'\'', b'\\', ..] => at + quoted(rest, b'\''),
        // `'a'` is a character, `'a` a lifetime; a character may take up to four bytes.
        [b'\'', tail @ ..] => match tail.iter().take(5).position(|&b| b == b'\'') {
            Some(length) if length > 0 && one_char(&tail[..length]) => at + length + 2,
            _ => at,
        },
        _ => at,
    }
}

fn one_char(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| text.chars().count() == 1)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Length of a block comment, nested ones included.
fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_u32, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Length of a raw string (`r"…"`, `r#"…"#`, `br"…"`, `cr"…"`), if one begins here.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let prefix = match rest {
        [b'r', ..] => 1,
        [b'b' | b'c', b'r', ..] => 2,
        _ => return None,
    };
    let hashes = rest[prefix..].iter().take_while(|&&b| b == b'#').count();
    let body = prefix + hashes;
    if rest.get(body) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.resize(hashes + 1, b'#');
    let length = rest[body + 1..].windows(close.len()).position(|window| window == close);
    Some(length.map_or(rest.len(), |length| body + 1 + length + close.len()))
}

/// Length of a literal between two `quote`s with backslash escapes.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// The line, counted from 1, in which byte `at` stands.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|&&b| b == b'\n').count() + 1
}

/// Every path named in blanked code, with the byte where it starts: plain ones (`std::fs::read`) and those spread out of
/// `use` trees (`use std::{fs, time::Instant}` gives `std::fs` and `std::time::Instant`).
pub(crate) fn paths(code: &str) -> Vec<(usize, String)> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let (start, word) = tokens[at];
        // `use<'a>` in a return type captures lifetimes and names no path.
        if word == "use" && tokens.get(at + 1).is_some_and(|token| token.1 != "<") {
            at = spread(&tokens, at + 1, String::new(), &mut found);
            continue;
        }
        if !word.as_bytes().first().is_some_and(|&b| is_word(b)) {
            at += 1;
            continue;
        }
        let mut path = word.to_owned();
        at += 1;
        while at + 1 < tokens.len() && tokens[at].1 == "::" && is_word(tokens[at + 1].1.as_bytes()[0]) {
            path = format!("{path}::{}", tokens[at + 1].1);
            at += 2;
        }
        found.push((start, path));
    }
    found
}

/// Reads one `use` tree from `at`, below `prefix`; gives where it ended.
fn spread(tokens: &[(usize, &str)], mut at: usize, prefix: String, found: &mut Vec<(usize, String)>) -> usize {
    let mut path = prefix.clone();
    let mut start = None;
    while let Some(&(place, word)) = tokens.get(at) {
        match word {
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.1 != "}") {
                    at = spread(tokens, at, path.clone(), found);
                    if tokens.get(at).is_some_and(|token| token.1 != "}") {
                        at += 1;
                    }
                }
                return at + 1;
            }
            "," | "}" | ";" => break,
            // The new name says nothing about what is used.
            "as" => at += 1,
            "::" => {}
            "self" if !path.is_empty() => start = start.or(Some(place)),
            _ => {
                start = start.or(Some(place));
                path = if path.is_empty() { word.to_owned() } else { format!("{path}::{word}") };
            }
        }
        at += 1;
    }
    if let Some(start) = start {
        found.push((start, path));
    }
    at
}

/// Words, `::`, and every other visible character alone; each with the byte where it starts.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let bytes = code.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let length = match bytes[at] {
            b if is_word(b) => bytes[at..].iter().take_while(|&&b| is_word(b)).count(),
            b':' if bytes.get(at + 1) == Some(&b':') => 2,
            _ => 1,
        };
        let end = at + length;
        if !bytes[at].is_ascii_whitespace()
            && let Some(token) = code.get(at..end)
        {
            tokens.push((at, token));
        }
        at = end;
    }
    tokens
}

/// The bodies of `#[cfg(test)] mod … { … }` in blanked code.
pub(crate) fn test_modules(code: &str) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    for (at, mark) in code.match_indices("#[cfg(test)]") {
        let after = at + mark.len();
        let Some(open) = code[after..].find(['{', ';']).map(|length| after + length) else { continue };
        if code.as_bytes()[open] == b';' || !code[after..open].contains("mod ") {
            continue;
        }
        let mut depth = 0_u32;
        for (offset, byte) in code.bytes().enumerate().skip(open) {
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                ranges.push(open..offset);
                break;
            }
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_and_literals_are_blanked_and_code_stays() {
        let cases = [
            ("let a = 1; // todo!()", "let a = 1;"),
            ("/* a /* b */ todo!() */ x", "x"),
            ("f(\"todo!() \\\" // no\") + y", "f() + y"),
            ("f(r#\"std::fs \" \"#) + y", "f() + y"),
            ("f(b\"x\", br\"y\", '\\'', '\"', 'é', b'z')", "f(b, , , , , b)"),
            ("fn f<'a>(x: &'a str) -> &'a str { x }", "fn f<'a>(x: &'a str) -> &'a str { x }"),
            ("let br = number\"s\";", "let br = number;"),
        ];
        for (text, left) in cases {
            let blanked = blank(text);
            assert_eq!(blanked.len(), text.len(), "{text}");
            let squeeze = |text: &str| text.split_whitespace().collect::<String>();
            assert_eq!(squeeze(&blanked), squeeze(left), "{text}");
        }
    }

    #[test]
    fn use_trees_are_spread_out() {
        let code = "use std::{fs, time::{self, Instant as I}, collections::HashMap}; std::net::TcpStream::connect(x)";
        let found: Vec<String> = paths(code).into_iter().map(|(_, path)| path).collect();
        for path in ["std::fs", "std::time", "std::time::Instant", "std::collections::HashMap"] {
            assert!(found.iter().any(|f| f == path), "{path} in {found:?}");
        }
        assert!(found.contains(&"std::net::TcpStream::connect".to_owned()), "{found:?}");
    }

    #[test]
    fn test_modules_are_found_and_declarations_are_not() {
        let code = "fn a() {} #[cfg(test)] mod tests { fn b() { {} } } fn c() {} #[cfg(test)] mod other;";
        let ranges = test_modules(code);
        assert_eq!(ranges.len(), 1);
        assert!(code[ranges[0].clone()].contains("fn b"));
        assert!(!code[ranges[0].clone()].contains("fn c"));
    }
}
