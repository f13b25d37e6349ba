//! The native engine: request bytes -> Kafka record batches, for plain spans; and record batches -> rows, for values
//! that our own encoder wrote.
//!
//! `envelope` finds the spans in a request, and `otlp` reads them. `mapping` has the rules that Python passes as data,
//! `plain` tests values, `translate` translates one span, `request` one request, and `record_batch` builds the batches
//! for the broker. `trace_index` knows which traces have ids, and `known_paths` which paths are replaced.
//!
//! `fetched` reads a record batch, `rows` a record's value; `chunk` makes COPY rows of both, and `table` the COPY data
//! of a table; `copy` writes it. Only the modules whose names begin with `python` know Python.
//! Nothing here names an attribute, a column or a table.
#![forbid(unsafe_code)]

pub mod chunk;
pub mod copy;
pub mod envelope;
pub mod event_id;
pub mod fetched;
pub mod known_paths;
pub mod mapping;
pub mod otlp;
pub mod plain;
mod python;
mod python_layouts;
mod python_mapping;
mod python_rows;
pub mod record_batch;
pub mod request;
pub mod rows;
pub mod table;
mod trace_index;
pub mod translate;
