//! The load generator: one thread, many connections, one kind of call over and over, for a time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bitacora_protocol::rpc::{FrameLimits, FrameReader, Request, put_frame};
use bitacora_protocol::tls::ClientTls;
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::child::Figures;
use super::{key, value};
use crate::rpc::shake_hands;

/// A call, and the protocol that it is made over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    HttpGet,
    HttpSet,
    /// Page after page of a scan of everything.
    HttpScan,
    AvroGet,
    AvroSet,
    RedisGet,
    RedisSet,
}

/// A load. Each connection sends `depth` calls in one write, and the next ones when all are answered, as `redis-benchmark -P` does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    pub call: Call,
    pub port: u16,
    pub connections: usize,
    pub depth: usize,
    /// Keys are chosen by chance from so many.
    pub keys: u64,
    pub value_bytes: usize,
    pub seconds: f64,
    /// Each connection rests so long between its calls, in ms; 0 for never.
    pub rest_ms: u64,
    /// Every key once, in turn, instead of keys by chance for some seconds.
    pub once: bool,
    /// The authority of the server's certificate, in PEM, if the calls are made over TLS.
    pub authority: Option<String>,
    /// What calls over HTTP show, if the server asks for a token.
    pub token: Option<String>,
}

impl Load {
    /// Of a call with values of 100 bytes, unpipelined and without rests.
    pub fn new(call: Call, port: u16, connections: usize, keys: u64, seconds: f64) -> Load {
        Load {
            call,
            port,
            connections,
            depth: 1,
            keys,
            value_bytes: 100,
            seconds,
            rest_ms: 0,
            once: false,
            authority: None,
            token: None,
        }
    }

    pub(super) async fn run(&self) -> Result<Figures> {
        let began = Instant::now();
        let callers = (0..self.connections).map(|number| Caller::run(self, number as u64, began));
        let callers = try_join_all(callers).await?;
        let seconds = began.elapsed().as_secs_f64();
        let mut latencies = Histogram::<u64>::new(3)?;
        let mut calls = 0;
        for (count, of_one) in callers {
            calls += count;
            latencies.add(of_one)?;
        }
        let quantile = |part| latencies.value_at_quantile(part) as f64 / 1000.0;
        Ok(Figures { calls: calls as f64, seconds, p50: quantile(0.5), p99: quantile(0.99), cpu: 0.0 })
    }
}

/// Idle connections, each of which has made one call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hold {
    pub port: u16,
    pub connections: usize,
}

impl Hold {
    pub(super) async fn run(&self) -> Result<Figures> {
        let load = Load::new(Call::HttpGet, self.port, 1, 1, 0.0);
        let mut held = Vec::new();
        for _ in 0..self.connections {
            let mut caller = Caller::open(&load, 0).await?;
            caller.put_call(0);
            caller.call().await?;
            held.push(caller);
        }
        println!("connected");
        std::future::pending::<()>().await;
        bail!("{} connections are held for ever", held.len())
    }
}

/// A connection, over TLS or not.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

struct Caller<'a> {
    load: &'a Load,
    stream: Box<dyn Stream>,
    random: u64,
    out: Vec<u8>,
    input: Vec<u8>,
    /// Where a scan goes on.
    cursor: Option<String>,
    value: String,
}

impl<'a> Caller<'a> {
    async fn open(load: &'a Load, number: u64) -> Result<Caller<'a>> {
        let stream = TcpStream::connect(("127.0.0.1", load.port)).await.context("connecting")?;
        stream.set_nodelay(true)?;
        let mut stream: Box<dyn Stream> = match &load.authority {
            None => Box::new(stream),
            Some(authority) => {
                let tls = ClientTls::new(authority.as_bytes())?;
                Box::new(tls.connect("127.0.0.1", stream).await.context("shaking hands over TLS")?)
            }
        };
        if matches!(load.call, Call::AvroGet | Call::AvroSet) {
            shake_hands(&mut stream).await?;
        }
        let (random, value) = (number * 2_654_435_761 + 1, value(load.value_bytes));
        Ok(Caller { load, stream, random, out: Vec::new(), input: vec![0; 64 * 1024], cursor: None, value })
    }

    /// Returns how many calls were made, and how long each write of them took until all were answered, in ns.
    async fn run(load: &'a Load, number: u64, began: Instant) -> Result<(u64, Histogram<u64>)> {
        let mut caller = Caller::open(load, number).await?;
        let (mut latencies, mut calls) = (Histogram::new(3)?, 0);
        let mut in_turn = (number..load.keys).step_by(load.connections);
        loop {
            caller.out.clear();
            let mut put = 0;
            while put < load.depth {
                let number = if load.once { in_turn.next() } else { Some(caller.any_key()) };
                let Some(number) = number else { break };
                caller.put_call(number);
                put += 1;
            }
            if put == 0 || (!load.once && began.elapsed().as_secs_f64() >= load.seconds) {
                return Ok((calls, latencies));
            }
            let sent = Instant::now();
            caller.call_many(put).await?;
            latencies.record(sent.elapsed().as_nanos() as u64)?;
            calls += put as u64;
            if load.rest_ms > 0 {
                tokio::time::sleep(Duration::from_millis(load.rest_ms)).await;
            }
        }
    }

    fn any_key(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % self.load.keys
    }

    /// Appends a call to what is sent next.
    fn put_call(&mut self, number: u64) {
        let (out, key, value) = (&mut self.out, key(number), &self.value);
        let serial = number as i32;
        match self.load.call {
            Call::HttpGet => {
                out.extend_from_slice(b"GET /rpc?key=");
                out.extend_from_slice(key.as_bytes());
                out.extend_from_slice(b" HTTP/1.1\r\nhost: 127.0.0.1\r\n");
                if let Some(token) = &self.load.token {
                    out.extend_from_slice(b"authorization: Bearer ");
                    out.extend_from_slice(token.as_bytes());
                    out.extend_from_slice(b"\r\n");
                }
                out.extend_from_slice(b"\r\n");
            }
            Call::HttpSet => {
                let bytes = value.len();
                let head = format!(
                    "POST /rpc?key={key} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: text/plain\r\ncontent-length: {bytes}\r\n\r\n"
                );
                out.extend_from_slice(head.as_bytes());
                out.extend_from_slice(value.as_bytes());
            }
            Call::HttpScan => {
                let cursor =
                    self.cursor.as_ref().map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
                let head = format!("GET /rpc/scan?limit=10000{cursor} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n");
                out.extend_from_slice(head.as_bytes());
            }
            Call::AvroGet => put_frame(out, serial, |out| Request::GetValue { key: &key }.encode(out)),
            Call::AvroSet => put_frame(out, serial, |out| Request::SetValue { key: &key, value }.encode(out)),
            Call::RedisGet => {
                out.extend_from_slice(format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()).as_bytes());
            }
            Call::RedisSet => {
                let (key_bytes, value_bytes) = (key.len(), value.len());
                let text =
                    format!("*3\r\n$3\r\nSET\r\n${key_bytes}\r\n{key}\r\n${value_bytes}\r\n{value}\r\n");
                out.extend_from_slice(text.as_bytes());
            }
        }
    }

