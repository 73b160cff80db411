//! Who never goes back: a session, on whichever node it reads, and a node, whoever asks it.

use std::collections::{BTreeMap, HashMap};

use super::effects::Effects;
use super::{Call, Level, Moment, Operation, Outcome};
use crate::http::Position;

/// A session read shows at least what the key was at the session's position of its partition: the highest that any earlier
/// answer to this client told. Returns how many such reads there are, and what is wrong.
pub fn sessions(history: &[Operation], effects: &Effects) -> (usize, Vec<String>) {
    let mut clients: BTreeMap<usize, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        clients.entry(operation.client).or_default().push(operation);
    }
    let (mut reads, mut violations) = (0, Vec::new());
    for mut operations in clients.into_values() {
        operations.sort_by_key(|operation| operation.began);
        let mut session: HashMap<i32, i64> = HashMap::new();
        for operation in operations {
            let Some(position) = operation.position() else { continue };
            let offset = session.entry(position.partition).or_insert(-1);
            if operation.call == Call::Read(Level::Session) {
                reads += 1;
                let least = effects.version_at(&operation.key, position.partition, *offset);
                if let Some(least) = least.filter(|least| position.offset < least.offset) {
                    violations.push(format!(
                        "a session went back: its position was {}:{offset}, so the version is {} or later: {operation}",
                        position.partition, least.offset
                    ));
                }
            }
            *offset = (*offset).max(position.offset);
        }
    }
    (reads, violations)
}

/// A node that has shown a key at a position never shows it at an older one, also after a crash. A node whose store was built anew
/// during the run may, and has no place in such a history.
pub fn nodes(history: &[Operation]) -> Vec<String> {
    let mut reads: BTreeMap<(usize, &str), Vec<(&Operation, Position)>> = BTreeMap::new();
    for operation in history {
        let position = match (&operation.call, &operation.outcome) {
            (Call::Read(_), Outcome::Found(found)) if found.local => found.version,
            (Call::Read(_), Outcome::Missing { position, local: true }) => *position,
            _ => continue,
        };
        reads.entry((operation.node, &operation.key)).or_default().push((operation, position));
    }
    reads.into_values().filter_map(|mut reads| first_step_back(&mut reads)).collect()
}

fn first_step_back(reads: &mut [(&Operation, Position)]) -> Option<String> {
    reads.sort_by_key(|(operation, _)| operation.ended);
    let ends: Vec<Moment> = reads.iter().map(|(operation, _)| operation.ended).collect();
    // Of all reads up to each one, that with the highest position.
    let mut newest: Vec<(&Operation, Position)> = Vec::with_capacity(reads.len());
    for read in reads.iter() {
        let known = newest.last().copied().filter(|(_, known)| known.offset >= read.1.offset);
        newest.push(known.unwrap_or(*read));
    }
    reads.iter().find_map(|(operation, position)| {
        let ended_before = ends.partition_point(|ended| *ended < operation.began);
        let (earlier, known) = newest[ended_before.checked_sub(1)?];
        (known.offset > position.offset)
            .then(|| format!("a node went back: {earlier} was answered before {operation} began"))
    })
}
