//! Holds what watchers were told to the log, and counts it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::Bound;

use super::{Acknowledged, End, Seen, Watched, What, digest};
use crate::consistency::effects::{Effects, Logged};
use crate::http::Position;

/// A key that expired is told within that time, in ms; what took longer is counted.
const EXPIRY_TOLD_MS: i64 = 3_000;
/// An expiry that takes longer is taken for lost, in ms; far more, since the machine may be busy.
const EXPIRY_LOST_MS: i64 = 15_000;

/// What a full scan has of each live key: its position, and the [`digest`] of its value.
pub type Scan = BTreeMap<String, (Position, u64)>;

#[derive(Debug, Default)]
pub struct Report {
    pub watchers: usize,
    pub sets: usize,
    pub deletes: usize,
    pub expiries: usize,
    pub connections: usize,
    pub resumes: usize,
    /// Of those, on another node than before.
    pub elsewhere: usize,
    pub cut_inside: usize,
    pub byes: usize,
    /// Connections that ended without a word.
    pub lost: usize,
    /// Told once more by a later connection, or while one caught up.
    pub repeated: usize,
    /// Deletes of keys that the watcher did not know of, or knew to be gone.
    pub needless_deletes: usize,
    /// Changes that watchers had to be told, and those of them that newer ones stand for.
    pub changes: usize,
    pub conflated: usize,
    /// ms from a key's time until a watcher was told that it expired, which was connected all the time.
    pub expired_after: Vec<i64>,
    /// The same from when it was connected again, for those that were not.
    pub expired_while_away: Vec<i64>,
    /// Times that all a watcher knew was compared with the log, and keys of those.
    pub comparisons: usize,
    pub compared: usize,
    /// Keys that were compared with a full scan, and those that differ.
    pub scanned: usize,
    pub differences: usize,
    pub acknowledged: usize,
    pub violations: Vec<String>,
}

impl Report {
    pub fn events(&self) -> usize {
        self.sets + self.deletes + self.expiries
    }

    /// Violations that begin so.
    pub fn violations_of(&self, kind: &str) -> usize {
        self.violations.iter().filter(|violation| violation.starts_with(kind)).count()
    }
}

