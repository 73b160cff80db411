//! A node of Bitacora. `ARCHITECTURE.md` in the repository's root is the map.
// An application: its documentation is for those who change it, and shows private items, too.
#![allow(rustdoc::private_intra_doc_links)]

pub mod clock;
pub mod cluster;
pub mod data_dir;
pub mod dev;
pub mod http;
pub mod log;
pub mod metrics;
pub mod node;
pub mod replication;
pub mod rpc;
pub mod serve;
pub mod server;
pub mod service;
pub mod settings;
pub mod store;
pub mod telemetry;
pub mod trimming;
pub mod worker;

#[cfg(test)]
mod testing;

/// The text of an answer, and no more than about so many bytes of it: who answers may never come to an end.
///
/// # Errors
/// When it breaks off.
pub(crate) async fn read_text_limited(
    mut answer: reqwest::Response,
    limit: usize,
) -> reqwest::Result<String> {
    let mut bytes = Vec::new();
    while bytes.len() < limit
        && let Some(piece) = answer.chunk().await?
    {
        bytes.extend_from_slice(&piece);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The clock, in ms since the epoch.
#[must_use]
pub fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    #[tokio::test]
    async fn of_an_answer_without_an_end_only_the_beginning_is_read() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("bound"));
        let server = tokio::task::spawn_blocking(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let _ = stream.read(&mut [0; 1_000]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            // Until nobody reads it any more.
            while stream.write_all(&[b'x'; 1 << 10]).is_ok() {}
        });
        let answer = reqwest::Client::builder()
            .no_proxy()
            .build()
            .expect("a client")
            .get(url)
            .send()
            .await
            .expect("an answer");
        let text = super::read_text_limited(answer, 1_000).await.expect("text");
        assert!(text.starts_with("xxx") && text.len() < 10 << 20, "{} bytes", text.len());
        server.await.expect("it noticed");
    }
}
