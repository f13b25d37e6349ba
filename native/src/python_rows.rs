//! The classes for Python that make rows: `Rows` reads records, `Chunk` holds their rows, `TableRows` goes to Postgres.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::chunk::{self, Layouts, Outcome};
use crate::event_id::uuid_text;
use crate::fetched::{self, Record, Records, Span};
use crate::python_layouts::{RowLayoutSpec, layouts_of, write_row};
use crate::rows::NotPlain;
use crate::table;

/// A partition, a chunk, its first record, the record behind its last, and the numbers of those left out.
type PartSpec<'py> = (i32, Bound<'py, Chunk>, usize, usize, Vec<usize>);
type Headers<'py> = Bound<'py, PyTuple>;

/// Reads records by layouts that Python passes as data.
#[pyclass(frozen)]
pub struct Rows {
    layouts: Arc<Layouts>,
}

#[pymethods]
impl Rows {
    #[new]
    fn new(py: Python<'_>, layouts: Vec<RowLayoutSpec>) -> PyResult<Self> {
        Ok(Self { layouts: Arc::new(layouts_of(py, layouts)?) })
    }

    /// The records of a whole record batch from `from_offset` on; None when the client library must read the bytes.
    fn read(&self, batch: &[u8], from_offset: i64) -> Option<Chunk> {
        fetched::read(batch, from_offset).map(|records| self.chunk(records))
    }

    /// Records that the client library has read, in the order of their offsets: offset, time in milliseconds and value.
    fn read_values(&self, values: Vec<(i64, i64, Option<Vec<u8>>)>) -> PyResult<Chunk> {
        let mut records = Records::default();
        let place = |at: usize| u32::try_from(at).map_err(|_| PyValueError::new_err("more than 4 GiB of records"));
        for (offset, time_ms, value) in values {
            let start = place(records.bytes.len())?;
            records.bytes.extend_from_slice(value.as_deref().unwrap_or_default());
            let end = place(records.bytes.len())?;
            let value = value.map(|_| Span { start, end });
            records.records.push(Record { offset, time_ms, key: None, value, headers: Span { start: end, end } });
        }
        Ok(self.chunk(records))
    }

    /// The rows of the parts, by table. The numbers of the records that are left out are sorted.
    fn by_table(&self, parts: Vec<PartSpec<'_>>) -> Vec<TableRows> {
        let parts = parts.into_iter().map(|(partition, chunk, start, stop, left_out)| {
            let chunk = Arc::clone(&locked(&chunk.get().inner));
            table::Part { partition, chunk, start, stop, left_out }
        });
        let found = table::by_table(&self.layouts, parts.collect());
        found
            .into_iter()
            .map(|(_, rows)| TableRows { layouts: Arc::clone(&self.layouts), inner: Mutex::new(rows) })
            .collect()
    }
}

impl Rows {
    fn chunk(&self, records: Records) -> Chunk {
        let inner = Mutex::new(Arc::new(chunk::Chunk::new(&self.layouts, records)));
        Chunk { layouts: Arc::clone(&self.layouts), inner }
    }
}

/// Records of one partition in the order of their offsets, and what each is.
#[pyclass(frozen)]
pub struct Chunk {
    layouts: Arc<Layouts>,
    inner: Mutex<Arc<chunk::Chunk>>,
}

#[pymethods]
impl Chunk {
    fn __len__(&self) -> usize {
        self.now().outcomes.len()
    }

    fn memory_bytes(&self) -> usize {
        self.now().memory_bytes()
    }

    fn offset(&self, number: usize) -> PyResult<i64> {
        Ok(known(&self.now(), number)?.offset)
    }

    /// The number of the record with this offset.
    fn number_of(&self, offset: i64) -> PyResult<usize> {
        let chunk = self.now();
        let found = chunk.records.records.binary_search_by_key(&offset, |record| record.offset);
        found.map_err(|_| PyIndexError::new_err("no such offset"))
    }

    /// The records that the reference has to read, and why. 0: another table, version or order of fields; 1: a field
    /// that our encoder would write differently.
    fn declined(&self) -> Vec<(usize, u8)> {
        let chunk = self.now();
        let outcomes = chunk.outcomes.iter().enumerate();
        let declined = outcomes.filter_map(|(number, outcome)| match outcome {
            Outcome::Declined(why) => Some((number, u8::from(*why == NotPlain::Field))),
            _ => None,
        });
        declined.collect()
    }

