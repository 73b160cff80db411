//! The search for the keys in which two nodes differ: ranges whose digests differ are divided, until they are small enough to compare
//! their entries one by one.
//!
//! The two are never asked in the same moment, so what differs may be a key that one of them has applied a write of and the other has not
//! yet. A difference counts if it is seen twice, unchanged, and both nodes had applied at the second time whatever either had at the first: a
//! record that lies where it lay was not replaced meanwhile, so both held it at one position.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bitacora_protocol::Position;
use bitacora_protocol::http::{DigestRanges, KeyBytes, RangeEntry, RangePart};
use tokio::time::sleep;

use crate::api::Failure;

/// Parts of a range at a time. So many of the longest keys fit into a URI.
pub const PARTS: usize = 16;
/// The entries of a range are compared one by one if neither node has more.
const FEW: u64 = 64;
/// Ranges with keys that are not settled yet, until these are looked at again.
const MAX_UNSETTLED: usize = 256;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Keys from one on, up to another one or to the end of all keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub from: KeyBytes,
    pub to: Option<KeyBytes>,
}

/// What is asked about a range.
#[derive(Clone, Copy, Debug)]
pub enum Division<'a> {
    Parts(usize),
    At(&'a [KeyBytes]),
    Entries,
}

/// The two nodes.
pub trait Nodes {
    /// What a node, 0 or 1, holds of a range, in the partitions that are compared.
    async fn ask(&self, node: usize, range: &Range, division: Division<'_>) -> Result<DigestRanges, Failure>;
}

/// What a node holds of a key in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// `None`: bytes that are no record.
    pub position: Option<Position>,
    pub digest: String,
}

/// A key of which the nodes hold something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub key: KeyBytes,
    /// `None` of bytes that are no record.
    pub partition: Option<i32>,
    /// By node; `None`: nothing.
    pub held: [Option<Held>; 2],
}

/// What was found so far.
#[derive(Debug, Default)]
pub struct Found {
    pub differences: Vec<Difference>,
    /// Keys of which it is not known: they are being written, or a node is behind.
    pub undecided: usize,
    /// Entries that were compared, of the one of the nodes that was asked first.
    pub entries: u64,
    pub calls: u64,
    /// Whether there may be more differences than were wanted.
    pub is_cut: bool,
}

/// A range to be compared.
struct Task {
    range: Range,
    /// The node that divides it: the one with more in it, as far as that is known.
    divider: usize,
    /// Whether its entries were not counted yet.
    is_new: bool,
}

/// A difference that may be a write under way.
struct Suspicion {
    difference: Difference,
    /// It is one if it is still so when both nodes have applied everything before this offset.
    settled_at: i64,
}

/// A range of few entries, some of which differed when they were last looked at.
struct Unsettled {
    range: Range,
    suspicions: Vec<Suspicion>,
}

/// The entries of a range at both nodes.
struct Look {
    differences: Vec<Difference>,
    /// By node and partition, the next offset; only of those that can be compared.
    next: [BTreeMap<i32, i64>; 2],
    /// What comes behind, if that is not all.
    rest: Option<Range>,
}

pub struct Search<N> {
    nodes: N,
    limit: usize,
    patience: Duration,
    pub found: Found,
    unsettled: Vec<Unsettled>,
}

impl<N: Nodes> Search<N> {
    /// `limit`: so many differences are enough. `patience`: how long keys that are being written are looked at again.
    pub fn new(nodes: N, limit: usize, patience: Duration) -> Self {
        Self { nodes, limit, patience, found: Found::default(), unsettled: Vec::new() }
    }

