//! All checks of a history, and what they counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use super::effects::{Effects, Logged};
use super::{Call, Condition, Level, Operation, Outcome, linearizable, order};
use crate::http::Position;

/// Keys of this prefix are counters: each value begins with the number, and each write adds one.
pub const COUNTER: &str = "counter-";

/// What a node answers for a key in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Final {
    pub value: Option<String>,
    pub position: Position,
}

/// What a history was checked for, and what was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Operations of each kind, and how they ended: done or shown, failed (412), refused, unclear.
    pub kinds: BTreeMap<&'static str, [usize; 4]>,
    pub keys: usize,
    /// Operations that were held to linearizability.
    pub linearizable: usize,
    pub session_reads: usize,
    /// Conditional writes in effect in the log, and those that took no effect.
    pub attempts: [usize; 2],
    /// Plain writes that took effect more than once while they were under way.
    pub repeated: usize,
    /// Of all counters: increments that were acknowledged, that are unclear, and what the counters hold.
    pub increments: [usize; 3],
    pub violations: Vec<String>,
}

impl Report {
    pub fn operations(&self) -> usize {
        self.kinds.values().flatten().sum()
    }

    /// Violations that begin so.
    pub fn violations_of(&self, kind: &str) -> usize {
        self.violations.iter().filter(|violation| violation.starts_with(kind)).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{} operations checked, {} violations: {} linearizable on {} keys, {} session reads; {} conditional writes in \
             effect, {} void in the log; {} plain writes twice while under way",
            self.operations(),
            self.violations.len(),
            self.linearizable,
            self.keys,
            self.session_reads,
            self.attempts[0],
            self.attempts[1],
            self.repeated
        )?;
        let [acknowledged, unclear, held] = self.increments;
        writeln!(
            out,
            "  counters: {held} in all, {acknowledged} increments acknowledged, {unclear} unclear"
        )?;
        write!(out, "  (done, 412, refused, unclear)")?;
        for (kind, [done, failed, refused, unclear]) in &self.kinds {
            write!(out, " {kind} ({done}, {failed}, {refused}, {unclear})")?;
        }
        for violation in self.violations.iter().take(12) {
            write!(out, "\n  VIOLATION {violation}")?;
        }
        Ok(())
    }
}

/// Checks a history against itself, the log, and what each node holds in the end. Reads of `levels` are held to
/// linearizability.
pub fn check(
    history: &[Operation],
    effects: &Effects,
    finals: &[BTreeMap<String, Final>],
    levels: &[Level],
) -> Report {
    let mut report = Report { kinds: kinds(history), ..Report::default() };
    let found = linearizable::check(history, levels);
    (report.keys, report.linearizable) = (found.keys, found.operations);
    report.violations.extend(found.violations);
    let (session_reads, violations) = order::sessions(history, effects);
    report.session_reads = session_reads;
    report.violations.extend(violations);
    report.violations.extend(order::nodes(history));
    report.violations.extend(history.iter().filter_map(|operation| answer(operation, effects)));
    writes_are_in_effect_once(history, effects, &mut report);
    counters(history, effects, &mut report);
    report.violations.extend(finals.iter().enumerate().flat_map(|(node, held)| ends(node, held, effects)));
    report
}

fn kinds(history: &[Operation]) -> BTreeMap<&'static str, [usize; 4]> {
    let mut kinds: BTreeMap<&'static str, [usize; 4]> = BTreeMap::new();
    for operation in history {
        let place = match operation.outcome {
            Outcome::Done(_) | Outcome::Found(_) | Outcome::Missing { .. } => 0,
            Outcome::Failed { .. } => 1,
            Outcome::Refused(_) => 2,
            Outcome::Unclear(_) => 3,
        };
        kinds.entry(operation.kind()).or_default()[place] += 1;
    }
    kinds
}

/// Whether the log has what an answer tells.
fn answer(operation: &Operation, effects: &Effects) -> Option<String> {
    let key = &operation.key;
    if let Some(found) = operation.shown() {
        let there = effects.at(found.version);
        let same = there.is_some_and(|there| {
            there.in_effect && there.key == *key && there.value.as_ref() == Some(&found.value)
        });
        return (!same)
            .then(|| format!("read what is not in effect in the log: {operation}; it has {there:?}"));
    }
    match &operation.outcome {
        Outcome::Missing { position, .. } => {
            let version = effects.version_at(key, position.partition, position.offset)?;
            let there = effects.at(version).filter(|there| there.value.is_some())?;
            Some(format!("not found, and in the log: {operation}; it has {there:?}"))
        }
        Outcome::Done(position) => {
            let there = effects.at(*position);
            let (value, condition) = operation.write()?;
            let same = there.is_some_and(|there| {
                there.in_effect
                    && there.key == *key
                    && there.value.as_deref() == value
                    && there.conditional == (condition != Condition::None)
                    && uuid(operation).is_none_or(|uuid| there.uuid == uuid)
            });
            (!same).then(|| format!("acknowledged, and not in effect: {operation}; the log has {there:?}"))
        }
        _ => None,
    }
}

