//! What the HTTP and the RPC server share.

pub mod access;
pub mod socket;
