//! A Kafka record batch as the broker hands it out -> its records.
//!
//! This module reads only format 2, uncompressed or zstd, with a correct checksum and every byte accounted for.
//! It gives no answer for any other bytes; the client library reads those.

use std::io::Read;

use crate::record_batch::HEADER_BYTES;

const MAGIC_AT: usize = 16;
const CHECKED_FROM: usize = 21; // the checksum covers the attributes and all that follows
const MAGIC: u8 = 2;
const CODEC: i16 = 0x07;
const ZSTD: i16 = 4;
const LOG_APPEND_TIME: i16 = 0x08;
const CONTROL: i16 = 0x20;
/// The limit of a decompressed batch: 64 times the broker's default limit of a compressed one.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A range in `Records::bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

#[derive(Debug, Clone, Copy)]
pub struct Record {
    pub offset: i64,
    pub time_ms: i64,
    pub key: Option<Span>,
    pub value: Option<Span>,
    /// The number of headers, then each one's name and value, with their lengths.
    pub headers: Span,
}

/// Records in the order of their offsets, and the bytes that they point into.
#[derive(Debug, Clone, Default)]
pub struct Records {
    pub bytes: Vec<u8>,
    pub records: Vec<Record>,
    /// 0: set by the producer, 1: by the broker.
    pub timestamp_type: i32,
}

/// A name and its value.
pub type Header<'a> = (&'a str, Option<&'a [u8]>);

impl Records {
    #[must_use]
    pub fn slice(&self, span: Span) -> &[u8] {
        &self.bytes[span.start as usize..span.end as usize]
    }

    /// The headers of a record.
    #[must_use]
    pub fn headers(&self, record: &Record) -> Vec<Header<'_>> {
        let mut found = Vec::new();
        each_header(&mut Reader { bytes: self.slice(record.headers), at: 0 }, |header| found.push(header));
        found
    }
}

/// The records of one whole batch from `from_offset` on; None when the client library must read it.
#[must_use]
pub fn read(batch: &[u8], from_offset: i64) -> Option<Records> {
    let length = i32::from_be_bytes(fixed(batch, 8)?);
    if batch.len() < HEADER_BYTES || batch[MAGIC_AT] != MAGIC || usize::try_from(length).ok()? + 12 != batch.len() {
        return None;
    }
    let attributes = i16::from_be_bytes(fixed(batch, 21)?);
    let crc = u32::from_be_bytes(fixed(batch, 17)?);
    if attributes & CONTROL != 0 || crc32c::crc32c(&batch[CHECKED_FROM..]) != crc {
        return None;
    }
    let bytes = match attributes & CODEC {
        0 => batch[HEADER_BYTES..].to_vec(),
        ZSTD => decompressed(&batch[HEADER_BYTES..])?,
        _ => return None,
    };
    let count = usize::try_from(i32::from_be_bytes(fixed(batch, 57)?)).ok()?;
    let mut header = Origin {
        base_offset: i64::from_be_bytes(fixed(batch, 0)?),
        last_offset_delta: i64::from(i32::from_be_bytes(fixed(batch, 23)?)),
        first_ms: i64::from_be_bytes(fixed(batch, 27)?),
        appended_ms: (attributes & LOG_APPEND_TIME != 0).then_some(i64::from_be_bytes(fixed(batch, 35)?)),
        next_delta: 0,
    };
    let mut records = Vec::with_capacity(count.min(bytes.len() / 7 + 1)); // a record takes 7 bytes at least
    let mut reader = Reader { bytes: &bytes, at: 0 };
    for _ in 0..count {
        let record = record(&mut reader, &mut header)?;
        if record.offset >= from_offset {
            records.push(record);
        }
    }
    let timestamp_type = i32::from(header.appended_ms.is_some());
    (reader.at == bytes.len()).then_some(Records { bytes, records, timestamp_type })
}

/// The fields of the batch's header from which a record's offset and time follow.
struct Origin {
    base_offset: i64,
    last_offset_delta: i64,
    first_ms: i64,
    appended_ms: Option<i64>,
    /// The lowest offset that the next record may have. Compaction may have removed records, so it may be higher.
    next_delta: i64,
}

