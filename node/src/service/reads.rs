//! What a get means: the local store first, the other members when the store may not have it yet.

use std::sync::Arc;

use bitacora_protocol::Position;
use bitacora_protocol::record::{KeyValue, source};
use bitacora_protocol::rpc::ServedFrom;

use crate::log::LogTag;
use crate::replication::progress::Progress;
use crate::service::memory::{Memory, OutOfMemory, Permit};
use crate::service::peers::{PeerAnswer, PeerRecord, Peers};
use crate::store::{Entry, FoundTogether, SnapshotRead, State, Store, StoreError, Tier, UuidText};

pub struct Reads {
    store: Arc<Store>,
    progress: Arc<Progress>,
    peers: Peers,
    ask_peers: PeerReads,
}

/// What is known of a key.
#[derive(Debug)]
pub struct Answer {
    pub found: LookupResult,
    /// The position that the answer reflects.
    pub position: Position,
    pub from: ServedFrom,
    /// For what was found, where that waits for something before it is answered.
    pub memory: Option<Permit>,
}

/// What this node's store knows of a key.
#[derive(Debug)]
pub struct OwnAnswer {
    pub answer: Answer,
    pub log: LogTag,
    /// Whether that may not be what the log says.
    pub in_doubt: bool,
}

impl Answer {
    #[must_use]
    pub fn new(found: LookupResult, position: Position, from: ServedFrom) -> Self {
        Self { found, position, from, memory: None }
    }

    /// Counts what was found against the node's memory until the answer is dropped: for one that takes its place behind others,
    /// as the results of a batch do.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn count(&mut self, memory: &Memory) -> Result<(), OutOfMemory> {
        let bytes = self.bytes();
        if bytes > 0 {
            self.memory = Some(memory.take(bytes)?);
        }
        Ok(())
    }

    /// The record that was found, as it is answered; see [`Entry::record`].
    #[must_use]
    pub fn record<'a>(&'a self, uuid: &'a mut UuidText) -> Option<KeyValue<'a>> {
        match &self.found {
            // Checked before it was stored, so it can be decoded.
            LookupResult::Local(entry) => entry.answer(uuid),
            LookupResult::Peer(record) => Some(KeyValue { source: source::CLUSTER, ..record.as_borrowed() }),
            LookupResult::Gone { .. } | LookupResult::Missing => None,
        }
    }

    /// The memory of what was found; 0 if nothing was, or if another member's answer counts its own.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.found {
            LookupResult::Local(entry) => entry.bytes(),
            LookupResult::Peer(_) | LookupResult::Gone { .. } | LookupResult::Missing => 0,
        }
    }

    /// The `outcome` label of the metrics.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match &self.found {
            LookupResult::Local(_) | LookupResult::Peer(_) => "found",
            LookupResult::Gone { .. } | LookupResult::Missing => "missing",
        }
    }

    /// The write timestamp of the record or marker that decided it, ms since the epoch; `None` if there is none.
    #[must_use]
    pub fn timestamp(&self) -> Option<i64> {
        match &self.found {
            LookupResult::Local(entry) => Some(entry.timestamp().ms()),
            LookupResult::Peer(record) => Some(record.timestamp),
            LookupResult::Gone { timestamp } => Some(*timestamp),
            LookupResult::Missing => None,
        }
    }
}

#[derive(Debug)]
pub enum LookupResult {
    /// A record of this node's store; it is live, so it can be decoded.
    Local(Entry),
    /// A record of another member.
    Peer(Arc<PeerRecord>),
    /// Deleted or expired, by a record with this write timestamp.
    Gone { timestamp: i64 },
    /// No record.
    Missing,
}

/// When a key that is missing here is asked of the other members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PeerReads {
    /// while this node is not caught up with the log
    Auto,
    /// on every miss
    Always,
    Never,
}

#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// The node does not know: its store is not restored, and no other member could say.
    #[error(
        "this node is still restoring its store and no other member could say whether the key exists; try again"
    )]
    NotRestored,
    /// Another member has the key, and its answer found no memory.
    #[error(
        "another member has this key, but that member's memory for requests, or this node's, is spent (REQUEST_MEMORY); try again"
    )]
    OutOfMemory,
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn served_from(tier: Tier) -> ServedFrom {
    match tier {
        Tier::Cache => ServedFrom::Cache,
        Tier::Store => ServedFrom::Store,
    }
}

impl Reads {
    #[must_use]
    pub fn new(store: Arc<Store>, progress: Arc<Progress>, peers: Peers, ask_peers: PeerReads) -> Self {
        Self { store, progress, peers, ask_peers }
    }

    /// The entries that [`Reads::at_once`] would answer these keys with, as far as they are cached; none if the store is not restored. At
    /// most [`Store::MOST_TOGETHER`] keys make sense.
    pub fn cached(&self, keys: &[&[u8]]) -> FoundTogether {
        if self.progress.restored() { self.store.get_cached(keys) } else { FoundTogether::new() }
    }

    /// The answer with an entry of [`Reads::cached`].
    #[must_use]
    pub fn answer_cached(&self, entry: Entry) -> Answer {
        self.answer_of(entry, Tier::Cache)
    }

    /// The newest record of a key that this node, or else the cluster, knows.
    ///
    /// # Errors
    /// When the store fails or the node can't know.
    pub async fn get(&self, key: &str) -> Result<Answer, GetError> {
        if let Some(answer) = self.at_once(key)? {
            return Ok(answer);
        }
        let asked = self.ask_while_applying(key).await?;
        self.settle(key, asked)
    }

