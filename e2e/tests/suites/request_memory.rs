//! A node whose memory is limited outlives clients that would have more of it, and serves the others meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bitacora_protocol::rpc::{Answer as RpcAnswer, ErrorCode, Failure, Message, Request, put_frame};
use e2e::cluster::{Node, Options};
use e2e::http::{Answer, RawConnection, read_answer};
use e2e::memory_limit::MemoryLimit;
use e2e::rpc::RpcConnection;
use e2e::runner::{Ctx, Test};
use e2e::{tests, wait};
use futures_util::future::join_all;
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Semaphore, watch};

pub fn tests() -> Vec<Test> {
    tests![Servers: two_thousand_greedy_connections]
}

/// What the container of a node may have.
const NODE_BYTES: u64 = 512 << 20;
/// What the node makes of it by default: a quarter.
const REQUEST_MEMORY: u64 = NODE_BYTES / 4;
const HTTP_CONNECTIONS: usize = 1_000;
const RPC_CONNECTIONS: usize = 1_000;
/// The connections are held for so long, their opening included. The node waits longer for the end of a request
/// (REQUEST_TIMEOUT).
const HOLD: Duration = Duration::from_secs(20);
/// All clients have ended so long after that.
const END: Duration = Duration::from_secs(15);
/// Bytes that a request has in all, and that are sent of it.
const BODY: usize = 1_000_000;
const SENT: usize = 990_000;
/// Connections that are being opened at a time.
const OPENING: usize = 64;
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Greedy {
    /// A raw body that does not end.
    Body,
    /// A form that does not end.
    Form,
    /// A batch that is megabytes long, by a client that does not read.
    Batch,
    /// A frame that does not end.
    Frame,
}

impl Greedy {
    fn of(i: usize) -> Greedy {
        match i {
            _ if i >= HTTP_CONNECTIONS => Greedy::Frame,
            _ if i.is_multiple_of(4) => Greedy::Batch,
            _ if i % 4 == 1 => Greedy::Form,
            _ => Greedy::Body,
        }
    }
}

/// What became of a greedy client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// It was told that there is no memory for it.
    Refused,
    /// It was let be until the end.
    Held,
}

/// What all greedy clients share.
struct Load {
    api_port: u16,
    avro_port: u16,
    opening: Semaphore,
    /// True once the hold is over.
    over: watch::Receiver<bool>,
    frame: Vec<u8>,
    batch: Vec<u8>,
}

impl Load {
    fn new(node: &Node, over: watch::Receiver<bool>) -> Load {
        let mut frame = Vec::new();
        let key = "k".repeat(BODY);
        put_frame(&mut frame, SERIAL, |out| Request::GetRecord { key: &key }.encode(out));
        let line = json!({ "op": "get", "key": LARGE_KEY }).to_string() + "\n";
        let batch = line.repeat(4 * BODY / line.len());
        Load {
            api_port: node.api_port,
            avro_port: node.avro_port,
            opening: Semaphore::new(OPENING),
            over,
            frame,
            batch: batch.into_bytes(),
        }
    }

    async fn over(&self) {
        // An error: the test has ended, so the hold has too.
        let _ = self.over.clone().wait_for(|over| *over).await;
    }

    async fn run(&self, i: usize) -> Result<(Greedy, Fate)> {
        let greedy = Greedy::of(i);
        let fate = match greedy {
            Greedy::Body => self.request(i, "text/plain", b"").await,
            Greedy::Form => self.request(i, "application/x-www-form-urlencoded", b"value=").await,
            Greedy::Batch => self.batch().await,
            Greedy::Frame => self.frame().await,
        };
        Ok((greedy, fate.with_context(|| format!("the greedy client {i}, {greedy:?}"))?))
    }

    async fn open(&self) -> Result<RawConnection> {
        let _permit = self.opening.acquire().await?;
        RawConnection::open(self.api_port).await
    }

