//! The client: what a call does until it has an answer or its deadline is over.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::balance::{Node, Pool};
use crate::batch;
use crate::connection::{Failure, Found, Missing, Reply};
use crate::discovery::{Discovery, follow};
use crate::error::{Error, NodeFailure, Refusal};
use crate::lock;
use crate::types::{NodeStatus, Operation, Outcome, Record, Scan, ScanPage, Written};
use bitacora_protocol::rpc::{self, ErrorCode, Request, RequestError, ScanRequest};
use bitacora_protocol::zookeeper::{ConnectString, host_port};

/// The longest pause before the first retry, and before any. The pause is chance between nothing and that.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// An attempt that may be repeated elsewhere gets this part of the deadline; the last one gets what is left.
const ATTEMPT: u32 = 4;
const SHORT_ATTEMPTS: u32 = 2;
/// What a request has besides its texts, at most.
const OVERHEAD: usize = 128;

/// A cluster of Bitacora nodes.
///
/// Cheap to clone; all clones share the connections. Calls may be made from any number of tasks at the same time, and their
/// futures may be dropped at any time (a write that was sent takes effect all the same).
///
/// # Deadline and retries
///
/// A call ends, one way or the other, within the [deadline](ClientBuilder::deadline). Until then it is tried again, with
/// growing pauses and on another node if there is one, where that is safe:
///
/// - reads, whatever went wrong: no connection, a broken one, a node that is not ready, failed or hangs;
/// - writes that certainly did not take effect: no connection, a connection that broke before the write was handed to the
///   socket, a node or a log that did not take it.
///
/// A write whose fate is unknown is not sent again, unless [`ClientBuilder::retry_ambiguous_writes`] says so; its error
/// [tells](Error::may_have_taken_effect).
///
/// ```
/// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), bitacora_client::Error> {
/// # let node = support::FakeNode::start().await.address();
/// use std::time::Duration;
/// use bitacora_client::{Client, Error};
///
/// # let (one, other) = (node, support::FakeNode::start().await.address());
/// let client = Client::builder().nodes([one, other]).deadline(Duration::from_secs(1)).build().await?;
/// match client.set("greeting", "hello").await {
///     Ok(written) => println!("at {}", written.position),
///     Err(error) if error.may_have_taken_effect() => println!("perhaps: {error}"),
///     Err(error) => println!("certainly not: {error}"),
/// }
/// # assert_eq!(client.nodes().len(), 2);
/// # Ok(()) }
/// ```
pub struct Client {
    inner: Arc<Inner>,
    deadline: Duration,
}

struct Inner {
    pool: Arc<Pool>,
    discovery: Mutex<Option<Discovery>>,
    retry_ambiguous_writes: bool,
    max_request_bytes: usize,
    /// Under way.
    calls: AtomicUsize,
    closed: AtomicBool,
    /// The last call after [`Client::close`] has ended.
    idle: Notify,
}

/// What a [`Client`] is made with. Made by [`Client::builder`].
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    nodes: Vec<String>,
    zookeeper: Option<ConnectString>,
    zookeeper_session_timeout: Duration,
    deadline: Duration,
    connect_timeout: Duration,
    connections_per_node: usize,
    max_request_bytes: usize,
    retry_ambiguous_writes: bool,
}

impl ClientBuilder {
    /// A fixed list of nodes, each the `host:port` of its Avro RPC (`AVRO_PORT`). Excludes [`ClientBuilder::zookeeper`].
    #[must_use]
    pub fn nodes(mut self, nodes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.nodes = nodes.into_iter().map(Into::into).collect();
        self
    }

    /// Finds the nodes in ZooKeeper, below `/bitacora/sockets` in the chroot, and follows them as they come and go. Excludes
    /// [`ClientBuilder::nodes`].
    ///
    /// While ZooKeeper is away, or has no node at all, the nodes last known are used. The names of ZooKeeper's servers are
    /// resolved when the client first reaches one.
    #[must_use]
    pub fn zookeeper(mut self, connect: ConnectString) -> Self {
        self.zookeeper = Some(connect);
        self
    }

    /// The session timeout that ZooKeeper is asked for, which may raise it. 2.5 s by default.
    #[must_use]
    pub fn zookeeper_session_timeout(mut self, timeout: Duration) -> Self {
        self.zookeeper_session_timeout = timeout;
        self
    }

