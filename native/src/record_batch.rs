//! Records -> a Kafka record batch, format 2, as the broker takes it and stores it.

use std::cell::RefCell;

use zstd::bulk::Compressor;

use crate::translate::uuid_text;

/// Base offset to record count: what stands before the records.
pub const HEADER_BYTES: usize = 61;
const NONE: i64 = -1; // no producer id, epoch or sequence: the producer is not idempotent
const MAGIC: u8 = 2;
const ZSTD: i16 = 4;
const LENGTH_END: usize = 12; // the length counts what stands behind it
const CHECKED_FROM: usize = 21; // the checksum covers the attributes and all that follows

thread_local! {
    /// Kept, because its tables cost more to allocate than a small batch to compress.
    static COMPRESSOR: RefCell<Option<(i32, Compressor<'static>)>> = const { RefCell::new(None) };
}

fn compressed(bytes: &[u8], level: i32) -> std::io::Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|kept| match kept {
        Some((at_level, compressor)) if *at_level == level => compressor.compress(bytes),
        _ => kept.insert((level, Compressor::new(level)?)).1.compress(bytes),
    })
}

/// A batch that records are added to until it is built.
pub struct Batch {
    /// The header's place, then records.
    bytes: Vec<u8>,
    count: i32,
    first_ms: i64,
    last_ms: i64,
    bytes_max: usize,
}

/// A name and its value.
pub type Header = (String, Vec<u8>);

/// Headers as every record of a table carries them.
#[must_use]
pub fn encode_headers(headers: &[Header]) -> Vec<u8> {
    let mut out = Vec::new();
    write_varint(&mut out, length(headers.len()));
    for (name, value) in headers {
        write_varint(&mut out, length(name.len()));
        out.extend_from_slice(name.as_bytes());
        write_varint(&mut out, length(value.len()));
        out.extend_from_slice(value);
    }
    out
}

impl Batch {
    /// A batch of at most `bytes_max` bytes before compression; its first record may be larger.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes: vec![0; HEADER_BYTES], count: 0, first_ms: 0, last_ms: 0, bytes_max }
    }

    #[must_use]
    pub fn count(&self) -> i32 {
        self.count
    }

    #[must_use]
    pub fn bytes_count(&self) -> usize {
        self.bytes.len()
    }

    /// Add a record, unless the batch has no room for it. The key is the id as UUID text.
    pub fn append(&mut self, timestamp_ms: i64, id: &[u8; 16], value: &[u8], headers: &[u8]) -> bool {
        if self.count == 0 {
            self.first_ms = timestamp_ms;
        }
        let key = uuid_text(id);
        let timestamp_delta = timestamp_ms - self.first_ms;
        let body_bytes = 1
            + varint_bytes(timestamp_delta)
            + varint_bytes(i64::from(self.count))
            + varint_bytes(length(key.len()))
            + key.len()
            + varint_bytes(length(value.len()))
            + value.len()
            + headers.len();
        let needed = body_bytes + varint_bytes(length(body_bytes));
        if self.count > 0 && self.bytes.len() + needed > self.bytes_max {
            return false;
        }
        self.bytes.reserve(needed);
        write_varint(&mut self.bytes, length(body_bytes));
        self.bytes.push(0); // attributes: none are defined
        write_varint(&mut self.bytes, timestamp_delta);
        write_varint(&mut self.bytes, i64::from(self.count));
        write_varint(&mut self.bytes, length(key.len()));
        self.bytes.extend_from_slice(&key);
        write_varint(&mut self.bytes, length(value.len()));
        self.bytes.extend_from_slice(value);
        self.bytes.extend_from_slice(headers);
        self.count += 1;
        self.last_ms = self.last_ms.max(timestamp_ms);
        true
    }

    /// The batch as it goes to the broker; records are compressed by zstd.
    ///
    /// # Errors
    /// zstd has no memory for it.
    pub fn build(&self, level: i32) -> std::io::Result<Vec<u8>> {
        let records = compressed(&self.bytes[HEADER_BYTES..], level)?;
        let mut built = Vec::with_capacity(HEADER_BYTES + records.len());
        built.extend_from_slice(&0i64.to_be_bytes()); // base offset: the broker's to give
        let behind = HEADER_BYTES - LENGTH_END + records.len();
        built.extend_from_slice(&i32::try_from(behind).unwrap_or(i32::MAX).to_be_bytes());
        built.extend_from_slice(&(-1i32).to_be_bytes()); // leader epoch
        built.push(MAGIC);
        built.extend_from_slice(&[0; 4]); // the checksum's place
        built.extend_from_slice(&ZSTD.to_be_bytes());
        built.extend_from_slice(&(self.count - 1).to_be_bytes());
        built.extend_from_slice(&self.first_ms.to_be_bytes());
        built.extend_from_slice(&self.last_ms.to_be_bytes());
        built.extend_from_slice(&NONE.to_be_bytes());
        built.extend_from_slice(&(-1i16).to_be_bytes());
        built.extend_from_slice(&(-1i32).to_be_bytes());
        built.extend_from_slice(&self.count.to_be_bytes());
        built.extend_from_slice(&records);
        let checksum = crc32c::crc32c(&built[CHECKED_FROM..]);
        built[CHECKED_FROM - 4..CHECKED_FROM].copy_from_slice(&checksum.to_be_bytes());
        Ok(built)
    }
}

fn length(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn zigzag(number: i64) -> u64 {
    (number.cast_unsigned() << 1) ^ (number >> 63).cast_unsigned()
}

fn varint_bytes(number: i64) -> usize {
    let bits = 64 - (zigzag(number) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

fn write_varint(out: &mut Vec<u8>, number: i64) {
    let mut rest = zigzag(number);
    while rest > 0x7F {
        out.push((rest & 0x7F) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_batch_takes_no_more_but_an_empty_one_takes_anything() {
        let mut batch = Batch::new(HEADER_BYTES + 100);
        assert!(batch.append(1_000, &[7; 16], &[b'x'; 200], &encode_headers(&[])));
        assert!(!batch.append(1_000, &[7; 16], b"y", &encode_headers(&[])));
        assert_eq!(batch.count(), 1);
    }

    #[test]
    fn varints_are_zigzag() {
        for (number, expected) in [(0, vec![0]), (-1, vec![1]), (1, vec![2]), (64, vec![0x80, 1])] {
            let mut out = Vec::new();
            write_varint(&mut out, number);
            assert_eq!(out, expected);
            assert_eq!(varint_bytes(number), expected.len());
        }
    }
}
