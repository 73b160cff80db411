//! What the benchmark suite is made of: load generators and bare peers as processes of their own, processor time from Linux' `/proc`,
//! rows of figures in rounds that alternate, and the table, the page and the charts that are made of them.

pub mod bare;
pub mod bulk;
pub mod charts;
pub mod child;
pub mod cpu;
pub mod host;
pub mod kept;
pub mod load;
pub mod page;
pub mod peers;
pub mod results;
pub mod row;
pub mod table;

/// The name of a key of the suite: 16 bytes.
pub fn key(number: u64) -> String {
    format!("key:{number:012}")
}

/// A value of so many bytes.
pub fn value(bytes: usize) -> String {
    "v".repeat(bytes)
}
