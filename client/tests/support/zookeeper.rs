//! As much of ZooKeeper as the client uses: sessions, and the children of one znode with their watches.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bitacora_protocol::zookeeper::ConnectString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

const PATH: &str = "/test/bitacora/sockets";

pub struct FakeZooKeeper {
    pub address: String,
    /// `None`: the znode does not exist.
    children: watch::Sender<Option<Vec<String>>>,
    pub seen: Arc<Seen>,
    task: JoinHandle<()>,
}

#[derive(Default)]
pub struct Seen {
    pub closed_sessions: AtomicUsize,
    /// How often somebody asked for the children.
    pub looks: AtomicUsize,
}

impl FakeZooKeeper {
    pub async fn start(children: Option<Vec<String>>) -> Self {
        Self::at("127.0.0.1:0", children).await
    }

    pub async fn at(address: &str, children: Option<Vec<String>>) -> Self {
        let listener = TcpListener::bind(address).await.expect("the port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (children, seen) = (watch::Sender::new(children), Arc::default());
        let task = tokio::spawn(accept(listener, children.clone(), Arc::clone(&seen)));
        Self { address, children, seen, task }
    }

    pub fn connect(&self) -> ConnectString {
        format!("{}/test", self.address).parse().expect("it is a connect string")
    }

    pub fn set(&self, children: Vec<String>) {
        self.children.send_replace(Some(children));
    }

    pub async fn kill(self) -> String {
        self.task.abort();
        let _ = self.task.await;
        self.address
    }
}

async fn accept(listener: TcpListener, children: watch::Sender<Option<Vec<String>>>, seen: Arc<Seen>) {
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let (children, seen) = (children.subscribe(), Arc::clone(&seen));
        connections.spawn(async move {
            if serve(socket, children, &seen).await.is_none() {
                seen.closed_sessions.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
}

/// `None` when the session was closed.
async fn serve(
    mut socket: TcpStream,
    mut children: watch::Receiver<Option<Vec<String>>>,
    seen: &Seen,
) -> Option<std::io::Error> {
    let connected = async {
        frame(&mut socket).await?;
        // Version, session timeout in ms, session, password, not read-only.
        let session = [&0i32.to_be_bytes()[..], &2000i32.to_be_bytes(), &7i64.to_be_bytes()].concat();
        send(&mut socket, &[session, 16i32.to_be_bytes().to_vec(), vec![0; 17]].concat()).await
    };
    if let Err(error) = connected.await {
        return Some(error);
    }
    let mut watched = false;
    loop {
        let request = tokio::select! {
            request = frame(&mut socket) => request,
            Ok(()) = children.changed(), if watched => {
                watched = false;
                // NodeChildrenChanged, SyncConnected.
                let event = [-1i32, -1, -1, 0, 4, 3].map(i32::to_be_bytes).concat();
                let path = [(PATH.len() as i32).to_be_bytes().as_slice(), PATH.as_bytes()].concat();
                match send(&mut socket, &[event, path].concat()).await {
                    Ok(()) => continue,
                    Err(error) => return Some(error),
                }
            }
        };
        let request = match request {
            Ok(request) => request,
            Err(error) => return Some(error),
        };
        let (xid, operation) = (&request[..4], &request[4..8]);
        let (mut error, mut content) = (0i32, Vec::new());
        match i32::from_be_bytes(operation.try_into().expect("4 bytes")) {
            -11 => return None,
            8 => {
                let path = &request[12..request.len() - 1];
                assert_eq!(path, PATH.as_bytes());
                seen.looks.fetch_add(1, Ordering::SeqCst);
                match &*children.borrow_and_update() {
                    None => error = -101,
                    Some(names) => {
                        watched = true;
                        content.extend((names.len() as i32).to_be_bytes());
                        for name in names {
                            content.extend((name.len() as i32).to_be_bytes());
                            content.extend(name.as_bytes());
                        }
                    }
                }
            }
            // A ping.
            _ => {}
        }
        let reply = [xid, &1i64.to_be_bytes(), &error.to_be_bytes(), &content].concat();
        if let Err(error) = send(&mut socket, &reply).await {
            return Some(error);
        }
    }
}

/// Not to be dropped half-way but for the first byte, which is good enough for whole frames on the loopback.
async fn frame(socket: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    socket.readable().await?;
    let length = socket.read_i32().await?;
    let mut bytes = vec![0; usize::try_from(length).expect("a length")];
    socket.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn send(socket: &mut TcpStream, content: &[u8]) -> std::io::Result<()> {
    socket.write_all(&[&(content.len() as i32).to_be_bytes()[..], content].concat()).await
}
