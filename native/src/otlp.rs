//! Bytes -> fields of OTLP messages, without copying.
//!
//! Protobuf allows several encodings of one message. These readers know the usual encoding; any other one is `Odd`, and
//! protobuf may still be able to read it.

/// Bytes that this module does not read. Protobuf may be able to read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Odd;

pub type Read<T> = Result<T, Odd>;

/// A field's value by its wire type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

/// Walks the fields of one message.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    #[must_use]
    pub fn of(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Where the next field begins.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }

    /// The next field's number and value; None at the end.
    ///
    /// # Errors
    /// `Odd`: the bytes end inside a field, or the tag is a group's or longer than two bytes.
    #[inline]
    pub fn next_field(&mut self) -> Read<Option<(u32, Wire<'a>)>> {
        let Some(&first) = self.bytes.get(self.at) else {
            return Ok(None);
        };
        self.at += 1;
        let mut tag = u32::from(first);
        if first > 0x7F {
            let second = *self.bytes.get(self.at).ok_or(Odd)?;
            self.at += 1;
            if second > 0x7F {
                return Err(Odd);
            }
            tag = tag & 0x7F | u32::from(second) << 7;
        }
        let number = tag >> 3;
        if number == 0 {
            return Err(Odd);
        }
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?;
                Wire::Fixed64(u64::from_le_bytes(bytes.try_into().map_err(|_| Odd)?))
            }
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(usize::try_from(length).map_err(|_| Odd)?)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return Err(Odd),
        };
        Ok(Some((number, value)))
    }

    #[inline]
    fn take(&mut self, length: usize) -> Read<&'a [u8]> {
        let end = self.at.checked_add(length).ok_or(Odd)?;
        let taken = self.bytes.get(self.at..end).ok_or(Odd)?;
        self.at = end;
        Ok(taken)
    }

    #[inline]
    fn varint(&mut self) -> Read<u64> {
        let mut number = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or(Odd)?;
            self.at += 1;
            if shift == 63 && byte > 1 {
                return Err(Odd);
            }
            number |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Odd)
    }
}

/// An attribute's value. `Nested` stands for well-formed arrays, maps and bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    Unset,
    Text(&'a [u8]),
    Bool(bool),
    Int(i64),
    Double(f64),
    Nested,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attribute<'a> {
    pub key: &'a [u8],
    pub value: Value<'a>,
}

/// The fields of a span that the translation needs.
#[derive(Debug, Default)]
pub struct Span<'a> {
    pub trace_id: &'a [u8],
    pub span_id: &'a [u8],
    pub trace_state: &'a [u8],
    pub name: &'a [u8],
    pub kind: i32,
    pub start_ns: u64,
    pub end_ns: u64,
    pub events: usize,
    pub links: usize,
}

/// Read a span; its attributes are added to `attributes`.
///
/// # Errors
/// `Odd`: an encoding that this module does not read.
pub fn span<'a>(bytes: &'a [u8], attributes: &mut Vec<Attribute<'a>>) -> Read<Span<'a>> {
    let mut span = Span::default();
    let mut fields = Fields::of(bytes);
    while let Some((number, value)) = fields.next_field()? {
        match (number, value) {
            (1, Wire::Bytes(bytes)) => span.trace_id = bytes,
            (2, Wire::Bytes(bytes)) => span.span_id = bytes,
            (3, Wire::Bytes(bytes)) => span.trace_state = bytes,
            (5, Wire::Bytes(bytes)) => span.name = bytes,
            #[allow(clippy::cast_possible_truncation)] // protobuf keeps the low 32 bits of an enum
            (6, Wire::Varint(kind)) => span.kind = kind as i32,
            (7, Wire::Fixed64(start_ns)) => span.start_ns = start_ns,
            (8, Wire::Fixed64(end_ns)) => span.end_ns = end_ns,
            (9, Wire::Bytes(bytes)) => attributes.push(attribute(bytes)?),
            (11, Wire::Bytes(_)) => span.events += 1,
            (13, Wire::Bytes(_)) => span.links += 1,
            (1 | 2 | 3 | 5 | 6 | 7 | 8 | 9 | 11 | 13, _) => return Err(Odd),
            _ => {}
        }
    }
    Ok(span)
}

/// Read a resource's attributes.
///
/// # Errors
/// `Odd`: an encoding that this module does not read.
pub fn resource<'a>(bytes: &'a [u8], attributes: &mut Vec<Attribute<'a>>) -> Read<()> {
    let mut fields = Fields::of(bytes);
    while let Some((number, value)) = fields.next_field()? {
        match (number, value) {
            (1, Wire::Bytes(bytes)) => attributes.push(attribute(bytes)?),
            (1, _) => return Err(Odd),
            _ => {}
        }
    }
    Ok(())
}

/// An attribute: a key, then a value, and nothing else, as every encoder writes it.
#[inline]
fn attribute(bytes: &[u8]) -> Read<Attribute<'_>> {
    let mut fields = Fields::of(bytes);
    let Some((1, Wire::Bytes(key))) = fields.next_field()? else {
        return Err(Odd);
    };
    let Some((2, Wire::Bytes(value))) = fields.next_field()? else {
        return Err(Odd);
    };
    if fields.next_field()?.is_some() {
        return Err(Odd);
    }
    Ok(Attribute { key, value: any_value(value, 0)? })
}

const DEPTH_MAX: u32 = 8;

fn any_value(bytes: &[u8], depth: u32) -> Read<Value<'_>> {
    let mut fields = Fields::of(bytes);
    let Some((number, wire)) = fields.next_field()? else {
        return Ok(Value::Unset);
    };
    if fields.next_field()?.is_some() {
        return Err(Odd);
    }
    match (number, wire) {
        (1, Wire::Bytes(text)) => Ok(Value::Text(text)),
        (2, Wire::Varint(flag)) => Ok(Value::Bool(flag != 0)),
        (3, Wire::Varint(number)) => Ok(Value::Int(number.cast_signed())),
        (4, Wire::Fixed64(bits)) => Ok(Value::Double(f64::from_bits(bits))),
        (5 | 6, Wire::Bytes(_)) if depth == DEPTH_MAX => Err(Odd),
        (5, Wire::Bytes(bytes)) => every(bytes, |element| any_value(element, depth + 1)),
        (6, Wire::Bytes(bytes)) => every(bytes, |pair| {
            let mut fields = Fields::of(pair);
            match (fields.next_field()?, fields.next_field()?, fields.next_field()?) {
                (Some((1, Wire::Bytes(_))), Some((2, Wire::Bytes(value))), None) => any_value(value, depth + 1),
                _ => Err(Odd),
            }
        }),
        (7, Wire::Bytes(_)) => Ok(Value::Nested),
        _ => Err(Odd),
    }
}

/// Whether a list's elements, its field 1, are all well formed.
fn every<'a>(bytes: &'a [u8], mut read: impl FnMut(&'a [u8]) -> Read<Value<'a>>) -> Read<Value<'a>> {
    let mut fields = Fields::of(bytes);
    while let Some(field) = fields.next_field()? {
        let (1, Wire::Bytes(element)) = field else {
            return Err(Odd);
        };
        read(element)?;
    }
    Ok(Value::Nested)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_a_key_and_one_value() {
        let mut found = Vec::new();
        span(&[0x4A, 8, 0x0A, 1, b'a', 0x12, 3, 0x0A, 1, b'b'], &mut found).unwrap();
        assert_eq!(found, [Attribute { key: b"a", value: Value::Text(b"b") }]);
        assert!(span(&[0x4A, 3, 0x0A, 1, b'a'], &mut Vec::new()).is_err());
    }
}
