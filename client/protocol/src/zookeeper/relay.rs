//! What stands between ZooKeeper's client and its servers: a port on the loopback interface.
//!
//! The client (the crate `zookeeper-async`) resolves names once, uses the first address of each, and connects again without
//! any pause after a server closed a connection, as servers without a quorum do. So it gets one address that never changes,
//! this relay's, and the relay chooses the server: it resolves, tries all addresses, and pauses. Bytes pass unchanged, so
//! sessions, watches and their order are the client's and the server's own.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::servers::{Outcome, Server, Servers};

/// How long an address may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long bytes may take to be handed to a socket. There are few: who does not take them is not there any more.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one side may take to close its half after the other.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the client may take to connect again. It pauses for less, if at all.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after no connection could be accepted, for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A server's first answer begins with its length, the protocol's version and the session's timeout in ms (0: expired).
const GREETING_BYTES: usize = 12;
/// It has 37 bytes behind the length; later versions may add a few.
const GREETING_LENGTHS: std::ops::RangeInclusive<i32> = 16..=1024;

/// Whether there is a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// No address has been tried yet.
    Opening,
    Open,
    /// Why not.
    Down(String),
}

/// Ends when it is told to, or dropped; the client must be closed before.
pub(super) struct Relay {
    pub address: SocketAddr,
    link: watch::Receiver<Link>,
    closing: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Relay {
    pub async fn start(servers: Servers) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (link, seen) = watch::channel(Link::Opening);
        let (closing, closed) = watch::channel(false);
        let task = tokio::spawn(run(listener, servers, link, closed));
        Ok(Self { address, link: seen, closing, task })
    }

    pub fn link(&self) -> Link {
        self.link.borrow().clone()
    }

    /// Waits for a session.
    pub async fn opened(&mut self) {
        if self.link.wait_for(|link| *link == Link::Open).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits for a session, or for the end of the first round of tries.
    pub async fn tried(&mut self) {
        if self.link.wait_for(|link| *link != Link::Opening).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits for the next change of [`Relay::link`], or its end.
    pub async fn changed(&mut self) {
        let _ = self.link.changed().await;
    }

    /// Whether it works no more, since the client does not connect to it any more.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits until what the client has sent has reached the server, and the server has closed the connection.
    pub async fn close(mut self) {
        self.closing.send_replace(true);
        let _ = timeout(2 * CLOSE_TIMEOUT, &mut self.task).await;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    listener: TcpListener,
    mut servers: Servers,
    link: watch::Sender<Link>,
    mut closing: watch::Receiver<bool>,
) {
    loop {
        let mut held = None;
        let (server, socket) = tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => return,
            connected = connect(&mut servers, &link) => connected,
            never = hold(&listener, &mut held) => match never {},
        };
        // The client then connects again, and waits its full time for this server's answer.
        if let Some(held) = held {
            tokio::spawn(close(held));
        }
        let client = tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => return,
            client = timeout(CLIENT_TIMEOUT, accept(&listener)) => client,
        };
        let Ok(client) = client else {
            tracing::warn!("ZooKeeper's client has failed; it is made anew");
            return;
        };
        let outcome = forward(client, socket, || drop(link.send_replace(Link::Open))).await;
        let had_session = matches!(outcome, Outcome::Session(_));
        servers.ended(&server, outcome);
        if had_session {
            link.send_replace(Link::Down(format!("the connection to {server} was lost")));
        } else {
            tell_problems(&servers, &link);
        }
    }
}

/// Tries addresses until one accepts a connection.
async fn connect(servers: &mut Servers, link: &watch::Sender<Link>) -> (Server, TcpStream) {
    loop {
        if let Some(server) = servers.next().await {
            let problem = match timeout(CONNECT_TIMEOUT, TcpStream::connect(server.address)).await {
                Ok(Ok(socket)) => return (server, socket),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no connection within {CONNECT_TIMEOUT:?}"),
            };
            servers.ended(&server, Outcome::NoSession(problem));
        }
        tell_problems(servers, link);
    }
}

fn tell_problems(servers: &Servers, link: &watch::Sender<Link>) {
    if let Some(problems) = servers.problems() {
        link.send_if_modified(|link| {
            let now = Link::Down(problems);
            let is_new = *link != now;
            *link = now;
            is_new
        });
    }
}

/// Keeps the client's connection open while there is no server to connect it to: where that is refused or closed, the client
/// tries again at once or sends nothing any more, not even that it closes the session.
async fn hold(listener: &TcpListener, held: &mut Option<TcpStream>) -> Infallible {
    loop {
        let newest = match held {
            None => accept(listener).await,
            Some(client) => tokio::select! {
                newest = accept(listener) => newest,
                () = discard(client) => {
                    *held = None;
                    continue;
                }
            },
        };
        if let Some(older) = held.replace(newest) {
            tokio::spawn(close(older));
        }
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((client, _)) => return client,
            Err(error) => tracing::debug!(%error, "no connection of ZooKeeper's client was accepted"),
        }
        sleep(ACCEPT_PAUSE).await;
    }
}

