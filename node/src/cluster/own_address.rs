//! The address that the others reach this machine by, found out from its routes.

use std::net::{IpAddr, Ipv4Addr};

use bitacora_protocol::zookeeper::ConnectString;
use tokio::net::UdpSocket;

/// The address that this machine has towards ZooKeeper, which is how the others are reached too.
pub async fn own_address(zookeeper: &ConnectString) -> IpAddr {
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

/// Connecting a UDP socket sends nothing; it only chooses a route.
async fn address_towards(host: &str) -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    socket.connect(host).await.ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}
