//! Asking the other members for a key, `GET /rpc/cluster`. What they answer is returned, never stored.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitacora_protocol::Position;
use bitacora_protocol::http::{LOG_HEADER, OUT_OF_MEMORY_HEADER, POSITION_HEADER, TIMESTAMP_HEADER};
use bitacora_protocol::record::{OwnedKeyValue, ttl};
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt, Shared};
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use tokio::sync::Semaphore;

use crate::cluster::Membership;
use crate::http_client::{MemberClient, MemberClients, tls_reason};
use crate::log::LogTag;
use crate::metrics::Metrics;
use crate::now_ms;
use crate::replication::progress::Progress;
use crate::service::memory::{Memory, Permit};

/// Keys asked for at a time. A restoring node under load has misses without number, and its peers other work.
const MAX_CONCURRENT_KEYS: usize = 256;
/// Between two complaints about the answers of one member.
const COMPLAINT_INTERVAL: Duration = Duration::from_mins(1);
/// Room in an answer beside the value; other writers' values may be larger than this node's limit, too.
const HEADROOM_BYTES: usize = 1 << 20;
/// What JSON makes of one byte, at most: `\u0001`.
const ESCAPED_BYTES: usize = 6;

/// A record of another member, and the memory that it takes until the last of those who asked for it has answered.
#[derive(Debug)]
pub struct PeerRecord {
    record: OwnedKeyValue,
    _memory: Permit,
}

impl PeerRecord {
    /// `memory` stands for the record's bytes.
    #[must_use]
    pub fn new(record: OwnedKeyValue, memory: Permit) -> Self {
        Self { record, _memory: memory }
    }
}

impl Deref for PeerRecord {
    type Target = OwnedKeyValue;

    fn deref(&self) -> &OwnedKeyValue {
        &self.record
    }
}

impl PartialEq for PeerRecord {
    fn eq(&self, other: &Self) -> bool {
        self.record == other.record
    }
}

impl Eq for PeerRecord {}

/// What the others know of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerAnswer {
    Found {
        record: Arc<PeerRecord>,
        position: Position,
    },
    /// Deleted or expired, by a record with this write timestamp.
    Gone {
        timestamp: i64,
        position: Position,
    },
    /// A member has a record, and that member or this node no memory for it.
    OutOfMemory,
    /// Every member that answered knows that there is no record.
    Missing,
    /// Nobody answered in time.
    Unknown,
}

impl PeerAnswer {
    /// Whether it says more, or later things, than the other of the same key.
    #[must_use]
    pub fn is_better_than(&self, other: &Self) -> bool {
        self.rank() > other.rank()
    }

    /// The higher write timestamp wins, then the higher offset; a record wins against none.
    fn rank(&self) -> (u8, i64, i64) {
        match self {
            Self::Found { record, position } => (3, record.timestamp, position.offset),
            Self::Gone { timestamp, position } => (3, *timestamp, position.offset),
            Self::OutOfMemory => (2, 0, 0),
            Self::Missing => (1, 0, 0),
            Self::Unknown => (0, 0, 0),
        }
    }
}

type Asking = Shared<BoxFuture<'static, PeerAnswer>>;

#[derive(Clone)]
pub struct Peers(Arc<Inner>);

/// What bounds a question.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long the members may take.
    pub timeout: Duration,
    /// The largest value of an answer.
    pub max_value_bytes: usize,
}

struct Inner {
    http: MemberClient,
    membership: Arc<dyn Membership>,
    progress: Arc<Progress>,
    own_address: String,
    timeout: Duration,
    max_answer_bytes: usize,
    /// Concurrent misses of one key in one log share one request.
    asking: Mutex<HashMap<(LogTag, String), Asking>>,
    /// When it was last said of a member that its answers are of no use.
    complaints: Mutex<HashMap<String, Instant>>,
    permits: Semaphore,
    memory: Memory,
    metrics: Arc<Metrics>,
}

