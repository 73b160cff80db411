//! Somebody who follows changes: what they have been told, and what they are told next. Either *live*, behind what the feed's buffer
//! holds; or by a *scan* of the store, page by page, which tells of each key what has become of it since a base.
//!
//! A scan keeps in step with the buffer: before a page is told, so is what has happened to the keys that the scan has passed. A page
//! is exactly what was in the store when the feed was at some place, which is found by the next offsets that the page was read with.
//! So each key is told in the order in which it changed, and what a page says of a key is not said again by the buffer. If the buffer
//! has lost the place of a scan that is slow, the scan goes on alone, and what it has passed is looked at once more by another, from
//! where the buffer was lost.

mod scan;

use std::sync::Arc;

use bitacora_protocol::{NextOffset, Position};
use tokio::sync::watch;

use self::scan::Scan;
use super::token::{ScanToken, Token};
use super::{Changes, Place};
use crate::clock::WallTime;
use crate::log::LogTag;
use crate::replication::feed::{Event, Kind, Lost, Point, View, is_within, joined};
use crate::store::{KeyRange, StoreError};

/// Events that are taken from the buffer at a time.
const EVENTS_AT_A_TIME: usize = 256;

/// See the module.
pub struct Reader {
    changes: Arc<Changes>,
    _place: Place,
    range: KeyRange,
    log: LogTag,
    generation: u64,
    /// The number of the next event of the buffer.
    at: u64,
    /// Everything up to here has been told, of the keys that a scan has passed.
    told: Point,
    scan: Option<Scan>,
    floor: Option<Floor>,
    /// By which time keys have been told, by this node or another.
    shown_until: WallTime,
    /// Nothing is told before this node has come as far: something of it has been told.
    wait_for: Vec<NextOffset>,
    /// Whether all that is in the buffer has been looked at.
    at_end: bool,
    /// To be told before anything else.
    gap: Option<String>,
    changed: watch::Receiver<u64>,
}

/// What had been told by other nodes, until this one has come as far: it is not told again.
struct Floor {
    point: Point,
    /// The last key of which that is so; `None`: it is so of all keys.
    last: Option<Box<str>>,
}

/// Something to be told.
pub struct Told {
    pub what: What,
    /// `None`: that of the event, which is the same for all.
    token: Option<Token>,
    log: LogTag,
}

pub enum What {
    Event(Arc<Event>),
    Gap(String),
}

impl Told {
    /// With this, somebody goes on behind it.
    #[must_use]
    pub fn token(&self) -> String {
        match (&self.token, &self.what) {
            (Some(token), _) => token.encode(),
            (None, What::Event(event)) => Token { log: self.log, told: event.point(), scan: None }.encode(),
            (None, What::Gap(_)) => String::new(),
        }
    }

    /// Whether it is the same for all who are told it.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.token.is_none()
    }

    /// Bytes of it, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.what {
            What::Event(event) => event.entry.bytes() + event.key.len() + 256,
            What::Gap(reason) => reason.len(),
        }
    }
}

/// What is to be told now.
pub struct Read {
    pub events: Vec<Told>,
    /// Whether there may be more without waiting.
    pub more: bool,
}

/// Why a node tells no more.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("this node is stopping")]
    Stopping,
    #[error("this node is restoring its store")]
    NotRestored,
    #[error("the store of this node can't be read")]
    Store(#[from] StoreError),
}

impl Reader {
    pub(super) fn new(
        changes: Arc<Changes>,
        place: Place,
        range: KeyRange,
        view: &View,
        token: Option<Token>,
        initial: bool,
    ) -> Self {
        let changed = changes.feed.subscribe();
        let refusal = token.as_ref().and_then(|token| changes.refusal(token, view.log, &range));
        let mut reader = Self {
            changes,
            _place: place,
            range,
            log: view.log,
            generation: view.generation,
            at: view.end,
            told: Point::clone(&view.point),
            scan: None,
            floor: None,
            shown_until: WallTime::default(),
            wait_for: Vec::new(),
            at_end: false,
            gap: refusal,
            changed,
        };
        match token {
            Some(token) if reader.gap.is_none() => reader.go_on(token),
            None if initial => reader.begin_scan(None),
            _ => {}
        }
        reader
    }

