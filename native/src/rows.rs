//! Record values, just as our own encoder writes them -> the values of a row. The reference reads every other value.
//!
//! A value is compact JSON with its fields in the order of the event. Python passes the layouts as data.

/// How a field's text becomes a column's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FieldKind {
    /// A UUID in canonical form.
    Uuid,
    /// Text of at most so many code points.
    Text(usize),
    Integer(i64, i64),
    /// A number with a point, of so much or more.
    Double(f64),
    /// An object as our encoder writes it, kept as text.
    Object,
}

#[derive(Debug, Clone)]
pub struct RowField {
    /// `"name":`
    pub prefix: Vec<u8>,
    pub kind: FieldKind,
    pub is_required: bool,
    /// Its place in the row.
    pub column: usize,
}

#[derive(Debug, Clone)]
pub struct RowLayout {
    /// `{"schema_version":1,"table":"..",` of each version.
    pub beginnings: Vec<Vec<u8>>,
    pub fields: Vec<RowField>,
    pub columns: usize,
}

/// A column's value; None is the field's default.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// Only in rows that the reference made: a record with such a value is not plain.
    Null,
    Uuid([u8; 16]),
    Text(&'a str),
    Integer(i64),
    Double(f64),
}

/// Why the reference has to read a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotPlain {
    /// No layout begins so: another table, version or order.
    Table,
    /// A field is missing, or our encoder would write its value differently.
    Field,
}

pub type Row<'a> = Vec<Option<Value<'a>>>;

/// Which layout a value has, and its row.
///
/// # Errors
/// `NotPlain`: the reference reads it.
pub fn read<'a>(layouts: &[RowLayout], value: &'a [u8], row: &mut Row<'a>) -> Result<usize, NotPlain> {
    let begins = |layout: &RowLayout| {
        let beginning = layout.beginnings.iter().find(|beginning| value.starts_with(beginning));
        beginning.map(Vec::len)
    };
    let (number, start) = layouts
        .iter()
        .enumerate()
        .find_map(|(number, layout)| begins(layout).map(|start| (number, start)))
        .ok_or(NotPlain::Table)?;
    let layout = &layouts[number];
    row.clear();
    row.resize(layout.columns, None);
    if value.iter().any(|&byte| byte < 0x20) {
        return Err(NotPlain::Field); // in no string, and our encoder puts no white space between
    }
    let text = std::str::from_utf8(value).map_err(|_| NotPlain::Field)?;
    fields(layout, text, start, row).ok_or(NotPlain::Field)?;
    Ok(number)
}

fn fields<'a>(layout: &RowLayout, text: &'a str, start: usize, row: &mut Row<'a>) -> Option<()> {
    let bytes = text.as_bytes();
    let mut at = start;
    for (number, field) in layout.fields.iter().enumerate() {
        if !bytes[at..].starts_with(&field.prefix) {
            if field.is_required {
                return None;
            }
            continue;
        }
        at += field.prefix.len();
        let end = at + length_of(field.kind, &bytes[at..])?;
        row[field.column] = Some(value_of(field.kind, &text[at..end])?);
        let is_last = number + 1 == layout.fields.len();
        if bytes.get(end) != Some(if is_last { &b'}' } else { &b',' }) {
            return None;
        }
        at = end + 1;
    }
    (at == bytes.len()).then_some(())
}

fn length_of(kind: FieldKind, bytes: &[u8]) -> Option<usize> {
    match kind {
        FieldKind::Uuid | FieldKind::Text(_) => string_length(bytes, false),
        FieldKind::Integer(..) | FieldKind::Double(_) => Some(number_length(bytes)),
        FieldKind::Object => object_length(bytes, 0),
    }
}

fn value_of(kind: FieldKind, text: &str) -> Option<Value<'_>> {
    match kind {
        FieldKind::Uuid => Some(Value::Uuid(uuid(&text.as_bytes()[1..text.len() - 1])?)),
        FieldKind::Text(chars_max) => {
            let inside = &text[1..text.len() - 1];
            (inside.len() <= chars_max || inside.chars().count() <= chars_max).then_some(Value::Text(inside))
        }
        FieldKind::Integer(least, most) => {
            let number = integer(text)?;
            (least..=most).contains(&number).then_some(Value::Integer(number))
        }
        FieldKind::Double(least) => {
            let number = double(text)?;
            (number >= least).then_some(Value::Double(number))
        }
        FieldKind::Object => Some(Value::Text(text)),
    }
}

/// The bytes of a UUID in canonical form: lower case, with its dashes.
fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    let text: &[u8; 36] = text.try_into().ok()?;
    let mut id = [0; 16];
    let mut wrong = 0;
    for (byte, at) in id.iter_mut().zip(HEX_AT) {
        let (high, low) = (DIGITS[usize::from(text[at])], DIGITS[usize::from(text[at + 1])]);
        *byte = high << 4 | (low & 15);
        wrong |= high | low;
    }
    let has_dashes = [8, 13, 18, 23].iter().all(|&at| text[at] == b'-');
    (has_dashes && wrong & NO_DIGIT == 0).then_some(id)
}

/// The position of each byte in a UUID's text.
const HEX_AT: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
const NO_DIGIT: u8 = 0x80;
/// The value of each byte as a lower-case hex digit.
const DIGITS: [u8; 256] = {
    let mut digits = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        digits[b"0123456789abcdef"[value as usize] as usize] = value;
        value += 1;
    }
    digits
};

/// Digits without a leading zero, perhaps behind a minus.
fn integer(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_canonical = digits == "0" && text == digits || digits.starts_with(|first: char| matches!(first, '1'..='9'));
    if is_canonical { text.parse().ok() } else { None }
}

