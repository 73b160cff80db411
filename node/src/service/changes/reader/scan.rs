//! Telling from the store: see [`super`].

use std::sync::Arc;
use std::time::Duration;

use bitacora_protocol::NextOffset;
use tokio::time::{Instant, timeout_at};

use super::super::pages::{PageOf, SharedPage, WantedEntries};
use super::super::token::{ScanToken, Token};
use super::{EVENTS_AT_A_TIME, Ended, Read, Reader, Told, What};
use crate::clock::WallTime;
use crate::metrics::{Counted, Metrics};
use crate::replication::feed::{AtStore, Event, Kind, Lost, Point, View, joined};
use crate::store::{ChangedPage, EntryHead, StoreError};

/// A transaction's changes are told at once after it: so long, at most.
const TOLD_WITHIN: Duration = Duration::from_secs(1);
/// A page of the store ends with the record that reaches this: what is told of it waits until the client has taken what was before.
const MIN_PAGE_BYTES: usize = 64 << 10;
const MAX_PAGE_BYTES: usize = 256 << 10;
/// A page is read within that time, or read again.
const PAGE_READ_WITHIN: Duration = Duration::from_secs(5);

/// A scan of the store that is under way.
pub(super) struct Scan {
    after: Option<Box<str>>,
    pub(super) base: Option<Point>,
    /// Whether it is in step with the buffer.
    in_step: bool,
    /// Up to where something has been told while it was not.
    seen: Vec<NextOffset>,
    /// As [`ScanToken::of`].
    of: u32,
    _counted: Counted,
}

impl Reader {
    /// What has happened to the keys that the scan has passed, from where it is in the buffer up to a number.
    fn passed(&mut self, until: u64, limit: usize) -> Result<Vec<Told>, Lost> {
        let mut told = Vec::new();
        while self.at < until && told.len() < limit {
            let most = EVENTS_AT_A_TIME.min((until - self.at) as usize);
            let found = self.changes.feed.events(self.generation, self.at, most)?;
            if found.events.is_empty() {
                break;
            }
            for event in found.events {
                if told.len() == limit {
                    break;
                }
                self.at += 1;
                let has_passed = self.scan.as_ref().and_then(|scan| scan.after.as_deref());
                if has_passed.is_some_and(|after| *event.key <= *after) && self.concerns(&event) {
                    told.push(self.of_event(Arc::clone(&event)));
                }
                let point = event.point();
                self.told = self.with_floor(&point);
            }
        }
        Ok(told)
    }

    /// The scan goes on without the buffer.
    fn fall_out_of_step(&mut self) {
        if let Some(scan) = self.scan.as_mut().filter(|scan| scan.in_step) {
            scan.in_step = false;
            self.changes.metrics.watch_conflations.inc();
        }
    }

    pub(super) async fn read_scan(&mut self, view: &View, limit: usize, bytes: usize) -> Result<Read, Ended> {
        let more = |events| Ok(Read { events, more: true });
        if self.is_in_step() {
            match self.passed(view.end, limit) {
                Ok(told) if !told.is_empty() => return more(told),
                Ok(_) => {}
                Err(Lost) => self.fall_out_of_step(),
            }
        }
        let shared = self.page(view, limit, bytes.clamp(MIN_PAGE_BYTES, MAX_PAGE_BYTES)).await?;
        let page = &shared.page;
        let place = self.place_of(page).await;
        if !self.follows_the_same_store() {
            return more(Vec::new());
        }
        let mut told = Vec::new();
        let mut point = Point { next: page.next.clone(), expired_until: view.point.expired_until };
        match place {
            Some((end, at)) if at.expired_until <= shared.latest => {
                if self.is_in_step() {
                    match self.passed(end, limit) {
                        Ok(passed) if passed.len() >= limit || self.at < end => return more(passed),
                        Ok(passed) => told = passed,
                        Err(Lost) => self.fall_out_of_step(),
                    }
                }
                point = Point::clone(&at);
            }
            Some(_) => return more(Vec::new()),
            None => self.fall_out_of_step(),
        }
        self.tell_page(page, &point, limit, &mut told);
        more(told)
    }

    fn is_in_step(&self) -> bool {
        self.scan.as_ref().is_some_and(|scan| scan.in_step)
    }

    fn follows_the_same_store(&self) -> bool {
        self.changes.feed.look().is_some_and(|view| view.generation == self.generation)
    }