fn uuid(operation: &Operation) -> Option<&str> {
    match &operation.call {
        Call::Write { uuid, .. } => uuid.as_deref(),
        Call::Read(_) => None,
    }
}

/// Every write in effect is of an operation that may have had an effect, and is the only one of it; a plain write that was not
/// yet acknowledged may be there twice.
fn writes_are_in_effect_once(history: &[Operation], effects: &Effects, report: &mut Report) {
    let (mut by_uuid, mut by_value) = (HashMap::new(), HashMap::new());
    // Of each key, deletes without a uuid of their own that may have had an effect.
    let mut nameless: HashMap<&str, usize> = HashMap::new();
    for operation in history {
        let Some((value, _)) = operation.write() else { continue };
        match (uuid(operation), value) {
            (Some(uuid), _) => drop(by_uuid.insert(uuid, operation)),
            (None, Some(value)) => drop(by_value.insert(value, operation)),
            (None, None) => {
                let may = !matches!(operation.outcome, Outcome::Refused(_));
                *nameless.entry(&operation.key).or_default() += usize::from(may);
            }
        }
    }
    let mut seen: HashMap<(&str, &str), &Logged> = HashMap::new();
    for logged in effects.writes.values() {
        if logged.conditional {
            report.attempts[usize::from(!logged.in_effect)] += 1;
        }
        if !logged.in_effect {
            continue;
        }
        let before = seen.insert((&logged.key, &logged.uuid), logged);
        let of = by_uuid.get(logged.uuid.as_str()).copied();
        let of = of.or_else(|| by_value.get(logged.value.as_deref()?).copied());
        let Some(of) = of
            .filter(|of| of.key == logged.key && of.write().is_some_and(|w| w.0 == logged.value.as_deref()))
        else {
            let left = nameless.get_mut(logged.key.as_str()).filter(|left| **left > 0);
            match left.filter(|_| logged.value.is_none()) {
                Some(left) if before.is_none() => *left -= 1,
                Some(_) => report.repeated += 1,
                None => report.violations.push(format!("nobody wrote what is in the log: {logged:?}")),
            }
            continue;
        };
        if matches!(of.outcome, Outcome::Refused(_) | Outcome::Failed { .. }) {
            report.violations.push(format!("it was said to have no effect: {of}; the log has {logged:?}"));
        }
        if let Some(before) = before {
            report.repeated += 1;
            if logged.conditional || of.outcome == Outcome::Done(before.position) {
                report.violations.push(format!("in effect twice: {of}; the log has {before:?}, {logged:?}"));
            }
        }
    }
}

/// Every write of a counter in effect adds one to the write in effect before it, so none was lost and none counted twice.
fn counters(history: &[Operation], effects: &Effects, report: &mut Report) {
    let mut counters: BTreeSet<&str> = BTreeSet::new();
    for operation in history.iter().filter(|operation| operation.key.starts_with(COUNTER)) {
        counters.insert(&operation.key);
        match (operation.write(), &operation.outcome) {
            (Some(_), Outcome::Done(_)) => report.increments[0] += 1,
            (Some(_), Outcome::Unclear(_)) => report.increments[1] += 1,
            _ => {}
        }
    }
    let before = report.violations.len();
    for key in counters {
        let mut last = 0;
        for logged in effects.of_key(key) {
            let number = logged.value.as_deref().and_then(number_of);
            if number != Some(last + 1) {
                report.violations.push(format!("the counter {key} was at {last}, and then at {logged:?}"));
            }
            last = number.unwrap_or(last + 1);
        }
        report.increments[2] += last;
    }
    let [acknowledged, unclear, held] = report.increments;
    if report.violations.len() == before && !(acknowledged..=acknowledged + unclear).contains(&held) {
        report.violations.push(format!(
            "counters hold {held} in all, of {acknowledged} increments acknowledged and {unclear} unclear"
        ));
    }
}

/// The number that a counter's value begins with.
pub fn number_of(value: &str) -> Option<usize> {
    value.split(' ').next()?.parse().ok()
}

/// Whether a node ends with what the log ends with.
fn ends(node: usize, held: &BTreeMap<String, Final>, effects: &Effects) -> Vec<String> {
    let wrong = held.iter().filter_map(|(key, held)| {
        let last = effects.of_key(key).next_back();
        let same = match last {
            Some(last) if last.value.is_some() => held.position == last.position && held.value == last.value,
            // A marker may have been trimmed.
            Some(last) => held.value.is_none() && held.position.offset >= last.position.offset,
            None => held.value.is_none(),
        };
        (!same).then(|| format!("node {node} ends with another {key}: {held:?}; the log with {last:?}"))
    });
    wrong.collect()
}
