//! Translates one request from bytes to records, a slice of spans at a time, in the order sent.

use std::ops::Range;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use crate::envelope::{self, Group, Place, Refused};
use crate::known_paths::{Answer, Known};
use crate::mapping::Mapping;
use crate::record_batch::Batch;
use crate::trace_index::{BYTES_A_TRACE, InRequest, TraceIndex, trace_id_of};
use crate::translate::{Classify, Declined, Fate, Translator};

/// A record's value in the request's memory, or a reserved entry for a span that the reference translates.
#[derive(Debug, Clone, Copy)]
struct Entry {
    table: Option<u32>,
    id: [u8; 16],
    start: usize,
    end: usize,
    /// The record holds a path that came without a template.
    is_raw_path: bool,
}

/// A span for the reference: the entry that is reserved for its record, and the span's place in the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leftover {
    pub entry: usize,
    pub group: usize,
    pub span: usize,
}

/// What became of the spans so far; `published` is by table.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    pub published: Vec<usize>,
    pub not_product_event: usize,
    pub unknown_category: usize,
    pub excluded_endpoint: usize,
    pub declined: [usize; Declined::ALL.len()],
}

/// By trace id, the group and place of each of its spans.
type SpansByTrace = HashMap<Box<[u8]>, Vec<(u32, Place)>>;

pub struct Request<B> {
    body: B,
    groups: Vec<Group>,
    group: usize,
    span: usize,
    values: Vec<u8>,
    entries: Vec<Entry>,
    index: TraceIndex,
    spans_by_trace: Option<SpansByTrace>,
    /// By partition, the numbers of its entries, in order.
    places: Vec<Vec<u32>>,
    /// For how many entries the path to store was asked.
    bounded: usize,
    /// How many paths were replaced by another one.
    pub replaced: usize,
    pub spans: usize,
    pub counts: Counts,
    pub leftovers: Vec<Leftover>,
}

/// The clock is read after so many spans.
const SPANS_A_LOOK: usize = 16;
/// How long one call of `bound` may take.
const BOUND_SLICE: Duration = Duration::from_millis(2);
/// Memory for records grows by this many bytes, or by an eighth. Doubling it would leave up to half of it unused.
const VALUES_STEP: usize = 256 * 1024;
/// A slice ends early when so many spans wait for the reference.
const LEFTOVERS_MAX: usize = 64;

impl<B: AsRef<[u8]>> Request<B> {
    /// Split a request into spans.
    ///
    /// # Errors
    /// As `envelope::request`.
    pub fn open(body: B, mapping: &Mapping) -> Result<Self, Refused> {
        let groups = envelope::request(body.as_ref(), mapping.spans_max, mapping.fields_max)?;
        Ok(Self {
            spans: groups.iter().map(|group| group.spans.len()).sum(),
            body,
            groups,
            group: 0,
            span: 0,
            values: Vec::new(),
            entries: Vec::new(),
            index: TraceIndex::new(mapping.shared.clone()),
            spans_by_trace: None,
            places: Vec::new(),
            bounded: 0,
            replaced: 0,
            counts: Counts { published: vec![0; mapping.tables.len()], ..Counts::default() },
            leftovers: Vec::new(),
        })
    }

