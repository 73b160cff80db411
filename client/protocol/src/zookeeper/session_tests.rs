//! Sessions with servers that are not as they should be: false ones, and names that mean what a test says.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use zookeeper_async::{ZkResult, ZooKeeper};

use super::servers::{Outcome, Resolver, Servers};
use super::session::follow_resolved_by;
use super::{ConnectString, Follower};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const SESSION_TIMEOUT: Duration = Duration::from_millis(2500);

/// Tells of each look that a server answered, and of each reason why none did.
struct Teller(mpsc::UnboundedSender<Result<(), String>>);

impl Follower for Teller {
    async fn look(&mut self, zookeeper: &ZooKeeper) -> ZkResult<()> {
        zookeeper.get_children("/", false).await?;
        let _ = self.0.send(Ok(()));
        Ok(())
    }

    fn disconnected(&mut self, reason: String) {
        let _ = self.0.send(Err(reason));
    }
}

/// Who follows what `hosts` hold; ends when dropped, or when it is told to stop.
struct Following {
    looks: mpsc::UnboundedReceiver<Result<(), String>>,
    stop: Arc<Notify>,
    task: JoinSet<()>,
}

impl Following {
    fn start(hosts: &str, resolver: Resolver) -> Self {
        let connect: ConnectString = hosts.parse().expect("it is a connect string");
        let (looks, stop) = (mpsc::unbounded_channel(), Arc::new(Notify::new()));
        let (mut teller, stopped) = (Teller(looks.0), Arc::clone(&stop));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let stopped = stopped.notified();
            follow_resolved_by(resolver, &connect, SESSION_TIMEOUT, Arc::default(), stopped, &mut teller)
                .await;
        });
        Self { looks: looks.1, stop, task }
    }

    /// Waits for a look that was answered.
    async fn answered(&mut self) {
        let answered = timeout(PATIENCE, async { while self.looks.recv().await != Some(Ok(())) {} });
        answered.await.expect("a server is reached");
    }

    /// Waits until it is told why nobody answers, in such words.
    async fn told(&mut self, words: &[&str]) {
        let told = timeout(PATIENCE, async {
            loop {
                if let Some(Err(reason)) = self.looks.recv().await
                    && words.iter().all(|word| reason.contains(word))
                {
                    return;
                }
            }
        });
        assert!(told.await.is_ok(), "it is never told of {words:?}");
    }

    async fn stop(mut self) {
        self.stop.notify_one();
        timeout(PATIENCE, self.task.join_next()).await.expect("it stops");
    }
}

/// A server that does one thing with every connection, and tells of each.
struct Server {
    address: SocketAddr,
    /// The time of each connection.
    accepted: mpsc::UnboundedReceiver<Instant>,
    /// The session that each connection asked for, 0 for a new one, and its last request's kind.
    sessions: mpsc::UnboundedReceiver<(i64, i32)>,
    _task: JoinSet<()>,
}

#[derive(Clone, Copy, PartialEq)]
enum Does {
    /// Closes a connection as soon as it was asked for a session.
    Close,
    /// Gives a session and answers that the root has no children.
    Answer,
    /// Gives sessions, and closes the connection at the first request.
    CloseAfterSession,
    /// Says that the session has expired, whichever it is.
    Expire,
    /// Gives a session, and sends events that ZooKeeper's client fails on.
    Break,
}

impl Server {
    async fn start(does: Does) -> Self {
        Self::at("127.0.0.1:0".parse().expect("an address"), does).await
    }

    async fn at(address: SocketAddr, does: Does) -> Self {
        let listener = TcpListener::bind(address).await.expect("the port is free");
        let address = listener.local_addr().expect("it is bound");
        let (tell, accepted) = mpsc::unbounded_channel();
        let (tell_session, sessions) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let _ = tell.send(Instant::now());
                let tell_session = tell_session.clone();
                connections.spawn(async move {
                    let mut seen = (0, 0);
                    let _ = serve(socket, does, &mut seen).await;
                    let _ = tell_session.send(seen);
                });
            }
        });
        Self { address, accepted, sessions, _task: task }
    }

    async fn connection(&mut self) -> Instant {
        timeout(PATIENCE, self.accepted.recv()).await.expect("a connection comes").expect("it listens")
    }

    /// What the next connection that ends had asked for.
    async fn ended(&mut self) -> (i64, i32) {
        timeout(PATIENCE, self.sessions.recv()).await.expect("a connection ends").expect("it listens")
    }
}

