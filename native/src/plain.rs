//! Text -> whether it is provably plain: no privacy rule could change it, and its JSON is itself between quotes.
//!
//! These tests are no rules: they accept only texts that no rule can concern. The reference has the rules, and judges
//! every other text.

/// The most digits that no card number has: a card number has 13 or more.
const DIGITS_MAX: u32 = 12;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Never in a plain text: control characters, escapes, and characters that may begin a query, an address or a user.
    No,
    Letter,
    Digit,
    Dot,
    Colon,
    Quote,
    /// A separator: harmless by itself, but digits on its two sides may form one number.
    Other,
}

const CLASSES: [Class; 256] = classes();

const fn classes() -> [Class; 256] {
    let mut classes = [Class::No; 256];
    let mut byte = 0x20;
    while byte < 0x7F {
        classes[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
            b'0'..=b'9' => Class::Digit,
            b'.' => Class::Dot,
            b':' => Class::Colon,
            b'"' => Class::Quote,
            b'@' | b'%' | b'?' | b'#' | b';' | b'&' | b'\\' => Class::No,
            _ => Class::Other,
        };
        byte += 1;
    }
    classes
}

/// How a plain text is written between the quotes of JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    AsIs,
    /// With its quotes escaped.
    Escaped,
}

/// How to write the text when no rule could concern it; None: the reference judges it.
///
/// The literals of secrets are not searched here, but once in the whole span.
#[must_use]
pub fn text(bytes: &[u8], chars_max: usize) -> Option<Plain> {
    let &first = bytes.first()?;
    if first <= 0x20 || bytes.len() > chars_max {
        return None;
    }
    let (mut dots, mut colons, mut digits) = (0, 0, 0);
    let mut found = Plain::AsIs;
    for (at, &byte) in bytes.iter().enumerate() {
        match CLASSES[byte as usize] {
            Class::No => return None,
            Class::Letter => {
                digits = 0;
                if byte | 0x20 == b'b' && has_earer(&bytes[at + 1..]) {
                    return None;
                }
            }
            Class::Digit => {
                digits += 1;
                if digits > DIGITS_MAX {
                    return None;
                }
            }
            Class::Dot => dots += 1,
            Class::Colon => {
                colons += 1;
                if bytes.get(at + 1) == Some(&b'/') {
                    return None;
                }
            }
            Class::Quote => found = Plain::Escaped,
            Class::Other => {}
        }
    }
    if dots >= 3 || colons >= 2 { None } else { Some(found) }
}

fn has_earer(rest: &[u8]) -> bool {
    rest.len() >= 5 && rest[..5].eq_ignore_ascii_case(b"earer")
}

/// Add a plain text between quotes.
pub fn write_text(out: &mut Vec<u8>, bytes: &[u8], how: Plain) {
    out.push(b'"');
    match how {
        Plain::AsIs => out.extend_from_slice(bytes),
        Plain::Escaped => {
            for &byte in bytes {
                if byte == b'"' {
                    out.push(b'\\');
                }
                out.push(byte);
            }
        }
    }
    out.push(b'"');
}

/// Add the template of a path between quotes. None: the reference judges the path, and `out` may hold part of it.
///
/// `may_have_placeholders`: segments such as `{name}` stay. `needs_no_ids`: a path that holds one is declined.
#[must_use]
pub fn write_path(out: &mut Vec<u8>, path: &[u8], placeholder: &[u8], chars_max: usize, how: PathRules) -> Option<()> {
    let rest = path.strip_prefix(b"/")?;
    let is_bare = !rest.starts_with(b"/") && !rest.ends_with(b"/");
    if path.len() > chars_max || (how.is_trimmed && !is_bare) {
        return None;
    }
    let start = out.len();
    out.push(b'"');
    for segment in rest.split(|&byte| byte == b'/') {
        out.push(b'/');
        match segment_kind(segment, how.may_have_placeholders)? {
            Segment::Stays => out.extend_from_slice(segment),
            Segment::Id if how.may_have_ids => out.extend_from_slice(placeholder),
            Segment::Id => return None,
        }
    }
    if out.len() - start - 1 > chars_max {
        return None;
    }
    out.push(b'"');
    Some(())
}

#[derive(Debug, Clone, Copy)]
pub struct PathRules {
    pub may_have_placeholders: bool,
    pub may_have_ids: bool,
    pub is_trimmed: bool,
}

enum Segment {
    Stays,
    Id,
}

/// Shorter segments are ids only when they are all digits.
const SHORT: usize = 16;

