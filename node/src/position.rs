//! The three kinds of offset that must never be mixed up, and the partitioner.

pub use bitacora_client::wire::Position;

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
    use super::*;

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
