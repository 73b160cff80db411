//! The HTTP interface: parse, call reads or writes, answer.

mod answers;
mod batch;
mod params;
mod server;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitacora_protocol::rpc::ScanRequest;
use bitacora_protocol::units;
use bytes::Buf;
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use warp::Filter;
use warp::http::header::RETRY_AFTER;
use warp::http::{HeaderValue, Method, StatusCode};

use self::answers::{ApiError, Reply};
use self::params::Params;
pub use self::server::Server;
use crate::cluster::MembershipState;
use crate::metrics::Snapshot;
use crate::replication::progress::Phase;
use bitacora_protocol::http::{PartitionStatus, RestoreStatus};
use crate::replication::snapshot::serve::Refused;
use crate::service::Service;
use crate::service::reads::Found;
use crate::service::writes::{MAX_TTL, check_key};

/// The API, `contract.md` section 6.
#[allow(clippy::too_many_lines)] // until its routes come from a table
pub fn routes(
    service: Arc<Service>,
) -> impl Filter<Extract = (warp::reply::Response,), Error = Infallible> + Clone {
    let service = warp::any().map(move || Arc::clone(&service));
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();

    let get_key = warp::path!("rpc")
        .and(get_or_head())
        .and(service.clone())
        .and(query)
        .and(warp::header::optional::<String>("bitacora-position"))
        .then(|service: Arc<Service>, query: String, position: Option<String>| async move {
            service.timed("get", service.get(&query, position).await)
        });
    let set_key = warp::path!("rpc")
        .and(warp::post())
        .and(service.clone())
        .and(query)
        .and(warp::header::optional::<String>("content-type"))
        .and(warp::body::stream())
        .then(|service: Arc<Service>, query: String, content_type: Option<String>, body| async move {
            service.timed("set", service.set(&query, content_type.as_deref(), body).await)
        });
    let delete_key = warp::path!("rpc").and(warp::delete()).and(service.clone()).and(query).then(
        |service: Arc<Service>, query: String| async move {
            service.timed("delete", service.delete(&query).await)
        },
    );
    let cluster = warp::path!("rpc" / "cluster").and(get_or_head()).and(service.clone()).and(query).map(
        |service: Arc<Service>, query: String| {
            let started = Instant::now();
            service.timed("cluster", (service.get_here(&query), started))
        },
    );
    let scan =
        warp::path!("rpc" / "scan").and(get_or_head()).and(service.clone()).and(query).then(
            |service: Arc<Service>, query: String| async move {
                service.timed("scan", service.scan(&query).await)
            },
        );
    let batch = warp::path!("rpc" / "batch")
        .and(warp::post())
        .and(service.clone())
        .and(query)
        .and(warp::body::stream())
        .map(|service: Arc<Service>, query: String, body| match query_params(&query, &[]) {
            Ok(_) => batch::run(service, body),
            Err(error) => warp::Reply::into_response(error.reply()),
        });
    let health = warp::path!("health")
        .and(get_or_head())
        .and(service.clone())
        .map(|service: Arc<Service>| service.health());
    let ready = warp::path!("health" / "ready")
        .and(get_or_head())
        .and(service.clone())
        .map(|service: Arc<Service>| service.health());
    let live = warp::path!("health" / "live").and(get_or_head()).map(|| plain(StatusCode::OK, "OK\n".into()));
    let status = warp::path!("status")
        .and(get_or_head())
        .and(service.clone())
        .map(|service: Arc<Service>| service.status());
    let metrics = warp::path!("metrics")
        .and(get_or_head())
        .and(service.clone())
        .map(|service: Arc<Service>| service.metrics_text());
    let snapshot = warp::path!("snapshot").and(warp::get()).and(service.clone()).and(query).map(
        |service: Arc<Service>, query: String| match query_params(&query, &[]) {
            Ok(_) => snapshot(&service),
            Err(error) => warp::Reply::into_response(error.reply()),
        },
    );
    let nothing = warp::path::full().and(warp::method()).map(|path: warp::path::FullPath, method: Method| {
        match allowed(path.as_str()) {
            // The path and the method are known, so it was a header that no filter above could read.
            Some(allow) if allow.split(", ").any(|known| known == method) => {
                ApiError::BadRequest("a header of the request is not text".to_owned()).reply()
            }
            Some(allow) => ApiError::Method { method: method.to_string(), allow }.reply(),
            None => ApiError::NoSuchPath(path.as_str().to_owned()).reply(),
        }
    });

    get_key
        .or(set_key)
        .unify()
        .or(cluster)
        .unify()
        .or(scan)
        .unify()
        .or(delete_key)
        .unify()
        .or(health)
        .unify()
        .or(ready)
        .unify()
        .or(live)
        .unify()
        .or(status)
        .unify()
        .or(metrics)
        .unify()
        .map(warp::Reply::into_response)
        .or(batch)
        .unify()
        .or(snapshot)
        .unify()
        .or(nothing.map(warp::Reply::into_response))
        .unify()
}

