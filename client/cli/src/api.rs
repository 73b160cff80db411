//! A cluster, over RPC or over HTTP, and the one type of failure that decides the exit code.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bitacora_client::{Client, Error, Operation, Outcome, Record, Scan, ScanPage, Write, Written};
use bitacora_protocol::WriteCondition;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::advice;
use crate::cli::{Connection, ReadFlags, WriteFlags};
use crate::http::Http;

/// What can go wrong with a call, as far as an exit code tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request is wrong and stays so.
    Refused,
    NotFound,
    /// No answer in time, or a write that may still take effect.
    Unclear,
    /// No node could be reached, or none is ready.
    Unavailable,
    /// Lines of an import.
    Rejected,
    /// The condition of a write does not hold.
    NotMet,
    /// Two nodes hold something else.
    Differ,
    /// The call has no token, or one that is not good for it.
    Denied,
    /// The command line makes no sense.
    Usage,
    Failed,
}

/// Why a call failed: the text for people, and what kind of failure it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Failure {
    pub kind: Kind,
    pub sentence: String,
}

impl Failure {
    pub fn new(kind: Kind, sentence: impl Into<String>) -> Self {
        Self { kind, sentence: sentence.into() }
    }

    /// As `--help` lists them.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Refused | Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::NotFound => 3,
            Kind::Unclear => 4,
            Kind::Unavailable => 5,
            Kind::Rejected => 6,
            Kind::NotMet => 7,
            Kind::Differ => 8,
            Kind::Denied => 9,
        }
    }

    /// Whether the node will not do it, however often it is asked.
    pub fn is_refusal(&self) -> bool {
        matches!(self.kind, Kind::Refused | Kind::Denied)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::NotFound { .. } => Kind::NotFound,
            Error::Refused { reason, .. } if advice::is_denied(reason) => Kind::Denied,
            Error::Refused { .. } => Kind::Refused,
            Error::TimedOut { .. } => Kind::Unclear,
            error if error.may_have_taken_effect() => Kind::Unclear,
            Error::NotMet { .. } => Kind::NotMet,
            Error::NotReady { .. } | Error::NotTaken { .. } | Error::NoNode { .. } => Kind::Unavailable,
            Error::Settings(_) => Kind::Usage,
            _ => Kind::Failed,
        };
        let sentence = match &error {
            Error::Refused { reason, .. } => advice::with_flag(reason.clone()),
            Error::NoNode { .. } => advice::by_flags(&error.to_string()),
            error => error.to_string(),
        };
        Self::new(kind, sentence)
    }
}

/// What to do where nobody listens.
const START_ONE: &str = "start one";

/// Tries to connect to a node. The error comes with what helps against it, if that is known.
async fn reach(node: &str, connection: &Connection) -> Result<(), (io::Error, Option<String>)> {
    let stream = bitacora_protocol::connect(node).await.map_err(|error| {
        let helps = match error.kind() {
            io::ErrorKind::ConnectionRefused => Some(START_ONE),
            // Only errors of the resolver have no number of the system's.
            _ if error.raw_os_error().is_none() => Some("start one, or give a name that has an address"),
            _ => None,
        };
        (error, helps.map(str::to_owned))
    })?;
    if let Some(tls) = &connection.tls {
        tls.connect(node, stream).await.map_err(|error| {
            let helps = advice::on_tls(&error);
            (error, helps)
        })?;
    }
    Ok(())
}

/// Says at once that no node is there, where the client would go on trying until its deadline.
async fn one_listens(nodes: &[String], connection: &Connection) -> Result<(), Failure> {
    let (mut last, mut helps) = (String::new(), None);
    for node in nodes {
        (last, helps) = match timeout(connection.timeout, reach(node, connection)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err((error, helps))) => (format!("{node}: {error}"), helps),
            Err(_) => (format!("{node}: no answer"), None),
        };
    }
    let elsewhere = "say with --rpc, --zookeeper or --http where one is";
    let helps = match helps {
        Some(helps) if connection.rpc.is_empty() && helps.starts_with(START_ONE) => {
            format!("; {helps}, or {elsewhere}")
        }
        Some(helps) => format!("; {helps}"),
        None if connection.rpc.is_empty() => format!("; {elsewhere}"),
        None => String::new(),
    };
    Err(Failure::new(Kind::Unavailable, format!("no node can be reached ({last}){helps}")))
}

