//! What a caller may ask of a read and of a write beyond the plain ones: how consistent a read is, on which condition a write
//! takes effect, and who must show a write before it is answered.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::Position;

/// How consistent a read is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// What the node holds.
    #[default]
    Eventual,
    /// What the node holds once it has applied a [`SessionPosition`]: the caller's own writes, and nothing older than what it has
    /// read.
    Session,
    /// What the node holds once it has applied everything below the high watermark that the log names when it is asked. Misses
    /// what the brokers acknowledged while a leader that was deposed, and has not noticed, answers.
    Latest,
    /// Linearizable together with all acknowledged writes of all nodes.
    Strong,
}

impl Consistency {
    /// All of them, the weakest first.
    pub const ALL: [Self; 4] = [Self::Eventual, Self::Session, Self::Latest, Self::Strong];

    /// As HTTP, RPC and the command line write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eventual => "eventual",
            Self::Session => "session",
            Self::Latest => "latest",
            Self::Strong => "strong",
        }
    }
}

impl fmt::Display for Consistency {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Consistency {
    type Err = String;

    /// Says which there are.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        named(&Self::ALL, Self::name, text)
    }
}

/// Who must show a write before it is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Visible {
    /// Nobody: the log has acknowledged it.
    #[default]
    Acknowledged,
    /// The node that answers.
    Here,
    /// Every member.
    All,
}

impl Visible {
    /// All of them, the weakest first.
    pub const ALL: [Self; 3] = [Self::Acknowledged, Self::Here, Self::All];

    /// As HTTP, RPC and the command line write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Acknowledged => "acknowledged",
            Self::Here => "here",
            Self::All => "all",
        }
    }
}

impl fmt::Display for Visible {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Visible {
    type Err = String;

    /// Says which there are.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        named(&Self::ALL, Self::name, text)
    }
}

fn named<T: Copy>(all: &[T], name: impl Fn(T) -> &'static str, text: &str) -> Result<T, String> {
    all.iter().copied().find(|one| name(*one) == text).ok_or_else(|| {
        let shown: String = text.chars().take(40).collect();
        let names: Vec<_> = all.iter().map(|one| name(*one)).collect();
        format!("'{shown}' is none of {}", names.join(", "))
    })
}

/// A set of positions, at most one a partition, written `0:12,3:40`: what a session has written and read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SessionPosition {
    /// In the order of the partitions.
    positions: Vec<Position>,
}

/// A text that is not a [`SessionPosition`]; says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SessionPositionError(String);

impl FromIterator<Position> for SessionPosition {
    fn from_iter<I: IntoIterator<Item = Position>>(positions: I) -> Self {
        let mut all = Self::default();
        positions.into_iter().for_each(|position| all.add(position));
        all
    }
}

impl SessionPosition {
    /// Whether it asks for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Its positions, in the order of the partitions.
    #[must_use]
    pub fn positions(&self) -> &[Position] {
        &self.positions
    }

    /// The one of a partition.
    #[must_use]
    pub fn of(&self, partition: i32) -> Option<Position> {
        let at = self.positions.binary_search_by_key(&partition, |position| position.partition).ok()?;
        Some(self.positions[at])
    }

    /// Adds a position that was written or read: from now on nothing older than that will do.
    pub fn add(&mut self, position: Position) {
        match self.positions.binary_search_by_key(&position.partition, |known| known.partition) {
            Ok(at) => self.positions[at] = self.positions[at].max(position),
            Err(at) => self.positions.insert(at, position),
        }
    }
}

impl fmt::Display for SessionPosition {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, position) in self.positions.iter().enumerate() {
            write!(out, "{}{position}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for SessionPosition {
    type Err = SessionPositionError;

    /// Refuses an empty text, too: it is an oversight.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut session = Self::default();
        for one in text.split(',') {
            let position: Position = one.trim_ascii().parse().map_err(|error: crate::PositionError| {
                SessionPositionError(format!("{error}; several of them with commas between: 0:12,3:40"))
            })?;
            if session.of(position.partition).is_some() {
                return Err(SessionPositionError(format!(
                    "the partition {} is named twice; give the later of its positions",
                    position.partition
                )));
            }
            session.add(position);
        }
        Ok(session)
    }
}

/// What is asked of a read; nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions<'a> {
    /// How consistent it is.
    pub consistency: Consistency,
    /// A [`SessionPosition`] as text, for [`Consistency::Session`]; empty for none.
    pub position: &'a str,
    /// How long it may wait; `None` for the node's own.
    pub timeout: Option<Duration>,
    /// It fails unless the node knows that it has everything that was appended until so long ago.
    pub max_staleness: Option<Duration>,
}

