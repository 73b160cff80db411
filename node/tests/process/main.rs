//! The program `bitacora-node` as a user runs it: a process with an environment, streams and signals.

mod conditional;
mod dev_folders;
mod health;
mod logging;
mod program;
mod proxies;
mod signals;
mod tls;
mod variables;
