//! The checks of watches see each wrong one, and take no right one for wrong.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use e2e::consistency::effects::Effects;
use e2e::http::Position;
use e2e::runner::{Ctx, Test};
use e2e::tests;
use e2e::topic::{KeyValue, Record};
use e2e::watches::check::{self, Report, Scan};
use e2e::watches::sse::{Frame, Parser};
use e2e::watches::{Acknowledged, Connection, End, Filter, Seen, Watched, Way, What, Wish, digest};

pub fn tests() -> Vec<Test> {
    tests![
        Nothing: right_watches_are_well,
            each_wrong_watch_is_seen,
            events_are_read_wherever_they_are_cut
    ]
}

/// When `b` expires, in ms since the epoch.
const EXPIRES: i64 = 2_000;

fn at(offset: i64) -> Position {
    Position { partition: 0, offset }
}

fn set(key: &str, offset: i64, value: &str) -> What {
    What::Set { key: key.to_owned(), position: at(offset), value: Some(digest(value)) }
}

fn deleted(key: &str, offset: i64) -> What {
    What::Deleted { key: key.to_owned(), position: at(offset) }
}

fn expired(key: &str, offset: i64) -> What {
    What::Expired { key: key.to_owned(), position: at(offset) }
}

fn reached(offset: i64, current: bool) -> What {
    What::Reached { upto: BTreeMap::from([(0, offset)]), current }
}

fn seen(connection: usize, at: i64, what: What) -> Seen {
    Seen { at, connection, what }
}

/// A record of the log; appended 100 ms after the one before.
fn logged(offset: i64, key: &str, value: Option<&str>, ttl: i64, attempt: Option<&str>) -> Record {
    let record = KeyValue { ttl, ..KeyValue::new(key, value.unwrap_or_default()) };
    let header = attempt.map(|text| ("bitacora-attempt".to_owned(), text.as_bytes().to_vec()));
    Record {
        position: at(offset),
        timestamp: offset * 100,
        key: Some(key.into()),
        value: Some(record.to_avro()),
        headers: header.into_iter().collect(),
    }
}

fn log() -> Result<Effects> {
    Effects::of(vec![
        logged(0, "a", Some("1"), 0, None),
        logged(1, "b", Some("2"), EXPIRES, None),
        logged(2, "a", None, -1, None),
        logged(3, "a", Some("3"), 0, None),
        // It expects another version, so it takes no effect.
        logged(4, "a", Some("4"), 0, Some("1:live:9999:0")),
        logged(5, "c", Some("5"), 0, None),
    ])
}

/// A watcher, what had been acknowledged, and a scan in the end.
#[derive(Clone)]
struct Watch {
    watched: Watched,
    acknowledged: Vec<Acknowledged>,
    scan: Scan,
}

impl Watch {
    /// One from the beginning, which goes on at another node in between.
    fn right() -> Watch {
        let connection =
            |node, resumed, asked, end| Connection { node, resumed, asked, began: asked + 1, end };
        let watched = Watched {
            name: "watcher".to_owned(),
            wish: Wish::new(Way::Events, Filter::All, true),
            from: 151,
            connections: vec![
                connection(0, false, 150, End::Cut { inside_an_event: true }),
                connection(1, true, 350, End::Finished),
            ],
            seen: vec![
                seen(0, 160, set("a", 0, "1")),
                seen(0, 160, set("b", 1, "2")),
                seen(0, 160, reached(1, true)),
                seen(0, 250, deleted("a", 2)),
                seen(1, 360, set("a", 3, "3")),
                seen(1, 510, set("c", 5, "5")),
                seen(1, 520, reached(5, true)),
                seen(1, 2_100, expired("b", 1)),
                seen(1, 2_200, reached(5, true)),
            ],
        };
        let done = |key: &str, offset, value: Option<&str>, at_ms| Acknowledged {
            key: key.to_owned(),
            position: at(offset),
            value: value.map(digest),
            at: at_ms,
        };
        Watch {
            watched,
            acknowledged: vec![
                done("a", 0, Some("1"), 5),
                done("a", 2, None, 205),
                done("a", 3, Some("3"), 305),
            ],
            scan: Scan::from([
                ("a".to_owned(), (at(3), digest("3"))),
                ("c".to_owned(), (at(5), digest("5"))),
            ]),
        }
    }

    fn with(change: impl FnOnce(&mut Watch)) -> Watch {
        let mut watch = Watch::right();
        change(&mut watch);
        watch
    }

