//! Layouts and values that Python passes.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyInt, PyString, PyTuple};

use crate::chunk::{self, Layouts, Table};
use crate::copy::{self, ColumnType};
use crate::rows::{FieldKind, RowField, RowLayout, Value};

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct RowFieldSpec {
    prefix: Vec<u8>,
    kind: String,
    chars_max: usize,
    minimum: i64,
    maximum: i64,
    is_required: bool,
    column: usize,
    default: Option<Py<PyAny>>,
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct RowLayoutSpec {
    beginnings: Vec<Vec<u8>>,
    fields: Vec<RowFieldSpec>,
    /// The type of each column of the table.
    types: Vec<String>,
    key: (usize, usize),
    subjects: Vec<usize>,
}

fn field_of(spec: &RowFieldSpec) -> PyResult<RowField> {
    #[allow(clippy::cast_precision_loss)] // bounds of numbers are small
    let kind = match spec.kind.as_str() {
        "uuid" => FieldKind::Uuid,
        "text" => FieldKind::Text(spec.chars_max),
        "integer" => FieldKind::Integer(spec.minimum, spec.maximum),
        "double" => FieldKind::Double(spec.minimum as f64),
        "object" => FieldKind::Object,
        other => return Err(PyValueError::new_err(format!("no such kind of field: {other}"))),
    };
    Ok(RowField { prefix: spec.prefix.clone(), kind, is_required: spec.is_required, column: spec.column })
}

fn type_of(name: &str) -> PyResult<ColumnType> {
    Ok(match name {
        "uuid" => ColumnType::Uuid,
        "text" => ColumnType::Text,
        "int4" => ColumnType::Int4,
        "int8" => ColumnType::Int8,
        "float8" => ColumnType::Float8,
        "timestamp" => ColumnType::Timestamp,
        "json" => ColumnType::Json,
        other => return Err(PyValueError::new_err(format!("no such type of column: {other}"))),
    })
}

fn table_of(py: Python<'_>, spec: &RowLayoutSpec) -> PyResult<Table> {
    let types = spec.types.iter().map(|name| type_of(name)).collect::<PyResult<Vec<_>>>()?;
    let mut null = Vec::new();
    copy::write_null(&mut null);
    let mut defaults = vec![null; types.len()];
    for field in &spec.fields {
        let column = *types.get(field.column).ok_or_else(|| PyValueError::new_err("no such column"))?;
        if let Some(default) = &field.default {
            let mut written = Vec::new();
            let default = Owned::of(default.bind(py))?;
            let fits = default.and_then(|default| chunk::write_value(&mut written, column, default.value()));
            fits.ok_or_else(|| PyValueError::new_err("a default that does not fit its column"))?;
            defaults[field.column] = written;
        }
    }
    if spec.key.0.max(spec.key.1) >= types.len() {
        return Err(PyValueError::new_err("no such column of the key"));
    }
    Ok(Table { types, defaults, key: spec.key, subjects: spec.subjects.clone() })
}

/// # Errors
/// `ValueError`: a kind, a type or a default that is not known.
pub fn layouts_of(py: Python<'_>, specs: Vec<RowLayoutSpec>) -> PyResult<Layouts> {
    let tables = specs.iter().map(|spec| table_of(py, spec)).collect::<PyResult<_>>()?;
    let read = specs.into_iter().map(|spec| {
        Ok(RowLayout {
            fields: spec.fields.iter().map(field_of).collect::<PyResult<_>>()?,
            beginnings: spec.beginnings,
            columns: spec.types.len(),
        })
    });
    Ok(Layouts { read: read.collect::<PyResult<_>>()?, tables })
}

/// The row's key; None when a value does not fit its column.
pub fn write_row(
    layouts: &Layouts,
    table: usize,
    row: &Bound<'_, PyTuple>,
    out: &mut Vec<u8>,
) -> PyResult<Option<([u8; 16], i64)>> {
    let table = layouts.tables.get(table).ok_or_else(|| PyValueError::new_err("no such table"))?;
    let mut values = Vec::with_capacity(row.len());
    for value in row.iter_borrowed() {
        match Owned::of(&value)? {
            Some(value) => values.push(value),
            None => return Ok(None),
        }
    }
    let values: Vec<_> = values.iter().map(|value| Some(value.value())).collect();
    Ok(chunk::write_row(table, &values, out))
}

/// A value that Python passed.
enum Owned {
    Null,
    Text(String),
    Integer(i64),
    Double(f64),
}

impl Owned {
    /// None: no column takes it.
    fn of(value: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        Ok(if value.is_none() {
            Some(Self::Null)
        } else if let Ok(text) = value.cast::<PyString>() {
            text.to_cow().ok().map(|text| Self::Text(text.into_owned())) // a lone surrogate is no text
        } else if let Ok(number) = value.cast_exact::<PyInt>() {
            number.extract().ok().map(Self::Integer)
        } else if let Ok(number) = value.cast::<PyFloat>() {
            Some(Self::Double(number.extract()?))
        } else {
            None
        })
    }

    fn value(&self) -> Value<'_> {
        match self {
            Self::Null => Value::Null,
            Self::Text(text) => Value::Text(text),
            Self::Integer(number) => Value::Integer(*number),
            Self::Double(number) => Value::Double(*number),
        }
    }
}
