//! Connections to a name that may have several addresses, some of which may not answer.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// An address that has not answered for so long gets company by the next one.
const STAGGER: Duration = Duration::from_millis(250);

/// Connects to a `host:port`. The name is resolved each time, and all its addresses are tried, in the order in which the system
/// gives them: the next one as soon as the one before has failed or is slow. The caller bounds the time.
///
/// # Errors
/// Those of the resolver, or of the last address that failed.
pub async fn connect(address: &str) -> io::Result<TcpStream> {
    connect_to_one_of(lookup_host(address).await?).await
}

async fn connect_to_one_of(mut addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut tries = JoinSet::new();
    loop {
        let tried = match addresses.next() {
            Some(address) => {
                tries.spawn(TcpStream::connect(address));
                match timeout(STAGGER, tries.join_next()).await {
                    Ok(tried) => tried,
                    Err(_) => continue,
                }
            }
            None => tries.join_next().await,
        };
        match tried {
            Some(Ok(Ok(socket))) => return Ok(socket),
            Some(Ok(Err(error))) => last = error,
            Some(Err(error)) => last = io::Error::other(error),
            None => return Err(last),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn all_addresses_are_tried() {
        let dead = TcpListener::bind("127.0.0.1:0").await.and_then(|it| it.local_addr()).expect("a port");
        let good = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = good.local_addr().expect("it is bound");
        let connected = connect_to_one_of([dead, dead, address].into_iter()).await.expect("one listens");
        assert_eq!(connected.peer_addr().expect("it is connected"), address);
        let error = connect_to_one_of([dead, dead].into_iter()).await.expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let error = connect_to_one_of([].into_iter()).await.expect_err("there is no address");
        assert!(error.to_string().contains("no address"), "{error}");
    }
}
