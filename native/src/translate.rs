//! One span's bytes -> one record's value, for plain spans. The reference translates the others.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use hashbrown::HashMap;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::mapping::{Form, Inferred, Kind, Mapping, MetadataRole, Role, Source};
use crate::otlp::{self, Attribute, Span, Value};
use crate::plain::{self, PathRules};

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

const KEYS_MAX: usize = 4096;
const KEY_BYTES_MAX: usize = 128;
const RESOURCES_MAX: usize = 512;
const RESOURCE_BYTES_MAX: usize = 4096;
/// The limit of all remembered resources together; 512 usual ones take a tenth of it.
const RESOURCES_BYTES_MAX: usize = 4 * 1024 * 1024;
const SPAN_BYTES_MAX: usize = 4096;
const OWN_IDS_MAX: usize = 4;
const OWN_ID_BYTES_MIN: usize = 4;
const SERVER: i32 = 2;

/// A value that is kept for all spans of a resource.
#[derive(Debug, Clone, PartialEq)]
enum Owned {
    Text(Box<[u8]>),
    Bool(bool),
    Int(i64),
    Double(f64),
    Odd,
}

impl Owned {
    fn held_bytes(&self) -> usize {
        size_of::<Self>() + if let Self::Text(text) = self { text.len() } else { 0 }
    }

    fn of(value: Value<'_>) -> Self {
        match value {
            Value::Text(text) => Self::Text(text.into()),
            Value::Bool(flag) => Self::Bool(flag),
            Value::Int(number) => Self::Int(number),
            Value::Double(number) => Self::Double(number),
            Value::Unset | Value::Nested => Self::Odd,
        }
    }

    fn value(&self) -> Value<'_> {
        match self {
            Self::Text(text) => Value::Text(text),
            Self::Bool(flag) => Value::Bool(*flag),
            Self::Int(number) => Value::Int(*number),
            Self::Double(number) => Value::Double(*number),
            Self::Odd => Value::Nested,
        }
    }
}

/// A resource, read once for all its spans.
#[derive(Debug, Default)]
pub struct Resource {
    raw: Box<[u8]>,
    holds_deciding_key: bool,
    is_declined: bool,
    columns: Vec<(usize, u32, Form, Owned)>,
    conditions: u64,
    ids: Vec<OwnId>,
    metadata: Vec<u8>,
    /// The numbers in `metadata`, because a span may have an owner's id that equals one of them.
    numbers: Vec<Owned>,
    names: Vec<u64>,
}

impl Resource {
    /// The memory of the resource, with the copy of its bytes under which it is stored.
    fn held_bytes(&self) -> usize {
        let texts = self.columns.iter().map(|column| &column.3).chain(&self.numbers).map(Owned::held_bytes);
        size_of::<Self>()
            + 2 * self.raw.len()
            + self.metadata.capacity()
            + 8 * self.names.capacity()
            + texts.sum::<usize>()
    }
}