async fn frame(socket: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = socket.read_i32().await?;
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    socket.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn send(socket: &mut TcpStream, content: &[u8]) -> io::Result<()> {
    let length = i32::try_from(content.len()).map_err(io::Error::other)?;
    socket.write_all(&[&length.to_be_bytes()[..], content].concat()).await
}

fn number(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(std::array::from_fn(|byte| bytes[at + byte]))
}

async fn serve(mut socket: TcpStream, does: Does, seen: &mut (i64, i32)) -> io::Result<()> {
    let asked = frame(&mut socket).await?;
    // Version, last transaction, session timeout, session, password.
    seen.0 = i64::from_be_bytes(std::array::from_fn(|byte| asked[16 + byte]));
    let session_timeout = match does {
        Does::Close => return Ok(()),
        Does::Expire => 0,
        Does::Answer | Does::CloseAfterSession | Does::Break => 2500i32,
    };
    let session = [&0i32.to_be_bytes()[..], &session_timeout.to_be_bytes(), &7i64.to_be_bytes()].concat();
    send(&mut socket, &[session, 16i32.to_be_bytes().to_vec(), vec![0; 17]].concat()).await?;
    if does == Does::Expire {
        return Ok(());
    }
    if does == Does::Break {
        // NodeChildrenChanged, SyncConnected, and a path that is no text.
        let event = [-1i32, -1, -1, 0, 4, 3, 1].map(i32::to_be_bytes).concat();
        for _ in 0..100 {
            send(&mut socket, &[&event[..], b"\xff"].concat()).await?;
            tokio::task::yield_now().await;
        }
    }
    if does == Does::CloseAfterSession {
        return frame(&mut socket).await.map(drop);
    }
    loop {
        let request = frame(&mut socket).await?;
        seen.1 = number(&request, 4);
        if seen.1 == CLOSE_SESSION {
            return Ok(());
        }
        let reply = [&request[..4], &1i64.to_be_bytes(), &0i32.to_be_bytes(), &0i32.to_be_bytes()].concat();
        send(&mut socket, &reply).await?;
    }
}

const CLOSE_SESSION: i32 = -11;

/// Names that a test gives other addresses at any time.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<HashMap<String, Vec<SocketAddr>>>>);

impl Names {
    fn set(&self, host: &str, addresses: &[SocketAddr]) {
        self.0.lock().expect("no panic").insert(host.to_owned(), addresses.to_vec());
    }

    fn resolver(&self) -> Resolver {
        let names = self.clone();
        Arc::new(move |host| {
            let found = names.0.lock().expect("no panic").get(host).cloned();
            Box::pin(async move { found.ok_or_else(|| io::Error::other("there is no such name")) })
        })
    }
}

/// An address at which nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.and_then(|listener| listener.local_addr()).expect("a port")
}

mod pauses {
    use super::*;

    /// The time that so many connections of one follower take.
    async fn time_of_connections(server: &mut Server, connections: usize) -> Duration {
        let names = Names::default();
        names.set("zk:2181", &[server.address]);
        let _following = Following::start("zk:2181", names.resolver());
        let first = server.connection().await;
        let mut last = first;
        for _ in 1..connections {
            last = server.connection().await;
        }
        last - first
    }

    /// 150, 300, 600, 1200 and 2000 ms at least.
    const FIVE_PAUSES: Duration = Duration::from_millis(4250);

    #[tokio::test]
    async fn grow_where_connections_are_accepted_and_closed() {
        let mut server = Server::start(Does::Close).await;
        let took = time_of_connections(&mut server, 6).await;
        assert!(took >= FIVE_PAUSES, "6 connections in {took:?}");
    }

    #[tokio::test]
    async fn grow_where_sessions_are_given_and_broken() {
        let mut server = Server::start(Does::CloseAfterSession).await;
        let took = time_of_connections(&mut server, 6).await;
        assert!(took >= FIVE_PAUSES, "6 connections in {took:?}");
    }

    #[tokio::test]
    async fn grow_where_every_session_has_expired() {
        let mut server = Server::start(Does::Expire).await;
        // The first one that expired is followed by a short pause.
        let took = time_of_connections(&mut server, 7).await;
        assert!(took >= FIVE_PAUSES, "7 connections in {took:?}");
    }

    #[tokio::test]
    async fn the_reason_names_host_and_address() {
        let server = Server::start(Does::Close).await;
        let names = Names::default();
        names.set("zk:2181", &[server.address]);
        let mut following = Following::start("zk:2181,gone:2181", names.resolver());
        following
            .told(&["zk:2181", &server.address.to_string(), "quorum", "gone:2181: there is no such name"])
            .await;
        following.stop().await;
    }
}

mod addresses {
    use super::*;

    #[tokio::test]
    async fn a_name_that_moves_is_resolved_again() {
        let (old, new) = (Server::start(Does::Answer).await, Server::start(Does::Answer).await);
        let names = Names::default();
        names.set("zk:2181", &[old.address]);
        let mut following = Following::start("zk:2181", names.resolver());
        following.answered().await;
        names.set("zk:2181", &[new.address]);
        drop(old);
        following.told(&["zk:2181"]).await;
        following.answered().await;
        following.stop().await;
    }

