//! What the replica is doing and what its store is worth to reads: two enums, changed by one function, [`ReplicaState::apply`].

use std::fmt;

/// The replica's state. Changed by [`ReplicaState::apply`] only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaState {
    store: StoreState,
    phase: Phase,
}

/// What the store is worth to reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreState {
    /// Nothing is known of it yet.
    Starting,
    /// It is an earlier run's, young enough and of this topic. Reads wait until the log has had time to say that it does not
    /// fit.
    EarlierStore,
    /// It is empty or holds a part of the log: no answer to anybody.
    Restoring,
    /// It has been caught up with this log, in this run or an earlier one: it answers reads.
    Serving,
    /// It does not fit the log any more, for the reason given. It answers reads until a new one, which is built beside it, has
    /// been caught up.
    Rebuilding(String),
    /// The process stood still for longer than `DELETE_RETENTION`, so deletes may have been missed. No read is answered until
    /// the store has been emptied.
    Frozen,
}

impl StoreState {
    /// Whether reads are answered from the store.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        matches!(self, Self::Serving | Self::Rebuilding(_))
    }
}

/// What the replica does with the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for the log, for the reason given.
    Connecting(String),
    Reading,
    /// The store can't be changed, for the reason given: what it holds is read, and grows old.
    Blocked(String),
    /// Will not come back by itself.
    Failed(String),
}

/// What changes the replica's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// At the start: the store is an earlier run's, and reads may be answered from it unless the log objects.
    EarlierStoreFound,
    /// The log has had time to object to the earlier run's store, and did not.
    EarlierStoreAccepted,
    /// The store is empty, or will be before anything else happens.
    StoreEmptied,
    /// Reading goes on in a store that has never been caught up.
    RestoreResumed,
    /// Reading goes on in a store that has been caught up with this log.
    ReadingResumed,
    /// Another member's store took the place of this one.
    SnapshotInstalled,
    /// A new store is begun beside the one that is read, for the reason given.
    RebuildBegan(String),
    /// Everything up to the log's end has been applied to the store that is written. One that was built beside has taken the
    /// other's place.
    CaughtUp,
    /// The process stood still for longer than `DELETE_RETENTION`.
    ProcessFroze,
    /// The log can't be read, or is being opened: the reason.
    LogUnavailable(String),
    LogOpened,
    /// The store can't be written: the reason.
    StoreBlocked(String),
    /// It can be written again.
    StoreUnblocked,
    /// The replica, or another part of the node, has failed for good: the reason.
    Failed(String),
}

/// An event that makes no sense in the state that it met, and changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedEvent {
    pub event: Event,
    pub store: StoreState,
    pub phase: Phase,
}

impl fmt::Display for RefusedEvent {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { event, store, phase } = self;
        write!(out, "{event:?} makes no sense while the store is {store:?} and the replica is {phase:?}")
    }
}

impl std::error::Error for RefusedEvent {}

impl Default for ReplicaState {
    fn default() -> Self {
        Self { store: StoreState::Starting, phase: Phase::Connecting("starting".to_owned()) }
    }
}

impl ReplicaState {
    #[must_use]
    pub fn store(&self) -> &StoreState {
        &self.store
    }

    #[must_use]
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Changes the state.
    ///
    /// # Errors
    /// When the event makes no sense in this state, which stays as it was.
    pub fn apply(&mut self, event: Event) -> Result<(), RefusedEvent> {
        match self.after(&event) {
            Some(state) => *self = state,
            None => {
                let Self { store, phase } = self.clone();
                return Err(RefusedEvent { event, store, phase });
            }
        }
        Ok(())
    }

    fn after(&self, event: &Event) -> Option<Self> {
        let (mut store, mut phase) = (None, None);
        match event {
            Event::LogUnavailable(reason) => phase = Some(Phase::Connecting(reason.clone())),
            Event::LogOpened => phase = Some(Phase::Reading),
            Event::StoreBlocked(reason) => phase = Some(Phase::Blocked(reason.clone())),
            Event::StoreUnblocked if matches!(self.phase, Phase::Blocked(_) | Phase::Failed(_)) => {
                phase = Some(Phase::Reading);
            }
            Event::StoreUnblocked => return None,
            Event::Failed(reason) => phase = Some(Phase::Failed(reason.clone())),
            event => store = Some(self.store.after(event)?),
        }
        // What has failed for good stays so, whatever the other parts of the node still do.
        let phase = phase.filter(|_| !matches!(self.phase, Phase::Failed(_)));
        let (store, phase) = (store.unwrap_or(self.store.clone()), phase.unwrap_or(self.phase.clone()));
        Some(Self { store, phase })
    }
}

