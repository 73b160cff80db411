//! Barriers that this node appended, told to whoever waits for one as soon as it has been read. What is read is below the high watermark, so
//! it is as good as acknowledged, and mostly earlier.

use std::collections::HashMap;
use std::sync::Arc;

use bitacora_protocol::Position;
use bitacora_protocol::record::KeyValue;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::log::{LogRecord, NewRecord};

/// Who waits for which barriers, by their uuids. There are a few for each partition at most.
#[derive(Default)]
pub struct BarriersRead(Mutex<HashMap<String, oneshot::Sender<Position>>>);

impl BarriersRead {
    /// Begins to wait for the barrier of that uuid, from now until what is returned is dropped.
    #[must_use]
    pub fn wait_for(self: &Arc<Self>, uuid: &str) -> BarrierWait {
        let (tell, told) = oneshot::channel();
        self.0.lock().insert(uuid.to_owned(), tell);
        BarrierWait { barriers: Arc::clone(self), uuid: uuid.to_owned(), told }
    }

    /// These were read, and everything before them has been applied.
    pub fn tell<'a>(&self, records: impl Iterator<Item = LogRecord<'a>>) {
        let mut waiting = self.0.lock();
        if waiting.is_empty() {
            return;
        }
        for record in records.filter(|record| record.key == Some(NewRecord::BARRIER_KEY.as_bytes())) {
            let decoded = record.value.and_then(|value| KeyValue::decode(value).ok());
            if let Some(tell) = decoded.and_then(|decoded| waiting.remove(decoded.uuid)) {
                // Who waited may have gone away.
                let _ = tell.send(record.position);
            }
        }
    }
}

/// Waits for a barrier; no longer when it is dropped.
pub struct BarrierWait {
    barriers: Arc<BarriersRead>,
    uuid: String,
    told: oneshot::Receiver<Position>,
}

impl BarrierWait {
    /// Where it lies, when it has been read. Waits for ever if it never is: the caller has a deadline.
    pub async fn read(&mut self) -> Position {
        match (&mut self.told).await {
            Ok(position) => position,
            // Another barrier of the same uuid took its place: there is none.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for BarrierWait {
    fn drop(&mut self) {
        self.barriers.0.lock().remove(&self.uuid);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::clock::{LogTime, WallTime};
    use crate::log::Batch;

    fn batch(records: &[NewRecord]) -> Batch {
        let mut batch = Batch::default();
        for (offset, record) in (5..).zip(records) {
            batch.push(LogRecord {
                position: Position { partition: 1, offset },
                timestamp: LogTime::from_ms(0),
                key: Some(&record.key),
                value: record.value.as_deref(),
                condition: None,
                level: record.level,
                epoch: None,
            });
        }
        batch
    }

    #[test]
    fn who_waits_for_a_barrier_is_told_where_it_was_read() {
        let barriers = Arc::<BarriersRead>::default();
        let (mut mine, mut other) = (barriers.wait_for("mine"), barriers.wait_for("other"));
        let now = WallTime::from_ms(1);
        let read = [NewRecord::barrier(1, "another node's", now), NewRecord::barrier(1, "mine", now)];
        barriers.tell(batch(&read).records());
        let position = mine.read().now_or_never().expect("it was read");
        assert_eq!(position, Position { partition: 1, offset: 6 });
        assert!(other.read().now_or_never().is_none());
        drop((mine, other));
        assert!(barriers.0.lock().is_empty());
    }
}
