//! The buffer of a [`super::Feed`].

use std::collections::VecDeque;
use std::sync::Arc;

use bitacora_protocol::NextOffset;

use super::event::{Event, Kind, Point, is_within, joined};
use super::{Change, View};
use crate::clock::WallTime;
use crate::log::LogTag;
use crate::store::{Entry, Expired, KeyChange};

/// The buffer does not hold what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// Where the feed was when the store was in some state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AtStore {
    /// It will be there in a moment: the transaction is done, and its changes are about to be told.
    NotYet,
    /// Of the next event then, and what had been told.
    At(u64, Arc<Point>),
}

/// Events in their order.
pub struct Events {
    pub events: Vec<Arc<Event>>,
    /// The number behind them.
    pub end: u64,
    /// What has been told once they have been, if there are no more.
    pub point: Option<Arc<Point>>,
}

/// What came of a transaction, or of expiries, and of all behind it that changed nothing.
struct Push {
    /// The number behind its last event.
    end: u64,
    point: Arc<Point>,
    /// Whether it changed nothing in the store: keys had expired.
    is_of_time: bool,
}

pub struct Ring {
    pub generation: u64,
    log: LogTag,
    events: VecDeque<Arc<Event>>,
    /// The number of the first event.
    first: u64,
    bytes: usize,
    /// Never empty. The first one's events may have left.
    pushes: VecDeque<Push>,
}

impl Ring {
    pub fn new(generation: u64, log: LogTag, point: Point) -> Self {
        let pushes = VecDeque::from([Push { end: 0, point: Arc::new(point), is_of_time: false }]);
        Self { generation, log, events: VecDeque::new(), first: 0, bytes: 0, pushes }
    }

    fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    fn point(&self) -> &Arc<Point> {
        &self.pushes[self.pushes.len() - 1].point
    }

