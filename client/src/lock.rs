//! A lock that one holder has at a time: a key with a time to live that its holder renews.

use std::sync::Arc;
use std::time::Duration;

use bitacora_protocol::Position;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use uuid::Uuid;

use crate::balance::pauses;
use crate::client::Client;
use crate::error::{Error, Refusal};
use crate::types::Written;

/// The pause before the next try to take a lock that another one holds, and the longest one; chance makes each up to twice as long.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// A lock is renewed when one part in so many of its time to live is over.
const RENEWALS_IN_TTL: u32 = 3;
/// A shorter time to live leaves no time for renewals.
const SHORTEST_TTL: Duration = Duration::from_millis(300);

/// A lock that is held, made by [`Client::lock`] and [`Client::try_lock`]; dropping it gives it back, in the background.
///
/// It is a key whose value names the holder. The holder renews it in the background, by [`Client::compare_and_set`] at a third of its
/// time to live, until the lock is released or [lost](Lock::lost).
///
/// # What it does not promise
///
/// That two never *believe* to hold it. A holder whose process is paused, or that no node reaches, for longer than the time to live
/// learns of its loss when it runs again, and another one has the lock by then. The log's time decides when the key expires: the
/// accepting node's clock says until when the key lives, and the timestamps of the brokers when that is over; a difference between
/// these clocks shortens or lengthens the time. So work that must not be done by two has to be guarded where it takes effect, with
/// the [token](Lock::token): whoever does it hands the token along, and what has seen a greater one refuses it.
///
/// ```
/// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), bitacora_client::Error> {
/// # let node = support::FakeNode::start().await.address();
/// # let client = bitacora_client::Client::builder().nodes([node]).build().await?;
/// # async fn work(_token: bitacora_client::Position) {}
/// use std::time::Duration;
///
/// let lock = client.lock("locks/report", Duration::from_secs(10)).await?;
/// tokio::select! {
///     () = work(lock.token()) => {}
///     () = lock.lost() => println!("another one may have it by now"),
/// }
/// lock.release().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Lock {
    held: Arc<Held>,
    token: Position,
    lost: watch::Receiver<bool>,
    renewal: AbortHandle,
    released: bool,
}

#[derive(Debug)]
struct Held {
    client: Client,
    key: String,
    /// The value of the key: nobody else's.
    holder: String,
    ttl: Duration,
    version: Mutex<Position>,
}

impl Client {
    /// Takes a lock, as soon as nobody else has it. See [`Lock`] for what it promises.
    ///
    /// # Errors
    /// As [`Client::create`]; [`Error::NotMet`] with who holds it, if somebody else did until the deadline was over;
    /// [`Error::Refused`] if `ttl` is below 300 ms.
    pub async fn lock(&self, key: &str, ttl: Duration) -> Result<Lock, Error> {
        let ends = Instant::now().checked_add(self.deadline);
        let mut pauses = pauses(SHORTEST_PAUSE, LONGEST_PAUSE);
        loop {
            let error = match self.try_lock(key, ttl).await {
                Err(error) if error.is_not_met() => error,
                settled => return settled,
            };
            let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
            if ends.is_some_and(|ends| Instant::now() + pause >= ends) {
                return Err(error);
            }
            sleep(pause).await;
        }
    }

    /// Takes a lock if nobody has it.
    ///
    /// # Errors
    /// As [`Client::lock`], at once if somebody else has it.
    pub async fn try_lock(&self, key: &str, ttl: Duration) -> Result<Lock, Error> {
        if ttl < SHORTEST_TTL {
            let reason = format!("a lock's time to live is {SHORTEST_TTL:?} at least, and this is {ttl:?}");
            return Err(Error::Refused { refusal: Refusal::BadRequest, reason });
        }
        let holder = Uuid::new_v4().to_string();
        let sent = Instant::now();
        let written = match self.create(key, &holder).ttl(ttl).await {
            Ok(written) => written,
            Err(error) => {
                // It may be held although nobody was told; then it is given back, or expires.
                return match found(&error, &holder) {
                    Some(written) => Ok(Lock::of(self, key, holder, ttl, &written, sent)),
                    None => Err(error),
                };
            }
        };
        Ok(Lock::of(self, key, holder, ttl, &written, sent))
    }
}

