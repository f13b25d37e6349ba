//! The native engine: request bytes -> Kafka record batches, for spans that need no judgement.
//!
//! `otlp` reads bytes, `mapping` holds the rules that Python hands over as data, `plain` tests values, `translate` does
//! one span, `request` does one request, `record_batch` builds what the broker takes, `python` is the only module that
//! knows Python. Nothing here names an attribute, a column or a table.
#![forbid(unsafe_code)]

pub mod mapping;
pub mod otlp;
pub mod plain;
mod python;
pub mod record_batch;
pub mod request;
pub mod translate;
