//! The search for an order of a history's operations agrees with one that tries everything, and ends in time.

use anyhow::{Result, ensure};
use e2e::consistency::{Call, Condition, Level, Operation, Outcome, linearizable};
use e2e::http::Position;
use e2e::runner::{Ctx, Test};
use e2e::tests;
use fastrand::Rng;

use super::consistency_checks::{
    STRONG, at, cas, create, delete, done, linearizable, missing, operation, record, set, unclear, write,
};

pub fn tests() -> Vec<Test> {
    tests![
        Nothing: the_search_agrees_with_one_that_tries_everything,
            a_long_history_is_decided_and_one_stale_read_in_it_seen
    ]
}

/// Some calls on one key, each answered as the register was at some moment between its beginning and its end; the calls overlap
/// by up to `overlap` of them.
fn random_history(rng: &mut Rng, calls: usize, overlap: u64) -> Vec<Operation> {
    let (mut version, mut value): (i64, Option<String>) = (-1, None);
    // Until there is one, a version is expected that never comes.
    let mut versions = vec![1 << 40];
    let mut history = Vec::new();
    for number in 0..calls {
        let moment = (number as u64 + overlap) * 10;
        let name = format!("v{number}");
        let expected = versions[versions.len() - 1 - rng.usize(0..versions.len().min(3))];
        let call = match rng.usize(0..8) {
            0..3 => STRONG,
            3 => set(&name),
            4 => delete(),
            5 => create(&name),
            6 => cas(expected, &name),
            _ => write(None, Condition::Version(at(expected))),
        };
        let shown = value.as_deref().map(|value| record(version, value));
        let outcome = match &call {
            Call::Read(_) => shown.map_or(missing(version), Outcome::Found),
            Call::Write { value: written, condition, .. } => {
                let holds = match condition {
                    Condition::None => true,
                    Condition::Absent => value.is_none(),
                    Condition::Version(expected) => value.is_some() && expected.offset == version,
                };
                let lost = rng.usize(0..8) == 0;
                if holds && !(lost && rng.bool()) {
                    version += rng.i64(1..3);
                    value.clone_from(written);
                    if lost {
                        unclear()
                    } else {
                        // Nobody expects a version that nobody has seen.
                        versions.push(version);
                        done(version)
                    }
                } else if lost {
                    unclear()
                } else {
                    Outcome::Failed { current: shown, position: at(version) }
                }
            }
        };
        let (began, mut ended) = (moment - rng.u64(0..overlap * 10), moment + rng.u64(0..overlap * 10));
        if matches!(outcome, Outcome::Unclear(_)) {
            // Nobody waited until it took effect.
            ended = began + 1;
        }
        history.push(operation(began, ended, call, outcome));
    }
    history
}

