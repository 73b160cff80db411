//! The record of the log, `KeyValueRawAvro`, as raw Avro binary without a header.
//!
//! Written by hand because a node does it for every record that it writes, applies and serves, and has to borrow
//! from the bytes; the tests hold it against the apache-avro crate, the e2e suites against Java's Avro.
//! Format: Avro specification 1.11, "Binary Encoding".

use serde::{Deserialize, Serialize};

use crate::avro::{DecodeError, Input, put_long, put_string};

/// The Avro schema of [`KeyValue`], as the original system declares it.
pub const RECORD_SCHEMA: &str = r#"{"type":"record","name":"KeyValueRawAvro","namespace":"com.grayscaleconsulting.bitacora.rpc.avro","fields":[{"name":"key","type":"string"},{"name":"value","type":"string"},{"name":"timestamp","type":"long"},{"name":"source","type":"int"},{"name":"ttl","type":"long"},{"name":"uuid","type":"string"}]}"#;

/// Bytes of the largest value that any node can be set to take (`MAX_VALUE_BYTES`): Kafka's own protocol bounds a record well below 2 GiB.
pub const LARGEST_VALUE_BYTES: u64 = 256 << 20;

/// Values of [`KeyValue::source`].
pub mod source {
    /// No record.
    pub const MISSING: i32 = 0;
    /// Read from the log by the node that answers.
    pub const LOG: i32 = 1;
    /// Answered by another member of the cluster.
    pub const CLUSTER: i32 = 2;
    /// Being written: every record in the log, and the answer to a write.
    pub const PRODUCER: i32 = 3;
}

/// Values of [`KeyValue::ttl`] that are no time.
pub mod ttl {
    /// Never expires.
    pub const FOR_EVER: i64 = 0;
    /// A delete marker.
    pub const DELETED: i64 = -1;
}

/// A key, its value and what the system says of them; borrowed from the bytes that it was decoded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KeyValue<'a> {
    /// The key.
    pub key: &'a str,
    /// The value; empty in a delete marker.
    pub value: &'a str,
    /// In the log: ms since the epoch at the node that accepted the write. In an answer: the write timestamp.
    pub timestamp: i64,
    /// One of [`source`].
    pub source: i32,
    /// [`ttl::FOR_EVER`], [`ttl::DELETED`], or the ms since the epoch at which the key expires.
    pub ttl: i64,
    /// Identifies this write.
    pub uuid: &'a str,
}

/// [`KeyValue`] with strings of its own, as clients get it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // each field is as in KeyValue
pub struct OwnedKeyValue {
    pub key: String,
    pub value: String,
    pub timestamp: i64,
    pub source: i32,
    pub ttl: i64,
    pub uuid: String,
}

impl OwnedKeyValue {
    /// Borrows every field.
    #[must_use]
    pub fn as_borrowed(&self) -> KeyValue<'_> {
        let Self { key, value, timestamp, source, ttl, uuid } = self;
        KeyValue { key, value, timestamp: *timestamp, source: *source, ttl: *ttl, uuid }
    }
}

