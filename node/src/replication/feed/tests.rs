//! The buffer: what it keeps, what it gives away, and where somebody is in it.

use bitacora_protocol::Position;

use super::*;
use crate::clock::LogTime;
use crate::store::{Entry, Expired};
use crate::testing::entry_of_text;

const fn next(offsets: [i64; 2]) -> [NextOffset; 2] {
    [NextOffset(offsets[0]), NextOffset(offsets[1])]
}

fn point(offsets: [i64; 2], expired_until: i64) -> Point {
    Point { next: next(offsets).to_vec(), expired_until: WallTime::from_ms(expired_until) }
}

fn entry(partition: i32, offset: i64, ttl: i64) -> Entry {
    entry_of_text("k", Position { partition, offset }, LogTime::from_ms(1), ttl, "a record")
}

fn change(key: &str, before: Option<Entry>, after: Option<Entry>) -> Change {
    Change { key: key.into(), change: KeyChange { before, after, was_there_between: false } }
}

fn feed(capacity: usize) -> Feed {
    let feed = Feed::with_capacity(capacity);
    feed.restart(LogTag(1), &next([0, 0]), WallTime::from_ms(100));
    feed
}

fn all(feed: &Feed, from: u64) -> Vec<(String, Kind, i64)> {
    let found = feed.events(1, from, usize::MAX).expect("they are there").events;
    found.iter().map(|event| (event.key.to_string(), event.kind, event.position().offset)).collect()
}

#[test]
fn what_a_change_is_depends_on_what_was_live() {
    let live = |offset| Some(entry(0, offset, 0));
    let deleted = |offset| Some(entry(0, offset, -1));
    let ends = |offset, at| Some(entry(0, offset, at));
    for (before, after, expected) in [
        (None, live(5), Some(Kind::Set)),
        (live(4), live(5), Some(Kind::Set)),
        (deleted(4), live(5), Some(Kind::Set)),
        (live(4), deleted(5), Some(Kind::Deleted)),
        (deleted(4), deleted(5), None),
        (None, deleted(5), None),
        (ends(4, 101), deleted(5), Some(Kind::Deleted)),
        // That was told already.
        (ends(4, 100), deleted(5), None),
        (live(4), ends(5, 100), Some(Kind::Expired)),
        (None, ends(5, 101), Some(Kind::Set)),
        // The same record, in another role.
        (live(5), live(5), None),
        (live(5), None, Some(Kind::Deleted)),
        (deleted(5), None, None),
    ] {
        let feed = feed(1 << 20);
        feed.push(Some(vec![change("k", before.clone(), after.clone())]), &next([6, 0]));
        let found = feed.events(1, 0, 9).expect("they are there").events;
        let news = found.iter().filter(|event| event.is_news(None));
        let kinds: Vec<_> = news.map(|event| event.kind).collect();
        assert_eq!(kinds, Vec::from_iter(expected), "{before:?} to {after:?}");
    }
}

/// Another node may have shown what this one never did.
#[test]
fn what_was_never_shown_is_news_to_who_is_ahead_only() {
    let change = |before, after, was_there_between| {
        let change = KeyChange { before, after: Some(after), was_there_between };
        let feed = feed(1 << 20);
        feed.push(Some(vec![Change { key: "k".into(), change }]), &next([6, 0]));
        let found = feed.events(1, 0, 9).expect("they are there").events;
        found.first().map(|event| {
            [None, Some(point([0, 0], 100)), Some(point([4, 0], 100))]
                .map(|floor| event.is_news(floor.as_ref()))
        })
    };
    let ahead_only = Some([false, false, true]);
    assert_eq!(change(None, entry(0, 5, -1), false), None);
    assert_eq!(change(None, entry(0, 5, -1), true), ahead_only);
    assert_eq!(change(None, entry(0, 3, 100), false), ahead_only);
    assert_eq!(change(Some(entry(0, 3, 100)), entry(0, 5, -1), false), ahead_only);
}

#[test]
fn events_of_a_transaction_are_in_the_logs_order_each_with_its_point() {
    let feed = feed(1 << 20);
    let changes = vec![
        change("a", None, Some(entry(1, 3, 0))),
        change("b", None, Some(entry(0, 7, 0))),
        change("c", None, Some(entry(0, 2, 0))),
    ];
    feed.push(Some(changes), &next([9, 5]));
    let found = feed.events(1, 0, 9).expect("they are there");
    let points: Vec<_> = found.events.iter().map(|event| (&*event.key, event.point())).collect();
    let expected = [("c", point([3, 0], 100)), ("b", point([8, 0], 100)), ("a", point([9, 4], 100))];
    assert_eq!(points, expected);
    assert_eq!(found.point.as_deref(), Some(&point([9, 5], 100)));
}

