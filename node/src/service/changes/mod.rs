//! What has changed: to who watches over HTTP, and to who asks again and again over HTTP or RPC. See `docs/watch.md` for what is
//! promised.

mod call;
mod ends;
mod pages;
mod reader;
#[cfg(test)]
mod tests;
mod token;

use std::sync::Arc;
use std::time::Duration;

use bitacora_protocol::Position;
use tokio::sync::OwnedSemaphorePermit;

pub use self::call::ChangesAnswer;
pub use self::ends::LogEnds;
use self::pages::Pages;
pub use self::reader::{Ended, Reader, Told, What};
pub use self::token::{NoToken, Token};
use crate::clock::{LogTime, WallTime};
use crate::log::LogTag;
use crate::metrics::{Counted, Metrics};
use crate::permits::Permits;
use crate::replication::feed::{Feed, Kind};
use crate::replication::progress::Progress;
use crate::service::consistency::ConsistentReads;
use crate::service::error::ErrorKind;
use crate::service::memory::{Memory, OutOfMemory, Permit};
use crate::service::writes::{KeyError, MAX_KEY_BYTES, check_key};
use crate::store::{Entry, KeyRange, Store};

/// Events in an answer, at most.
pub const MAX_LIMIT: i32 = 1_000;
/// How long a call may wait for an event.
pub const MAX_WAIT: Duration = Duration::from_secs(60);
/// What somebody who follows takes beside what is on the way to them.
const WATCHER_BYTES: usize = 2 * 1024;

/// What all who follow changes share.
pub struct Changes {
    store: Arc<Store>,
    progress: Arc<Progress>,
    feed: Arc<Feed>,
    consistent: Arc<ConsistentReads>,
    memory: Memory,
    metrics: Arc<Metrics>,
    pages: Pages,
    watchers: Permits,
    /// A token that is older may lack deletes that have left the log; `None` if none ever do.
    retention: Option<Duration>,
}

/// What these are made of.
pub struct Parts {
    pub store: Arc<Store>,
    pub progress: Arc<Progress>,
    pub feed: Arc<Feed>,
    pub consistent: Arc<ConsistentReads>,
    pub memory: Memory,
    pub metrics: Arc<Metrics>,
    /// `MAX_WATCHERS`
    pub watchers: Permits,
    pub retention: Option<Duration>,
}

/// What somebody wants to be told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// A token; empty for none.
    pub since: &'a str,
    pub prefix: &'a str,
    /// The only key; `None` for all with the prefix.
    pub key: Option<&'a str>,
    /// Without a token: begins with what is there.
    pub initial: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    #[error("limit is {0}; an answer has 1 to {MAX_LIMIT} events")]
    Limit(i32),
    #[error("wait is {ms} ms; a call waits for {} s at most", MAX_WAIT.as_secs())]
    Wait { ms: u128 },
    #[error("prefix has {0} bytes; a key has at most {MAX_KEY_BYTES}")]
    TooLong(usize),
    #[error("give a prefix or a key, not both")]
    PrefixAndKey,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    NoToken(#[from] NoToken),
    #[error("this node is still restoring its store; try again, or ask another node")]
    NotRestored,
    #[error("this node is stopping; go on at another node")]
    Stopping,
    #[error("{0} follow changes at this node already (MAX_WATCHERS); try again, or ask another node")]
    TooMany(u32),
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
}

impl ChangesError {
    /// What kind of error it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Limit(_)
            | Self::Wait { .. }
            | Self::TooLong(_)
            | Self::PrefixAndKey
            | Self::Key(_)
            | Self::NoToken(_) => ErrorKind::BadRequest,
            Self::NotRestored | Self::Stopping | Self::TooMany(_) => ErrorKind::NotReady,
            Self::Memory(_) => ErrorKind::OutOfMemory,
            Self::Store(_) => ErrorKind::Internal,
        }
    }
}

/// The place of somebody who follows changes, until it is dropped.
pub struct Place {
    _permit: OwnedSemaphorePermit,
    _memory: Permit,
    _counted: Counted,
}

