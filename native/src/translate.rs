//! One span's bytes -> one record's value, for plain spans. The reference translates the others.

mod own_ids;
mod record;
mod resource;

use std::cell::Cell;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::event_id::event_id;
pub use crate::event_id::uuid_text;
use crate::mapping::{Form, Inferred, Kind, Mapping, Role};
use crate::otlp::{self, Attribute, Span, Value};

use own_ids::{OwnId, is_an_owners, note_id, occurrences};
use record::{Written, is_absent};
pub use resource::Resource;

/// Why a span is left to the reference: a closed set, for a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declined {
    Wire,
    Size,
    Resource,
    Key,
    Repeated,
    Rule,
    Ids,
    Missing,
    Text,
    Path,
    Number,
    OwnId,
    Trace,
}

impl Declined {
    pub const ALL: [(Self, &str); 13] = [
        (Self::Wire, "wire"),
        (Self::Size, "size"),
        (Self::Resource, "resource"),
        (Self::Key, "key"),
        (Self::Repeated, "repeated"),
        (Self::Rule, "rule"),
        (Self::Ids, "ids"),
        (Self::Missing, "missing"),
        (Self::Text, "text"),
        (Self::Path, "path"),
        (Self::Number, "number"),
        (Self::OwnId, "own_id"),
        (Self::Trace, "trace"),
    ];
}

/// The outcome of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The record's value was added: its table, its id, and whether it holds a path that came without a template.
    Written(usize, [u8; 16], bool),
    NotProductEvent,
    UnknownCategory,
    ExcludedEndpoint,
    Declined(Declined),
}

/// Tells the role of a key. Called once for each key that is remembered.
pub trait Classify {
    fn role_of(&mut self, key: &[u8]) -> Role;
}

/// Whether a span's trace names one of these columns elsewhere in the request.
pub trait Trace {
    fn names(&mut self, column: usize, trace_id: &[u8]) -> bool;
}

const SPAN_BYTES_MAX: usize = 4096;
const SERVER: i32 = 2;

/// The columns and names that a span has had so far. A new span raises a number instead of writing zeros.
#[derive(Default)]
struct Seen {
    turn: u32,
    conditions: u64,
    columns: Vec<(u32, u32, Form, usize)>,
    names: Vec<u64>,
}

const FROM_RESOURCE: usize = 1 << 31;

pub struct Translator {
    pub mapping: Mapping,
    keys: HashMap<Box<[u8]>, usize>,
    /// The roles of keys; the first one is for keys that are too long.
    roles: Vec<Role>,
    resources: HashMap<Box<[u8]>, Arc<Resource>>,
    key_bytes: usize,
    resource_bytes: usize,
    seen: Seen,
    /// The span's path came without a template.
    is_raw_path: Cell<bool>,
}

type Step<T> = Result<T, Declined>;

impl Translator {
    #[must_use]
    pub fn new(mapping: Mapping) -> Self {
        let seen = Seen {
            turn: 0,
            conditions: 0,
            columns: vec![(0, 0, Form::Any, 0); mapping.columns.len()],
            names: Vec::new(),
        };
        let (keys, resources) = (HashMap::new(), HashMap::new());
        Self {
            mapping,
            keys,
            roles: vec![unread()],
            resources,
            key_bytes: 0,
            resource_bytes: 0,
            seen,
            is_raw_path: Cell::new(false),
        }
    }

    /// Memory of the keys and resources that are remembered.
    #[must_use]
    pub fn remembered_bytes(&self) -> usize {
        self.key_bytes + self.resource_bytes
    }

    /// Whether bytes hold a key that could make a span an event.
    #[must_use]
    pub fn holds_deciding_key(&self, bytes: &[u8]) -> bool {
        self.mapping.deciding.is_match(bytes)
    }

