//! The checks of histories see each wrong one, and take no right one for wrong.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use e2e::consistency::check::{self, Final, Report};
use e2e::consistency::effects::Effects;
use e2e::consistency::{Call, Condition, Found, Level, Operation, Outcome, linearizable};
use e2e::http::Position;
use e2e::runner::{Ctx, Test};
use e2e::tests;
use e2e::topic::{KeyValue, Record};

pub fn tests() -> Vec<Test> {
    tests![
        Nothing: a_right_history_is_well,
            each_wrong_history_is_seen,
            each_wrong_log_is_seen,
            an_unclear_write_may_take_effect_late_or_never
    ]
}

const KEY: &str = "key";

pub(super) fn at(offset: i64) -> Position {
    Position { partition: 0, offset }
}

/// An operation of client 0 on node 0; `began` and `ended` in µs.
pub(super) fn operation(began: u64, ended: u64, call: Call, outcome: Outcome) -> Operation {
    Operation { client: 0, node: 0, key: KEY.to_owned(), call, began, ended, outcome }
}

pub(super) fn write(value: Option<&str>, condition: Condition) -> Call {
    let uuid = value.map(|value| format!("uuid of {value}"));
    Call::Write { value: value.map(str::to_owned), condition, uuid }
}

pub(super) fn set(value: &str) -> Call {
    write(Some(value), Condition::None)
}

pub(super) fn delete() -> Call {
    write(None, Condition::None)
}

pub(super) fn create(value: &str) -> Call {
    write(Some(value), Condition::Absent)
}

pub(super) fn cas(version: i64, value: &str) -> Call {
    write(Some(value), Condition::Version(at(version)))
}

pub(super) const STRONG: Call = Call::Read(Level::Strong);

pub(super) fn record(offset: i64, value: &str) -> Found {
    Found { version: at(offset), value: value.to_owned(), local: true }
}

fn found(offset: i64, value: &str) -> Outcome {
    Outcome::Found(record(offset, value))
}

pub(super) fn missing(offset: i64) -> Outcome {
    Outcome::Missing { position: at(offset), local: true }
}

fn failed(offset: i64, current: Option<&str>) -> Outcome {
    Outcome::Failed { current: current.map(|value| record(offset, value)), position: at(offset) }
}

pub(super) fn done(offset: i64) -> Outcome {
    Outcome::Done(at(offset))
}

pub(super) fn unclear() -> Outcome {
    Outcome::Unclear(String::new())
}

/// A record as a node writes it; `attempt` is the header of a conditional write.
fn logged(offset: i64, value: Option<&str>, attempt: Option<&str>) -> Record {
    let mut record = KeyValue::new(KEY, value.unwrap_or_default());
    match value {
        Some(value) => record.uuid = format!("uuid of {value}"),
        None => record.ttl = -1,
    }
    Record {
        position: at(offset),
        timestamp: offset,
        key: Some(KEY.into()),
        value: Some(record.to_avro()),
        headers: attempt
            .iter()
            .map(|text| ("bitacora-attempt".to_owned(), text.as_bytes().to_vec()))
            .collect(),
    }
}

fn ends_with(offset: i64, value: Option<&str>) -> Vec<BTreeMap<String, Final>> {
    let held = Final { value: value.map(str::to_owned), position: at(offset) };
    vec![BTreeMap::from([(KEY.to_owned(), held)])]
}

/// A right history of all kinds of calls, and its log.
fn right() -> (Vec<Operation>, Vec<Record>) {
    let history = vec![
        operation(0, 1, STRONG, missing(-1)),
        operation(10, 20, create("a"), done(5)),
        operation(11, 21, create("b"), failed(5, Some("a"))),
        operation(30, 31, STRONG, found(5, "a")),
        operation(40, 50, cas(5, "c"), done(7)),
        operation(41, 51, cas(5, "d"), failed(7, Some("c"))),
        operation(60, 61, Call::Read(Level::Session), found(7, "c")),
        operation(70, 71, set("e"), done(8)),
        // It read before the set was applied there.
        operation(72, 73, Call::Read(Level::Eventual), found(7, "c")),
        operation(80, 81, delete(), done(9)),
        operation(90, 91, cas(8, "f"), failed(9, None)),
        operation(92, 93, STRONG, missing(9)),
        operation(95, 99, set("g"), unclear()),
        operation(100, 101, STRONG, found(10, "g")),
    ];
    let log = vec![
        logged(5, Some("a"), Some("-:dead:1000:1")),
        logged(6, Some("d"), Some("4:live:1000:1")),
        logged(7, Some("c"), Some("5:live:1000:1")),
        logged(8, Some("e"), None),
        logged(9, None, None),
        logged(10, Some("g"), None),
    ];
    (history, log)
}

fn check_all(history: &[Operation], log: Vec<Record>, finals: &[BTreeMap<String, Final>]) -> Result<Report> {
    Ok(check::check(history, &Effects::of(log)?, finals, &[Level::Strong]))
}

fn is_well(report: &Report) -> Result<()> {
    ensure!(report.violations.is_empty(), "{report}");
    Ok(())
}

