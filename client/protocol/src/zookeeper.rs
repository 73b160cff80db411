//! How members are known: the znodes that nodes register, ZooKeeper's connect string, and a session with its servers.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;
use zookeeper_async::{WatchedEvent, Watcher, ZooKeeper};

/// Folder of an ephemeral znode for each node, named `host:API_PORT`.
pub const SERVERS: &str = "/bitacora/servers";
/// Folder of an ephemeral znode for each node, named `host:AVRO_PORT`.
pub const SOCKETS: &str = "/bitacora/sockets";
/// Ephemeral znode of the node that trims the log; its data is that node's `host:API_PORT`.
pub const TRIMMER: &str = "/bitacora/trimmer";

/// Between two tries to reach a server.
const RECONNECT_PAUSE: Duration = Duration::from_millis(300);

/// ZooKeeper's connect string: `host:port` of one or more servers, separated by commas, and perhaps the path under which
/// everything is kept (*chroot*).
///
/// ```
/// use bitacora_protocol::zookeeper::ConnectString;
///
/// let connect: ConnectString = "zk1:2181,zk2:2181/production".parse()?;
/// assert_eq!(connect.hosts(), ["zk1:2181", "zk2:2181"]);
/// assert_eq!(connect.chroot(), "/production");
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectString {
    hosts: Vec<String>,
    chroot: String,
}

/// The error is a sentence.
impl FromStr for ConnectString {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (hosts, chroot) = text.find('/').map_or((text, ""), |at| text.split_at(at));
        let chroot = chroot.trim_end_matches('/');
        if chroot.contains("//") || chroot.contains(char::is_whitespace) {
            return Err(format!("'{chroot}' is not a path of ZooKeeper"));
        }
        let hosts: Vec<_> = hosts.split(',').map(|host| host.trim().to_owned()).collect();
        for host in &hosts {
            host_port(host)?;
        }
        Ok(Self { hosts, chroot: chroot.to_owned() })
    }
}

impl ConnectString {
    /// `host:port` of each server; at least one.
    #[must_use]
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// `""`, or a path without a slash at its end.
    #[must_use]
    pub fn chroot(&self) -> &str {
        &self.chroot
    }
}

/// Checks that a text can be `host:port`.
///
/// # Errors
/// A sentence.
pub fn host_port(text: &str) -> Result<(), String> {
    let wrong = || format!("'{text}' is not host:port");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let plausible = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || "/\\@?#".contains(c));
    if plausible && port.parse::<u16>().is_ok_and(|port| port > 0) { Ok(()) } else { Err(wrong()) }
}

/// Wakes on every event of a session and of its watches.
struct Wake(Arc<Notify>);

impl Watcher for Wake {
    fn handle(&self, _: WatchedEvent) {
        self.0.notify_one();
    }
}

/// Opens a session with the servers of a connect string. `wake` is notified of every event of the session and of its
/// watches. The session lives until it is closed, even if what is returned is dropped.
///
/// # Errors
/// A sentence, when no server answers within the session timeout.
pub async fn open_session(
    connect: &ConnectString,
    session_timeout: Duration,
    wake: &Arc<Notify>,
) -> Result<ZooKeeper, String> {
    // ZooKeeper's client resolves names once and fails if a single one is unknown; so it gets addresses, of those that
    // are known.
    let mut addresses: Vec<SocketAddr> = Vec::new();
    let mut unresolved = String::new();
    for host in connect.hosts() {
        match tokio::net::lookup_host(host).await {
            Ok(found) => addresses.extend(found.take(1)),
            Err(error) => unresolved = format!("{host}: {error}"),
        }
    }
    if addresses.is_empty() {
        return Err(unresolved);
    }
    let addresses = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let connecting = ZooKeeper::connect_with_retry_time(
        &addresses,
        session_timeout,
        Wake(Arc::clone(wake)),
        RECONNECT_PAUSE,
    );
    // It tries for ever by itself, without telling; a try of ours ends, so that it can be told.
    match timeout(session_timeout, connecting).await {
        Ok(Ok(zookeeper)) => {
            let wake = Arc::clone(wake);
            zookeeper.add_listener(move |_| wake.notify_one());
            Ok(zookeeper)
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer from {}", connect.hosts().join(","))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_name_is_an_address_or_refused(
            name in "[a-z0-9.:\\[\\]@/#? ]{0,12}|\\PC{0,20}",
            host in "[a-z][a-z0-9.-]{0,9}",
            port in 1..u16::MAX,
        ) {
            prop_assert_eq!(host_port(&format!("{host}:{port}")), Ok(()));
            match host_port(&name) {
                Ok(()) => prop_assert!(name.len() > 2 && !name.contains(['/', '\\', '@', '?', '#', ' '])),
                Err(error) => prop_assert!(error.contains(&name)),
            }
            let _ = name.parse::<ConnectString>();
        }
    }

    #[test]
    fn connect_strings() {
        let parse = |text: &str| text.parse::<ConnectString>();
        let expected = ConnectString { hosts: vec!["a:2181".into(), "b:2182".into()], chroot: "/x/y".into() };
        assert_eq!(parse("a:2181, b:2182/x/y"), Ok(expected));
        assert_eq!(parse("a:1/").map(|c| c.chroot), Ok(String::new()));
        for wrong in ["", "a", "a:", "a:b", "a:1,,b:1", "a:1//x", "a:1/x y", "a:99999", "http://a:1"] {
            assert!(parse(wrong).is_err(), "{wrong:?} was accepted");
        }
    }
}
