//! Whether the members hold the same: each is asked for its digests, and those at equal positions are compared (`docs/digests.md`).

mod ranges;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bitacora_protocol::NextOffset;
use bitacora_protocol::http::{self, DigestDifference, DigestsAnswer};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::cluster::Membership;
use crate::http_client::{MemberClient, MemberClients};
use crate::log::LogTag;
use crate::metrics::Metrics;
use crate::replication::progress::Progress;
use crate::service::members::Question;
use crate::store::{Digest, DigestPoint, FORMAT, PartitionDigests, Store};

/// Between two questions to each member.
const INTERVAL: Duration = Duration::from_secs(5);
/// Points in an answer, at most, but for one of each partition. Each takes some 70 bytes.
const MAX_POINTS: usize = 4_096;
/// A member that takes longer does not answer.
const DIGESTS: Question = Question {
    path: "/status/digests",
    name: "digests",
    max_bytes: 1 << 20,
    timeout: Duration::from_secs(2),
};
/// Comparisons one after the other that must find a difference until it is told: a member that has not heard of it yet that the log lost
/// records differs for a moment.
const CONFIRMATIONS: u32 = 2;

/// A member that has not answered so often one after the other is named in the log: half a minute.
const FAILURES_BEFORE_LINE: u32 = 6;

/// Compares what this node holds with what the others do.
pub struct Digests {
    http: MemberClient,
    membership: Arc<dyn Membership>,
    own_address: String,
    store: Arc<Store>,
    progress: Arc<Progress>,
    metrics: Arc<Metrics>,
    /// By member and partition.
    differences: Mutex<BTreeMap<(String, i32), Difference>>,
    /// How often one after the other each member has not answered.
    failed: Mutex<BTreeMap<String, u32>>,
    /// For those who look at ranges.
    scans: Arc<Semaphore>,
}

/// A partition of which a member holds something else than this node.
#[derive(Clone, Debug)]
struct Difference {
    /// How many comparisons have found it since the last that did not.
    found: u32,
    next: NextOffset,
    own: Digest,
    theirs: Digest,
}

impl Digests {
    /// `own_address`: `host:API_PORT` as the membership lists this node.
    ///
    /// # Errors
    /// When the HTTP client can't be built.
    pub fn new(
        clients: &MemberClients,
        membership: Arc<dyn Membership>,
        own_address: String,
        store: Arc<Store>,
        progress: Arc<Progress>,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let http = clients.build(|http| http.timeout(DIGESTS.timeout))?;
        let (differences, failed) = Default::default();
        let scans = Arc::new(Semaphore::new(ranges::MAX_CONCURRENT_SCANS));
        Ok(Self { http, membership, own_address, store, progress, metrics, differences, failed, scans })
    }

    /// What this node answers who asks for its digests: those of a store that may be read, and none of any other.
    #[must_use]
    pub fn answer(&self) -> DigestsAnswer {
        let (log, partitions) = self.own();
        let most = (MAX_POINTS / partitions.len().max(1)).max(1);
        let of = |digests: &PartitionDigests| {
            let mut points: Vec<_> = digests.points().rev().take(most).map(written).collect();
            points.reverse();
            http::PartitionDigests { partition: digests.partition, points }
        };
        let partitions = partitions.iter().map(of).collect();
        DigestsAnswer { format: Cow::Borrowed(FORMAT), log: format!("{:x}", log.0), partitions }
    }

    /// By partition, that of what the store holds now; `None` while it may lack something.
    pub fn now(&self) -> impl Iterator<Item = Option<http::DigestPoint>> {
        self.own().1.into_iter().map(|digests| digests.now.as_ref().map(written))
    }

    /// What differs now, and has been found more than once.
    #[must_use]
    pub fn differences(&self) -> Vec<DigestDifference> {
        let differences = self.differences.lock();
        let told = differences.iter().filter(|(_, difference)| difference.found >= CONFIRMATIONS);
        told.map(|((member, partition), difference)| DigestDifference {
            member: member.clone(),
            partition: *partition,
            next: difference.next.0,
            own: difference.own.to_string(),
            theirs: difference.theirs.to_string(),
        })
        .collect()
    }

    /// Compares, again and again.
    pub async fn run(self: Arc<Self>) {
        loop {
            sleep(INTERVAL).await;
            self.round().await;
        }
    }

