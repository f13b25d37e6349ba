//! The mapping as Python passes it, and the roles of keys, for which the engine asks Python.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::mapping::{
    Column, Field, Finder, Form, Glob, Hashing, Inference, Inferred, Kind, Mapping, MetadataRole, Role, SharedKeys,
    Source, Table, searcher,
};
use crate::record_batch::encode_headers;
use crate::translate::Classify;

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct ColumnSpec {
    kind: String,
    chars_max: usize,
    minimum: i64,
    maximum: i64,
    is_inherited: bool,
    is_named_by_span: bool,
    shared_keys: Vec<Vec<u8>>,
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct FieldSpec {
    prefix: Vec<u8>,
    source: String,
    column: usize,
    is_required: bool,
    default: Option<Vec<u8>>,
    is_duration: bool,
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct TableSpec {
    name: String,
    prefix: Vec<u8>,
    fields: Vec<FieldSpec>,
    headers: Vec<(String, Vec<u8>)>,
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct InferenceSpec {
    needs_server: bool,
    any_of: u64,
    all_of: u64,
    table: Option<usize>,
    excluded_by: Option<usize>,
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct MappingSpec {
    columns: Vec<ColumnSpec>,
    tables: Vec<TableSpec>,
    category: Option<usize>,
    inferences: Vec<InferenceSpec>,
    exclusions: Vec<String>,
    hash_key: Option<Vec<u8>>,
    is_prehashed: bool,
    placeholder: Vec<u8>,
    span_bytes_max: usize,
    span_attributes_max: usize,
    metadata_keys_max: usize,
    metadata_chars_max: usize,
    spans_max: usize,
    fields_max: usize,
    counted: Vec<(Vec<u8>, Vec<u8>)>,
    wildcard: Vec<u8>,
    deciding_keys: Vec<Vec<u8>>,
    suspicious: Vec<(Vec<u8>, bool)>,
}

fn kind_of(spec: &ColumnSpec) -> Kind {
    match spec.kind.as_str() {
        "text" => Kind::Text(spec.chars_max),
        "hashed_id" => Kind::HashedId,
        "path" => Kind::Path(spec.chars_max),
        "token" => Kind::Token(spec.chars_max),
        "integer" => Kind::Integer(spec.minimum, spec.maximum),
        "number" => Kind::Number,
        _ => Kind::Judged,
    }
}

fn source_of(spec: FieldSpec) -> PyResult<Source> {
    let FieldSpec { source, column, is_required, default, is_duration, .. } = spec;
    Ok(match source.as_str() {
        "column" => Source::Column { column, is_required, default, is_duration },
        "event_id" => Source::EventId,
        "timestamp_us" => Source::TimestampUs,
        "trace_id" => Source::TraceId,
        "metadata" => Source::Metadata,
        "weight" => Source::Weight(default.unwrap_or_default()),
        other => return Err(PyValueError::new_err(format!("no such source of a field: {other}"))),
    })
}

impl MappingSpec {
    pub fn mapping(self) -> PyResult<Mapping> {
        let wrong = |error: aho_corasick::BuildError| PyValueError::new_err(error.to_string());
        let shared: (Vec<usize>, Vec<Vec<u8>>) = (self.columns.iter().enumerate())
            .flat_map(|(column, spec)| spec.shared_keys.iter().map(move |key| (column, key.clone())))
            .unzip();
        let columns = self.columns.iter().map(|spec| Column {
            kind: kind_of(spec),
            is_inherited: spec.is_inherited,
            is_named_by_span: spec.is_named_by_span,
        });
        let tables = self.tables.into_iter().map(|table| {
            let fields = table.fields.into_iter().map(|mut field| {
                let prefix = std::mem::take(&mut field.prefix);
                Ok(Field { prefix, source: source_of(field)? })
            });
            Ok(Table {
                name: table.name,
                prefix: table.prefix,
                fields: fields.collect::<PyResult<_>>()?,
                headers: encode_headers(&table.headers),
            })
        });
        let inferences = self.inferences.into_iter().map(|spec| Inference {
            needs_server: spec.needs_server,
            any_of: spec.any_of,
            all_of: spec.all_of,
            outcome: spec.table.map_or(Inferred::Reference, |table| Inferred::Table(table, spec.excluded_by)),
        });
        let (suspicious, is_bounded): (Vec<_>, Vec<_>) = self.suspicious.into_iter().unzip();
        Ok(Mapping {
            columns: columns.collect(),
            tables: tables.collect::<PyResult<_>>()?,
            category: self.category,
            inferences: inferences.collect(),
            exclusions: self.exclusions.iter().map(|pattern| Glob::new(pattern)).collect(),
            hashing: Hashing { key: self.hash_key, is_prehashed: self.is_prehashed },
            placeholder: self.placeholder,
            span_bytes_max: self.span_bytes_max,
            span_attributes_max: self.span_attributes_max,
            metadata_keys_max: self.metadata_keys_max,
            metadata_chars_max: self.metadata_chars_max,
            spans_max: self.spans_max,
            fields_max: self.fields_max,
            counted: self.counted,
            wildcard: self.wildcard,
            deciding: Finder::new(&self.deciding_keys).map_err(wrong)?,
            shared: Arc::new(SharedKeys { searcher: searcher(&shared.1).map_err(wrong)?, columns: shared.0 }),
            suspicious: Finder::new(&suspicious).map_err(wrong)?,
            all_suspicious: searcher(&suspicious).map_err(wrong)?,
            is_bounded,
        })
    }
}

/// (columns as (column, rank, form), conditions, metadata as (prefix, keeps text, number, bool), is it declined)
type RoleSpec = (Vec<(usize, u32, String)>, u64, Option<(Vec<u8>, bool, bool, bool)>, bool);

/// Asks Python for the role of a key.
pub struct ByPython<'e> {
    pub role_of: &'e Py<PyAny>,
    pub failed: Option<PyErr>,
}

impl ByPython<'_> {
    fn ask(&mut self, key: &[u8]) -> PyResult<Role> {
        let spec: RoleSpec = Python::attach(|py| self.role_of.call1(py, (PyBytes::new(py, key),))?.extract(py))?;
        let (columns, conditions, metadata, is_declined) = spec;
        let columns = columns.into_iter().map(|(column, rank, form)| {
            let form = match form.as_str() {
                "" => Form::Any,
                "route" => Form::Route,
                "path" => Form::Path,
                _ => Form::Judged,
            };
            (column, rank, form)
        });
        let metadata = metadata.map(|(prefix, keeps_text, keeps_number, keeps_bool)| {
            let mut hasher = DefaultHasher::new();
            prefix.hash(&mut hasher);
            let name = hasher.finish();
            MetadataRole { prefix: prefix.into(), name, keeps_text, keeps_number, keeps_bool }
        });
        Ok(Role { columns: columns.collect(), conditions, metadata, is_declined })
    }
}

impl Classify for ByPython<'_> {
    fn role_of(&mut self, key: &[u8]) -> Role {
        self.ask(key).unwrap_or_else(|error| {
            self.failed = Some(error);
            Role { is_declined: true, ..Role::default() }
        })
    }
}
