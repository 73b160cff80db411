//! How an event looks.

use bitacora_client::{DeletedKey, Position, Record, Watched};
use bitacora_protocol::http::{ChangeEvent, ChangedRecord, DeleteEvent, PositionedRecord, Reason};
use bitacora_protocol::record::KeyValue;
use bitacora_protocol::rpc::DeleteReason;
use serde::Serialize;

use super::source::Told;
use crate::output::{json_line, raw_line, rough, shown};

/// Of the words in a table, where there are colours.
const GREEN: &str = "\u{1b}[32m";
const RED: &str = "\u{1b}[31m";
const YELLOW: &str = "\u{1b}[33m";
const DIM: &str = "\u{1b}[2m";
const PLAIN: &str = "\u{1b}[0m";

/// A set, a delete or a gap, with its token.
#[derive(Serialize)]
struct EventLine<'a> {
    #[serde(flatten)]
    event: ChangeEvent<'a>,
    token: &'a str,
}

/// How far it is.
#[derive(Serialize)]
struct ProgressLine<'a> {
    event: &'static str,
    position: String,
    token: &'a str,
}

/// A line of JSON. `values`: whether they were asked for.
pub fn json(told: &Told, values: bool) -> serde_json::Result<String> {
    let token = &*told.token;
    let progress = |event, positions| json_line(&ProgressLine { event, position: texts(positions), token });
    let event = match &told.what {
        Watched::Set(record) => {
            let Record { key, value, timestamp, source, ttl, uuid, position, .. } = record;
            let (timestamp, source, ttl) = (*timestamp, *source, *ttl);
            let record = ChangedRecord::new(KeyValue { key, value, timestamp, source, ttl, uuid }, values);
            ChangeEvent::Set(PositionedRecord { record, position: *position })
        }
        Watched::Deleted(deleted) => {
            let DeletedKey { key, position, timestamp, reason } = deleted;
            let (timestamp, position, reason) = (*timestamp, *position, *reason);
            ChangeEvent::Delete(DeleteEvent { key: key.into(), timestamp, position, reason })
        }
        Watched::Gap { reason } => ChangeEvent::Gap(Reason { reason: reason.into() }),
        Watched::Current { positions } => return progress("current", positions),
        Watched::Progress { positions } => return progress("progress", positions),
        _ => return Ok(String::new()),
    };
    json_line(&EventLine { event, token })
}

/// Fields with tabs between them.
pub fn raw(told: &Told) -> String {
    match &told.what {
        Watched::Set(record) => raw_line(["set", &record.position.to_string(), &record.key, &record.value]),
        Watched::Deleted(deleted) => {
            raw_line(["delete", &deleted.position.to_string(), &deleted.key, word(deleted.reason)])
        }
        Watched::Current { positions } => raw_line(["current", &texts(positions)]),
        Watched::Gap { reason } => raw_line(["gap", reason]),
        _ => String::new(),
    }
}

/// A line for the eye. `values`: whether they were asked for.
pub fn for_the_eye(told: &Told, values: bool, colours: bool) -> String {
    let painted = |colour: &str, text: String| {
        if colours && !text.is_empty() { format!("{colour}{text}{PLAIN}") } else { text }
    };
    match &told.what {
        Watched::Set(record) => {
            let Record { key, value, timestamp, ttl, position, .. } = record;
            let value = if values { format!("  {}", shown(value)) } else { String::new() };
            let ttl = if *ttl == 0 { String::new() } else { format!("  ttl {}", rough(ttl - timestamp)) };
            let (time, place) = (clock(*timestamp), position.to_string());
            format!(
                "{}  {}  {place:<10}  {}{value}{}\n",
                painted(DIM, time),
                painted(GREEN, "set    ".to_owned()),
                shown(key),
                painted(DIM, ttl)
            )
        }
        Watched::Deleted(deleted) => {
            let DeletedKey { key, position, timestamp, reason } = deleted;
            let colour = if *reason == DeleteReason::Deleted { RED } else { YELLOW };
            let (time, place) = (clock(*timestamp), position.to_string());
            format!(
                "{}  {}  {place:<10}  {}\n",
                painted(DIM, time),
                painted(colour, format!("{:<7}", word(*reason))),
                shown(key)
            )
        }
        Watched::Gap { reason } => painted(YELLOW, format!("gap: {}", shown_whole(reason))) + "\n",
        _ => String::new(),
    }
}

