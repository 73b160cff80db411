//! Reading the embedded log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::records::{offset_of, parse, range, record_key};
use crate::log::{Batch, LogReader, LogRecord, ReadError};
use bitacora_protocol::{NextOffset, Position};

pub(super) struct Reader {
    pub shared: Arc<Shared>,
    pub next: Vec<NextOffset>,
}

impl LogReader for Reader {
    fn poll(&mut self, wait: Duration, batch: &mut Batch) -> Result<(), ReadError> {
        let behind = |ends: &Vec<i64>| ends.iter().zip(&self.next).any(|(end, next)| next.0 < *end);
        let deadline = Instant::now() + wait;
        let mut ends = self.shared.ends.lock();
        while !behind(&ends) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.shared.grown.wait_for(&mut ends, left);
        }
        let known = ends.clone();
        drop(ends);
        self.read(&known, batch).map_err(|error| ReadError::Unavailable(error.to_string()))
    }

    fn applied(&mut self, _next: &[NextOffset]) {}
}

impl Reader {
    fn read(&mut self, ends: &[i64], batch: &mut Batch) -> heed::Result<()> {
        let txn = self.shared.env.read_txn()?;
        for (partition, (end, next)) in (0..).zip(ends.iter().zip(&mut self.next)) {
            let bounds = (record_key(partition as u32, next.0), record_key(partition as u32, *end));
            for item in self.shared.records.range(&txn, &range(&bounds))? {
                if batch.is_full() {
                    return Ok(());
                }
                let (at, stored) = item?;
                let Some((offset, record)) = offset_of(at).zip(parse(stored)) else { continue };
                let position = Position { partition, offset };
                if let Some(trace) = record.trace {
                    batch.add_trace(position, trace);
                }
                batch.push(LogRecord {
                    position,
                    timestamp: record.timestamp,
                    key: Some(record.key),
                    value: record.value,
                    condition: record.condition,
                    level: record.level,
                    epoch: None,
                });
                *next = NextOffset::after(offset);
            }
            // The rest up to the end are holes that compaction left.
            *next = NextOffset(*end).max(*next);
            batch.reached(partition, *next);
        }
        Ok(())
    }
}