/// The value in the middle, and the largest.
fn spread(values: &[i64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    match sorted.last() {
        Some(most) => format!("p50 {} ms, at most {most} ms of {}", sorted[sorted.len() / 2], sorted.len()),
        None => "none".to_owned(),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { watchers, sets, deletes, expiries, connections, resumes, elsewhere, .. } = self;
        let conflated = 100.0 * self.conflated as f64 / self.changes.max(1) as f64;
        let late = self.expired_after.iter().filter(|after| **after > EXPIRY_TOLD_MS).count();
        writeln!(
            out,
            "{watchers} watchers, {} acknowledged writes, {} events ({sets} sets, {deletes} deletes, {expiries} expiries); \
             {connections} connections, {resumes} resumes, {elsewhere} of them on another node; {} cut in the middle of an event, {} \
             lost, {} byes",
            self.acknowledged,
            self.events(),
            self.cut_inside,
            self.lost,
            self.byes,
        )?;
        writeln!(
            out,
            "  conflated {conflated:.1} % of {}; {} told again after a resume, {} deletes of what was not there",
            self.changes, self.repeated, self.needless_deletes
        )?;
        writeln!(
            out,
            "  expiry told after: {}, {late} after more than 3 s; to who was away, from the connection on: {}",
            spread(&self.expired_after),
            spread(&self.expired_while_away)
        )?;
        write!(
            out,
            "  {} comparisons with the log of {} keys in all; with a full scan: {} keys, {} differences; {} violations",
            self.comparisons,
            self.compared,
            self.scanned,
            self.differences,
            self.violations.len()
        )?;
        for violation in self.violations.iter().take(12) {
            write!(out, "\n  VIOLATION {violation}")?;
        }
        Ok(())
    }
}

/// Checks what watchers were told against the log, none of which may have been compacted away, what was acknowledged, and a scan
/// in the end.
pub fn check(watched: &[Watched], effects: &Effects, acknowledged: &[Acknowledged], scan: &Scan) -> Report {
    let mut report =
        Report { watchers: watched.len(), acknowledged: acknowledged.len(), ..Report::default() };
    for done in acknowledged {
        let there = effects.at(done.position);
        let same = there.is_some_and(|there| {
            there.in_effect && there.key == done.key && there.value.as_deref().map(digest) == done.value
        });
        if !same {
            report.violations.push(format!("acknowledged, and not in the log: {done:?}; it has {there:?}"));
        }
    }
    for watched in watched {
        count_connections(watched, &mut report);
        let mut follower = Follower::new(watched, effects, acknowledged, &mut report);
        for seen in &watched.seen {
            follower.take(seen);
        }
        follower.end(scan);
    }
    report
}

fn count_connections(watched: &Watched, report: &mut Report) {
    report.connections += watched.connections.len();
    for (i, connection) in watched.connections.iter().enumerate() {
        report.resumes += usize::from(connection.resumed);
        let is_elsewhere = i > 0 && watched.connections[i - 1].node != connection.node;
        report.elsewhere += usize::from(connection.resumed && is_elsewhere);
        match connection.end {
            End::Cut { inside_an_event } => report.cut_inside += usize::from(inside_an_event),
            End::Bye => report.byes += 1,
            End::Lost => report.lost += 1,
            End::Whole | End::Finished => {}
        }
    }
}

/// What a watcher knows of a key.
#[derive(Debug, Clone, Copy)]
struct Held {
    position: Position,
    /// What is told of a position: first its record, then perhaps that this has expired.
    expired: bool,
    live: bool,
    value: Option<u64>,
    connection: usize,
}

impl Held {
    fn rank(&self) -> (i64, bool) {
        (self.position.offset, self.expired)
    }
}

/// Goes through what one watcher was told.
struct Follower<'a> {
    watched: &'a Watched,
    effects: &'a Effects,
    acknowledged: &'a [Acknowledged],
    held: HashMap<&'a str, Held>,
    /// Up to where it was said that everything has been told.
    reached: BTreeMap<i32, i64>,
    /// The newest write of each key up to there.
    due: HashMap<&'a str, &'a Logged>,
    told: HashSet<(i32, i64)>,
    /// The last connection that said that it was current.
    current_on: Option<usize>,
    report: &'a mut Report,
}

impl<'a> Follower<'a> {
    fn new(
        watched: &'a Watched,
        effects: &'a Effects,
        acknowledged: &'a [Acknowledged],
        report: &'a mut Report,
    ) -> Self {
        let (held, due, told) = (HashMap::new(), HashMap::new(), HashSet::new());
        Follower {
            watched,
            effects,
            acknowledged,
            held,
            reached: BTreeMap::new(),
            due,
            told,
            current_on: None,
            report,
        }
    }

    fn violation(&mut self, what: &str, detail: impl fmt::Display) {
        self.report.violations.push(format!("{what}: {}: {detail}", self.watched.name));
    }

    fn take(&mut self, seen: &'a Seen) {
        match &seen.what {
            What::Set { key, position, value } => {
                self.report.sets += 1;
                self.event(seen, key, *position, *value);
            }
            What::Deleted { key, position } => {
                self.report.deletes += 1;
                self.event(seen, key, *position, None);
            }
            What::Expired { key, position } => {
                self.report.expiries += 1;
                self.event(seen, key, *position, None);
            }
            What::Reached { upto, current } => self.reach(seen, upto, *current),
            // Logs and stores are not replaced here.
            What::Gap(_) => self.violation("a gap", format!("{seen:?}")),
        }
    }

