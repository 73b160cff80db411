//! `GET /status`, `GET /status/members`, `GET /status/digests` and `GET /metrics`.

use warp::http::StatusCode;

use super::answers::{self, Reply};
use crate::service::members::Members;
use crate::service::status::NodeStatus;

/// The node's own account, as JSON.
pub fn status(status: &NodeStatus) -> Reply {
    answers::json(StatusCode::OK, &status.status())
}

/// What every member says of itself, as JSON.
pub async fn members(status: &NodeStatus, members: &Members) -> Reply {
    answers::json(StatusCode::OK, &members.status(status.status()).await)
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
