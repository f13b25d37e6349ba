//! The raw ids of a span and its resource, which may occur nowhere else in them.

use super::{Declined, Step};
use crate::otlp::Value;

const OWN_IDS_MAX: usize = 4;
const OWN_ID_BYTES_MIN: usize = 4;

/// A raw id, which may not occur anywhere else in the span or its resource.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum OwnId {
    Text(Box<[u8]>),
    Int(i64),
}

pub(super) fn note_id(ids: &mut Vec<OwnId>, value: Value<'_>) -> Step<()> {
    let id = match value {
        Value::Text(id) if !is_plain_id(id) => return Err(Declined::Ids),
        Value::Text(id) if id.len() >= OWN_ID_BYTES_MIN => OwnId::Text(id.into()),
        Value::Text(_) => return Ok(()),
        Value::Int(number) => OwnId::Int(number),
        _ => return Err(Declined::Ids),
    };
    if ids.len() >= OWN_IDS_MAX {
        return Err(Declined::Size);
    }
    ids.push(id);
    Ok(())
}

/// Whether the id has one spelling: no escapes, no spaces around it, no letters that look alike.
fn is_plain_id(id: &[u8]) -> bool {
    id.iter().all(|&byte| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'&' | b'\\'))
}

/// How often the id stands in the bytes as text.
pub(super) fn occurrences(bytes: &[u8], id: &OwnId) -> usize {
    match id {
        OwnId::Text(id) => memchr::memmem::find_iter(bytes, id).count(),
        OwnId::Int(number) => {
            let mut buffer = itoa::Buffer::new();
            let text = buffer.format(*number).as_bytes();
            if text.len() < OWN_ID_BYTES_MIN { 0 } else { memchr::memmem::find_iter(bytes, text).count() }
        }
    }
}

/// Whether a number is an owner's id, or its text equals one.
pub(super) fn is_an_owners(value: Value<'_>, ids: &[OwnId]) -> bool {
    let (mut shortest, mut whole) = (ryu::Buffer::new(), itoa::Buffer::new());
    let (text, whole) = match value {
        Value::Int(number) => {
            let text = whole.format(number).as_bytes();
            (text, text)
        }
        Value::Double(number) if number.is_finite() => {
            #[allow(clippy::cast_possible_truncation)] // a double with a fraction is no whole id
            let whole = if number.fract() == 0.0 { whole.format(number as i64) } else { "" };
            (shortest.format_finite(number).as_bytes(), whole.as_bytes())
        }
        _ => return false,
    };
    ids.iter().any(|id| match id {
        OwnId::Text(id) => id.as_ref() == text || id.as_ref() == whole,
        OwnId::Int(id) => itoa::Buffer::new().format(*id).as_bytes() == whole,
    })
}