    /// How long a call may take, all its retries included. 5 s by default.
    ///
    /// Where there is more than one node, an attempt that may be repeated on another one is given up after a quarter of this,
    /// twice at most; so a node that hangs does not use up the deadline of a read.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long making a connection may take, handshake included. 1 s by default.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Connections to each node, at most; they are made when they are needed. 2 by default: each carries thousands of calls
    /// at the same time, so a few are enough to use several processors of a node.
    #[must_use]
    pub fn connections_per_node(mut self, connections: usize) -> Self {
        self.connections_per_node = connections;
        self
    }

    /// The nodes' limit on a request, in bytes. Larger calls are refused here, as a node would close the connection on them,
    /// to the cost of all other calls on it. 4 MiB by default, as with the nodes.
    #[must_use]
    pub fn max_request_bytes(mut self, bytes: usize) -> Self {
        self.max_request_bytes = bytes;
        self
    }

    /// Whether a write is sent again when nobody knows whether it took effect: its connection broke before the answer came,
    /// the log did not acknowledge it in time, or its node hangs. `false` by default: such a write fails, and its error says
    /// so ([`Error::may_have_taken_effect`]).
    ///
    /// Sending the same set or delete twice ends with the same value; but if somebody else wrote the key in between, the second
    /// one silently overwrites that. `true` is right where a key has a single writer, or where the last one to try may win.
    #[must_use]
    pub fn retry_ambiguous_writes(mut self, retry: bool) -> Self {
        self.retry_ambiguous_writes = retry;
        self
    }

    /// Makes the client. Must be called within a tokio runtime, whose timer and IO are enabled.
    ///
    /// With a fixed list it connects when the first call needs it. With ZooKeeper it waits until it knows a node.
    ///
    /// # Errors
    /// [`Error::Settings`] if the settings make no sense; [`Error::NoNode`] if ZooKeeper named no node before the deadline was
    /// over.
    pub async fn build(self) -> Result<Client, Error> {
        self.check().map_err(Error::Settings)?;
        let pool = Arc::new(Pool::new(self.connect_timeout, self.connections_per_node));
        pool.set(self.nodes);
        let discovery = match self.zookeeper {
            None => None,
            Some(connect) => {
                let mut discovery = follow(connect, self.zookeeper_session_timeout, &pool);
                let known = timeout(self.deadline, discovery.looks.wait_for(Result::is_ok)).await.is_ok();
                if !known {
                    return Err(Error::NoNode { last: discovery.looks.borrow().clone().err() });
                }
                Some(discovery)
            }
        };
        let inner = Inner {
            pool,
            discovery: Mutex::new(discovery),
            retry_ambiguous_writes: self.retry_ambiguous_writes,
            max_request_bytes: self.max_request_bytes,
            calls: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            idle: Notify::new(),
        };
        Ok(Client { inner: Arc::new(inner), deadline: self.deadline })
    }

    fn check(&self) -> Result<(), String> {
        match (&self.zookeeper, self.nodes.as_slice()) {
            (None, []) => return Err("a client needs nodes or ZooKeeper".to_owned()),
            (Some(_), [_, ..]) => return Err("a client has nodes or ZooKeeper, not both".to_owned()),
            _ => self.nodes.iter().try_for_each(|node| host_port(node))?,
        }
        for (name, timeout) in [
            ("deadline", self.deadline),
            ("connect_timeout", self.connect_timeout),
            ("zookeeper_session_timeout", self.zookeeper_session_timeout),
        ] {
            if timeout.is_zero() {
                return Err(format!("{name} is 0"));
            }
        }
        if self.connections_per_node == 0 {
            return Err("connections_per_node is 0".to_owned());
        }
        Ok(())
    }
}

