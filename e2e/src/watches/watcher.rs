//! Somebody who watches: loses connections, often in the middle of an event, and goes on at another node with the last whole token.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::sse::{Frame, Stream};
use super::{Connection, End, Seen, Watched, Way, What, Wish, digest, position, positions};
use crate::http::{Api, encode};
use crate::topic::now_ms;

/// How long a connection is kept, in ms.
const KEPT_MS: std::ops::Range<u64> = 200..6_000;
/// Between two tries to connect, in ms.
const PAUSE_MS: std::ops::Range<u64> = 10..100;
/// How long a call of long polling waits, in ms.
const WAIT_MS: std::ops::Range<u64> = 0..1_500;
/// A call of long polling is given up after this.
const CALL: Duration = Duration::from_secs(15);
/// One of so many calls of long polling is given up before its answer is taken.
const GIVEN_UP: usize = 8;

/// The last offset of each partition, once nobody writes any more: who has been told all of it is done.
pub type Ends = Option<BTreeMap<i32, i64>>;

pub struct Watcher {
    ports: Vec<u16>,
    node: usize,
    rng: Rng,
    token: Option<String>,
    ends: watch::Receiver<Ends>,
    watched: Watched,
}

impl Watcher {
    /// One that asks the nodes at these ports.
    pub fn new(name: String, wish: Wish, ports: Vec<u16>, seed: u64, ends: watch::Receiver<Ends>) -> Watcher {
        let mut rng = Rng::with_seed(seed);
        let node = rng.usize(0..ports.len());
        let watched = Watched { name, wish, from: 0, connections: Vec::new(), seen: Vec::new() };
        Watcher { ports, node, rng, token: None, ends, watched }
    }

    /// Watches until all has been told.
    ///
    /// # Errors
    /// An answer that no node may give.
    pub async fn run(mut self) -> Result<Watched> {
        loop {
            let ends = self.ends.borrow_and_update().clone();
            let end = match self.watched.wish.way {
                Way::Events => self.follow(&ends).await,
                Way::Polling => self.ask(&ends).await,
            };
            match end.with_context(|| self.watched.name.clone())? {
                Some(end) => {
                    let connection = self.watched.connections.last_mut().context("there was a connection")?;
                    connection.end = end;
                    if connection.end == End::Finished {
                        return Ok(self.watched);
                    }
                }
                None => tokio::time::sleep(Duration::from_millis(self.rng.u64(PAUSE_MS))).await,
            }
            self.node = (self.node + self.rng.usize(1..self.ports.len())) % self.ports.len();
        }
    }

    fn query(&self) -> String {
        let Wish { filter, initial, values, .. } = &self.watched.wish;
        format!("initial={initial}&values={values}{}", filter.query())
    }

    fn connected(&mut self, asked: i64) {
        let (began, resumed) = (now_ms(), self.token.is_some());
        if !resumed {
            self.watched.from = began;
        }
        let connection = Connection { node: self.node, resumed, asked, began, end: End::Lost };
        self.watched.connections.push(connection);
    }

    /// One connection of `GET /watch`. Returns how it ended; `None` if there was none.
    async fn follow(&mut self, ends: &Ends) -> Result<Option<End>> {
        let asked = now_ms();
        let opened = Stream::open(self.ports[self.node], &self.query(), self.token.as_deref()).await?;
        let Some(mut stream) = opened else { return Ok(None) };
        self.connected(asked);
        let cut_at = Instant::now() + Duration::from_millis(self.rng.u64(KEPT_MS));
        loop {
            let chunk = tokio::select! {
                chunk = stream.chunk() => chunk,
                _ = self.ends.changed(), if ends.is_none() => {
                    return Ok(Some(End::Cut { inside_an_event: stream.parser.is_inside() }));
                }
            };
            let Some(chunk) = chunk else { return Ok(Some(End::Lost)) };
            let is_cut = ends.is_none() && Instant::now() >= cut_at;
            let length = if is_cut { self.rng.usize(1..=chunk.len().max(1)) } else { chunk.len() };
            stream.parser.push(&chunk[..length.min(chunk.len())]);
            while let Some(frame) = stream.parser.frame()? {
                if frame.event == "bye" {
                    self.token = Some(frame.id);
                    return Ok(Some(End::Bye));
                }
                self.take(frame)?;
                if self.has_all(ends) {
                    return Ok(Some(End::Finished));
                }
            }
            if is_cut {
                return Ok(Some(End::Cut { inside_an_event: stream.parser.is_inside() }));
            }
        }
    }

