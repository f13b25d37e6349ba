//! The rows of one table in a batch -> COPY data sorted by key, in which each key stands once: its latest version.

use std::sync::Arc;

use crate::chunk::{Chunk, Layouts, RowAt};
use crate::copy;

/// Records `start..stop` of a chunk, but for those in `left_out`, which is sorted.
pub struct Part {
    pub partition: i32,
    pub chunk: Arc<Chunk>,
    pub start: usize,
    pub stop: usize,
    pub left_out: Vec<usize>,
}

/// Which record of which part.
pub type Place = (usize, usize);

#[derive(Clone, Copy)]
struct Latest {
    id: [u8; 16],
    time: i64,
    place: Place,
    at: RowAt,
}

/// Rows of a table. Several versions that are not the same are `conflicts`, until each is resolved.
pub struct Rows {
    table: usize,
    parts: Arc<Vec<Part>>,
    latest: Vec<Latest>,
    counts: Vec<(i32, usize)>,
    /// Index in `latest`, and the versions, the oldest first.
    conflicts: Vec<(usize, Vec<Place>)>,
    /// The resolved row of each conflict, by index in `latest`.
    resolved: Vec<(usize, Vec<u8>)>,
}

/// The rows of every table that has some.
#[must_use]
pub fn by_table(layouts: &Layouts, parts: Vec<Part>) -> Vec<(usize, Rows)> {
    let parts = Arc::new(parts);
    let mut found: Vec<Vec<Latest>> = layouts.tables.iter().map(|_| Vec::new()).collect();
    for (part_number, part) in parts.iter().enumerate() {
        for (number, at) in part.chunk.rows(part.start, part.stop) {
            if part.left_out.is_empty() || part.left_out.binary_search(&number).is_err() {
                let latest = Latest { id: at.id, time: at.time, place: (part_number, number), at: *at };
                found[at.table].push(latest);
            }
        }
    }
    let filled = found.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty());
    filled.map(|(table, rows)| (table, Rows::new(table, Arc::clone(&parts), rows))).collect()
}

impl Rows {
    fn new(table: usize, parts: Arc<Vec<Part>>, mut all: Vec<Latest>) -> Self {
        let counts = counted(&parts, &all);
        all.sort_unstable_by_key(|row| (row.id, row.time, row.place));
        let mut rows = Self { table, parts, latest: Vec::new(), counts, conflicts: Vec::new(), resolved: Vec::new() };
        for same in all.chunk_by(|one, other| (one.id, one.time) == (other.id, other.time)) {
            let bytes = |row: &Latest| rows.parts[row.place.0].chunk.row(&row.at);
            if same.iter().any(|row| bytes(row) != bytes(&same[0])) {
                rows.conflicts.push((rows.latest.len(), same.iter().map(|row| row.place).collect()));
            }
            rows.latest.extend(same.last());
        }
        rows
    }

    #[must_use]
    pub fn table(&self) -> usize {
        self.table
    }

    /// How many rows of each partition, all versions.
    #[must_use]
    pub fn counts(&self) -> &[(i32, usize)] {
        &self.counts
    }

    /// How many keys of each partition.
    #[must_use]
    pub fn latest_counts(&self) -> Vec<(i32, usize)> {
        counted(&self.parts, &self.latest)
    }

    pub fn keys(&self) -> impl ExactSizeIterator<Item = ([u8; 16], i64)> {
        self.latest.iter().map(|row| (row.id, row.time))
    }

    pub fn conflicts(&self) -> impl Iterator<Item = &[Place]> {
        self.conflicts.iter().map(|(_, places)| &places[..])
    }

    /// Set the resolved row of the next conflict. Conflicts are resolved in their order.
    pub fn resolve(&mut self, conflict: usize, row: Vec<u8>) {
        if let Some((index, _)) = self.conflicts.get(conflict) {
            self.resolved.push((*index, row));
        }
    }

    /// COPY data, sorted by key; with the partition as one more column when the rows are staged.
    #[must_use]
    pub fn copy_data(&self, is_staged: bool) -> Vec<u8> {
        let extra = if is_staged { 8 } else { 0 };
        let bytes: usize = self.latest.iter().map(|row| row.at.end - row.at.start + extra).sum();
        let mut out = Vec::with_capacity(bytes + 64);
        out.extend_from_slice(copy::SIGNATURE);
        let mut resolved = self.resolved.iter().peekable();
        for (index, latest) in self.latest.iter().enumerate() {
            let part = &self.parts[latest.place.0];
            let row = match resolved.next_if(|(at, _)| *at == index) {
                Some((_, row)) => row,
                None => part.chunk.row(&latest.at),
            };
            if is_staged {
                copy::write_with_one_more(&mut out, row, part.partition);
            } else {
                out.extend_from_slice(row);
            }
        }
        out.extend_from_slice(&copy::TRAILER);
        out
    }
}

fn counted(parts: &[Part], rows: &[Latest]) -> Vec<(i32, usize)> {
    let mut by_part = vec![0; parts.len()];
    for row in rows {
        by_part[row.place.0] += 1;
    }
    let mut found: Vec<(i32, usize)> = Vec::new();
    for (part, count) in parts.iter().zip(by_part) {
        match found.iter_mut().find(|(partition, _)| *partition == part.partition) {
            Some((_, sum)) => *sum += count,
            None => found.push((part.partition, count)),
        }
    }
    found.retain(|(_, count)| *count > 0);
    found
}
