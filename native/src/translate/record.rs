//! A span's values -> its record's value: the columns in the order of the event, then the metadata.

use std::ops::Range;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::own_ids::{OwnId, is_an_owners};
use super::resource::Resource;
use super::{Declined, SERVER, Step, Trace, Translator};
use crate::event_id::{write_hex, write_uuid};
use crate::mapping::{Form, Kind, MetadataRole, Source};
use crate::otlp::{Attribute, Span, Value};
use crate::plain::{self, PathRules};

/// Everything from which a record is written.
pub(super) struct Written<'s, 'a> {
    pub(super) attributes: &'s [Attribute<'a>],
    pub(super) resource: &'s Resource,
    pub(super) span: &'s Span<'a>,
    pub(super) ids: &'s [OwnId],
    pub(super) metadata: &'s [(usize, Value<'a>)],
    pub(super) id: [u8; 16],
}

impl Translator {
    /// Add the record's value, and return the place of the column `exclusion` in it.
    pub(super) fn write(
        &self,
        out: &mut Vec<u8>,
        table: usize,
        of: &Written<'_, '_>,
        exclusion: Option<usize>,
        trace: &mut impl Trace,
    ) -> Step<Option<Range<usize>>> {
        let mut excluding = None;
        let table = &self.mapping.tables[table];
        out.extend_from_slice(&table.prefix);
        for field in &table.fields {
            match &field.source {
                Source::Column { column, is_required, default, is_duration } => {
                    let start = out.len();
                    out.extend_from_slice(&field.prefix);
                    match self.chosen(*column, of.attributes, of.resource) {
                        Some((value, form)) => {
                            self.write_value(out, *column, value, form, of)?;
                            if exclusion == Some(*column) {
                                excluding = Some(start + field.prefix.len()..out.len());
                            }
                        }
                        None if self.mapping.columns[*column].is_inherited
                            && trace.names(*column, of.span.trace_id) =>
                        {
                            return Err(Declined::Trace);
                        }
                        None if *is_required => return Err(Declined::Missing),
                        None => match default {
                            Some(default) => out.extend_from_slice(default),
                            None if *is_duration && of.span.end_ns != 0 && of.span.end_ns >= of.span.start_ns => {
                                write_duration(out, of.span.end_ns - of.span.start_ns)?;
                            }
                            None => {
                                out.truncate(start);
                                continue;
                            }
                        },
                    }
                }
                Source::Weight(_) if memchr::memmem::find(of.span.trace_state, b"ot=").is_some() => {
                    return Err(Declined::Rule);
                }
                Source::Weight(default) => {
                    out.extend_from_slice(&field.prefix);
                    out.extend_from_slice(default);
                }
                Source::EventId => {
                    out.extend_from_slice(&field.prefix);
                    write_uuid(out, &of.id);
                }
                Source::TraceId => {
                    out.extend_from_slice(&field.prefix);
                    let id: &[u8; 16] = of.span.trace_id.try_into().map_err(|_| Declined::Ids)?;
                    write_uuid(out, id);
                }
                Source::TimestampUs => {
                    out.extend_from_slice(&field.prefix);
                    out.extend_from_slice(itoa::Buffer::new().format(of.span.start_ns / 1000).as_bytes());
                }
                Source::Metadata => {
                    out.extend_from_slice(&field.prefix);
                    self.write_all_metadata(out, of)?;
                }
            }
            out.push(b',');
        }
        let last = out.len() - 1;
        out[last] = b'}';
        Ok(excluding)
    }

    fn write_value(
        &self,
        out: &mut Vec<u8>,
        column: usize,
        value: Value<'_>,
        form: Form,
        of: &Written<'_, '_>,
    ) -> Step<()> {
        let start = out.len();
        if form == Form::Judged {
            return Err(Declined::Rule);
        }
        if self.mapping.columns[column].is_named_by_span && form != Form::Route && of.span.kind == SERVER {
            // Without a route attribute, the span's name may hold the route.
            return self.write_named_path(out, column, value, form, of.span.name);
        }
        self.write_column(out, column, value, form)?;
        self.is_raw_path.set(self.is_raw_path.get() || form == Form::Path);
        if is_an_owners(value, of.ids) && self.mapping.columns[column].kind != Kind::HashedId {
            out.truncate(start);
            return Err(Declined::OwnId);
        }
        Ok(())
    }

    fn write_named_path(
        &self,
        out: &mut Vec<u8>,
        column: usize,
        value: Value<'_>,
        form: Form,
        name: &[u8],
    ) -> Step<()> {
        let split = memchr::memchr(b' ', name);
        if let Some((method, path)) = split.map(|at| (&name[..at], &name[at + 1..])) {
            if !method.iter().all(u8::is_ascii_uppercase) || memchr::memchr(b'/', path).is_none_or(|at| at != 0) {
                return Err(Declined::Path);
            }
            let Kind::Path(chars_max) = self.mapping.columns[column].kind else {
                return Err(Declined::Path);
            };
            let how = PathRules { may_have_placeholders: true, may_have_ids: false, is_trimmed: true };
            self.is_raw_path.set(!plain::has_placeholder(path));
            return plain::write_path(out, path, &self.mapping.placeholder, chars_max, how).ok_or(Declined::Path);
        }
        if memchr::memchr(b'/', name).is_some() {
            return Err(Declined::Path);
        }
        self.is_raw_path.set(form == Form::Path);
        self.write_column(out, column, value, form)
    }