    /// The next page of the scan.
    async fn page(&self, view: &View, limit: usize, max_bytes: usize) -> Result<Arc<SharedPage>, Ended> {
        let Some(scan) = &self.scan else { return Err(StoreError::Corrupt("records").into()) };
        let of = PageOf { range: self.range.clone(), after: scan.after.clone(), limit, max_bytes };
        let expired_until = view.point.expired_until;
        let latest = self.changes.progress.clock().wall().max(expired_until) + PAGE_READ_WITHIN;
        let wanted = WantedEntries { base: scan.base.clone(), expired_until, latest };
        Ok(self.changes.pages.read(of, wanted).await?)
    }

    /// Where the feed was when the store held what a page says; `None` if the buffer does not know any more.
    async fn place_of(&mut self, page: &ChangedPage) -> Option<(u64, Arc<Point>)> {
        let until = Instant::now() + TOLD_WITHIN;
        loop {
            self.changed.borrow_and_update();
            match self.changes.feed.at_store(self.generation, &page.next) {
                Ok(AtStore::At(end, point)) => return Some((end, point)),
                Ok(AtStore::NotYet) => {
                    if timeout_at(until, self.changed.changed()).await.is_err() {
                        return None;
                    }
                }
                Err(Lost) => return None,
            }
        }
    }

    /// Tells a page, of which everything up to `point` is, behind what there is to be told.
    fn tell_page(&mut self, page: &ChangedPage, point: &Point, limit: usize, told: &mut Vec<Told>) {
        let in_step = self.is_in_step();
        if in_step {
            self.told = self.with_floor(point);
        }
        let log = self.log;
        self.shown_until = self.shown_until.max(point.expired_until);
        let shown_until = self.shown_until;
        let Some(scan) = &mut self.scan else { return };
        if !in_step {
            scan.seen = joined(&scan.seen, &page.next);
            // What expires here after that has not been told of these keys, whatever others had told.
            self.told.expired_until = self.told.expired_until.min(point.expired_until);
        }
        let shared = Arc::new(point.clone());
        let mut rest = page.entries.iter();
        while told.len() < limit
            && let Some((key, entry)) = rest.next()
        {
            scan.after = Some(key.clone());
            if let Some(kind) = kind_of(&entry.head(), scan.base.as_ref(), shown_until) {
                let (key, entry) = (key.clone(), entry.clone());
                let event = Event::new(key, kind, entry, Arc::clone(&shared), Arc::clone(&shared));
                let token = Token { log, told: self.told.clone(), scan: Some(scan.token(shown_until)) };
                told.push(Told { what: What::Event(Arc::new(event)), token: Some(token), log });
            }
        }
        if rest.next().is_some() {
            return;
        }
        match &page.last {
            Some(last) => scan.after = Some(last.clone()),
            None => self.end_scan(),
        }
    }

    fn end_scan(&mut self) {
        let in_step = self.is_in_step();
        self.scan = None;
        if in_step {
            let told = self.told.clone();
            self.drop_floor(&told);
        } else if let Some(view) = self.changes.feed.begin() {
            // What has been passed without the buffer is looked at once more.
            let base = std::mem::replace(&mut self.told, Point::clone(&view.point));
            self.at = view.end;
            self.begin_scan(Some(base));
        }
    }
}

impl Scan {
    /// The scan of a token; `in_step`: whether it is in step with the buffer.
    pub(super) fn new(metrics: &Metrics, token: ScanToken, in_step: bool) -> Self {
        let ScanToken { after, base, seen, of, .. } = token;
        let counted = Counted::one(&metrics.watchers_catching_up);
        Self { after, base, in_step, seen, of, _counted: counted }
    }

    pub(super) fn token(&self, shown_until: WallTime) -> ScanToken {
        let Self { after, base, in_step, seen, of, .. } = self;
        let seen = if *in_step { Vec::new() } else { seen.clone() };
        ScanToken { after: after.clone(), base: base.clone(), seen, shown_until, of: *of }
    }
}

/// What an entry is to who has been told everything up to `base`, or nothing; `None` if it is nothing new.
fn kind_of(head: &EntryHead, base: Option<&Point>, expired_until: WallTime) -> Option<Kind> {
    let is_new = base.is_none_or(|base| !base.holds(head.position));
    if head.is_live(expired_until) {
        return is_new.then_some(Kind::Set);
    }
    let base = base?;
    let has_expired = head.ttl > 0 && base.expired_until.ms() < head.ttl;
    match (is_new, has_expired) {
        (true, _) if head.ttl < 0 => Some(Kind::Deleted),
        (true, _) | (false, true) => Some(Kind::Expired),
        (false, false) => None,
    }
}
