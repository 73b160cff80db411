//! A node of Bitacora. `ARCHITECTURE.md` in the repository's root is the map.
// An application: its documentation is for those who change it, and shows private items, too.
#![allow(rustdoc::private_intra_doc_links)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod answer_text;
pub mod clock;
pub mod cluster;
pub mod data_dir;
pub mod dev;
pub mod http;
pub mod http_client;
mod lmdb;
pub mod log;
pub mod log_lines;
pub mod metrics;
pub mod node;
pub mod permits;
pub mod process;
pub mod replication;
pub mod rpc;
pub mod serve;
pub mod server;
pub mod service;
pub mod settings;
pub mod store;
pub mod telemetry;
pub mod trimming;
pub mod worker;

#[cfg(test)]
mod testing;

pub(crate) use self::answer_text::read_text_limited;
pub use self::clock::now_ms;