/// The record of this holder, in the place of which the condition was refused: the answer to an earlier attempt was lost.
fn found(error: &Error, holder: &str) -> Option<Written> {
    let Error::NotMet { current: Some(current), .. } = error else { return None };
    (current.value == holder).then(|| Written {
        position: current.position,
        timestamp: current.timestamp,
        ttl: current.ttl,
        uuid: current.uuid.clone(),
        not_visible: Vec::new(),
    })
}

impl Lock {
    fn of(
        client: &Client,
        key: &str,
        holder: String,
        ttl: Duration,
        written: &Written,
        sent: Instant,
    ) -> Self {
        let (key, version) = (key.to_owned(), Mutex::new(written.position));
        let held = Arc::new(Held { client: client.clone(), key, holder, ttl, version });
        let (lose, lost) = watch::channel(false);
        let renewal = tokio::spawn(renew(Arc::clone(&held), sent, lose)).abort_handle();
        Self { held, token: written.position, lost, renewal, released: false }
    }

    /// The *fencing token*: the position at which the lock was taken, which no renewal changes. Whoever takes the lock later has a
    /// greater one: its record comes later in the log, in the same partition, as long as the topic is not given more of them.
    #[must_use]
    pub fn token(&self) -> Position {
        self.token
    }

    /// Waits until the lock is lost: it could not be renewed in time, or the key was changed by somebody else.
    pub async fn lost(&self) {
        // Closed: its task ended, and nobody renews it.
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
    }

    /// Whether it is lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        *self.lost.borrow() || self.lost.has_changed().is_err()
    }

    /// Gives it back, so that another one can take it at once.
    ///
    /// # Errors
    /// [`Error::NotMet`] if it was lost before; else as [`Client::delete_if`]: it expires by itself then.
    pub async fn release(mut self) -> Result<(), Error> {
        self.renewal.abort();
        self.released = true;
        give_back(&self.held).await
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.renewal.abort();
        if let (false, Ok(runtime)) = (self.released, tokio::runtime::Handle::try_current()) {
            let held = Arc::clone(&self.held);
            runtime.spawn(async move {
                if let Err(error) = give_back(&held).await {
                    tracing::debug!(key = held.key, %error, "a lock was not given back; it expires");
                }
            });
        }
    }
}

/// Deletes the key while it is this holder's.
async fn give_back(held: &Held) -> Result<(), Error> {
    loop {
        let version = *held.version.lock();
        match held.client.delete_if(&held.key, version).await {
            Ok(_) => return Ok(()),
            // A renewal that was under way had taken effect; or else it is another's.
            Err(error) => match found(&error, &held.holder) {
                Some(renewed) if renewed.position != version => *held.version.lock() = renewed.position,
                _ => return Err(error),
            },
        }
    }
}

/// Renews the lock until it is lost. `sent`: when the write was begun that it has its time from.
async fn renew(held: Arc<Held>, mut sent: Instant, lose: watch::Sender<bool>) {
    loop {
        sleep_until(sent + held.ttl / RENEWALS_IN_TTL).await;
        // By this clock; a little early, since the clocks that decide run at their own speed.
        let ends = sent + held.ttl - held.ttl / 20;
        let left = ends.saturating_duration_since(Instant::now());
        let now = Instant::now();
        match timeout(left, renew_once(&held, left)).await {
            Ok(Ok(())) => sent = now,
            Ok(Err(error)) if error.is_not_met() => break,
            Ok(Err(error)) => {
                tracing::debug!(key = held.key, %error, "a lock was not renewed yet");
                let pause = held.ttl / (10 * RENEWALS_IN_TTL);
                if Instant::now() + pause >= ends {
                    sleep_until(ends).await;
                    break;
                }
                sleep(pause).await;
            }
            Err(_) => break,
        }
    }
    tracing::warn!(key = held.key, "a lock is lost");
    let _ = lose.send(true);
}

async fn renew_once(held: &Held, left: Duration) -> Result<(), Error> {
    let version = *held.version.lock();
    let written = held.client.compare_and_set(&held.key, version, &held.holder).ttl(held.ttl).timeout(left);
    let renewed = match written.await {
        Ok(written) => written,
        // The answer to an earlier renewal was lost.
        Err(error) => found(&error, &held.holder).ok_or(error)?,
    };
    *held.version.lock() = renewed.position;
    Ok(())
}
