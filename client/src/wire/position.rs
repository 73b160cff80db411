use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// A place in the log, written `partition:offset`: the record there and all before it in that partition.
///
/// Inclusive, unlike Kafka's *next offset* and *high watermark*. Offset -1 means "nothing of that partition yet".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// Kafka's partition number, from 0.
    pub partition: i32,
    /// Kafka's offset, from 0; -1 for nothing yet.
    pub offset: i64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.partition, self.offset)
    }
}

/// As the text `partition:offset`.
impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text that is not a [`Position`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a position; it is written partition:offset, for example 2:1047")]
pub struct PositionError(String);

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || PositionError(text.chars().take(64).collect());
        let (partition, offset) = text.split_once(':').ok_or_else(wrong)?;
        let partition = partition.parse().ok().filter(|p| *p >= 0).ok_or_else(wrong)?;
        let offset = offset.parse().ok().filter(|o| *o >= -1).ok_or_else(wrong)?;
        Ok(Self { partition, offset })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_a_position_or_refused(
            text in "[0-9:+-]{0,12}|\\PC{0,40}",
            partition in 0..i32::MAX,
            offset in -1..i64::MAX,
        ) {
            let position = Position { partition, offset };
            prop_assert_eq!(position.to_string().parse(), Ok(position));
            match text.parse::<Position>() {
                Ok(Position { partition, offset }) => prop_assert!(partition >= 0 && offset >= -1),
                Err(error) => prop_assert!(error.to_string().contains("is not a position")),
            }
        }
    }

    #[test]
    fn written_and_read_back() {
        for position in [Position { partition: 0, offset: -1 }, Position { partition: 12, offset: i64::MAX }]
        {
            assert_eq!(position.to_string().parse(), Ok(position));
            assert_eq!(serde_json::json!(position), position.to_string());
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in
            ["", "1", ":", "1:", ":1", "-1:0", "1:-2", "1:2:3", "a:b", "1:99999999999999999999", " 1:2"]
        {
            assert!(text.parse::<Position>().is_err(), "{text:?} was accepted");
        }
    }
}
