//! The classes for Python: `Engine`, `Request` and `Batch`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyMemoryError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict};

use crate::envelope::Refused;
use crate::known_paths::{Answer, Known};
use crate::mapping::Mapping;
use crate::python_mapping::{ByPython, MappingSpec};
use crate::python_rows::{Chunk, Rows, TableRows};
use crate::record_batch;
use crate::request::{self, Leftover};
use crate::translate::{Declined, Translator};

create_exception!(telemetry_native, Odd, PyException, "A spelling of the request that only protobuf reads.");
create_exception!(telemetry_native, TooMany, PyException, "More spans, or fields around them, than allowed.");

/// Translates plain spans by a mapping that Python passes as data. A process has one engine.
#[pyclass(frozen)]
struct Engine {
    translator: Mutex<Translator>,
    mapping: Arc<Mapping>,
    known: Mutex<Known>,
    role_of: Py<PyAny>,
}

/// Take the lock even after another thread panicked with it. The memory is sound; at worst the last key is not
/// remembered.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[pymethods]
impl Engine {
    #[new]
    #[allow(clippy::needless_pass_by_value)] // pyo3 hands arguments over
    fn new(mapping: MappingSpec, role_of: Py<PyAny>) -> PyResult<Self> {
        let mapping = mapping.mapping()?;
        let translator = Mutex::new(Translator::new(mapping.clone()));
        let known = Mutex::new(Known::new(mapping.wildcard.clone()));
        Ok(Self { translator, mapping: Arc::new(mapping), known, role_of })
    }

    /// Memory that is kept between requests.
    #[getter]
    fn remembered_bytes(&self) -> usize {
        locked(&self.translator).remembered_bytes() + locked(&self.known).bytes
    }

    /// Split a request into spans; raises Odd or TooMany.
    fn open(&self, py: Python<'_>, body: PyBackedBytes) -> PyResult<Request> {
        let opened = py.detach(|| request::Request::open(body, &self.mapping));
        match opened {
            Ok(request) => Ok(Request { inner: Mutex::new(request) }),
            Err(Refused::Odd) => Err(Odd::new_err(())),
            Err(Refused::TooMany) => Err(TooMany::new_err(())),
        }
    }

    /// Translate for about so many seconds, and return whether every span was visited. Other threads may run meanwhile.
    fn step(&self, py: Python<'_>, request: &Request, seconds: f64) -> PyResult<bool> {
        let slice = Duration::try_from_secs_f64(seconds).map_err(|error| PyValueError::new_err(error.to_string()))?;
        py.detach(|| {
            let mut classify = ByPython { role_of: &self.role_of, failed: None };
            let is_done = locked(&request.inner).step(&mut locked(&self.translator), &mut classify, slice);
            classify.failed.map_or(Ok(is_done), Err)
        })
    }

    /// Ask what to store instead of each path that came without a template, in the order of the spans, some thousand in
    /// each call. Returns whether all were asked. `ask(owner, path)`, both in JSON, returns the path to store (None:
    /// the path itself), whether older answers are void, and whether the answer is a pattern.
    fn bound(&self, request: &Request, ask: &Bound<'_, PyAny>) -> PyResult<bool> {
        let mut ask = |owner: &[u8], path: &[u8]| -> PyResult<Answer> {
            ask.call1((PyBytes::new(ask.py(), owner), PyBytes::new(ask.py(), path)))?.extract()
        };
        locked(&request.inner).bound(&self.mapping.counted, &mut locked(&self.known), &mut ask)
    }

    /// Add records of a partition to a batch, beginning with number `start`; return how many fitted.
    fn add(&self, request: &Request, batch: &Batch, partition: usize, start: usize, now_ms: i64) -> usize {
        let request = locked(&request.inner);
        request.add_to(&mut locked(&batch.inner), partition, start, now_ms, &self.mapping)
    }
}

/// One request's spans and records.
#[pyclass(frozen)]
struct Request {
    inner: Mutex<request::Request<PyBackedBytes>>,
}

#[pymethods]
impl Request {
    #[getter]
    fn spans(&self) -> usize {
        locked(&self.inner).spans
    }

    /// How many paths were replaced by another one.
    #[getter]
    fn replaced(&self) -> usize {
        locked(&self.inner).replaced
    }

    /// Bytes held beside the body.
    #[getter]
    fn held_bytes(&self) -> usize {
        locked(&self.inner).held_bytes()
    }

