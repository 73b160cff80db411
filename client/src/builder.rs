//! The settings of a client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use bitacora_protocol::tls::ClientTls;
use bitacora_protocol::token::Token;
use bitacora_protocol::zookeeper::{ConnectString, host_port};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::balance::Pool;
use crate::client::{Client, Inner};
use crate::discovery::follow;
use crate::error::Error;

/// What a [`Client`] is made with. Made by [`Client::builder`].
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    nodes: Vec<String>,
    zookeeper: Option<ConnectString>,
    zookeeper_session_timeout: Duration,
    deadline: Duration,
    connect_timeout: Duration,
    connections_per_node: usize,
    max_request_bytes: usize,
    retry_ambiguous_writes: bool,
    token: Option<Token>,
    tls: Option<ClientTls>,
}

impl Default for ClientBuilder {
    /// No nodes yet, and the defaults that each setting tells of.
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            zookeeper: None,
            zookeeper_session_timeout: Duration::from_millis(2500),
            deadline: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(1),
            connections_per_node: 2,
            max_request_bytes: 4 << 20,
            retry_ambiguous_writes: false,
            token: None,
            tls: None,
        }
    }
}

impl ClientBuilder {
    /// A fixed list of nodes, each the `host:port` of its Avro RPC (`AVRO_PORT`). Excludes [`ClientBuilder::zookeeper`].
    #[must_use]
    pub fn nodes(mut self, nodes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.nodes = nodes.into_iter().map(Into::into).collect();
        self
    }

    /// Finds the nodes in ZooKeeper, below `/bitacora/sockets` in the chroot, and follows them as they come and go. Excludes
    /// [`ClientBuilder::nodes`].
    ///
    /// While ZooKeeper is away, or has no node at all, the nodes last known are used. The names of ZooKeeper's servers are
    /// resolved when the client first reaches one.
    #[must_use]
    pub fn zookeeper(mut self, connect: ConnectString) -> Self {
        self.zookeeper = Some(connect);
        self
    }

    /// The session timeout that ZooKeeper is asked for, which may raise it. 2.5 s by default.
    #[must_use]
    pub fn zookeeper_session_timeout(mut self, timeout: Duration) -> Self {
        self.zookeeper_session_timeout = timeout;
        self
    }

    /// How long a call may take, all its retries included. 5 s by default.
    ///
    /// Where there is more than one node, an attempt that may be repeated on another one is given up after a quarter of this,
    /// twice at most; so a node that hangs does not use up the deadline of a read.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long making a connection may take, handshake included. 1 s by default.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Connections to each node, at most; they are made when they are needed. 2 by default: each carries thousands of calls
    /// at the same time, so a few are enough to use several processors of a node.
    #[must_use]
    pub fn connections_per_node(mut self, connections: usize) -> Self {
        self.connections_per_node = connections;
        self
    }

    /// The nodes' limit on a request, in bytes. Larger calls are refused here, as a node would close the connection on them,
    /// to the cost of all other calls on it. 4 MiB by default, as with the nodes.
    #[must_use]
    pub fn max_request_bytes(mut self, bytes: usize) -> Self {
        self.max_request_bytes = bytes;
        self
    }

    /// Whether a write is sent again when nobody knows whether it took effect: its connection broke before the answer came,
    /// the log did not acknowledge it in time, or its node hangs. `false` by default: such a write fails, and its error says
    /// so ([`Error::may_have_taken_effect`]).
    ///
    /// Sending the same set or delete twice ends with the same value; but if somebody else wrote the key in between, the second
    /// one silently overwrites that. `true` is right where a key has a single writer, or where the last one to try may win.
    #[must_use]
    pub fn retry_ambiguous_writes(mut self, retry: bool) -> Self {
        self.retry_ambiguous_writes = retry;
        self
    }

    /// The token that every call shows, of nodes that have `TOKENS_FILE`. It goes to every node of the list, or that ZooKeeper
    /// names; without [`ClientBuilder::tls`] it is not encrypted on its way. None by default.
    #[must_use]
    pub fn token(mut self, token: Token) -> Self {
        self.token = Some(token);
        self
    }

    /// Speaks TLS with the nodes, as all or none of them do (`TLS_CERTIFICATE_FILE`). A node's certificate must name the host by which it
    /// is in the list, or by which ZooKeeper names it (`NODE_ADDRESS`). Not by default.
    ///
    /// ZooKeeper itself is not spoken to over TLS.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use bitacora_client::{Client, ClientTls};
    ///
    /// let tls = ClientTls::new(&std::fs::read("ca.pem")?)?;
    /// // Where nodes ask for a certificate (TLS_CLIENT_CERTIFICATES).
    /// let tls = tls.with_certificate(&std::fs::read("client.pem")?, &std::fs::read("client.key")?)?;
    /// let client = Client::builder().nodes(["node-1:8081"]).tls(tls).build().await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn tls(mut self, tls: ClientTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Makes the client. Must be called within a tokio runtime, whose timer and IO are enabled.
    ///
    /// With a fixed list it connects when the first call needs it. With ZooKeeper it waits until it knows a node.
    ///
    /// # Errors
    /// [`Error::Settings`] if the settings make no sense; [`Error::NoNode`] if ZooKeeper named no node before the deadline was
    /// over.
    pub async fn build(self) -> Result<Client, Error> {
        self.check().map_err(Error::Settings)?;
        let authorization = self.token.map(|token| token.authorization().into());
        let pool =
            Arc::new(Pool::new(self.connect_timeout, self.connections_per_node, authorization, self.tls));
        pool.set(self.nodes);
        let discovery = match self.zookeeper {
            None => None,
            Some(connect) => {
                let mut discovery = follow(connect, self.zookeeper_session_timeout, &pool);
                let known = timeout(self.deadline, discovery.looks.wait_for(Result::is_ok)).await.is_ok();
                if !known {
                    return Err(Error::NoNode { last: discovery.looks.borrow().clone().err() });
                }
                Some(discovery)
            }
        };
        let inner = Inner {
            pool,
            discovery: Mutex::new(discovery),
            retry_ambiguous_writes: self.retry_ambiguous_writes,
            max_request_bytes: self.max_request_bytes,
            calls: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            closing: Notify::new(),
            idle: Notify::new(),
        };
        Ok(Client { inner: Arc::new(inner), deadline: self.deadline })
    }

    fn check(&self) -> Result<(), String> {
        match (&self.zookeeper, self.nodes.as_slice()) {
            (None, []) => return Err("a client needs nodes or ZooKeeper".to_owned()),
            (Some(_), [_, ..]) => return Err("a client has nodes or ZooKeeper, not both".to_owned()),
            _ => self.nodes.iter().try_for_each(|node| host_port(node))?,
        }
        for (name, timeout) in [
            ("deadline", self.deadline),
            ("connect_timeout", self.connect_timeout),
            ("zookeeper_session_timeout", self.zookeeper_session_timeout),
        ] {
            if timeout.is_zero() {
                return Err(format!("{name} is 0"));
            }
        }
        if self.connections_per_node == 0 {
            return Err("connections_per_node is 0".to_owned());
        }
        Ok(())
    }
}
