//! What the HTTP and the RPC server share.

pub mod access;
pub(crate) mod files;
pub mod socket;
pub mod tls;