    /// Goes on behind a token.
    fn go_on(&mut self, token: Token) {
        let Token { told, scan, .. } = token;
        let place = self.changes.feed.locate(self.generation, &told);
        self.at = place.unwrap_or(self.at);
        let seen = scan.as_ref().map_or(&[][..], |scan| &scan.seen);
        self.wait_for = joined(&told.next, seen);
        // Of keys that the scan had not passed, nothing but its base had been told.
        let last = scan.as_ref().map(|scan| scan.after.clone());
        if last != Some(None) {
            self.floor = Some(Floor { point: told.clone(), last: last.flatten() });
        }
        match scan {
            Some(scan) => {
                self.shown_until = scan.shown_until;
                let in_step = place.is_ok() && scan.seen.is_empty();
                self.scan = Some(Scan::new(&self.changes.metrics, scan, in_step));
            }
            None if place.is_err() => {
                self.scan = Some(self.scan_from(Some(told.clone())));
            }
            None => {}
        }
        self.told = told;
    }

    /// Looks at all keys from where the feed is.
    fn begin_scan(&mut self, base: Option<Point>) {
        self.scan = Some(self.scan_from(base));
    }

    fn scan_from(&self, base: Option<Point>) -> Scan {
        let token = ScanToken { base, of: self.range.digest(), ..ScanToken::default() };
        Scan::new(&self.changes.metrics, token, true)
    }

    /// What was told is worth nothing any more.
    fn begin_again(&mut self, view: &View) {
        (self.log, self.generation, self.at) = (view.log, view.generation, view.end);
        self.told = Point::clone(&view.point);
        self.floor = None;
        self.shown_until = WallTime::default();
        self.wait_for.clear();
        self.begin_scan(None);
    }

    /// What is to be told next: at most `limit` events, of about so many bytes, at least one if there is any. Never waits for something to happen.
    ///
    /// # Errors
    /// When this node tells no more.
    pub async fn read(&mut self, limit: usize, bytes: usize) -> Result<Read, Ended> {
        self.changed.borrow_and_update();
        self.at_end = false;
        if self.changes.feed.is_closed() {
            return Err(Ended::Stopping);
        }
        let view = self.changes.feed.begin().filter(|_| self.changes.progress.restored());
        let view = view.ok_or(Ended::NotRestored)?;
        if view.generation != self.generation && self.gap.is_none() {
            self.gap = Some("the store of this node was built anew".to_owned());
        }
        if let Some(reason) = self.gap.take() {
            self.begin_again(&view);
            let told = Told { what: What::Gap(reason), token: Some(self.token()), log: self.log };
            return Ok(Read { events: vec![told], more: true });
        }
        if !is_within(&self.wait_for, &view.point.next) {
            // What this store holds is older than what has been told.
            return Ok(Read { events: Vec::new(), more: false });
        }
        if self.scan.is_some() {
            return self.read_scan(&view, limit, bytes).await;
        }
        match self.read_live(limit, bytes) {
            Ok(read) => Ok(read),
            Err(Lost) => {
                self.changes.metrics.watch_conflations.inc();
                let base = self.told.clone();
                (self.at, self.told) = (view.end, Point::clone(&view.point));
                self.begin_scan(Some(base));
                Ok(Read { events: Vec::new(), more: true })
            }
        }
    }

    fn read_live(&mut self, limit: usize, bytes: usize) -> Result<Read, Lost> {
        let (mut told, mut size) = (Vec::new(), 0);
        loop {
            let found = self.changes.feed.events(self.generation, self.at, EVENTS_AT_A_TIME)?;
            let mut last = None;
            for event in found.events {
                if told.len() >= limit || (size >= bytes && !told.is_empty()) {
                    self.note_last(last.as_deref());
                    return Ok(Read { events: told, more: true });
                }
                self.at += 1;
                if self.concerns(&event) {
                    let event = self.of_event(Arc::clone(&event));
                    size += event.bytes();
                    told.push(event);
                }
                last = Some(event);
            }
            match found.point {
                Some(point) => {
                    self.advance(&point, &point);
                    self.at_end = true;
                    return Ok(Read { events: told, more: false });
                }
                None => self.note_last(last.as_deref()),
            }
        }
    }

    /// Whether an event of the buffer is to be told.
    fn concerns(&self, event: &Event) -> bool {
        let floor = self.floor.as_ref().and_then(|floor| floor.of(&event.key));
        self.range.contains(&event.key)
            && event.is_news(floor)
            && !floor.is_some_and(|floor| event.is_within(floor) || self.is_overtaken(event, floor))
    }