impl Client {
    /// Settings for a new client; say at least where the nodes are.
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            nodes: Vec::new(),
            zookeeper: None,
            zookeeper_session_timeout: Duration::from_millis(2500),
            deadline: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(1),
            connections_per_node: 2,
            max_request_bytes: 4 << 20,
            retry_ambiguous_writes: false,
        }
    }

    /// The record of a key, as the node that is asked has it: *eventual* consistency. A write that was acknowledged a moment
    /// ago may not be there yet.
    ///
    /// ```
    /// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bitacora_client::Error> {
    /// # let node = support::FakeNode::start().await.address();
    /// # let client = bitacora_client::Client::builder().nodes([node]).build().await?;
    /// client.set("greeting", "hello").await?;
    /// match client.get("greeting").await {
    ///     Ok(record) => println!("{} ({})", record.value, record.position),
    ///     Err(error) if error.is_not_found() => println!("no greeting"),
    ///     Err(error) => return Err(error),
    /// }
    /// # assert_eq!(client.get("greeting").await?.value, "hello");
    /// # assert!(client.get("none").await.is_err_and(|error| error.is_not_found()));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such key; any other but those of writes.
    pub async fn get(&self, key: &str) -> Result<Record, Error> {
        match self.call(false)?.send(&Request::GetRecord { key }).await? {
            Reply::Read(found) => read(found, key),
            _ => unreachable!("an answer is decoded by its message"),
        }
    }

    /// Writes a key that lives for ever; returns when the log has acknowledged it.
    ///
    /// ```
    /// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bitacora_client::Error> {
    /// # let node = support::FakeNode::start().await.address();
    /// # let client = bitacora_client::Client::builder().nodes([node]).build().await?;
    /// let written = client.set("greeting", "hello").await?;
    /// println!("at {} in the log", written.position);
    /// # assert_eq!(client.get("greeting").await?.position, written.position);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Any but [`Error::NotFound`]; see [`Error::may_have_taken_effect`].
    pub async fn set(&self, key: &str, value: &str) -> Result<Written, Error> {
        self.set_ms(key, value, 0).await
    }

    /// Writes a key that expires `ttl` after a node took it, by that node's clock; counted in ms, at least one.
    ///
    /// ```
    /// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bitacora_client::Error> {
    /// # let node = support::FakeNode::start().await.address();
    /// # let client = bitacora_client::Client::builder().nodes([node]).build().await?;
    /// use std::time::Duration;
    ///
    /// let written = client.set_with_ttl("session", "42", Duration::from_secs(1800)).await?;
    /// println!("expires at {} ms", written.ttl);
    /// # assert_eq!(written.ttl, written.timestamp + 1_800_000);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Client::set`]; [`Error::Refused`] if `ttl` is zero.
    pub async fn set_with_ttl(&self, key: &str, value: &str, ttl: Duration) -> Result<Written, Error> {
        self.set_ms(key, value, ttl_ms(ttl)?).await
    }

    async fn set_ms(&self, key: &str, value: &str, ttl: i64) -> Result<Written, Error> {
        self.write(&Request::SetRecord { key, value, ttl }, key.len() + value.len()).await
    }

    /// Deletes a key, whether or not it exists; returns when the log has acknowledged it.
    ///
    /// ```
    /// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bitacora_client::Error> {
    /// # let node = support::FakeNode::start().await.address();
    /// # let client = bitacora_client::Client::builder().nodes([node]).build().await?;
    /// client.set("greeting", "hello").await?;
    /// client.delete("greeting").await?;
    /// assert!(client.get("greeting").await.is_err_and(|error| error.is_not_found()));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Client::set`].
    pub async fn delete(&self, key: &str) -> Result<Written, Error> {
        self.write(&Request::DeleteRecord { key }, key.len()).await
    }

    async fn write(&self, request: &Request<'_>, bytes: usize) -> Result<Written, Error> {
        self.check_size(bytes)?;
        match self.call(true)?.send(request).await? {
            Reply::Written(written) => Ok(written),
            _ => unreachable!("an answer is decoded by its message"),
        }
    }

    /// Many operations at once, with a result for each, in their order.
    ///
    /// They are independent of each other: one may fail and the next succeed. Writes of the same key take effect in their order;
    /// reads in between may see any of them. Large batches are sent in pieces, several at a time, to any nodes. The deadline
    /// is for all of it. Each operation is retried as if it were called alone, except that a write is given up if other writes
    /// of its key in this batch make their order uncertain.
    ///
    /// ```
    /// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bitacora_client::Error> {
    /// # let node = support::FakeNode::start().await.address();
    /// # let client = bitacora_client::Client::builder().nodes([node]).build().await?;
    /// use bitacora_client::{Operation, Outcome};
    ///
    /// let set = |key: &str| Operation::Set { key: key.into(), value: "v".into(), ttl: None };
    /// client.batch(&[set("a"), set("b")]).await?;
    /// for result in client.batch(&[Operation::Get { key: "a".into() }, Operation::Delete { key: "b".into() }]).await? {
    ///     match result? {
    ///         Outcome::Read(record) => println!("{} = {}", record.key, record.value),
    ///         Outcome::Written(written) => println!("written at {}", written.position),
    ///     }
    /// }
    /// # assert!(client.get("b").await.is_err_and(|error| error.is_not_found()));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Only [`Error::Closed`]. What happens to operations is told by their results.
    pub async fn batch(&self, operations: &[Operation]) -> Result<Vec<Result<Outcome, Error>>, Error> {
        batch::run(self, operations).await
    }

    /// One page of a scan: `cursor` is `None` for the first one, then [`ScanPage::cursor`] of the page before. Pages of one
    /// scan may come from different nodes, and a cursor stays valid whatever is written in between.
    ///
    /// ```
    /// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bitacora_client::Error> {
    /// # let node = support::FakeNode::start().await.address();
    /// # let client = bitacora_client::Client::builder().nodes([node]).build().await?;
    /// use bitacora_client::Scan;
    ///
    /// for key in ["a", "b", "c"] {
    ///     client.set(key, "v").await?;
    /// }
    /// let scan = Scan::all().page(2);
    /// let first = client.scan_page(&scan, None).await?;
    /// let second = client.scan_page(&scan, first.cursor.as_deref()).await?;
    /// assert_eq!((first.records.len(), second.records.len(), second.cursor), (2, 1, None));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Refused`] if the cursor is none; any other but those of writes and of single keys.
    pub async fn scan_page(&self, scan: &Scan, cursor: Option<&str>) -> Result<ScanPage, Error> {
        let limit = if scan.page == 0 { Scan::DEFAULT_PAGE } else { scan.page };
        let request = Request::Scan(ScanRequest {
            prefix: &scan.prefix,
            start: &scan.start,
            end: &scan.end,
            limit: i32::try_from(limit).unwrap_or(i32::MAX),
            cursor: cursor.unwrap_or_default(),
        });
        match self.call(false)?.send(&request).await? {
            Reply::Page(page) => Ok(page),
            _ => unreachable!("an answer is decoded by its message"),
        }
    }

    /// All records of a scan, in key order. Gets a page when the one before is used up; the deadline is for each page. Ends after
    /// an error.
    ///
    /// It is no snapshot: what is written while it runs shows or does not, by where the scan is.
    ///
    /// ```
    /// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bitacora_client::Error> {
    /// # let node = support::FakeNode::start().await.address();
    /// # let client = bitacora_client::Client::builder().nodes([node]).build().await?;
    /// use bitacora_client::Scan;
    /// use futures_util::TryStreamExt;
    ///
    /// for key in ["user:1", "user:2", "other"] {
    ///     client.set(key, "v").await?;
    /// }
    /// let mut users = std::pin::pin!(client.scan(Scan::prefix("user:")));
    /// let mut keys = Vec::new();
    /// while let Some(record) = users.try_next().await? {
    ///     keys.push(record.key);
    /// }
    /// assert_eq!(keys, ["user:1", "user:2"]);
    /// # Ok(()) }
    /// ```
    pub fn scan(&self, scan: Scan) -> impl Stream<Item = Result<Record, Error>> + Send + 'static {
        let client = self.clone();
        let pages = stream::try_unfold(Some(String::new()), move |cursor| {
            let (client, scan) = (client.clone(), scan.clone());
            async move {
                let Some(cursor) = cursor else { return Ok(None) };
                let page = client.scan_page(&scan, Some(&cursor)).await?;
                Ok::<_, Error>(Some((page.records, page.cursor)))
            }
        });
        pages.map_ok(|records| stream::iter(records).map(Ok)).try_flatten()
    }

    /// What the client knows of each node, in the order of their addresses.
    ///
    /// ```
    /// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bitacora_client::Error> {
    /// # let node = support::FakeNode::start().await.address();
    /// # let client = bitacora_client::Client::builder().nodes([node]).build().await?;
    /// for node in client.nodes() {
    ///     println!("{} {:?}: {} under way", node.address, node.state, node.under_way);
    /// }
    /// # assert_eq!(client.nodes().len(), 1);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeStatus> {
        self.inner.pool.status()
    }

    /// The same client with another deadline for each call.
    ///
    /// ```
    /// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bitacora_client::Error> {
    /// # let node = support::FakeNode::start().await.address();
    /// # let client = bitacora_client::Client::builder().nodes([node]).build().await?;
    /// use std::time::Duration;
    ///
    /// client.with_deadline(Duration::from_millis(200)).set("greeting", "hello").await?;
    /// # client.get("greeting").await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Client {
        Client { inner: Arc::clone(&self.inner), deadline }
    }

    /// Waits until the calls under way have ended, but no longer than the deadline; then closes all connections, and leaves
    /// ZooKeeper. Calls that come later fail with [`Error::Closed`]. This is for all clones.
    ///
    /// A client that is dropped with its last clone closes its connections as well.
    ///
    /// ```
    /// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bitacora_client::Error> {
    /// # let node = support::FakeNode::start().await.address();
    /// # let client = bitacora_client::Client::builder().nodes([node]).build().await?;
    /// client.set("greeting", "hello").await?;
    /// client.close().await;
    /// assert_eq!(client.get("greeting").await, Err(bitacora_client::Error::Closed));
    /// # Ok(()) }
    /// ```
    pub async fn close(&self) {
        let inner = &*self.inner;
        inner.closed.store(true, Ordering::SeqCst);
        let idle = async {
            loop {
                let idle = inner.idle.notified();
                if inner.calls.load(Ordering::SeqCst) == 0 {
                    return;
                }
                idle.await;
            }
        };
        if timeout(self.deadline, idle).await.is_err() {
            tracing::warn!("closed with calls under way");
        }
        let discovery = lock(&inner.discovery).take();
        if let Some(discovery) = discovery {
            discovery.close().await;
        }
        inner.pool.set(Vec::new());
    }

    pub(crate) fn call(&self, is_write: bool) -> Result<Call<'_>, Error> {
        let now = Instant::now();
        // A time that does not fit is meant to be for ever.
        let ends = now.checked_add(self.deadline).unwrap_or_else(|| now + Duration::from_secs(1 << 30));
        let call = Call::new(&self.inner, self.deadline, ends, is_write);
        // In this order: either this sees that the client is closed, or closing it sees this call.
        if self.inner.closed.load(Ordering::SeqCst) { Err(Error::Closed) } else { Ok(call) }
    }

    pub(crate) fn check_size(&self, bytes: usize) -> Result<(), Error> {
        let max = self.inner.max_request_bytes;
        if bytes + OVERHEAD <= max {
            return Ok(());
        }
        let reason = format!("key and value have {bytes} bytes; a request has at most {max}");
        Err(Error::Refused { refusal: Refusal::TooLarge, reason })
    }
}

