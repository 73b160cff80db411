//! `GET /snapshot`: the store, as it is now, to another member or to a backup.

use warp::reply::{Reply as _, Response};

use super::answers;
use super::error::failure;
use super::params::query_params;
use super::refusals::Verbatim;
use crate::replication::snapshot::Snapshots;
use crate::replication::snapshot::serve::Refused;
use crate::service::error::ErrorKind;

/// Begins to send the store.
pub fn send(snapshots: &Snapshots, query: &str) -> Response {
    if let Err(error) = query_params(query, &[]) {
        return error.reply(false).into_response();
    }
    match snapshots.begin() {
        Ok(pieces) => {
            let mut reply = answers::streamed(pieces, "application/octet-stream");
            reply.extensions_mut().insert(Verbatim);
            reply
        }
        Err(refused) => {
            let kind = match refused {
                Refused::Busy => ErrorKind::NotReady,
                Refused::NotRestored | Refused::Store(_) => ErrorKind::AskAnotherNode,
            };
            failure(kind, &refused.to_string(), None).into_response()
        }
    }
}