    /// Asks each of the others once.
    async fn round(&self) {
        let members = self.membership.members();
        let others: Vec<_> = members.iter().filter(|member| **member != self.own_address).collect();
        let answers = join_all(others.iter().map(|member| DIGESTS.ask(&self.http, member))).await;
        for (member, answer) in others.iter().zip(&answers) {
            match answer {
                Ok(answer) => {
                    self.failed.lock().remove(member.as_str());
                    self.compare(member, answer);
                }
                Err(why) => self.note_failed(member, why),
            }
        }
        self.failed.lock().retain(|member, _| others.contains(&member));
        self.differences.lock().retain(|(member, _), _| others.contains(&member));
        self.count_differences();
    }

    /// Says once of a member that it has not answered for a while, as an older node never does, which knows no such path.
    fn note_failed(&self, member: &str, why: &str) {
        let mut failed = self.failed.lock();
        let count = failed.entry(member.to_owned()).or_default();
        *count = count.saturating_add(1);
        if *count == FAILURES_BEFORE_LINE {
            tracing::warn!(member, "what this node holds is not compared with what this member does: {why}");
        }
    }

    /// Those of a store that may be read, and the log that they are of.
    fn own(&self) -> (LogTag, Vec<PartitionDigests>) {
        if !self.progress.restored() || self.store.is_building() {
            return (LogTag::default(), Vec::new());
        }
        // Whoever reads the store is told an error.
        self.store.digests().unwrap_or_default()
    }

    /// Holds a member's answer against what this node has.
    fn compare(&self, member: &str, answer: &DigestsAnswer) {
        // First the answer, then this: of a member that is behind, this node knows what it had at its position.
        let (log, own) = self.own();
        let of_this_log = u64::from_str_radix(&answer.log, 16).is_ok_and(|of| LogTag(of) == log);
        if !of_this_log || answer.format != FORMAT {
            return;
        }
        for http::PartitionDigests { partition, points } in &answer.partitions {
            let own = own.iter().find(|own| own.partition == *partition);
            let Some((own, theirs)) = own.and_then(|own| last_in_common(own, points)) else {
                continue;
            };
            self.note(member, *partition, own, theirs);
        }
    }

    /// What a comparison came to.
    fn note(&self, member: &str, partition: i32, own: DigestPoint, theirs: Digest) {
        let outcome = if own.digest == theirs { "equal" } else { "differs" };
        self.metrics.digest_comparisons.with_label_values(&[outcome]).inc();
        let mut differences = self.differences.lock();
        let of = (member.to_owned(), partition);
        if own.digest == theirs {
            let ended = differences.remove(&of);
            if ended.is_some_and(|ended| ended.found >= CONFIRMATIONS) {
                let next = own.next.0;
                tracing::info!(partition, next, member, "this node and this member hold the same again");
            }
            return;
        }
        let found = differences.get(&of).map_or(0, |known| known.found).saturating_add(1);
        differences.insert(of, Difference { found, next: own.next, own: own.digest, theirs });
        if found == CONFIRMATIONS {
            tracing::error!(
                partition,
                next = own.next.0,
                member,
                own = %own.digest,
                theirs = %theirs,
                "this node and this member hold other records of this partition, with everything before the offset 'next' applied; \
                 one of them is wrong, see BitacoraReplicasDiffer in OPERATIONS.md"
            );
        }
    }

    /// For the metrics.
    fn count_differences(&self) {
        let mut counts: BTreeMap<i32, i64> =
            (0..).zip(self.progress.next_offsets()).map(|(partition, _)| (partition, 0)).collect();
        for difference in self.differences() {
            *counts.entry(difference.partition).or_default() += 1;
        }
        for (partition, count) in counts {
            self.metrics.digest_differs.with_label_values(&[partition.to_string()]).set(count);
        }
    }
}

fn written(point: &DigestPoint) -> http::DigestPoint {
    http::DigestPoint { next: point.next.0, digest: point.digest.to_string() }
}

/// The last position that both name, with what each says of it.
fn last_in_common(own: &PartitionDigests, theirs: &[http::DigestPoint]) -> Option<(DigestPoint, Digest)> {
    own.points().rev().find_map(|own| {
        let same = theirs.iter().find(|theirs| theirs.next == own.next.0)?;
        Some((*own, Digest(u128::from_str_radix(&same.digest, 16).ok()?)))
    })
}

#[cfg(test)]
mod tests;