/// Whether any order of the calls that are left fits, tried one by one. The version is `None` while nobody knows it.
fn tries_everything(left: &[&Operation], least: i64, version: Option<i64>, value: Option<&str>) -> bool {
    let is_unclear = |operation: &&Operation| matches!(operation.outcome, Outcome::Unclear(_));
    if left.iter().all(is_unclear) {
        return true;
    }
    let certain = left.iter().filter(|operation| !is_unclear(operation));
    let first_end = certain.map(|operation| operation.ended).min().unwrap_or(u64::MAX);
    (0..left.len()).any(|index| {
        let operation = left[index];
        if operation.began > first_end {
            return false;
        }
        let rest = [&left[..index], &left[index + 1..]].concat();
        let is_version =
            |other: i64| version.map_or(value.is_some() && other > least, |version| version == other);
        let shows = |position: Position, shown: Option<&str>| match shown {
            Some(shown) => value == Some(shown) && is_version(position.offset),
            None => value.is_none() && position.offset >= least,
        };
        let holds = |condition| match condition {
            Condition::None => true,
            Condition::Absent => value.is_none(),
            Condition::Version(expected) => value.is_some() && is_version(expected.offset),
        };
        match (operation.write(), &operation.outcome) {
            (None, outcome) => {
                let position = operation.position().expect("reads have one");
                let shown = operation.shown().map(|found| found.value.as_str());
                debug_assert!(matches!(outcome, Outcome::Found(_) | Outcome::Missing { .. }));
                let known = if shown.is_some() { Some(position.offset) } else { version };
                let least = if shown.is_some() { position.offset } else { least };
                shows(position, shown) && tries_everything(&rest, least, known, value)
            }
            (Some((written, condition)), Outcome::Done(now)) => {
                now.offset > least
                    && holds(condition)
                    && tries_everything(&rest, now.offset, Some(now.offset), written)
            }
            (Some((written, condition)), Outcome::Unclear(_)) => {
                let least =
                    if let Condition::Version(expected) = condition { expected.offset } else { least };
                holds(condition) && tries_everything(&rest, least, None, written)
            }
            (Some((_, condition)), Outcome::Failed { current, position }) => {
                let shown = current.as_ref().map(|found| found.value.as_str());
                let refuted = match (condition, current) {
                    (Condition::None, _) | (Condition::Absent, None) => false,
                    (Condition::Version(expected), Some(found)) => found.version != expected,
                    _ => true,
                };
                let known = if shown.is_some() { Some(position.offset) } else { version };
                let least = if shown.is_some() { position.offset } else { least };
                refuted && shows(*position, shown) && tries_everything(&rest, least, known, value)
            }
            _ => false,
        }
    })
}

async fn the_search_agrees_with_one_that_tries_everything(_: Ctx) -> Result<()> {
    let (mut well, mut ill) = (0, 0);
    for seed in 0..6_000 {
        let mut rng = Rng::with_seed(seed);
        let calls = rng.usize(3..9);
        let overlap = rng.u64(1..4);
        let mut history = random_history(&mut rng, calls, overlap);
        // An answer of another call, a later beginning or an earlier end.
        for _ in 0..seed % 4 {
            let (one, other) = (rng.usize(0..calls), rng.usize(0..calls));
            match rng.usize(0..4) {
                0 => history[one].began = history[one].ended,
                1 => history[one].ended = history[one].began,
                _ if history[one].write().is_none() && history[other].write().is_none() => {
                    history[one].outcome = history[other].outcome.clone();
                }
                _ => {}
            }
        }
        let right = linearizable(&history);
        let left: Vec<_> = history.iter().collect();
        let expected = tries_everything(&left, -1, Some(-1), None);
        ensure!(right == expected, "seed {seed}: {right}, and by trying everything {expected}: {history:#?}");
        *(if right { &mut well } else { &mut ill }) += 1;
    }
    ensure!(well > 1_000 && ill > 200, "{well} right, {ill} wrong");
    Ok(())
}

async fn a_long_history_is_decided_and_one_stale_read_in_it_seen(_: Ctx) -> Result<()> {
    for seed in 0..5 {
        let mut rng = Rng::with_seed(seed);
        let mut history = random_history(&mut rng, 5_000, 12);
        let found = linearizable::check(&history, &[Level::Strong]).violations;
        ensure!(found.is_empty(), "seed {seed}: {found:?}");
        // A late read shows what an early one showed.
        let reads: Vec<usize> =
            (0..history.len()).filter(|i| matches!(history[*i].outcome, Outcome::Found(_))).collect();
        let [.., early, _] = reads[..reads.len() / 2] else { anyhow::bail!("too few reads") };
        let late = reads[reads.len() / 2 + rng.usize(100..300)];
        history[late].outcome = history[early].outcome.clone();
        let found = linearizable::check(&history, &[Level::Strong]).violations;
        ensure!(found.len() == 1 && found[0].starts_with("not linearizable"), "seed {seed}: {found:?}");
    }
    Ok(())
}
