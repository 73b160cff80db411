//! What Bitacora's nodes and clients agree on: the record of the log, positions, and the JSON of the HTTP API.
//!
//! The node uses [`wire`] too, so that both sides of every connection share one definition.
#![warn(missing_docs)]

pub mod wire;
