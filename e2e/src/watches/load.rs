//! Writers of all kinds at all nodes: plain writes, deletes, values that expire, conditional writes, now and then a large value.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, bail};
use fastrand::Rng;
use futures_util::future::try_join_all;
use reqwest::Method;

use super::{Acknowledged, digest};
use crate::consistency::client::Nodes;
use crate::http::{Position, encode};
use crate::topic::now_ms;

const WRITERS: usize = 6;
/// Of each of the two prefixes: few that change all the time, and more that rarely do.
const HOT: usize = 3;
const COLD: usize = 60;
/// ms between two calls of a writer.
const PACE: std::ops::Range<u64> = 0..20;
/// In ms.
const TTL: std::ops::Range<u64> = 100..3_000;
/// Nothing lives longer that expires.
pub const LONGEST_TTL: Duration = Duration::from_millis(TTL.end);
/// One of so many values is large: longer than what a node sends at a time.
const LARGE: usize = 150;
const LARGE_BYTES: std::ops::Range<usize> = 20_000..60_000;
/// Longer than a node waits for an acknowledgement.
const PATIENCE: Duration = Duration::from_secs(8);

pub const PREFIXES: [&str; 2] = ["carts/", "people/ü/"];

/// The key of a prefix that changes most.
pub fn hot_key(prefix: &str) -> String {
    format!("{prefix}hot 0")
}

/// Writes until it is over; all that was acknowledged.
///
/// # Errors
/// An answer that no node may give.
pub async fn run(seed: u64, nodes: &Nodes<'_>, over: &Cell<bool>) -> Result<Vec<Acknowledged>> {
    let done = RefCell::new(Vec::new());
    let writers = (0..WRITERS).map(|number| {
        let rng = Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
        let mut writer = Writer { number, rng, nodes, done: &done, versions: HashMap::new(), written: 0 };
        async move {
            while !over.get() {
                writer.write().await?;
                tokio::time::sleep(Duration::from_millis(writer.rng.u64(PACE))).await;
            }
            anyhow::Ok(())
        }
    });
    let ended = try_join_all(writers).await;
    over.set(true);
    ended?;
    Ok(done.into_inner())
}

struct Writer<'a> {
    number: usize,
    rng: Rng,
    nodes: &'a Nodes<'a>,
    done: &'a RefCell<Vec<Acknowledged>>,
    /// What this one wrote last; others may have written since.
    versions: HashMap<String, Position>,
    written: usize,
}

impl Writer<'_> {
    fn key(&mut self) -> String {
        let prefix = PREFIXES[self.rng.usize(0..PREFIXES.len())];
        match self.rng.usize(0..10) {
            0..5 => format!("{prefix}hot {}", self.rng.usize(0..HOT)),
            _ => format!("{prefix}cold {}", self.rng.usize(0..COLD)),
        }
    }

    fn value(&mut self) -> String {
        self.written += 1;
        let value = format!("{}-{} \"\n\u{2028}", self.number, self.written);
        match self.rng.usize(0..LARGE) {
            0 => value + &"v".repeat(self.rng.usize(LARGE_BYTES)),
            _ => value,
        }
    }

    async fn write(&mut self) -> Result<()> {
        let (key, node) = (self.key(), self.rng.usize(0..self.nodes.count));
        let mut path = format!("/rpc?key={}", encode(&key));
        let mut condition: Option<(&str, String)> = None;
        let mut value = None;
        match self.rng.usize(0..100) {
            0..45 => value = Some(self.value()),
            45..58 => {}
            58..80 => {
                value = Some(self.value());
                path.push_str(&format!("&ttl={}ms", self.rng.u64(TTL)));
            }
            80..90 => {
                value = Some(self.value());
                condition = Some(("if-none-match", "*".to_owned()));
            }
            choice => {
                value = (choice < 98).then(|| self.value());
                let version = self.versions.get(&key);
                let version = version.map(|version| format!("\"{}:{}\"", version.partition, version.offset));
                condition = Some(("if-match", version.unwrap_or_else(|| "*".to_owned())));
            }
        }
        let mut headers = vec![("content-type", "text/plain; charset=utf-8")];
        headers.extend(condition.iter().map(|(name, value)| (*name, value.as_str())));
        let method = if value.is_some() { Method::POST } else { Method::DELETE };
        let body = value.clone().unwrap_or_default().into_bytes();
        let api = (self.nodes.api)(node);
        let call = tokio::time::timeout(PATIENCE, api.send(method, &path, &headers, body));
        // Without an answer, or with 503, it may be in the log: the log says so.
        let Ok(Ok(answer)) = call.await else { return Ok(()) };
        match answer.status {
            200 => {
                let (position, value) = (answer.position(), value.as_deref().map(digest));
                match value {
                    Some(_) => drop(self.versions.insert(key.clone(), position)),
                    None => drop(self.versions.remove(&key)),
                }
                self.done.borrow_mut().push(Acknowledged { key, position, value, at: now_ms() });
            }
            412 | 503 => drop(self.versions.remove(&key)),
            _ => bail!("no answer to a write: {answer}"),
        }
        Ok(())
    }
}
