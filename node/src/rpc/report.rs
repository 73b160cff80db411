//! What a connection has answered, for the metrics.

use std::time::Duration;

use bitacora_protocol::rpc::Message;

use crate::metrics::Metrics;
use crate::service::slow::{self, SlowRequests, Waits};

/// What was answered since the last report: metrics are too dear to be moved for each call by itself.
#[derive(Default)]
pub struct Answered {
    /// At once: message, outcome, how many.
    at_once: Vec<(Option<Message>, &'static str, u64)>,
    took: Duration,
    /// Calls that had to wait: serial, message, outcome, time.
    waited: Vec<(i32, Message, &'static str, Duration)>,
}

impl Answered {
    /// Counts a call that was answered at once.
    pub fn count(&mut self, message: Option<Message>, outcome: &'static str) {
        match self.at_once.iter_mut().find(|(m, o, _)| *m == message && *o == outcome) {
            Some((_, _, count)) => *count += 1,
            None => self.at_once.push((message, outcome, 1)),
        }
    }

    /// Calls that are answered together took as long as all of them.
    pub fn took(&mut self, time: Duration) {
        self.took = self.took.max(time);
    }

    /// Counts a call that had to wait.
    pub fn waited(&mut self, serial: i32, message: Message, outcome: &'static str, took: Duration) {
        self.waited.push((serial, message, outcome, took));
    }

    /// Moves the metrics on, logs calls that were slow, and begins anew.
    pub fn report(&mut self, metrics: &Metrics, slow: SlowRequests) {
        let operation = |message: Option<Message>| match message {
            Some(Message::GetValue | Message::GetRecord) => "get",
            Some(Message::SetValue | Message::SetRecord) => "set",
            Some(Message::Delete | Message::DeleteRecord) => "delete",
            Some(Message::Batch) => "batch",
            Some(Message::Scan) => "scan",
            None => "unknown",
        };
        for (message, outcome, count) in self.at_once.drain(..) {
            metrics.requests("rpc", operation(message), outcome, count, self.took);
        }
        for (serial, message, outcome, took) in self.waited.drain(..) {
            let operation = operation(Some(message));
            metrics.requests("rpc", operation, outcome, 1, took);
            let (id, interface, key_hash) = (u64::from(serial.cast_unsigned()), "rpc", None);
            let waits = waits(message, took);
            slow.log(&slow::Answered { id, interface, operation, outcome, key_hash, took, waits: &waits });
        }
        self.took = Duration::ZERO;
    }
}

/// A call that is not answered at once waits for one thing only.
fn waits(message: Message, took: Duration) -> Waits {
    let none = Waits::default();
    match message {
        Message::GetValue | Message::GetRecord => Waits { peers: took, ..none },
        Message::SetValue | Message::SetRecord | Message::Delete | Message::DeleteRecord => {
            Waits { log: took, ..none }
        }
        Message::Batch => Waits { operations: took, ..none },
        Message::Scan => Waits { store: took, ..none },
    }
}