fn record(reader: &mut Reader<'_>, header: &mut Origin) -> Option<Record> {
    let length = usize::try_from(reader.varint()?).ok()?;
    let end = reader.at.checked_add(length)?;
    if *reader.bytes.get(reader.at)? != 0 {
        return None; // attributes: none are defined
    }
    reader.at += 1;
    let created_ms = header.first_ms.checked_add(reader.varint()?)?;
    let delta = reader.varint()?;
    if delta < header.next_delta || delta > header.last_offset_delta {
        return None;
    }
    header.next_delta = delta + 1;
    let key = reader.nullable()?;
    let value = reader.nullable()?;
    let headers_at = reader.at;
    each_header(reader, |_| ())?;
    (reader.at == end).then_some(Record {
        offset: header.base_offset.checked_add(delta)?,
        time_ms: header.appended_ms.unwrap_or(created_ms),
        key,
        value,
        headers: span(headers_at, end)?,
    })
}

/// Pass each header to `found`; None when the bytes are no headers.
fn each_header<'a>(reader: &mut Reader<'a>, mut found: impl FnMut(Header<'a>)) -> Option<()> {
    for _ in 0..usize::try_from(reader.varint()?).ok()? {
        let name = reader.nullable()??;
        let name = std::str::from_utf8(&reader.bytes[name.start as usize..name.end as usize]).ok()?;
        let value = reader.nullable()?;
        found((name, value.map(|span| &reader.bytes[span.start as usize..span.end as usize])));
    }
    Some(())
}

fn decompressed(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(bytes).ok()?;
    decoder.take(BYTES_MAX + 1).read_to_end(&mut out).ok()?;
    out.shrink_to_fit(); // it stays until the batch is written
    (out.len() as u64 <= BYTES_MAX).then_some(out)
}

fn fixed<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn span(start: usize, end: usize) -> Option<Span> {
    Some(Span { start: u32::try_from(start).ok()?, end: u32::try_from(end).ok()? })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    /// A zigzag number of at most ten bytes.
    fn varint(&mut self) -> Option<i64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                return None;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Some((number >> 1).cast_signed() ^ -((number & 1).cast_signed()));
            }
        }
        None
    }

    /// Bytes after their length; the inner None is null, which is length -1. The outer None: the bytes end too early.
    #[allow(clippy::option_option)]
    fn nullable(&mut self) -> Option<Option<Span>> {
        let length = self.varint()?;
        if length == -1 {
            return Some(None);
        }
        let end = self.at.checked_add(usize::try_from(length).ok()?)?;
        if end > self.bytes.len() {
            return None;
        }
        let found = span(self.at, end)?;
        self.at = end;
        Some(Some(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record_batch::{Batch, encode_headers};

    fn built() -> Vec<u8> {
        let mut batch = Batch::new(1 << 20);
        let headers = encode_headers(&[("kind".into(), b"x".to_vec())]);
        for number in 0..3 {
            assert!(batch.append(1_000 + number, &[7; 16], b"value", &headers));
        }
        batch.build(3).unwrap()
    }

    #[test]
    fn what_was_built_is_read_again() {
        let found = read(&built(), 0).unwrap();
        let times: Vec<_> = found.records.iter().map(|record| (record.offset, record.time_ms)).collect();
        assert_eq!(times, [(0, 1_000), (1, 1_001), (2, 1_002)]);
        let last = &found.records[2];
        assert_eq!(found.slice(last.value.unwrap()), b"value");
        assert_eq!(found.headers(last), [("kind", Some(&b"x"[..]))]);
        assert_eq!(read(&built(), 2).unwrap().records.len(), 1);
    }

    #[test]
    fn a_damaged_batch_has_no_answer() {
        let whole = built();
        for at in 8..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            // The leader's epoch is not covered by the checksum.
            assert_eq!(read(&damaged, 0).is_some(), (12..16).contains(&at), "{at}");
            assert!(read(&whole[..at], 0).is_none());
        }
    }
}