    /// Translate for about so long, and return whether every span was visited.
    ///
    /// A slice ends early when enough spans are left for the reference.
    #[allow(clippy::cast_possible_truncation)] // tables are few
    pub fn step(&mut self, translator: &mut Translator, classify: &mut impl Classify, slice: Duration) -> bool {
        let body = self.body.as_ref();
        let mut trace = InRequest { index: &mut self.index, body, groups: &self.groups };
        let ends_at = Instant::now() + slice;
        let mut attributes = Vec::new();
        let mut looked = 0;
        while let Some(group) = self.groups.get(self.group) {
            let resource = translator.resource(group.resource.of(body), classify);
            while let Some(place) = group.spans.get(self.span) {
                let is_late = looked % SPANS_A_LOOK == SPANS_A_LOOK - 1 && Instant::now() >= ends_at;
                if is_late || self.leftovers.len() >= LEFTOVERS_MAX {
                    return false;
                }
                looked += 1;
                make_room(&mut self.values, VALUES_STEP / 4);
                let raw = place.of(body);
                let start = self.values.len();
                match translator.span(&mut self.values, raw, &resource, &mut attributes, classify, &mut trace) {
                    Fate::Written(table, id, is_raw_path) => {
                        self.counts.published[table] += 1;
                        let (table, end) = (Some(table as u32), self.values.len());
                        self.entries.push(Entry { table, id, start, end, is_raw_path });
                    }
                    Fate::NotProductEvent => self.counts.not_product_event += 1,
                    Fate::UnknownCategory => self.counts.unknown_category += 1,
                    Fate::ExcludedEndpoint => self.counts.excluded_endpoint += 1,
                    Fate::Declined(why) => {
                        self.counts.declined[why as usize] += 1;
                        let entry = self.entries.len();
                        self.entries.push(Entry { table: None, id: [0; 16], start, end: start, is_raw_path: false });
                        self.leftovers.push(Leftover { entry, group: self.group, span: self.span });
                    }
                }
                self.span += 1;
            }
            self.group += 1;
            self.span = 0;
        }
        true
    }

    /// A leftover's resource and span.
    #[must_use]
    pub fn bytes_of(&self, leftover: Leftover) -> (&[u8], &[u8]) {
        let group = &self.groups[leftover.group];
        (group.resource.of(self.body.as_ref()), group.spans[leftover.span].of(self.body.as_ref()))
    }

    /// Resources and spans of one trace, in order.
    pub fn spans_of(&mut self, trace_id: &[u8]) -> Vec<(&[u8], Vec<&[u8]>)> {
        let body = self.body.as_ref();
        let groups = &self.groups;
        let by_trace = self.spans_by_trace.get_or_insert_with(|| {
            let mut by_trace = SpansByTrace::new();
            for (number, group) in (0..).zip(groups) {
                for &span in &group.spans {
                    by_trace.entry(trace_id_of(span.of(body)).into()).or_default().push((number, span));
                }
            }
            by_trace
        });
        let spans = by_trace.get(trace_id).map_or(&[] as &[_], Vec::as_slice);
        let same_group = spans.chunk_by(|one, other| one.0 == other.0);
        let bytes = |chunk: &[(u32, Place)]| {
            let resource = groups[chunk[0].0 as usize].resource.of(body);
            (resource, chunk.iter().map(|(_, span)| span.of(body)).collect())
        };
        same_group.map(bytes).collect()
    }

    /// Store the reference's record in the entry that is reserved for it.
    #[allow(clippy::cast_possible_truncation)] // tables are few
    pub fn settle(&mut self, entry: usize, table: usize, id: [u8; 16], value: &[u8], is_raw_path: bool) {
        let start = self.values.len();
        make_room(&mut self.values, value.len());
        self.values.extend_from_slice(value);
        self.counts.published[table] += 1;
        self.entries[entry] = Entry { table: Some(table as u32), id, start, end: self.values.len(), is_raw_path };
    }

    /// Let `ask` say what to store instead of each path that came without a template, in order, some in each call.
    /// Returns whether all were asked.
    ///
    /// # Errors
    /// What `ask` fails with.
    pub fn bound<E>(
        &mut self,
        counted: &[(Vec<u8>, Vec<u8>)],
        known: &mut Known,
        ask: &mut impl FnMut(&[u8], &[u8]) -> Result<Answer, E>,
    ) -> Result<bool, E> {
        let ends_at = Instant::now() + BOUND_SLICE;
        while self.bounded < self.entries.len() {
            if self.bounded % SPANS_A_LOOK == SPANS_A_LOOK - 1 && Instant::now() >= ends_at {
                self.bounded += 1;
                self.bound_one(self.bounded - 1, counted, known, ask)?;
                return Ok(false);
            }
            self.bounded += 1;
            self.bound_one(self.bounded - 1, counted, known, ask)?;
        }
        Ok(true)
    }