    /// Sends a write but for its end, and looks at what comes back meanwhile.
    async fn request(&self, i: usize, content_type: &str, begin: &[u8]) -> Result<Fate> {
        let head = format!(
            "POST /rpc?key=greedy-{i} HTTP/1.1\r\nhost: node\r\ncontent-type: {content_type}\r\ncontent-length: {BODY}\r\n\r\n"
        );
        let (mut reader, mut writer) = self.open().await?.split();
        let send = async {
            for part in [head.as_bytes(), begin, &self.letters()[..SENT - begin.len()]] {
                // Who is refused is soon not read from any more.
                if writer.write_all(part).await.is_err() {
                    break;
                }
            }
            self.over().await;
        };
        tokio::select! {
            answer = read_answer(&mut reader, HOLD + END) => {
                check_refusal(&answer?.context("closed without an answer")?)?;
                self.over().await;
                Ok(Fate::Refused)
            }
            () = send => Ok(Fate::Held),
        }
    }

    /// Any text, of at least [`SENT`] bytes.
    fn letters(&self) -> &[u8] {
        &self.frame[self.frame.len() - SENT..]
    }

    async fn batch(&self) -> Result<Fate> {
        let head = format!(
            "POST /rpc/batch HTTP/1.1\r\nhost: node\r\ncontent-type: application/x-ndjson\r\ncontent-length: {}\r\n\r\n",
            self.batch.len()
        );
        let (mut reader, mut writer) = self.open().await?.split();
        let send = async {
            // Who is refused is soon not read from any more.
            let _ = writer.write_all(head.as_bytes()).await;
            let _ = writer.write_all(&self.batch).await;
            self.over().await;
        };
        tokio::select! {
            () = send => {}
            () = self.over() => {}
        }
        let mut begin = vec![0; 4096];
        let read = tokio::time::timeout(PATIENCE, reader.read(&mut begin)).await;
        let length = read.context("no answer to a batch")?.context("reading the answer to a batch")?;
        begin.truncate(length);
        if begin.starts_with(b"HTTP/1.1 200 ") {
            return Ok(Fate::Held);
        }
        let answer = read_answer(&mut begin.chain(reader), PATIENCE).await?;
        check_refusal(&answer.context("closed without an answer")?)?;
        Ok(Fate::Refused)
    }

    async fn frame(&self) -> Result<Fate> {
        let mut connection = {
            let _permit = self.opening.acquire().await?;
            RpcConnection::connect(self.avro_port).await?
        };
        let (begun, rest) = self.frame.split_at(SENT);
        connection.send_bytes(begun).await?;
        self.over().await;
        // A refusal is told where the frame ends.
        connection.send_bytes(rest).await?;
        let (serial, answer) = connection.receive().await?.context("closed without an answer")?;
        ensure!(serial == SERIAL, "the answer has the serial {serial}");
        match RpcAnswer::decode(Message::GetRecord, &answer)? {
            Err(Failure::Declared(error)) if error.code == ErrorCode::NotReady => {
                check_sentence(&error.message)?;
                Ok(Fate::Refused)
            }
            // Nobody has such a key, nor may have it.
            Ok(_) | Err(Failure::Declared(_)) => Ok(Fate::Held),
            other @ Err(_) => anyhow::bail!("an answer to a key of {BODY} bytes: {other:?}"),
        }
    }
}

const SERIAL: i32 = 7;
const SMALL_KEY: &str = "known";
const LARGE_KEY: &str = "large";

fn check_refusal(answer: &Answer) -> Result<()> {
    ensure!(answer.status == 503, "not a 503: {answer}");
    ensure!(answer.header("retry-after") == Some("1"), "no retry-after: {answer}");
    check_sentence(&answer.message())
}

fn check_sentence(message: &str) -> Result<()> {
    ensure!(message.contains("REQUEST_MEMORY"), "a refusal that does not name its setting: {message}");
    Ok(())
}

/// Reads a small record by both interfaces until it is told to end; every read must succeed. Returns how long they took, in
/// microseconds.
async fn small_reads(node: &Node, end: &AtomicBool) -> Result<Histogram<u64>> {
    let mut took = Histogram::new(3)?;
    let mut rpc = RpcConnection::connect(node.avro_port).await?;
    let mut note = |began: Instant| took.record(began.elapsed().as_micros() as u64);
    while !end.load(Ordering::Relaxed) {
        let began = Instant::now();
        let answer = node.api().get(SMALL_KEY).await.context("a small read by HTTP")?;
        ensure!(answer.value().as_deref() == Some("value"), "a small read by HTTP: {answer}");
        note(began)?;
        let began = Instant::now();
        let value = rpc.value(SMALL_KEY).await.context("a small read by RPC")?;
        ensure!(value == Ok(Some("value".to_string())), "a small read by RPC: {value:?}");
        note(began)?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(took)
}

/// Two thousand connections are more than a process may have open by default.
fn allow_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("a soft limit may be raised to the hard one");
}

