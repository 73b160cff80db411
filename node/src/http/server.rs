//! Connections: accepted one by one within a limit, and given to warp once they bring more than plain calls; at the end those that are
//! busy may finish until a deadline, and are aborted then.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout_at;
use tracing::Instrument as _;
use warp::http::Method;
use warp::http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use warp::reply::{Reply as _, Response};

use super::error::HttpError;
use super::plain_calls::{self, Ended};
use super::refusals::{JsonRefusals, Verbatim, VerbatimAnswer};
use super::routes::Admitted;
use super::{Api, body, gate, routes};
use crate::metrics::Counted;
use crate::permits::Permits;
use crate::server::access::needs::Call;
use crate::server::access::{Access, Caller};
use crate::server::socket::{Socket, accept};
use crate::server::tls::Opening;
use crate::service::readiness::Readiness;
use crate::service::slow;

/// The head of a request, at most. A URI has at most 64 KiB; the rest is for headers.
pub(super) const MAX_HEAD_BYTES: usize = 96 * 1024;
/// What is read at a time. hyper's buffer of a connection becomes twice as large, unless a head needs more.
const MAX_READ_BYTES: usize = 16 * 1024;

/// The HTTP interface of a node, open.
pub struct Server {
    stop: oneshot::Sender<Instant>,
    task: JoinHandle<()>,
}

impl Server {
    #[must_use]
    pub fn start(
        listener: TcpListener,
        api: Api,
        readiness: &Readiness,
        connections: Permits,
        idle: Duration,
    ) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = readiness.run_task("HTTP", run(listener, api, connections, idle, stopped));
        Self { stop, task }
    }

    /// Whether it accepts no connections any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Accepts no more connections and waits for the requests under way until the deadline. Those that have not ended by
    /// then are aborted: nothing is read from their connections any more.
    pub async fn stop(self, deadline: Instant) {
        let _ = self.stop.send(deadline);
        let _ = self.task.await;
    }
}

async fn run(
    listener: TcpListener,
    api: Api,
    permits: Permits,
    idle: Duration,
    stopped: oneshot::Receiver<Instant>,
) {
    let open = api.metrics.connections.with_label_values(&["http"]);
    let mut connections = JoinSet::new();
    let graceful = GracefulShutdown::new();
    let http = settings_of_connections(idle);
    let api = Arc::new(api);
    let write_timeout = api.limits.request_timeout;
    let calls = TowerToHyperService::new(warp::service(routes::routes(Arc::clone(&api))));
    let opening = Opening::new(api.tls.clone(), "http");
    // Whoever still shakes hands is not waited for.
    let (closing, closed) = watch::channel(false);
    let mut stopped = std::pin::pin!(stopped);
    let deadline = loop {
        let accept = async {
            let permit = permits.acquire().await;
            (accept(&listener).await, permit)
        };
        let (stream, permit) = tokio::select! {
            accepted = accept => accepted,
            // Those that ended are forgotten.
            Some(_) = connections.join_next() => continue,
            // A node that was dropped without a stop gives them no time.
            deadline = &mut stopped => break deadline.unwrap_or_else(|_| Instant::now()),
        };
        // One that has gone already has none.
        let Ok(address) = stream.peer_addr() else { continue };
        let caller = Arc::new(Access::caller(&api.access, "http", address.ip()));
        let (api, calls, http, opening) = (Arc::clone(&api), calls.clone(), http.clone(), opening.clone());
        let (watcher, mut closed) = (graceful.watcher(), closed.clone());
        let open = Counted::one(&open);
        let span = tracing::debug_span!("connection", id = slow::next_id(), interface = "http");
        let serve = async move {
            let _until_the_end = (open, permit);
            let stream = tokio::select! {
                biased;
                stream = opening.open(stream, address.ip()) => stream,
                _ = closed.changed() => None,
            };
            let Some(stream) = stream else { return };
            let mut socket = Socket::new(stream, write_timeout).with_max_read(MAX_READ_BYTES);
            let read = match plain_calls::serve(&api, &caller, &mut socket, idle, closed).await {
                Ok(Ended::Other(read)) => read,
                Ok(Ended::Closed) => return drop((socket.shutdown().await, watcher)),
                Err(error) => return tracing::debug!(%error, "a connection ended badly"),
            };
            let socket = socket.noticing_reset().with_unread(read);
            let verbatim = VerbatimAnswer::default();
            let socket = JsonRefusals::new(socket, Arc::clone(&verbatim));
            let service = service_fn(move |request| {
                answer(Arc::clone(&api), Arc::clone(&caller), calls.clone(), Arc::clone(&verbatim), request)
            });
            // In memory of its own, which a connection of plain calls does not need.
            let connection = Box::pin(watcher.watch(http.serve_connection(TokioIo::new(socket), service)));
            // A client that goes away or speaks no HTTP is its own affair.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended badly");
            }
        };
        connections.spawn(serve.instrument(span));
    };
    drop(listener);
    closing.send_replace(true);
    if timeout_at(deadline.into(), graceful.shutdown()).await.is_err() {
        while connections.try_join_next().is_some() {}
        tracing::warn!(connections = connections.len(), "HTTP requests did not end in time and are aborted");
        connections.abort_all();
    }
}

