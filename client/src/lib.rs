//! Bitacora's client: a cluster of replicated in-memory key-value stores, used as if it were one.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use bitacora_client::Client;
//!
//! let client = Client::builder().zookeeper("127.0.0.1:2181".parse()?).build().await?;
//! client.set("greeting", "hello").await?;
//! assert_eq!(client.get("greeting").await?.value, "hello");
//! # Ok(()) }
//! ```
#![warn(missing_docs)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod balance;
mod batch;
mod builder;
mod call;
mod client;
mod connection;
mod discovery;
mod error;
mod lock;
mod mirror;
mod operation;
mod read;
mod session;
mod types;
mod update;
mod watch;
mod write;

pub use bitacora_protocol::rpc::DeleteReason;
pub use bitacora_protocol::tls::{ClientTls, TlsError};
pub use bitacora_protocol::token::Token;
pub use bitacora_protocol::zookeeper::ConnectString;
pub use bitacora_protocol::{Consistency, Visible, WriteCondition};
pub use builder::ClientBuilder;
pub use client::Client;
pub use error::{Error, NodeFailure, Refusal};
pub use lock::Lock;
pub use mirror::{Mirror, MirrorBuilder, MirrorChange, MirrorView, MirroredRecord};
pub use operation::{Operation, Outcome, WriteOperation};
pub use read::{Read, ReadLevel};
pub use session::Session;
pub use types::{NodeState, NodeStatus, Position, Record, Scan, ScanPage, ServedFrom, Written};
pub use update::{Change, Updated};
pub use watch::{DeletedKey, Watch, WatchBuilder, WatchEvent, Watched};
pub use write::Write;

/// The examples of the chapter on consistency compile.
#[cfg(doctest)]
#[doc = include_str!("../../docs/consistency.md")]
mod consistency_chapter {}

/// As above, of the chapter on watches.
#[cfg(doctest)]
#[doc = include_str!("../../docs/watch.md")]
mod watch_chapter {}
