//! The client: its calls. What a call does until it has an answer is in `call.rs`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bitacora_protocol::ReadOptions;
use bitacora_protocol::rpc::{Request, ScanRequest};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::balance::Pool;
use crate::batch;
use crate::builder::ClientBuilder;
use crate::call::{Call, read};
use crate::connection::Reply;
use crate::discovery::Discovery;
use crate::error::{Error, Refusal};
use crate::operation::{Operation, Outcome};
use crate::types::{NodeStatus, Record, Scan, ScanPage, Written};

/// Bytes that a request has besides its texts, at most.
const REQUEST_OVERHEAD: usize = 128;
/// Stands for a deadline that is too far away to be told: some thirty years.
const NEVER: Duration = Duration::from_secs(1 << 30);

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
    pub(crate) inner: Arc<Inner>,
    pub(crate) deadline: Duration,
}

/// What all clones of a client share.
pub(crate) struct Inner {
    pub(crate) pool: Arc<Pool>,
    pub(crate) discovery: Mutex<Option<Discovery>>,
    pub(crate) retry_ambiguous_writes: bool,
    pub(crate) max_request_bytes: usize,
    /// Calls under way.
    pub(crate) calls: AtomicUsize,
    pub(crate) closed: AtomicBool,
    /// Notified when it is closed.
    pub(crate) closing: Notify,
    /// Notified when the last call ends after [`Client::close`].
    pub(crate) idle: Notify,
}

impl Client {
    /// Settings for a new client; say at least where the nodes are.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
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
        self.write_plain(&Request::SetRecord { key, value, ttl }, key.len() + value.len()).await
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
        self.write_plain(&Request::DeleteRecord { key }, key.len()).await
    }

    async fn write_plain(&self, request: &Request<'_>, bytes: usize) -> Result<Written, Error> {
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
    /// A read may say how consistent it is, and a write its condition, its uuid and who must show it. Where a condition does not
    /// hold, the result of that write is [`Error::NotMet`]; the others go on. A write that says more waits for the earlier
    /// writes of its key in the batch, one request for each, so many of them for the same key are slow.
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
    ///
    /// use bitacora_client::{Error, ReadLevel};
    ///
    /// let version = client.create("limit", "10").await?.position;
    /// let results = client
    ///     .batch(&[
    ///         Operation::read("a", ReadLevel::strong()),
    ///         Operation::compare_and_set("limit", version, "20").into(),
    ///         Operation::create("a", "somebody has it").into(),
    ///     ])
    ///     .await?;
    /// assert!(matches!(&results[0], Ok(Outcome::Read(record)) if record.value == "v"));
    /// assert!(matches!(&results[1], Ok(Outcome::Written(_))));
    /// assert!(matches!(&results[2], Err(Error::NotMet { current: Some(current), .. }) if current.value == "v"));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Only [`Error::Closed`]. What happens to operations is told by their results.
    pub async fn batch<'a>(
        &self,
        operations: impl IntoIterator<Item = &'a Operation>,
    ) -> Result<Vec<Result<Outcome, Error>>, Error> {
        let operations: Vec<_> = operations.into_iter().collect();
        batch::run(self, &operations).await
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
        let request = ScanRequest {
            prefix: &scan.prefix,
            start: &scan.start,
            end: &scan.end,
            limit: i32::try_from(limit).unwrap_or(i32::MAX),
            cursor: cursor.unwrap_or_default(),
        };
        let mut position = String::new();
        let request = match scan.level.options(&mut position)? {
            None if scan.level.has_session() => {
                Request::ScanRecords { scan: request, read: ReadOptions::default() }
            }
            None => Request::Scan(request),
            Some(read) => Request::ScanRecords { scan: request, read },
        };
        match self.call_within(scan.level.deadline(), false)?.send(&request).await? {
            Reply::Page(page) => Ok(page),
            Reply::RecordPage(page, positions) => {
                scan.level.saw(positions);
                Ok(page)
            }
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
    /// ZooKeeper. Calls that come later fail with [`Error::Closed`], and watches end with it at once. This is for all clones.
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
        inner.closing.notify_waiters();
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
        let discovery = inner.discovery.lock().take();
        if let Some(discovery) = discovery {
            discovery.close().await;
        }
        inner.pool.set(Vec::new());
    }

    pub(crate) fn call(&self, is_write: bool) -> Result<Call<'_>, Error> {
        self.call_within(None, is_write)
    }

    /// `deadline`: in the place of the client's.
    pub(crate) fn call_within(&self, deadline: Option<Duration>, is_write: bool) -> Result<Call<'_>, Error> {
        let deadline = deadline.unwrap_or(self.deadline);
        let now = Instant::now();
        // A time that does not fit is meant to be for ever.
        let ends = now.checked_add(deadline).unwrap_or_else(|| now + NEVER);
        let call = Call::new(&self.inner, deadline, ends, is_write);
        // In this order: either this sees that the client is closed, or closing it sees this call.
        if self.inner.closed.load(Ordering::SeqCst) { Err(Error::Closed) } else { Ok(call) }
    }

    pub(crate) fn check_size(&self, bytes: usize) -> Result<(), Error> {
        let max = self.inner.max_request_bytes;
        if bytes + REQUEST_OVERHEAD <= max {
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