    /// Compares everything. What was found is in `found`, also after a failure.
    pub async fn run(&mut self) -> Result<(), Failure> {
        let everything = Range { from: KeyBytes::default(), to: None };
        let mut tasks = vec![Task { range: everything, divider: 0, is_new: true }];
        while let Some(task) = tasks.pop() {
            let (smaller, small) = self.divide(task).await?;
            for range in small {
                if let Some(rest) = self.compare_entries(range).await? {
                    tasks.push(Task { range: rest, divider: 0, is_new: false });
                }
            }
            tasks.extend(smaller);
            if self.unsettled.len() >= MAX_UNSETTLED {
                self.settle().await?;
            }
            if self.found.differences.len() >= self.limit {
                self.found.is_cut = !tasks.is_empty() || !self.unsettled.is_empty();
                self.unsettled.clear();
                break;
            }
        }
        self.settle().await?;
        self.found.differences.sort_by(|a, b| (&a.key, a.partition).cmp(&(&b.key, b.partition)));
        if self.found.differences.len() > self.limit {
            self.found.differences.truncate(self.limit);
            self.found.is_cut = true;
        }
        Ok(())
    }

    async fn ask(
        &mut self,
        node: usize,
        range: &Range,
        division: Division<'_>,
    ) -> Result<DigestRanges, Failure> {
        self.found.calls += 1;
        self.nodes.ask(node, range, division).await
    }

    /// Compares the parts of a range. Returns what is left of it to be divided, the first last, and the parts that differ and are small.
    async fn divide(&mut self, task: Task) -> Result<(Vec<Task>, Vec<Range>), Failure> {
        let Task { range, divider, is_new } = task;
        let first = self.ask(divider, &range, Division::Parts(PARTS)).await?.parts;
        let Some((last, before)) = first.split_last() else { return Ok((Vec::new(), Vec::new())) };
        let at: Vec<_> = before.iter().filter_map(|part| part.to.clone()).collect();
        let covered = Range { from: range.from.clone(), to: last.to.clone() };
        let division = if at.is_empty() { Division::Parts(1) } else { Division::At(&at) };
        let second = self.ask(1 - divider, &covered, division).await?.parts;
        let (mut tasks, mut small, mut end) = (Vec::new(), Vec::new(), None);
        for (one, other) in first.iter().zip(&second).take_while(|(one, other)| one.to == other.to) {
            let from = end.take().unwrap_or_else(|| range.from.clone());
            let part = Range { from, to: one.to.clone() };
            end = one.to.clone();
            if is_new {
                self.found.entries += one.count;
            }
            if is_equal(one, other) {
                continue;
            }
            let has_more = one.count >= other.count;
            // What can't be divided is one key.
            if one.count.max(other.count) <= FEW || has_more && part == range {
                small.push(part);
            } else {
                let divider = if has_more { divider } else { 1 - divider };
                tasks.push(Task { range: part, divider, is_new: false });
            }
        }
        let compared = first.iter().zip(&second).take_while(|(one, other)| one.to == other.to).count();
        let rest = |from: KeyBytes| Range { from, to: range.to.clone() };
        if compared == 0 {
            // The other one has so much in the first part that it did not get to its end.
            if let Some(stopped) = second.first().and_then(|part| part.to.clone()) {
                let begin = Range { from: range.from.clone(), to: Some(stopped.clone()) };
                tasks.push(Task { range: begin, divider: 1 - divider, is_new });
                tasks.push(Task { range: rest(stopped), divider, is_new });
            }
        } else if let Some(end) = end
            && range.to.as_ref() != Some(&end)
        {
            tasks.push(Task { range: rest(end), divider, is_new });
        }
        tasks.reverse();
        Ok((tasks, small))
    }

    /// Asks both nodes for the entries of a range.
    async fn look(&mut self, range: &Range) -> Result<Look, Failure> {
        self.found.calls += 2;
        let ask = |node| self.nodes.ask(node, range, Division::Entries);
        let (a, b) = tokio::try_join!(ask(0), ask(1))?;
        let end = [&a, &b].into_iter().filter_map(end_of).min().cloned();
        let next = [&a, &b].map(|answer| {
            let comparable = answer.partitions.iter().filter(|partition| partition.comparable);
            comparable.map(|partition| (partition.partition, partition.next)).collect()
        });
        let mut held: BTreeMap<(KeyBytes, Option<i32>), [Option<Held>; 2]> = BTreeMap::new();
        for (node, answer) in [a, b].into_iter().enumerate() {
            for RangeEntry { key, position, digest } in answer.entries.unwrap_or_default() {
                if end.as_ref().is_none_or(|end| key < *end) {
                    let of = (key, position.map(|at| at.partition));
                    held.entry(of).or_default()[node] = Some(Held { position, digest });
                }
            }
        }
        let differences = held.into_iter().filter(|(_, [a, b])| a != b);
        let differences =
            differences.map(|((key, partition), held)| Difference { key, partition, held }).collect();
        let rest = end.filter(|end| range.to.as_ref() != Some(end));
        Ok(Look { differences, next, rest: rest.map(|from| Range { from, to: range.to.clone() }) })
    }