fn get_or_head() -> impl Filter<Extract = (), Error = warp::Rejection> + Copy {
    warp::get().or(warp::head()).unify()
}

/// The methods of a path of this API.
fn allowed(path: &str) -> Option<&'static str> {
    match path {
        "/rpc" => Some("GET, HEAD, POST, DELETE"),
        "/rpc/batch" => Some("POST"),
        "/snapshot" => Some("GET"),
        "/rpc/cluster" | "/rpc/scan" | "/health" | "/health/live" | "/health/ready" | "/status"
        | "/metrics" => Some("GET, HEAD"),
        _ => None,
    }
}

/// Sends the store, as it is now.
fn snapshot(service: &Service) -> warp::reply::Response {
    match service.snapshots.begin() {
        Ok(pieces) => {
            let pieces = stream::unfold(pieces, |mut pieces| async { Some((pieces.recv().await?, pieces)) });
            warp::Reply::into_response(warp::reply::stream(pieces))
        }
        Err(refused) => {
            let mut reply = answers::message(StatusCode::SERVICE_UNAVAILABLE, &refused.to_string());
            if matches!(refused, Refused::Busy) {
                reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            warp::Reply::into_response(reply)
        }
    }
}

fn plain(status: StatusCode, body: String) -> Reply {
    answers::text(status, "text/plain; charset=utf-8", body)
}

/// Records in a page of a scan that asks for no number.
const DEFAULT_SCAN_LIMIT: i32 = 100;

type Outcome = Result<(Reply, &'static str), ApiError>;

impl Service {
    fn timed(&self, operation: &'static str, (outcome, started): (Outcome, Instant)) -> Reply {
        let (reply, outcome) = outcome.unwrap_or_else(|error| (error.reply(), error.outcome()));
        self.metrics.request("http", operation, outcome, started.elapsed());
        reply
    }

    async fn get(&self, query: &str, position: Option<String>) -> (Outcome, Instant) {
        let started = Instant::now();
        let answer = async {
            let params = query_params(query, &["key", "consistency", "position", "timeout"])?;
            let key = params.get("key").unwrap_or_default();
            check_key(key)?;
            let position = params.get("position").or(position.as_deref());
            check_consistency(params.get("consistency"), position, params.get("timeout"))?;
            let answer = self.reads.get(key).await?;
            Ok((answers::read(key, &answer), outcome(&answer.found)))
        };
        (answer.await, started)
    }

    fn get_here(&self, query: &str) -> Outcome {
        let params = query_params(query, &["key"])?;
        let key = params.get("key").unwrap_or_default();
        check_key(key)?;
        let (answer, log) = self.reads.get_here(key)?;
        Ok((answers::read_here(key, &answer, log), outcome(&answer.found)))
    }

    async fn set(
        &self,
        query: &str,
        content_type: Option<&str>,
        body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    ) -> (Outcome, Instant) {
        let started = Instant::now();
        let answer = async {
            let query = query_params(query, &["key", "value", "ttl"])?;
            // A form spells a byte with up to three.
            let form = content_type.is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded"));
            let limit = if form { 3 * self.max_value_bytes + 8192 } else { self.max_value_bytes };
            let body = self.read_body(body, limit).await?;
            let set = set_request(query, body, content_type.is_some(), form)?;
            check_key(&set.key)?;
            let written = self.writes.set(&set.key, &set.value, set.ttl).await?;
            Ok((answers::written(&set.key, &set.value, &written), "ok"))
        };
        (answer.await, started)
    }

    async fn scan(&self, query: &str) -> (Outcome, Instant) {
        let started = Instant::now();
        let answer = async {
            let params = query_params(query, &["prefix", "start", "end", "limit", "cursor"])?;
            let text = |name| params.get(name).unwrap_or_default();
            let limit = match params.get("limit") {
                None => DEFAULT_SCAN_LIMIT,
                Some(limit) => limit
                    .parse()
                    .map_err(|_| ApiError::BadRequest(format!("limit={limit} is not a number of records")))?,
            };
            let (prefix, start, end, cursor) = (text("prefix"), text("start"), text("end"), text("cursor"));
            let page = self.scans.page(&ScanRequest { prefix, start, end, limit, cursor }).await?;
            Ok((answers::page(&page), "ok"))
        };
        (answer.await, started)
    }

    async fn delete(&self, query: &str) -> (Outcome, Instant) {
        let started = Instant::now();
        let answer = async {
            let params = query_params(query, &["key"])?;
            let key = params.get("key").unwrap_or_default();
            check_key(key)?;
            Ok((answers::written(key, "", &self.writes.delete(key).await?), "ok"))
        };
        (answer.await, started)
    }

    async fn read_body(
        &self,
        body: impl Stream<Item = Result<impl Buf, warp::Error>>,
        limit: usize,
    ) -> Result<Vec<u8>, ApiError> {
        let mut body = std::pin::pin!(body);
        let read = async {
            let mut bytes = Vec::new();
            while let Some(chunk) = body.next().await {
                let mut chunk = chunk.map_err(|error| {
                    ApiError::BadRequest(format!("the body did not arrive whole: {error}"))
                })?;
                if bytes.len() + chunk.remaining() > limit {
                    return Err(ApiError::BodyTooLarge(self.max_value_bytes));
                }
                while chunk.has_remaining() {
                    let part = chunk.chunk();
                    bytes.extend_from_slice(part);
                    let length = part.len();
                    chunk.advance(length);
                }
            }
            Ok(bytes)
        };
        tokio::time::timeout(self.request_timeout, read)
            .await
            .unwrap_or(Err(ApiError::BodyTimeout(self.request_timeout.as_millis())))
    }

    fn health(&self) -> Reply {
        match self.unready() {
            Some(reason) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("DOWN\n{reason}\n")),
            None if self.progress.caught_up() => plain(StatusCode::OK, "OK\n".to_owned()),
            None => {
                let lag = self.progress.partitions().iter().try_fold(0, |sum, p| p.lag.map(|lag| sum + lag));
                let lag = lag.map_or_else(|| "unknown".to_owned(), |lag| lag.to_string());
                let why = self.progress.restore().rebuilding;
                let why = why.map_or_else(String::new, |why| {
                    format!("; rebuilding the store, and reading the old one: {why}")
                });
                let blocked = match self.progress.phase() {
                    Phase::Blocked(reason) => format!("; {reason}"),
                    _ => String::new(),
                };
                plain(StatusCode::OK, format!("OK\nserving reads, not caught up: lag {lag}{why}{blocked}\n"))
            }
        }
    }

    fn status(&self) -> Reply {
        let unready = self.unready();
        let members = self.membership.members();
        let store = self.store.stats().ok();
        let (state, state_reason) = match self.progress.phase() {
            Phase::Connecting(reason) => ("connecting", Some(reason)),
            Phase::Reading => ("reading", None),
            Phase::Blocked(reason) => ("blocked", Some(reason)),
            Phase::Failed(reason) => ("failed", Some(reason)),
        };
        let status = Status {
            node: self.address.api(),
            version: env!("CARGO_PKG_VERSION"),
            ready: unready.is_none(),
            unready,
            caught_up: self.progress.caught_up(),
            members: &members,
            membership: self.membership.state(),
            log: LogStatus { state, reason: state_reason },
            partitions: self.progress.partitions(),
            restore: self.progress.restore(),
            store: store.map(|s| StoreStatus { records: s.records, bytes: s.bytes }),
            cache: store.map(|s| CacheStatus {
                records: s.cache_records,
                bytes: s.cache_bytes,
                capacity_bytes: s.cache_capacity_bytes,
                hits: s.cache_hits,
                misses: s.cache_misses,
            }),
        };
        answers::json(StatusCode::OK, &status)
    }

    fn metrics_text(&self) -> Reply {
        let snapshot = Snapshot {
            progress: &self.progress,
            store: self.store.stats().ok(),
            log: self.log.statistics(),
            membership: &*self.membership,
            ready: self.unready().is_none(),
        };
        answers::text(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            self.metrics.text(&snapshot),
        )
    }
}

#[derive(Serialize)]
struct Status<'a> {
    node: String,
    version: &'static str,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    unready: Option<String>,
    caught_up: bool,
    members: &'a [String],
    membership: MembershipState,
    log: LogStatus,
    partitions: Vec<PartitionStatus>,
    restore: RestoreStatus,
    store: Option<StoreStatus>,
    cache: Option<CacheStatus>,
}