impl Peers {
    /// `own_address`: `host:API_PORT` as the membership lists this node.
    ///
    /// # Errors
    /// When the HTTP client can't be built.
    pub fn new(
        clients: &MemberClients,
        membership: Arc<dyn Membership>,
        progress: Arc<Progress>,
        own_address: String,
        limits: Limits,
        memory: Memory,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let http = clients.build(|http| http.tcp_nodelay(true))?;
        let Limits { timeout, max_value_bytes } = limits;
        let max_answer_bytes = ESCAPED_BYTES * (max_value_bytes + HEADROOM_BYTES);
        let (asking, complaints, permits) =
            (Mutex::default(), Mutex::default(), Semaphore::new(MAX_CONCURRENT_KEYS));
        Ok(Self(Arc::new(Inner {
            http,
            membership,
            progress,
            own_address,
            timeout,
            max_answer_bytes,
            asking,
            complaints,
            permits,
            memory,
            metrics,
        })))
    }

    /// Asks every other member and waits for all of them, no longer than the timeout. What is of another log than `log`
    /// is no answer.
    pub async fn ask(&self, key: &str, log: LogTag) -> PeerAnswer {
        let asking = {
            let mut all = self.0.asking.lock();
            let asked = (log, key.to_owned());
            if let Some(asking) = all.get(&asked) {
                asking.clone()
            } else {
                let question = Question { inner: Arc::clone(&self.0), asked: asked.clone() };
                // On a task of its own, so that it ends, and is forgotten, also when every caller has gone away.
                let task = tokio::spawn(async move { question.inner.ask_all(&question.asked.1, log).await });
                let asking = async move { task.await.unwrap_or(PeerAnswer::Unknown) }.boxed().shared();
                all.insert(asked, asking.clone());
                asking
            }
        };
        asking.await
    }
}

/// A question to the members that is under way. It is forgotten when it ends, by a panic too: else its key would never be asked
/// for again.
struct Question {
    inner: Arc<Inner>,
    asked: (LogTag, String),
}

impl Drop for Question {
    fn drop(&mut self) {
        self.inner.asking.lock().remove(&self.asked);
    }
}

impl Inner {
    async fn ask_all(&self, key: &str, log: LogTag) -> PeerAnswer {
        let started = Instant::now();
        let mut best = PeerAnswer::Unknown;
        let asked = tokio::time::timeout(self.timeout, async {
            let Ok(_permit) = self.permits.acquire().await else { return };
            let members = self.membership.members();
            let others = members.iter().filter(|member| **member != self.own_address);
            let mut answers: FuturesUnordered<_> =
                others.map(|member| self.ask_one(member, key, log)).collect();
            while let Some(answer) = answers.next().await {
                if answer.is_better_than(&best) {
                    best = answer;
                }
            }
        })
        .await;
        let outcome = match &best {
            PeerAnswer::Found { .. } => "found",
            PeerAnswer::Gone { .. } => "gone",
            PeerAnswer::OutOfMemory => "no_memory",
            PeerAnswer::Missing => "missing",
            PeerAnswer::Unknown if asked.is_err() => "timeout",
            PeerAnswer::Unknown => "no_answer",
        };
        self.metrics.peer_reads.with_label_values(&[outcome]).inc();
        self.metrics.peer_read_seconds.observe(started.elapsed().as_secs_f64());
        best
    }

    async fn ask_one(&self, member: &str, key: &str, log: LogTag) -> PeerAnswer {
        let Some(mut url) = self.http.url(member, "/rpc/cluster") else {
            self.complain(member, "it is registered under no address");
            return PeerAnswer::Unknown;
        };
        url.query_pairs_mut().append_pair("key", key);
        let answer = match self.http.get(url).send().await {
            Ok(response) => self.understand(response, key, log).await,
            Err(error) => match tls_reason(&error) {
                Some(why) => Err(format!("TLS with it fails: {why}")),
                // It is away, which is no news: its session ends soon.
                None => return PeerAnswer::Unknown,
            },
        };
        answer.unwrap_or_else(|why| {
            self.complain(member, &why);
            PeerAnswer::Unknown
        })
    }

    /// What an answer says of the key; why it is of no use if it says nothing.
    ///
    /// Members are trusted as far as their answers make sense: a record that looks like one of the log is believed.
    async fn understand(&self, response: Response, key: &str, log: LogTag) -> Result<PeerAnswer, String> {
        let partitions = self.progress.next_offsets().len();
        match read_head(response.status(), response.headers(), log, partitions)? {
            Head::Whole(answer) => Ok(answer),
            Head::RecordAt(position) => self.read_record(response, key, position).await,
        }
    }