    async fn call(&mut self) -> Result<()> {
        self.call_many(1).await
    }

    /// Sends what was put, and reads so many answers.
    async fn call_many(&mut self, count: usize) -> Result<()> {
        self.stream.write_all(&self.out).await?;
        // TLS may hold the end of it back otherwise.
        self.stream.flush().await?;
        let bytes = self.load.value_bytes;
        match self.load.call {
            Call::HttpGet | Call::HttpSet => self.read_http().await.map(drop),
            Call::HttpScan => self.read_page().await,
            // All answers have the same size, so it is enough to count bytes, and to look at the first.
            Call::AvroGet => {
                ensure!((64..8192).contains(&bytes), "the value's length takes two bytes");
                let size = 12 + 3 + 2 + bytes;
                self.read_bytes(size * count, (size - 1, b'v')).await
            }
            Call::RedisGet => {
                let size = 1 + bytes.to_string().len() + 2 + bytes + 2;
                self.read_bytes(size * count, (size - 3, b'v')).await
            }
            Call::RedisSet => self.read_bytes("+OK\r\n".len() * count, (0, b'+')).await,
            Call::AvroSet => self.read_frames(count).await,
        }
    }

    async fn read_bytes(&mut self, wanted: usize, (at, byte): (usize, u8)) -> Result<()> {
        let mut filled = 0;
        self.input.resize(self.input.len().max(wanted), 0);
        while filled < wanted {
            let read = self.stream.read(&mut self.input[filled..]).await?;
            ensure!(read > 0, "the server closed the connection");
            filled += read;
        }
        let first = String::from_utf8_lossy(&self.input[..filled.min(200)]);
        ensure!(filled == wanted && self.input[at] == byte, "another answer: {first}");
        Ok(())
    }

    async fn read_frames(&mut self, count: usize) -> Result<()> {
        let mut reader = FrameReader::new(FrameLimits { bytes: 1 << 20, buffers: 16 });
        let (mut input, mut scratch, mut used, mut seen) = (Vec::new(), Vec::new(), 0, 0);
        while seen < count {
            ensure!(self.stream.read_buf(&mut input).await? > 0, "the node closed the connection");
            while let Some(frame) = reader.next(&input[used..], &mut scratch)? {
                used += frame.length;
                seen += 1;
                // Metadata, of which there is none, and then whether it is a failure.
                ensure!(frame.message.get(1) == Some(&0), "a call failed");
            }
        }
        Ok(())
    }

    /// Reads an answer that is a 200 with a length; returns where its body is.
    async fn read_http(&mut self) -> Result<std::ops::Range<usize>> {
        let mut filled = 0;
        loop {
            if filled == self.input.len() {
                self.input.resize(2 * filled, 0);
            }
            let read = self.stream.read(&mut self.input[filled..]).await?;
            ensure!(read > 0, "the server closed the connection");
            filled += read;
            let Some(head) = memchr::memmem::find(&self.input[..filled], b"\r\n\r\n") else { continue };
            let body = head + 4..head + 4 + content_length(&self.input[..head])?;
            if filled >= body.end {
                let text = String::from_utf8_lossy(&self.input[..filled.min(300)]);
                ensure!(self.input.starts_with(b"HTTP/1.1 200"), "{text}");
                return Ok(body);
            }
        }
    }

    async fn read_page(&mut self) -> Result<()> {
        let body = self.read_http().await?;
        let page: serde_json::Value = serde_json::from_slice(&self.input[body])?;
        self.cursor = page["cursor"].as_str().map(crate::http::encode);
        Ok(())
    }
}

/// What a head says of its body.
fn content_length(head: &[u8]) -> Result<usize> {
    const NAME: &[u8] = b"content-length:";
    let mut lines = head.split(|byte| *byte == b'\n');
    let line = lines.find(|line| line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME));
    let line = line.with_context(|| format!("no content-length: {}", String::from_utf8_lossy(head)))?;
    Ok(std::str::from_utf8(&line[NAME.len()..])?.trim().parse()?)
}