impl Changes {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { store, progress, feed, consistent, memory, metrics, watchers, retention } = parts;
        let pages = Pages::new(Arc::clone(&store), memory.clone(), metrics.watch_pages_waiting.clone());
        Self { store, progress, feed, consistent, memory, metrics, pages, watchers, retention }
    }

    /// The budget that what is sent is counted against.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Begins to follow.
    ///
    /// # Errors
    /// When what is wanted makes no sense, or the node can't tell now.
    pub fn begin(self: &Arc<Self>, wanted: &Wanted<'_>) -> Result<Reader, ChangesError> {
        let range = range(wanted)?;
        let token = match wanted.since {
            "" => None,
            text => Some(Token::decode(text)?),
        };
        if self.feed.is_closed() {
            return Err(ChangesError::Stopping);
        }
        let view = self.feed.begin().filter(|_| self.progress.restored());
        let view = view.ok_or(ChangesError::NotRestored)?;
        let permit = self.watchers.try_acquire();
        let permit = permit.ok_or_else(|| ChangesError::TooMany(self.watchers.limit()))?;
        let memory = self.memory.take(WATCHER_BYTES)?;
        let counted = Counted::one(&self.metrics.watchers);
        let place = Place { _permit: permit, _memory: memory, _counted: counted };
        Ok(Reader::new(Arc::clone(self), place, range, &view, token, wanted.initial))
    }

    /// The record of a key if it is the one at a position still.
    pub fn record(&self, key: &str, position: Position) -> Option<Entry> {
        let (entry, _) = self.store.get(key.as_bytes()).ok()??;
        Some(entry).filter(|entry| entry.position() == position && entry.has_record())
    }

    /// Counts what is sent.
    pub fn count(&self, told: &[Told]) {
        let (mut sets, mut deletes, mut gaps) = (0, 0, 0);
        for told in told {
            match &told.what {
                What::Event(event) if event.kind == Kind::Set => sets += 1,
                What::Event(_) => deletes += 1,
                What::Gap(_) => gaps += 1,
            }
        }
        for (event, count) in [("set", sets), ("delete", deletes), ("gap", gaps)] {
            if count > 0 {
                self.metrics.watch_events.with_label_values(&[event]).inc_by(count);
            }
        }
    }

    /// Why a token is of no use here, as far as can be told without the log.
    fn refusal(&self, token: &Token, log: LogTag, range: &KeyRange) -> Option<String> {
        if !token.log.fits(log) {
            return Some("the token is of another log than the one that this node reads".to_owned());
        }
        if token.scan.as_ref().is_some_and(|scan| scan.of != range.digest()) {
            let why = "the token is from before other keys than these were all told; go on with the prefix or key that it came with";
            return Some(why.to_owned());
        }
        let retention = self.retention?;
        let base = token.scan.as_ref().and_then(|scan| scan.base.as_ref());
        let told =
            base.map_or(token.told.expired_until, |base| base.expired_until.min(token.told.expired_until));
        // By either clock: to tell everything anew does no harm.
        let log_time = self.progress.log_time_now().map(LogTime::assuming_clocks_agree);
        let is_older = |now: WallTime| told + retention < now;
        if is_older(self.progress.clock().wall()) || log_time.is_some_and(is_older) {
            return Some(
                "the token is older than DELETE_RETENTION: deletes may have left the log since".to_owned(),
            );
        }
        None
    }
}

fn range(wanted: &Wanted<'_>) -> Result<KeyRange, ChangesError> {
    match wanted.key {
        Some(_) if !wanted.prefix.is_empty() => Err(ChangesError::PrefixAndKey),
        Some(key) => {
            check_key(key)?;
            Ok(KeyRange::One(key.into()))
        }
        None if wanted.prefix.len() > MAX_KEY_BYTES => Err(ChangesError::TooLong(wanted.prefix.len())),
        None => Ok(KeyRange::Prefix(wanted.prefix.into())),
    }
}