    fn event(&mut self, seen: &'a Seen, key: &'a str, position: Position, value: Option<u64>) {
        if !self.watched.wish.filter.matches(key) {
            self.violation("told of a key that is not watched", format!("{seen:?}"));
        }
        let (expired, live) = match seen.what {
            What::Set { .. } => (false, true),
            What::Expired { .. } => (true, false),
            _ => (false, false),
        };
        let there = self.effects.at(position);
        let is_true = there.is_some_and(|there| {
            let same = there.value.as_deref().map(digest) == value || !self.watched.wish.values;
            let kind = if expired { there.ttl > 0 } else { (there.ttl >= 0) == live && same };
            there.in_effect && there.key == key && kind
        });
        if !is_true {
            self.violation("told what is not in the log", format!("{seen:?}; it has {there:?}"));
        }
        let held = Held { position, expired, live, value, connection: seen.connection };
        let before = self.held.get(key).copied();
        match before.map(|before| (before.rank().cmp(&held.rank()), before)) {
            Some((std::cmp::Ordering::Greater, before)) => {
                self.violation("told what is older", format!("{seen:?} after {before:?}"));
                return;
            }
            Some((std::cmp::Ordering::Equal, before))
                if before.connection == seen.connection && !self.is_catching_up(seen.connection) =>
            {
                self.violation("told twice on one connection", format!("{seen:?} after {before:?}"));
            }
            Some((std::cmp::Ordering::Equal, _)) => self.report.repeated += 1,
            Some((std::cmp::Ordering::Less, before)) => {
                self.report.needless_deletes += usize::from(!live && !before.live);
                self.note_expiry(seen, there.filter(|_| expired));
            }
            None => {
                self.report.needless_deletes += usize::from(!live && self.watched.wish.initial);
                self.note_expiry(seen, there.filter(|_| expired));
            }
        }
        if !expired {
            self.told.insert((position.partition, position.offset));
        }
        self.held.insert(key, held);
    }

    /// Whether a connection goes on from a token and has not said yet that it is current: then it may tell again what it told.
    fn is_catching_up(&self, connection: usize) -> bool {
        self.current_on != Some(connection)
            && self.watched.connections.get(connection).is_some_and(|connection| connection.resumed)
    }

    fn note_expiry(&mut self, seen: &Seen, expired: Option<&Logged>) {
        let Some(expired) = expired else { return };
        let connected = self.watched.connections.get(seen.connection).map_or(0, |of| of.began);
        if seen.at < expired.ttl {
            self.violation("told too early that a key expired", format!("{seen:?}; the log has {expired:?}"));
        }
        if connected <= expired.ttl {
            self.report.expired_after.push(seen.at - expired.ttl);
        } else {
            self.report.expired_while_away.push(seen.at - connected);
        }
    }

    /// It was said that everything up to here has been told.
    fn reach(&mut self, seen: &Seen, upto: &BTreeMap<i32, i64>, current: bool) {
        for (partition, offset) in upto {
            let before = self.reached.get(partition).copied().unwrap_or(-1);
            if *offset < before {
                self.violation("a position went back", format!("{seen:?} after {:?}", self.reached));
                continue;
            }
            self.reached.insert(*partition, *offset);
            let effects = self.effects;
            let more = effects
                .writes
                .range((Bound::Excluded((*partition, before)), Bound::Included((*partition, *offset))));
            let filter = &self.watched.wish.filter;
            let more = more.map(|(_, logged)| logged);
            let more: Vec<&Logged> =
                more.filter(|logged| logged.in_effect && filter.matches(&logged.key)).collect();
            for logged in &more {
                self.due.insert(&logged.key, logged);
            }
            let keys: HashSet<&str> = more.iter().map(|logged| logged.key.as_str()).collect();
            for key in keys {
                self.look_for(key, seen.at);
            }
        }
        if current {
            self.current_on = Some(seen.connection);
            self.compare(seen);
        }
    }