    /// What the body says, which is a record that lies at `position`.
    async fn read_record(
        &self,
        mut response: Response,
        key: &str,
        position: Position,
    ) -> Result<PeerAnswer, String> {
        let mut memory = self.memory.nothing();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|_| "its answer ends early")? {
            if body.len() + chunk.len() > self.max_answer_bytes {
                return Err(format!("its answer has more than {} bytes", self.max_answer_bytes));
            }
            // The text and the record that is made of it.
            if memory.grow(2 * chunk.len()).is_err() {
                return Ok(PeerAnswer::OutOfMemory);
            }
            body.extend_from_slice(&chunk);
        }
        let record: OwnedKeyValue =
            serde_json::from_slice(&body).map_err(|error| format!("its answer is no record: {error}"))?;
        memory.set(record.key.len() + record.value.len());
        if record.key != key || position.offset < 0 {
            return Err("it answers with another record than was asked for".to_owned());
        }
        // By this node's clock it may have expired on its way.
        let live = record.ttl == ttl::FOR_EVER || record.ttl > now_ms();
        Ok(if live {
            PeerAnswer::Found { record: Arc::new(PeerRecord::new(record, memory)), position }
        } else {
            PeerAnswer::Gone { timestamp: record.timestamp, position }
        })
    }

    /// Says it once a while: every miss asks every member.
    fn complain(&self, member: &str, why: &str) {
        let mut complaints = self.complaints.lock();
        complaints.retain(|_, at| at.elapsed() < COMPLAINT_INTERVAL);
        if !complaints.contains_key(member) {
            complaints.insert(member.to_owned(), Instant::now());
            tracing::warn!(member, "the answers of a member are of no use: {why}");
        }
    }
}

/// What status and headers of an answer say.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    /// All that there is to say.
    Whole(PeerAnswer),
    /// That the body is the record at this position.
    RecordAt(Position),
}

/// Reads status and headers of an answer, which is to be of `log`, a topic of so many partitions (0: not known yet). Fails with why
/// the answer is of no use.
fn read_head(
    status: StatusCode,
    headers: &HeaderMap,
    log: LogTag,
    partitions: usize,
) -> Result<Head, String> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match status {
        StatusCode::OK | StatusCode::NOT_FOUND => {}
        StatusCode::SERVICE_UNAVAILABLE if is_out_of_memory(headers) => {}
        // It does not know either.
        StatusCode::SERVICE_UNAVAILABLE => return Ok(Head::Whole(PeerAnswer::Unknown)),
        _ => return Err(format!("it answers {}", status.as_u16())),
    }
    let of = header(LOG_HEADER).map_or(Ok(0), |text| u64::from_str_radix(text, 16));
    if !LogTag(of.map_err(|_| "the name of its log is no number")?).fits(log) {
        // One of both has yet to notice that the log was replaced.
        return Ok(Head::Whole(PeerAnswer::Unknown));
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        return Ok(Head::Whole(PeerAnswer::OutOfMemory));
    }
    let position: Option<Position> = header(POSITION_HEADER).and_then(|text| text.parse().ok());
    let position = position.ok_or("it names no position in the log, as a node does")?;
    if partitions > 0 && position.partition as usize >= partitions {
        return Err(format!("it names position {position}, and the topic has {partitions} partitions"));
    }
    let timestamp = header(TIMESTAMP_HEADER).map(str::parse::<i64>).transpose();
    let timestamp = timestamp.map_err(|_| "its write timestamp is no number")?;
    match timestamp {
        _ if status == StatusCode::OK => Ok(Head::RecordAt(position)),
        Some(timestamp) if position.offset >= 0 => Ok(Head::Whole(PeerAnswer::Gone { timestamp, position })),
        Some(_) => Err(format!("it names a delete at position {position}")),
        None => Ok(Head::Whole(PeerAnswer::Missing)),
    }
}