/// A raw id, which may not occur anywhere else in the span or its resource.
#[derive(Debug, Clone, PartialEq)]
enum OwnId {
    Text(Box<[u8]>),
    Int(i64),
}

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

    /// A resource, as every span under it starts. Senders repeat their resource in each request, so some are
    /// remembered.
    pub fn resource(&mut self, raw: &[u8], classify: &mut impl Classify) -> Arc<Resource> {
        if raw.len() > RESOURCE_BYTES_MAX {
            let holds_deciding_key = self.holds_deciding_key(raw);
            return Arc::new(Resource { holds_deciding_key, is_declined: true, ..Resource::default() });
        }
        if let Some(known) = self.resources.get(raw) {
            return known.clone();
        }
        self.forget();
        let mut read =
            Resource { raw: raw.into(), holds_deciding_key: self.holds_deciding_key(raw), ..Resource::default() };
        read.is_declined = self.read_resource(&mut read, raw, classify).is_err();
        let size = read.held_bytes();
        let read = Arc::new(read);
        if self.resources.len() >= RESOURCES_MAX || self.resource_bytes + size > RESOURCES_BYTES_MAX {
            self.resources.clear();
            self.resource_bytes = 0;
        }
        self.resource_bytes += size;
        self.resources.insert(raw.into(), read.clone());
        read
    }

    fn read_resource(&mut self, read: &mut Resource, raw: &[u8], classify: &mut impl Classify) -> Step<()> {
        let mut attributes = Vec::new();
        otlp::resource(raw, &mut attributes).map_err(|_| Declined::Wire)?;
        if attributes.len() > self.mapping.span_attributes_max {
            return Err(Declined::Size);
        }
        if self.mapping.is_suspicious(raw) {
            return Err(Declined::Text);
        }
        for attribute in attributes {
            let at_role = self.role(attribute.key, classify);
            let role = &self.roles[at_role];
            if role.is_declined {
                return Err(Declined::Key);
            }
            if role.conditions != 0 || !role.columns.is_empty() {
                if is_absent(attribute.value) {
                    return Err(Declined::Text);
                }
                read.conditions |= role.conditions;
            }
            for &(column, rank, form) in &role.columns {
                if read.columns.iter().any(|known| known.0 == column && known.1 == rank) {
                    return Err(Declined::Repeated);
                }
                if self.mapping.columns[column].kind == Kind::HashedId {
                    note_id(&mut read.ids, attribute.value)?;
                }
                read.columns.push((column, rank, form, Owned::of(attribute.value)));
            }
            if let Some(metadata) = &role.metadata {
                if read.names.contains(&metadata.name) || read.names.len() >= self.mapping.metadata_keys_max {
                    return Err(Declined::Repeated);
                }
                read.names.push(metadata.name);
                let mut text = Vec::new();
                write_metadata(&mut text, metadata, attribute.value, &[], self.mapping.metadata_chars_max)?;
                read.metadata.extend_from_slice(&text);
                if matches!(attribute.value, Value::Int(_) | Value::Double(_)) {
                    read.numbers.push(Owned::of(attribute.value));
                }
            }
        }
        if read.numbers.iter().any(|number| is_an_owners(number.value(), &read.ids)) {
            return Err(Declined::OwnId);
        }
        for id in &read.ids {
            if occurrences(raw, id) > usize::from(matches!(id, OwnId::Text(_))) {
                return Err(Declined::OwnId);
            }
        }
        Ok(())
    }

    /// The index of the key's role in `roles`. It stays valid until `forget`.
    fn role(&mut self, key: &[u8], classify: &mut impl Classify) -> usize {
        if let Some(&role) = self.keys.get(key) {
            return role;
        }
        if key.len() > KEY_BYTES_MAX {
            return 0;
        }
        let role = classify.role_of(key);
        self.key_bytes +=
            size_of::<Role>() + 2 * key.len() + role.metadata.as_ref().map_or(0, |made| made.prefix.len());
        self.roles.push(role);
        self.keys.insert(key.into(), self.roles.len() - 1);
        self.roles.len() - 1
    }

    /// Forget everything when too much is remembered. Called only between spans, because it ends every index in
    /// `roles`.
    fn forget(&mut self) {
        if self.roles.len() > KEYS_MAX {
            self.keys.clear();
            self.roles.truncate(1);
            self.key_bytes = 0;
        }
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

    /// Add the record's value, and return the place of the column `exclusion` in it.
    fn write(
        &self,
        out: &mut Vec<u8>,
        table: usize,
        of: &Written<'_, '_>,
        exclusion: Option<usize>,
        trace: &mut impl Trace,
    ) -> Step<Option<Range<usize>>> {
        let mut excluding = None;
        let table = &self.mapping.tables[table];
        out.extend_from_slice(&table.prefix);
        for field in &table.fields {
            match &field.source {
                Source::Column { column, is_required, default, is_duration } => {
                    let start = out.len();
                    out.extend_from_slice(&field.prefix);
                    match self.chosen(*column, of.attributes, of.resource) {
                        Some((value, form)) => {
                            self.write_value(out, *column, value, form, of)?;
                            if exclusion == Some(*column) {
                                excluding = Some(start + field.prefix.len()..out.len());
                            }
                        }
                        None if self.mapping.columns[*column].is_inherited
                            && trace.names(*column, of.span.trace_id) =>
                        {
                            return Err(Declined::Trace);
                        }
                        None if *is_required => return Err(Declined::Missing),
                        None => match default {
                            Some(default) => out.extend_from_slice(default),
                            None if *is_duration && of.span.end_ns != 0 && of.span.end_ns >= of.span.start_ns => {
                                write_duration(out, of.span.end_ns - of.span.start_ns)?;
                            }
                            None => {
                                out.truncate(start);
                                continue;
                            }
                        },
                    }
                }
                Source::Weight(_) if memchr::memmem::find(of.span.trace_state, b"ot=").is_some() => {
                    return Err(Declined::Rule);
                }
                Source::Weight(default) => {
                    out.extend_from_slice(&field.prefix);
                    out.extend_from_slice(default);
                }
                Source::EventId => {
                    out.extend_from_slice(&field.prefix);
                    write_uuid(out, &of.id);
                }
                Source::TraceId => {
                    out.extend_from_slice(&field.prefix);
                    let id: &[u8; 16] = of.span.trace_id.try_into().map_err(|_| Declined::Ids)?;
                    write_uuid(out, id);
                }
                Source::TimestampUs => {
                    out.extend_from_slice(&field.prefix);
                    out.extend_from_slice(itoa::Buffer::new().format(of.span.start_ns / 1000).as_bytes());
                }
                Source::Metadata => {
                    out.extend_from_slice(&field.prefix);
                    self.write_all_metadata(out, of)?;
                }
            }
            out.push(b',');
        }
        let last = out.len() - 1;
        out[last] = b'}';
        Ok(excluding)
    }

    fn write_value(
        &self,
        out: &mut Vec<u8>,
        column: usize,
        value: Value<'_>,
        form: Form,
        of: &Written<'_, '_>,
    ) -> Step<()> {
        let start = out.len();
        if form == Form::Judged {
            return Err(Declined::Rule);
        }
        if self.mapping.columns[column].is_named_by_span && form != Form::Route && of.span.kind == SERVER {
            // Without a route attribute, the span's name may hold the route.
            return self.write_named_path(out, column, value, form, of.span.name);
        }
        self.write_column(out, column, value, form)?;
        self.is_raw_path.set(self.is_raw_path.get() || form == Form::Path);
        if is_an_owners(value, of.ids) && self.mapping.columns[column].kind != Kind::HashedId {
            out.truncate(start);
            return Err(Declined::OwnId);
        }
        Ok(())
    }

    fn write_named_path(
        &self,
        out: &mut Vec<u8>,
        column: usize,
        value: Value<'_>,
        form: Form,
        name: &[u8],
    ) -> Step<()> {
        let split = memchr::memchr(b' ', name);
        if let Some((method, path)) = split.map(|at| (&name[..at], &name[at + 1..])) {
            if !method.iter().all(u8::is_ascii_uppercase) || memchr::memchr(b'/', path).is_none_or(|at| at != 0) {
                return Err(Declined::Path);
            }
            let Kind::Path(chars_max) = self.mapping.columns[column].kind else {
                return Err(Declined::Path);
            };
            let how = PathRules { may_have_placeholders: true, may_have_ids: false, is_trimmed: true };
            self.is_raw_path.set(!plain::has_placeholder(path));
            return plain::write_path(out, path, &self.mapping.placeholder, chars_max, how).ok_or(Declined::Path);
        }
        if memchr::memchr(b'/', name).is_some() {
            return Err(Declined::Path);
        }
        self.is_raw_path.set(form == Form::Path);
        self.write_column(out, column, value, form)
    }

    fn write_column(&self, out: &mut Vec<u8>, column: usize, value: Value<'_>, form: Form) -> Step<()> {
        match (self.mapping.columns[column].kind, value) {
            (Kind::Text(chars_max), Value::Text(text)) => {
                let how = plain::text(text, chars_max).ok_or(Declined::Text)?;
                plain::write_text(out, text, how);
            }
            (Kind::HashedId, value) => self.write_hash(out, value)?,
            (Kind::Path(chars_max), Value::Text(path)) => {
                let how = match form {
                    Form::Route => {
                        PathRules { may_have_placeholders: true, may_have_ids: true, is_trimmed: path.len() > 1 }
                    }
                    Form::Path => PathRules { may_have_placeholders: false, may_have_ids: true, is_trimmed: false },
                    Form::Any | Form::Judged => return Err(Declined::Path),
                };
                plain::write_path(out, path, &self.mapping.placeholder, chars_max, how).ok_or(Declined::Path)?;
            }
            (Kind::Token(chars_max), Value::Text(text)) => {
                plain::write_token(out, text, chars_max).ok_or(Declined::Text)?;
            }
            (Kind::Integer(least, most), Value::Int(number)) if (least..=most).contains(&number) => {
                plain::write_integer(out, number).ok_or(Declined::Number)?;
            }
            #[allow(clippy::cast_precision_loss)] // `write_number` declines what is not exact
            (Kind::Number, Value::Int(number)) if number >= 0 => {
                plain::write_number(out, number as f64).ok_or(Declined::Number)?;
            }
            (Kind::Number, Value::Double(number)) if number >= 0.0 => {
                plain::write_number(out, number).ok_or(Declined::Number)?;
            }
            _ => return Err(Declined::Text),
        }
        Ok(())
    }

    fn write_hash(&self, out: &mut Vec<u8>, value: Value<'_>) -> Step<()> {
        let mut buffer = itoa::Buffer::new();
        let id = match value {
            Value::Text(id) => id,
            Value::Int(number) => buffer.format(number).as_bytes(),
            _ => return Err(Declined::Ids),
        };
        if std::str::from_utf8(id).is_err() {
            return Err(Declined::Ids);
        }
        out.push(b'"');
        let hashing = &self.mapping.hashing;
        let is_hash = |&byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if hashing.is_prehashed && id.len() == 16 && id.iter().all(is_hash) {
            out.extend_from_slice(id);
        } else {
            let digest: [u8; 32] = match &hashing.key {
                None => Sha256::digest(id).into(),
                Some(key) => {
                    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| Declined::Ids)?;
                    mac.update(id);
                    mac.finalize().into_bytes().into()
                }
            };
            write_hex(out, &digest[..8]);
        }
        out.push(b'"');
        Ok(())
    }

    fn write_all_metadata(&self, out: &mut Vec<u8>, of: &Written<'_, '_>) -> Step<()> {
        out.push(b'{');
        let start = out.len();
        for &(role, value) in of.metadata {
            if let Some(metadata) = &self.roles[role].metadata {
                write_metadata(out, metadata, value, of.ids, self.mapping.metadata_chars_max)?;
            }
        }
        out.extend_from_slice(&of.resource.metadata);
        if out.len() > start {
            out.pop(); // the last comma
        }
        out.push(b'}');
        Ok(())
    }
}