async fn a_right_history_is_well(_: Ctx) -> Result<()> {
    let (history, log) = right();
    let report = check_all(&history, log, &ends_with(10, Some("g")))?;
    is_well(&report)?;
    ensure!(report.operations() == 14 && report.attempts == [2, 1] && report.session_reads == 1, "{report}");
    Ok(())
}

/// What clients saw alone shows these; each with the sentence that it must lead to.
async fn each_wrong_history_is_seen(_: Ctx) -> Result<()> {
    let wrong: Vec<(&str, &str, Vec<Operation>)> = vec![
        (
            "a stale read",
            "not linearizable",
            vec![
                operation(0, 1, set("a"), done(1)),
                operation(2, 3, set("b"), done(2)),
                operation(4, 5, STRONG, found(1, "a")),
            ],
        ),
        (
            "a read that goes back behind another client's",
            "not linearizable",
            vec![
                operation(0, 1, set("a"), done(1)),
                operation(2, 20, set("b"), unclear()),
                operation(4, 5, STRONG, found(2, "b")),
                operation(6, 7, STRONG, found(1, "a")),
            ],
        ),
        (
            "a lost update",
            "not linearizable",
            vec![
                operation(0, 1, set("a"), done(1)),
                operation(2, 8, cas(1, "b"), done(2)),
                operation(2, 8, cas(1, "c"), done(3)),
            ],
        ),
        (
            "an acknowledged write that vanished",
            "not linearizable",
            vec![operation(0, 1, set("a"), done(1)), operation(4, 5, STRONG, missing(3))],
        ),
        (
            "two creates",
            "not linearizable",
            vec![operation(0, 9, create("a"), done(1)), operation(0, 9, create("b"), done(2))],
        ),
        (
            "a deleted key that came back",
            "not linearizable",
            vec![
                operation(0, 1, set("a"), done(1)),
                operation(2, 3, delete(), done(2)),
                operation(4, 5, STRONG, found(1, "a")),
            ],
        ),
        (
            "a double effect",
            "in effect more than once",
            vec![
                operation(0, 1, set("a"), done(1)),
                operation(2, 9, cas(1, "b"), done(2)),
                operation(10, 11, STRONG, found(5, "b")),
            ],
        ),
        (
            "an acknowledged set that took effect again",
            "in effect more than once",
            vec![operation(0, 1, set("a"), done(1)), operation(2, 3, STRONG, found(2, "a"))],
        ),
        (
            "a read from the future",
            "read before it was written",
            vec![operation(0, 1, STRONG, found(1, "a")), operation(2, 3, set("a"), done(1))],
        ),
        ("a read of what nobody wrote", "nobody wrote", vec![operation(0, 1, STRONG, found(1, "a"))]),
        (
            "a read of a failed write",
            "read although it had no effect",
            vec![
                operation(0, 1, set("a"), done(1)),
                operation(2, 3, cas(0, "b"), failed(1, Some("a"))),
                operation(4, 5, Call::Read(Level::Eventual), found(2, "b")),
            ],
        ),
        (
            "a 412 of a create where nothing is",
            "not linearizable",
            vec![operation(0, 1, create("a"), failed(0, None))],
        ),
        (
            "a 412 whose condition holds",
            "not linearizable",
            vec![operation(0, 1, set("a"), done(1)), operation(2, 3, cas(1, "b"), failed(1, Some("a")))],
        ),
        (
            "a 412 from a stale copy",
            "not linearizable",
            vec![
                operation(0, 1, set("a"), done(1)),
                operation(2, 3, delete(), done(2)),
                operation(4, 5, create("b"), failed(1, Some("a"))),
            ],
        ),
        (
            "versions against the order of time",
            "not linearizable",
            vec![operation(0, 1, set("a"), done(5)), operation(2, 3, set("b"), done(4))],
        ),
        (
            "a node that went back",
            "a node went back",
            vec![
                operation(0, 1, set("a"), done(1)),
                operation(0, 9, set("b"), done(2)),
                operation(2, 3, Call::Read(Level::Eventual), found(2, "b")),
                operation(4, 5, Call::Read(Level::Eventual), found(1, "a")),
            ],
        ),
    ];
    for (what, sentence, history) in wrong {
        let found = check_all(&history, Vec::new(), &[]).with_context(|| what.to_owned())?;
        // The log is empty here, which is wrong too: only the sentence counts.
        ensure!(found.violations_of(sentence) > 0, "{what}: not seen: {found}");
    }
    Ok(())
}

