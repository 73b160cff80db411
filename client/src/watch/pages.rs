//! The calls of a watch, page after page: each behind the one before, at the same node for as long as that answers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bitacora_protocol::Position;
use bitacora_protocol::rpc::{ChangesRequest, Request};
use futures_util::FutureExt as _;
use futures_util::future::{self, BoxFuture, Either};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::balance::Node;
use crate::call::Call;
use crate::client::Client;
use crate::connection::{Changed, ChangesReply, Reply};
use crate::error::Error;

/// Changes in a page, at most: as many as a node gives.
const LIMIT: i32 = 1_000;
/// Of the first page. So all of what it tells is behind its token, also where it did not begin with one.
const FIRST_LIMIT: i32 = 1;
/// Beside the wait for a change, an answer may take one part in so many of the client's deadline; after a timeout twice as long, up to
/// all of it, or to what a node may need that asks brokers in vain.
const SHORTEST_PART_OF_DEADLINE: u32 = 4;
const NODES_NEED: Duration = Duration::from_secs(5);

/// What is followed.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub prefix: String,
    /// The only key; empty for all that have the prefix.
    pub key: String,
    pub values: bool,
    pub initial: bool,
    /// How long a node waits for a change.
    pub wait: Duration,
}

/// What has changed since the page before.
pub(crate) struct Page {
    pub changes: Vec<Changed>,
    /// The token that it was asked with; empty for none.
    pub since: Arc<str>,
    /// The token that goes on behind it.
    pub next: Arc<str>,
    /// Whether all that was in the log when it was asked for has been told.
    pub current: bool,
    /// Up to where each partition has been told; empty while that is nowhere.
    pub positions: Vec<Position>,
    /// Before it was asked for.
    pub asked: Instant,
    node: Option<Arc<Node>>,
}

/// See the module. May be dropped at any time.
pub(crate) struct Pages {
    client: Client,
    wanted: Arc<Wanted>,
    next: Arc<str>,
    node: Option<Arc<Node>>,
    /// Whether there may be more already, so that the next answer says how far that is rather than wait for a change.
    more: bool,
    under_way: Option<BoxFuture<'static, Result<Page, Error>>>,
    trouble: Trouble,
}

/// Why the last attempt failed, while none has succeeded since.
type Trouble = Arc<Mutex<Option<Error>>>;

impl Pages {
    /// Begins behind a token, or without one (empty): with the first page, which the client's deadline is for.
    pub(crate) async fn begin(client: &Client, wanted: Wanted, since: &str) -> Result<(Self, Page), Error> {
        let mut call = client.call(false)?;
        let (limit, wait) = (FIRST_LIMIT, Duration::ZERO);
        let asked = Instant::now();
        let reply = call.send(&Request::ReadChanges(request(&wanted, since, limit, wait))).await?;
        let page = page(reply, since.into(), asked, &call);
        drop(call);
        let pages = Self {
            client: client.clone(),
            wanted: Arc::new(wanted),
            next: Arc::clone(&page.next),
            node: page.node.clone(),
            more: page.may_be_followed(),
            under_way: None,
            trouble: Trouble::default(),
        };
        Ok((pages, page))
    }

    /// The next page. The one behind it is asked for at once, to be there sooner.
    ///
    /// The error is one that trying again does not mend.
    pub(crate) fn poll_page(&mut self, context: &mut Context<'_>) -> Poll<Result<Page, Error>> {
        let mut call = self.under_way.take().unwrap_or_else(|| self.ask());
        let Poll::Ready(answer) = call.poll_unpin(context) else {
            self.under_way = Some(call);
            return Poll::Pending;
        };
        let page = answer?;
        (self.next, self.node) = (Arc::clone(&page.next), page.node.clone());
        self.more = page.may_be_followed();
        let mut call = self.ask();
        // Polled once, so that it is sent.
        self.under_way = Some(match call.poll_unpin(context) {
            Poll::Ready(answer) => future::ready(answer).boxed(),
            Poll::Pending => call,
        });
        Poll::Ready(Ok(page))
    }