impl ReadOptions<'_> {
    /// Whether it is answered from what the node holds, at once.
    #[must_use]
    pub fn is_eventual(&self) -> bool {
        self.consistency == Consistency::Eventual && self.max_staleness.is_none()
    }
}

/// On which condition a write takes effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WriteCondition {
    /// On none.
    #[default]
    None,
    /// The key is live, and its version is this one: `If-Match: "P:O"`.
    Version(Position),
    /// The key is live: `If-Match: *`.
    Present,
    /// The key is not live: `If-None-Match: *`.
    Absent,
}

/// As RPC and the command line write it: nothing, `*`, `absent`, or the version.
impl fmt::Display for WriteCondition {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Version(version) => version.fmt(out),
            Self::Present => out.write_str("*"),
            Self::Absent => out.write_str("absent"),
        }
    }
}

impl FromStr for WriteCondition {
    type Err = String;

    /// Says what a condition looks like.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "" => Self::None,
            "*" => Self::Present,
            "absent" => Self::Absent,
            version => Self::Version(version.parse().map_err(|_| {
                let shown: String = version.chars().take(40).collect();
                format!("'{shown}' is no condition of a write: it is partition:offset, * or absent")
            })?),
        })
    }
}

/// What is asked of a write; nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions<'a> {
    /// On which condition it takes effect.
    pub condition: WriteCondition,
    /// The record's uuid, by which a repeated call is known; empty for one that the node makes.
    pub uuid: &'a str,
    /// Who must show it before it is answered.
    pub visible: Visible,
    /// How long it may wait for its decision and to be shown; `None` for the node's own.
    pub timeout: Option<Duration>,
}

impl WriteOptions<'_> {
    /// Whether it is answered as soon as the log has acknowledged it, whatever the key holds.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self { timeout: self.timeout, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_a_session_position_or_refused(text in "[0-9:,+ -]{0,20}|\\PC{0,40}") {
            match text.parse::<SessionPosition>() {
                Ok(session) => {
                    prop_assert!(!session.is_empty());
                    prop_assert_eq!(session.to_string().parse(), Ok(session));
                }
                Err(error) => prop_assert!(error.to_string().len() < 300, "{}", error),
            }
        }

        #[test]
        fn a_session_position_is_the_latest_of_each_partition(
            added in prop::collection::vec((0..5_i32, -1..9_i64), 1..20),
        ) {
            let mut session = SessionPosition::default();
            for (partition, offset) in &added {
                session.add(Position { partition: *partition, offset: *offset });
            }
            for partition in 0..5 {
                let latest = added.iter().filter(|one| one.0 == partition).map(|one| one.1).max();
                prop_assert_eq!(session.of(partition).map(|position| position.offset), latest);
            }
            prop_assert_eq!(session.to_string().parse(), Ok(session));
        }
    }

    #[test]
    fn what_is_no_session_position_is_refused() {
        for text in ["", ",", "0:1,", "0:1,0:2", "0:1;1:2", "-1:0", "0", "0:1,x"] {
            assert!(text.parse::<SessionPosition>().is_err(), "{text:?} was accepted");
        }
        assert_eq!("3:40, 0:12".parse::<SessionPosition>().map(|it| it.to_string()), Ok("0:12,3:40".into()));
    }

    #[test]
    fn conditions_are_read_back() {
        let version = Position { partition: 3, offset: 40 };
        for (condition, text) in [
            (WriteCondition::None, ""),
            (WriteCondition::Version(version), "3:40"),
            (WriteCondition::Present, "*"),
            (WriteCondition::Absent, "absent"),
        ] {
            assert_eq!((condition.to_string().as_str(), text.parse()), (text, Ok(condition)));
        }
        for wrong in ["Absent", "**", "3", "\"3:40\"", "3:40,4:1", &"x".repeat(10_000)] {
            let error = wrong.parse::<WriteCondition>().expect_err(wrong);
            assert!(error.contains("is no condition") && error.len() < 300, "{error}");
        }
    }

    #[test]
    fn names_are_read_back() {
        for level in Consistency::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        for visible in Visible::ALL {
            assert_eq!(visible.to_string().parse(), Ok(visible));
        }
        let error = "Strong".parse::<Consistency>().expect_err("names are in lower case");
        assert_eq!(error, "'Strong' is none of eventual, session, latest, strong");
    }
}