fn with<'a>(write: Write<'a>, condition: WriteCondition, asked: &WriteFlags) -> Write<'a> {
    let write = match condition {
        WriteCondition::None => write,
        WriteCondition::Version(version) => write.if_version(version),
        WriteCondition::Present => write.if_present(),
        WriteCondition::Absent => write.if_absent(),
    };
    let write = write.visible(asked.visible.unwrap_or_default());
    match &asked.idempotency_key {
        Some(uuid) => write.uuid(uuid),
        None => write,
    }
}

/// What every command but `members`, `status` and `diff` speaks with.
pub enum Api {
    Rpc(Client),
    Http(Http),
}

impl Api {
    pub async fn connect(connection: &Connection, connections_per_node: u32) -> Result<Arc<Self>, Failure> {
        let builder = Client::builder()
            .deadline(connection.timeout)
            .connections_per_node(connections_per_node as usize);
        let builder = match &connection.token {
            Some(token) => builder.token(token.clone()),
            None => builder,
        };
        let builder = match &connection.tls {
            Some(tls) => builder.tls(tls.clone()),
            None => builder,
        };
        let api = if let Some(zookeeper) = &connection.zookeeper {
            Self::Rpc(builder.zookeeper(zookeeper.clone()).build().await?)
        } else if connection.rpc.is_empty() && !connection.http.is_empty() {
            Self::Http(Http::new(&connection.http, connection)?)
        } else {
            let nodes = connection.rpc_or_default();
            one_listens(&nodes, connection).await?;
            Self::Rpc(builder.nodes(nodes).build().await?)
        };
        Ok(Arc::new(api))
    }

    /// Takes leave of ZooKeeper, whose session would otherwise stay until it expires.
    pub async fn close(&self) {
        if let Self::Rpc(client) = self {
            client.close().await;
        }
    }

    /// The nodes that calls go to, for a report.
    pub fn nodes(&self) -> Vec<String> {
        match self {
            Self::Rpc(client) => client.nodes().into_iter().map(|node| node.address).collect(),
            Self::Http(http) => http.urls().map(ToString::to_string).collect(),
        }
    }

    pub async fn get(&self, key: &str, read: &ReadFlags) -> Result<Record, Failure> {
        match self {
            Self::Rpc(client) => Ok(client.read(key).level(&read.level()).await?),
            Self::Http(http) => http.get(key, read).await,
        }
    }

    pub async fn set(
        &self,
        key: &str,
        value: &str,
        ttl: Option<Duration>,
        condition: WriteCondition,
        asked: &WriteFlags,
    ) -> Result<Written, Failure> {
        match self {
            Self::Rpc(client) => {
                let write = client.write(key, value);
                let write = if let Some(ttl) = ttl { write.ttl(ttl) } else { write };
                Ok(with(write, condition, asked).await?)
            }
            Self::Http(http) => http.set(key, value, ttl, condition, asked).await,
        }
    }

    pub async fn delete(&self, key: &str, asked: &WriteFlags) -> Result<Written, Failure> {
        let condition = asked.if_match.unwrap_or_default();
        match self {
            Self::Rpc(client) => Ok(with(client.remove(key), condition, asked).await?),
            Self::Http(http) => http.delete(key, condition, asked).await,
        }
    }

    pub async fn batch(&self, operations: &[&Operation]) -> Result<Vec<Result<Outcome, Failure>>, Failure> {
        match self {
            Self::Rpc(client) => {
                let results = client.batch(operations.iter().copied()).await?;
                Ok(results.into_iter().map(|result| result.map_err(Failure::from)).collect())
            }
            Self::Http(http) => http.batch(operations).await,
        }
    }

    async fn scan_page(
        &self,
        scan: &Scan,
        read: &ReadFlags,
        cursor: Option<&str>,
    ) -> Result<ScanPage, Failure> {
        match self {
            Self::Rpc(client) => Ok(client.scan_page(scan, cursor).await?),
            Self::Http(http) => http.scan_page(scan, read, cursor).await,
        }
    }

    /// The pages from `cursor` on; the next is asked for while the last is used.
    pub fn pages(
        self: &Arc<Self>,
        scan: Scan,
        read: ReadFlags,
        mut cursor: Option<String>,
    ) -> mpsc::Receiver<Result<ScanPage, Failure>> {
        let (pages, receiver) = mpsc::channel(1);
        let api = Arc::clone(self);
        let scan = scan.level(read.level());
        tokio::spawn(async move {
            loop {
                let page = api.scan_page(&scan, &read, cursor.as_deref()).await;
                cursor = page.as_ref().ok().and_then(|page| page.cursor.clone());
                if pages.send(page).await.is_err() || cursor.is_none() {
                    return;
                }
            }
        });
        receiver
    }
}
