//! Records -> COPY rows of the plain records, and the numbers of the others, which the reference reads.

use std::collections::HashSet;

use crate::copy::{self, ColumnType};
use crate::fetched::{Record, Records};
use crate::rows::{self, NotPlain, Row, RowLayout, Value};

/// A table: how its records are read, and how its rows are written.
#[derive(Debug)]
pub struct Table {
    pub types: Vec<ColumnType>,
    /// For each column, what is written when its field is missing.
    pub defaults: Vec<Vec<u8>>,
    /// The columns of the key: a UUID and a time.
    pub key: (usize, usize),
    /// Text columns by which rows are looked up.
    pub subjects: Vec<usize>,
}

#[derive(Debug)]
pub struct Layouts {
    pub read: Vec<RowLayout>,
    pub tables: Vec<Table>,
}

/// Where a row stands in the chunk's COPY data, and its key.
#[derive(Debug, Clone, Copy)]
pub struct RowAt {
    pub table: usize,
    pub start: usize,
    pub end: usize,
    pub id: [u8; 16],
    pub time: i64,
}

#[derive(Debug, Clone, Copy)]
pub enum Outcome {
    /// A record without a value.
    Tombstone,
    /// The reference has to read it.
    Declined(NotPlain),
    Row(RowAt),
}

/// Records of one partition in the order of their offsets, and what each is.
#[derive(Debug, Clone, Default)]
pub struct Chunk {
    pub records: Records,
    pub outcomes: Vec<Outcome>,
    pub copy: Vec<u8>,
}

impl Chunk {
    #[must_use]
    pub fn new(layouts: &Layouts, records: Records) -> Self {
        let mut chunk = Self { records, outcomes: Vec::new(), copy: Vec::new() };
        chunk.outcomes.reserve_exact(chunk.records.records.len());
        chunk.copy.reserve(chunk.records.bytes.len());
        let mut row = Row::new();
        for record in &chunk.records.records {
            let outcome = match record.value {
                None => Outcome::Tombstone,
                Some(value) => {
                    let value = chunk.records.slice(value);
                    match plain_row(layouts, value, &mut row, &mut chunk.copy) {
                        Ok(row) => Outcome::Row(row),
                        Err(why) => Outcome::Declined(why),
                    }
                }
            };
            chunk.outcomes.push(outcome);
        }
        chunk.copy.shrink_to_fit(); // it stays until the batch is written
        chunk
    }

    /// Records by their number.
    #[must_use]
    pub fn record(&self, number: usize) -> Option<&Record> {
        self.records.records.get(number)
    }

    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.records.bytes.capacity()
            + self.copy.capacity()
            + self.records.records.capacity() * size_of::<Record>()
            + self.outcomes.capacity() * size_of::<Outcome>()
    }

    #[must_use]
    pub fn row(&self, at: &RowAt) -> &[u8] {
        &self.copy[at.start..at.end]
    }

    /// The rows of records `start..stop`, with their records' numbers.
    pub fn rows(&self, start: usize, stop: usize) -> impl Iterator<Item = (usize, &RowAt)> {
        let part = self.outcomes.get(start..stop).unwrap_or_default();
        part.iter().enumerate().filter_map(move |(number, outcome)| match outcome {
            Outcome::Row(row) => Some((start + number, row)),
            _ => None,
        })
    }

    /// The text of each of a row's subjects.
    pub fn subjects<'a>(&'a self, layouts: &'a Layouts, at: &RowAt) -> impl Iterator<Item = Option<&'a [u8]>> {
        let row = self.row(at);
        layouts.tables[at.table].subjects.iter().map(|&column| copy::field(row, column))
    }

    /// Numbers of the records whose row may have a wanted text in one of its subject columns, or a time before `until`.
    #[must_use]
    pub fn matching(
        &self,
        layouts: &Layouts,
        (start, stop): (usize, usize),
        wanted: &[HashSet<Vec<u8>>],
        until: Option<i64>,
    ) -> Vec<usize> {
        let is_wanted = |row: &RowAt| {
            let mut subjects = self.subjects(layouts, row).zip(wanted);
            until.is_some_and(|until| row.time < until)
                || subjects.any(|(subject, wanted)| subject.is_some_and(|subject| wanted.contains(subject)))
        };
        self.rows(start, stop).filter(|(_, row)| is_wanted(row)).map(|(number, _)| number).collect()
    }
}

fn plain_row<'a>(layouts: &Layouts, value: &'a [u8], row: &mut Row<'a>, out: &mut Vec<u8>) -> Result<RowAt, NotPlain> {
    let table = rows::read(&layouts.read, value, row)?;
    let start = out.len();
    let written = write_row(&layouts.tables[table], row, out);
    if written.is_none() {
        out.truncate(start);
    }
    let (id, time) = written.ok_or(NotPlain::Field)?;
    Ok(RowAt { table, start, end: out.len(), id, time })
}

/// Write a row in COPY's format and return its key. None: a value does not fit its column; the caller drops the bytes.
#[must_use]
pub fn write_row(table: &Table, row: &[Option<Value<'_>>], out: &mut Vec<u8>) -> Option<([u8; 16], i64)> {
    if row.len() != table.types.len() {
        return None;
    }
    out.extend_from_slice(&i16::try_from(row.len()).ok()?.to_be_bytes());
    for ((value, &column), default) in row.iter().zip(&table.types).zip(&table.defaults) {
        match *value {
            Some(value) => write_value(out, column, value)?,
            None => out.extend_from_slice(default),
        }
    }
    match (row[table.key.0], row[table.key.1]) {
        (Some(Value::Uuid(id)), Some(Value::Integer(time))) => Some((id, time)),
        (Some(Value::Text(id)), Some(Value::Integer(time))) => Some((copy::uuid(id)?, time)),
        _ => None,
    }
}

/// As `copy::write_text`.
#[must_use]
pub fn write_value(out: &mut Vec<u8>, column: ColumnType, value: Value<'_>) -> Option<()> {
    match value {
        Value::Uuid(id) => copy::write_uuid(out, column, id),
        Value::Text(text) => copy::write_text(out, column, text),
        Value::Integer(number) => copy::write_integer(out, column, number),
        Value::Double(number) => copy::write_double(out, column, number),
        Value::Null => {
            copy::write_null(out);
            Some(())
        }
    }
}
