//! Texts that other servers answer with.

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

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    #[tokio::test]
    async fn an_answer_without_an_end_is_cut() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("bound"));
        let server = tokio::task::spawn_blocking(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let _ = stream.read(&mut [0; 1_000]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            // Until nobody reads it any more.
            while stream.write_all(&[b'x'; 1 << 10]).is_ok() {}
        });
        let answer = crate::http_client::builder()
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
