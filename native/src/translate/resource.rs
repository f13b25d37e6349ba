//! A resource, read once for all its spans, and the roles of keys. Some of both are remembered.

use std::sync::Arc;

use super::own_ids::{OwnId, is_an_owners, note_id, occurrences};
use super::record::{is_absent, write_metadata};
use super::{Classify, Declined, Step, Translator};
use crate::mapping::{Form, Kind, Role};
use crate::otlp::{self, Value};

const KEYS_MAX: usize = 4096;
const KEY_BYTES_MAX: usize = 128;
const RESOURCES_MAX: usize = 512;
const RESOURCE_BYTES_MAX: usize = 4096;
/// The limit of all remembered resources together; 512 usual ones take a tenth of it.
const RESOURCES_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A value that is kept for all spans of a resource.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Owned {
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

    pub(super) fn value(&self) -> Value<'_> {
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
    pub(super) raw: Box<[u8]>,
    pub(super) holds_deciding_key: bool,
    pub(super) is_declined: bool,
    pub(super) columns: Vec<(usize, u32, Form, Owned)>,
    pub(super) conditions: u64,
    pub(super) ids: Vec<OwnId>,
    pub(super) metadata: Vec<u8>,
    /// The numbers in `metadata`, because a span may have an owner's id that equals one of them.
    pub(super) numbers: Vec<Owned>,
    pub(super) names: Vec<u64>,
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

impl Translator {
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
    pub(super) fn role(&mut self, key: &[u8], classify: &mut impl Classify) -> usize {
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
    pub(super) fn forget(&mut self) {
        if self.roles.len() > KEYS_MAX {
            self.keys.clear();
            self.roles.truncate(1);
            self.key_bytes = 0;
        }
    }
}