/// Everything from which a record is written.
struct Written<'s, 'a> {
    attributes: &'s [Attribute<'a>],
    resource: &'s Resource,
    span: &'s Span<'a>,
    ids: &'s [OwnId],
    metadata: &'s [(usize, Value<'a>)],
    id: [u8; 16],
}

fn unread() -> Role {
    Role { is_declined: true, ..Role::default() }
}

fn is_zero(id: &[u8]) -> bool {
    id.iter().all(|&byte| byte == 0)
}

/// Whether the value may count as absent: unset, or a text that begins with no visible ASCII character.
fn is_absent(value: Value<'_>) -> bool {
    match value {
        Value::Unset => true,
        Value::Text(text) => !text.first().is_some_and(u8::is_ascii_graphic),
        _ => false,
    }
}

fn note_id(ids: &mut Vec<OwnId>, value: Value<'_>) -> Step<()> {
    let id = match value {
        Value::Text(id) if !is_plain_id(id) => return Err(Declined::Ids),
        Value::Text(id) if id.len() >= OWN_ID_BYTES_MIN => OwnId::Text(id.into()),
        Value::Text(_) => return Ok(()),
        Value::Int(number) => OwnId::Int(number),
        _ => return Err(Declined::Ids),
    };
    if ids.len() >= OWN_IDS_MAX {
        return Err(Declined::Size);
    }
    ids.push(id);
    Ok(())
}

