//! A request -> the places of its spans, by resource. The spans stay unread.

use crate::otlp::{Fields, Odd, Wire};

/// Where a message lies in the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub start: u32,
    pub length: u32,
}

impl Place {
    #[must_use]
    pub fn of(self, body: &[u8]) -> &[u8] {
        &body[self.start as usize..(self.start + self.length) as usize]
    }
}

/// The spans of one resource, in the order sent, whatever their scope.
#[derive(Debug, Clone)]
pub struct Group {
    pub resource: Place,
    pub spans: Vec<Place>,
}

/// Why a request is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    Odd,
    TooMany,
}

impl From<Odd> for Refused {
    fn from(_: Odd) -> Self {
        Self::Odd
    }
}

/// The spans of a request by resource; groups without a span are left out.
///
/// # Errors
/// `TooMany`: more than `spans_max` spans, or more than `fields_max` fields around them; reading stops there.
/// `Odd`: an encoding that this module does not read.
pub fn request(body: &[u8], spans_max: usize, fields_max: usize) -> Result<Vec<Group>, Refused> {
    if u32::try_from(body.len()).is_err() {
        return Err(Refused::Odd);
    }
    let mut walk = Walk { body, groups: Vec::new(), spans: 0, fields: 0, spans_max, fields_max };
    walk.request()?;
    Ok(walk.groups)
}

struct Walk<'a> {
    body: &'a [u8],
    groups: Vec<Group>,
    spans: usize,
    fields: usize,
    spans_max: usize,
    fields_max: usize,
}

impl<'a> Walk<'a> {
    fn request(&mut self) -> Result<(), Refused> {
        let mut fields = Fields::of(self.body);
        while let Some((number, value)) = fields.next_field()? {
            self.count()?;
            match (number, value) {
                (1, Wire::Bytes(group)) => self.group(group)?,
                (1, _) => return Err(Refused::Odd),
                _ => {}
            }
        }
        Ok(())
    }

    fn group(&mut self, bytes: &'a [u8]) -> Result<(), Refused> {
        let mut resource = None;
        let mut spans = Vec::new();
        let mut fields = Fields::of(bytes);
        while let Some((number, value)) = fields.next_field()? {
            self.count()?;
            match (number, value) {
                (1, Wire::Bytes(bytes)) if resource.is_none() => resource = Some(self.place(bytes)),
                (2, Wire::Bytes(scope)) => self.scope(scope, &mut spans)?,
                (1 | 2, _) => return Err(Refused::Odd), // a resource in two parts is one, merged
                _ => {}
            }
        }
        if !spans.is_empty() {
            self.groups.push(Group { resource: resource.unwrap_or(Place { start: 0, length: 0 }), spans });
        }
        Ok(())
    }

    fn scope(&mut self, bytes: &'a [u8], spans: &mut Vec<Place>) -> Result<(), Refused> {
        let mut fields = Fields::of(bytes);
        while let Some((number, value)) = fields.next_field()? {
            self.count()?;
            match (number, value) {
                (2, Wire::Bytes(span)) => {
                    self.spans += 1;
                    if self.spans > self.spans_max {
                        return Err(Refused::TooMany);
                    }
                    spans.push(self.place(span));
                }
                (2, _) => return Err(Refused::Odd),
                _ => {}
            }
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), Refused> {
        self.fields += 1;
        if self.fields > self.fields_max { Err(Refused::TooMany) } else { Ok(()) }
    }

    /// The place of a part of the body in the body.
    #[allow(clippy::cast_possible_truncation)] // `request` refuses bodies of 4 GiB
    fn place(&self, part: &[u8]) -> Place {
        let start = part.as_ptr().addr() - self.body.as_ptr().addr();
        Place { start: start as u32, length: part.len() as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_split_without_reading_past_the_limit() {
        let span = [0x12, 0x00];
        let scope: Vec<u8> = [0x12, 4].iter().chain(span.repeat(2).iter()).copied().collect();
        let body: Vec<u8> = [0x0A, 6].iter().chain(&scope).copied().collect();
        assert_eq!(request(&body, 2, 100).unwrap()[0].spans.len(), 2);
        assert_eq!(request(&body, 1, 100).unwrap_err(), Refused::TooMany);
        assert_eq!(request(&body, 2, 3).unwrap_err(), Refused::TooMany);
        assert_eq!(request(&body[..5], 2, 100).unwrap_err(), Refused::Odd);
    }
}