    fn bound_one<E>(
        &mut self,
        number: usize,
        counted: &[(Vec<u8>, Vec<u8>)],
        known: &mut Known,
        ask: &mut impl FnMut(&[u8], &[u8]) -> Result<Answer, E>,
    ) -> Result<(), E> {
        if !self.entries[number].is_raw_path {
            return Ok(());
        }
        for (path, owner) in counted {
            let value = &self.values[self.entries[number].start..self.entries[number].end];
            let Some(place) = text_behind(value, path) else {
                continue;
            };
            let owner = text_behind(&value[..place.start], owner).map_or(&[] as &[u8], |at| &value[at]);
            if known.holds(owner, &value[place.clone()]) {
                continue;
            }
            let other = match known.pattern_of(owner, &value[place.clone()]) {
                Some(pattern) => Some(pattern.to_vec()),
                None => {
                    let (other, is_void, is_pattern) = ask(owner, &value[place.clone()])?;
                    if is_void {
                        known.clear();
                    }
                    match &other {
                        None => known.insert(owner, &value[place.clone()]),
                        Some(pattern) if is_pattern => known.insert_pattern(owner, pattern),
                        Some(_) => {}
                    }
                    other
                }
            };
            match other {
                None => {}
                Some(other) => {
                    self.replaced += 1;
                    let made = [&value[..place.start], &other, &value[place.end..]].concat();
                    make_room(&mut self.values, made.len());
                    let start = self.values.len();
                    self.values.extend_from_slice(&made);
                    let entry = &mut self.entries[number];
                    (entry.start, entry.end) = (start, start + made.len());
                }
            }
        }
        Ok(())
    }

    /// Bytes that the request holds beside its body.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let places = self.places.iter().map(Vec::capacity).sum::<usize>() * size_of::<u32>();
        let by_trace = self
            .spans_by_trace
            .as_ref()
            .map_or(0, |by_trace| by_trace.len() * BYTES_A_TRACE + self.spans * 2 * size_of::<(u32, Place)>());
        let named = self.index.held_bytes();
        let entries = self.entries.capacity() * size_of::<Entry>();
        self.values.capacity() + entries + self.spans * size_of::<Place>() + places + by_trace + named
    }

    /// Sort the records by partition: (partition, records) for those that have any.
    #[allow(clippy::cast_possible_truncation)] // a request has fewer records than bytes, and fewer than 4 GiB of those
    pub fn partitioned(&mut self, partitions: u32) -> Vec<(usize, usize)> {
        self.places = vec![Vec::new(); partitions as usize];
        for (number, entry) in self.entries.iter().enumerate().filter(|(_, entry)| entry.table.is_some()) {
            let hash = u32::from_be_bytes([entry.id[12], entry.id[13], entry.id[14], entry.id[15]]);
            self.places[(hash % partitions) as usize].push(number as u32);
        }
        let counted = self.places.iter().map(Vec::len).enumerate();
        counted.filter(|&(_, records)| records > 0).collect()
    }

    /// Add records of a partition to a batch, beginning with number `from`; return how many fitted.
    pub fn add_to(&self, batch: &mut Batch, partition: usize, from: usize, now_ms: i64, mapping: &Mapping) -> usize {
        let places = self.places[partition].get(from..).unwrap_or_default();
        let fits = |&&number: &&u32| {
            let entry = &self.entries[number as usize];
            let headers = entry.table.map_or(&[] as &[u8], |table| &mapping.tables[table as usize].headers);
            batch.append(now_ms, &entry.id, &self.values[entry.start..entry.end], headers)
        };
        places.iter().take_while(fits).count()
    }
}

/// Grow a large vector by less than double. The kernel moves its pages without a copy, so growing often is cheap.
fn make_room(values: &mut Vec<u8>, size: usize) {
    if values.len() >= VALUES_STEP && values.capacity() - values.len() < size {
        values.reserve_exact(size.max(VALUES_STEP).max(values.len() / 8));
    }
}

/// The place of a field's text in a record, with its quotes. Of several fields with the name, the first is the column.
fn text_behind(value: &[u8], prefix: &[u8]) -> Option<Range<usize>> {
    let start = memchr::memmem::find(value, prefix)? + prefix.len();
    let mut at = start + 1;
    while at < value.len() {
        match value[at] {
            b'"' => return Some(start..at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    None
}
