//! Where events come from: a watch of the client library over RPC, or calls that wait for changes over HTTP.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use bitacora_client::{DeletedKey, Position, Record, ServedFrom, Watched};
use bitacora_protocol::SessionPosition;
use bitacora_protocol::http::{ChangeEvent, ChangeList, ChangedRecord, DeleteEvent, PositionedRecord};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tokio::time::sleep;

use crate::api::{Api, Failure, Kind};
use crate::cli::Watch;
use crate::http::Http;

/// How long a node waits for a change, unless a call may not take as long.
const WAIT: Duration = Duration::from_secs(5);
/// The pause before the first call after one that failed, and the longest one.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Changes in an answer, at most; of the first one, so that all of it is behind its token.
const LIMIT: u32 = 1_000;
const FIRST_LIMIT: u32 = 1;

/// Something that changed, or how far it is.
pub struct Told {
    pub what: Watched,
    /// Goes on behind it.
    pub token: String,
}

pub type Events = BoxStream<'static, Result<Told, Failure>>;

/// Whether no node answers at the moment, so that there is nothing to tell.
#[derive(Clone, Debug, Default)]
pub struct Silence(Arc<AtomicBool>);

impl Silence {
    pub fn note(&self, is_silent: bool) {
        self.0.store(is_silent, Ordering::Relaxed);
    }

    pub fn is_now(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Begins to follow. What comes goes on at another node when one dies; it ends after an error that trying again does not mend. `silence` is as new as the
/// last poll.
pub async fn begin(api: &Arc<Api>, arguments: &Watch, silence: Silence) -> Result<Events, Failure> {
    match &**api {
        Api::Rpc(client) => {
            let mut watch = client.watch().prefix(&arguments.prefix).values(!arguments.no_values);
            if let Some(key) = &arguments.key {
                watch = watch.key(key);
            }
            if let Some(token) = &arguments.since {
                watch = watch.since(token);
            }
            if arguments.initial {
                watch = watch.initial();
            }
            let mut watch = watch.await?;
            let told = stream::poll_fn(move |context| {
                let event = watch.poll_next_unpin(context);
                silence.note(watch.trouble().is_some());
                event
            });
            let told = told.map(|event| {
                let event = event?;
                Ok(Told { token: event.token().to_owned(), what: event.what })
            });
            Ok(told.boxed())
        }
        Api::Http(_) => {
            let mut polls = Polls::new(Arc::clone(api), arguments.clone(), silence);
            let first = polls.page(FIRST_LIMIT, Duration::ZERO).await?;
            polls.take(first);
            let events = stream::unfold(Some(polls), |polls| async move {
                let mut polls = polls?;
                match polls.next().await {
                    Ok(told) => Some((Ok(told), Some(polls))),
                    Err(failure) => Some((Err(failure), None)),
                }
            });
            Ok(events.boxed())
        }
    }
}

/// Calls over HTTP, one after the other.
struct Polls {
    api: Arc<Api>,
    asked: Watch,
    token: String,
    events: VecDeque<Told>,
    /// Whether it was told that all is told that was there when it began.
    current: bool,
    /// Whether there may be more already.
    more: bool,
    silence: Silence,
}

impl Polls {
    fn new(api: Arc<Api>, asked: Watch, silence: Silence) -> Self {
        let token = asked.since.clone().unwrap_or_default();
        Self { api, asked, token, events: VecDeque::new(), current: false, more: false, silence }
    }

    async fn next(&mut self) -> Result<Told, Failure> {
        loop {
            if let Some(told) = self.events.pop_front() {
                return Ok(told);
            }
            let page = self.next_page().await?;
            self.take(page);
        }
    }

    /// Asks until a node answers, unless trying again does not mend it.
    async fn next_page(&self) -> Result<ChangeList<'static>, Failure> {
        let mut pauses = pauses();
        let wait = if self.more { Duration::ZERO } else { WAIT };
        loop {
            match self.page(LIMIT, wait).await {
                Err(failure) if matches!(failure.kind, Kind::Unavailable | Kind::Unclear) => {
                    tracing::debug!(%failure, "no changes could be read; trying again");
                    self.silence.note(true);
                    sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
                }
                settled => {
                    self.silence.note(false);
                    return settled;
                }
            }
        }
    }

    async fn page(&self, limit: u32, wait: Duration) -> Result<ChangeList<'static>, Failure> {
        let http = self.http()?;
        http.changes(&self.asked, &self.token, limit, wait).await
    }

    fn http(&self) -> Result<&Http, Failure> {
        match &*self.api {
            Api::Http(http) => Ok(http),
            Api::Rpc(_) => Err(Failure::new(Kind::Failed, "there is no HTTP address to ask")),
        }
    }

    fn take(&mut self, page: ChangeList<'static>) {
        let ChangeList { events, next, current, position } = page;
        let (count, next) = (events.len(), next.into_owned());
        for (index, event) in events.into_iter().enumerate() {
            let what = watched(event);
            self.current &= !matches!(what, Watched::Gap { .. });
            let token = if index + 1 == count { next.clone() } else { self.token.clone() };
            self.events.push_back(Told { what, token });
        }
        let positions = positions(&position);
        if current && !self.current {
            self.current = true;
            self.events.push_back(Told { what: Watched::Current { positions }, token: next.clone() });
        } else if count == 0 {
            self.events.push_back(Told { what: Watched::Progress { positions }, token: next.clone() });
        }
        self.more = count > 0 && !current;
        self.token = next;
    }
}

fn pauses() -> ExponentialBackoff {
    let pauses = ExponentialBuilder::default().with_min_delay(SHORTEST_PAUSE).with_max_delay(LONGEST_PAUSE);
    pauses.with_jitter().without_max_times().build()
}

fn watched(event: ChangeEvent<'_>) -> Watched {
    match event {
        ChangeEvent::Set(PositionedRecord { record: changed, position }) => {
            let ChangedRecord { key, value, timestamp, source, ttl, uuid } = changed;
            let (key, value, uuid) =
                (key.into_owned(), value.unwrap_or_default().into_owned(), uuid.into_owned());
            let served_from = ServedFrom::Store;
            Watched::Set(Record { key, value, timestamp, source, ttl, uuid, position, served_from })
        }
        ChangeEvent::Delete(DeleteEvent { key, timestamp, position, reason }) => {
            Watched::Deleted(DeletedKey { key: key.into_owned(), position, timestamp, reason })
        }
        ChangeEvent::Gap(gap) => Watched::Gap { reason: gap.reason.into_owned() },
    }
}

/// Empty for a text that is empty, or none.
fn positions(text: &str) -> Vec<Position> {
    let positions: Result<SessionPosition, _> = text.parse();
    positions.map(|positions| positions.positions().to_vec()).unwrap_or_default()
}