    /// Compares the entries of a range. What can't be told yet is kept. Returns what comes behind, if that was not all.
    async fn compare_entries(&mut self, range: Range) -> Result<Option<Range>, Failure> {
        let look = self.look(&range).await?;
        let end = look.rest.as_ref().map(|rest| rest.from.clone());
        let range = Range { to: end.or(range.to), ..range };
        let suspicions: Vec<_> =
            look.differences.into_iter().map(|difference| suspicion(difference, &look.next)).collect();
        if !suspicions.is_empty() {
            let unsettled = self.look_again(Unsettled { range, suspicions }).await?;
            self.unsettled.extend(unsettled);
        }
        Ok(look.rest)
    }

    /// Looks at a range once more; returns what is still not settled.
    async fn look_again(&mut self, before: Unsettled) -> Result<Option<Unsettled>, Failure> {
        let Unsettled { range, suspicions } = before;
        let Look { differences, next, rest } = self.look(&range).await?;
        let is_beyond = |key: &KeyBytes| rest.as_ref().is_some_and(|rest| *key >= rest.from);
        let mut left = Vec::new();
        for before in suspicions {
            let Difference { key, partition, .. } = &before.difference;
            match differences.iter().find(|now| (&now.key, now.partition) == (key, *partition)) {
                // What has become too much for one look is not settled by it.
                None if is_beyond(key) => left.push(before),
                // They hold the same by now. So they do if a key differs that did not before: it was written meanwhile.
                None => {}
                Some(now) if *now != before.difference => left.push(suspicion(now.clone(), &next)),
                Some(_) if has_applied(&next, *partition, before.settled_at) => {
                    self.found.differences.push(before.difference);
                }
                Some(_) => left.push(before),
            }
        }
        Ok((!left.is_empty()).then_some(Unsettled { range, suspicions: left }))
    }

    /// Looks at what is not settled again and again, as long as there is patience; what then is not is undecided.
    async fn settle(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        while !self.unsettled.is_empty() && began.elapsed() < self.patience {
            sleep(PAUSE).await;
            for unsettled in std::mem::take(&mut self.unsettled) {
                let unsettled = self.look_again(unsettled).await?;
                self.unsettled.extend(unsettled);
            }
        }
        self.found.undecided += self.unsettled.drain(..).map(|range| range.suspicions.len()).sum::<usize>();
        Ok(())
    }
}

fn is_equal(one: &RangePart, other: &RangePart) -> bool {
    (one.count, &one.digest) == (other.count, &other.digest)
}

/// The key up to which an answer goes; `None`: the end of all keys.
fn end_of(answer: &DigestRanges) -> Option<&KeyBytes> {
    answer.parts.last().and_then(|part| part.to.as_ref())
}

/// Of a difference that was seen when the nodes were so far.
fn suspicion(difference: Difference, next: &[BTreeMap<i32, i64>; 2]) -> Suspicion {
    let settled_at = difference.partition.map_or(0, |partition| {
        next.iter().filter_map(|next| next.get(&partition)).copied().max().unwrap_or_default()
    });
    Suspicion { difference, settled_at }
}

/// Whether both nodes have applied everything of a partition before this offset, and lack nothing of it.
fn has_applied(next: &[BTreeMap<i32, i64>; 2], partition: Option<i32>, offset: i64) -> bool {
    // Bytes that are no record are no write under way.
    partition.is_none_or(|partition| {
        next.iter().all(|next| next.get(&partition).is_some_and(|next| *next >= offset))
    })
}

#[cfg(test)]
mod tests;
