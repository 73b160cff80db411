//! What a session has written and read, wherever that was.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bitacora_protocol::{Position, SessionPosition};
use parking_lot::Mutex;

/// Reads of a session see its own writes, and never anything older than what it has read, whichever nodes are asked.
///
/// It carries the positions by itself, from every read, miss, write and page that was given it. Clones share them. As text, which its
/// [`Display`](fmt::Display) writes and its [`FromStr`] reads, it can be handed on to another process: whoever goes on from it sees what
/// was seen here. It belongs to one log; a session of a topic that was replaced may wait in vain.
///
/// ```
/// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs")); }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let node = support::FakeNode::start().await.address();
/// # let client = bitacora_client::Client::builder().nodes([node]).build().await?;
/// use bitacora_client::Session;
///
/// let session = Session::new();
/// client.write("cart:7", "a book").session(&session).await?;
/// let handed_on = session.to_string();
///
/// // In another process, which may ask another node.
/// let session: Session = handed_on.parse()?;
/// assert_eq!(client.read("cart:7").session(&session).await?.value, "a book");
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct Session(Arc<Mutex<SessionPosition>>);

impl Session {
    /// One that has seen nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on nothing older than this will do. Calls that are given the session do it themselves.
    pub fn saw(&self, position: Position) {
        self.0.lock().add(position);
    }

    /// Whether it has seen nothing yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

impl fmt::Display for Session {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.lock().fmt(out)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Session({self})")
    }
}

impl FromStr for Session {
    type Err = bitacora_protocol::SessionPositionError;

    /// An empty text is a session that has seen nothing.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let position = if text.is_empty() { SessionPosition::default() } else { text.parse()? };
        Ok(Self(Arc::new(Mutex::new(position))))
    }
}

impl PartialEq for Session {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || *self.0.lock() == other.0.lock().clone()
    }
}

impl Eq for Session {}