    /// A record: offset, time in milliseconds, who set it, key, value, headers.
    #[allow(clippy::type_complexity)]
    fn record<'py>(
        &self,
        py: Python<'py>,
        number: usize,
    ) -> PyResult<(i64, i64, i32, Option<Bound<'py, PyBytes>>, Option<Bound<'py, PyBytes>>, Headers<'py>)> {
        let chunk = self.now();
        let record = known(&chunk, number)?;
        let bytes = |span: Option<Span>| span.map(|span| PyBytes::new(py, chunk.records.slice(span)));
        let headers = chunk.records.headers(record).into_iter();
        let headers = headers.map(|(name, value)| (name, value.map(|value| PyBytes::new(py, value))));
        let headers = PyTuple::new(py, headers.collect::<Vec<_>>())?;
        let type_ = chunk.records.timestamp_type;
        Ok((record.offset, record.time_ms, type_, bytes(record.key), bytes(record.value), headers))
    }

    /// Take the row that the reference made of a record; False when a value does not fit.
    fn put(&self, number: usize, table: usize, row: &Bound<'_, PyTuple>) -> PyResult<bool> {
        let mut inner = locked(&self.inner);
        let chunk = Arc::make_mut(&mut inner);
        known(chunk, number)?;
        let start = chunk.copy.len();
        match write_row(&self.layouts, table, row, &mut chunk.copy)? {
            Some((id, time)) => {
                let end = chunk.copy.len();
                chunk.outcomes[number] = Outcome::Row(chunk::RowAt { table, start, end, id, time });
                Ok(true)
            }
            None => {
                chunk.copy.truncate(start);
                Ok(false)
            }
        }
    }

    /// The different texts of each of the subjects of the rows of records `start..stop`.
    fn subjects(&self, start: usize, stop: usize) -> Vec<Vec<String>> {
        let chunk = self.now();
        let subjects = self.layouts.tables.iter().map(|table| table.subjects.len()).max().unwrap_or(0);
        let mut found: Vec<HashSet<&[u8]>> = vec![HashSet::new(); subjects];
        for (_, at) in chunk.rows(start, stop) {
            for (found, text) in found.iter_mut().zip(chunk.subjects(&self.layouts, at)) {
                found.extend(text);
            }
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        found.into_iter().map(|texts| texts.into_iter().map(text).collect()).collect()
    }

    /// Numbers of the records of `start..stop` whose row has a wanted text in one of its subject columns, or a time
    /// before `until`.
    fn matching(&self, start: usize, stop: usize, wanted: Vec<HashSet<String>>, until: Option<i64>) -> Vec<usize> {
        let bytes = |wanted: HashSet<String>| wanted.into_iter().map(String::into_bytes).collect();
        let wanted: Vec<HashSet<Vec<u8>>> = wanted.into_iter().map(bytes).collect();
        self.now().matching(&self.layouts, (start, stop), &wanted, until)
    }
}

impl Chunk {
    fn now(&self) -> Arc<chunk::Chunk> {
        Arc::clone(&locked(&self.inner))
    }
}

/// The rows of one table, each key once.
#[pyclass(frozen)]
pub struct TableRows {
    layouts: Arc<Layouts>,
    inner: Mutex<table::Rows>,
}

#[pymethods]
impl TableRows {
    fn table(&self) -> usize {
        locked(&self.inner).table()
    }

    /// Rows by partition, all versions.
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        counted(py, locked(&self.inner).counts())
    }

    /// Keys by partition.
    fn latest_counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        counted(py, &locked(&self.inner).latest_counts())
    }

    /// At most so many keys, spread evenly: the id's text, and the time.
    fn sample(&self, count: usize) -> Vec<(String, i64)> {
        let rows = locked(&self.inner);
        let step = rows.keys().len() / count.max(1) + 1;
        let text = |id: &[u8; 16]| uuid_text(id).iter().map(|&byte| char::from(byte)).collect();
        rows.keys().step_by(step).map(|(id, time)| (text(&id), time)).collect()
    }

    /// The different times, each rounded down to a multiple of `unit`, and the last time.
    fn times(&self, unit: i64) -> (Vec<i64>, i64) {
        let rows = locked(&self.inner);
        let mut last = i64::MIN;
        let mut found = HashSet::new();
        for (_, time) in rows.keys() {
            found.insert(time.div_euclid(unit) * unit);
            last = last.max(time);
        }
        (found.into_iter().collect(), last)
    }

    /// Versions of one row that differ, the oldest first, each by its part and the record's number.
    fn conflicts(&self) -> Vec<Vec<(usize, usize)>> {
        locked(&self.inner).conflicts().map(<[_]>::to_vec).collect()
    }

    /// Take the row to store for a conflict; called for each conflict, in order. False when a value does not fit.
    fn resolve(&self, conflict: usize, row: &Bound<'_, PyTuple>) -> PyResult<bool> {
        let mut rows = locked(&self.inner);
        let mut written = Vec::new();
        let is_written = write_row(&self.layouts, rows.table(), row, &mut written)?.is_some();
        if is_written {
            rows.resolve(conflict, written);
        }
        Ok(is_written)
    }

    /// COPY data, sorted by key; with the partition as one more int4 column when the rows are staged.
    fn copy_data<'py>(&self, py: Python<'py>, is_staged: bool) -> Bound<'py, PyBytes> {
        let data = py.detach(|| locked(&self.inner).copy_data(is_staged));
        PyBytes::new(py, &data)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn known(chunk: &chunk::Chunk, number: usize) -> PyResult<&Record> {
    chunk.record(number).ok_or_else(|| PyIndexError::new_err("no such record"))
}

fn counted<'py>(py: Python<'py>, counts: &[(i32, usize)]) -> PyResult<Bound<'py, PyDict>> {
    let found = PyDict::new(py);
    for (partition, count) in counts {
        found.set_item(partition, count)?;
    }
    Ok(found)
}
