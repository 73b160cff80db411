//! A mirror: a map in the caller's memory that a watch keeps up to date.

mod file;
mod record;
mod replica;

use std::future::IntoFuture;
use std::ops::{Bound, RangeBounds};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitacora_protocol::Position;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::client::Client;
use crate::error::Error;
use crate::watch::{Page, Pages, Wanted};
use file::Keeper;
pub use record::MirroredRecord;
use record::Records;
use replica::{OnChange, Replica};

/// How long a node waits for a change before it says that there is none.
const WAIT: Duration = Duration::from_secs(1);
/// A mirror is current for so long after it asked for what turned out to be all.
const CURRENT_FOR: Duration = Duration::from_secs(3);

impl Client {
    /// A map in this process of the keys with a prefix, or of all (an empty one), kept up to date by a [watch](Client::watch) in the background;
    /// `.await` what this returns to begin.
    ///
    /// Reads cost no call, and wait for nobody: at most for a page of changes to be put in, which takes less than a millisecond or two.
    /// See [`Mirror`].
    ///
    /// ```
    /// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bitacora_client::Error> {
    /// # let node = support::FakeNode::start().await.address();
    /// # let client = bitacora_client::Client::builder().nodes([node]).build().await?;
    /// use std::time::Duration;
    ///
    /// client.set("price/apple", "3").await?;
    /// let prices = client.mirror("price/").await?;
    /// prices.wait_current(Duration::from_secs(60)).await?;
    /// assert_eq!(prices.get("price/apple").expect("it is there").value(), "3");
    ///
    /// // One's own write, a moment later:
    /// let written = client.set("price/apple", "4").await?;
    /// prices.wait_until(written.position, Duration::from_secs(5)).await?;
    /// assert_eq!(prices.get("price/apple").expect("it is there").value(), "4");
    /// for record in prices.range("price/a".."price/b") {
    ///     println!("{} = {}", record.key(), record.value());
    /// }
    /// # Ok(()) }
    /// ```
    pub fn mirror(&self, prefix: impl Into<String>) -> MirrorBuilder {
        MirrorBuilder { client: self.clone(), prefix: prefix.into(), file: None, on_change: None }
    }
}

/// A mirror that is about to begin, made by [`Client::mirror`]; `.await` it.
#[must_use = "a mirror begins when it is awaited"]
pub struct MirrorBuilder {
    client: Client,
    prefix: String,
    file: Option<PathBuf>,
    on_change: Option<OnChange>,
}

impl MirrorBuilder {
    /// Keeps what it holds in a file as well, and goes on from there after a restart: what is in the file is there at once, and only what has changed
    /// since is asked for.
    ///
    /// The file is a log of what was told, with checksums, and is written anew, beside it and then renamed, when it has grown to twice of what is there. A
    /// process that dies, or a power failure, costs its last entries, which are told again. An entry that is damaged costs what comes behind it, in the same way; nothing
    /// that is wrong is ever read. A file that is of another prefix, or no file of a mirror, is an error, and is left as it is. One process at a time uses it, by a lock
    /// on a file of the same name with `.lock`. If the file can't be written (a full disk), the mirror goes on without it, says so in the log and in
    /// [`Mirror::file_error`], and tries again every 30 s.
    ///
    /// It holds keys and values as they are: only its owner may read it.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Is called with each change, in order, after reads show it, by the task that keeps the mirror up to date: it must not block.
    ///
    /// What it had in its file is there before. After a gap it is called with the differences.
    pub fn on_change(mut self, call: impl FnMut(&MirrorChange) + Send + 'static) -> Self {
        self.on_change = Some(Box::new(call));
        self
    }

    async fn begin(self) -> Result<Mirror, Error> {
        let Self { client, prefix, file, on_change } = self;
        let shared = Arc::new(Shared::default());
        let mut replica = Replica::new(Arc::clone(&shared));
        let (mut keeper, mut token) = (None, String::new());
        if let Some(path) = file {
            let kept = file::open(path, &prefix, replica, Arc::clone(&shared)).await?;
            (keeper, token, replica) = (Some(kept.keeper), kept.token, kept.replica);
        }
        replica.call_on_change(on_change);
        let wanted = Wanted { prefix, key: String::new(), values: true, initial: true, wait: WAIT };
        let (pages, first) = Pages::begin(&client, wanted, &token).await?;
        let keeping = Keeping { shared: Arc::clone(&shared), replica, keeper };
        let (stop, stopped) = watch::channel(());
        let task = tokio::spawn(keeping.run(pages, first, stopped));
        Ok(Mirror { shared, _stop: stop, task })
    }
}

