//! Which log it is: a store built from one says nothing about another.

use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};

/// Tells one log from another: a store built from the one says nothing about the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogIdentity {
    /// Kafka's cluster id, or the embedded log's own.
    pub cluster: String,
    pub topic: String,
    /// Kafka's id of the topic, which changes when it is deleted and created again; `None` where it is not known.
    #[serde(default)]
    pub topic_id: Option<String>,
}

/// A short name for a [`LogIdentity`] that tells topics apart; 0 where the topic's id is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LogTag(pub u64);

impl LogTag {
    /// Whether both may be of one log.
    #[must_use]
    pub fn fits(self, other: Self) -> bool {
        self == other || self.0 == 0 || other.0 == 0
    }
}

impl LogIdentity {
    /// The first 8 bytes of the MD5 of the topic's id.
    #[must_use]
    pub fn tag(&self) -> LogTag {
        let id = self.topic_id.as_deref();
        let first = id.and_then(|id| Md5::digest(id).first_chunk().copied());
        LogTag(first.map_or(0, u64::from_be_bytes))
    }

    /// Whether both may name one log.
    #[must_use]
    pub fn fits(&self, other: &Self) -> bool {
        let ids = self.topic_id.as_ref().zip(other.topic_id.as_ref());
        self.cluster == other.cluster && self.topic == other.topic && ids.is_none_or(|(a, b)| a == b)
    }
}

impl std::fmt::Display for LogIdentity {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "topic '{}'", self.topic)?;
        if let Some(id) = &self.topic_id {
            write!(out, " (id {id})")?;
        }
        write!(out, " of cluster {}", self.cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_tell_topics_apart_where_they_have_ids() {
        let of = |id: Option<&str>| {
            LogIdentity { cluster: "c".into(), topic: "t".into(), topic_id: id.map(str::to_owned) }.tag()
        };
        assert_eq!(of(Some("one")), of(Some("one")));
        assert!(!of(Some("one")).fits(of(Some("two"))));
        assert!(of(None).fits(of(Some("two"))) && of(Some("one")).fits(of(None)) && of(None).fits(of(None)));
    }
}
