//! What Python sees of rows: `Rows`, which reads records' values and writes COPY data.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::copy::{self, ColumnType};
use crate::rows::{self, FieldKind, NotPlain, Row, RowField, RowLayout, Value};

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
struct RowLayoutSpec {
    name: String,
    beginnings: Vec<Vec<u8>>,
    fields: Vec<RowFieldSpec>,
    /// The type of each column of the table.
    types: Vec<String>,
    /// Where the key that rows are sorted by stands.
    id_at: usize,
}

/// What Python objects a layout needs.
struct Shown {
    name: Py<PyString>,
    /// Each column's value when its field is missing.
    defaults: Vec<Option<Py<PyAny>>>,
    types: Vec<ColumnType>,
    id_at: usize,
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

/// Reads records' values by layouts that are handed over as data, and writes rows as COPY data.
#[pyclass(frozen)]
pub struct Rows {
    layouts: Vec<RowLayout>,
    shown: Vec<Shown>,
}

#[pymethods]
impl Rows {
    #[new]
    fn new(py: Python<'_>, layouts: Vec<RowLayoutSpec>) -> PyResult<Self> {
        let (mut read, mut shown) = (Vec::new(), Vec::new());
        for spec in layouts {
            let mut defaults: Vec<Option<Py<PyAny>>> = spec.types.iter().map(|_| None).collect();
            for field in &spec.fields {
                let place = defaults.get_mut(field.column);
                *place.ok_or_else(|| PyValueError::new_err("no such column"))? =
                    field.default.as_ref().map(|default| default.clone_ref(py));
            }
            read.push(RowLayout {
                beginnings: spec.beginnings,
                fields: spec.fields.iter().map(field_of).collect::<PyResult<_>>()?,
                columns: spec.types.len(),
            });
            shown.push(Shown {
                name: PyString::intern(py, &spec.name).unbind(),
                defaults,
                types: spec.types.iter().map(|name| type_of(name)).collect::<PyResult<_>>()?,
                id_at: spec.id_at,
            });
        }
        Ok(Self { layouts: read, shown })
    }

    /// The table's name and the row of a value; 0 for another table, version or order, 1 for another way of writing.
    fn read<'py>(&self, py: Python<'py>, value: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        let mut row = Row::new();
        match rows::read(&self.layouts, value, &mut row) {
            Ok(number) => {
                let shown = &self.shown[number];
                let values = row.iter().zip(&shown.defaults).map(|(value, default)| match value {
                    Some(Value::Text(text)) => PyString::new(py, text).into_any(),
                    Some(Value::Integer(number)) => PyInt::new(py, *number).into_any(),
                    Some(Value::Double(number)) => PyFloat::new(py, *number).into_any(),
                    None => default.as_ref().map_or_else(|| py.None().into_bound(py), |value| value.bind(py).clone()),
                });
                let row = PyTuple::new(py, values.collect::<Vec<_>>())?;
                Ok(PyTuple::new(py, [shown.name.bind(py).as_any(), row.as_any()])?.into_any())
            }
            Err(NotPlain::Table) => Ok(PyInt::new(py, 0).into_any()),
            Err(NotPlain::Field) => Ok(PyInt::new(py, 1).into_any()),
        }
    }

    /// COPY data of rows, sorted by their id; with `partitions`, one more int4 column. None when a value does not fit.
    #[allow(clippy::needless_pass_by_value)] // pyo3 hands arguments over
    fn copy_data<'py>(
        &self,
        py: Python<'py>,
        table: usize,
        rows: Bound<'py, PyList>,
        partitions: Option<Vec<i32>>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let shown = self.shown.get(table).ok_or_else(|| PyValueError::new_err("no such table"))?;
        let mut order: Vec<([u8; 16], usize)> = Vec::with_capacity(rows.len());
        for (number, row) in rows.iter().enumerate() {
            let id = row.cast_into::<PyTuple>()?.get_item(shown.id_at)?;
            let Some(id) = copy::uuid(&id.cast_into::<PyString>()?.to_cow()?) else {
                return Ok(None);
            };
            order.push((id, number));
        }
        order.sort_unstable();
        let mut out = copy::SIGNATURE.to_vec();
        for (_, number) in order {
            let row = rows.get_item(number)?.cast_into::<PyTuple>()?;
            let partition = partitions.as_ref().and_then(|partitions| partitions.get(number));
            if write_row(&mut out, shown, &row, partition.copied())?.is_none() {
                return Ok(None);
            }
        }
        out.extend_from_slice(&copy::TRAILER);
        Ok(Some(PyBytes::new(py, &out)))
    }
}

fn write_row(
    out: &mut Vec<u8>,
    shown: &Shown,
    row: &Bound<'_, PyTuple>,
    partition: Option<i32>,
) -> PyResult<Option<()>> {
    if row.len() != shown.types.len() {
        return Ok(None);
    }
    let fields = shown.types.len() + usize::from(partition.is_some());
    out.extend_from_slice(&i16::try_from(fields).unwrap_or(i16::MAX).to_be_bytes());
    for (value, &column) in row.iter_borrowed().zip(&shown.types) {
        let written = if value.is_none() {
            copy::write_null(out);
            Some(())
        } else if let Ok(text) = value.cast::<PyString>() {
            match text.to_cow() {
                Ok(text) => copy::write_text(out, column, &text),
                Err(_) => None, // a lone surrogate: the reference's encoder refuses it by name
            }
        } else if let Ok(number) = value.cast_exact::<PyInt>() {
            number.extract().ok().and_then(|number| copy::write_integer(out, column, number))
        } else if let Ok(number) = value.cast::<PyFloat>() {
            copy::write_double(out, column, number.extract()?)
        } else {
            None
        };
        if written.is_none() {
            return Ok(None);
        }
    }
    if let Some(partition) = partition {
        if copy::write_integer(out, ColumnType::Int4, i64::from(partition)).is_none() {
            return Ok(None);
        }
    }
    Ok(Some(()))
}
