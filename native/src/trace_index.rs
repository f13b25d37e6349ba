//! A request -> which of its traces have values for which inherited columns.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::envelope::Group;
use crate::mapping::SharedKeys;
use crate::otlp::{Fields, Wire};
use crate::translate::Trace;

/// A trace in an index: its id, its entry, and the room that a hash table keeps free.
pub const BYTES_A_TRACE: usize = 128;

/// Which traces of the request have values for which inherited columns. Made at the first question.
pub struct TraceIndex {
    shared: Arc<SharedKeys>,
    /// Columns that any span or resource of the request names; None: not looked yet.
    named: Option<u64>,
    by_trace: Option<HashMap<Box<[u8]>, u64>>,
}

impl TraceIndex {
    pub fn new(shared: Arc<SharedKeys>) -> Self {
        Self { shared, named: None, by_trace: None }
    }

    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.by_trace.as_ref().map_or(0, |by_trace| by_trace.len() * BYTES_A_TRACE)
    }

    fn columns_in(&self, bytes: &[u8]) -> u64 {
        let found = self.shared.searcher.find_overlapping_iter(bytes);
        found.fold(0, |columns, key| columns | 1 << self.shared.columns[key.pattern().as_usize()])
    }
}

pub struct InRequest<'r> {
    pub index: &'r mut TraceIndex,
    pub body: &'r [u8],
    pub groups: &'r [Group],
}

impl InRequest<'_> {
    fn by_trace(&self) -> HashMap<Box<[u8]>, u64> {
        let mut by_trace = HashMap::default();
        for group in self.groups {
            let of_resource = self.index.columns_in(group.resource.of(self.body));
            for span in &group.spans {
                let raw = span.of(self.body);
                let columns = of_resource | self.index.columns_in(raw);
                if columns != 0 {
                    *by_trace.entry(trace_id_of(raw).into()).or_default() |= columns;
                }
            }
        }
        by_trace
    }
}

impl Trace for InRequest<'_> {
    fn names(&mut self, column: usize, trace_id: &[u8]) -> bool {
        if self.index.named.is_none() {
            self.index.named = Some(self.index.columns_in(self.body));
        }
        if self.index.named.is_some_and(|columns| columns >> column & 1 == 0) {
            return false;
        }
        if self.index.by_trace.is_none() {
            self.index.by_trace = Some(self.by_trace());
        }
        let columns = self.index.by_trace.as_ref().and_then(|by_trace| by_trace.get(trace_id));
        columns.is_some_and(|columns| columns >> column & 1 == 1)
    }
}

/// The last field 1 of a span, which is its trace id; nothing when the bytes are odd.
pub fn trace_id_of(raw: &[u8]) -> &[u8] {
    let mut found: &[u8] = &[];
    let mut fields = Fields::of(raw);
    while let Ok(Some((number, value))) = fields.next_field() {
        if let (1, Wire::Bytes(id)) = (number, value) {
            found = id;
        }
    }
    found
}
