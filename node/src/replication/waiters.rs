//! Who waits until a position has been applied: in the order of the offsets for each partition, so that a commit looks at those
//! that it passes and at nobody else.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use bitacora_protocol::{NextOffset, Position};

/// Why a wait for a position ended without it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The store is being restored or built anew: what it holds is behind any position.
    #[error("this node's store is being restored or built anew")]
    NotServing,
    /// The topic has fewer partitions; so many.
    #[error("there is no partition {partition}: the topic has {partitions}")]
    NoSuchPartition { partition: i32, partitions: usize },
    /// The store that the wait began with gave way to another.
    #[error("this node's store was replaced meanwhile")]
    StoreReplaced,
    /// The node stops.
    #[error("this node is stopping")]
    Stopping,
    /// The deadline has passed.
    #[error("this node did not apply it in time")]
    NotInTime,
}

type Told = Result<(), WaitError>;

/// All who wait.
#[derive(Default)]
pub(super) struct Waiters {
    /// For each partition, by the offset that is waited for and the waiter's number.
    partitions: Vec<BTreeMap<(i64, u64), oneshot::Sender<Told>>>,
    /// Of the next waiter.
    number: u64,
    stopped: bool,
}

/// Which waiter one is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    partition: usize,
    place: (i64, u64),
}

/// Waiters that are to be told something, once no lock is held.
#[must_use]
pub(super) struct Woken {
    waiters: Vec<oneshot::Sender<Told>>,
    told: Told,
}

impl Woken {
    /// Tells them. One that has gone away meanwhile need not know.
    pub fn tell(self) {
        for waiter in self.waiters {
            let _ = waiter.send(self.told.clone());
        }
    }
}

impl Waiters {
    /// Takes a waiter in.
    pub fn add(&mut self, position: Position) -> Result<(Ticket, oneshot::Receiver<Told>), WaitError> {
        if self.stopped {
            return Err(WaitError::Stopping);
        }
        let Ok(partition) = usize::try_from(position.partition) else {
            let partition = position.partition;
            return Err(WaitError::NoSuchPartition { partition, partitions: self.partitions.len() });
        };
        if self.partitions.len() <= partition {
            self.partitions.resize_with(partition + 1, BTreeMap::new);
        }
        self.number += 1;
        let (tell, told) = oneshot::channel();
        let place = (position.offset, self.number);
        self.partitions[partition].insert(place, tell);
        Ok((Ticket { partition, place }, told))
    }

    /// A waiter goes away.
    pub fn remove(&mut self, ticket: Ticket) {
        if let Some(waiters) = self.partitions.get_mut(ticket.partition) {
            waiters.remove(&ticket.place);
        }
    }

    /// Those who waited for what is applied now that a partition's next offset is `next`.
    pub fn passed(&mut self, partition: i32, next: NextOffset, woken: &mut Woken) {
        let waiters =
            usize::try_from(partition).ok().and_then(|partition| self.partitions.get_mut(partition));
        let Some(waiters) = waiters else { return };
        while let Some(first) = waiters.first_entry()
            && first.key().0 < next.0
        {
            woken.waiters.push(first.remove());
        }
    }

    /// Nobody yet, to be told that the position is applied.
    pub fn nobody() -> Woken {
        Woken { waiters: Vec::new(), told: Ok(()) }
    }

    /// All, to be told that what they wait for will not come.
    pub fn all(&mut self, why: WaitError) -> Woken {
        let waiters = self.partitions.iter_mut().flat_map(std::mem::take).map(|(_, waiter)| waiter);
        Woken { waiters: waiters.collect(), told: Err(why) }
    }

    /// All, and nobody is taken in any more.
    pub fn stop(&mut self) -> Woken {
        self.stopped = true;
        self.all(WaitError::Stopping)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.partitions.iter().map(BTreeMap::len).sum()
    }
}
