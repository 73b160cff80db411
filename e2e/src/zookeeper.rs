//! What the suites ask ZooKeeper itself.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zookeeper_async::{Acl, CreateMode, WatchedEvent, ZkError, ZooKeeper};

/// Connecting and asking, at most.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct ZkClient(ZooKeeper);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Znode {
    pub data: String,
    /// The session that owns it; 0 for a persistent one.
    pub owner: i64,
}

impl ZkClient {
    /// `hosts` may end in a chroot.
    pub async fn connect(hosts: &str) -> Result<ZkClient, String> {
        let connect = ZooKeeper::connect(hosts, Duration::from_secs(10), |_: WatchedEvent| {});
        match tokio::time::timeout(PATIENCE, connect).await {
            Ok(Ok(client)) => Ok(ZkClient(client)),
            Ok(Err(error)) => Err(format!("connecting to {hosts}: {error:?}")),
            Err(_) => Err(format!("connecting to {hosts} took longer than {PATIENCE:?}")),
        }
    }

    /// Shows a user and a password, as `user:password`.
    pub async fn log_in(&self, login: &str) -> Result<(), String> {
        let shown = self.0.add_auth("digest", login.as_bytes().to_vec()).await;
        shown.map_err(|error| format!("logging in: {error:?}"))
    }

    /// Deletes the znode at `path`.
    pub async fn delete(&self, path: &str) -> Result<(), String> {
        self.0.delete(path, None).await.map_err(|error| format!("deleting {path}: {error:?}"))
    }

    /// Has the znode at `path` hold something else.
    pub async fn overwrite(&self, path: &str, data: &str) -> Result<(), String> {
        let set = self.0.set_data(path, data.as_bytes().to_vec(), None).await;
        set.map(drop).map_err(|error| format!("writing to {path}: {error:?}"))
    }

    /// The znode at `path`, `None` if there is none.
    pub async fn znode(&self, path: &str) -> Result<Option<Znode>, String> {
        match tokio::time::timeout(PATIENCE, self.0.get_data(path, false)).await {
            Ok(Ok((data, stat))) => Ok(Some(Znode {
                data: String::from_utf8_lossy(&data).into_owned(),
                owner: stat.ephemeral_owner,
            })),
            Ok(Err(ZkError::NoNode)) => Ok(None),
            Ok(Err(error)) => Err(format!("reading {path}: {error:?}")),
            Err(_) => Err(format!("reading {path} took longer than {PATIENCE:?}")),
        }
    }

    /// The children of `path`, sorted; none if it does not exist.
    pub async fn children(&self, path: &str) -> Result<Vec<String>, String> {
        match tokio::time::timeout(PATIENCE, self.0.get_children(path, false)).await {
            Ok(Ok(mut children)) => {
                children.sort();
                Ok(children)
            }
            Ok(Err(ZkError::NoNode)) => Ok(Vec::new()),
            Ok(Err(error)) => Err(format!("listing {path}: {error:?}")),
            Err(_) => Err(format!("listing {path} took longer than {PATIENCE:?}")),
        }
    }

    /// Makes somebody at `host:port` a member, for as long as this client lives.
    pub async fn pose_as_member(&self, address: &str) -> Result<(), String> {
        let path = format!("/bitacora/servers/{address}");
        let create = self.0.create(
            &path,
            address.as_bytes().to_vec(),
            Acl::open_unsafe().clone(),
            CreateMode::Ephemeral,
        );
        create.await.map(drop).map_err(|error| format!("creating {path}: {error:?}"))
    }

    pub async fn close(&self) {
        // The session ends by itself if this fails.
        let _ = tokio::time::timeout(PATIENCE, self.0.close()).await;
    }
}

/// How many clients are connected to the ZooKeeper at `address`, this question included.
pub async fn connections(address: &str) -> Result<usize, String> {
    let status = status_word(address).await.map_err(|error| error.to_string())?;
    let count = status.lines().find_map(|line| line.strip_prefix("Connections: ")?.parse().ok());
    count.ok_or_else(|| format!("srvr answers {status:?}"))
}

/// Whether a ZooKeeper at `address` serves requests.
pub async fn answers(address: &str) -> Result<(), String> {
    // Its own status word first: a session's client would go on retrying in the background where nobody answers, and
    // Docker's proxy accepts connections before the server does.
    match tokio::time::timeout(PATIENCE, status_word(address)).await {
        Ok(Ok(status)) if status.contains("Mode:") => {}
        Ok(Ok(status)) => return Err(format!("srvr answers {status:?}")),
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("srvr is not answered within {PATIENCE:?}")),
    }
    let client = ZkClient::connect(address).await?;
    let answer = client.children("/").await;
    client.close().await;
    match answer {
        Ok(children) if children.iter().any(|child| child == "zookeeper") => Ok(()),
        Ok(children) => Err(format!("its root holds {children:?}")),
        Err(error) => Err(error),
    }
}

async fn status_word(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"srvr").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
