//! A watch: what changes, as a stream that goes on at another node when one dies.

mod pages;

use std::collections::VecDeque;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bitacora_protocol::Position;
use bitacora_protocol::rpc::DeleteReason;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, Stream};

use crate::client::Client;
use crate::connection::Changed;
use crate::error::{Error, Refusal};
use crate::types::Record;
pub(crate) use pages::{Page, Pages, Wanted};

/// How often a token comes while nothing matches.
const PROGRESS: Duration = Duration::from_secs(5);
/// A node waits no longer than this.
const LONGEST_PROGRESS: Duration = Duration::from_secs(60);

impl Client {
    /// Follows what changes, for as long as one likes: a [`Stream`] of [`WatchEvent`]s, made by `.await`ing what this returns.
    ///
    /// It delivers *states, not history*: for each key in the order of the log; states in between may be left out, the last one always
    /// arrives. When its node dies, hangs or stops, it goes on at another one behind what has been received, without a word and for as
    /// long as it takes; an event may come twice then. It ends only after an error that trying again does not mend.
    ///
    /// Each event has a token, with which another watch goes on later, in this process or another, at any node.
    ///
    /// ```
    /// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bitacora_client::Error> {
    /// # let node = support::FakeNode::start().await.address();
    /// # let client = bitacora_client::Client::builder().nodes([node]).build().await?;
    /// use bitacora_client::Watched;
    /// use futures_util::TryStreamExt;
    ///
    /// client.set("cart/7", "a book").await?;
    /// let mut watch = client.watch().prefix("cart/").initial().await?;
    /// let mut token = String::new();
    /// while let Some(event) = watch.try_next().await? {
    ///     token = event.token().to_owned();
    ///     match event.what {
    ///         Watched::Set(record) => println!("{} = {}", record.key, record.value),
    ///         Watched::Deleted(deleted) => println!("{} is no more: {:?}", deleted.key, deleted.reason),
    ///         Watched::Gap { reason } => println!("forget all keys, {reason}; those that are live follow"),
    ///         Watched::Current { .. } => break, // what was there when the watch began has come
    ///         _ => {}
    ///     }
    /// }
    ///
    /// // Later, perhaps in another process:
    /// client.delete("cart/7").await?;
    /// let mut watch = client.watch().prefix("cart/").since(&token).await?;
    /// let event = watch.try_next().await?.expect("it ends only after an error");
    /// assert!(matches!(event.what, Watched::Deleted(deleted) if deleted.key == "cart/7"));
    /// # Ok(()) }
    /// ```
    pub fn watch(&self) -> WatchBuilder {
        let wanted = Wanted {
            prefix: String::new(),
            key: String::new(),
            values: true,
            initial: false,
            wait: PROGRESS,
        };
        WatchBuilder { client: self.clone(), wanted, key: None, since: String::new() }
    }
}

/// A watch that is about to begin, made by [`Client::watch`]; `.await` it. Without more it tells of every key, from now on.
#[must_use = "a watch begins when it is awaited"]
#[derive(Debug)]
pub struct WatchBuilder {
    client: Client,
    wanted: Wanted,
    key: Option<String>,
    since: String,
}

impl WatchBuilder {
    /// Only keys that begin with this.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.wanted.prefix = prefix.into();
        self
    }

    /// Only this key.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Goes on behind a token, of a watch of the same keys; an empty text is none.
    ///
    /// What was deleted or has expired meanwhile is told, too. If that can't be told any more (the token is older than the nodes'
    /// `DELETE_RETENTION`, or of another log), the first event is a [`Watched::Gap`].
    pub fn since(mut self, token: impl Into<String>) -> Self {
        self.since = token.into();
        self
    }

    /// Without a token: begins with the keys that are there. With one this changes nothing.
    pub fn initial(mut self) -> Self {
        self.wanted.initial = true;
        self
    }

    /// Whether records come with their values; `true` by default, else they are empty.
    pub fn values(mut self, values: bool) -> Self {
        self.wanted.values = values;
        self
    }

    /// How often there is a [`Watched::Progress`] while nothing matches: 5 s by default, 60 s at most. It is also the time after which a
    /// node that hangs is noticed, with a quarter of the client's deadline.
    pub fn progress_every(mut self, interval: Duration) -> Self {
        self.wanted.wait = interval.min(LONGEST_PROGRESS);
        self
    }

    async fn begin(self) -> Result<Watch, Error> {
        let Self { client, mut wanted, key, since } = self;
        if let Some(key) = key {
            if key.is_empty() {
                let reason = "the key is empty; to watch every key, give none".to_owned();
                return Err(Error::Refused { refusal: Refusal::BadRequest, reason });
            }
            wanted.key = key;
        }
        let (pages, first) = Pages::begin(&client, wanted, &since).await?;
        let token = if first.changes.is_empty() { Arc::clone(&first.next) } else { since.into() };
        let mut watch = Watch { pages, events: VecDeque::new(), token, current: false, ended: false };
        watch.take(first);
        Ok(watch)
    }
}

