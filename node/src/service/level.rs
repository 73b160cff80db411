//! The level of the log: what nodes may write to it. Whoever accepts the first conditional write raises it, once all members say
//! that they know the next level: a node that does not would take what comes for something else.

use std::sync::Arc;
use std::time::Duration;

use bitacora_protocol::http::Status;
use futures_util::future::{join_all, try_join_all};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::cluster::{Membership, MembershipState};
use crate::http_client::{MemberClient, MemberClients, tls_reason};
use crate::log::{Level, NewRecord};
use crate::replication::progress::Progress;
use crate::service::conditional::ConditionalError;
use crate::service::writes::Writes;
use crate::store::Store;

/// How long a member may take to say which level it knows.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(2);
/// A status has a few hundred bytes for each partition and member.
const MAX_STATUS_BYTES: u64 = 4 << 20;

/// Raises the level of the log where a conditional write needs it.
pub struct LogLevel {
    http: MemberClient,
    membership: Arc<dyn Membership>,
    /// `host:API_PORT`, as the membership lists this node.
    own_address: String,
    store: Arc<Store>,
    progress: Arc<Progress>,
    writes: Arc<Writes>,
    /// Held by who raises it.
    raising: Mutex<()>,
}

impl LogLevel {
    /// # Errors
    /// When the HTTP client can't be built.
    pub fn new(
        clients: &MemberClients,
        membership: Arc<dyn Membership>,
        own_address: String,
        store: Arc<Store>,
        progress: Arc<Progress>,
        writes: Arc<Writes>,
    ) -> anyhow::Result<Self> {
        let http = clients.build(|http| http)?;
        Ok(Self { http, membership, own_address, store, progress, writes, raising: Mutex::default() })
    }

    /// That conditional writes may be appended to a partition; raises the level of all that lack it if they may not.
    ///
    /// # Errors
    /// When a member does not know conditional writes or does not answer, or the log does not take the records in time.
    pub async fn raise(&self, partition: i32, deadline: Instant) -> Result<(), ConditionalError> {
        if self.is_raised(partition)? {
            return Ok(());
        }
        let too_late = || ConditionalError::NotMade("the level of the log was not raised in time".to_owned());
        let _raising = timeout_at(deadline, self.raising.lock()).await.map_err(|_| too_late())?;
        if self.is_raised(partition)? {
            return Ok(());
        }
        timeout_at(deadline, self.raise_all(deadline)).await.map_err(|_| too_late())?
    }

    fn is_raised(&self, partition: i32) -> Result<bool, ConditionalError> {
        Ok(self.store.partition_state(partition)?.level >= Level::CONDITIONAL_WRITES)
    }

    async fn raise_all(&self, deadline: Instant) -> Result<(), ConditionalError> {
        self.ask_members().await?;
        let mut lacking = Vec::new();
        for partition in (0..).take(self.progress.partition_count()) {
            if !self.is_raised(partition)? {
                lacking.push(partition);
            }
        }
        let now = self.progress.clock().wall();
        let appends = lacking.into_iter().map(|partition| {
            self.writes.append_record(&NewRecord::level(partition, Level::CONDITIONAL_WRITES, now))
        });
        let appended = try_join_all(appends).await;
        // Those that were taken do no harm.
        let appended = appended.map_err(|error| {
            ConditionalError::NotMade(format!("the level of the log could not be raised: {error}"))
        })?;
        for appended in appended {
            let applied = self.progress.applied(appended.position, deadline).await;
            applied.map_err(|why| ConditionalError::NotMade(why.to_string()))?;
        }
        tracing::info!(
            "conditional writes may be written to the log from now on; nodes that do not know them stop at it"
        );
        Ok(())
    }

    /// That every member knows the level.
    async fn ask_members(&self) -> Result<(), ConditionalError> {
        if let MembershipState::Disconnected { reason } = self.membership.state() {
            let why = format!("who the members are is not known for certain: {reason}");
            return Err(ConditionalError::NotReady(why));
        }
        let members = self.membership.members();
        let others = members.iter().filter(|member| **member != self.own_address);
        let answers = join_all(others.map(async |member| (member, self.ask(member).await))).await;
        for (member, answer) in answers {
            match answer {
                Ok(level) if level >= Level::CONDITIONAL_WRITES.0 => {}
                Ok(_) => {
                    return Err(ConditionalError::NotPossible(format!(
                        "the member {member} runs an older version that does not know them; upgrade it first"
                    )));
                }
                Err(why) => {
                    return Err(ConditionalError::NotReady(format!(
                        "the member {member} does not say whether it knows them: {why}"
                    )));
                }
            }
        }
        Ok(())
    }

    /// The level that a member knows; 0 of one that says none.
    async fn ask(&self, member: &str) -> Result<u32, String> {
        let why =
            |error: reqwest::Error| tls_reason(&error).unwrap_or_else(|| error.without_url().to_string());
        let url = self.http.url(member, "/status").ok_or("it is registered under no address")?;
        let request = self.http.get(url).timeout(MEMBER_TIMEOUT);
        let response = request.send().await.and_then(reqwest::Response::error_for_status).map_err(why)?;
        if response.content_length().is_none_or(|length| length > MAX_STATUS_BYTES) {
            return Err("its status is too large".to_owned());
        }
        Ok(response.json::<Status>().await.map_err(why)?.log_level)
    }
}