impl IntoFuture for MirrorBuilder {
    type Output = Result<Mirror, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    /// Begins: returns once a node has begun to tell what is there, within the client's deadline. It is not [current](Mirror::wait_current) yet.
    ///
    /// # Errors
    /// As any read; [`Error::Settings`] if its file is none, is of another mirror, is used by another process or can't be read.
    fn into_future(self) -> Self::IntoFuture {
        self.begin().boxed()
    }
}

/// A map in memory of the keys with a prefix, made by [`Client::mirror`]. Ends when it is dropped.
///
/// # What it shows
///
/// *States*, in the order of the log for each key: never something older than it has shown. While it [is current](Mirror::is_current) it is exactly what a
/// scan would have shown at its [positions](Mirror::positions), and has everything that was acknowledged before [`lag`](Mirror::lag) ago. Before it is
/// current for the first time it holds what has come so far; later, what it held last.
///
/// After a gap (another log, or away for longer than `DELETE_RETENTION`) what it held stays until all of what is there now has come, and takes its place at once.
///
/// A key that has expired is not shown any more, by this machine's clock. It is counted by [`len`](Mirror::len) until a node has told of it, within 3 s.
///
/// It needs memory for all that it holds: some 200 bytes for each record, and its texts.
pub struct Mirror {
    shared: Arc<Shared>,
    /// Dropped, it ends the task.
    _stop: watch::Sender<()>,
    task: JoinHandle<()>,
}

/// What the task and the readers share.
#[derive(Default)]
struct Shared {
    state: RwLock<State>,
    changed: watch::Sender<()>,
    file_error: RwLock<Option<String>>,
}

#[derive(Default)]
struct State {
    records: Records,
    /// Up to where each partition is in it.
    positions: Vec<Position>,
    /// Whether the last answer told all that was there when it was asked for.
    is_told_all: bool,
    /// When that was.
    asked: Option<Instant>,
    ended: Option<Error>,
}

impl State {
    fn note(&mut self, page: &Page) {
        self.positions.clone_from(&page.positions);
        self.is_told_all = page.current;
        if page.current {
            self.asked = Some(page.asked);
        }
    }

    fn lag(&self) -> Option<Duration> {
        self.asked.map(|asked| asked.elapsed())
    }

    fn is_current(&self) -> bool {
        self.is_told_all && self.ended.is_none() && self.lag().is_some_and(|lag| lag < CURRENT_FOR)
    }

    fn has(&self, position: Position) -> bool {
        let is_behind =
            |told: &Position| told.partition == position.partition && told.offset >= position.offset;
        self.positions.iter().any(is_behind)
    }
}

/// A key that has changed; at least one of both is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorChange {
    /// What the mirror held; `None` if the key was not there.
    pub before: Option<MirroredRecord>,
    /// What it holds now; `None` if the key is no more.
    pub after: Option<MirroredRecord>,
}

impl MirrorChange {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &str {
        self.after.as_ref().or(self.before.as_ref()).map_or("", MirroredRecord::key)
    }
}

impl Mirror {
    /// The record of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<MirroredRecord> {
        self.view().get(key).cloned()
    }

    /// How many keys it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.view().len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The records of a range of keys, in the order of their UTF-8 bytes, all as they were at one moment.
    #[must_use]
    pub fn range<K: AsRef<str>>(&self, keys: impl RangeBounds<K>) -> Vec<MirroredRecord> {
        self.view().range(keys).cloned().collect()
    }

    /// The records whose keys begin with a text, as [`Mirror::range`].
    #[must_use]
    pub fn prefix(&self, prefix: &str) -> Vec<MirroredRecord> {
        self.view().prefix(prefix).cloned().collect()
    }

    /// All as it is at one moment. No change is put in while it is held, so it is for a short while, and not for a task that waits meanwhile.
    #[must_use]
    pub fn view(&self) -> MirrorView<'_> {
        MirrorView(self.shared.state.read())
    }

    /// Up to where each partition is in it; empty until all that was there when it began has come, and after a gap until it is current.
    #[must_use]
    pub fn positions(&self) -> Vec<Position> {
        self.shared.state.read().positions.clone()
    }

    /// How old it may be: everything that was acknowledged before so long ago is in it. `None` while it was never current.
    #[must_use]
    pub fn lag(&self) -> Option<Duration> {
        self.shared.state.read().lag()
    }

    /// Whether it holds all that was in the log when it asked last, less than 3 s ago.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.shared.state.read().is_current()
    }

    /// Waits until it is current.
    ///
    /// # Errors
    /// [`Error::TimedOut`]; or why it has [ended](Mirror::error).
    pub async fn wait_current(&self, timeout: Duration) -> Result<(), Error> {
        self.wait(timeout, "it is not current", State::is_current).await
    }

    /// Waits until it has a position, such as that of a write, and everything before it in its partition. Where no key of the mirror is at that position, this may take a
    /// second longer.
    ///
    /// # Errors
    /// As [`Mirror::wait_current`].
    pub async fn wait_until(&self, position: Position, timeout: Duration) -> Result<(), Error> {
        self.wait(timeout, &format!("it does not have {position}"), |state| state.has(position)).await
    }

    /// Why it has ended, if it has: an error that trying again does not mend, or the client was closed. What it holds stays.
    #[must_use]
    pub fn error(&self) -> Option<Error> {
        self.shared.state.read().ended.clone()
    }

    /// Why its file could not be written last; `None` while it can.
    #[must_use]
    pub fn file_error(&self) -> Option<String> {
        self.shared.file_error.read().clone()
    }

    /// Ends it, and waits until its file, if it has one, is written.
    pub async fn close(self) {
        let Self { _stop: stop, task, .. } = self;
        drop(stop);
        // It ends at the next page at the latest.
        let _ = task.await;
    }

    async fn wait(
        &self,
        timeout: Duration,
        what: &str,
        condition: impl Fn(&State) -> bool,
    ) -> Result<(), Error> {
        let mut changed = self.shared.changed.subscribe();
        let until = Instant::now().checked_add(timeout).unwrap_or_else(|| Instant::now() + LONG);
        loop {
            {
                let state = self.shared.state.read();
                if condition(&state) {
                    return Ok(());
                }
                if let Some(ended) = &state.ended {
                    return Err(ended.clone());
                }
            }
            if timeout_at(until, changed.changed()).await.is_err() {
                let last = Some(what.to_owned());
                return Err(Error::TimedOut { may_have_taken_effect: false, after: timeout, last });
            }
        }
    }
}