    fn take(&mut self, frame: Frame) -> Result<()> {
        let data: Value = serde_json::from_str(&frame.data).with_context(|| format!("{frame:?}"))?;
        let what = match frame.event.as_str() {
            "current" | "progress" => reached(&data, frame.event == "current"),
            event => told(event, &data),
        };
        let what = what.with_context(|| format!("this is no event: {frame:?}"))?;
        if frame.id.is_empty() {
            bail!("an event has no token: {frame:?}");
        }
        self.note(what);
        self.token = Some(frame.id);
        Ok(())
    }

    fn note(&mut self, what: What) {
        let connection = self.watched.connections.len() - 1;
        self.watched.seen.push(Seen { at: now_ms(), connection, what });
    }

    fn has_all(&self, ends: &Ends) -> bool {
        let last = self.watched.seen.last().map(|seen| &seen.what);
        let (Some(ends), Some(What::Reached { upto, current: true })) = (ends, last) else { return false };
        ends.iter().all(|(partition, end)| upto.get(partition).is_some_and(|told| told >= end))
    }

    /// One call of `GET /rpc/changes`. Returns how it ended; `None` if there was no answer.
    async fn ask(&mut self, ends: &Ends) -> Result<Option<End>> {
        let (asked, wait, limit) =
            (now_ms(), self.rng.u64(WAIT_MS), [1, 7, 100, 1_000][self.rng.usize(0..4)]);
        let limit = if ends.is_some() { 1_000 } else { limit };
        let since = self.token.as_ref().map_or_else(String::new, |token| format!("&since={}", encode(token)));
        let path = format!("/rpc/changes?{}&limit={limit}&wait={wait}ms{since}", self.query());
        let api = Api::new(self.ports[self.node]);
        let call = tokio::time::timeout(CALL, api.call(reqwest::Method::GET, &path));
        let Ok(Ok(answer)) = call.await else { return Ok(None) };
        match answer.status {
            200 => {}
            503 => return Ok(None),
            _ => bail!("no answer to a call for changes: {answer}"),
        }
        if ends.is_none() && self.rng.usize(0..GIVEN_UP) == 0 {
            // As if it had been lost on its way; the next call has the same token.
            return Ok(None);
        }
        self.connected(asked);
        let list = answer.json();
        for event in list["events"].as_array().with_context(|| answer.to_string())? {
            let what = told(event["event"].as_str().unwrap_or_default(), event);
            self.note(what.with_context(|| format!("this is no event: {event}"))?);
        }
        self.note(reached(&list, list["current"] == true).with_context(|| answer.to_string())?);
        self.token = Some(list["next"].as_str().with_context(|| answer.to_string())?.to_owned());
        Ok(Some(if self.has_all(ends) { End::Finished } else { End::Whole }))
    }
}

fn reached(data: &Value, current: bool) -> Option<What> {
    Some(What::Reached { upto: positions(data["position"].as_str()?)?, current })
}

fn told(event: &str, data: &Value) -> Option<What> {
    if event == "gap" {
        return Some(What::Gap(data["reason"].as_str()?.to_owned()));
    }
    let (key, position) = (data["key"].as_str()?.to_owned(), position(data["position"].as_str()?)?);
    match (event, data["reason"].as_str()) {
        ("set", None) => Some(What::Set { key, position, value: data["value"].as_str().map(digest) }),
        ("delete", Some("deleted")) => Some(What::Deleted { key, position }),
        ("delete", Some("expired")) => Some(What::Expired { key, position }),
        _ => None,
    }
}
