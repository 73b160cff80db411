//! The node's HTTP API as the suites use it, and requests that no proper client would send.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bitacora_protocol::tls::ClientTls;
use bitacora_protocol::token::{AUTHORIZATION, Token};
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Percent-encodes everything but the unreserved characters.
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte as char),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub partition: i32,
    pub offset: i64,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self}"))
    }

    /// The record's value on a 200.
    pub fn value(&self) -> Option<String> {
        if self.status != 200 {
            return None;
        }
        let record: Value = serde_json::from_slice(&self.body).ok()?;
        Some(record.get("value")?.as_str()?.to_string())
    }

    #[track_caller]
    pub fn position(&self) -> Position {
        let header =
            self.header("bitacora-position").unwrap_or_else(|| panic!("no Bitacora-Position: {self}"));
        let parsed = header.split_once(':').and_then(|(partition, offset)| {
            Some(Position { partition: partition.parse().ok()?, offset: offset.parse().ok()? })
        });
        parsed.unwrap_or_else(|| panic!("Bitacora-Position is not P:O: {self}"))
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "unexpected status: {self}");
        self
    }

    /// The sentence of an error.
    #[track_caller]
    pub fn message(&self) -> String {
        match self.json().get("message").and_then(Value::as_str) {
            Some(message) => message.to_string(),
            None => panic!("no message: {self}"),
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body: String = self.text().chars().take(600).collect();
        write!(out, "{} {:?} {body}", self.status, self.headers)
    }
}

/// A client to be built, of nodes that speak plain text.
pub fn client_builder() -> reqwest::ClientBuilder {
    let nobody = bitacora_protocol::tls::trusting_nobody();
    reqwest::Client::builder().no_proxy().tls_backend_preconfigured(nobody)
}

/// The answer to a GET by a client of its own.
///
/// # Errors
/// When there is none.
pub async fn get(url: impl reqwest::IntoUrl) -> reqwest::Result<reqwest::Response> {
    client_builder().build()?.get(url).send().await
}

/// A client of one node, with its own connections. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    pub port: u16,
    scheme: &'static str,
    http: reqwest::Client,
}

impl Api {
    pub fn new(port: u16) -> Api {
        Api::of(port, "http", client_builder())
    }

    /// Speaks TLS, and shows a token if there is one.
    pub fn over_tls(port: u16, tls: &ClientTls, token: Option<&Token>) -> Api {
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            let value = HeaderValue::try_from(token.authorization()).expect("a token is ASCII");
            headers.insert(AUTHORIZATION, value);
        }
        let builder = reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls.http_config());
        Api::of(port, "https", builder.default_headers(headers))
    }

    fn of(port: u16, scheme: &'static str, builder: reqwest::ClientBuilder) -> Api {
        let http = builder
            .timeout(Duration::from_secs(60))
            // Below what the suites set as IDLE_TIMEOUT: a connection that the node closes at this moment is not used.
            .pool_idle_timeout(Duration::from_secs(1))
            .build()
            .expect("an HTTP client can be built");
        Api { port, scheme, http }
    }

    pub async fn send(
        &self,
        method: Method,
        path_and_query: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Answer> {
        let url = format!("{}://127.0.0.1:{}{path_and_query}", self.scheme, self.port);
        let mut request = self.http.request(method.clone(), &url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_empty() || method == Method::POST {
            request = request.body(body);
        }
        let what = || {
            let path: String = path_and_query.chars().take(200).collect();
            format!("{method} {path} at port {}", self.port)
        };
        let response = request.send().await.with_context(what)?;
        let status = response.status().as_u16();
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| {
                (name.as_str().to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
            })
            .collect();
        let body = response.bytes().await.with_context(what)?.to_vec();
        Ok(Answer { status, headers, body })
    }

    pub async fn call(&self, method: Method, path_and_query: &str) -> Result<Answer> {
        self.send(method, path_and_query, &[], Vec::new()).await
    }

    pub async fn get(&self, key: &str) -> Result<Answer> {
        self.call(Method::GET, &format!("/rpc?key={}", encode(key))).await
    }

    /// `options` as in a query: `consistency=strong&timeout=500`.
    pub async fn get_with(&self, key: &str, options: &str) -> Result<Answer> {
        self.call(Method::GET, &format!("/rpc?key={}&{options}", encode(key))).await
    }

    /// `GET /rpc/cluster`: what this node itself holds.
    pub async fn get_own(&self, key: &str) -> Result<Answer> {
        self.call(Method::GET, &format!("/rpc/cluster?key={}", encode(key))).await
    }

    /// The value goes as the raw body, so it may have any length and content.
    pub async fn set(&self, key: &str, value: &str) -> Result<Answer> {
        self.set_with(key, value, "").await
    }

    /// `options` as in a query, each with its `&` in front: `&ttl=2h`.
    pub async fn set_with(&self, key: &str, value: &str, options: &str) -> Result<Answer> {
        let path = if value.is_empty() {
            format!("/rpc?key={}&value={options}", encode(key))
        } else {
            format!("/rpc?key={}{options}", encode(key))
        };
        let headers = [("content-type", "text/plain; charset=utf-8")];
        self.send(Method::POST, &path, &headers, value.as_bytes().to_vec()).await
    }

    pub async fn delete(&self, key: &str) -> Result<Answer> {
        self.call(Method::DELETE, &format!("/rpc?key={}", encode(key))).await
    }

    pub async fn status(&self) -> Result<Value> {
        let answer = self.call(Method::GET, "/status").await?;
        serde_json::from_slice(&answer.body).with_context(|| format!("/status is not JSON: {answer}"))
    }

    pub async fn health(&self) -> Result<Answer> {
        self.call(Method::GET, "/health").await
    }

    /// The sum of a metric over its labels, 0 if it is not there.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let text = self.call(Method::GET, "/metrics").await?.text();
        let mut sum = 0.0;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            if series == name || series.starts_with(&format!("{name}{{")) {
                sum += value.parse::<f64>().with_context(|| format!("the metric line {line:?}"))?;
            }
        }
        Ok(sum)
    }
}

