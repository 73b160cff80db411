//! `GET /health`, `/health/ready` and `/health/live`, as load balancers and orchestrators ask.

use warp::http::StatusCode;

use super::answers::{self, Reply};
use crate::service::status::NodeStatus;

/// Whether the node wants requests.
pub fn ready(status: &NodeStatus) -> Reply {
    let health = status.health();
    let code = if health.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    answers::plain(code, health.text)
}

/// Whether the process answers, and has not given up.
pub fn live(status: &NodeStatus) -> Reply {
    match status.failure() {
        None => answers::plain(StatusCode::OK, "OK\n".to_owned()),
        Some(reason) => answers::plain(StatusCode::SERVICE_UNAVAILABLE, format!("DOWN\n{reason}\n")),
    }
}