async fn two_thousand_greedy_connections(ctx: Ctx) -> Result<()> {
    allow_open_files();
    // Before the cluster, so that it is dropped after it.
    let limit = MemoryLimit::new(NODE_BYTES);
    let mut cluster = ctx.no_nodes(Options::new().env("CACHE_BYTES", "32MiB")).await?;
    let node = cluster.add().await?;
    match &limit {
        Some(limit) => {
            println!("request_memory: the node is in a control group of {} MiB", NODE_BYTES >> 20);
            node.launch_by(limit.launcher());
        }
        None => {
            println!(
                "request_memory: no control group can be made here, so the node's memory is only watched"
            );
            node.set_env("REQUEST_MEMORY", REQUEST_MEMORY);
        }
    }
    node.spawn()?;
    let node = &cluster.nodes[0];
    node.ready().await;
    let metric = async |name: &str| node.api().metric(name).await;
    assert_eq!(metric("bitacora_request_memory_limit_bytes").await? as u64, REQUEST_MEMORY);
    node.api().set(SMALL_KEY, "value").await?.expect(200);
    node.api().set(LARGE_KEY, &"v".repeat(8_000)).await?.expect(200);

    let began = Instant::now();
    let (end_hold, over) = watch::channel(false);
    let load = Arc::new(Load::new(node, over));
    let clients = (0..HTTP_CONNECTIONS + RPC_CONNECTIONS).map(|i| {
        let load = load.clone();
        tokio::spawn(async move { load.run(i).await })
    });
    let clients: Vec<_> = clients.collect();
    let end_reads = AtomicBool::new(false);
    let greed = async {
        tokio::time::sleep(HOLD).await;
        let open = metric("bitacora_connections").await?;
        end_hold.send_replace(true);
        let ended = tokio::time::timeout(END, join_all(clients)).await;
        end_reads.store(true, Ordering::Relaxed);
        let fates: Result<Vec<(Greedy, Fate)>> =
            ended.context("the greedy clients do not end")?.into_iter().map(|ended| ended?).collect();
        anyhow::Ok((fates?, open, began.elapsed()))
    };
    let ((fates, open, took), reads) = tokio::try_join!(greed, small_reads(node, &end_reads))?;

    let refused = |greedy| fates.iter().filter(|fate| **fate == (greedy, Fate::Refused)).count();
    let refused = [Greedy::Body, Greedy::Form, Greedy::Batch, Greedy::Frame].map(refused);
    let peak = node.peak_resident_bytes();
    println!(
        "request_memory: {} connections in {:.1} s, {open} open at once, {} refused {refused:?}, {} small reads, p50 {:.1} ms, p99 {:.1} ms, peak {} MiB resident",
        fates.len(),
        took.as_secs_f64(),
        refused.iter().sum::<usize>(),
        reads.len(),
        reads.value_at_quantile(0.5) as f64 / 1e3,
        reads.value_at_quantile(0.99) as f64 / 1e3,
        peak.map_or_else(|| "?".to_string(), |bytes| (bytes >> 20).to_string()),
    );
    // Each of them wants a megabyte or two, of a hundred and twenty-eight.
    let total: usize = refused.iter().sum();
    assert!(total > fates.len() / 2, "only {total} were refused: {refused:?}");
    assert!(peak.is_none_or(|bytes| bytes < NODE_BYTES), "the node had {peak:?} bytes");
    assert!(node.is_running(), "it ended: {}", node.log_tail(10));
    assert!(reads.len() > 100, "only {} small reads", reads.len());
    wait::until("the memory is given back", PATIENCE, || async {
        let used = metric("bitacora_request_memory_bytes").await.map_err(|error| format!("{error:#}"))?;
        if used == 0.0 { Ok(()) } else { Err(format!("{used} bytes")) }
    })
    .await;
    node.api().set(SMALL_KEY, &"v".repeat(BODY)).await?.expect(200);
    Ok(())
}
