//! The table of the API's paths, and the one filter that looks a request up in it.

use std::convert::Infallible;
use std::fmt::Display;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Instant;

use bytes::Buf;
use futures_util::Stream;
use tracing::{Instrument as _, Span};
use warp::Filter;
use warp::http::{HeaderMap, Method};
use warp::reply::{Reply as _, Response};

use super::answers::{self, Reply};
use super::error::HttpError;
use super::etag::Tags;
use super::{
    Api, Notes, batch, changes, console, counted, counted_as, digest_ranges, health, keys, openapi, scan,
    snapshot, status, watch,
};
pub use crate::server::access::needs::Call;
use crate::service::access::Grant;
use crate::service::memory::OutOfMemory;
use crate::service::reads::Answer;
use crate::service::slow;
use crate::telemetry::TraceParent;

/// A path and the methods by which it leads to a call. A path may have several rows.
pub struct Route {
    pub path: &'static str,
    pub methods: &'static [Method],
    pub call: Call,
}

const GET: &[Method] = &[Method::GET, Method::HEAD];
const POST: &[Method] = &[Method::POST];

/// The API. `Allow` names the methods in this order.
pub const ROUTES: &[Route] = &[
    Route { path: "/rpc", methods: GET, call: Call::Get },
    Route { path: "/rpc", methods: POST, call: Call::Set },
    Route { path: "/rpc", methods: &[Method::DELETE], call: Call::Delete },
    Route { path: "/rpc/cluster", methods: GET, call: Call::GetForMember },
    Route { path: "/rpc/scan", methods: GET, call: Call::Scan },
    Route { path: "/rpc/batch", methods: POST, call: Call::Batch },
    Route { path: "/rpc/changes", methods: GET, call: Call::Changes },
    Route { path: "/watch", methods: GET, call: Call::Watch },
    Route { path: "/health", methods: GET, call: Call::Ready },
    Route { path: "/health/ready", methods: GET, call: Call::Ready },
    Route { path: "/health/live", methods: GET, call: Call::Live },
    Route { path: "/status", methods: GET, call: Call::Status },
    Route { path: "/status/members", methods: GET, call: Call::Members },
    Route { path: "/status/digests", methods: GET, call: Call::Digests },
    // Not HEAD, which would look at a range for nothing.
    Route { path: "/status/digests/ranges", methods: &[Method::GET], call: Call::DigestRanges },
    Route { path: "/metrics", methods: GET, call: Call::Metrics },
    Route { path: "/openapi.json", methods: GET, call: Call::OpenApi },
    // Not HEAD, which would read the whole store for nothing.
    Route { path: "/snapshot", methods: &[Method::GET], call: Call::Snapshot },
    Route { path: "/", methods: GET, call: Call::Console },
];

/// Which call a request is. A slash at the end of a path is of no meaning.
pub fn find(full_path: &str, method: &Method) -> Result<Call, HttpError> {
    let path = full_path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(full_path);
    let mut allowed: Vec<&str> = Vec::new();
    for route in ROUTES.iter().filter(|route| route.path == path) {
        if route.methods.contains(method) {
            return Ok(route.call);
        }
        allowed.extend(route.methods.iter().map(Method::as_str));
    }
    if allowed.is_empty() {
        return Err(HttpError::NoSuchPath(full_path.to_owned()));
    }
    Err(HttpError::Method { method: method.to_string(), allow: allowed.join(", ") })
}