    fn without(what: &What) -> Watch {
        Watch::with(|watch| watch.watched.seen.retain(|seen| seen.what != *what))
    }

    fn replaced(old: &What, new: What) -> Watch {
        Watch::with(|watch| {
            let found = watch.watched.seen.iter_mut().find(|seen| seen.what == *old);
            found.expect("it is there").what = new;
        })
    }

    fn check(&self) -> Result<Report> {
        Ok(check::check(std::slice::from_ref(&self.watched), &log()?, &self.acknowledged, &self.scan))
    }
}

async fn right_watches_are_well(_: Ctx) -> Result<()> {
    let from_now = |watch: &mut Watch| {
        watch.watched.wish.initial = false;
        watch.watched.seen.drain(..2);
    };
    let conflated = |watch: &mut Watch| {
        watch.watched.seen.retain(|seen| seen.what != deleted("a", 2));
    };
    let repeated = |watch: &mut Watch| watch.watched.seen.insert(4, seen(1, 355, deleted("a", 2)));
    let repeated_on_one = |watch: &mut Watch| watch.watched.seen.insert(5, seen(1, 410, set("a", 3, "3")));
    let never_seen_alive = |watch: &mut Watch| {
        watch.watched.seen.retain(|seen| !matches!(&seen.what, What::Set { key, .. } if key == "b"));
        watch.watched.seen.retain(|seen| !matches!(&seen.what, What::Expired { .. }));
        watch.watched.seen.retain(|seen| !matches!(&seen.what, What::Reached { upto, .. } if upto[&0] == 1));
        watch.watched.seen.retain(|seen| seen.at != 520);
    };
    let of_a_prefix = |watch: &mut Watch| {
        watch.watched.wish.filter = Filter::Prefix("a".to_owned());
        watch.watched.seen.retain(|seen| match &seen.what {
            What::Set { key, .. } | What::Deleted { key, .. } | What::Expired { key, .. } => key == "a",
            _ => true,
        });
    };
    let right = Watch::right().check()?;
    ensure!(right.violations.is_empty(), "{right}");
    ensure!((right.sets, right.deletes, right.expiries, right.elsewhere) == (4, 1, 1, 1), "{right}");
    ensure!((right.changes, right.conflated, right.cut_inside) == (2, 0, 1), "{right}");
    ensure!(right.expired_after == [100] && right.differences == 0 && right.scanned == 2, "{right}");
    for (what, change) in [
        ("from now on", &from_now as &dyn Fn(&mut Watch)),
        ("a state is left out", &conflated),
        ("told again after a resume", &repeated),
        ("told again while it catches up", &repeated_on_one),
        ("it expired before it was told", &never_seen_alive),
        ("only a prefix", &of_a_prefix),
    ] {
        let report = Watch::with(change).check()?;
        ensure!(report.violations.is_empty(), "{what}: {report}");
    }
    ensure!(Watch::with(repeated).check()?.repeated == 1, "what is told again is counted");
    Ok(())
}

