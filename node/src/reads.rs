//! What a get means: the local store first, the other members when the store may not have it yet.

use std::sync::Arc;

use bitacora_client::wire::{OwnedKeyValue, Position};

use crate::now_ms;
use crate::peers::{PeerAnswer, Peers};
use crate::progress::Progress;
use crate::settings::PeerReads;
use crate::store::{Entry, State, Store, StoreError, Tier};

pub struct Reads {
    store: Arc<Store>,
    progress: Arc<Progress>,
    peers: Peers,
    ask_peers: PeerReads,
}

/// What is known of a key.
#[derive(Debug)]
pub struct Answer {
    pub found: Found,
    /// The position that the answer reflects.
    pub position: Position,
    pub from: From,
}

impl Answer {
    /// The write timestamp of the record that decided it, ms since the epoch; 0 if there is none.
    fn timestamp(&self) -> i64 {
        match &self.found {
            Found::Local(entry) => entry.timestamp(),
            Found::Peer(record) => record.timestamp,
            Found::Gone { timestamp } => *timestamp,
            Found::Missing => 0,
        }
    }
}

#[derive(Debug)]
pub enum Found {
    /// A record of this node's store; it is live, so it can be decoded.
    Local(Entry),
    /// A record of another member.
    Peer(OwnedKeyValue),
    /// Deleted or expired, by a record with this write timestamp.
    Gone { timestamp: i64 },
    /// No record.
    Missing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Local(Tier),
    Peer,
}

#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// The node does not know: its store is not restored, and no other member could say.
    #[error(
        "this node is still restoring its store and no other member could say whether the key exists; try again"
    )]
    NotRestored,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Reads {
    #[must_use]
    pub fn new(store: Arc<Store>, progress: Arc<Progress>, peers: Peers, ask_peers: PeerReads) -> Self {
        Self { store, progress, peers, ask_peers }
    }

    /// The newest record of a key that this node, or else the cluster, knows.
    ///
    /// # Errors
    /// When the store fails or the node can't know.
    pub async fn get(&self, key: &str) -> Result<Answer, GetError> {
        // A store that is being restored may hold a record that the rest of the log replaces or deletes, so what it
        // holds is only an answer beside the others'.
        let restored = self.progress.restored();
        if restored && let Some(answer) = self.local(key)? {
            return Ok(answer);
        }
        let ask = match self.ask_peers {
            PeerReads::Always => true,
            PeerReads::Never => false,
            PeerReads::Auto => !self.progress.caught_up(),
        };
        if !ask {
            return self.missing(key, From::Local(Tier::Store));
        }
        let asked = self.ask_while_applying(key).await?;
        // What the log delivered meanwhile wins.
        let local = self.local(key)?;
        let restored = restored || self.progress.restored();
        match (local, asked) {
            (Some(answer), _) if restored => Ok(answer),
            (Some(answer), PeerAnswer::Found { record, position })
                if (answer.timestamp(), answer.position.offset) >= (record.timestamp, position.offset) =>
            {
                Ok(answer)
            }
            (Some(answer), PeerAnswer::Gone { timestamp, position })
                if (answer.timestamp(), answer.position.offset) >= (timestamp, position.offset) =>
            {
                Ok(answer)
            }
            (_, PeerAnswer::Found { record, position }) => {
                Ok(Answer { found: Found::Peer(record), position, from: From::Peer })
            }
            (_, PeerAnswer::Gone { timestamp, position }) => {
                Ok(Answer { found: Found::Gone { timestamp }, position, from: From::Peer })
            }
            (_, PeerAnswer::Missing) => {
                let position = self.progress.applied_for(key.as_bytes());
                Ok(Answer { found: Found::Missing, position, from: From::Peer })
            }
            (_, PeerAnswer::Unknown) => self.missing(key, From::Local(Tier::Store)),
        }
    }

    /// As [`Reads::get`], of this node alone.
    ///
    /// # Errors
    /// When the store fails, or the key is missing from a store that is not restored.
    pub fn get_here(&self, key: &str) -> Result<Answer, GetError> {
        match self.local(key)? {
            Some(answer) => Ok(answer),
            None => self.missing(key, From::Local(Tier::Store)),
        }
    }

    fn local(&self, key: &str) -> Result<Option<Answer>, StoreError> {
        let Some((entry, tier)) = self.store.get(key.as_bytes())? else { return Ok(None) };
        let position = entry.position();
        let found = match entry.state(now_ms()) {
            State::Live => Found::Local(entry),
            State::Deleted | State::Expired => Found::Gone { timestamp: entry.timestamp() },
        };
        Ok(Some(Answer { found, position, from: From::Local(tier) }))
    }

    fn missing(&self, key: &str, from: From) -> Result<Answer, GetError> {
        if !self.progress.restored() {
            return Err(GetError::NotRestored);
        }
        Ok(Answer { found: Found::Missing, position: self.progress.applied_for(key.as_bytes()), from })
    }

    /// Asks the other members, but ends at once when the log delivers the key.
    async fn ask_while_applying(&self, key: &str) -> Result<PeerAnswer, StoreError> {
        let mut applied = self.progress.watch();
        let mut asked = std::pin::pin!(self.peers.ask(key));
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
