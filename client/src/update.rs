//! Changing a key by what it holds, again and again until nobody else came in between.

use std::time::Duration;

use bitacora_protocol::WriteCondition;
use bitacora_protocol::rpc::Request;
use tokio::time::{Instant, sleep};

use crate::balance::pauses;
use crate::call::{Call, read};
use crate::client::Client;
use crate::connection::Reply;
use crate::error::Error;
use crate::read::ReadLevel;
use crate::types::{Record, Written};
use crate::write::Write;

/// The pause after another one was faster, and the longest one; chance makes each up to twice as long.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// What an update makes of a key. A text is the new value, of a key that lives for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key gets this value.
    Set(String),
    /// The key gets this value, and expires so long after.
    SetWithTtl(String, Duration),
    /// The key is deleted, if it is there.
    Delete,
    /// Nothing is written.
    Keep,
}

impl From<String> for Change {
    fn from(value: String) -> Self {
        Self::Set(value)
    }
}

impl From<&str> for Change {
    fn from(value: &str) -> Self {
        Self::Set(value.to_owned())
    }
}

/// What an update came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Updated {
    /// What the key held before; `None` if it was not there.
    pub before: Option<Record>,
    /// The write; `None` if nothing was to be written.
    pub written: Option<Written>,
}

impl Client {
    /// Changes a key by what it holds, again until nobody else changed it in between. `change` gets the record, `None` if there is
    /// none, and gives the new value or a [`Change`]; it may be called several times, also with what turns out to be old.
    ///
    /// Exact: an attempt whose fate is unclear is sent again as the same one, and takes effect once. If that can't settle it, because
    /// somebody else has changed the key since, this fails and [says so](Error::may_have_taken_effect), and does not change it again.
    ///
    /// ```
    /// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bitacora_client::Error> {
    /// # let node = support::FakeNode::start().await.address();
    /// # let client = bitacora_client::Client::builder().nodes([node]).build().await?;
    /// for _ in 0..3 {
    ///     client
    ///         .update("visits", |old| {
    ///             let count: u64 = old.and_then(|record| record.value.parse().ok()).unwrap_or(0);
    ///             (count + 1).to_string()
    ///         })
    ///         .await?;
    /// }
    /// assert_eq!(client.read("visits").strong().await?.value, "3");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Client::write`]; [`Error::TimedOut`] if others were faster until the deadline was over.
    pub async fn update<C: Into<Change>>(
        &self,
        key: &str,
        change: impl FnMut(Option<&Record>) -> C,
    ) -> Result<Updated, Error> {
        run(self, key, change).await
    }
}

async fn run<C: Into<Change>>(
    client: &Client,
    key: &str,
    mut change: impl FnMut(Option<&Record>) -> C,
) -> Result<Updated, Error> {
    let call = client.call(true)?;
    // What one node holds is good enough to try with: a write that follows from something old is refused, and the refusal says what
    // is there.
    let mut before = look(&call, key, &ReadLevel::eventual()).await?;
    let mut known = false;
    let mut pauses = pauses(SHORTEST_PAUSE, LONGEST_PAUSE);
    loop {
        let (value, ttl) = match change(before.as_ref()).into() {
            Change::Set(value) => (Some(value), None),
            Change::SetWithTtl(value, ttl) => (Some(value), Some(ttl)),
            Change::Delete if before.is_some() => (None, None),
            Change::Keep | Change::Delete if known => return Ok(Updated { before, written: None }),
            Change::Keep | Change::Delete => {
                before = look(&call, key, &ReadLevel::strong()).await?;
                known = true;
                continue;
            }
        };
        let condition =
            before.as_ref().map_or(WriteCondition::Absent, |record| WriteCondition::Version(record.position));
        let mut write = Write::new(client, key, value.as_deref()).condition(condition);
        if let Some(ttl) = ttl {
            write = write.ttl(ttl);
        }
        match write.send_in(call.part()).await {
            Ok(written) => return Ok(Updated { before, written: Some(written) }),
            // Another one was faster, and this one has certainly done nothing.
            Err(Error::NotMet { current, may_have_taken_effect: false, .. }) => {
                before = current.map(|record| *record);
                known = true;
            }
            Err(error) => return Err(error),
        }
        let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
        if Instant::now() + pause >= call.ends() {
            let last = Some("others changed the key each time before this did".to_owned());
            return Err(Error::TimedOut { may_have_taken_effect: false, after: client.deadline, last });
        }
        sleep(pause).await;
    }
}

async fn look(call: &Call<'_>, key: &str, level: &ReadLevel) -> Result<Option<Record>, Error> {
    let mut call = call.part();
    call.is_write = false;
    let mut position = String::new();
    let request = match level.options(&mut position)? {
        None => Request::GetRecord { key },
        Some(read) => Request::ReadRecord { key, read },
    };
    let Reply::Read(found) = call.send(&request).await? else {
        unreachable!("an answer is decoded by its message")
    };
    match read(found, key) {
        Ok(record) => Ok(Some(record)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