/// A change of the right history, its log, or its end; each with the sentence that it must lead to.
async fn each_wrong_log_is_seen(_: Ctx) -> Result<()> {
    type Change = fn(&mut Vec<Operation>, &mut Vec<Record>);
    let wrong: Vec<(&str, Change)> = vec![
        ("acknowledged, and not in effect", |_, log| drop(log.remove(0))),
        ("acknowledged, and not in effect", |_, log| log[2] = logged(7, Some("c"), Some("4:live:1000:1"))),
        // Too late.
        ("acknowledged, and not in effect", |_, log| log[2] = logged(7, Some("c"), Some("5:live:6:1"))),
        ("acknowledged, and not in effect", |_, log| log[2] = logged(7, Some("c"), None)),
        ("in effect twice", |_, log| {
            log.push(logged(11, Some("c"), Some("10:live:1000:1")));
        }),
        ("in effect twice", |_, log| log.push(logged(11, Some("e"), None))),
        ("it was said to have no effect", |_, log| log[1] = logged(6, Some("d"), Some("5:live:1000:1"))),
        ("nobody wrote what is in the log", |_, log| log.push(logged(11, Some("z"), None))),
        ("nobody wrote what is in the log", |_, log| log.push(logged(11, None, None))),
        ("read what is not in effect", |history, _| {
            history[8].outcome = found(6, "d");
        }),
        ("not found, and in the log", |history, _| history[8].outcome = missing(7)),
        ("a session went back", |history, _| history[6].outcome = found(5, "a")),
        ("node 0 ends with another", |_, log| drop(log.pop())),
    ];
    for (index, (sentence, change)) in wrong.into_iter().enumerate() {
        let (mut history, mut log) = right();
        change(&mut history, &mut log);
        let report = check_all(&history, log, &ends_with(10, Some("g")))?;
        ensure!(report.violations_of(sentence) > 0, "{index}: {sentence}: not seen: {report}");
    }
    let name = format!("{}0", check::COUNTER);
    for (values, sentence) in
        [(["1 a", "2 b"], None), (["1 a", "1 b"], Some("the counter")), (["1 a", "3 b"], Some("the counter"))]
    {
        let mut history =
            vec![operation(0, 1, create(values[0]), done(1)), operation(2, 3, cas(1, values[1]), done(2))];
        history.iter_mut().for_each(|operation| operation.key = name.clone());
        let mut log =
            [logged(1, Some(values[0]), Some("-:dead:9:1")), logged(2, Some(values[1]), Some("1:live:9:1"))];
        for (record, value) in log.iter_mut().zip(values) {
            let keyed = KeyValue { uuid: format!("uuid of {value}"), ..KeyValue::new(&name, value) };
            (record.key, record.value) = (Some(name.clone().into_bytes()), Some(keyed.to_avro()));
        }
        let report = check_all(&history, log.into(), &[])?;
        match sentence {
            None => is_well(&report)?,
            Some(sentence) => ensure!(report.violations_of(sentence) > 0, "{values:?}: not seen: {report}"),
        }
    }
    Ok(())
}

pub(super) fn linearizable(history: &[Operation]) -> bool {
    linearizable::check(history, &[Level::Strong]).violations.is_empty()
}

async fn an_unclear_write_may_take_effect_late_or_never(_: Ctx) -> Result<()> {
    let begin = || vec![operation(0, 1, set("a"), done(1)), operation(2, 3, set("b"), unclear())];
    let with = |more: Vec<Operation>| [begin(), more].concat();
    let right = [
        with(vec![operation(4, 5, STRONG, found(1, "a"))]),
        with(vec![operation(4, 5, STRONG, found(1, "a")), operation(6, 7, STRONG, found(2, "b"))]),
        with(vec![operation(4, 5, cas(1, "c"), done(3))]),
        with(vec![operation(4, 5, cas(1, "c"), failed(2, Some("b")))]),
        // Only an eventual read shows that it took effect.
        with(vec![
            operation(4, 5, set("c"), done(3)),
            operation(6, 7, Call::Read(Level::Eventual), found(2, "b")),
        ]),
        vec![
            operation(0, 1, set("a"), done(1)),
            operation(2, 3, delete(), unclear()),
            operation(4, 5, STRONG, found(1, "a")),
            operation(6, 7, STRONG, missing(2)),
            operation(8, 9, create("b"), done(3)),
        ],
        vec![
            operation(0, 1, set("a"), done(1)),
            operation(2, 3, write(None, Condition::Version(at(1))), unclear()),
            operation(6, 7, STRONG, missing(2)),
        ],
    ];
    for (index, history) in right.iter().enumerate() {
        ensure!(linearizable(history), "the right history {index}");
    }
    let wrong = [
        with(vec![operation(4, 5, STRONG, found(2, "b")), operation(6, 7, STRONG, found(1, "a"))]),
        with(vec![operation(4, 5, set("c"), done(3)), operation(6, 7, STRONG, found(2, "b"))]),
        with(vec![operation(4, 5, STRONG, missing(2))]),
        vec![
            operation(0, 1, set("a"), done(1)),
            operation(2, 3, delete(), unclear()),
            operation(4, 5, STRONG, missing(2)),
            operation(6, 7, set("b"), done(3)),
            // There was one delete, and it is spent.
            operation(8, 9, STRONG, missing(4)),
        ],
        vec![
            operation(0, 1, set("a"), done(1)),
            operation(2, 3, set("b"), done(2)),
            operation(4, 5, write(None, Condition::Version(at(1))), unclear()),
            operation(6, 7, STRONG, missing(3)),
        ],
    ];
    for (index, history) in wrong.iter().enumerate() {
        ensure!(!linearizable(history), "the wrong history {index}");
    }
    Ok(())
}