/// Each wrong watch, and what is said of it.
fn wrong() -> Vec<(&'static str, &'static str, Watch)> {
    let insert = |place, what| Watch::with(|watch| watch.watched.seen.insert(place, what));
    let from_now = Watch::with(|watch| {
        watch.watched.wish.initial = false;
        watch.watched.seen.retain(|seen| seen.what != set("c", 5, "5"));
    });
    let not_in_the_log = "told what is not in the log";
    vec![
        ("another value", not_in_the_log, Watch::replaced(&set("a", 3, "3"), set("a", 3, "x"))),
        ("a position of nothing", not_in_the_log, Watch::replaced(&set("c", 5, "5"), set("c", 7, "5"))),
        ("what took no effect", not_in_the_log, insert(5, seen(1, 410, set("a", 4, "4")))),
        ("another key's", not_in_the_log, Watch::replaced(&set("c", 5, "5"), set("a", 5, "5"))),
        ("a delete that is a set", not_in_the_log, insert(5, seen(1, 410, deleted("c", 5)))),
        ("a set that is a delete", not_in_the_log, Watch::replaced(&deleted("a", 2), set("a", 2, ""))),
        ("no time to live", not_in_the_log, insert(5, seen(1, 410, expired("a", 3)))),
        ("back to an older record", "told what is older", insert(5, seen(1, 410, deleted("a", 2)))),
        ("alive after it expired", "told what is older", insert(8, seen(1, 2_150, set("b", 1, "2")))),
        ("twice at first", "told twice on one connection", insert(1, seen(0, 160, set("a", 0, "1")))),
        ("twice in the end", "told twice on one connection", insert(8, seen(1, 2_150, expired("b", 1)))),
        (
            "before its time",
            "told too early that a key expired",
            Watch::with(|watch| watch.watched.seen[7].at = EXPIRES - 1),
        ),
        ("a step back", "a position went back", insert(7, seen(1, 600, reached(3, false)))),
        ("the last set is missing", "not told", Watch::without(&set("c", 5, "5"))),
        ("one before the last", "not told", Watch::without(&set("a", 3, "3"))),
        ("the state at the beginning", "not told", Watch::without(&set("a", 0, "1"))),
        (
            "the delete before a position",
            "not told",
            insert(4, seen(0, 255, reached(2, false))).and(|watch| {
                watch.watched.seen.retain(|seen| seen.what != deleted("a", 2));
            }),
        ),
        ("after it began", "not told", from_now),
        (
            "beyond where it is",
            "knows more than it was said to",
            Watch::replaced(&reached(5, true), reached(4, true)),
        ),
        (
            "an acknowledged write is not in it",
            "current too early",
            Watch::with(|watch| watch.watched.connections[1].asked = 600).and(|watch| {
                let value = Some(digest("5"));
                watch.acknowledged.push(Acknowledged {
                    key: "c".to_owned(),
                    position: at(5),
                    value,
                    at: 505,
                });
                watch.watched.seen[6].what = reached(4, true);
            }),
        ),
        (
            "the expiry is missing",
            "an expired key is still there",
            Watch::without(&expired("b", 1)).and(|watch| watch.watched.seen[7].at = EXPIRES + 20_000),
        ),
        ("the expiry is missing", "ends with another state", Watch::without(&expired("b", 1))),
        (
            "the delete is missing in the end",
            "ends with another state",
            Watch::with(|watch| watch.scan.retain(|key, _| key != "a")),
        ),
        (
            "another value in the end",
            "ends with another state",
            Watch::with(|watch| watch.scan.extend([("c".to_owned(), (at(5), 0))])),
        ),
        (
            "another key",
            "told of a key that is not watched",
            Watch::with(|watch| watch.watched.wish.filter = Filter::Key("a".to_owned())),
        ),
        ("a gap", "a gap", insert(4, seen(1, 355, What::Gap("another log".to_owned())))),
        (
            "lost by the log",
            "acknowledged, and not in the log",
            Watch::with(|watch| watch.acknowledged[0].value = None),
        ),
    ]
}

impl Watch {
    fn and(mut self, change: impl FnOnce(&mut Watch)) -> Watch {
        change(&mut self);
        self
    }
}

async fn each_wrong_watch_is_seen(_: Ctx) -> Result<()> {
    for (what, kind, watch) in wrong() {
        let report = watch.check()?;
        ensure!(report.violations_of(kind) > 0, "{what}: no {kind:?} is seen: {report}");
    }
    Ok(())
}

async fn events_are_read_wherever_they_are_cut(_: Ctx) -> Result<()> {
    let stream = "retry: 500\n\nevent: set\nid: one\ndata: {\"value\":\"ü\\n\"}\n\n:\n\nevent: bye\nid: two\ndata: {}\n\n";
    let frame = |event: &str, id: &str, data: &str| Frame {
        event: event.to_owned(),
        id: id.to_owned(),
        data: data.to_owned(),
    };
    let expected = [frame("set", "one", "{\"value\":\"ü\\n\"}"), frame("bye", "two", "{}")];
    let bytes = stream.as_bytes();
    for cut in 0..=bytes.len() {
        let (mut parser, mut frames) = (Parser::default(), Vec::new());
        for part in [&bytes[..cut], &bytes[cut..]] {
            parser.push(part);
            while let Some(frame) = parser.frame().with_context(|| format!("cut at {cut}"))? {
                frames.push(frame);
            }
        }
        ensure!(frames == expected && !parser.is_inside(), "cut at {cut}: {frames:?}");
    }
    let mut parser = Parser::default();
    parser.push(b"event: set\nid: one\n");
    ensure!(parser.frame()?.is_none() && parser.is_inside(), "it is not whole");
    Ok(())
}