impl Clone for Client {
    fn clone(&self) -> Self {
        self.with_deadline(self.deadline)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("nodes", &self.nodes())
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// A time to live as it goes over the wire.
pub(crate) fn ttl_ms(ttl: Duration) -> Result<i64, Error> {
    if ttl.is_zero() {
        let reason = "a time to live of 0; to live for ever is to have none".to_owned();
        return Err(Error::Refused { refusal: Refusal::BadRequest, reason });
    }
    Ok(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX).max(1))
}

pub(crate) fn read(found: Found, key: &str) -> Result<Record, Error> {
    found.map_err(|Missing { position, timestamp, served_from }| Error::NotFound {
        key: key.to_owned(),
        position,
        timestamp,
        served_from,
    })
}

/// A call: its deadline, and what its attempts have met so far.
pub(crate) struct Call<'a> {
    inner: &'a Inner,
    deadline: Duration,
    ends: Instant,
    /// Whether it, as it is now, changes keys.
    pub(crate) is_write: bool,
    failures: u32,
    timeouts: u32,
    /// Who was asked last; another one is better for the next attempt.
    node: Option<Arc<Node>>,
    /// An attempt may have taken effect.
    ambiguous: Option<Error>,
}

impl<'a> Call<'a> {
    fn new(inner: &'a Inner, deadline: Duration, ends: Instant, is_write: bool) -> Self {
        inner.calls.fetch_add(1, Ordering::SeqCst);
        Self { inner, deadline, ends, is_write, failures: 0, timeouts: 0, node: None, ambiguous: None }
    }

