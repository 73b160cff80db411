//! How consistent a read is, and the read of a key.

use std::future::IntoFuture;
use std::time::Duration;

use bitacora_protocol::rpc::Request;
use bitacora_protocol::{Consistency, Position, ReadOptions};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::call::read;
use crate::client::Client;
use crate::connection::Reply;
use crate::error::{Error, Refusal};
use crate::session::Session;
use crate::types::Record;

/// How consistent a read is: *eventual* by default, which is what the node that is asked holds.
///
/// ```
/// use bitacora_client::ReadLevel;
/// use std::time::Duration;
///
/// let level = ReadLevel::eventual().max_staleness(Duration::from_secs(2));
/// assert_ne!(level, ReadLevel::strong());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadLevel {
    /// The level; with a session, *eventual* stands for what the session must see.
    pub consistency: Consistency,
    /// What must be seen as well; it is moved on by the read.
    pub session: Option<Session>,
    /// How old the data may be.
    pub max_staleness: Option<Duration>,
    /// The deadline of the read, in the place of the client's.
    pub timeout: Option<Duration>,
}

impl ReadLevel {
    /// What the node that is asked holds, at once.
    #[must_use]
    pub fn eventual() -> Self {
        Self::default()
    }

    /// What the session has written, and nothing older than what it has read. Moves the session on.
    #[must_use]
    pub fn session(session: &Session) -> Self {
        Self::default().within(session)
    }

    /// Everything below the log's end, as the leader of the partition tells it. Cheaper than [`ReadLevel::strong`]; misses what was
    /// acknowledged while a leader that was deposed, and has not noticed, answers.
    #[must_use]
    pub fn latest() -> Self {
        Self { consistency: Consistency::Latest, ..Self::default() }
    }

    /// Linearizable together with every acknowledged write, whoever made it. Fails while the nodes have no brokers.
    #[must_use]
    pub fn strong() -> Self {
        Self { consistency: Consistency::Strong, ..Self::default() }
    }

    /// As well, what the session has written and read; and moves it on.
    #[must_use]
    pub fn within(mut self, session: &Session) -> Self {
        self.session = Some(session.clone());
        self
    }

    /// Fails unless the node knows that it has everything that was appended until so long ago; another one is asked then.
    #[must_use]
    pub fn max_staleness(mut self, age: Duration) -> Self {
        self.max_staleness = Some(age);
        self
    }

    /// The deadline of the read, in the place of the client's.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    pub(crate) fn has_session(&self) -> bool {
        self.session.is_some()
    }

    /// Bytes that the session's text has in a request.
    pub(crate) fn position_bytes(&self) -> usize {
        self.session.as_ref().map_or(0, |session| session.to_string().len())
    }

    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.timeout
    }

    /// `position` is where the session's text is put. `None`: nothing is asked but an eventual read.
    pub(crate) fn options<'a>(&self, position: &'a mut String) -> Result<Option<ReadOptions<'a>>, Error> {
        let mut consistency = self.consistency;
        if let Some(session) = &self.session {
            if consistency == Consistency::Latest {
                let reason =
                    "latest may miss what the session has seen; ask for strong, or for the session alone"
                        .to_owned();
                return Err(Error::Refused { refusal: Refusal::BadRequest, reason });
            }
            if consistency == Consistency::Eventual && !session.is_empty() {
                consistency = Consistency::Session;
                *position = session.to_string();
            }
        }
        let options = ReadOptions { consistency, position, timeout: None, max_staleness: self.max_staleness };
        Ok((!options.is_eventual()).then_some(options))
    }

    /// Tells the session, if there is one, what was read.
    pub(crate) fn saw(&self, positions: impl IntoIterator<Item = Position>) {
        if let Some(session) = &self.session {
            positions.into_iter().for_each(|position| session.saw(position));
        }
    }
}

impl Client {
    /// A read of a key that says how consistent it is; *eventual*, as [`Client::get`], if it does not.
    ///
    /// ```
    /// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bitacora_client::Error> {
    /// # let node = support::FakeNode::start().await.address();
    /// # let client = bitacora_client::Client::builder().nodes([node]).build().await?;
    /// use std::time::Duration;
    ///
    /// client.set("greeting", "hello").await?;
    /// // Linearizable: sees every write that was acknowledged before, whoever made it.
    /// assert_eq!(client.read("greeting").strong().await?.value, "hello");
    /// client.read("greeting").max_staleness(Duration::from_secs(2)).timeout(Duration::from_secs(1)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Client::get`]; [`Error::NotReady`] if no node could be as consistent in time, and never an older record.
    pub fn read<'a>(&'a self, key: &'a str) -> Read<'a> {
        Read::new(self, key)
    }
}

/// A read of a key, made by [`Client::read`]; `.await` it.
#[must_use = "a read happens when it is awaited"]
#[derive(Clone, Debug)]
pub struct Read<'a> {
    client: &'a Client,
    key: &'a str,
    level: ReadLevel,
}

impl<'a> Read<'a> {
    pub(crate) fn new(client: &'a Client, key: &'a str) -> Self {
        Self { client, key, level: ReadLevel::default() }
    }

    /// As [`ReadLevel`] says; takes the place of what was asked before.
    pub fn level(mut self, level: &ReadLevel) -> Self {
        self.level = level.clone();
        self
    }

    /// As [`ReadLevel::latest`].
    pub fn latest(mut self) -> Self {
        self.level.consistency = Consistency::Latest;
        self
    }

    /// As [`ReadLevel::strong`].
    pub fn strong(mut self) -> Self {
        self.level.consistency = Consistency::Strong;
        self
    }

    /// As [`ReadLevel::within`].
    pub fn session(mut self, session: &Session) -> Self {
        self.level = self.level.within(session);
        self
    }

    /// As [`ReadLevel::max_staleness`].
    pub fn max_staleness(mut self, age: Duration) -> Self {
        self.level = self.level.max_staleness(age);
        self
    }

    /// As [`ReadLevel::timeout`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.level = self.level.timeout(timeout);
        self
    }

    async fn send(self) -> Result<Record, Error> {
        let Self { client, key, level } = self;
        let mut call = client.call_within(level.timeout, false)?;
        let mut position = String::new();
        let request = match level.options(&mut position)? {
            None => Request::GetRecord { key },
            Some(read) => Request::ReadRecord { key, read },
        };
        let Reply::Read(found) = call.send(&request).await? else {
            unreachable!("an answer is decoded by its message")
        };
        level.saw([match &found {
            Ok(record) => record.position,
            Err(missing) => missing.position,
        }]);
        read(found, key)
    }
}

impl<'a> IntoFuture for Read<'a> {
    type Output = Result<Record, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.send().boxed()
    }
}
