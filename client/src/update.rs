//! Changing a key by what it holds, again and again until nobody else came in between.

use std::time::Duration;

use bitacora_protocol::WriteCondition;
use bitacora_protocol::rpc::Request;
use tokio::time::{Instant, sleep};

use crate::call::{Call, read};
use crate::client::Client;
use crate::connection::Reply;
use crate::error::Error;
use crate::read::ReadLevel;
use crate::types::{Record, Written};
use crate::write::Write;

/// The longest pause after another one was faster for the first time; each further time it is twice as long, up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(4);
const LAST_PAUSE: Duration = Duration::from_millis(64);

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
    /// Fair, as far as chance is: of those who want to change a key at the same time one wins each round. Who has lost waits for some time below
    /// 64 ms, however often, and tries with what is there then. There is no queue, so no number of rounds is certain; with `n` callers it takes
    /// about `n` rounds, each as long as the log takes to acknowledge a write and a node to apply it. So the deadline should be many times `n`
    /// rounds, or the key be split into several.
    ///
    /// Exact while nobody deletes the key: an attempt whose fate is unclear is sent again as the same one, and takes effect once. If that can't settle it, because
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
    let mut losses = 0;
    let mut paused = false;
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
        // What was known before a pause is mostly old by now. To be told so cost the log nothing.
        let pause = if paused { Duration::ZERO } else { longest_pause(losses).mul_f64(fastrand::f64()) };
        losses += u32::from(!paused);
        paused = !paused;
        if Instant::now() + pause >= call.ends() {
            let last = Some("others changed the key each time before this did".to_owned());
            return Err(Error::TimedOut { may_have_taken_effect: false, after: client.deadline, last });
        }
        sleep(pause).await;
    }
}

/// Long enough that attempts on several nodes seldom meet, each of which costs the log a record and its repair; and bounded, so that
/// nobody starves: the one who has just won knows the newest version first, and would win again and again if the others kept away for
/// longer each time.
fn longest_pause(losses: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1_u32.checked_shl(losses).unwrap_or(u32::MAX)).min(LAST_PAUSE)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        let pauses: Vec<_> = (0..100).map(longest_pause).collect();
        assert!(pauses.is_sorted(), "{pauses:?}");
        assert_eq!((pauses[0], pauses[99]), (FIRST_PAUSE, LAST_PAUSE));
    }
}
