//! The program `bitacora` as a script sees it: arguments, streams, files, exit codes; against a small node of its own that
//! speaks enough HTTP, and fails when it is told to; watches against a real one.

mod arguments;
mod bench;
mod conditions;
mod consistency;
mod del;
mod diff;
mod export;
mod files;
mod import;
mod import_outputs;
mod import_streams;
mod import_text;
mod keys;
mod members;
mod node;
mod program;
mod streams;
#[path = "../../../../node/tests/support/mod.rs"]
mod support;
mod tls;
mod tokens;
mod troubles;
mod usage;
mod watch;
