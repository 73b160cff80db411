//! What the programs of Bitacora share in dealing with the operating system: [`console`] writes to stdout and stderr, either of
//! which may be closed, full or a pipe whose reader has gone; [`files`] writes files so that a name never stands for half of one;
//! [`environment`] reads variables as orchestrators make them; [`log_filter`] checks which log lines are asked for; [`secret_file`]
//! reads secrets from files, and [`token`] the token that a program shows.
#![warn(missing_docs)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod console;
pub mod environment;
pub mod files;
pub mod log_filter;
pub mod secret_file;
pub mod token;