/// How the HTTP library serves a connection.
fn settings_of_connections(idle: Duration) -> http1::Builder {
    let mut http = http1::Builder::new();
    // Not `pipeline_flush`: it holds back an answer while unread bytes of the client's are in the buffer, also the answer
    // that closes the connection.
    // hyper's time for a head begins when the answer before it has left: it is the time that a connection may lie idle.
    http.timer(TokioTimer::new()).header_read_timeout(idle);
    http.max_buf_size(MAX_HEAD_BYTES);
    // A client may close its sending half once it has sent its last request, and is still to be answered (RFC 9112, section 9.6). One
    // that has gone altogether is noticed when it is written to, or resets the connection.
    http.half_close(true);
    http
}

/// Which call a request is, if its caller may make it.
fn admit(caller: &Caller, method: &Method, path: &str, headers: &HeaderMap) -> Result<Admitted, HttpError> {
    let call = routes::find(path, method)?;
    let shown = || headers.get_all(AUTHORIZATION).iter().map(HeaderValue::as_bytes);
    let grant = caller.admit(call.name(), call.needs(), shown)?;
    if call.is_audited() {
        caller.note(call.name(), &grant);
    }
    Ok(Admitted { call, grant })
}

/// Answers a request that the library could read.
async fn answer<S>(
    api: Arc<Api>,
    caller: Arc<Caller>,
    calls: S,
    verbatim: VerbatimAnswer,
    mut request: Request<Incoming>,
) -> Result<Response, Infallible>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
{
    let (method, version, path) = (request.method(), request.version(), request.uri().path());
    let (passed, checked) = gate::check(&api.origins, method, version, path, request.headers());
    let admitted = match checked {
        Ok(()) => admit(&caller, method, path, request.headers()).map_err(|error| error.reply(false)),
        Err(answered) => Err(answered),
    };
    let mut answer = match admitted {
        // Most calls need no filters to be looked up.
        Ok(Admitted { call: Call::Get, grant }) => {
            let query = request.uri().query().unwrap_or_default();
            routes::get(&api, &grant, request.method(), query, request.headers()).await.into_response()
        }
        Ok(Admitted { call: Call::Set, grant }) => {
            let (head, body) = request.into_parts();
            let query = head.uri.query().unwrap_or_default();
            let set = routes::set(&api, &grant, query, &head.headers, body::chunks(body));
            Box::pin(set).await.into_response()
        }
        Ok(admitted) => {
            request.extensions_mut().insert(admitted);
            // The calls' future is large, and would otherwise be moved about with each read.
            Box::pin(calls.call(request)).await?
        }
        Err(answered) => answered.into_response(),
    };
    passed.describe(&api.origins, answer.status(), answer.headers_mut());
    verbatim.store(answer.extensions().get::<Verbatim>().is_some(), Ordering::Relaxed);
    Ok(answer)
}