    #[tokio::test]
    async fn a_name_that_is_not_known_yet_is_resolved_again() {
        let server = Server::start(Does::Answer).await;
        let names = Names::default();
        let mut following = Following::start("zk:2181", names.resolver());
        following.told(&["zk:2181", "no such name"]).await;
        names.set("zk:2181", &[server.address]);
        following.answered().await;
        following.stop().await;
    }

    #[tokio::test]
    async fn all_of_a_name_are_tried() {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (closing, good) = (Server::start(Does::Close).await, Server::start(Does::Answer).await);
        let names = Names::default();
        let silent = silent.local_addr().expect("it is bound");
        names.set("zk:2181", &[nobody().await, silent, closing.address, good.address]);
        let mut following = Following::start("zk:2181", names.resolver());
        following.answered().await;
        following.stop().await;
    }

    /// Counts when it is dropped.
    struct GivenUp(Arc<AtomicUsize>);

    impl Drop for GivenUp {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn names_that_are_never_resolved_delay_no_other() {
        let (address, given_up) = (nobody().await, Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&given_up);
        let resolver: Resolver = Arc::new(move |host| {
            if host == "known:2181" {
                assert_eq!(counted.load(Ordering::Relaxed), 0, "it is asked for when others are given up");
                return Box::pin(async move { Ok(vec![address]) });
            }
            let given_up = GivenUp(Arc::clone(&counted));
            Box::pin(async move {
                let _given_up = given_up;
                std::future::pending().await
            })
        });
        let hosts = ["hangs:2181", "hangs-too:2181", "known:2181"].map(str::to_owned);
        let mut servers = Servers::new(&hosts, resolver);
        let server = servers.next().await.expect("one has an address");
        assert_eq!(server.address, address);
        servers.ended(&server, Outcome::NoSession("closed".to_owned()));
        let problems = servers.problems().expect("none is left");
        for host in ["hangs:2181", "hangs-too:2181"] {
            assert!(problems.contains(&format!("{host}: its name was not resolved in time")), "{problems}");
        }
    }

    /// By chance, not all begin with the first.
    #[tokio::test]
    async fn servers_share_the_sessions() {
        let servers = [Server::start(Does::Answer).await, Server::start(Does::Answer).await];
        let names = Names::default();
        names.set("a:1", &[servers[0].address]);
        names.set("b:1", &[servers[1].address]);
        for _ in 0..100 {
            let mut following = Following::start("a:1,b:1", names.resolver());
            following.answered().await;
            following.stop().await;
            if servers.iter().all(|server| !server.accepted.is_empty()) {
                return;
            }
        }
        panic!("100 sessions, and all with one of two servers");
    }
}

mod sessions {
    use super::*;

    #[tokio::test]
    async fn one_is_closed_at_the_server() {
        let mut server = Server::start(Does::Answer).await;
        let names = Names::default();
        names.set("zk:2181", &[server.address]);
        let mut following = Following::start("zk:2181", names.resolver());
        following.answered().await;
        following.stop().await;
        assert_eq!(server.ended().await, (0, CLOSE_SESSION));
    }

    #[tokio::test]
    async fn one_that_is_abandoned_is_closed_too() {
        let mut server = Server::start(Does::Answer).await;
        let names = Names::default();
        names.set("zk:2181", &[server.address]);
        let mut following = Following::start("zk:2181", names.resolver());
        following.answered().await;
        drop(following);
        assert_eq!(server.ended().await, (0, CLOSE_SESSION));
    }

    #[tokio::test]
    async fn one_goes_on_at_another_server() {
        let (first, mut second) = (Server::start(Does::Answer).await, Server::start(Does::Answer).await);
        let names = Names::default();
        names.set("zk:2181", &[first.address]);
        let mut following = Following::start("zk:2181", names.resolver());
        following.answered().await;
        names.set("zk:2181", &[second.address]);
        drop(first);
        second.connection().await;
        following.answered().await;
        following.stop().await;
        assert_eq!(second.ended().await, (7, CLOSE_SESSION));
    }

    #[tokio::test]
    async fn a_client_that_fails_is_made_anew() {
        let (mut breaking, good) = (Server::start(Does::Break).await, Server::start(Does::Answer).await);
        let names = Names::default();
        names.set("zk:2181", &[breaking.address]);
        let mut following = Following::start("zk:2181", names.resolver());
        breaking.ended().await;
        names.set("zk:2181", &[good.address]);
        following.answered().await;
        following.stop().await;
    }

    /// Nothing of it is left that goes on trying.
    #[tokio::test]
    async fn stopping_without_a_server_takes_no_time() {
        let names = Names::default();
        names.set("zk:2181", &[nobody().await]);
        let mut following = Following::start("zk:2181", names.resolver());
        following.told(&["zk:2181"]).await;
        following.stop().await;
    }
}