    /// Add the record's value of a span to `out`. When there is none, add nothing and say why.
    pub fn span<'a>(
        &mut self,
        out: &mut Vec<u8>,
        raw: &'a [u8],
        resource: &Resource,
        attributes: &mut Vec<Attribute<'a>>,
        classify: &mut impl Classify,
        trace: &mut impl Trace,
    ) -> Fate {
        if !resource.holds_deciding_key && !self.holds_deciding_key(raw) {
            return Fate::NotProductEvent;
        }
        let start = out.len();
        attributes.clear();
        self.forget();
        let fate = self.event(out, raw, resource, attributes, classify, trace).unwrap_or_else(Fate::Declined);
        if !matches!(fate, Fate::Written(..)) {
            out.truncate(start);
        }
        fate
    }

    fn event<'a>(
        &mut self,
        out: &mut Vec<u8>,
        raw: &'a [u8],
        resource: &Resource,
        attributes: &mut Vec<Attribute<'a>>,
        classify: &mut impl Classify,
        trace: &mut impl Trace,
    ) -> Step<Fate> {
        if raw.len() > SPAN_BYTES_MAX.min(self.mapping.span_bytes_max) {
            return Err(Declined::Size);
        }
        if resource.is_declined {
            return Err(Declined::Resource);
        }
        let span = otlp::span(raw, attributes).map_err(|_| Declined::Wire)?;
        if attributes.len().max(span.events).max(span.links) > self.mapping.span_attributes_max {
            return Err(Declined::Size);
        }
        let mut ids: Vec<OwnId> = Vec::new();
        let mut metadata: Vec<(usize, Value<'a>)> = Vec::new();
        self.see(attributes, resource, classify, &mut ids, &mut metadata)?;
        let (table, exclusion) = match self.table(&span, attributes, resource)? {
            Ok(found) => found,
            Err(fate) => return Ok(fate),
        };
        if span.trace_id.len() != 16 || is_zero(span.trace_id) || span.span_id.len() != 8 || is_zero(span.span_id) {
            return Err(Declined::Ids);
        }
        if self.mapping.is_suspicious(raw) && self.has_suspicious_text(&span, attributes) {
            return Err(Declined::Text);
        }
        self.check_own_ids(&ids, raw, resource)?;
        ids.extend_from_slice(&resource.ids);
        let id = event_id(span.trace_id, span.span_id);
        let written = Written { attributes, resource, span: &span, ids: &ids, metadata: &metadata, id };
        self.is_raw_path.set(false);
        if let Some(place) = self.write(out, table, &written, exclusion, trace)? {
            let bare = &out[place.start + 1..place.end - 1]; // without its quotes
            if self.mapping.exclusions.iter().any(|glob| glob.matches(bare)) {
                return Ok(Fate::ExcludedEndpoint);
            }
        }
        Ok(Fate::Written(table, id, self.is_raw_path.get()))
    }

    /// Note which attribute gives each column, the raw ids, and what goes to metadata.
    fn see<'a>(
        &mut self,
        attributes: &[Attribute<'a>],
        resource: &Resource,
        classify: &mut impl Classify,
        ids: &mut Vec<OwnId>,
        metadata: &mut Vec<(usize, Value<'a>)>,
    ) -> Step<()> {
        self.seen.turn = self.seen.turn.wrapping_add(1);
        if self.seen.turn == 0 {
            self.seen.columns.fill((0, 0, Form::Any, 0));
            self.seen.turn = 1;
        }
        let turn = self.seen.turn;
        self.seen.conditions = resource.conditions;
        self.seen.names.clear();
        for (at, attribute) in attributes.iter().enumerate() {
            let at_role = self.role(attribute.key, classify);
            let role = &self.roles[at_role];
            if role.is_declined {
                return Err(Declined::Key);
            }
            if role.conditions != 0 || !role.columns.is_empty() {
                if is_absent(attribute.value) {
                    return Err(Declined::Text);
                }
                self.seen.conditions |= role.conditions;
            }
            for &(column, rank, form) in &role.columns {
                if self.mapping.columns[column].kind == Kind::HashedId {
                    note_id(ids, attribute.value)?;
                }
                let known = &mut self.seen.columns[column];
                if known.0 == turn && known.1 == 2 * rank {
                    return Err(Declined::Repeated);
                }
                if known.0 != turn || 2 * rank < known.1 {
                    *known = (turn, 2 * rank, form, at);
                }
            }
            if let Some(of_metadata) = &role.metadata {
                if self.seen.names.contains(&of_metadata.name) {
                    return Err(Declined::Repeated);
                }
                self.seen.names.push(of_metadata.name);
                metadata.push((at_role, attribute.value));
            }
        }
        for (at, &(column, rank, form, _)) in resource.columns.iter().enumerate() {
            let known = &mut self.seen.columns[column];
            if known.0 != turn || 2 * rank + 1 < known.1 {
                *known = (turn, 2 * rank + 1, form, at | FROM_RESOURCE);
            }
        }
        if resource.names.iter().any(|name| self.seen.names.contains(name)) {
            return Err(Declined::Repeated);
        }
        if metadata.len() + resource.names.len() > self.mapping.metadata_keys_max {
            return Err(Declined::Size);
        }
        Ok(())
    }

    fn chosen<'v>(&self, column: usize, of: &'v [Attribute<'_>], resource: &'v Resource) -> Option<(Value<'v>, Form)> {
        let (turn, _, form, at) = self.seen.columns[column];
        if turn != self.seen.turn {
            return None;
        }
        let value = match at & FROM_RESOURCE {
            0 => of[at].value,
            _ => resource.columns[at & !FROM_RESOURCE].3.value(),
        };
        Some((value, form))
    }

    /// The table, with the column that may exclude it; or that the span is no event.
    fn table(
        &self,
        span: &Span<'_>,
        attributes: &[Attribute<'_>],
        resource: &Resource,
    ) -> Step<Result<(usize, Option<usize>), Fate>> {
        let named = self.mapping.category.and_then(|column| self.chosen(column, attributes, resource));
        if let Some((value, _)) = named {
            let Value::Text(name) = value else {
                return Err(Declined::Rule);
            };
            let table = self.mapping.tables.iter().position(|table| table.name.as_bytes() == name);
            return Ok(table.map(|table| (table, None)).ok_or(Fate::UnknownCategory));
        }
        for inference in &self.mapping.inferences {
            let present = self.seen.conditions;
            let applies = present & inference.any_of != 0 && present & inference.all_of == inference.all_of;
            if applies && (!inference.needs_server || span.kind == SERVER) {
                return match inference.outcome {
                    Inferred::Table(table, exclusion) => Ok(Ok((table, exclusion))),
                    Inferred::Reference => Err(Declined::Rule),
                };
            }
        }
        Ok(Err(Fate::NotProductEvent))
    }

    /// Whether a literal of a secret is inside one text. A match across two texts is none.
    fn has_suspicious_text(&self, span: &Span<'_>, attributes: &[Attribute<'_>]) -> bool {
        let is_hit = |attribute: &Attribute<'_>| match attribute.value {
            Value::Text(text) => self.mapping.is_suspicious(text),
            _ => false,
        };
        self.mapping.is_suspicious(span.name) || attributes.iter().any(is_hit)
    }

    /// A raw id may occur once, where it names the owner, and nowhere else.
    fn check_own_ids(&self, ids: &[OwnId], raw: &[u8], resource: &Resource) -> Step<()> {
        for id in ids {
            let own = usize::from(matches!(id, OwnId::Text(_)));
            if occurrences(raw, id) > own || occurrences(&resource.raw, id) > 0 {
                return Err(Declined::OwnId);
            }
        }
        let is_named_by_number = resource.numbers.iter().any(|number| is_an_owners(number.value(), ids));
        if is_named_by_number || resource.ids.iter().any(|id| occurrences(raw, id) > 0) {
            return Err(Declined::OwnId);
        }
        Ok(())
    }
}

fn unread() -> Role {
    Role { is_declined: true, ..Role::default() }
}

fn is_zero(id: &[u8]) -> bool {
    id.iter().all(|&byte| byte == 0)
}