/// A sentence of a node, whole.
fn shown_whole(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

fn word(reason: DeleteReason) -> &'static str {
    match reason {
        DeleteReason::Deleted => "deleted",
        DeleteReason::Expired => "expired",
    }
}

fn texts(positions: &[Position]) -> String {
    positions.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The time of day, UTC.
fn clock(ms: i64) -> String {
    let seconds = ms.div_euclid(1_000).rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}Z", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use bitacora_client::ServedFrom;

    use super::*;

    fn told(what: Watched) -> Told {
        Told { what, token: "token".to_owned() }
    }

    fn set(key: &str, value: &str) -> Told {
        told(Watched::Set(Record {
            key: key.to_owned(),
            value: value.to_owned(),
            timestamp: 86_400_000 + 3_723_000,
            source: 1,
            ttl: 86_400_000 + 3_733_000,
            uuid: "u".to_owned(),
            position: Position { partition: 2, offset: 5 },
            served_from: ServedFrom::Store,
        }))
    }

    fn deleted(reason: DeleteReason) -> Told {
        let position = Position { partition: 0, offset: 7 };
        told(Watched::Deleted(DeletedKey { key: "k".to_owned(), position, timestamp: 0, reason }))
    }

    #[test]
    fn lines_of_json() {
        let line = |told: &Told, values| json(told, values).expect("it has no odd maps");
        let with = r#"{"event":"set","key":"k","value":"v","timestamp":90123000,"source":1,"ttl":90133000,"uuid":"u","position":"2:5","token":"token"}"#;
        assert_eq!(line(&set("k", "v"), true), format!("{with}\n"));
        assert_eq!(line(&set("k", ""), false), format!("{with}\n").replace(r#""value":"v","#, ""));
        let delete = r#"{"event":"delete","key":"k","timestamp":0,"position":"0:7","reason":"expired","token":"token"}"#;
        assert_eq!(line(&deleted(DeleteReason::Expired), true), format!("{delete}\n"));
        let gap = told(Watched::Gap { reason: "why".to_owned() });
        assert_eq!(line(&gap, true), "{\"event\":\"gap\",\"reason\":\"why\",\"token\":\"token\"}\n");
        let positions = vec![Position { partition: 0, offset: -1 }, Position { partition: 1, offset: 9 }];
        let current = told(Watched::Current { positions });
        assert_eq!(
            line(&current, true),
            "{\"event\":\"current\",\"position\":\"0:-1,1:9\",\"token\":\"token\"}\n"
        );
    }

    #[test]
    fn raw_fields() {
        assert_eq!(raw(&set("a\tb", "c\n")), "set\t2:5\ta\\tb\tc\\n\n");
        assert_eq!(raw(&deleted(DeleteReason::Deleted)), "delete\t0:7\tk\tdeleted\n");
        assert_eq!(raw(&told(Watched::Progress { positions: vec![] })), "");
    }

    #[test]
    fn for_the_eye_nothing_is_interpreted() {
        let line = for_the_eye(&set("k\u{1b}[2J", "v\r\u{9b}\n"), true, false);
        assert_eq!(line, "01:02:03Z  set      2:5         k\\u{1b}[2J  v\\r\\u{9b}\\n  ttl 10s\n");
        let line = for_the_eye(&deleted(DeleteReason::Expired), true, true);
        assert_eq!(line, "\u{1b}[2m00:00:00Z\u{1b}[0m  \u{1b}[33mexpired\u{1b}[0m  0:7         k\n");
        let gap = told(Watched::Gap { reason: "why\u{1b}[2J".to_owned() });
        assert_eq!(for_the_eye(&gap, true, false), "gap: why[2J\n");
    }
}
