//! A reader of Server-Sent Events that sees each byte, so that a connection can end in the middle of an event.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;

/// Longer than a node is silent: it says something every 5 s.
const SILENCE: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    pub event: String,
    pub id: String,
    pub data: String,
}

/// Takes bytes apart, wherever they were cut.
#[derive(Debug, Default)]
pub struct Parser {
    unread: Vec<u8>,
}

impl Parser {
    pub fn push(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// The next whole event; comments and settings are passed over.
    ///
    /// # Errors
    /// What is no stream of events.
    pub fn frame(&mut self) -> Result<Option<Frame>> {
        while let Some(end) = self.unread.windows(2).position(|window| window == b"\n\n") {
            let block: Vec<u8> = self.unread.drain(..end + 2).collect();
            let block = String::from_utf8(block).context("an event is not UTF-8")?;
            let mut frame = Frame::default();
            for line in block.lines().filter(|line| !line.is_empty()) {
                match line.split_once(':') {
                    Some(("event", value)) => frame.event = value.trim_start().to_owned(),
                    Some(("id", value)) => frame.id = value.trim_start().to_owned(),
                    Some(("data", value)) => frame.data = value.trim_start().to_owned(),
                    Some(("retry" | "", _)) => {}
                    _ => bail!("no line of an event: {line:?}"),
                }
            }
            if !frame.data.is_empty() {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// Whether something has begun that is not whole.
    pub fn is_inside(&self) -> bool {
        !self.unread.is_empty()
    }
}

/// A watch, on a connection of its own, which closes when this is dropped.
pub struct Stream {
    response: reqwest::Response,
    pub parser: Parser,
}

impl Stream {
    /// `None` if the node is not there, or does not take watchers now.
    ///
    /// # Errors
    /// A node that says that the request is wrong.
    pub async fn open(port: u16, query: &str, token: Option<&str>) -> Result<Option<Stream>> {
        let client = crate::http::client_builder().connect_timeout(CONNECT).read_timeout(SILENCE);
        let client = client.build().context("an HTTP client")?;
        let mut request = client.get(format!("http://127.0.0.1:{port}/watch?{query}"));
        if let Some(token) = token {
            request = request.header("last-event-id", token);
        }
        let Ok(response) = request.send().await else { return Ok(None) };
        match response.status().as_u16() {
            200 => Ok(Some(Stream { response, parser: Parser::default() })),
            503 => Ok(None),
            status => bail!("{status} to a watch: {}", response.text().await.unwrap_or_default()),
        }
    }

    /// What arrived next; `None` at the end, however it came.
    pub async fn chunk(&mut self) -> Option<Bytes> {
        self.response.chunk().await.ok().flatten()
    }
}
