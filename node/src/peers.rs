//! Asking the other members for a key, `GET /rpc/cluster`. What they answer is returned, never stored.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bitacora_client::wire::{OwnedKeyValue, POSITION_HEADER, Position, TIMESTAMP_HEADER};
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt, Shared};
use futures_util::stream::FuturesUnordered;
use reqwest::StatusCode;
use tokio::sync::Semaphore;

use crate::membership::Membership;
use crate::metrics::Metrics;

/// Keys asked for at a time. A restoring node under load has misses without number, and its peers other work.
const CONCURRENT: usize = 256;

/// What the others know of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerAnswer {
    Found {
        record: OwnedKeyValue,
        position: Position,
    },
    /// Deleted or expired, by a record with this write timestamp.
    Gone {
        timestamp: i64,
        position: Position,
    },
    /// Every member that answered knows that there is no record.
    Missing,
    /// Nobody answered in time.
    Unknown,
}

impl PeerAnswer {
    /// The higher write timestamp wins, then the higher offset; a record wins against none.
    fn rank(&self) -> (u8, i64, i64) {
        match self {
            Self::Found { record, position } => (2, record.timestamp, position.offset),
            Self::Gone { timestamp, position } => (2, *timestamp, position.offset),
            Self::Missing => (1, 0, 0),
            Self::Unknown => (0, 0, 0),
        }
    }
}

type Asking = Shared<BoxFuture<'static, PeerAnswer>>;

#[derive(Clone)]
pub struct Peers(Arc<Inner>);

struct Inner {
    http: reqwest::Client,
    membership: Arc<dyn Membership>,
    own_address: String,
    timeout: Duration,
    /// Concurrent misses of one key share one request.
    asking: Mutex<HashMap<String, Asking>>,
    permits: Semaphore,
    metrics: Arc<Metrics>,
}

impl Peers {
    /// `own_address`: `host:API_PORT` as the membership lists this node.
    ///
    /// # Errors
    /// When the HTTP client can't be built.
    pub fn new(
        membership: Arc<dyn Membership>,
        own_address: String,
        timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .tcp_nodelay(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let (asking, permits) = (Mutex::default(), Semaphore::new(CONCURRENT));
        Ok(Self(Arc::new(Inner { http, membership, own_address, timeout, asking, permits, metrics })))
    }

    /// Asks every other member and waits for all of them, no longer than the timeout.
    pub async fn ask(&self, key: &str) -> PeerAnswer {
        let asking = {
            let mut all = self.0.asking.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(asking) = all.get(key) {
                asking.clone()
            } else {
                let (inner, owned) = (Arc::clone(&self.0), key.to_owned());
                // On a task of its own, so that it ends, and is forgotten, also when every caller has gone away.
                let task = tokio::spawn(async move {
                    let answer = inner.ask_all(&owned).await;
                    inner.asking.lock().unwrap_or_else(PoisonError::into_inner).remove(&owned);
                    answer
                });
                let asking = async move { task.await.unwrap_or(PeerAnswer::Unknown) }.boxed().shared();
                all.insert(key.to_owned(), asking.clone());
                asking
            }
        };
        asking.await
    }
}

impl Inner {
    async fn ask_all(&self, key: &str) -> PeerAnswer {
        let started = Instant::now();
        let mut best = PeerAnswer::Unknown;
        let asked = tokio::time::timeout(self.timeout, async {
            let Ok(_permit) = self.permits.acquire().await else { return };
            let members = self.membership.members();
            let others = members.iter().filter(|member| **member != self.own_address);
            let mut answers: FuturesUnordered<_> = others.map(|member| self.ask_one(member, key)).collect();
            while let Some(answer) = answers.next().await {
                if answer.rank() > best.rank() {
                    best = answer;
                }
            }
        })
        .await;
        let outcome = match &best {
            PeerAnswer::Found { .. } => "found",
            PeerAnswer::Gone { .. } => "gone",
            PeerAnswer::Missing => "missing",
            PeerAnswer::Unknown if asked.is_err() => "timeout",
            PeerAnswer::Unknown => "no_answer",
        };
        self.metrics.peer_reads.with_label_values(&[outcome]).inc();
        self.metrics.peer_read_seconds.observe(started.elapsed().as_secs_f64());
        best
    }

    async fn ask_one(&self, member: &str, key: &str) -> PeerAnswer {
        let answer = async {
            let mut url = reqwest::Url::parse(&format!("http://{member}/rpc/cluster")).ok()?;
            url.query_pairs_mut().append_pair("key", key);
            let response = self.http.get(url).send().await.ok()?;
            let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
            let position = header(POSITION_HEADER).and_then(|text| text.parse().ok());
            let timestamp: Option<i64> = header(TIMESTAMP_HEADER).and_then(|text| text.parse().ok());
            match response.status() {
                StatusCode::OK => {
                    let record: OwnedKeyValue = response.json().await.ok()?;
                    // A peer that answers for another key is broken, not informed.
                    (record.key == key).then_some(PeerAnswer::Found { record, position: position? })
                }
                // Without a position it is not a node that answers.
                StatusCode::NOT_FOUND => position.map(|position| match timestamp {
                    Some(timestamp) => PeerAnswer::Gone { timestamp, position },
                    None => PeerAnswer::Missing,
                }),
                _ => None,
            }
        };
        answer.await.unwrap_or(PeerAnswer::Unknown)
    }
}