#[test]
fn a_lost_place_is_told() {
    let feed = feed(3_000);
    for offset in 0..20 {
        let changes = vec![change("k", None, Some(entry(0, offset, 0)))];
        feed.push(Some(changes), &next([offset + 1, 0]));
    }
    assert!(feed.bytes() <= 3_000, "{}", feed.bytes());
    assert!(matches!(feed.events(1, 0, 9), Err(Lost)), "the first have left");
    assert_eq!(feed.locate(1, &point([3, 0], 100)), Err(Lost));
    let place = feed.locate(1, &point([18, 0], 100)).expect("it is there");
    assert_eq!(all(&feed, place), [("k".into(), Kind::Set, 18), ("k".into(), Kind::Set, 19)]);
    assert_eq!(feed.locate(1, &point([18, 0], 99)), Err(Lost), "what expired until then is not in it");
    assert_eq!(feed.locate(2, &point([18, 0], 100)), Err(Lost), "of another store");
}

#[test]
fn a_page_of_the_store_has_its_place() {
    let feed = feed(1 << 20);
    let push = |key: &str, offset: i64| {
        feed.push(Some(vec![change(key, None, Some(entry(0, offset, 0)))]), &next([offset + 1, 0]));
    };
    push("a", 0);
    // Nothing but a barrier.
    feed.push(Some(Vec::new()), &next([2, 0]));
    push("b", 2);
    let at = |offset| match feed.at_store(1, &next([offset, 0])) {
        Ok(AtStore::At(end, _)) => Some(end),
        Ok(AtStore::NotYet) => None,
        Err(Lost) => panic!("{offset} is lost"),
    };
    assert_eq!([at(0), at(1), at(2), at(3), at(4)], [Some(0), Some(1), Some(1), Some(2), None]);
    let expired = Expired { key: "e".into(), entry: entry(0, 0, 150) };
    if let Some(ring) = feed.ring.write().as_mut() {
        ring.push_expired(vec![expired], WallTime::from_ms(200), 1 << 20);
    }
    push("c", 3);
    assert_eq!([at(2), at(3), at(4)], [Some(1), Some(3), Some(4)], "of a page, what has expired is told");
}

#[test]
fn without_readers_nothing_is_kept_and_a_place_from_before_is_lost() {
    let feed = feed(1 << 20);
    assert!(!feed.wants_changes());
    let begun = feed.begin().expect("it is followed");
    assert!(feed.wants_changes(), "somebody reads");
    feed.push(None, &next([4, 0]));
    assert!(matches!(feed.events(1, begun.end, 9), Err(Lost)));
    assert_eq!(feed.locate(1, &point([3, 0], 100)), Err(Lost));
    let view = feed.look().expect("it is followed");
    assert_eq!((feed.bytes(), &*view.point), (0, &point([4, 0], 100)));
    assert_eq!(all(&feed, view.end), []);
}

#[test]
fn new_partitions_keep_the_buffer_and_another_store_does_not() {
    let feed = feed(1 << 20);
    feed.push(Some(vec![change("k", None, Some(entry(0, 0, 0)))]), &next([1, 0]));
    let more = [next([1, 0]).as_slice(), &[NextOffset(0)]].concat();
    feed.resume(LogTag(1), &more, WallTime::from_ms(200));
    assert_eq!(all(&feed, 0).len(), 1);
    feed.suspend();
    assert!(feed.look().is_none() && feed.events(1, 0, 9).is_err());
    feed.resume(LogTag(1), &more, WallTime::from_ms(200));
    let view = feed.look().expect("it is followed");
    assert_eq!((view.generation, view.end, view.point.expired_until.ms()), (2, 0, 200));
}

#[test]
fn what_has_been_told_is_within_a_point() {
    let feed = feed(1 << 20);
    feed.push(Some(vec![change("k", None, Some(entry(0, 5, 0)))]), &next([9, 0]));
    // A repair puts an older record in the place of another one.
    feed.push(Some(vec![change("r", None, Some(entry(0, 3, 0)))]), &next([12, 0]));
    let found = feed.events(1, 0, 9).expect("they are there").events;
    let within = |offset| [0, 1].map(|event: usize| found[event].is_within(&point([offset, 0], 100)));
    assert_eq!(
        [within(5), within(6), within(11), within(12)],
        [[false, false], [true, false], [true, false], [true, true]]
    );
}
