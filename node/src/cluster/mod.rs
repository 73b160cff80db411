//! Who else is in the cluster. Two implementations of one trait: [`zookeeper`] for a deployment, [`fixed`] for one process.

pub mod aws;
pub mod fixed;
pub mod own_address;
pub mod zookeeper;

use std::sync::Arc;

use futures_util::future::BoxFuture;

/// Knows the members of the cluster and makes this node one of them.
///
/// Invariants: [`Membership::members`] never blocks and is as of the last time that the source answered, so that a node
/// keeps working while it is away; a node is a member only between [`Membership::announce`] and [`Membership::leave`].
pub trait Membership: Send + Sync + 'static {
    /// `host:API_PORT` of every member, this node included once it is one, sorted.
    fn members(&self) -> Arc<[String]>;

    /// How the source of the above is doing.
    fn state(&self) -> MembershipState;

    /// Whether the source answers and holds this node's own entries.
    fn registered(&self) -> bool;

    /// Sessions with the source under which this node has registered: more than one, and a session was lost.
    fn sessions(&self) -> u64;

    /// Makes this node a member, now or as soon as the source answers, and again whenever it was forgotten.
    fn announce(&self);

    /// Whether it is this node's turn to trim the log. Never blocks; one member's at a time, as far as the source knows.
    fn is_elected_trimmer(&self) -> bool;

    /// The name of the task that follows the source, if it has ended although nobody asked it to: what is known of the members
    /// stays as it is for ever.
    fn ended_task(&self) -> Option<&'static str> {
        None
    }

    /// Takes this node out again. Waits for the source, no longer than a second or so.
    fn leave(&self) -> BoxFuture<'_, ()>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipState {
    /// A list that never changes.
    Fixed,
    Connected,
    /// The members are those last known.
    Disconnected {
        reason: String,
    },
}

/// What a node is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub api_port: u16,
    pub avro_port: u16,
}

impl Address {
    /// `host:API_PORT`
    #[must_use]
    pub fn api(&self) -> String {
        join(&self.host, self.api_port)
    }

    /// `host:AVRO_PORT`
    #[must_use]
    pub fn avro(&self) -> String {
        join(&self.host, self.avro_port)
    }
}

fn join(host: &str, port: u16) -> String {
    // An IPv6 address needs its brackets.
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use bitacora_protocol::zookeeper::host_port;
    use proptest::prelude::*;

    proptest! {
        /// ZooKeeper's nodes are named by anybody; what passes leads to a member's own paths or nowhere.
        #[test]
        fn any_name_of_a_member_is_an_address_or_left_out(
            name in "[a-z0-9.:\\[\\]@/#?%\\\\ ]{0,12}:[0-9]{1,5}|\\PC{0,20}",
        ) {
            let url = reqwest::Url::parse(&format!("http://{name}/rpc/cluster?key=k"));
            if let (Ok(()), Ok(url)) = (host_port(&name), url) {
                let reached = (url.path(), url.query(), url.username(), url.fragment());
                prop_assert_eq!(reached, ("/rpc/cluster", Some("key=k"), "", None), "{}", name);
            }
        }
    }
}