impl StoreState {
    /// `None` if the event makes no sense.
    fn after(&self, event: &Event) -> Option<Self> {
        use StoreState::{EarlierStore, Frozen, Rebuilding, Restoring, Serving, Starting};
        match (self, event) {
            (_, Event::StoreEmptied) => Some(Restoring),
            (_, Event::ProcessFroze) => Some(Frozen),
            // Only emptying the store ends this.
            (Frozen, _) => None,
            (Starting, Event::EarlierStoreFound) => Some(EarlierStore),
            (EarlierStore, Event::EarlierStoreAccepted) => Some(Serving),
            (Starting | Restoring, Event::RestoreResumed) => Some(Restoring),
            (EarlierStore | Restoring | Serving | Rebuilding(_), Event::ReadingResumed) => Some(Serving),
            (Restoring | Serving | Rebuilding(_), Event::SnapshotInstalled | Event::CaughtUp) => {
                Some(Serving)
            }
            (Serving | Rebuilding(_), Event::RebuildBegan(why)) => Some(Rebuilding(why.clone())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHY: &str = "the topic was replaced";

    fn states() -> [StoreState; 6] {
        use StoreState::{EarlierStore, Frozen, Rebuilding, Restoring, Serving, Starting};
        [Starting, EarlierStore, Restoring, Serving, Rebuilding(WHY.into()), Frozen]
    }

    fn store_events() -> [Event; 9] {
        [
            Event::EarlierStoreFound,
            Event::EarlierStoreAccepted,
            Event::StoreEmptied,
            Event::RestoreResumed,
            Event::ReadingResumed,
            Event::SnapshotInstalled,
            Event::RebuildBegan(WHY.into()),
            Event::CaughtUp,
            Event::ProcessFroze,
        ]
    }

    /// A column for each of [`store_events`], a row for each of [`states`]. `-`: refused.
    const TABLE: [[char; 9]; 6] = [
        // found, accepted, emptied, restore resumed, reading resumed, snapshot, rebuild, caught up, froze
        ['e', '-', 'r', 'r', '-', '-', '-', '-', 'f'],
        ['-', 's', 'r', '-', 's', '-', '-', '-', 'f'],
        ['-', '-', 'r', 'r', 's', 's', '-', 's', 'f'],
        ['-', '-', 'r', '-', 's', 's', 'b', 's', 'f'],
        ['-', '-', 'r', '-', 's', 's', 'b', 's', 'f'],
        ['-', '-', 'r', '-', '-', '-', '-', '-', 'f'],
    ];

    fn letter(state: &StoreState) -> char {
        match state {
            StoreState::Starting => 'n',
            StoreState::EarlierStore => 'e',
            StoreState::Restoring => 'r',
            StoreState::Serving => 's',
            StoreState::Rebuilding(_) => 'b',
            StoreState::Frozen => 'f',
        }
    }

    #[test]
    fn every_event_in_every_state_is_as_in_the_table() {
        for (store, row) in states().into_iter().zip(TABLE) {
            for (event, expected) in store_events().into_iter().zip(row) {
                let before = ReplicaState { store: store.clone(), ..ReplicaState::default() };
                let mut state = before.clone();
                let found = match state.apply(event.clone()) {
                    Ok(()) => letter(state.store()),
                    Err(refused) => {
                        assert_eq!(state, before, "what is refused changes nothing");
                        assert_eq!((&refused.event, &refused.store), (&event, &store));
                        '-'
                    }
                };
                assert_eq!(found, expected, "{event:?} in {store:?}");
                assert_eq!(state.phase(), before.phase());
            }
        }
    }

    #[test]
    fn only_a_store_that_was_caught_up_is_readable() {
        let readable: String = states().iter().filter(|state| state.is_readable()).map(letter).collect();
        assert_eq!(readable, "sb");
    }

    #[test]
    fn a_refused_event_says_what_it_met() {
        let refused = ReplicaState::default().apply(Event::CaughtUp).expect_err("nothing is known yet");
        let text = refused.to_string();
        assert!(text.contains("CaughtUp") && text.contains("Starting"), "{text}");
    }

    #[test]
    fn phases_follow_the_log_and_the_store() {
        let mut state = ReplicaState::default();
        let away = || Event::LogUnavailable("away".into());
        let full = || Event::StoreBlocked("full".into());
        for (event, phase) in [
            (away(), Phase::Connecting("away".into())),
            (Event::LogOpened, Phase::Reading),
            (full(), Phase::Blocked("full".into())),
            (Event::StoreUnblocked, Phase::Reading),
            (full(), Phase::Blocked("full".into())),
            (away(), Phase::Connecting("away".into())),
        ] {
            state.apply(event).expect("it makes sense");
            assert_eq!((state.phase(), state.store()), (&phase, &StoreState::Starting));
        }
        state.apply(Event::StoreUnblocked).expect_err("it was not blocked");
    }

    #[test]
    fn a_failure_is_final_and_its_store_still_changes() {
        let mut state = ReplicaState::default();
        state.apply(Event::EarlierStoreFound).expect("at the start");
        state.apply(Event::EarlierStoreAccepted).expect("it was found");
        state.apply(Event::Failed("gone".into())).expect("at any time");
        for event in [
            Event::Failed("another".into()),
            Event::LogOpened,
            Event::LogUnavailable("away".into()),
            Event::StoreBlocked("full".into()),
            Event::StoreUnblocked,
        ] {
            state.apply(event).expect("no other part of the node need know");
            assert_eq!((state.phase(), state.store()), (&Phase::Failed("gone".into()), &StoreState::Serving));
        }
        state.apply(Event::StoreEmptied).expect("it goes on");
        assert!(!state.store().is_readable());
    }
}
