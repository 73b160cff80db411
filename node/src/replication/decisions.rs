//! What became of conditional writes, told to whoever waits for it. Who sends one begins to wait before it is appended, so that what
//! becomes of it is known however fast it is applied.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::store::{Decided, Decision, UuidText};
use bitacora_protocol::Position;

/// So many decisions are kept for one who waits: the same conditional write may be in the log more than once.
const MAX_DECISIONS: usize = 16;

/// Who waits for which conditional writes. There are as many as there are requests under way.
#[derive(Default)]
pub struct Decisions(Mutex<Waiters>);

#[derive(Default)]
struct Waiters {
    /// By the write's uuid.
    by_uuid: HashMap<String, Vec<Waiter>>,
    /// Of the next one.
    number: u64,
}

struct Waiter {
    number: u64,
    key: Vec<u8>,
    decided: watch::Sender<Vec<Decided>>,
}

impl Decisions {
    /// Begins to wait for what becomes of the conditional writes of a key that have this uuid, from now until what is returned is
    /// dropped.
    #[must_use]
    pub fn wait_for(self: &Arc<Self>, key: &[u8], uuid: &str) -> Waiting {
        let (decided, told) = watch::channel(Vec::new());
        let mut waiters = self.0.lock();
        waiters.number += 1;
        let number = waiters.number;
        let waiter = Waiter { number, key: key.to_vec(), decided };
        waiters.by_uuid.entry(uuid.to_owned()).or_default().push(waiter);
        Waiting { decisions: Arc::clone(self), uuid: uuid.to_owned(), number, told }
    }

    /// These were applied, and are in the store; in the order of each partition.
    pub fn tell(&self, decided: &[Decided]) {
        if decided.is_empty() {
            return;
        }
        let waiters = self.0.lock();
        if waiters.by_uuid.is_empty() {
            return;
        }
        for decided in decided {
            let mut uuid = UuidText::default();
            let Some(record) = decided.entry.record(&mut uuid) else { continue };
            let of_uuid = waiters.by_uuid.get(record.uuid).into_iter().flatten();
            for waiter in of_uuid.filter(|waiter| waiter.key == record.key.as_bytes()) {
                waiter.decided.send_if_modified(|all| {
                    let has_room = all.len() < MAX_DECISIONS;
                    if has_room {
                        all.push(decided.clone());
                    }
                    has_room
                });
            }
        }
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lock().by_uuid.values().map(Vec::len).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Waits for what becomes of the conditional writes of one key and uuid; no longer when it is dropped.
pub struct Waiting {
    decisions: Arc<Decisions>,
    uuid: String,
    number: u64,
    told: watch::Receiver<Vec<Decided>>,
}

impl Waiting {
    /// Waits until one of them has taken effect, whichever; or until something else became of the one at `position`, or of any if that is
    /// not known: that does not tell what becomes of the others. Where a write entered the log twice, the second is void, and the first has been told before it. Waits for ever if
    /// nothing is ever told: the caller has a deadline. May be called again after it was given up.
    pub async fn decided(&mut self, position: Option<Position>) -> Decided {
        let settles = |decided: &&Decided| {
            decided.decision == Decision::InEffect
                || position.is_none_or(|position| decided.entry.position() == position)
        };
        loop {
            if let Some(decided) = self.told.borrow_and_update().iter().find(settles) {
                return decided.clone();
            }
            if self.told.changed().await.is_err() {
                // Never: it is dropped with this.
                std::future::pending::<()>().await;
            }
        }
    }

    /// All that was told so far, in the order of the log.
    #[must_use]
    pub fn told(&self) -> Vec<Decided> {
        self.told.borrow().clone()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiters = self.decisions.0.lock();
        if let Some(of_uuid) = waiters.by_uuid.get_mut(&self.uuid) {
            of_uuid.retain(|waiter| waiter.number != self.number);
            if of_uuid.is_empty() {
                waiters.by_uuid.remove(&self.uuid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bitacora_protocol::record::{KeyValue, source};
    use futures_util::FutureExt as _;

    use super::*;
    use crate::clock::LogTime;
    use crate::store::Entry;

    fn decided(key: &str, uuid: &str, offset: i64, decision: Decision) -> Decided {
        let record = KeyValue { key, value: "v", timestamp: 1, source: source::PRODUCER, ttl: 0, uuid };
        let entry = Entry::new(Position { partition: 0, offset }, LogTime::from_ms(1), &record);
        Decided { entry, decision }
    }

    fn at(offset: i64) -> Position {
        Position { partition: 0, offset }
    }

    #[test]
    fn what_was_told_before_anybody_looks_is_known() {
        let decisions = Arc::<Decisions>::default();
        let mut waiting = decisions.wait_for(b"k", "u");
        decisions.tell(&[decided("k", "u", 5, Decision::InEffect)]);
        let found = waiting.decided(Some(at(5))).now_or_never().expect("it was told");
        assert_eq!((found.entry.position(), found.decision), (at(5), Decision::InEffect));
    }

    #[test]
    fn only_the_same_key_and_uuid_are_told() {
        let decisions = Arc::<Decisions>::default();
        let mut waiting = decisions.wait_for(b"k", "u");
        decisions.tell(&[
            decided("k", "v", 5, Decision::InEffect),
            decided("l", "u", 6, Decision::InEffect),
            decided("k", "u", 7, Decision::Void),
        ]);
        assert!(waiting.decided(Some(at(8))).now_or_never().is_none());
        assert_eq!(waiting.told(), [decided("k", "u", 7, Decision::Void)]);
        let any = waiting.decided(None).now_or_never().expect("whichever it is");
        assert_eq!(any.decision, Decision::Void);
    }

    #[test]
    fn of_two_that_are_the_same_the_one_in_effect_counts() {
        let decisions = Arc::<Decisions>::default();
        let (mut waiting, mut second) = (decisions.wait_for(b"k", "u"), decisions.wait_for(b"k", "u"));
        decisions.tell(&[decided("k", "u", 5, Decision::InEffect), decided("k", "u", 6, Decision::Void)]);
        for waiting in [&mut waiting, &mut second] {
            let found = waiting.decided(Some(at(6))).now_or_never().expect("it was told");
            assert_eq!(found.entry.position().offset, 5);
        }
    }

    #[tokio::test]
    async fn who_waits_is_woken_and_forgotten_when_gone() {
        let decisions = Arc::<Decisions>::default();
        let mut waiting = decisions.wait_for(b"k", "u");
        let other = decisions.wait_for(b"k", "u");
        drop(other);
        let teller = Arc::clone(&decisions);
        let waiter = tokio::spawn(async move { waiting.decided(Some(at(5))).await.decision });
        tokio::task::yield_now().await;
        teller.tell(&[decided("k", "u", 5, Decision::Unknown)]);
        assert_eq!(waiter.await.expect("no panic"), Decision::Unknown);
        assert!(decisions.is_empty(), "{}", decisions.len());
    }

    #[test]
    fn a_bounded_number_is_kept() {
        let decisions = Arc::<Decisions>::default();
        let waiting = decisions.wait_for(b"k", "u");
        for offset in 0..100 {
            decisions.tell(&[decided("k", "u", offset, Decision::Void)]);
        }
        assert_eq!(waiting.told().len(), MAX_DECISIONS);
    }
}
