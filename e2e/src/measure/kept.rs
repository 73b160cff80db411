//! The figures that the repository keeps, and what has become worse since.

use std::path::PathBuf;

use super::results::{Results, root};
use super::row::{Better, Row};
use crate::figures::Spread;

/// Beyond the spread of the kept rounds, and beyond this part of their median, a change is no noise.
const NOISE: f64 = 0.1;

/// Where figures are kept: of a whole run, or of a quick one. What a quick run measures is smaller, so each is compared with its like.
pub fn file(quick: bool) -> PathBuf {
    let name = if quick { "quick.json" } else { "figures.json" };
    root().join("docs/performance").join(name)
}

/// Whether a ratio has become worse than the noise of the kept one.
fn is_worse(row: &Row, now: Spread, kept: Spread) -> bool {
    match row.better {
        Better::Higher => now.median < kept.least && now.median < kept.median * (1.0 - NOISE),
        Better::Lower => now.median > kept.most && now.median > kept.median * (1.0 + NOISE),
    }
}

/// A line for each row that has become worse, and what could not be compared.
pub fn compare(now: &Results, kept: &Results) -> Vec<String> {
    let (mut lines, mut compared) = (Vec::new(), 0);
    for row in &now.rows {
        let Some(known) = kept.rows.iter().find(|known| known.is_same_as(row)) else { continue };
        let (Some(fresh), Some(known)) = (row.comparable(), known.comparable()) else { continue };
        compared += 1;
        if is_worse(row, fresh, known) {
            let beside = row.peer.as_deref().map(|peer| format!(" beside {peer}")).unwrap_or_default();
            lines.push(format!("worse: {}, {}{beside}: {fresh:.2}, kept {known:.2}", row.work, row.figure));
        }
    }
    lines.push(format!(
        "{compared} of {} rows compared with the kept figures (commit {}); {} worse than their noise",
        now.rows.len(),
        kept.host.commit,
        lines.len()
    ));
    lines
}
