//! `GET /status`, `GET /status/members`, `GET /status/digests` and `GET /metrics`.

use bitacora_protocol::http::Status;
use warp::http::StatusCode;

use super::answers::{self, Reply};
use crate::service::access::Grant;
use crate::service::members::Members;
use crate::service::status::NodeStatus;

/// The node's own account, as JSON.
pub fn status(status: &NodeStatus, grant: &Grant) -> Reply {
    let mut status = status.status();
    if !grant.may_see_digests() {
        hide_digests(&mut status);
    }
    answers::json(StatusCode::OK, &status)
}

/// What every member says of itself, as JSON.
pub async fn members(status: &NodeStatus, members: &Members, grant: &Grant) -> Reply {
    let mut all = members.status(status.status()).await;
    if !grant.may_see_digests() {
        all.members.iter_mut().filter_map(|member| member.status.as_mut()).for_each(hide_digests);
    }
    answers::json(StatusCode::OK, &all)
}

/// Two digests differ by the keys that were written in between: who sees both can find out whether a guess is one of them.
fn hide_digests(status: &mut Status) {
    for partition in &mut status.partitions {
        partition.digest = None;
    }
    for difference in &mut status.differences {
        difference.own.clear();
        difference.theirs.clear();
    }
}

/// What the node holds, for the other members, as JSON.
pub fn digests(status: &NodeStatus) -> Reply {
    answers::json(StatusCode::OK, &status.digests.answer())
}

/// For Prometheus.
pub fn metrics(status: &NodeStatus) -> Reply {
    let text = status.metrics_text();
    answers::respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text.into())
}