impl IntoFuture for WatchBuilder {
    type Output = Result<Watch, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    /// Begins the watch; the client's deadline is for that. What is written after it has begun is told.
    ///
    /// # Errors
    /// [`Error::Refused`] if the token is none, or the prefix or key can't be one; as any read.
    fn into_future(self) -> Self::IntoFuture {
        self.begin().boxed()
    }
}

/// What changes, made by [`Client::watch`].
///
/// A stream without end: after an error, which is one that trying again does not mend, it gives `None`. While nobody polls it there is at most
/// one page of events in memory (1,000 of them, or 1 MiB), and the nodes hold nothing. Dropping it ends the watch.
pub struct Watch {
    pages: Pages,
    events: VecDeque<WatchEvent>,
    /// Empty: there is none yet.
    token: Arc<str>,
    /// Whether it was told that all is told that was there when it began.
    current: bool,
    ended: bool,
}

/// Something that a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// What it tells.
    pub what: Watched,
    token: Arc<str>,
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Watched {
    /// A key has this record now; without its value if the watch is without values.
    Set(Record),
    /// A key is no more.
    Deleted(DeletedKey),
    /// All that was in the log when the watch began has been told; or, after a gap, all that was there then.
    Current {
        /// Up to where each partition has been told.
        positions: Vec<Position>,
    },
    /// Nothing matched for a while; the token has moved on.
    Progress {
        /// Up to where each partition has been told; empty before the first `Current` of a watch that began with what is there.
        positions: Vec<Position>,
    },
    /// What came before can't be told any more. All keys are to be forgotten: those that are live follow.
    Gap {
        /// Why, in the words of the node.
        reason: String,
    },
}

/// A key that is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletedKey {
    /// The key.
    pub key: String,
    /// Of the delete; of a key that expired, of the record that did.
    pub position: Position,
    /// The write timestamp of what is at that position, ms since the epoch.
    pub timestamp: i64,
    /// Why it is no more.
    pub reason: DeleteReason,
}

impl WatchEvent {
    /// With this a watch of the same keys goes on behind the event, at any node: see [`WatchBuilder::since`]. The events that came with it in one
    /// page may be told again.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }
}

impl Watch {
    /// That of the last event that was taken, or the one that the watch began with; `None` if it began with the keys that are there, and
    /// nothing was taken yet.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        Some(&*self.token).filter(|token| !token.is_empty())
    }

    /// Why no node answers at the moment, if the last attempt failed; `None` while one does. Meanwhile the watch goes on trying by itself, and tells
    /// nothing, not even [`Watched::Progress`]. It is as new as the last poll of the watch.
    #[must_use]
    pub fn trouble(&self) -> Option<Error> {
        self.pages.trouble()
    }

    fn take(&mut self, page: Page) {
        let Page { changes, since, next, current, positions, .. } = page;
        let count = changes.len();
        for (index, change) in changes.into_iter().enumerate() {
            let what = match change {
                Changed::Set(record) => Watched::Set(record),
                Changed::Deleted(deleted) => Watched::Deleted(deleted),
                Changed::Gap(reason) => {
                    self.current = false;
                    Watched::Gap { reason }
                }
            };
            // Behind one in the middle of a page there is no token of its own.
            let token = if index + 1 == count { &next } else { &since };
            self.events.push_back(WatchEvent { what, token: Arc::clone(token) });
        }
        if current && !self.current {
            self.current = true;
            self.events.push_back(WatchEvent { what: Watched::Current { positions }, token: next });
        } else if count == 0 {
            self.events.push_back(WatchEvent { what: Watched::Progress { positions }, token: next });
        }
    }
}

impl Stream for Watch {
    type Item = Result<WatchEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                self.token = Arc::clone(&event.token);
                return Poll::Ready(Some(Ok(event)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(self.pages.poll_page(context)) {
                Ok(page) => self.take(page),
                Err(error) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Watch").field("token", &self.token).finish_non_exhaustive()
    }
}