    /// Spans for the reference since the last call: (place, resource, span).
    fn leftovers<'py>(&self, py: Python<'py>) -> Vec<(usize, Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        let mut request = locked(&self.inner);
        let leftovers: Vec<Leftover> = std::mem::take(&mut request.leftovers);
        let bytes = |leftover: &Leftover| {
            let (resource, span) = request.bytes_of(*leftover);
            (leftover.entry, PyBytes::new(py, resource), PyBytes::new(py, span))
        };
        leftovers.iter().map(bytes).collect()
    }

    /// Resources and spans of one trace, in order.
    fn spans_of<'py>(&self, py: Python<'py>, trace_id: &[u8]) -> Vec<(Bound<'py, PyBytes>, Vec<Bound<'py, PyBytes>>)> {
        let mut request = locked(&self.inner);
        let groups = request.spans_of(trace_id).into_iter();
        groups
            .map(|(resource, spans)| {
                let spans = spans.into_iter().map(|span| PyBytes::new(py, span)).collect();
                (PyBytes::new(py, resource), spans)
            })
            .collect()
    }

    /// Store the record that the reference made for a span.
    #[allow(clippy::needless_pass_by_value)] // pyo3 hands arguments over
    fn settle(&self, place: usize, table: usize, id: [u8; 16], value: PyBackedBytes, is_raw_path: bool) {
        locked(&self.inner).settle(place, table, id, &value, is_raw_path);
    }

    /// Records by table, ignored spans by reason, spans left to the reference by reason.
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<(Vec<usize>, Bound<'py, PyDict>, Bound<'py, PyDict>)> {
        let request = locked(&self.inner);
        let counts = &request.counts;
        let (ignored, declined) = (PyDict::new(py), PyDict::new(py));
        for (reason, count) in [
            ("not_product_event", counts.not_product_event),
            ("unknown_category", counts.unknown_category),
            ("excluded_endpoint", counts.excluded_endpoint),
        ] {
            if count > 0 {
                ignored.set_item(reason, count)?;
            }
        }
        for (why, reason) in Declined::ALL {
            if counts.declined[why as usize] > 0 {
                declined.set_item(reason, counts.declined[why as usize])?;
            }
        }
        Ok((counts.published.clone(), ignored, declined))
    }

    /// Sort the records by partition: (partition, records).
    fn partitioned(&self, partitions: u32) -> PyResult<Vec<(usize, usize)>> {
        if partitions == 0 {
            return Err(PyValueError::new_err("a topic has at least one partition"));
        }
        Ok(locked(&self.inner).partitioned(partitions))
    }
}

/// Records for one partition, in the shape that aiokafka's `send_batch` takes.
#[pyclass(frozen)]
struct Batch {
    inner: Mutex<record_batch::Batch>,
    built: Mutex<Option<Py<PyBytes>>>,
    level: i32,
}

#[pymethods]
impl Batch {
    #[new]
    fn new(bytes_max: usize, level: i32) -> Self {
        Self { inner: Mutex::new(record_batch::Batch::new(bytes_max)), built: Mutex::new(None), level }
    }

    fn record_count(&self) -> i32 {
        locked(&self.inner).count()
    }

    /// Bytes before compression.
    fn size(&self) -> usize {
        locked(&self.inner).bytes_count()
    }

    /// Always true: only the native engine adds records.
    #[allow(clippy::unused_self)]
    fn closed(&self) -> bool {
        true
    }

    #[allow(clippy::unused_self)]
    fn close(&self) {}

    /// The bytes for the broker. Other threads run while they are compressed.
    fn _build(&self, py: Python<'_>) -> PyResult<Py<PyBytes>> {
        let mut built = locked(&self.built);
        if let Some(bytes) = &*built {
            return Ok(bytes.clone_ref(py));
        }
        let compressed = py.detach(|| locked(&self.inner).build(self.level));
        let bytes = PyBytes::new(py, &compressed.map_err(|error| PyMemoryError::new_err(error.to_string()))?).unbind();
        *built = Some(bytes.clone_ref(py));
        Ok(bytes)
    }
}

#[pymodule]
fn telemetry_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Engine>()?;
    module.add_class::<Request>()?;
    module.add_class::<Batch>()?;
    module.add_class::<Chunk>()?;
    module.add_class::<Rows>()?;
    module.add_class::<TableRows>()?;
    module.add("Odd", module.py().get_type::<Odd>())?;
    module.add("TooMany", module.py().get_type::<TooMany>())?;
    module.add("DECLINED", Declined::ALL.map(|(_, reason)| reason).to_vec())
}
