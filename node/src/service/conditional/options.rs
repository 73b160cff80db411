//! Writes that are asked for more than to be acknowledged: on a condition, or under a uuid by which a repeated call is known.

use std::sync::Arc;
use std::time::Duration;

use bitacora_protocol::{Consistency, ReadOptions, WriteCondition, WriteOptions};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::{
    ConditionalError, ConditionalWrite, ConditionalWrites, Content, KeyAccess, NodeAccess, written_before,
};
use crate::service::consistency::{ConsistentReads, Demand, wait_time};
use crate::service::error::OperationError;
use crate::service::reads::Reads;
use crate::service::writes::{Writes, Written, check_key};
use crate::store::SnapshotRead;
use crate::telemetry::TraceParent;

/// How long a write may take if its caller does not say, unless the log has longer for its acknowledgement.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// As UUIDs are written: digits and hyphens, nothing around them.
const UUID_LENGTH: usize = 36;

/// What such writes need of a node.
#[derive(Clone)]
pub struct WritesWithOptions {
    pub reads: Arc<Reads>,
    pub writes: Arc<Writes>,
    pub consistent: Arc<ConsistentReads>,
    pub conditional: Arc<ConditionalWrites<NodeAccess>>,
}

impl WritesWithOptions {
    /// Begins such a write, of a key that [`check_key`] accepts.
    ///
    /// # Errors
    /// When what is asked for makes no sense. The future's say by their kind whether the write may still take effect.
    pub fn begin(
        &self,
        key: &str,
        content: Content,
        write: &WriteOptions<'_>,
        trace: Option<TraceParent>,
    ) -> Result<BoxFuture<'static, Result<Written, OperationError>>, OperationError> {
        check_key(key)?;
        if let Content::Set { value, .. } = &content {
            self.writes.check_value(value)?;
        }
        let uuid = uuid_of(write.uuid)?;
        let timeout = match write.timeout {
            None => DEFAULT_TIMEOUT.max(self.conditional.access.write_timeout()),
            timeout => wait_time(timeout)?,
        };
        let (parts, key) = (self.clone(), key.to_owned());
        if write.condition == WriteCondition::None {
            return Ok(async move {
                let written = parts.write_once(&key, content, uuid, timeout, trace).await;
                parts.counted(written)
            }
            .boxed());
        }
        let condition = write.condition;
        let uuid = uuid.unwrap_or_else(|| Uuid::new_v4().to_string());
        let write = ConditionalWrite { key, content, condition, uuid, trace, timeout };
        Ok(async move {
            let written = parts.conditional.write(&write).await.map_err(OperationError::from);
            parts.counted(written)
        }
        .boxed())
    }

    /// What came of a write, with memory for the record that its answer has beside what was sent: of a batch, thousands may wait for their
    /// place. In both cases nothing was written by this call, so that it may as well be refused.
    fn counted(&self, written: Result<Written, OperationError>) -> Result<Written, OperationError> {
        let memory = self.consistent.memory();
        match written {
            Ok(mut written) => {
                if let Some(earlier) = &mut written.earlier {
                    earlier.memory = Some(memory.take(earlier.entry.bytes())?);
                }
                Ok(written)
            }
            Err(OperationError::Conditional(ConditionalError::NotMet(mut not_met))) => {
                not_met.current.count(memory)?;
                Err(ConditionalError::NotMet(not_met).into())
            }
            error => error,
        }
    }

    /// A write on no condition, unless its record is the key's already.
    async fn write_once(
        &self,
        key: &str,
        content: Content,
        uuid: Option<String>,
        timeout: Duration,
        trace: Option<TraceParent>,
    ) -> Result<Written, OperationError> {
        if let Some(uuid) = &uuid {
            let strong = Consistency::Strong;
            let read = ReadOptions { consistency: strong, timeout: Some(timeout), ..ReadOptions::default() };
            let reached = self.consistent.reach(Some(key), &Demand::of(&read)?).await?;
            let SnapshotRead { entry: held, in_doubt, .. } = self.reads.snapshot(key)?;
            if in_doubt {
                // Its record, or the one before that may be the key's all the same, would tell whether this call has been made before.
                return Err(self.consistent.in_doubt(key).into());
            }
            self.consistent.confirm(Some(key), reached)?;
            if let Some(written) = held.as_ref().and_then(|held| written_before(held, uuid)) {
                return Ok(written);
            }
        }
        let uuid = uuid.as_deref();
        Ok(match &content {
            Content::Set { value, live } => self.writes.set(key, value, *live, uuid, trace).await?,
            Content::Delete => self.writes.delete(key, uuid, trace).await?,
        })
    }
}

/// A caller's uuid as records have it; `None` for none.
fn uuid_of(text: &str) -> Result<Option<String>, OperationError> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = (text.len() == UUID_LENGTH).then(|| Uuid::try_parse(text).ok()).flatten();
    let shown = || text.chars().take(2 * UUID_LENGTH).collect();
    Ok(Some(parsed.ok_or_else(|| OperationError::Uuid(shown()))?.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_with_hyphens_in_either_case() {
        let uuid = "9B2C8F1E-5a57-4a0c-8f29-3f4b7d5f8a61";
        assert_eq!(uuid_of(uuid).expect("a uuid"), Some(uuid.to_lowercase()));
        assert_eq!(uuid_of("").expect("none"), None);
        let (bare, braced) = (uuid.replace('-', ""), format!("{{{uuid}}}"));
        for text in
            ["x", &bare, &braced, &uuid[1..], &uuid.replace('9', "x"), &"é".repeat(18), &"x".repeat(9_999)]
        {
            let error = uuid_of(text).expect_err("refused").to_string();
            assert!(error.contains("is no UUID") && error.len() < 300, "{error}");
        }
    }
}