#[derive(Serialize)]
struct LogStatus {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Serialize)]
struct StoreStatus {
    records: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct CacheStatus {
    records: u64,
    bytes: u64,
    capacity_bytes: u64,
    hits: u64,
    misses: u64,
}

fn query_params(query: &str, known: &[&str]) -> Result<Params, ApiError> {
    let params = Params::parse(query, "the query").and_then(|params| params.only(known, "the query"));
    params.map_err(ApiError::BadRequest)
}

fn outcome(found: &Found) -> &'static str {
    match found {
        Found::Local(_) | Found::Peer(_) => "found",
        Found::Gone { .. } | Found::Missing => "missing",
    }
}

fn check_consistency(
    level: Option<&str>,
    position: Option<&str>,
    timeout: Option<&str>,
) -> Result<(), ApiError> {
    if let Some(text) = position {
        let parsed: Result<bitacora_protocol::Position, _> = text.parse();
        parsed.map_err(|error| ApiError::BadRequest(error.to_string()))?;
    }
    if let Some(text) = timeout {
        units::duration(text).map_err(|error| ApiError::BadRequest(format!("timeout: {error}")))?;
    }
    match level.unwrap_or("eventual") {
        "eventual" => Ok(()),
        level @ ("session" | "strong") => {
            Err(ApiError::NotImplemented(format!("consistency={level} is not there yet; eventual is")))
        }
        other => {
            Err(ApiError::BadRequest(format!("consistency={other} is none of eventual, session, strong")))
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct SetRequest {
    key: String,
    value: String,
    ttl: Option<Duration>,
}

/// Puts a set together from query and body.
///
/// The value is the query's, or a form's field `value`, or the body as it is. `curl -d` and its like call every body a
/// form; so one that is not a form of `value` and perhaps `key` and `ttl` is taken as it is.
fn set_request(
    mut query: Params,
    body: Vec<u8>,
    has_content_type: bool,
    form: bool,
) -> Result<SetRequest, ApiError> {
    let bad = ApiError::BadRequest;
    let body = String::from_utf8(body).map_err(|_| {
        bad("the body is not UTF-8, and a value is text; encode bytes, for example as base64".to_owned())
    })?;
    let mut fields = form.then(|| form_fields(&body)).flatten();
    let raw = match fields {
        Some(_) => None,
        // Without a word about a body, an empty one was forgotten rather than meant.
        None if body.is_empty() && (!has_content_type || query.get("value").is_some()) => None,
        None => Some(body),
    };
    let mut one = |name: &str, raw: Option<String>| {
        let in_body = fields.as_mut().and_then(|fields| fields.take(name)).or(raw);
        match (query.take(name), in_body) {
            (Some(_), Some(_)) => {
                Err(bad(format!("the {name} is given twice, in the query and in the body")))
            }
            (in_query, in_body) => Ok(in_query.or(in_body)),
        }
    };
    let key = one("key", None)?.unwrap_or_default();
    let ttl = one("ttl", None)?.map(|text| parse_ttl(&text)).transpose().map_err(bad)?;
    let value = one("value", raw)?
        .ok_or_else(|| bad("there is no value; give it as &value=, as a form, or as the body".to_owned()))?;
    Ok(SetRequest { key, value, ttl })
}

/// The body's fields, if it is a form that sets a value.
fn form_fields(body: &str) -> Option<Params> {
    let fields =
        Params::parse(body, "the form").and_then(|fields| fields.only(&["key", "value", "ttl"], "the form"));
    fields.ok().filter(|fields| fields.get("value").is_some())
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = units::positive_duration(text)
        .map_err(|error| format!("ttl: {error}; leave it out to keep the key for ever"))?;
    if ttl > MAX_TTL {
        return Err(format!(
            "ttl: {text} is more than a hundred years; leave it out to keep the key for ever"
        ));
    }
    Ok(ttl)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_query_and_body_are_a_set_or_a_sentence(
            query in "(key=[a-c]{0,2}|value=[a-c]{0,2}|ttl=[0-9smhdx-]{0,5}|[a-z%&=+]{0,6})(&(value=x|ttl=[0-9]{1,22}[smhd]?))?",
            body in prop_oneof![any::<Vec<u8>>(), "(key=k&)?value=[a-z%+]{0,4}(&ttl=[0-9]{1,3})?".prop_map(String::into_bytes)],
            has_content_type: bool, form: bool, level in "eventual|session|.{0,9}", position in ".{0,9}",
        ) {
            let _ = check_consistency(Some(&level), Some(&position), Some(&query));
            let set = query_params(&query, &["key", "value", "ttl"])
                .and_then(|query| set_request(query, body.clone(), has_content_type, form));
            match set {
                Ok(set) => {
                    prop_assert!(set.value.len() <= query.len().max(body.len()));
                    prop_assert!(set.ttl.is_none_or(|ttl| !ttl.is_zero() && ttl <= MAX_TTL));
                }
                Err(error) => {
                    let most = 200 + 2 * query.len() + 2 * body.len();
                    prop_assert!(error.status().is_client_error() && error.to_string().len() < most, "{}", error);
                }
            }
        }
    }

    const FORM: &str = "application/x-www-form-urlencoded";

    fn set(query: &str, body: &str, content_type: Option<&str>) -> Result<SetRequest, String> {
        let query = query_params(query, &["key", "value", "ttl"]).map_err(|error| error.to_string())?;
        let form = content_type == Some(FORM);
        set_request(query, body.into(), content_type.is_some(), form).map_err(|error| error.to_string())
    }

    fn value(query: &str, body: &str, content_type: Option<&str>) -> Result<String, String> {
        set(query, body, content_type).map(|set| set.value)
    }

    #[test]
    fn a_value_comes_from_the_query_a_form_or_the_body() {
        let ok = |text: &str| Ok(text.to_owned());
        assert_eq!(value("key=k&value=a%26b", "", None), ok("a&b"));
        assert_eq!(value("key=k&value=", "", None), ok(""));
        assert_eq!(value("key=k&value=v", "", Some(FORM)), ok("v"));
        assert_eq!(value("key=k", "a%26b", None), ok("a%26b"));
        assert_eq!(value("key=k", "", Some("text/plain")), ok(""));
        assert_eq!(value("key=k", "{\"a\":1}", Some(FORM)), ok("{\"a\":1}"), "what curl -d sends");
        assert_eq!(value("key=k", "other=1&value=2", Some(FORM)), ok("other=1&value=2"));
        assert_eq!(value("key=k", "value=a%26b", Some(FORM)), ok("a&b"));
        let expected = SetRequest { key: "k".into(), value: "v".into(), ttl: Some(Duration::from_secs(2)) };
        assert_eq!(set("", "key=k&value=v&ttl=2s", Some(FORM)), Ok(expected));
    }

    #[test]
    fn an_ambiguous_or_forgotten_value_is_refused() {
        for (query, body, content_type) in [
            ("key=k", "", None),
            ("key=k&value=v", "w", None),
            ("key=k&value=v", "value=w", Some(FORM)),
            ("key=k&ttl=1s", "value=v&ttl=2s", Some(FORM)),
            ("key=k&value=v&ttl=0", "", None),
            ("key=k&value=v&ttl=101000d", "", None),
        ] {
            assert!(set(query, body, content_type).is_err(), "{query:?} with {body:?} was accepted");
        }
    }
}
