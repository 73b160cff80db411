//! What the nodes, the client library and the command line of Bitacora agree on: the record and its encoding, positions in the
//! log, the Avro RPC, the HTTP API's headers, the znodes of the members, and how times and sizes are written.
//!
//! Each format is declared once, here. Nothing in this crate talks to a network, except for [`connect()`] and [`zookeeper`]'s sessions.
#![warn(missing_docs)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod avro;
mod connect;
mod consistency;
pub mod http;
mod operation;
mod position;
pub mod record;
pub mod rpc;
mod schema;
pub mod tls;
pub mod token;
pub mod units;
pub mod zookeeper;

pub use avro::DecodeError;
pub use connect::connect;
pub use consistency::{
    Consistency, ReadOptions, SessionPosition, SessionPositionError, Visible, WriteCondition, WriteOptions,
};
pub use operation::Operation;
pub use position::{HighWatermark, NextOffset, Position, PositionError, partition_of};
pub use schema::parse_schema;