/// Whether the id has one spelling: no escapes, no spaces around it, no letters that look alike.
fn is_plain_id(id: &[u8]) -> bool {
    id.iter().all(|&byte| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'&' | b'\\'))
}

/// How often the id stands in the bytes as text.
fn occurrences(bytes: &[u8], id: &OwnId) -> usize {
    match id {
        OwnId::Text(id) => memchr::memmem::find_iter(bytes, id).count(),
        OwnId::Int(number) => {
            let mut buffer = itoa::Buffer::new();
            let text = buffer.format(*number).as_bytes();
            if text.len() < OWN_ID_BYTES_MIN { 0 } else { memchr::memmem::find_iter(bytes, text).count() }
        }
    }
}

/// Whether a number is an owner's id, or its text equals one.
fn is_an_owners(value: Value<'_>, ids: &[OwnId]) -> bool {
    let (mut shortest, mut whole) = (ryu::Buffer::new(), itoa::Buffer::new());
    let (text, whole) = match value {
        Value::Int(number) => {
            let text = whole.format(number).as_bytes();
            (text, text)
        }
        Value::Double(number) if number.is_finite() => {
            #[allow(clippy::cast_possible_truncation)] // a double with a fraction is no whole id
            let whole = if number.fract() == 0.0 { whole.format(number as i64) } else { "" };
            (shortest.format_finite(number).as_bytes(), whole.as_bytes())
        }
        _ => return false,
    };
    ids.iter().any(|id| match id {
        OwnId::Text(id) => id.as_ref() == text || id.as_ref() == whole,
        OwnId::Int(id) => itoa::Buffer::new().format(*id).as_bytes() == whole,
    })
}