/// The methods of a path, as `Allow` has them.
pub fn methods(path: &str) -> Result<String, HttpError> {
    match find(path, &Method::CONNECT) {
        Err(HttpError::Method { allow, .. }) => Ok(allow),
        // No path has that method.
        Ok(_) => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// A call whose caller may make it. Every request has it among its extensions when it comes to [`routes`].
#[derive(Clone)]
pub struct Admitted {
    pub call: Call,
    /// What else the caller may do.
    pub grant: Grant,
}

/// Answers a read of a key: what most calls are.
pub async fn get(api: &Api, grant: &Grant, method: &Method, query: &str, headers: &HeaderMap) -> Reply {
    let memory = api.service.memory();
    get_with(api, grant, method, query, headers, |key, answer, known| {
        answers::read(key, answer, known, memory)
    })
    .await
}

/// As [`get`]; `make` makes the answer about a key, for a reader who has the records of these tags.
pub async fn get_with<T: From<Reply>>(
    api: &Api,
    grant: &Grant,
    method: &Method,
    query: &str,
    headers: &HeaderMap,
    make: impl FnOnce(&str, &Answer, Option<&Tags>) -> Result<T, OutOfMemory>,
) -> T {
    let (id, started) = (slow::next_id(), Instant::now());
    let span = tracing::debug_span!("request", id, interface = "http", %method);
    let Api { service, metrics, slow, telemetry, .. } = api;
    let answer = async {
        let span = telemetry.request("http", "get", || parent(headers));
        let mut notes = Notes::new(id, "get", started, span);
        let outcome = keys::get(service, grant, query, headers, &mut notes, make).await;
        counted_as(metrics, slow, notes, outcome)
    };
    within(span, pin!(answer)).await
}

/// Answers a write of a key: what most of the other calls are.
pub async fn set<B: Buf, E: Display>(
    api: &Api,
    grant: &Grant,
    query: &str,
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, E>>,
) -> Reply {
    let (id, started) = (slow::next_id(), Instant::now());
    let span = tracing::debug_span!("request", id, interface = "http", method = %Method::POST);
    let Api { service, metrics, slow, telemetry, limits, .. } = api;
    let answer = async {
        let span = telemetry.request("http", "set", || parent(headers));
        let mut notes = Notes::new(id, "set", started, span);
        let request = keys::Set { limits: *limits, query, headers };
        let outcome = keys::set(service, grant, request, &mut notes, body).await;
        counted(metrics, slow, notes, outcome)
    };
    within(span, pin!(answer)).await
}

/// Answers within a span; as cheaply as without one where no log line asks for it.
async fn within<T>(span: Span, answer: Pin<&mut impl Future<Output = T>>) -> T {
    if span.is_disabled() { answer.await } else { answer.instrument(span).await }
}

fn parent(headers: &HeaderMap) -> Option<TraceParent> {
    TraceParent::parse(headers.get(TraceParent::HEADER)?.as_bytes())
}

/// A request, but for its body.
struct Request {
    id: u64,
    admitted: Admitted,
    method: Method,
    query: String,
    headers: HeaderMap,
}

/// Answers every request that was [`Admitted`].
pub fn routes(api: Arc<Api>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let no_body = || HttpError::BadRequest("the body of the request can't be read".to_owned());
    warp::ext::get::<Admitted>()
        .and(warp::method())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(move |admitted: Admitted, method: Method, query, headers, body| {
            let api = Arc::clone(&api);
            let id = slow::next_id();
            let span = tracing::debug_span!("request", id, interface = "http", %method);
            let request = Request { id, admitted, method, query, headers };
            async move { answer(&api, request, body).await }.instrument(span)
        })
        .or(warp::any().map(move || no_body().reply(false).into_response()))
        .unify()
}

async fn answer<B: Buf + Send + 'static>(
    api: &Api,
    request: Request,
    body: impl Stream<Item = Result<B, warp::Error>> + Send + 'static,
) -> Response {
    let started = Instant::now();
    let Request { id, admitted: Admitted { call, grant }, method, query, headers } = request;
    let Api { service, status: node, members, snapshots, metrics, slow, telemetry, .. } = api;
    let operation = match call {
        Call::Get => return get(api, &grant, &method, &query, &headers).await.into_response(),
        Call::Set => return set(api, &grant, &query, &headers, body).await.into_response(),
        Call::Delete => "delete",
        Call::GetForMember => "cluster",
        Call::Scan => "scan",
        Call::Batch => "batch",
        Call::Changes => "changes",
        Call::Watch => "watch",
        Call::Ready => return health::ready(node).into_response(),
        Call::Live => return health::live(node).into_response(),
        Call::Status => return status::status(node, &grant).into_response(),
        Call::Members => return status::members(node, members, &grant).await.into_response(),
        Call::Digests => return status::digests(node).into_response(),
        Call::DigestRanges => {
            let answer = digest_ranges::ranges(node, &query).await;
            return answer.unwrap_or_else(|error| error.reply(false)).into_response();
        }
        Call::Metrics => return status::metrics(node).into_response(),
        Call::OpenApi => {
            return openapi::get(&headers).unwrap_or_else(|error| error.reply(false)).into_response();
        }
        Call::Snapshot => return snapshot::send(snapshots, &query),
        Call::Console => return console::page(node, api.tls.is_some()).into_response(),
    };
    let span = telemetry.request("http", operation, || parent(&headers));
    let mut notes = Notes::new(id, operation, started, span);
    let outcome = match call {
        Call::Delete => keys::delete(service, &grant, &query, &headers, &mut notes).await,
        Call::Scan => scan::scan(service, &grant, &query, &headers, &mut notes).await,
        Call::Batch => return batch::run(api, grant, &query, &headers, notes, body),
        Call::Changes => changes::changes(service, &grant, &query, &mut notes).await,
        Call::Watch => return watch::begin(api, grant, &method, &query, &headers, notes),
        _ => keys::get_for_member(service, &query, &headers).await,
    };
    counted(metrics, slow, notes, outcome).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn get_comes_with_head_where_it_costs_little() {
        for route in ROUTES.iter().filter(|route| route.methods.contains(&Method::GET)) {
            let head = find(route.path, &Method::HEAD);
            let is_costly = matches!(route.path, "/snapshot" | "/status/digests/ranges");
            assert_eq!(head.ok() == Some(route.call), !is_costly, "{}", route.path);
        }
    }

    #[test]
    fn allow_names_every_method_of_a_path() {
        let allow = |path: &str| match find(path, &Method::PATCH) {
            Err(HttpError::Method { allow, .. }) => Some(allow),
            _ => None,
        };
        for (path, expected) in [
            ("/rpc", Some("GET, HEAD, POST, DELETE")),
            ("/rpc/batch", Some("POST")),
            ("/snapshot", Some("GET")),
            ("/health/live", Some("GET, HEAD")),
            ("/", Some("GET, HEAD")),
            ("/status/members", Some("GET, HEAD")),
            ("", None),
            ("/rpcs", None),
        ] {
            assert_eq!(allow(path).as_deref(), expected, "{path}");
        }
        assert_eq!(find("/rpc/", &Method::DELETE).ok(), Some(Call::Delete));
    }
}
