//! What a connection has answered, for the metrics.

use std::time::Duration;

use bitacora_protocol::rpc::Message;

use crate::metrics::{Metrics, RequestSeries};
use crate::service::slow::{self, KeyHash, SlowRequests, Waits};

/// What was answered since the last report: metrics are too dear to be moved for each call by itself.
#[derive(Default)]
pub struct AnsweredCalls {
    /// At once. Those of earlier reports stay, for their series.
    at_once: Vec<AtOnce>,
    took: Duration,
    waited: Vec<WaitedCall>,
}

/// Calls of one kind that were answered at once.
struct AtOnce {
    message: Option<Message>,
    outcome: &'static str,
    count: u64,
    /// Where they are counted; `None` before the first report.
    series: Option<RequestSeries>,
}

/// A call that had to wait, answered.
pub struct WaitedCall {
    pub serial: i32,
    pub message: Message,
    /// `None` for a batch or a scan.
    pub key: Option<KeyHash>,
    /// The `outcome` label of the metrics.
    pub outcome: &'static str,
    pub took: Duration,
}

/// The `operation` label of the metrics, and the name of a span.
pub fn operation_name(message: Message) -> &'static str {
    match message {
        Message::GetValue | Message::GetRecord | Message::ReadRecord => "get",
        Message::SetValue | Message::SetRecord | Message::WriteRecord => "set",
        Message::Delete | Message::DeleteRecord | Message::RemoveRecord => "delete",
        Message::Batch | Message::BatchRecords => "batch",
        Message::Scan | Message::ScanRecords => "scan",
        Message::ReadChanges => "changes",
    }
}

/// Whether it is a batch or a scan, of which few run at a time.
pub fn is_bulk(message: Message) -> bool {
    matches!(message, Message::Batch | Message::Scan | Message::BatchRecords | Message::ScanRecords)
}

impl AnsweredCalls {
    /// Counts a call that was answered at once.
    pub fn count(&mut self, message: Option<Message>, outcome: &'static str) {
        let is_same = |at_once: &&mut AtOnce| at_once.message == message && at_once.outcome == outcome;
        match self.at_once.iter_mut().find(is_same) {
            Some(at_once) => at_once.count += 1,
            None => self.at_once.push(AtOnce { message, outcome, count: 1, series: None }),
        }
    }

    /// Calls that are answered together took as long as all of them.
    pub fn took(&mut self, time: Duration) {
        self.took = self.took.max(time);
    }

    /// Counts a call that had to wait.
    pub fn waited(&mut self, call: WaitedCall) {
        self.waited.push(call);
    }

    /// Moves the metrics on, logs calls that were slow, and begins anew.
    pub fn report(&mut self, metrics: &Metrics, slow: &SlowRequests) {
        let interface = "rpc";
        for AtOnce { message, outcome, count, series } in &mut self.at_once {
            if *count == 0 {
                continue;
            }
            let operation = message.map_or("unknown", operation_name);
            let series = series.get_or_insert_with(|| metrics.request_series(interface, operation, outcome));
            series.add(std::mem::take(count), self.took);
        }
        for WaitedCall { serial, message, key, outcome, took } in self.waited.drain(..) {
            let operation = operation_name(message);
            metrics.request(interface, operation, outcome, took);
            let id = u64::from(serial.cast_unsigned());
            let waits = waits(message, took);
            // That one waits for something to happen, as it was told to.
            if message != Message::ReadChanges {
                slow.log(&slow::FinishedRequest {
                    id,
                    interface,
                    operation,
                    outcome,
                    key,
                    took,
                    waits: &waits,
                });
            }
        }
        self.took = Duration::ZERO;
    }
}

/// A call that is not answered at once waits for one thing only.
fn waits(message: Message, took: Duration) -> Waits {
    let none = Waits::default();
    match message {
        Message::GetValue | Message::GetRecord | Message::ReadRecord => Waits { peers: took, ..none },
        Message::SetValue
        | Message::SetRecord
        | Message::Delete
        | Message::DeleteRecord
        | Message::WriteRecord
        | Message::RemoveRecord => Waits { log: took, ..none },
        Message::Batch | Message::BatchRecords => Waits { operations: took, ..none },
        Message::Scan | Message::ScanRecords => Waits { store: took, ..none },
        Message::ReadChanges => none,
    }
}