    /// A part that is sent by itself, within the same deadline.
    pub(crate) fn part(&self) -> Self {
        Self::new(self.inner, self.deadline, self.ends, self.is_write)
    }

    /// Whether an attempt that may have taken effect may be repeated.
    fn is_repeatable(&self) -> bool {
        !self.is_write || self.inner.retry_ambiguous_writes
    }

    /// Tries until there is a reply, or an error that is final, or the deadline is over.
    pub(crate) async fn send(&mut self, request: &Request<'_>) -> Result<Reply, Error> {
        let mut before = None;
        loop {
            let (error, retry) = match self.attempt(request).await {
                Ok(reply) => {
                    self.ambiguous = None;
                    return Ok(reply);
                }
                Err(failed) => failed,
            };
            if error.may_have_taken_effect() {
                self.ambiguous = Some(error.clone());
            }
            if !(retry && self.pause().await) {
                // An attempt that was cut short says less than the one before.
                let cut_short = matches!(error, Error::TimedOut { may_have_taken_effect: false, .. });
                let error = before.filter(|_| cut_short).unwrap_or(error);
                return Err(self.ambiguous.take().unwrap_or(error));
            }
            before = Some(error);
        }
    }

    /// The error comes with whether to try again.
    async fn attempt(&mut self, request: &Request<'_>) -> Result<Reply, (Error, bool)> {
        let pool = &self.inner.pool;
        let Some(node) = pool.pick(self.node.as_ref()) else {
            let look = lock(&self.inner.discovery).as_ref().and_then(|it| it.looks.borrow().clone().err());
            return Err((Error::NoNode { last: look }, true));
        };
        let now = Instant::now();
        if now >= self.ends {
            return Err((self.timed_out(false, None), false));
        }
        let mut until = self.ends;
        if self.is_repeatable() && self.timeouts < SHORT_ATTEMPTS && pool.len() > 1 {
            until = now.checked_add(self.deadline / ATTEMPT).map_or(until, |short| short.min(until));
        }
        let mut sent = false;
        let answered = timeout_at(until, node.call(request, &mut sent)).await;
        let node = &*self.node.insert(node);
        match answered {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(failure)) => Err(self.judge(failure)),
            Err(_) => {
                node.timed_out();
                self.timeouts += 1;
                let last = Some(format!("no answer from {}", self.address()));
                Err((self.timed_out(sent, last), self.is_repeatable()))
            }
        }
    }

    fn timed_out(&self, sent: bool, last: Option<String>) -> Error {
        Error::TimedOut { may_have_taken_effect: self.is_write && sent, after: self.deadline, last }
    }

    /// What a failed attempt means, and whether to try again.
    fn judge(&self, failure: Failure) -> (Error, bool) {
        match failure {
            Failure::Unreachable(reason) | Failure::Gone(reason) | Failure::Lost { sent: false, reason } => {
                (Error::NoNode { last: Some(format!("{}: {reason}", self.address())) }, true)
            }
            Failure::Lost { reason, .. } if self.is_write => {
                (Error::Unacknowledged { node: self.address(), reason }, self.is_repeatable())
            }
            Failure::Lost { reason, .. } => (Error::Node(self.failed(reason, true)), true),
            Failure::Nonsense { sent, reason } => (Error::Protocol(self.failed(reason, sent)), false),
            Failure::Answered(rpc::Failure::Text(reason)) => {
                (Error::Protocol(self.failed(reason, true)), false)
            }
            Failure::Answered(rpc::Failure::Declared(error)) => self.judge_answer(error),
        }
    }

    /// What a node's error means, and whether to try again.
    pub(crate) fn judge_answer(&self, error: RequestError) -> (Error, bool) {
        let RequestError { code, message: reason } = error;
        if let (ErrorCode::NotReady | ErrorCode::Internal, Some(node)) = (code, &self.node) {
            node.refused(&reason);
        }
        match code {
            ErrorCode::BadRequest => (Error::Refused { refusal: Refusal::BadRequest, reason }, false),
            ErrorCode::TooLarge => (Error::Refused { refusal: Refusal::TooLarge, reason }, false),
            ErrorCode::NotReady => (Error::NotReady { node: self.address(), reason }, true),
            ErrorCode::NotTaken => (Error::NotTaken { node: Some(self.address()), reason }, true),
            ErrorCode::MayTakeEffect if self.is_write => {
                (Error::Unacknowledged { node: self.address(), reason }, self.is_repeatable())
            }
            ErrorCode::MayTakeEffect | ErrorCode::Internal => {
                (Error::Node(self.failed(reason, true)), self.is_repeatable())
            }
        }
    }

    /// Of the node that was asked last.
    fn address(&self) -> String {
        self.node.as_ref().map(|node| node.address().to_owned()).unwrap_or_default()
    }

    pub(crate) fn failed(&self, reason: String, sent: bool) -> NodeFailure {
        NodeFailure { node: self.address(), reason, may_have_taken_effect: self.is_write && sent }
    }

    /// Waits before the next attempt; false if there is no time for one.
    pub(crate) async fn pause(&mut self) -> bool {
        let longest = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
        self.failures += 1;
        let pause = longest.mul_f64(fastrand::f64());
        if Instant::now() + pause >= self.ends {
            return false;
        }
        sleep(pause).await;
        true
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if self.inner.calls.fetch_sub(1, Ordering::SeqCst) == 1 && self.inner.closed.load(Ordering::SeqCst) {
            self.inner.idle.notify_waiters();
        }
    }
}
