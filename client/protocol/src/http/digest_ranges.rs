//! What a node holds of a range of keys, as `GET /status/digests/ranges` tells it: to find the keys in which two nodes differ.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Position;

/// Parts that a range is divided into by one call, at most. Of the longest keys a URI holds some twenty.
pub const MAX_RANGE_PARTS: usize = 64;
/// Entries that one call names, at most.
pub const MAX_RANGE_ENTRIES: usize = 1_000;

/// A key as bytes, written in base64url without padding: on a disk that returns other bytes than were written, a key may be no text.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyBytes(pub Vec<u8>);

/// A text that is no [`KeyBytes`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no key in base64url without padding")]
pub struct KeyBytesError(String);

impl fmt::Display for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(&self.0))
    }
}

impl FromStr for KeyBytes {
    type Err = KeyBytesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let key = BASE64.decode(text);
        key.map(Self).map_err(|_| KeyBytesError(text.chars().take(64).collect()))
    }
}

impl Serialize for KeyBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// `GET /status/digests/ranges`: what a node holds of a range of keys, all of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestRanges {
    /// As [`DigestsAnswer::format`](super::DigestsAnswer::format).
    pub format: Cow<'static, str>,
    /// As [`DigestsAnswer::log`](super::DigestsAnswer::log).
    pub log: String,
    /// All partitions, by number.
    pub partitions: Vec<ComparedPartition>,
    /// In the order of the keys, without gaps, from the first key that was asked for. The last one ends before the range does if
    /// the node would have had to look at too much.
    pub parts: Vec<RangePart>,
    /// In the order of the keys, up to the end of the last part; `None` unless they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<Vec<RangeEntry>>,
}

/// How far a partition was applied at the moment of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComparedPartition {
    /// Kafka's number of it.
    pub partition: i32,
    /// Everything before this offset was applied.
    pub next: i64,
    /// Whether another node that has applied as much must hold the same; false while this one may lack something.
    pub comparable: bool,
}

/// A part of a range: from where the part before it ends, or else from where the range begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangePart {
    /// The key before which it ends; `None`: behind the last key.
    pub to: Option<KeyBytes>,
    /// Entries that count, in the partitions that were asked for.
    pub count: u64,
    /// The sum of their digests, 32 hexadecimal digits.
    pub digest: String,
}

/// What a partition holds of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeEntry {
    /// The key.
    pub key: KeyBytes,
    /// Where its record is in the log; `None` if what the store holds of the key can't be read as an entry.
    pub position: Option<Position>,
    /// Of the entry, 32 hexadecimal digits.
    pub digest: String,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_key_is_written_as_text_and_read_again(key: Vec<u8>, text in ".{0,12}") {
            let key = KeyBytes(key);
            prop_assert_eq!(key.to_string().parse::<KeyBytes>().expect("it was written so"), key);
            if let Ok(key) = text.parse::<KeyBytes>() {
                prop_assert_eq!(key.to_string(), text, "there is one spelling");
            }
        }
    }

    #[test]
    fn an_answer_is_written_and_read() {
        let answer = DigestRanges {
            format: "6".into(),
            log: "a1".to_owned(),
            partitions: vec![ComparedPartition { partition: 0, next: 7, comparable: true }],
            parts: vec![
                RangePart { to: Some(KeyBytes(b"k".to_vec())), count: 1, digest: "0".repeat(32) },
                RangePart { to: None, count: 0, digest: "0".repeat(32) },
            ],
            entries: None,
        };
        let zero = "0".repeat(32);
        let text = format!(
            r#"{{"format":"6","log":"a1","partitions":[{{"partition":0,"next":7,"comparable":true}}],"parts":[{{"to":"aw","count":1,"digest":"{zero}"}},{{"to":null,"count":0,"digest":"{zero}"}}]}}"#
        );
        assert_eq!(serde_json::to_string(&answer).expect("it is text"), text);
        assert_eq!(serde_json::from_str::<DigestRanges>(&text).expect("it was written so"), answer);
        let entry = RangeEntry { key: KeyBytes(vec![0xff]), position: None, digest: zero };
        let text = serde_json::to_string(&entry).expect("it is text");
        assert!(text.starts_with(r#"{"key":"_w","position":null,"#), "{text}");
    }
}