fn segment_kind(segment: &[u8], may_have_placeholders: bool) -> Option<Segment> {
    if let Some(inside) = segment.strip_prefix(b"{") {
        let name = inside.strip_suffix(b"}")?;
        let is_name = name.first().is_some_and(|&byte| byte.is_ascii_alphabetic() || byte == b'_')
            && name.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'_');
        return (may_have_placeholders && is_name && name.len() < SHORT).then_some(Segment::Stays);
    }
    let (mut digits, mut run, mut longest_run, mut dots, mut hex, mut dashes) = (0, 0, 0, 0, 0, 0);
    for (at, &byte) in segment.iter().enumerate() {
        match byte {
            b'0'..=b'9' => {
                digits += 1;
                run += 1;
                longest_run = run.max(longest_run);
                hex += 1;
            }
            b'a'..=b'f' | b'A'..=b'F' => {
                run = 0;
                hex += 1;
                if byte | 0x20 == b'b' && has_earer(&segment[at + 1..]) {
                    return None;
                }
            }
            b'g'..=b'z' | b'G'..=b'Z' => run = 0,
            b'-' => dashes += 1,
            b'.' => dots += 1,
            b'_' => {}
            _ => return None,
        }
    }
    let length = segment.len();
    if length > 0 && digits == length {
        return Some(Segment::Id);
    }
    if dots >= 3 || longest_run > DIGITS_MAX {
        return None;
    }
    if length < SHORT {
        return Some(Segment::Stays);
    }
    if hex == length || (length == 36 && hex == 32 && dashes == 4 && is_uuid(segment)) {
        return Some(Segment::Id);
    }
    (digits == 0 && hex + dashes < length).then_some(Segment::Stays)
}

fn is_uuid(segment: &[u8]) -> bool {
    [8, 13, 18, 23].iter().all(|&at| segment[at] == b'-')
}

/// Whether the bytes are a path with a placeholder in it.
#[must_use]
pub fn has_placeholder(path: &[u8]) -> bool {
    path.contains(&b'{')
}

/// Add letters in upper case between quotes; None: the reference judges it.
#[must_use]
pub fn write_token(out: &mut Vec<u8>, bytes: &[u8], chars_max: usize) -> Option<()> {
    if bytes.is_empty() || bytes.len() > chars_max || !bytes.iter().all(u8::is_ascii_alphabetic) {
        return None;
    }
    out.push(b'"');
    out.extend(bytes.iter().map(u8::to_ascii_uppercase));
    out.push(b'"');
    Some(())
}

/// The largest integer that cannot be a card number.
const NUMBER_MAX: i64 = 999_999_999_999;

/// Add an integer; None: the reference judges it.
#[must_use]
pub fn write_integer(out: &mut Vec<u8>, number: i64) -> Option<()> {
    if !(-NUMBER_MAX..=NUMBER_MAX).contains(&number) {
        return None;
    }
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    Some(())
}

/// Add a number as its shortest text; None where Python and Rust write exponents differently, or for -0.0.
#[must_use]
pub fn write_number(out: &mut Vec<u8>, number: f64) -> Option<()> {
    let size = number.abs();
    if number == 0.0 {
        if number.is_sign_negative() {
            return None;
        }
    } else if !(1e-4..1e12).contains(&size) {
        return None;
    }
    out.extend_from_slice(ryu::Buffer::new().format_finite(number).as_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_could_concern_a_rule_is_not_plain() {
        for judged in [
            "",
            " a",
            "a@b",
            "50%",
            "a?b=c",
            "a#b",
            "a;b",
            "a&lt;",
            "a\\b",
            "ftp://x",
            "1.2.3.4",
            "::1",
            "a:b:c",
            "4111 1111 1111 1",
            "4111-1111-1111-1",
            "beArer x",
            "tab\t",
            "caf\u{e9}",
        ] {
            assert_eq!(text(judged.as_bytes(), 100), None, "{judged}");
        }
        for plain in ["a", "login failed", "2.14.1", "12:30", "user-12345", "0123456789ab4444444"] {
            assert_eq!(text(plain.as_bytes(), 100), Some(Plain::AsIs), "{plain}");
        }
        assert_eq!(text(b"say \"x\"", 100), Some(Plain::Escaped));
        assert_eq!(text(b"abc", 2), None);
    }

    fn template(path: &str) -> Option<String> {
        let mut out = Vec::new();
        let how = PathRules { may_have_placeholders: true, may_have_ids: true, is_trimmed: true };
        write_path(&mut out, path.as_bytes(), b"{id}", 255, how)?;
        Some(String::from_utf8(out).unwrap())
    }

    #[test]
    fn segments_that_are_ids_give_way() {
        for (path, expected) in [
            ("/", Some("\"/\"")),
            ("/api/v1/orders/4711000", Some("\"/api/v1/orders/{id}\"")),
            ("/a/{id}/b_c", Some("\"/a/{id}/b_c\"")),
            ("/a/0123456789abcdef", Some("\"/a/{id}\"")),
            ("/a/0af76519-16cd-43dd-8448-eb211c80319c", Some("\"/a/{id}\"")),
            ("/notifications/unread-messages", Some("\"/notifications/unread-messages\"")),
            ("/a/claude-3-5-sonnet-20241022", None),
            ("/a/1.2.3.4", None),
            ("/a/", None),
            ("a", None),
            ("/a/:id", None),
            ("/a/<id>", None),
            ("/a/b%20c", None),
        ] {
            assert_eq!(template(path).as_deref(), expected, "{path}");
        }
    }
}