    pub fn view(&self) -> View {
        View { generation: self.generation, log: self.log, end: self.end(), point: Arc::clone(self.point()) }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn resume(&mut self, log: LogTag, next: &[NextOffset]) {
        self.log = log;
        let next = joined(&self.point().next, next);
        let expired_until = self.point().expired_until;
        self.note(Point { next, expired_until });
    }

    /// Nothing changed, but how far the store is.
    fn note(&mut self, point: Point) {
        if **self.point() != point {
            let last = self.pushes.len() - 1;
            self.pushes[last].point = Arc::new(point);
        }
    }

    /// What changed was not kept.
    pub fn skip(&mut self, next: &[NextOffset]) {
        let point = Point { next: next.to_vec(), expired_until: self.point().expired_until };
        if **self.point() == point {
            return;
        }
        // A number that nobody gets: who read up to here has lost something.
        self.first = self.end() + 1;
        self.events.clear();
        self.bytes = 0;
        self.pushes.clear();
        self.pushes.push_back(Push { end: self.first, point: Arc::new(point), is_of_time: false });
    }

    pub fn push(&mut self, changes: Vec<Change>, next: &[NextOffset], capacity: usize) {
        let before = Arc::clone(self.point());
        let expired_until = before.expired_until;
        let after = Arc::new(Point { next: next.to_vec(), expired_until });
        let told = changes.into_iter().filter_map(|change| kind_of(change, expired_until));
        let mut events: Vec<_> = told
            .map(|(key, kind, entry, was_there)| {
                let mut event = Event::new(key, kind, entry, Arc::clone(&before), Arc::clone(&after));
                event.was_there = was_there;
                Arc::new(event)
            })
            .collect();
        events.sort_unstable_by_key(|event| event.position());
        self.add(events, after, false, capacity);
    }

    pub fn push_expired(&mut self, expired: Vec<Expired>, until: WallTime, capacity: usize) {
        let before = Arc::clone(self.point());
        let after = Arc::new(Point { next: before.next.clone(), expired_until: until });
        let mut events = Vec::with_capacity(expired.len());
        let mut expired = expired.into_iter().peekable();
        while let Some(Expired { key, entry }) = expired.next() {
            let at = entry.ttl();
            // Of several in the same ms only the last tells that all of them were told.
            let is_last = expired.peek().is_none_or(|next| next.entry.ttl() > at);
            let mut event = Event::new(key, Kind::Expired, entry, Arc::clone(&before), Arc::clone(&after));
            event.told_until = Some(WallTime::from_ms(if is_last { at } else { at - 1 }));
            events.push(Arc::new(event));
        }
        self.add(events, after, true, capacity);
    }

    fn add(&mut self, events: Vec<Arc<Event>>, after: Arc<Point>, is_of_time: bool, capacity: usize) {
        if events.is_empty() {
            return self.note(Point::clone(&after));
        }
        self.bytes += events.iter().map(|event| event.cost()).sum::<usize>();
        self.events.extend(events);
        let end = self.end();
        self.pushes.push_back(Push { end, point: after, is_of_time });
        while self.bytes > capacity
            && let Some(event) = self.events.pop_front()
        {
            self.bytes -= event.cost();
            self.first += 1;
        }
        while self.pushes.len() > 1 && self.pushes[1].end <= self.first {
            self.pushes.pop_front();
        }
    }

    pub fn locate(&self, told: &Point) -> Result<u64, Lost> {
        let within = self.pushes.partition_point(|push| push.point.is_within(told));
        let push = within.checked_sub(1).map(|last| &self.pushes[last]).ok_or(Lost)?;
        if push.end < self.first { Err(Lost) } else { Ok(push.end) }
    }

    fn index(&self, number: u64) -> Result<usize, Lost> {
        let index = number.checked_sub(self.first).ok_or(Lost)? as usize;
        if index > self.events.len() { Err(Lost) } else { Ok(index) }
    }

    pub fn any(&self, from: u64, is_so: impl Fn(&Event) -> bool) -> Result<bool, Lost> {
        Ok(self.events.range(self.index(from)?..).any(|event| is_so(event)))
    }

    pub fn events(&self, from: u64, max: usize) -> Result<Events, Lost> {
        let begin = self.index(from)?;
        let end = self.events.len().min(begin.saturating_add(max));
        let events: Vec<_> = self.events.range(begin..end).cloned().collect();
        let point = (end == self.events.len()).then(|| Arc::clone(self.point()));
        Ok(Events { events, end: self.first + end as u64, point })
    }

    pub fn at_store(&self, next: &[NextOffset]) -> Result<AtStore, Lost> {
        let reached = self.pushes.partition_point(|push| !is_within(next, &push.point.next));
        let Some(mut push) = self.pushes.get(reached) else { return Ok(AtStore::NotYet) };
        let is_before_all = reached == 0 && !is_within(&push.point.next, next);
        // The last place at which the store held this: who asks may have been told what expired meanwhile.
        for of_time in self.pushes.range(reached + 1..).take_while(|push| push.is_of_time) {
            push = of_time;
        }
        if is_before_all || push.end < self.first {
            return Err(Lost);
        }
        Ok(AtStore::At(push.end, Arc::clone(&push.point)))
    }
}

/// What a change is to who has been told everything that had expired by then; `None` if it is nothing.
///
/// Also whether the key was there before. One that was not is of interest to whoever has been told by another node what this one never
/// showed, since it wrote and replaced it in one transaction, or met it when its time was over; or what was there once its time was over.
fn kind_of(change: Change, expired_until: WallTime) -> Option<(Box<str>, Kind, Entry, bool)> {
    let Change { key, change: KeyChange { before, after, was_there_between } } = change;
    let is_live = |entry: &Entry| entry.head().is_live(expired_until);
    let was_live = before.as_ref().is_some_and(is_live);
    match after {
        Some(after) if is_live(&after) => {
            // It is the same record, in another role.
            let is_same = was_live && before.is_some_and(|before| before.position() == after.position());
            (!is_same).then_some((key, Kind::Set, after, true))
        }
        Some(after) if after.ttl() < 0 => {
            let has_expired = before.is_some_and(|before| before.ttl() > 0);
            (was_live || was_there_between || has_expired).then_some((key, Kind::Deleted, after, was_live))
        }
        Some(after) => Some((key, Kind::Expired, after, was_live)),
        None if was_live => before.map(|before| (key, Kind::Deleted, before, true)),
        None => None,
    }
}
