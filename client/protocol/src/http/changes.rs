//! What changed, as `GET /watch` and `GET /rpc/changes` tell it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::PositionedRecord;
use crate::Position;
use crate::record::KeyValue;
use crate::rpc::DeleteReason;

/// `GET /rpc/changes`: what has changed since a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeList<'a> {
    /// What happened, in an order that is the log's for each key.
    pub events: Vec<ChangeEvent<'a>>,
    /// The token that goes on from here, at any node.
    pub next: Cow<'a, str>,
    /// Whether all that was in the log when the call came has been told.
    pub current: bool,
    /// As [`Told::position`].
    #[serde(default)]
    pub position: Cow<'a, str>,
}

/// What happened. As Server-Sent Events its name is in the line `event`, and what is in it, without the name, the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum ChangeEvent<'a> {
    /// A key was set.
    Set(PositionedRecord<ChangedRecord<'a>>),
    /// A key is no more.
    Delete(DeleteEvent<'a>),
    /// What came before can't be told any more. All keys are to be forgotten: those that are live follow.
    Gap(Reason<'a>),
}

/// A record, as far as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // each field is as in KeyValue
pub struct ChangedRecord<'a> {
    pub key: Cow<'a, str>,
    /// `None` in a watch without values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Cow<'a, str>>,
    pub timestamp: i64,
    pub source: i32,
    pub ttl: i64,
    pub uuid: Cow<'a, str>,
}

/// A key that is no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteEvent<'a> {
    /// The key.
    pub key: Cow<'a, str>,
    /// The write timestamp of what is at `position`.
    pub timestamp: i64,
    /// Of the delete; of a key that expired, of the record that did.
    pub position: Position,
    /// Why.
    pub reason: DeleteReason,
}

/// Why something is so: the data of `gap` and of `bye`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason<'a> {
    /// A sentence for people.
    pub reason: Cow<'a, str>,
}

/// How far a watch is: the data of `current` and of `progress`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told<'a> {
    /// Up to where each partition has been told, written as a [`SessionPosition`](crate::SessionPosition); empty before the first
    /// `current` of a watch that began with what is there.
    pub position: Cow<'a, str>,
    /// Why there is no `current` yet, if that is more than a matter of time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<Cow<'a, str>>,
}

impl<'a> ChangedRecord<'a> {
    /// `values`: whether its value was asked for.
    #[must_use]
    pub fn new(record: KeyValue<'a>, values: bool) -> Self {
        let KeyValue { key, value, timestamp, source, ttl, uuid } = record;
        let value = values.then_some(value.into());
        Self { key: key.into(), value, timestamp, source, ttl, uuid: uuid.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let position = Position { partition: 2, offset: 5 };
        let record = KeyValue { key: "k", value: "v", timestamp: 7, source: 1, ttl: 0, uuid: "u" };
        let set = |values| {
            ChangeEvent::Set(PositionedRecord { record: ChangedRecord::new(record, values), position })
        };
        let reason = DeleteReason::Expired;
        let list = ChangeList {
            events: vec![
                set(true),
                set(false),
                ChangeEvent::Delete(DeleteEvent { key: "k".into(), timestamp: 7, position, reason }),
                ChangeEvent::Gap(Reason { reason: "why".into() }),
            ],
            next: "token".into(),
            current: true,
            position: "2:5".into(),
        };
        let text = r#"{"events":[{"event":"set","key":"k","value":"v","timestamp":7,"source":1,"ttl":0,"uuid":"u","position":"2:5"},{"event":"set","key":"k","timestamp":7,"source":1,"ttl":0,"uuid":"u","position":"2:5"},{"event":"delete","key":"k","timestamp":7,"position":"2:5","reason":"expired"},{"event":"gap","reason":"why"}],"next":"token","current":true,"position":"2:5"}"#;
        assert_eq!(serde_json::to_string(&list).expect("it has no odd maps"), text);
        assert_eq!(serde_json::from_str::<ChangeList<'_>>(text).expect("it was written so"), list);
    }

    #[test]
    fn progress() {
        let told = Told { position: "0:1".into(), behind: None };
        assert_eq!(serde_json::to_string(&told).expect("it has no odd maps"), r#"{"position":"0:1"}"#);
        let behind = Told { behind: Some("why".into()), ..told };
        let text = r#"{"position":"0:1","behind":"why"}"#;
        assert_eq!(serde_json::from_str::<Told<'_>>(text).expect("it was written so"), behind);
    }
}
