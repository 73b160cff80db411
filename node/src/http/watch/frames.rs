//! Events as they are sent. A small one is bytes that wait for the client to take them. A large one is sent in parts, and held as a whole
//! only while there is memory for that. Otherwise each part is made anew: of the buffer's event if that is there still, then of what the
//! store has; if that is another record by now, the watch ends, and its client goes on behind the event before.

use std::sync::{Arc, Weak};

use bitacora_protocol::Position;
use bitacora_protocol::http::{ChangedRecord, DeleteEvent, PositionedRecord, Reason};
use bitacora_protocol::rpc::DeleteReason;
use bytes::Bytes;
use serde::Serialize;

use crate::replication::feed::{Event, Kind, Point};
use crate::service::changes::{Changes, Told, What};
use crate::service::memory::{Memory, Permit};
use crate::store::UuidText;

/// A larger event is sent in parts of this size.
const PART_BYTES: usize = 32 * 1024;

/// Something that waits to be sent.
pub enum Outgoing {
    Small(Bytes),
    Large(Large),
}

/// A set whose value is large.
pub struct Large {
    /// The buffer's, while that has it.
    event: Weak<Event>,
    key: Box<str>,
    position: Position,
    token: String,
    /// Whether it is the same for all who are sent it.
    is_shared: bool,
    /// All of it, if it is held.
    frame: Option<(Bytes, Permit)>,
    sent: usize,
}

impl Outgoing {
    /// What is sent of an event, with or without its value.
    pub fn of(told: &Told, values: bool, memory: &Memory) -> Self {
        match &told.what {
            What::Event(event) if values && is_large(event) => {
                let (key, position, token) = (event.key.clone(), event.position(), told.token());
                let mut large = Large {
                    event: Arc::downgrade(event),
                    key,
                    position,
                    token,
                    is_shared: told.is_shared(),
                    frame: None,
                    sent: 0,
                };
                large.hold(&frame(told, values), memory);
                Self::Large(large)
            }
            _ => Self::Small(frame(told, values)),
        }
    }
}

fn is_large(event: &Event) -> bool {
    event.kind == Kind::Set && event.entry.bytes() > PART_BYTES
}

/// Whether watches hold a part of the budget that others should have.
pub fn is_scarce(memory: &Memory, part: u64) -> bool {
    memory.used() > memory.limit() / part
}

impl Large {
    /// The next part, and whether there are more; `None` if the record is gone.
    pub fn next(&mut self, changes: &Changes) -> Option<(Bytes, bool)> {
        let held = self.frame.as_ref().map(|(frame, _)| frame.clone());
        let frame = held.or_else(|| self.make(changes))?;
        let rest = frame.get(self.sent..)?;
        // A copy, or it would keep all of it.
        let part = Bytes::copy_from_slice(&rest[..rest.len().min(PART_BYTES)]);
        self.sent += part.len();
        let has_more = self.sent < frame.len();
        if self.frame.is_none() && has_more {
            self.hold(&frame, changes.memory());
        }
        Some((part, has_more))
    }

    fn hold(&mut self, frame: &Bytes, memory: &Memory) {
        if !is_scarce(memory, 4) {
            self.frame = Some((frame.clone(), memory.take_anyway(frame.len())));
        }
    }

    /// The client does not take what it is sent, and there is need of the memory.
    pub fn forget_frame(&mut self) {
        self.frame = None;
    }

    fn make(&self, changes: &Changes) -> Option<Bytes> {
        if let Some(event) = self.event.upgrade().filter(|_| self.is_shared) {
            // The buffer has it for all who are sent it.
            return Some(event.look(true, || event_frame(&event, &self.token, true).into()).clone());
        }
        let entry = changes.record(&self.key, self.position)?;
        let nowhere = Arc::<Point>::default();
        let event = Event::new(self.key.clone(), Kind::Set, entry, Arc::clone(&nowhere), nowhere);
        Some(event_frame(&event, &self.token, true).into())
    }
}

/// An event as it is sent. That of a change is made once for all who are sent it.
fn frame(told: &Told, values: bool) -> Bytes {
    match &told.what {
        What::Event(event) if told.is_shared() => {
            event.look(values, || event_frame(event, &told.token(), values).into()).clone()
        }
        What::Event(event) => event_frame(event, &told.token(), values).into(),
        What::Gap(reason) => {
            frame_of("gap", &told.token(), &Reason { reason: reason.as_str().into() }).into()
        }
    }
}

fn event_frame(event: &Event, token: &str, values: bool) -> Vec<u8> {
    match set_record(event, values, &mut UuidText::default()) {
        Some(record) => frame_of("set", token, &record),
        None => frame_of("delete", token, &delete_event(event)),
    }
}

/// The record of a set.
pub fn set_record<'a>(
    event: &'a Event,
    values: bool,
    uuid: &'a mut UuidText,
) -> Option<PositionedRecord<ChangedRecord<'a>>> {
    let record = Some(&event.entry).filter(|_| event.kind == Kind::Set)?.answer(uuid)?;
    Some(PositionedRecord { record: ChangedRecord::new(record, values), position: event.position() })
}

/// What is told of a key that is no more.
pub fn delete_event(event: &Event) -> DeleteEvent<'_> {
    let reason = if event.kind == Kind::Expired { DeleteReason::Expired } else { DeleteReason::Deleted };
    let (timestamp, position) = (event.timestamp().ms(), event.position());
    DeleteEvent { key: (&*event.key).into(), timestamp, position, reason }
}

pub(super) fn frame_of(event: &str, token: &str, data: &impl Serialize) -> Vec<u8> {
    let mut frame = format!("event: {event}\nid: {token}\ndata: ").into_bytes();
    // JSON has no line ends but as escapes, and nothing that is serialized here has a map with keys that are no strings.
    let _ = serde_json::to_writer(&mut frame, data);
    frame.extend_from_slice(b"\n\n");
    frame
}
