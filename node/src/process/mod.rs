//! The process around the nodes: its words and its signals.

pub mod logging;
pub mod memory;
pub mod signals;
