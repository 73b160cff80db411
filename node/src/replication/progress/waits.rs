//! Waits for a position: who begins one is told when this node has applied it, or that this will not come.

use std::sync::Arc;

use bitacora_protocol::Position;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::Progress;
use crate::replication::barriers_read::BarriersRead;
use crate::replication::waiters::{Ticket, WaitError};

/// Somebody who waits for a position, until this is dropped.
struct PositionWait {
    progress: Arc<Progress>,
    ticket: Ticket,
    told: oneshot::Receiver<Result<(), WaitError>>,
}

impl Drop for PositionWait {
    fn drop(&mut self) {
        self.progress.lock().waiters.remove(self.ticket);
    }
}

impl Progress {
    /// Waits until this node has applied a position in the store that it reads, no longer than until `deadline`. Who drops this
    /// waits no more.
    ///
    /// # Errors
    /// When that will not come, or has not come in time.
    pub async fn applied(self: &Arc<Self>, position: Position, deadline: Instant) -> Result<(), WaitError> {
        let Some(mut wait) = self.begin_wait(position)? else { return Ok(()) };
        match timeout_at(deadline, &mut wait.told).await {
            Ok(told) => told.unwrap_or(Err(WaitError::Stopping)),
            Err(_) => Err(WaitError::NotInTime),
        }
    }

    /// `None` if the position is applied already.
    fn begin_wait(self: &Arc<Self>, position: Position) -> Result<Option<PositionWait>, WaitError> {
        let mut inner = self.lock();
        if !inner.serves() {
            return Err(WaitError::NotServing);
        }
        let partition = position.partition;
        let next = inner.ends.next_offset(partition);
        let partitions = inner.ends.partition_count();
        let next = next.ok_or(WaitError::NoSuchPartition { partition, partitions })?;
        if position.offset < next.0 {
            return Ok(None);
        }
        let (ticket, told) = inner.waiters.add(position)?;
        Ok(Some(PositionWait { progress: Arc::clone(self), ticket, told }))
    }

    /// Barriers that are waited for.
    #[must_use]
    pub fn barriers_read(&self) -> &Arc<BarriersRead> {
        &self.barriers_read
    }

    /// Waits for a position that have not ended.
    #[must_use]
    pub fn waits(&self) -> usize {
        self.lock().waiters.len()
    }

    /// Ends all waits for a position, and refuses new ones: the node stops.
    pub(crate) fn end_waits(&self) {
        let woken = self.lock().waiters.stop();
        woken.tell();
    }
}
