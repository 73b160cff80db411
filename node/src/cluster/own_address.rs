//! The address that the others reach this machine by, found out from its routes.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bitacora_protocol::zookeeper::ConnectString;
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// How long a name may take to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The address that a node which listens on `listening` is reached by: that one, or the one that this machine has towards
/// ZooKeeper, which is how the others are reached too.
pub async fn own_address(zookeeper: &ConnectString, listening: IpAddr) -> IpAddr {
    if !listening.is_unspecified() && !listening.is_loopback() {
        return listening;
    }
    let route = route_address(zookeeper).await;
    match (listening.is_unspecified(), route.is_loopback()) {
        (true, _) => route,
        (false, true) => listening,
        (false, false) => {
            tracing::warn!(
                "the node listens on {listening} only (BIND_ADDRESS), where the other machines can't reach it; it goes by {route}"
            );
            route
        }
    }
}

async fn route_address(zookeeper: &ConnectString) -> IpAddr {
    for host in zookeeper.hosts() {
        if let Some(address) = address_towards(host).await {
            return address;
        }
    }
    // No server's name is known yet, as may be after a reboot: what faces the default route will do. (192.0.2.0/24 is
    // nobody's, RFC 5737.)
    if let Some(address) = address_towards("192.0.2.1:9").await {
        return address;
    }
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    tracing::warn!(
        "this machine has no address that others reach; the node goes by {localhost} unless NODE_ADDRESS says otherwise"
    );
    localhost
}

/// Connecting a UDP socket sends nothing; it only chooses a route. All addresses of a name are tried.
async fn address_towards(host: &str) -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    timeout(RESOLVE_TIMEOUT, socket.connect(host)).await.ok()?.ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_goes_by_the_address_it_listens_on() {
        let zookeeper = "127.0.0.1:2181".parse().expect("an address");
        for (listening, known_by) in [
            ("0.0.0.0", "127.0.0.1"),
            ("::", "127.0.0.1"),
            ("127.0.0.2", "127.0.0.2"),
            ("::1", "::1"),
            ("192.0.2.7", "192.0.2.7"),
        ] {
            let address = own_address(&zookeeper, listening.parse().expect("an address")).await;
            assert_eq!(address.to_string(), known_by, "listening on {listening}");
        }
    }
}