    /// As [`Self::poll_page`].
    pub(crate) async fn page(&mut self) -> Result<Page, Error> {
        future::poll_fn(|context| self.poll_page(context)).await
    }

    /// Why no node answers at the moment; `None` while one does.
    pub(crate) fn trouble(&self) -> Option<Error> {
        self.trouble.lock().clone()
    }

    fn ask(&self) -> BoxFuture<'static, Result<Page, Error>> {
        let (client, wanted) = (self.client.clone(), Arc::clone(&self.wanted));
        let wait = if self.more { Duration::ZERO } else { wanted.wait };
        let (next, node, trouble) = (Arc::clone(&self.next), self.node.clone(), Arc::clone(&self.trouble));
        ask_until_closed(client, wanted, next, wait, node, trouble).boxed()
    }
}

impl Page {
    /// One that a file has kept.
    pub(crate) fn kept(reply: ChangesReply) -> Self {
        let ChangesReply { changes, next, current, positions } = reply;
        let (since, next, asked) = (Arc::default(), next.into(), Instant::now());
        Self { changes, since, next, current, positions, asked, node: None }
    }

    fn may_be_followed(&self) -> bool {
        !self.changes.is_empty() && !self.current
    }
}

async fn ask_until_closed(
    client: Client,
    wanted: Arc<Wanted>,
    since: Arc<str>,
    wait: Duration,
    node: Option<Arc<Node>>,
    trouble: Trouble,
) -> Result<Page, Error> {
    let inner = &client.inner;
    // In this order: either this hears of it, or sees it.
    let closing = inner.closing.notified();
    if inner.closed.load(Ordering::SeqCst) {
        return Err(Error::Closed);
    }
    let asked = std::pin::pin!(ask(&client, &wanted, since, wait, node, &trouble));
    match future::select(std::pin::pin!(closing), asked).await {
        Either::Left(_) => Err(Error::Closed),
        Either::Right((page, _)) => page,
    }
}

/// Asks until a node answers, or the error is one that trying again does not mend.
async fn ask(
    client: &Client,
    wanted: &Wanted,
    since: Arc<str>,
    wait: Duration,
    node: Option<Arc<Node>>,
    trouble: &Trouble,
) -> Result<Page, Error> {
    let mut call = Call::following(&client.inner, node);
    let mut beside_wait = client.deadline / SHORTEST_PART_OF_DEADLINE;
    loop {
        let asked = Instant::now();
        let request = Request::ReadChanges(request(wanted, &since, LIMIT, wait));
        match call.once(&request, wait + beside_wait).await {
            Ok(reply) => {
                *trouble.lock() = None;
                return Ok(page(reply, since, asked, &call));
            }
            Err((error, false)) => return Err(error),
            Err((error, true)) => {
                if matches!(error, Error::TimedOut { .. }) {
                    beside_wait = client.deadline.max(NODES_NEED).min(beside_wait * 2);
                }
                tracing::debug!(%error, "no changes could be read; trying again");
                *trouble.lock() = Some(error);
                call.pause_anyway().await;
            }
        }
    }
}

fn request<'a>(wanted: &'a Wanted, since: &'a str, limit: i32, wait: Duration) -> ChangesRequest<'a> {
    let Wanted { prefix, key, values, initial, .. } = wanted;
    ChangesRequest { since, prefix, key, limit, wait, values: *values, initial: *initial }
}

fn page(reply: Reply, since: Arc<str>, asked: Instant, call: &Call<'_>) -> Page {
    let Reply::Changes(ChangesReply { changes, next, current, positions }) = reply else {
        unreachable!("an answer is decoded by its message")
    };
    Page { changes, since, next: next.into(), current, positions, asked, node: call.last_node() }
}