/// Lets a client and a server speak until one of them ends the connection.
async fn forward(mut client: TcpStream, mut server: TcpStream, opened: impl FnOnce()) -> Outcome {
    // Nothing is gained by gathering, and without this only slower.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let outcome = pass(&mut client, &mut server, opened).await;
    tokio::spawn(close(client));
    outcome
}

async fn pass(client: &mut TcpStream, server: &mut TcpStream, opened: impl FnOnce()) -> Outcome {
    let (from_client, mut to_client) = client.split();
    let (mut from_server, to_server) = server.split();
    let mut requests = std::pin::pin!(pump(from_client, to_server));
    let mut greeting = [0; GREETING_BYTES];
    let greeted = tokio::select! {
        greeted = from_server.read_exact(&mut greeting) => greeted,
        () = &mut requests => return Outcome::NoSession("it did not answer in time".to_owned()),
    };
    if greeted.is_err() {
        return Outcome::NoSession(
            "it closed the connection without a session, as a server without a quorum does".to_owned(),
        );
    }
    let [length, _, session_timeout] =
        [0, 4, 8].map(|at| i32::from_be_bytes(std::array::from_fn(|byte| greeting[at + byte])));
    if !GREETING_LENGTHS.contains(&length) {
        return Outcome::NoSession("what answers there is not ZooKeeper".to_owned());
    }
    if to_client.write_all(&greeting).await.is_err() {
        return Outcome::NoSession("it did not answer in time".to_owned());
    }
    let mut answers = std::pin::pin!(pump(from_server, to_client));
    if session_timeout <= 0 {
        // The server closes the connection; the client would wait for that.
        let _ = timeout(CLOSE_TIMEOUT, answers).await;
        return Outcome::Expired;
    }
    let began = Instant::now();
    opened();
    tokio::select! {
        () = &mut answers => {}
        // The server closes its side when it has done what was sent last, the session's end perhaps.
        () = &mut requests => drop(timeout(CLOSE_TIMEOUT, &mut answers).await),
    }
    Outcome::Session(began.elapsed())
}

/// Hands on all bytes until their end, and then the end.
async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut buffer = vec![0; 8 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if !matches!(timeout(WRITE_TIMEOUT, to.write_all(&buffer[..count])).await, Ok(Ok(()))) {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// Ends a connection of the client so that it sees an end. (If bytes were unread, it would be a reset, which the client takes no
/// notice of for seconds.)
async fn close(mut client: TcpStream) {
    let _ = client.shutdown().await;
    let _ = timeout(CLOSE_TIMEOUT, discard(&mut client)).await;
}

/// Reads until the end.
async fn discard(client: &mut TcpStream) {
    let mut buffer = [0; 1024];
    while let Ok(1..) = client.read(&mut buffer).await {}
}
