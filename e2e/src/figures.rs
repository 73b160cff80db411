//! What the benchmarks make of their rounds.

use serde::{Deserialize, Serialize};

/// The value in the middle; the higher one of two; NaN of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median of rounds and how far they lie apart.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let values: Vec<_> = values.into_iter().collect();
        Spread {
            median: median(values.iter().copied()),
            least: values.iter().copied().fold(f64::NAN, f64::min),
            most: values.iter().copied().fold(f64::NAN, f64::max),
        }
    }
}

impl std::fmt::Display for Spread {
    /// With so many decimals as it is told, none by default, and padded: `median (least to most)`.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Spread { median, least, most } = self;
        let decimals = out.precision().unwrap_or(0);
        let width = out.width().unwrap_or(0);
        let text = format!("{median:.decimals$} ({least:.decimals$} to {most:.decimals$})");
        write!(out, "{text:<width$}")
    }
}