/// Stands for a time that is too far away to be told: some thirty years.
const LONG: Duration = Duration::from_secs(1 << 30);

impl std::fmt::Debug for Mirror {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Mirror").field("len", &self.len()).field("lag", &self.lag()).finish_non_exhaustive()
    }
}

/// What a mirror holds at one moment, made by [`Mirror::view`].
pub struct MirrorView<'a>(RwLockReadGuard<'a, State>);

impl MirrorView<'_> {
    /// As [`Mirror::get`].
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&MirroredRecord> {
        self.0.records.get(key).filter(|record| !record.has_expired(now_ms))
    }

    /// As [`Mirror::len`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.records.len()
    }

    /// As [`Mirror::is_empty`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As [`Mirror::range`].
    pub fn range<K: AsRef<str>>(
        &self,
        keys: impl RangeBounds<K>,
    ) -> Box<dyn DoubleEndedIterator<Item = &MirroredRecord> + '_> {
        let text = |bound: Bound<&K>| bound.map(|key| key.as_ref().to_owned());
        let (start, end) = (text(keys.start_bound()), text(keys.end_bound()));
        let bounds = (start.as_ref().map(String::as_str), end.as_ref().map(String::as_str));
        let now = now_ms();
        Box::new(self.0.records.range(bounds).filter(move |record| !record.has_expired(|| now)))
    }

    /// As [`Mirror::prefix`].
    pub fn prefix(&self, prefix: &str) -> impl Iterator<Item = &MirroredRecord> {
        let now = now_ms();
        self.0.records.prefix(prefix).filter(move |record| !record.has_expired(|| now))
    }

    /// All records, in the order of the keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &MirroredRecord> {
        let now = now_ms();
        self.0.records.iter().filter(move |record| !record.has_expired(|| now))
    }

    /// As [`Mirror::positions`].
    #[must_use]
    pub fn positions(&self) -> &[Position] {
        &self.0.positions
    }

    /// As [`Mirror::is_current`].
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.0.is_current()
    }
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// The task of a mirror.
struct Keeping {
    shared: Arc<Shared>,
    replica: Replica,
    keeper: Option<Keeper>,
}

impl Keeping {
    async fn run(mut self, mut pages: Pages, first: Page, mut stopped: watch::Receiver<()>) {
        let mut page = first;
        loop {
            let is_replaced = self.replica.take(&page);
            if let Some(keeper) = &mut self.keeper {
                let is_rebuilding = self.replica.is_rebuilding();
                keeper.keep(&page, is_replaced, is_rebuilding, &self.shared).await;
            }
            let next = tokio::select! {
                next = pages.page() => next,
                // Dropped: nobody wants it any more.
                _ = stopped.changed() => break,
            };
            match next {
                Ok(next) => page = next,
                Err(error) => {
                    tracing::warn!(%error, "a mirror has ended");
                    self.shared.state.write().ended = Some(error);
                    self.shared.changed.send_replace(());
                    break;
                }
            }
        }
        if let Some(keeper) = self.keeper {
            keeper.finish().await;
        }
    }
}
