//! The load generator, a process of its own with one thread: many callers, each with one read under way, for one round.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use bitacora_protocol::rpc::{Answer, FrameLimits, FrameReader, Request, put_frame};
use bitacora_protocol::{Consistency, ReadOptions};
use e2e::http::read_answer_bytes;
use e2e::rpc::{good, shake_hands};
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const ROUND: Duration = Duration::from_secs(3);
pub const CALLERS: usize = 256;
/// Of the RPC; each carries the calls of its share of the callers. Over HTTP each caller has a connection.
pub const RPC_CONNECTIONS: usize = 8;
pub const KEYS: u32 = 10_000;

pub fn key(number: u32) -> String {
    format!("key:{number:012}")
}

/// Prints the calls, the seconds that they took, and their p50 and p99 in µs.
pub fn main(protocol: &str, level: &str, port: &str) -> ExitCode {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let level = level.parse().map_err(anyhow::Error::msg)?;
        runtime.block_on(load(protocol, level, port.parse()?))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn load(protocol: &str, level: Consistency, port: u16) -> Result<()> {
    let started = Instant::now();
    let all = match protocol {
        "rpc" => try_join_all((0..RPC_CONNECTIONS).map(|_| rpc_callers(port, level, started))).await?,
        "http" => try_join_all((0..CALLERS).map(|_| http_caller(port, level, started))).await?,
        other => bail!("there is no protocol {other:?}"),
    };
    let took = started.elapsed().as_secs_f64();
    let mut latencies = Histogram::<u64>::new(3)?;
    for one in all {
        latencies.add(one)?;
    }
    let (p50, p99) = (latencies.value_at_quantile(0.5), latencies.value_at_quantile(0.99));
    println!("{} {took} {p50} {p99}", latencies.len());
    Ok(())
}

/// The callers of one connection. What is answered together is asked together again.
async fn rpc_callers(port: u16, level: Consistency, started: Instant) -> Result<Histogram<u64>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    shake_hands(&mut stream).await?;
    let mut latencies = Histogram::new(3)?;
    let mut reader = FrameReader::new(FrameLimits { bytes: 1 << 20, buffers: 16 });
    let (mut out, mut input, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
    // By the serial of the call: each caller has one of its own.
    let mut sent = vec![Instant::now(); CALLERS / RPC_CONNECTIONS];
    let mut waiting = sent.len();
    for serial in 0..sent.len() {
        put_read(&mut out, serial as i32, level);
    }
    stream.write_all(&out).await?;
    while waiting > 0 {
        ensure!(stream.read_buf(&mut input).await? > 0, "the node closed the connection");
        out.clear();
        let mut used = 0;
        while let Some(frame) = reader.next(&input[used..], &mut scratch)? {
            used += frame.length;
            let Answer::Read(read) = good(request("", level).message(), frame.message)? else {
                bail!("another answer")
            };
            ensure!(read.record.is_some(), "a key is not there");
            let sent = &mut sent[frame.serial as usize];
            let now = Instant::now();
            latencies.record((now - *sent).as_micros() as u64)?;
            if now - started < ROUND {
                *sent = now;
                put_read(&mut out, frame.serial, level);
            } else {
                waiting -= 1;
            }
        }
        input.drain(..used);
        stream.write_all(&out).await?;
    }
    Ok(latencies)
}

fn put_read(out: &mut Vec<u8>, serial: i32, level: Consistency) {
    let key = key(fastrand::u32(0..KEYS));
    put_frame(out, serial, |out| request(&key, level).encode(out));
}

fn request(key: &str, level: Consistency) -> Request<'_> {
    match level {
        Consistency::Eventual => Request::GetRecord { key },
        consistency => {
            Request::ReadRecord { key, read: ReadOptions { consistency, ..ReadOptions::default() } }
        }
    }
}

async fn http_caller(port: u16, level: Consistency, started: Instant) -> Result<Histogram<u64>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let (mut latencies, mut buffer) = (Histogram::new(3)?, vec![0; 4096]);
    let level = match level {
        Consistency::Eventual => String::new(),
        level => format!("&consistency={level}"),
    };
    while started.elapsed() < ROUND {
        let key = key(fastrand::u32(0..KEYS));
        let request = format!("GET /rpc?key={key}{level} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n");
        let sent = Instant::now();
        stream.write_all(request.as_bytes()).await?;
        let answer = read_answer_bytes(&mut stream, &mut buffer).await?;
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(answer));
        latencies.record(sent.elapsed().as_micros() as u64)?;
    }
    Ok(latencies)
}
