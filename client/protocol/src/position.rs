//! The three kinds of offset that must never be mixed up, and the partitioner.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

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

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
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
        let position = Self { partition, offset };
        // As it is answered, and no other way: neither +1 nor 01.
        if position.to_string() == text { Ok(position) } else { Err(wrong()) }
    }
}

/// The offset of the next record to read: everything below it has been read. Exclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextOffset(pub i64);

/// The offset that the partition's next record will get, as the log last said. Exclusive.
///
/// With Kafka this is the last stable offset, which equals the high watermark unless another writer of the topic
/// has a transaction open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HighWatermark(pub i64);

impl NextOffset {
    /// The next offset once the record at `offset` has been read.
    #[must_use]
    pub fn after(offset: i64) -> Self {
        Self(offset.saturating_add(1))
    }

    /// The last position below this offset; offset -1 if there is none.
    #[must_use]
    pub fn applied(self, partition: i32) -> Position {
        Position { partition, offset: self.0 - 1 }
    }

    /// How many offsets lie between here and the high watermark. Compaction leaves holes, so there may be fewer records.
    #[must_use]
    pub fn lag(self, high_watermark: HighWatermark) -> u64 {
        u64::try_from(high_watermark.0 - self.0).unwrap_or(0)
    }
}

/// The partition of a key, as Java producers and librdkafka's `murmur2` compute it.
#[must_use]
pub fn partition_of(key: &[u8], partitions: usize) -> i32 {
    let positive = murmur2(key) & 0x7fff_ffff;
    // A topic has far fewer than 2^31 partitions.
    (positive as usize % partitions.max(1)) as i32
}

/// MurmurHash2, 32 bits, with the seed of `org.apache.kafka.common.utils.Utils.murmur2`.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    let mut hash = SEED ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
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
                Ok(position) => {
                    prop_assert!(position.partition >= 0 && position.offset >= -1);
                    prop_assert_eq!(position.to_string(), text);
                }
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
        for text in [
            "",
            "1",
            ":",
            "1:",
            ":1",
            "-1:0",
            "1:-2",
            "1:2:3",
            "a:b",
            "1:99999999999999999999",
            " 1:2",
            "1:+2",
            "+1:2",
            "1:02",
            "01:2",
            "-0:1",
            "1:-0",
        ] {
            assert!(text.parse::<Position>().is_err(), "{text:?} was accepted");
        }
    }

    /// The values that Kafka's own UtilsTest.testMurmur2 expects.
    #[test]
    fn murmur2_agrees_with_kafka() {
        let known: [(&[u8], i32); 7] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
            (b"", 275_646_681),
        ];
        for (text, hash) in known {
            assert_eq!(murmur2(text).cast_signed(), hash, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn lag_counts_offsets_and_is_never_negative() {
        assert_eq!(NextOffset(0).lag(HighWatermark(5)), 5);
        assert_eq!(NextOffset(7).lag(HighWatermark(5)), 0);
        assert_eq!(NextOffset(0).applied(3).to_string(), "3:-1");
    }
}
