//! Conditional writes of one key take turns in this node: a hundred clients that fight for a lock cost one record, since those
//! who come after the winner see what it wrote. Nothing is held for a key that nobody waits for.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::clock::Moment;

/// Until when everything that was appended to the key's partition has been applied here, as far as those who had their turn
/// found out; `None` if nobody did.
type AppliedSince = Option<Moment>;
type KeyTurn = Arc<tokio::sync::Mutex<AppliedSince>>;

/// The keys that are being written on a condition.
#[derive(Clone, Default)]
pub struct Turns(Arc<Mutex<HashMap<Box<str>, KeyTurn>>>);

/// The turn of one caller; the next one's begins when it is dropped.
pub struct Turn {
    // Before the place, so that the place is the last to know of the key.
    applied: OwnedMutexGuard<AppliedSince>,
    _place: Place,
}

/// A place in a key's queue, with or without its turn.
struct Place {
    turns: Turns,
    key: Box<str>,
    turn: KeyTurn,
}

impl Turns {
    /// Waits for the turn of this key, behind those who came before. May be dropped while it waits.
    pub async fn wait(&self, key: &str) -> Turn {
        let turn = Arc::clone(self.0.lock().entry(key.into()).or_default());
        let place = Place { turns: self.clone(), key: key.into(), turn };
        let applied = Arc::clone(&place.turn).lock_owned().await;
        Turn { applied, _place: place }
    }

    #[cfg(test)]
    pub fn keys(&self) -> usize {
        self.0.lock().len()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut turns = self.turns.0.lock();
        // The map's, and this one: nobody else waits, for whoever does has taken a count under the lock.
        if Arc::strong_count(&self.turn) == 2 {
            turns.remove(&self.key);
        }
    }
}

impl Turn {
    /// Whether what this node holds of the key is as new as a caller may expect who came at this moment.
    pub fn is_fresh_for(&self, arrived: Moment) -> bool {
        self.applied.is_some_and(|since| since >= arrived)
    }

    /// Everything that had been appended to the key's partition by this moment has been applied.
    pub fn note_applied(&mut self, until: Moment) {
        *self.applied = (*self.applied).max(Some(until));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{FutureExt as _, poll};

    use super::*;

    #[tokio::test]
    async fn callers_of_a_key_take_turns_in_their_order() {
        let turns = Turns::default();
        let first = turns.wait("k").await;
        let mut second = Box::pin(turns.wait("k"));
        let mut third = Box::pin(turns.wait("k"));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        assert!(turns.wait("other").now_or_never().is_some());
        drop(first);
        assert!(poll!(&mut third).is_pending());
        let second = second.await;
        assert!(poll!(&mut third).is_pending());
        drop(second);
        drop(third.await);
        assert_eq!(turns.keys(), 0);
    }

    #[tokio::test]
    async fn nothing_is_held_for_callers_that_have_gone() {
        let turns = Turns::default();
        let first = turns.wait("k").await;
        let mut second = Box::pin(turns.wait("k"));
        assert!(poll!(&mut second).is_pending());
        drop(first);
        // It has its turn, and goes without having noticed.
        drop(second);
        assert_eq!(turns.keys(), 0);
        drop(turns.wait("k"));
        assert_eq!(turns.keys(), 0);
    }

    #[tokio::test]
    async fn who_came_before_the_last_look_needs_no_other() {
        let turns = Turns::default();
        let at = |seconds| Moment(Duration::from_secs(seconds));
        let mut first = turns.wait("k").await;
        assert!(!first.is_fresh_for(at(0)));
        let mut second = Box::pin(turns.wait("k"));
        assert!(poll!(&mut second).is_pending());
        first.note_applied(at(5));
        first.note_applied(at(3));
        drop(first);
        let second = second.await;
        assert!(second.is_fresh_for(at(4)) && second.is_fresh_for(at(5)) && !second.is_fresh_for(at(6)));
        drop(second);
        assert!(!turns.wait("k").await.is_fresh_for(at(0)), "nothing is kept");
    }
}
