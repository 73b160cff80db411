//! Who shows a write before it is answered: this node, or every member.

use std::sync::Arc;
use std::time::Duration;

use bitacora_protocol::http::LOG_HEADER;
use bitacora_protocol::{Position, Visible, WriteOptions};
use futures_util::future::join_all;
use reqwest::StatusCode;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::cluster::Membership;
use crate::http_client::{MemberClient, MemberClients};
use crate::log::LogTag;
use crate::replication::progress::Progress;
use crate::service::consistency::{ConsistencyError, wait_time};
use crate::service::memory::{Memory, Permit};
use crate::service::writes::Written;
use crate::store::Store;

/// Members asked at a time; each question is a connection of its own, here and there.
const MAX_CONCURRENT_QUESTIONS: usize = 256;

/// What waits for a write to be shown takes of the node's memory, beside its key.
const WAIT_BYTES: usize = 1024;

/// Waits until writes are shown.
pub struct Visibility {
    http: MemberClient,
    membership: Arc<dyn Membership>,
    progress: Arc<Progress>,
    store: Arc<Store>,
    /// `host:API_PORT`, as the membership lists this node.
    own_address: String,
    questions: Semaphore,
}

/// A write that is to be shown before it is answered.
pub struct Showing {
    visibility: Arc<Visibility>,
    visible: Visible,
    key: String,
    timeout: Duration,
    _memory: Permit,
}

impl Showing {
    /// Waits for it, and notes in the acknowledged write who did not show it in time.
    pub async fn wait(showing: Option<Self>, mut written: Written) -> Written {
        if let Some(Self { visibility, visible, key, timeout, _memory }) = &showing {
            let deadline = Instant::now() + *timeout;
            written.not_visible = visibility.shown(*visible, key, written.appended.position, deadline).await;
        }
        written
    }
}

impl Visibility {
    /// # Errors
    /// When the HTTP client can't be built.
    pub fn new(
        clients: &MemberClients,
        membership: Arc<dyn Membership>,
        progress: Arc<Progress>,
        store: Arc<Store>,
        own_address: String,
    ) -> anyhow::Result<Self> {
        let http = clients.build(|http| http.tcp_nodelay(true))?;
        let questions = Semaphore::new(MAX_CONCURRENT_QUESTIONS);
        Ok(Self { http, membership, progress, store, own_address, questions })
    }

    /// What is to be waited for once a write of a key is acknowledged; `None` for nothing.
    ///
    /// # Errors
    /// When it would be waited for too long, or there is no memory for it.
    pub fn of_write(
        self: &Arc<Self>,
        key: &str,
        write: &WriteOptions<'_>,
        memory: &Memory,
    ) -> Result<Option<Showing>, ConsistencyError> {
        let timeout = wait_time(write.timeout)?;
        if write.visible == Visible::Acknowledged {
            return Ok(None);
        }
        let memory = memory.take(WAIT_BYTES + key.len())?;
        let (visibility, visible, key) = (Arc::clone(self), write.visible, key.to_owned());
        Ok(Some(Showing { visibility, visible, key, timeout, _memory: memory }))
    }

    /// Waits until everybody who is asked for has applied a position of a key's partition, no longer than until the deadline.
    /// Returns the members that have not, or did not say so: `host:API_PORT` of each.
    async fn shown(&self, visible: Visible, key: &str, position: Position, deadline: Instant) -> Vec<String> {
        let here = async {
            let applied =
                visible == Visible::Acknowledged || self.progress.applied(position, deadline).await.is_ok();
            (!applied).then(|| self.own_address.clone())
        };
        let members = match visible {
            Visible::All => self.membership.members(),
            Visible::Acknowledged | Visible::Here => Arc::default(),
        };
        let log = self.store.log();
        let others = members.iter().filter(|member| **member != self.own_address).map(|member| async move {
            let asked = timeout_at(deadline, self.shows(member, key, position, log, deadline)).await;
            (!asked.unwrap_or(false)).then(|| member.clone())
        });
        let (here, others) = tokio::join!(here, join_all(others));
        here.into_iter().chain(others.into_iter().flatten()).collect()
    }

    /// Whether another member says that it has applied a position. One that does not know the question refuses it.
    async fn shows(
        &self,
        member: &str,
        key: &str,
        position: Position,
        log: LogTag,
        deadline: Instant,
    ) -> bool {
        let Ok(_permit) = self.questions.acquire().await else { return false };
        let Some(mut url) = self.http.url(member, "/rpc/cluster") else { return false };
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        url.query_pairs_mut()
            .append_pair("key", key)
            .append_pair("consistency", "session")
            .append_pair("position", &position.to_string())
            .append_pair("timeout", &format!("{left}ms"));
        let Ok(answer) = self.http.head(url).send().await else { return false };
        let of = answer.headers().get(LOG_HEADER).and_then(|of| of.to_str().ok());
        let of = of.and_then(|of| u64::from_str_radix(of, 16).ok());
        let knows = matches!(answer.status(), StatusCode::OK | StatusCode::NOT_FOUND);
        knows && of.is_some_and(|of| LogTag(of).fits(log))
    }
}