/// Whether a 503 is of a member that knows the key and has no memory for the answer. One of a version that had no header for that
/// says so by two others together: a member that does not know names no position.
fn is_out_of_memory(headers: &HeaderMap) -> bool {
    headers.contains_key(OUT_OF_MEMORY_HEADER)
        || (headers.contains_key(POSITION_HEADER) && headers.contains_key(RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    const LOG: LogTag = LogTag(0xab);

    /// Members that nobody can be told of.
    #[derive(Default)]
    struct Panicking {
        asked: std::sync::atomic::AtomicUsize,
    }

    impl Membership for Panicking {
        fn members(&self) -> Arc<[String]> {
            self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            panic!("as the test wants it")
        }

        fn state(&self) -> crate::cluster::MembershipState {
            crate::cluster::MembershipState::Fixed
        }

        fn registered(&self) -> bool {
            false
        }

        fn sessions(&self) -> u64 {
            0
        }

        fn announce(&self) {}

        fn is_elected_trimmer(&self) -> bool {
            false
        }

        fn leave(&self) -> BoxFuture<'_, ()> {
            Box::pin(std::future::ready(()))
        }
    }

    #[tokio::test]
    async fn a_question_that_panicked_is_asked_again() {
        let (membership, metrics) = (Arc::new(Panicking::default()), Metrics::new().expect("metrics"));
        let memory = Memory::new(1 << 20, metrics.request_memory_refusals.clone());
        let members = Arc::clone(&membership) as Arc<dyn Membership>;
        let progress = Arc::<Progress>::default();
        let limits = Limits { timeout: Duration::from_secs(1), max_value_bytes: 1 };
        let peers = Peers::new(
            &MemberClients::default(),
            members,
            progress,
            "me:1".into(),
            limits,
            memory,
            Arc::new(metrics),
        );
        let peers = peers.expect("a client");
        for time in 1..=2 {
            assert_eq!(peers.ask("k", LOG).await, PeerAnswer::Unknown);
            assert_eq!(membership.asked.load(std::sync::atomic::Ordering::Relaxed), time);
        }
    }

    fn head(status: StatusCode, headers: &[(&'static str, &'static str)]) -> Result<Head, String> {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        read_head(status, &headers.collect(), LOG, 2)
    }

    #[test]
    fn a_refusal_for_memory_is_told_by_a_header_of_its_own() {
        let refusal = |headers: &[_]| head(StatusCode::SERVICE_UNAVAILABLE, headers);
        let (out_of_memory, unknown) =
            (Head::Whole(PeerAnswer::OutOfMemory), Head::Whole(PeerAnswer::Unknown));
        assert_eq!(refusal(&[(OUT_OF_MEMORY_HEADER, "")]), Ok(out_of_memory));
        assert_eq!(refusal(&[(OUT_OF_MEMORY_HEADER, ""), (LOG_HEADER, "ac")]), Ok(unknown), "of another log");
    }

    #[test]
    fn an_older_members_refusal_for_memory_is_told_by_two_headers() {
        let refusal = |headers: &[_]| head(StatusCode::SERVICE_UNAVAILABLE, headers);
        let (position, retry) = ((POSITION_HEADER, "1:5"), ("retry-after", "1"));
        assert_eq!(refusal(&[position, retry]), Ok(Head::Whole(PeerAnswer::OutOfMemory)));
        for one in [position, retry] {
            assert_eq!(refusal(&[one]), Ok(Head::Whole(PeerAnswer::Unknown)), "{one:?}");
        }
    }

    #[test]
    fn a_miss_is_a_delete_if_a_record_decided_it() {
        let miss = |headers: &[_]| head(StatusCode::NOT_FOUND, headers);
        let position = Position { partition: 1, offset: 5 };
        let (at, when) = ((POSITION_HEADER, "1:5"), (TIMESTAMP_HEADER, "7"));
        assert_eq!(miss(&[at, when]), Ok(Head::Whole(PeerAnswer::Gone { timestamp: 7, position })));
        assert_eq!(miss(&[at]), Ok(Head::Whole(PeerAnswer::Missing)));
        assert!(miss(&[(POSITION_HEADER, "1:-1"), when]).is_err(), "nothing lies there");
        assert!(miss(&[when]).is_err(), "no node answers so");
        assert_eq!(head(StatusCode::OK, &[at]), Ok(Head::RecordAt(position)));
        assert!(head(StatusCode::OK, &[(POSITION_HEADER, "2:5")]).is_err(), "the topic has two partitions");
    }
}
