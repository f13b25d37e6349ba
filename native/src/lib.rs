//! The native engine: request bytes -> Kafka record batches, for spans that need no judgement; and record batches ->
//! rows, for values that our own encoder wrote.
//!
//! `otlp` reads bytes, `mapping` holds the rules that Python hands over as data, `plain` tests values, `translate` does
//! one span, `request` does one request, `record_batch` builds what the broker takes.
//!
//! `fetched` reads a record batch, `rows` a record's value; `chunk` makes COPY rows of both, and `table` the COPY data of
//! a table; `copy` writes it. `python` and `python_rows` are the only modules that know Python. Nothing here names an attribute, a column or a table.
#![forbid(unsafe_code)]

pub mod chunk;
pub mod copy;
pub mod fetched;
pub mod mapping;
pub mod otlp;
pub mod plain;
mod python;
mod python_rows;
pub mod record_batch;
pub mod request;
pub mod rows;
pub mod table;
pub mod translate;