    fn write_column(&self, out: &mut Vec<u8>, column: usize, value: Value<'_>, form: Form) -> Step<()> {
        match (self.mapping.columns[column].kind, value) {
            (Kind::Text(chars_max), Value::Text(text)) => {
                let how = plain::text(text, chars_max).ok_or(Declined::Text)?;
                plain::write_text(out, text, how);
            }
            (Kind::HashedId, value) => self.write_hash(out, value)?,
            (Kind::Path(chars_max), Value::Text(path)) => {
                let how = match form {
                    Form::Route => {
                        PathRules { may_have_placeholders: true, may_have_ids: true, is_trimmed: path.len() > 1 }
                    }
                    Form::Path => PathRules { may_have_placeholders: false, may_have_ids: true, is_trimmed: false },
                    Form::Any | Form::Judged => return Err(Declined::Path),
                };
                plain::write_path(out, path, &self.mapping.placeholder, chars_max, how).ok_or(Declined::Path)?;
            }
            (Kind::Token(chars_max), Value::Text(text)) => {
                plain::write_token(out, text, chars_max).ok_or(Declined::Text)?;
            }
            (Kind::Integer(least, most), Value::Int(number)) if (least..=most).contains(&number) => {
                plain::write_integer(out, number).ok_or(Declined::Number)?;
            }
            #[allow(clippy::cast_precision_loss)] // `write_number` declines what is not exact
            (Kind::Number, Value::Int(number)) if number >= 0 => {
                plain::write_number(out, number as f64).ok_or(Declined::Number)?;
            }
            (Kind::Number, Value::Double(number)) if number >= 0.0 => {
                plain::write_number(out, number).ok_or(Declined::Number)?;
            }
            _ => return Err(Declined::Text),
        }
        Ok(())
    }

    fn write_hash(&self, out: &mut Vec<u8>, value: Value<'_>) -> Step<()> {
        let mut buffer = itoa::Buffer::new();
        let id = match value {
            Value::Text(id) => id,
            Value::Int(number) => buffer.format(number).as_bytes(),
            _ => return Err(Declined::Ids),
        };
        if std::str::from_utf8(id).is_err() {
            return Err(Declined::Ids);
        }
        out.push(b'"');
        let hashing = &self.mapping.hashing;
        let is_hash = |&byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if hashing.is_prehashed && id.len() == 16 && id.iter().all(is_hash) {
            out.extend_from_slice(id);
        } else {
            let digest: [u8; 32] = match &hashing.key {
                None => Sha256::digest(id).into(),
                Some(key) => {
                    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| Declined::Ids)?;
                    mac.update(id);
                    mac.finalize().into_bytes().into()
                }
            };
            write_hex(out, &digest[..8]);
        }
        out.push(b'"');
        Ok(())
    }

    fn write_all_metadata(&self, out: &mut Vec<u8>, of: &Written<'_, '_>) -> Step<()> {
        out.push(b'{');
        let start = out.len();
        for &(role, value) in of.metadata {
            if let Some(metadata) = &self.roles[role].metadata {
                write_metadata(out, metadata, value, of.ids, self.mapping.metadata_chars_max)?;
            }
        }
        out.extend_from_slice(&of.resource.metadata);
        if out.len() > start {
            out.pop(); // the last comma
        }
        out.push(b'}');
        Ok(())
    }
}

/// Add `"name":value,`, or nothing when the key does not allow the value's type.
pub(super) fn write_metadata(
    out: &mut Vec<u8>,
    role: &MetadataRole,
    value: Value<'_>,
    ids: &[OwnId],
    chars_max: usize,
) -> Step<()> {
    if is_absent(value) {
        return Err(Declined::Text);
    }
    let is_kept = match value {
        Value::Text(_) => role.keeps_text,
        Value::Bool(_) => role.keeps_bool,
        Value::Int(_) | Value::Double(_) => role.keeps_number,
        Value::Unset | Value::Nested => return Err(Declined::Text),
    };
    if !is_kept {
        return Ok(());
    }
    if is_an_owners(value, ids) {
        return Err(Declined::OwnId);
    }
    out.extend_from_slice(&role.prefix);
    match value {
        Value::Text(text) => {
            let how = plain::text(text, chars_max).ok_or(Declined::Text)?;
            plain::write_text(out, text, how);
        }
        Value::Bool(flag) => out.extend_from_slice(if flag { b"true" } else { b"false" }),
        Value::Int(number) => plain::write_integer(out, number).ok_or(Declined::Number)?,
        Value::Double(number) => plain::write_number(out, number).ok_or(Declined::Number)?,
        Value::Unset | Value::Nested => return Err(Declined::Text),
    }
    out.push(b',');
    Ok(())
}

/// Add nanoseconds as milliseconds, exactly as a division of the two integers gives.
fn write_duration(out: &mut Vec<u8>, ns: u64) -> Step<()> {
    if ns >= 1 << 53 {
        return Err(Declined::Number);
    }
    #[allow(clippy::cast_precision_loss)] // exact below 2^53
    let ms = ns as f64 / 1e6;
    plain::write_number(out, ms).ok_or(Declined::Number)
}

/// Whether the value may count as absent: unset, or a text that begins with no visible ASCII character.
pub(super) fn is_absent(value: Value<'_>) -> bool {
    match value {
        Value::Unset => true,
        Value::Text(text) => !text.first().is_some_and(u8::is_ascii_graphic),
        _ => false,
    }
}
