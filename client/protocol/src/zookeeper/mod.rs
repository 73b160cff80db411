//! How members are known: the znodes that nodes register, ZooKeeper's connect string, and sessions with its servers.

mod relay;
mod servers;
mod session;
#[cfg(test)]
mod session_tests;

use std::str::FromStr;

pub use session::{Follower, follow, list_members, members};

/// Folder of all that nodes make.
pub const ROOT: &str = "/bitacora";
/// Folder of an ephemeral znode for each node, named `host:API_PORT`.
pub const SERVERS: &str = "/bitacora/servers";
/// Folder of an ephemeral znode for each node, named `host:AVRO_PORT`.
pub const SOCKETS: &str = "/bitacora/sockets";
/// Ephemeral znode of the node that trims the log; its data is that node's `host:API_PORT`.
pub const TRIMMER: &str = "/bitacora/trimmer";

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

impl FromStr for ConnectString {
    /// Says which part of the text is wrong.
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

/// Checks that a text can be `host:port`; an IPv6 address stands in brackets.
///
/// # Errors
/// Names the text that is not `host:port`.
pub fn host_port(text: &str) -> Result<(), String> {
    let wrong = || format!("'{text}' is not host:port");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let plausible = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || "/\\@?#".contains(c));
    if plausible && port.parse::<u16>().is_ok_and(|port| port > 0) { Ok(()) } else { Err(wrong()) }
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