impl<'a> KeyValue<'a> {
    /// Appends the record's Avro bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(self.key.len() + self.value.len() + self.uuid.len() + 30);
        put_string(out, self.key);
        put_string(out, self.value);
        put_long(out, self.timestamp);
        put_long(out, i64::from(self.source));
        put_long(out, self.ttl);
        put_string(out, self.uuid);
    }

    /// Reads a record that fills `bytes` wholly.
    ///
    /// # Errors
    /// Says which field is wrong, and how.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut input = Input(bytes);
        let record = Self::take(&mut input)?;
        input.end()?;
        Ok(record)
    }

    pub(crate) fn take(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            key: input.string("key")?,
            value: input.string("value")?,
            timestamp: input.long("timestamp")?,
            source: input.int("source")?,
            ttl: input.long("ttl")?,
            uuid: input.string("uuid")?,
        })
    }

    /// A copy that owns its strings.
    #[must_use]
    pub fn to_owned(&self) -> OwnedKeyValue {
        OwnedKeyValue {
            key: self.key.to_owned(),
            value: self.value.to_owned(),
            timestamp: self.timestamp,
            source: self.source,
            ttl: self.ttl,
            uuid: self.uuid.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apache_avro::types::Value;
    use proptest::prelude::*;

    fn schema() -> apache_avro::Schema {
        apache_avro::Schema::parse_str(RECORD_SCHEMA).expect("the schema is valid")
    }

    fn as_avro(record: &OwnedKeyValue) -> Value {
        Value::Record(vec![
            ("key".into(), Value::String(record.key.clone())),
            ("value".into(), Value::String(record.value.clone())),
            ("timestamp".into(), Value::Long(record.timestamp)),
            ("source".into(), Value::Int(record.source)),
            ("ttl".into(), Value::Long(record.ttl)),
            ("uuid".into(), Value::String(record.uuid.clone())),
        ])
    }

    prop_compose! {
        fn records(
            )(key in ".*",
            value in ".*",
            timestamp: i64,
            source: i32,
            ttl: i64,
            uuid in ".*",
        ) -> OwnedKeyValue {
            OwnedKeyValue { key, value, timestamp, source, ttl, uuid }
        }
    }

    proptest! {
        #[test]
        fn the_avro_crate_reads_and_writes_the_same_bytes(record in records()) {
            let mut bytes = Vec::new();
            record.as_borrowed().encode(&mut bytes);
            let theirs = apache_avro::to_avro_datum(&schema(), as_avro(&record)).expect("the crate encodes it");
            prop_assert_eq!(&bytes, &theirs);
            let value = apache_avro::from_avro_datum(&schema(), &mut bytes.as_slice(), None).expect("the crate decodes it");
            prop_assert_eq!(value, as_avro(&record));
            prop_assert_eq!(KeyValue::decode(&bytes).map(|r| r.to_owned()), Ok(record));
        }

        #[test]
        fn any_bytes_decode_or_are_refused_and_never_panic(bytes: Vec<u8>) {
            if let Ok(record) = KeyValue::decode(&bytes) {
                // Avro allows padded varints, so the bytes may differ; the record may not.
                let mut again = Vec::new();
                record.encode(&mut again);
                prop_assert_eq!(KeyValue::decode(&again), Ok(record));
            }
        }

        /// As the other members answer it.
        #[test]
        fn a_record_survives_json_and_any_other_is_refused(record in records(), text in ".*") {
            let json = serde_json::to_string(&record).expect("it is text");
            prop_assert_eq!(serde_json::from_str::<OwnedKeyValue>(&json).expect("whole"), record);
            prop_assert!(serde_json::from_str::<OwnedKeyValue>(&text).is_err());
            prop_assert!(serde_json::from_str::<OwnedKeyValue>(&json[..json.len() - 1]).is_err());
        }

        #[test]
        fn a_cut_or_extended_record_is_refused(record in records(), cut: prop::sample::Index) {
            let mut bytes = Vec::new();
            record.as_borrowed().encode(&mut bytes);
            prop_assert!(KeyValue::decode(&bytes[..cut.index(bytes.len())]).is_err());
            bytes.push(0);
            prop_assert_eq!(KeyValue::decode(&bytes), Err(DecodeError::Trailing(1)));
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        // An 11-byte varint, a negative length, and a `source` above 32 bits.
        assert_eq!(KeyValue::decode(&[0xff; 11]), Err(DecodeError::OutOfRange("key")));
        assert_eq!(KeyValue::decode(&[1]), Err(DecodeError::OutOfRange("key")));
        let mut bytes = vec![0, 0, 0];
        put_long(&mut bytes, i64::from(i32::MAX) + 1);
        bytes.extend([0, 0]);
        assert_eq!(KeyValue::decode(&bytes), Err(DecodeError::OutOfRange("source")));
    }
}
