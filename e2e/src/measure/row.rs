//! A row of the suite's table: a figure of ours, the same of a peer in the same run, and their ratio.

use serde::{Deserialize, Serialize};

use super::child::Measured;
use crate::figures::Spread;

/// What is wanted of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Better {
    Higher,
    Lower,
}

/// What the suite is meant to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Target {
    /// Of our figure to the peer's.
    Ratio(f64),
    /// Of our figure alone.
    Figure(f64),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The part of the suite that measures it: what its command's filter names.
    pub part: String,
    pub work: String,
    /// What is counted, with its unit.
    pub figure: String,
    pub better: Better,
    pub ours: Spread,
    /// The peer or baseline by name; none if there is nothing to compare with.
    pub peer: Option<String>,
    /// `None` although there is a peer: it is not installed here.
    pub theirs: Option<Spread>,
    /// Ours divided by theirs, of each pair of rounds.
    pub ratio: Option<Spread>,
    /// Processor seconds for a million of the work: ours and theirs, where they are known.
    pub cpu: Option<[Option<f64>; 2]>,
    pub target: Option<Target>,
}

/// Which figure of a round a row shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    Rate(&'static str),
    Cpu,
    P50,
    P99,
}

impl Figure {
    fn of(self, round: &Measured) -> f64 {
        match self {
            Figure::Rate(_) => round.rate,
            Figure::Cpu => round.cpu,
            Figure::P50 => round.p50,
            Figure::P99 => round.p99,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Figure::Rate(unit) => unit,
            Figure::Cpu => "CPU s per million",
            Figure::P50 => "p50, µs",
            Figure::P99 => "p99, µs",
        }
    }
}

impl Row {
    /// A figure of ours alone.
    pub fn alone(part: &str, work: &str, figure: &str, better: Better, ours: &[f64]) -> Row {
        Row {
            part: part.to_owned(),
            work: work.to_owned(),
            figure: figure.to_owned(),
            better,
            ours: Spread::of(ours.iter().copied()),
            peer: None,
            theirs: None,
            ratio: None,
            cpu: None,
            target: None,
        }
    }

    /// A figure of ours beside a peer's; no figures of it mean that it is not installed.
    pub fn beside(
        (part, work, peer): (&str, &str, &str),
        figure: &str,
        better: Better,
        ours: &[f64],
        theirs: Option<&[f64]>,
    ) -> Row {
        let ratios =
            theirs.iter().flat_map(|theirs| ours.iter().zip(*theirs)).map(|(ours, theirs)| ours / theirs);
        let ratios: Vec<_> = ratios.filter(|ratio| ratio.is_finite()).collect();
        Row {
            peer: Some(peer.to_owned()),
            theirs: theirs.map(|theirs| Spread::of(theirs.iter().copied())),
            ratio: (!ratios.is_empty()).then(|| Spread::of(ratios)),
            ..Row::alone(part, work, figure, better, ours)
        }
    }

    /// Of rounds that alternated between a node and a peer; part, work and peer by `name`.
    pub fn of_rounds(
        name: (&str, &str, &str),
        figure: Figure,
        ours: &[Measured],
        theirs: Option<&[Measured]>,
    ) -> Row {
        let better = if matches!(figure, Figure::Rate(_)) { Better::Higher } else { Better::Lower };
        let values = |rounds: &[Measured]| rounds.iter().map(|round| figure.of(round)).collect::<Vec<_>>();
        let cpu = |rounds: &[Measured]| Spread::of(rounds.iter().map(|round| round.cpu)).median;
        Row {
            cpu: Some([Some(cpu(ours)), theirs.map(cpu)]),
            ..Row::beside(name, figure.name(), better, &values(ours), theirs.map(values).as_deref())
        }
    }

    #[must_use]
    pub fn target(mut self, target: Target) -> Row {
        self.target = Some(target);
        self
    }

    /// Whether the target is reached; `None` without one, or without what it is about.
    pub fn reached(&self) -> Option<bool> {
        let (figure, target) = match self.target? {
            Target::Ratio(target) => (self.ratio?.median, target),
            Target::Figure(target) => (self.ours.median, target),
        };
        Some(match self.better {
            Better::Higher => figure >= target,
            Better::Lower => figure <= target,
        })
    }

    /// What can be compared with another run of the suite, perhaps on another machine: the ratio to a peer, or a size.
    pub fn comparable(&self) -> Option<Spread> {
        self.ratio.or_else(|| self.figure.contains("bytes").then_some(self.ours))
    }

    /// Whether both are of the same work, figure and peer.
    pub fn is_same_as(&self, other: &Row) -> bool {
        let name = |row: &Row| {
            [row.part.clone(), row.work.clone(), row.figure.clone(), row.peer.clone().unwrap_or_default()]
        };
        name(self) == name(other)
    }
}

/// Points of a curve, for a chart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Series {
    pub part: String,
    pub name: String,
    pub points: Vec<(f64, f64)>,
}
