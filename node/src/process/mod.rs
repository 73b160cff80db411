//! The process around the nodes: its words, its signals, who may see its memory, and how many files it may have open.

pub mod logging;
pub mod memory;
pub mod open_files;
pub mod signals;
