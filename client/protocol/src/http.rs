//! The HTTP API, as far as both sides must spell it alike: its headers.

/// Header of every answer about a key: the position `P:O` that the answer reflects.
pub const POSITION_HEADER: &str = "bitacora-position";
/// Header of every answer to a read of a key: where it came from, `cache`, `store` or `peer`.
pub const SOURCE_HEADER: &str = "bitacora-source";
/// Header of an answer that a record decided: its write timestamp in ms since the epoch. A 404 with it means
/// *deleted or expired by that record*; a 404 without it means *no record*.
pub const TIMESTAMP_HEADER: &str = "bitacora-timestamp";
/// Header of what a node answers another: the log that the answer is of, a number in hexadecimal; 0 if that is not known.
pub const LOG_HEADER: &str = "bitacora-log";
