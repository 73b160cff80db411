//! What nodes may write to the log: its level. It is raised once, when all members understand what the next level adds.

/// How much of what nodes write to a partition a reader has to understand. Told by records of the key [`Level::KEY`], in each partition,
/// for everything behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(pub u32);

impl Level {
    /// Of a partition that has no record that tells its level: writes, trims and repairs.
    pub const FIRST: Self = Self(1);
    /// Conditional writes as well, and how far a repair reaches.
    pub const CONDITIONAL_WRITES: Self = Self(2);
    /// The highest that this node understands.
    pub const HIGHEST_KNOWN: Self = Self::CONDITIONAL_WRITES;

    /// Key of the records that tell a partition's level.
    pub const KEY: &str = "\0level";
    /// Kafka header of those records: the level as a decimal number.
    pub const HEADER: &str = "bitacora-level";

    /// The level that a header states; `None` if it states none.
    #[must_use]
    pub fn from_header(value: &[u8]) -> Option<Self> {
        let number = std::str::from_utf8(value).ok()?.parse().ok()?;
        (number >= Self::FIRST.0).then_some(Self(number))
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(out)
    }
}

/// Whether a key is one that nodes keep for themselves: it begins with U+0000. Records of such keys are in the log only, never in a store.
#[must_use]
pub fn is_reserved(key: &[u8]) -> bool {
    key.first() == Some(&0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_header_is_a_level_or_none(value: Vec<u8>, number: u32) {
            if let Some(level) = Level::from_header(&value) {
                prop_assert!(level >= Level::FIRST);
            }
            let again = Level::from_header(Level(number).to_string().as_bytes());
            prop_assert_eq!(again, Some(Level(number)).filter(|_| number > 0));
        }
    }

    #[test]
    fn only_keys_that_begin_with_a_zero_are_reserved() {
        assert!(is_reserved(Level::KEY.as_bytes()) && is_reserved(b"\0"));
        assert!(!is_reserved(b"") && !is_reserved(b"level\0") && !is_reserved("\u{1}".as_bytes()));
    }
}