    /// The answer of [`Reads::get`], once the others were asked.
    ///
    /// # Errors
    /// As [`Reads::get`].
    pub fn settle(&self, key: &str, asked: PeerAnswer) -> Result<Answer, GetError> {
        // What the log delivered meanwhile wins.
        let local = self.local(key)?;
        let restored = self.progress.restored();
        match (local, asked) {
            (Some(answer), _) if restored => Ok(answer),
            (Some(answer), PeerAnswer::Found { record, position })
                if (answer.timestamp(), answer.position.offset)
                    >= (Some(record.timestamp), position.offset) =>
            {
                Ok(answer)
            }
            (Some(answer), PeerAnswer::Gone { timestamp, position })
                if (answer.timestamp(), answer.position.offset) >= (Some(timestamp), position.offset) =>
            {
                Ok(answer)
            }
            (_, PeerAnswer::Found { record, position }) => {
                Ok(Answer::new(LookupResult::Peer(record), position, ServedFrom::Peer))
            }
            (_, PeerAnswer::Gone { timestamp, position }) => {
                Ok(Answer::new(LookupResult::Gone { timestamp }, position, ServedFrom::Peer))
            }
            (_, PeerAnswer::OutOfMemory) => Err(GetError::OutOfMemory),
            (_, PeerAnswer::Missing) => {
                let position = self.progress.applied_for(key.as_bytes());
                Ok(Answer::new(LookupResult::Missing, position, ServedFrom::Peer))
            }
            (_, PeerAnswer::Unknown) => self.missing(key, ServedFrom::Store),
        }
    }

    /// The answer of [`Reads::get`] where nobody else need be asked; `None` where the other members must be.
    ///
    /// # Errors
    /// As [`Reads::get`].
    pub fn at_once(&self, key: &str) -> Result<Option<Answer>, GetError> {
        // A store that is being restored may hold a record that the rest of the log replaces or deletes, so what it
        // holds is only an answer beside the others'.
        if self.progress.restored()
            && let Some(answer) = self.local(key)?
        {
            return Ok(Some(answer));
        }
        let ask = match self.ask_peers {
            PeerReads::Always => true,
            PeerReads::Never => false,
            PeerReads::Auto => !self.progress.caught_up(),
        };
        if ask { Ok(None) } else { self.missing(key, ServedFrom::Store).map(Some) }
    }

    /// As [`Reads::get`], of this node alone, and the log that the answer is of.
    ///
    /// # Errors
    /// When the store fails, or is not restored: the rest of the log may replace or delete what it holds.
    pub fn get_local(&self, key: &str) -> Result<(Answer, LogTag), GetError> {
        let (found, log) = self.store.get_with_log(key.as_bytes())?;
        let answer = match found {
            Some((entry, tier)) if self.progress.restored() => self.answer_of(entry, tier),
            _ => self.missing(key, ServedFrom::Store)?,
        };
        // The position of a miss, and whether the store is restored, may be another log's by now.
        if self.store.log() == log { Ok((answer, log)) } else { Err(GetError::NotRestored) }
    }

    /// What this node's store holds of a key, of one moment; whether or not it is restored.
    ///
    /// # Errors
    /// When the store fails.
    pub fn snapshot(&self, key: &str) -> Result<SnapshotRead, GetError> {
        Ok(self.store.snapshot_read(key.as_bytes())?)
    }

    /// The newest record of a key that this node's store has, the log that it is of, and whether it is in doubt.
    ///
    /// # Errors
    /// When the store fails, or is not restored.
    pub fn get_own(&self, key: &str) -> Result<OwnAnswer, GetError> {
        // Of before the store is read, so that a miss is never told of a later position than it is of.
        let position = self.progress.applied_for(key.as_bytes());
        let SnapshotRead { entry, in_doubt, log } = self.snapshot(key)?;
        if !self.progress.restored() {
            return Err(GetError::NotRestored);
        }
        let answer = match entry {
            Some(entry) => self.answer_of(entry, Tier::Store),
            None => Answer::new(LookupResult::Missing, position, ServedFrom::Store),
        };
        Ok(OwnAnswer { answer, log, in_doubt })
    }

    fn local(&self, key: &str) -> Result<Option<Answer>, StoreError> {
        Ok(self.store.get(key.as_bytes())?.map(|(entry, tier)| self.answer_of(entry, tier)))
    }

    fn answer_of(&self, entry: Entry, tier: Tier) -> Answer {
        let head = entry.head();
        let found = match head.state_by(&**self.progress.clock()) {
            State::Live => LookupResult::Local(entry),
            State::Deleted | State::Expired => LookupResult::Gone { timestamp: head.timestamp.ms() },
        };
        Answer::new(found, head.position, served_from(tier))
    }

    fn missing(&self, key: &str, from: ServedFrom) -> Result<Answer, GetError> {
        if !self.progress.restored() {
            return Err(GetError::NotRestored);
        }
        Ok(Answer::new(LookupResult::Missing, self.progress.applied_for(key.as_bytes()), from))
    }

    /// Asks the other members, but ends at once when the log delivers the key.
    async fn ask_while_applying(&self, key: &str) -> Result<PeerAnswer, StoreError> {
        let mut applied = self.progress.watch();
        let mut asked = std::pin::pin!(self.peers.ask(key, self.store.log()));
        loop {
            tokio::select! {
                answer = &mut asked => return Ok(answer),
                _ = applied.changed() => {
                    if self.progress.restored() && self.local(key)?.is_some() {
                        return Ok(PeerAnswer::Unknown);
                    }
                }
            }
        }
    }
}