    /// Whether it knows the newest write of a key, or something newer.
    fn look_for(&mut self, key: &str, at: i64) {
        let Some(due) = self.due.get(key).copied() else { return };
        let held = self.held.get(key);
        let is_known = held.is_some_and(|held| held.rank() >= (due.position.offset, false));
        let is_dead = |logged: &Logged| logged.value.is_none() || (logged.ttl > 0 && logged.ttl <= at);
        // What it is told may be newer than what is due: the key may have ended since.
        let ends_later = |later: &Logged| {
            later.position.offset > due.position.offset && later.timestamp <= at && is_dead(later)
        };
        let may_be_gone = is_dead(due) || self.effects.of_key(key).rev().any(ends_later);
        let is_gone = may_be_gone && held.is_none_or(|held| !held.live);
        let is_excused = held.is_none() && self.is_before(due);
        if !(is_known || is_gone || is_excused) {
            let held = held.copied();
            self.violation("not told", format!("{key}: {due:?} until {at}; it knows {held:?}"));
        }
    }

    /// Whether it need not be told, as it watches from later on.
    fn is_before(&self, logged: &Logged) -> bool {
        !self.watched.wish.initial && logged.timestamp <= self.watched.from
    }

    /// All that it knows is what the log has up to where it is, and that is all that had been acknowledged when it connected.
    fn compare(&mut self, seen: &Seen) {
        self.report.comparisons += 1;
        self.report.compared += self.held.len();
        let asked = self.watched.connections.get(seen.connection).map_or(0, |of| of.asked);
        let is_reached = |position: Position| {
            self.reached.get(&position.partition).is_some_and(|reached| *reached >= position.offset)
        };
        let ahead: Vec<_> = self.held.iter().filter(|(_, held)| !is_reached(held.position)).collect();
        let ahead = ahead.first().map(|(key, held)| format!("{seen:?}; of {key} it knows {held:?}"));
        let before = self.acknowledged.partition_point(|done| done.at < asked);
        let early = self.acknowledged[..before].iter().find(|done| !is_reached(done.position));
        let early = early.map(|done| format!("{seen:?}, and before {asked} there was {done:?}"));
        let expired = |held: &Held| {
            let there = self.effects.at(held.position);
            held.live && there.is_some_and(|there| there.ttl > 0 && there.ttl + EXPIRY_LOST_MS < seen.at)
        };
        let stays = self.held.iter().find(|(_, held)| expired(held));
        let stays = stays.map(|(key, held)| format!("{seen:?}; {key} {held:?}"));
        for (what, found) in [
            ("knows more than it was said to", ahead),
            ("current too early", early),
            ("an expired key is still there", stays),
        ] {
            if let Some(found) = found {
                self.violation(what, found);
            }
        }
    }

    /// In the end it knows what a full scan shows.
    fn end(mut self, scan: &Scan) {
        let watched = self.watched;
        let mut differences = Vec::new();
        let filter = &watched.wish.filter;
        for (key, (position, value)) in scan.iter().filter(|(key, _)| filter.matches(key)) {
            self.report.scanned += 1;
            let same_value = |held: &Held| held.value == Some(*value) || !watched.wish.values;
            match self.held.get(key.as_str()) {
                Some(held) if held.live && held.position == *position && same_value(held) => {}
                None if self.effects.at(*position).is_some_and(|logged| self.is_before(logged)) => {}
                held => differences.push(format!("{key}: a scan has {position:?}, it knows {held:?}")),
            }
        }
        for (key, held) in &self.held {
            if held.live && !scan.contains_key(*key) {
                differences.push(format!("{key}: a scan has nothing, it knows {held:?}"));
            }
        }
        self.report.differences += differences.len();
        for difference in differences {
            self.violation("ends with another state", difference);
        }
        for (place, logged) in &self.effects.writes {
            let is_wanted = logged.in_effect && filter.matches(&logged.key) && logged.value.is_some();
            if is_wanted && logged.timestamp > watched.from {
                self.report.changes += 1;
                self.report.conflated += usize::from(!self.told.contains(place));
            }
        }
    }
}