/// A number with a point, written as its shortest text.
fn double(text: &str) -> Option<f64> {
    let number: f64 = text.parse().ok()?;
    let is_usual = number == 0.0 || (1e-4..1e15).contains(&number.abs());
    (is_usual && number.is_finite() && ryu::Buffer::new().format_finite(number) == text).then_some(number)
}

fn number_length(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'.')).count()
}

/// A string with its quotes; with `may_escape`, quotes and backslashes in it may be escaped, as our encoder does.
/// Control characters were looked for before.
fn string_length(bytes: &[u8], may_escape: bool) -> Option<usize> {
    if bytes.first() != Some(&b'"') {
        return None;
    }
    let mut at = 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(at + 1);
        }
        if !may_escape || !matches!(bytes.get(at + 1), Some(b'"' | b'\\')) {
            return None;
        }
        at += 2;
    }
}

const DEPTH_MAX: u32 = 8;
const KEYS_MAX: usize = 128;

fn object_length(bytes: &[u8], depth: u32) -> Option<usize> {
    if bytes.first() != Some(&b'{') || depth > DEPTH_MAX {
        return None;
    }
    if bytes.get(1) == Some(&b'}') {
        return Some(2);
    }
    let mut keys: Vec<&[u8]> = Vec::new();
    let mut at = 1;
    loop {
        let key = string_length(&bytes[at..], true)?;
        if keys.contains(&&bytes[at..at + key]) || keys.len() >= KEYS_MAX {
            return None; // a key that comes twice: the reference decides which value stays
        }
        keys.push(&bytes[at..at + key]);
        at += key;
        if bytes.get(at) != Some(&b':') {
            return None;
        }
        at += 1;
        at += json_length(&bytes[at..], depth)?;
        match bytes.get(at)? {
            b',' => at += 1,
            b'}' => return Some(at + 1),
            _ => return None,
        }
    }
}

fn array_length(bytes: &[u8], depth: u32) -> Option<usize> {
    if depth > DEPTH_MAX {
        return None;
    }
    if bytes.get(1) == Some(&b']') {
        return Some(2);
    }
    let mut at = 1;
    loop {
        at += json_length(&bytes[at..], depth)?;
        match bytes.get(at)? {
            b',' => at += 1,
            b']' => return Some(at + 1),
            _ => return None,
        }
    }
}

fn json_length(bytes: &[u8], depth: u32) -> Option<usize> {
    match bytes.first()? {
        b'"' => string_length(bytes, true),
        b'{' => object_length(bytes, depth + 1),
        b'[' => array_length(bytes, depth + 1),
        b't' => bytes.starts_with(b"true").then_some(4),
        b'f' => bytes.starts_with(b"false").then_some(5),
        b'n' => bytes.starts_with(b"null").then_some(4),
        _ => {
            let length = number_length(bytes);
            let text = std::str::from_utf8(&bytes[..length]).ok()?;
            (integer(text).is_some() || double(text).is_some()).then_some(length)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> RowLayout {
        let field = |prefix: &str, kind, is_required, column| RowField {
            prefix: prefix.as_bytes().to_vec(),
            kind,
            is_required,
            column,
        };
        RowLayout {
            beginnings: vec![b"{\"v\":1,".to_vec()],
            fields: vec![
                field("\"a\":", FieldKind::Text(3), true, 1),
                field("\"n\":", FieldKind::Integer(0, 999), false, 0),
                field("\"m\":", FieldKind::Object, true, 2),
            ],
            columns: 3,
        }
    }

    #[test]
    fn a_plain_value_becomes_a_row_in_the_order_of_its_columns() {
        let mut row = Row::new();
        let layouts = [layout()];
        let value = br#"{"v":1,"a":"xyz","n":200,"m":{"k":[1,2.5,null,true,"q\""],"o":{}}}"#;
        assert_eq!(read(&layouts, value, &mut row), Ok(0));
        let metadata = r#"{"k":[1,2.5,null,true,"q\""],"o":{}}"#;
        let expected = [Some(Value::Integer(200)), Some(Value::Text("xyz")), Some(Value::Text(metadata))];
        assert_eq!(row, expected);
        assert_eq!(read(&layouts, br#"{"v":1,"a":"x","m":{}}"#, &mut row), Ok(0));
        assert_eq!(row[0], None);
    }

    #[test]
    fn whatever_is_written_another_way_is_left_to_the_reference() {
        let layouts = [layout()];
        let mut row = Row::new();
        assert_eq!(read(&layouts, br#"{"v":2,"a":"x","m":{}}"#, &mut row), Err(NotPlain::Table));
        for value in [
            r#"{"v":1,"m":{},"a":"x"}"#,
            r#"{"v":1,"a":"wxyz","m":{}}"#,
            r#"{"v":1,"a":"x","n":01,"m":{}}"#,
            r#"{"v":1,"a":"x","n":1000,"m":{}}"#,
            r#"{"v":1,"a":"x","n":null,"m":{}}"#,
            r#"{"v":1,"a":"\n","m":{}}"#,
            r#"{"v":1,"a":"x","m":{ }}"#,
            r#"{"v":1,"a":"x","m":{"k":1,"k":2}}"#,
            r#"{"v":1,"a":"x","m":{"k":1.50}}"#,
            r#"{"v":1,"a":"x","m":{"k":1e5}}"#,
            r#"{"v":1,"a":"x","m":{}} "#,
            r#"{"v":1,"a":"x","m":{}"#,
            r#"{"v":1,"a":"x","m":{},}"#,
        ] {
            assert_eq!(read(&layouts, value.as_bytes(), &mut row), Err(NotPlain::Field), "{value}");
        }
    }
}