    /// Whether a key expired here while this node was behind what others had told, and was changed again before it was not: either they
    /// had told that as well, or it is told next.
    fn is_overtaken(&self, event: &Event, floor: &Point) -> bool {
        let position = event.position();
        let was_behind = |event: &Event| event.before.of(position.partition) < floor.of(position.partition);
        if event.kind != Kind::Expired || !was_behind(event) || !floor.holds(position) {
            return false;
        }
        let newest = self.changes.store.get(event.key.as_bytes());
        if matches!(newest, Ok(Some((entry, _))) if entry.position() == position) {
            return false;
        }
        // All that others had told has been applied here: nothing is told before. What has left the buffer is told by a scan.
        let changes_again = |next: &Event| next.key == event.key && was_behind(next);
        self.changes.feed.any(self.generation, self.at, changes_again).unwrap_or(true)
    }

    fn note_last(&mut self, event: Option<&Event>) {
        if let Some(event) = event {
            // Others of the same transaction may follow, and it began there.
            self.advance(&event.point(), &event.before);
        }
    }

    /// The feed has been followed up to a point; all that follows begins at another, or behind it.
    fn advance(&mut self, point: &Point, begin: &Point) {
        self.told = self.with_floor(point);
        self.drop_floor(begin);
    }

    /// Forgets what other nodes had told once this one has told as much.
    fn drop_floor(&mut self, told: &Point) {
        if self.floor.as_ref().is_some_and(|floor| floor.point.is_within(told)) {
            self.floor = None;
        }
    }

    /// A point of this node's, with what had been told by others.
    fn with_floor(&self, point: &Point) -> Point {
        let Some(Floor { point: floor, .. }) = &self.floor else { return point.clone() };
        // Its time only where this node has not come as far: what expired here until then is told by the feed.
        let expired_until = if is_within(&floor.next, &point.next) {
            point.expired_until
        } else {
            point.expired_until.min(floor.expired_until)
        };
        Point { next: joined(&point.next, &floor.next), expired_until }
    }

    fn of_event(&self, event: Arc<Event>) -> Told {
        let token = match (&self.scan, &self.floor) {
            (None, None) => None,
            _ => Some(self.token_at(self.with_floor(&event.point()))),
        };
        Told { what: What::Event(event), token, log: self.log }
    }

    fn token_at(&self, told: Point) -> Token {
        let scan = self.scan.as_ref().map(|scan| scan.token(self.shown_until));
        Token { log: self.log, told, scan }
    }

    /// With this, somebody goes on from here.
    #[must_use]
    pub fn token(&self) -> Token {
        self.token_at(self.told.clone())
    }

    /// Up to where each partition has been told; empty while that is nowhere.
    #[must_use]
    pub fn positions(&self) -> Vec<Position> {
        let next = match &self.scan {
            None => &self.told.next,
            Some(Scan { base: Some(base), .. }) => &base.next,
            Some(_) => return Vec::new(),
        };
        (0..).zip(next).map(|(partition, next)| next.applied(partition)).collect()
    }

    /// Hears the last position below each end of the log, which was asked for after the token had been given: one that names more is of
    /// records that were lost.
    pub fn learn_ends(&mut self, last: &[Position]) {
        let last_of = |partition: i32| {
            last.iter().find(|last| last.partition == partition).map_or(-1, |last| last.offset)
        };
        let is_future = (0..).zip(&self.wait_for).any(|(partition, next)| next.0 > last_of(partition) + 1);
        if is_future && self.gap.is_none() {
            self.gap = Some("the token is of records that the log does not have, or not any more".to_owned());
        }
    }

    /// Whether everything up to these positions has been told.
    #[must_use]
    pub fn is_current(&self, last: &[Position]) -> bool {
        let is_told = |last: &Position| last.offset < 0 || self.told.holds(*last);
        self.at_end && self.gap.is_none() && self.scan.is_none() && last.iter().all(is_told)
    }

    /// Waits until there may be something to be told.
    pub async fn changed(&mut self) {
        if self.changed.changed().await.is_err() {
            // Never: the feed lives as long as this.
            std::future::pending::<()>().await;
        }
    }
}

impl Floor {
    /// What had been told of a key.
    fn of(&self, key: &str) -> Option<&Point> {
        self.last.as_ref().is_none_or(|last| key <= &**last).then_some(&self.point)
    }
}