/// Add `"name":value,`, or nothing when the key does not allow the value's type.
fn write_metadata(
    out: &mut Vec<u8>,
    role: &MetadataRole,
    value: Value<'_>,
    ids: &[OwnId],
    chars_max: usize,
) -> Step<()> {
    if is_absent(value) {
        return Err(Declined::Text);
    }
    let is_kept = match value {
        Value::Text(_) => role.keeps_text,
        Value::Bool(_) => role.keeps_bool,
        Value::Int(_) | Value::Double(_) => role.keeps_number,
        Value::Unset | Value::Nested => return Err(Declined::Text),
    };
    if !is_kept {
        return Ok(());
    }
    if is_an_owners(value, ids) {
        return Err(Declined::OwnId);
    }
    out.extend_from_slice(&role.prefix);
    match value {
        Value::Text(text) => {
            let how = plain::text(text, chars_max).ok_or(Declined::Text)?;
            plain::write_text(out, text, how);
        }
        Value::Bool(flag) => out.extend_from_slice(if flag { b"true" } else { b"false" }),
        Value::Int(number) => plain::write_integer(out, number).ok_or(Declined::Number)?,
        Value::Double(number) => plain::write_number(out, number).ok_or(Declined::Number)?,
        Value::Unset | Value::Nested => return Err(Declined::Text),
    }
    out.push(b',');
    Ok(())
}

/// Add nanoseconds as milliseconds, exactly as a division of the two integers gives.
fn write_duration(out: &mut Vec<u8>, ns: u64) -> Step<()> {
    if ns >= 1 << 53 {
        return Err(Declined::Number);
    }
    #[allow(clippy::cast_precision_loss)] // exact below 2^53
    let ms = ns as f64 / 1e6;
    plain::write_number(out, ms).ok_or(Declined::Number)
}

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

fn write_hex(out: &mut Vec<u8>, bytes: &[u8]) {
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

fn write_uuid(out: &mut Vec<u8>, id: &[u8; 16]) {
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