/// A connection on which any bytes can be sent.
pub struct RawConnection {
    stream: TcpStream,
    /// Read, and not yet taken as an answer.
    unread: Vec<u8>,
}

impl RawConnection {
    pub async fn open(port: u16) -> Result<RawConnection> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.context("connecting")?;
        stream.set_nodelay(true).context("setting TCP_NODELAY")?;
        Ok(RawConnection { stream, unread: Vec::new() })
    }

    pub async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }

    pub fn split(self) -> (tokio::net::tcp::OwnedReadHalf, tokio::net::tcp::OwnedWriteHalf) {
        self.stream.into_split()
    }

    /// The next answer; `None` if the node closes before any of it.
    pub async fn answer(&mut self, deadline: Duration) -> Result<Option<Answer>> {
        let read = read_one(&mut self.stream, &mut self.unread);
        let outcome = tokio::time::timeout(deadline, read).await;
        outcome.with_context(|| format!("no answer and no close within {deadline:?}"))?
    }
}

/// One request after the other for every item, over `connections` connections that are kept, `depth` at a time on each
/// without waiting for the answers in between. For many requests: a proper client costs more than the node.
pub async fn bulk<T>(
    port: u16,
    items: &[T],
    (connections, depth): (usize, usize),
    request: impl Fn(&T) -> Vec<u8>,
    check: impl Fn(&T, &Answer) -> Result<()>,
) -> Result<()> {
    let share = items.len().div_ceil(connections).max(1);
    let (request, check) = (&request, &check);
    let lanes = items.chunks(share).map(|lane| async move {
        let mut connection = RawConnection::open(port).await?;
        for batch in lane.chunks(depth) {
            let bytes: Vec<u8> = batch.iter().flat_map(request).collect();
            connection.write(&bytes).await.context("sending a batch of requests")?;
            for item in batch {
                let answer = connection.answer(Duration::from_secs(30)).await?;
                check(item, &answer.context("the node closed the connection")?)?;
            }
        }
        anyhow::Ok(())
    });
    futures_util::future::try_join_all(lanes).await?;
    Ok(())
}

/// Sends `request` as it is, on a connection of its own; `None` if the node closes it without an answer.
pub async fn raw(port: u16, request: &[u8], deadline: Duration) -> Result<Option<Answer>> {
    let mut connection = RawConnection::open(port).await?;
    // The node may close before it has read all; its answer is then still to be read.
    let _ = tokio::time::timeout(deadline, connection.write(request)).await;
    connection.answer(deadline).await
}

/// Reads one answer; `None` if the connection ends before any of it.
pub async fn read_answer(
    stream: &mut (impl AsyncReadExt + Unpin),
    deadline: Duration,
) -> Result<Option<Answer>> {
    let mut unread = Vec::new();
    let outcome = tokio::time::timeout(deadline, read_one(stream, &mut unread)).await;
    outcome.with_context(|| format!("no answer and no close within {deadline:?}"))?
}

/// Reads one answer that has a `content-length`, as it is; for benchmarks, which have no time to take it apart.
pub async fn read_answer_bytes<'a>(stream: &mut TcpStream, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
    let mut read = 0;
    loop {
        let count = stream.read(&mut buffer[read..]).await?;
        ensure!(count > 0, "the server closed the connection");
        read += count;
        let Some(head) = buffer[..read].windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(&buffer[..head])?;
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        if read >= head + 4 + length.context("no content-length")?.parse::<usize>()? {
            return Ok(&buffer[..read]);
        }
    }
}

async fn read_one(stream: &mut (impl AsyncReadExt + Unpin), unread: &mut Vec<u8>) -> Result<Option<Answer>> {
    let mut chunk = [0; 16 * 1024];
    loop {
        if let Some((answer, length)) = parse(unread, false)? {
            unread.drain(..length);
            return Ok(Some(answer));
        }
        match stream.read(&mut chunk).await {
            // A reset after an answer is an end; before any answer it is a close without one.
            Ok(0) | Err(_) if unread.is_empty() => return Ok(None),
            Ok(0) | Err(_) => return Ok(parse(unread, true)?.map(|(answer, _)| answer)),
            Ok(n) => unread.extend_from_slice(&chunk[..n]),
        }
    }
}

/// The first answer in `bytes` and its length, if all of it is there.
fn parse(bytes: &[u8], ended: bool) -> Result<Option<(Answer, usize)>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        if ended {
            bail!("the answer ends inside its header: {:?}", String::from_utf8_lossy(bytes));
        }
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .with_context(|| format!("not a status line: {head:?}"))?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_string()))
        .collect();
    let start = end + 4;
    let declared = headers.iter().find(|(name, _)| name == "content-length");
    let length = match declared.and_then(|(_, value)| value.parse().ok()) {
        Some(length) if bytes.len() >= start + length => length,
        None if ended => bytes.len() - start,
        _ if ended => bail!("the answer ends inside its body: {head:?}"),
        _ => return Ok(None),
    };
    let body = bytes[start..start + length].to_vec();
    Ok(Some((Answer { status, headers, body }, start + length)))
}
