//! The id of a span's row, and the text of ids.

use sha2::{Digest, Sha256};

/// The row's key: a version 8 UUID from SHA-256 over trace id and span id.
#[must_use]
pub fn event_id(trace_id: &[u8], span_id: &[u8]) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(trace_id);
    hash.update(span_id);
    let digest: [u8; 32] = hash.finalize().into();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    id[6] = id[6] & 0x0F | 0x80;
    id[8] = id[8] & 0x3F | 0x80;
    id
}

const HEX: &[u8; 16] = b"0123456789abcdef";

pub fn write_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    for &byte in bytes {
        out.push(HEX[usize::from(byte >> 4)]);
        out.push(HEX[usize::from(byte & 15)]);
    }
}

/// A UUID's text.
#[must_use]
pub fn uuid_text(id: &[u8; 16]) -> [u8; 36] {
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (number, &byte) in id.iter().enumerate() {
        if matches!(number, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    text
}

pub fn write_uuid(out: &mut Vec<u8>, id: &[u8; 16]) {
    out.push(b'"');
    out.extend_from_slice(&uuid_text(id));
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_id_is_a_function_of_trace_and_span() {
        let trace = [0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd, 0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c];
        let span = [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31];
        assert_eq!(&uuid_text(&event_id(&trace, &span)), b"e2681862-d99e-887f-8991-ca7edf58cbce");
    }
}
