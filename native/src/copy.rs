//! Values of rows -> Postgres' binary COPY format.

/// A column's type in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    Uuid,
    Text,
    Int4,
    Int8,
    Float8,
    /// Microseconds since 1970 UTC.
    Timestamp,
    Json,
}

pub const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
pub const TRAILER: [u8; 2] = (-1i16).to_be_bytes();
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000; // 2000-01-01

pub fn write_null(out: &mut Vec<u8>) {
    out.extend_from_slice(&(-1i32).to_be_bytes());
}

/// Write a text value. None: it does not fit its column, and `out` may hold part of it.
#[must_use]
pub fn write_text(out: &mut Vec<u8>, column: ColumnType, text: &str) -> Option<()> {
    match column {
        ColumnType::Text => write_bytes(out, &[], text.as_bytes()),
        ColumnType::Json => write_bytes(out, &[1], text.as_bytes()), // the version of jsonb's binary form
        ColumnType::Uuid => write_bytes(out, &[], &uuid(text)?),
        _ => None,
    }
}

/// As `write_text`.
#[must_use]
pub fn write_uuid(out: &mut Vec<u8>, column: ColumnType, id: [u8; 16]) -> Option<()> {
    match column {
        ColumnType::Uuid => write_bytes(out, &[], &id),
        _ => None,
    }
}

/// As `write_text`.
#[must_use]
pub fn write_integer(out: &mut Vec<u8>, column: ColumnType, number: i64) -> Option<()> {
    match column {
        ColumnType::Int4 => write_bytes(out, &[], &i32::try_from(number).ok()?.to_be_bytes()),
        ColumnType::Int8 => write_bytes(out, &[], &number.to_be_bytes()),
        ColumnType::Timestamp => write_bytes(out, &[], &number.checked_sub(POSTGRES_EPOCH_US)?.to_be_bytes()),
        _ => None,
    }
}

/// As `write_text`.
#[must_use]
pub fn write_double(out: &mut Vec<u8>, column: ColumnType, number: f64) -> Option<()> {
    match column {
        ColumnType::Float8 => write_bytes(out, &[], &number.to_be_bytes()),
        _ => None,
    }
}

fn write_bytes(out: &mut Vec<u8>, before: &[u8], bytes: &[u8]) -> Option<()> {
    out.extend_from_slice(&i32::try_from(before.len() + bytes.len()).ok()?.to_be_bytes());
    out.extend_from_slice(before);
    out.extend_from_slice(bytes);
    Some(())
}

/// A field of a row; None: null, or no such field.
#[must_use]
pub fn field(row: &[u8], column: usize) -> Option<&[u8]> {
    let mut at = 2;
    for _ in 0..column {
        at += 4 + usize::try_from(length_at(row, at)?).unwrap_or(0);
    }
    let length = usize::try_from(length_at(row, at)?).ok()?;
    row.get(at + 4..at + 4 + length)
}

fn length_at(row: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_be_bytes(row.get(at..at + 4)?.try_into().ok()?))
}

/// A row with one more column at its end, an int4.
pub fn write_with_one_more(out: &mut Vec<u8>, row: &[u8], number: i32) {
    let (count, fields) = row.split_at(2);
    let count = i16::from_be_bytes([count[0], count[1]]);
    out.extend_from_slice(&(count + 1).to_be_bytes());
    out.extend_from_slice(fields);
    out.extend_from_slice(&4i32.to_be_bytes());
    out.extend_from_slice(&number.to_be_bytes());
}

/// The bytes of a UUID's text, dashes anywhere.
#[must_use]
pub fn uuid(text: &str) -> Option<[u8; 16]> {
    let mut id = [0; 16];
    let mut digits = 0;
    for byte in text.bytes().filter(|&byte| byte != b'-') {
        let digit = char::from(byte).to_digit(16)? as u8;
        let place: &mut u8 = id.get_mut(digits / 2)?;
        *place = *place << 4 | digit;
        digits += 1;
    }
    (digits == 32).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_behind_nulls_and_a_column_can_be_added() {
        let mut row = 3i16.to_be_bytes().to_vec();
        write_null(&mut row);
        write_text(&mut row, ColumnType::Text, "ab").unwrap();
        write_null(&mut row);
        assert_eq!(
            [field(&row, 0), field(&row, 1), field(&row, 2), field(&row, 3)],
            [None, Some(&b"ab"[..]), None, None]
        );
        let mut more = Vec::new();
        write_with_one_more(&mut more, &row, 7);
        assert_eq!((&more[..2], field(&more, 3)), (&[0, 4][..], Some(&[0, 0, 0, 7][..])));
    }

    #[test]
    fn values_are_written_with_their_length_before_them() {
        let mut out = Vec::new();
        write_text(&mut out, ColumnType::Json, "{}").unwrap();
        write_integer(&mut out, ColumnType::Timestamp, POSTGRES_EPOCH_US + 1).unwrap();
        write_null(&mut out);
        assert_eq!(out, [0, 0, 0, 3, 1, b'{', b'}', 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 255, 255, 255, 255]);
        assert_eq!(write_integer(&mut out, ColumnType::Int4, 1 << 31), None);
        assert_eq!(uuid("0af7651916cd43dd8448eb211c80319"), None);
    }
}
