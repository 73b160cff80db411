//! Writes with conditions, and what else may be asked of a write.

use std::future::IntoFuture;
use std::time::Duration;

use bitacora_protocol::rpc::Request;
use bitacora_protocol::{Position, Visible, WriteCondition, WriteOptions};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use uuid::Uuid;

use crate::call::Call;
use crate::client::{Client, ttl_ms};
use crate::connection::{NotMet, Reply};
use crate::error::Error;
use crate::session::Session;
use crate::types::Written;

/// A write of a key, made by [`Client::write`], [`Client::remove`], [`Client::create`], [`Client::compare_and_set`] or
/// [`Client::delete_if`]; `.await` it.
///
/// One with a condition gets a uuid of its own, by which the nodes know it again: it is sent again after any failure, until its fate
/// is known or the deadline is over.
#[must_use = "a write happens when it is awaited"]
#[derive(Clone, Debug)]
pub struct Write<'a> {
    client: &'a Client,
    key: &'a str,
    /// `None`: a delete.
    value: Option<&'a str>,
    ttl: Option<Duration>,
    condition: WriteCondition,
    uuid: Option<String>,
    visible: Visible,
    session: Option<Session>,
    timeout: Option<Duration>,
}

impl Client {
    /// A write of a key that may say more: a time to live, a condition, who must show it.
    ///
    /// # Errors
    /// As [`Client::set`]; [`Error::NotMet`] if its condition does not hold, and [`Error::Refused`] with
    /// [`Refusal::Unsupported`](crate::Refusal::Unsupported) where there are no conditional writes.
    pub fn write<'a>(&'a self, key: &'a str, value: &'a str) -> Write<'a> {
        Write::new(self, key, Some(value))
    }

    /// A delete of a key that may say more, as [`Client::write`].
    ///
    /// # Errors
    /// As [`Client::write`].
    pub fn remove<'a>(&'a self, key: &'a str) -> Write<'a> {
        Write::new(self, key, None)
    }

    /// Writes a key that is not there yet; `.ttl(…)` says how long it lives.
    ///
    /// # Errors
    /// As [`Client::write`]; [`Error::NotMet`] with the record that is there.
    pub fn create<'a>(&'a self, key: &'a str, value: &'a str) -> Write<'a> {
        self.write(key, value).if_absent()
    }

    /// Writes a key whose record is still the one of this version: the `position` that was read or written.
    ///
    /// ```
    /// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bitacora_client::Error> {
    /// # let node = support::FakeNode::start().await.address();
    /// # let client = bitacora_client::Client::builder().nodes([node]).build().await?;
    /// let version = client.create("limit", "10").await?.position;
    /// client.compare_and_set("limit", version, "20").await?;
    /// let late = client.compare_and_set("limit", version, "30").await;
    /// assert!(late.is_err_and(|error| error.is_not_met()));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Client::write`]; [`Error::NotMet`] with the record that is there instead.
    pub fn compare_and_set<'a>(&'a self, key: &'a str, version: Position, value: &'a str) -> Write<'a> {
        self.write(key, value).if_version(version)
    }

    /// Deletes a key whose record is still the one of this version.
    ///
    /// # Errors
    /// As [`Client::compare_and_set`].
    pub fn delete_if<'a>(&'a self, key: &'a str, version: Position) -> Write<'a> {
        self.remove(key).if_version(version)
    }
}

impl<'a> Write<'a> {
    pub(crate) fn new(client: &'a Client, key: &'a str, value: Option<&'a str>) -> Self {
        Self {
            client,
            key,
            value,
            ttl: None,
            condition: WriteCondition::None,
            uuid: None,
            visible: Visible::Acknowledged,
            session: None,
            timeout: None,
        }
    }

    /// How long the key lives, as in [`Client::set_with_ttl`]. Of no meaning to a delete.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Writes only if the key's record is that of this version: the `position` of what was read or written.
    pub fn if_version(mut self, version: Position) -> Self {
        self.condition = WriteCondition::Version(version);
        self
    }

    /// Writes only if the key is there.
    pub fn if_present(mut self) -> Self {
        self.condition = WriteCondition::Present;
        self
    }

    /// Writes only if the key is not there.
    pub fn if_absent(mut self) -> Self {
        self.condition = WriteCondition::Absent;
        self
    }

    /// Who must show the write before this returns. [`Written::not_visible`] tells which members did not in time.
    pub fn visible(mut self, visible: Visible) -> Self {
        self.visible = visible;
        self
    }

    /// The record's uuid, for a write that another process may repeat: a key that has it is not written again.
    pub fn uuid(mut self, uuid: impl Into<String>) -> Self {
        self.uuid = Some(uuid.into());
        self
    }

    /// Reads of this session see the write.
    pub fn session(mut self, session: &Session) -> Self {
        self.session = Some(session.clone());
        self
    }

    /// The deadline of the write, in the place of the client's.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    pub(crate) fn condition(mut self, condition: WriteCondition) -> Self {
        self.condition = condition;
        self
    }

    async fn send(self) -> Result<Written, Error> {
        let call = self.client.call_within(self.timeout, true)?;
        self.send_in(call).await
    }

    /// Within the deadline of a larger whole.
    pub(crate) async fn send_in(&self, mut call: Call<'_>) -> Result<Written, Error> {
        let Self { client, key, value, condition, visible, .. } = *self;
        client.check_size(key.len() + value.map_or(0, str::len))?;
        let ttl = self.ttl.map_or(Ok(0), ttl_ms)?;
        let conditional = condition != WriteCondition::None;
        let uuid = match &self.uuid {
            Some(uuid) => uuid.clone(),
            None if conditional => Uuid::new_v4().to_string(),
            None => String::new(),
        };
        let write = WriteOptions { condition, uuid: &uuid, visible, timeout: None };
        let request = match value {
            Some(value) if write.is_plain() => Request::SetRecord { key, value, ttl },
            Some(value) => Request::WriteRecord { key, value, ttl, write },
            None if write.is_plain() => Request::DeleteRecord { key },
            None => Request::RemoveRecord { key, write },
        };
        call.repeatable |= conditional;
        if visible != Visible::Acknowledged {
            call.give_attempts_all_the_time();
        }
        let outcome = match call.send(&request).await? {
            Reply::Written(written) => Ok(written),
            Reply::Conditional(outcome) => outcome,
            _ => unreachable!("an answer is decoded by its message"),
        };
        let saw = |position| self.session.iter().for_each(|session| session.saw(position));
        match outcome {
            Ok(written) => {
                saw(written.position);
                Ok(written)
            }
            Err(NotMet { current, position }) => {
                saw(position);
                let may_have_taken_effect = call.unclear;
                Err(Error::NotMet { key: key.to_owned(), current, position, may_have_taken_effect })
            }
        }
    }
}

impl<'a> IntoFuture for Write<'a> {
    type Output = Result<Written, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.send().boxed()
    }
}
