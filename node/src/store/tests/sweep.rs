use std::time::Duration;

use super::*;
use crate::store::sweep::MAX_KEYS_PER_SWEEP;

#[test]
fn expired_values_go_and_their_positions_stay() {
    let (_dir, store) = filled(&[]);
    let expires = |offset, ttl: i64| entry_of_text("k", at(offset), log_ms(100), ttl, "a long value");
    apply(&store, expires(1, 500));
    assert!(shown(&store).is_some(), "it is cached");
    assert_eq!(
        store.sweep(log_ms(499), Duration::ZERO, Some(log_ms(499)), Duration::ZERO).expect("swept").changed,
        0
    );
    assert_eq!(
        store.sweep(log_ms(500), Duration::ZERO, Some(log_ms(500)), Duration::ZERO).expect("swept").changed,
        1
    );
    let (entry, tier) = store.get(b"k").expect("readable").expect("it is still an answer");
    assert_eq!((entry.position(), entry.ttl(), entry.has_record()), (at(1), 500, false));
    assert_eq!(tier, Tier::Store, "it left the cache");
    assert_eq!(entry.state(wall_ms(0)), State::Expired, "also if the clock goes back");
    assert_eq!(
        store
            .sweep(log_ms(i64::MAX), Duration::ZERO, Some(log_ms(i64::MAX)), Duration::ZERO)
            .expect("swept")
            .changed,
        0,
        "nothing is left to do"
    );
    // What was replaced before it expired is not swept for it.
    apply(&store, expires(2, 700));
    apply(&store, expires(3, 900));
    assert_eq!(
        store.sweep(log_ms(899), Duration::ZERO, Some(log_ms(899)), Duration::ZERO).expect("swept").changed,
        0
    );
    assert_eq!(
        store.sweep(log_ms(900), Duration::ZERO, Some(log_ms(900)), Duration::ZERO).expect("swept").changed,
        1
    );
}

#[test]
fn old_tombstones_are_forgotten_once_caught_up() {
    let (_dir, store) = filled(&[]);
    let tombstone = entry_of_text("k", at(1), log_ms(1_000), -1, "");
    apply(&store, write(0, "value"));
    apply(&store, tombstone);
    let sweep = |now, caught_up: bool| {
        store
            .sweep(log_ms(now), Duration::from_millis(500), caught_up.then_some(log_ms(now)), Duration::ZERO)
            .expect("swept")
            .changed
    };
    assert_eq!(sweep(1_499, true), 0);
    assert!(shown(&store).is_some(), "it is an answer");
    assert_eq!(sweep(1_500, false), 0, "the log may have more to say");
    assert_eq!(sweep(1_501, true), 0, "it is not looked at for ever");
    assert!(shown(&store).is_some());
    assert_eq!(sweep(1_500 + SWEEP_AGAIN_MS, true), 1);
    assert_eq!(store.get(b"k").expect("readable"), None);
    apply(&store, entry_of_text("k", at(2), log_ms(20_000), -1, ""));
    for (now, swept) in [(20_000, 0), (20_499, 0), (20_500, 1)] {
        assert_eq!(sweep(now, true), swept, "{now}");
    }
    // Not while it hides what another partition holds.
    apply(&store, entry(1, 0, 30_000, "left"));
    apply(&store, entry_of_text("k", at(3), log_ms(30_001), -1, ""));
    assert_eq!(sweep(31_000, true), 0);
    apply(
        &store,
        Change::Trim {
            at: Position { partition: 1, offset: 1 },
            timestamp: log_ms(0),
            offset: 0,
            settles: 1,
            complete: true,
        },
    );
    assert_eq!(sweep(31_000 + SWEEP_AGAIN_MS, true), 1);
    assert_eq!(store.get(b"k").expect("readable"), None);
}

#[test]
fn a_sweep_of_many_keys_says_that_there_is_more() {
    let (_dir, store) = filled(&[]);
    let keys = (0..=MAX_KEYS_PER_SWEEP).map(|number| format!("k{number:04}")).collect::<Vec<_>>();
    let entries = keys.iter().zip(1..).map(|(key, offset)| {
        (key.as_bytes(), entry_of_text(key, at(offset), log_ms(100), 500, "value").into())
    });
    store.apply(&mut entries.collect(), &[]).expect("applied");
    let sweep =
        || store.sweep(log_ms(500), Duration::ZERO, Some(log_ms(500)), Duration::ZERO).expect("swept");
    assert_eq!(sweep(), Swept { changed: MAX_KEYS_PER_SWEEP, is_full: true });
    assert_eq!(sweep(), Swept { changed: 1, is_full: false });
    assert_eq!(sweep(), Swept { changed: 0, is_full: false });
}
