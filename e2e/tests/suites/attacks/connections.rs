//! More connections than a node takes, connections on which nothing comes, and heads and frames that come byte by byte.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bitacora_node::process::open_files;
use e2e::cluster::{Cluster, Node, Options};
use e2e::http::RawConnection;
use e2e::rpc::RpcConnection;
use e2e::runner::Ctx;
use e2e::wait;
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};

use super::{PATIENCE, ask, told};

const FLOOD: usize = 10_000;
/// `MAX_CONNECTIONS` by default.
const TAKEN: usize = 4096;
/// What the node has open beside connections, and the other test that may run in this process.
const OTHER_FILES: usize = 4500;
/// A connection that says nothing takes less, buffers and task.
const BYTES_OF_ONE: u64 = 48 << 10;

/// Raises the limit of open files as far as it goes, for this process and those that it starts; returns how many there may be.
fn allow_open_files() -> usize {
    open_files::raise_limit().map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX))
}

/// Connections that say next to nothing and stay.
struct Flood {
    opened: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
    /// Why the last one could not be opened that could not.
    failed: Arc<Mutex<Option<std::io::Error>>>,
    began: Instant,
    connections: JoinSet<()>,
}

impl Flood {
    /// Each sends this and no more.
    fn start(port: u16, count: usize, first: &'static [u8]) -> Flood {
        let (opened, closed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let failed = Arc::<Mutex<Option<std::io::Error>>>::default();
        let began = Instant::now();
        let mut connections = JoinSet::new();
        for _ in 0..count {
            let (opened, closed, failed) = (Arc::clone(&opened), Arc::clone(&closed), Arc::clone(&failed));
            connections.spawn(async move {
                let mut stream = match TcpStream::connect(("127.0.0.1", port)).await {
                    Ok(stream) => stream,
                    Err(error) => {
                        return *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    }
                };
                opened.fetch_add(1, Ordering::Relaxed);
                let _ = stream.write_all(first).await;
                // Nothing comes but the end.
                let _ = stream.read(&mut [0]).await;
                closed.fetch_add(1, Ordering::Relaxed);
            });
        }
        Flood { opened, closed, failed, began, connections }
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    fn closed(&self) -> usize {
        self.closed.load(Ordering::Relaxed)
    }

    /// How far it is.
    fn seen(&self) -> String {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        format!("{} opened, {} closed, {failed:?} failed", self.opened(), self.closed())
    }

    async fn leave(mut self) {
        self.connections.shutdown().await;
    }
}

/// Somebody who was connected before, by both interfaces, and reads what is there.
struct Known {
    http: RawConnection,
    rpc: RpcConnection,
}

impl Known {
    async fn connect(node: &Node) -> Result<Known> {
        Ok(Known {
            http: RawConnection::open(node.api_port).await?,
            rpc: RpcConnection::connect(node.avro_port).await?,
        })
    }

    /// How many connections of an interface the node has.
    async fn connections(&mut self, interface: &str) -> Result<usize> {
        let metrics = ask(&mut self.http, "GET /metrics", None).await?.text();
        let series = format!("bitacora_connections{{interface=\"{interface}\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok());
        value.with_context(|| format!("no {series}in {metrics}"))
    }

    /// Waits until the node has so many connections of an interface.
    async fn has_connections(&mut self, interface: &str, count: usize) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let open = self.connections(interface).await?;
            if open == count {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{open} connections of {interface}, not {count}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Reads once by each interface, and notes how long that took, in µs.
    async fn read(&mut self, took: &mut Histogram<u64>) -> Result<()> {
        let began = Instant::now();
        let answer = ask(&mut self.http, "GET /rpc?key=canary", None).await?;
        ensure!(answer.value().as_deref() == Some("alive"), "{answer}");
        took.record(began.elapsed().as_micros() as u64)?;
        let began = Instant::now();
        let value = self.rpc.value("canary").await?;
        ensure!(value == Ok(Some("alive".to_owned())), "{value:?}");
        took.record(began.elapsed().as_micros() as u64)?;
        Ok(())
    }

    /// Reads so often. All must be answered.
    async fn reads(&mut self, count: usize) -> Result<String> {
        let mut took = Histogram::new(3)?;
        for _ in 0..count {
            self.read(&mut took).await?;
        }
        Ok(in_brief(&took))
    }
}

fn in_brief(took: &Histogram<u64>) -> String {
    let ms = |quantile| took.value_at_quantile(quantile) as f64 / 1000.0;
    format!("{} reads were all answered, p50 {:.2} ms, p99 {:.2} ms", took.len(), ms(0.5), ms(0.99))
}

/// Somebody who connects now, and when they are answered.
fn newcomer(port: u16) -> JoinHandle<Result<Instant>> {
    tokio::spawn(async move {
        let mut connection = RawConnection::open(port).await?;
        let answer = ask(&mut connection, "GET /health", None).await?;
        ensure!(answer.status == 200, "{answer}");
        Ok(Instant::now())
    })
}

async fn node_with_canary(ctx: &Ctx, options: Options) -> Result<Cluster> {
    allow_open_files();
    let cluster = ctx.cluster_with(1, options).await?;
    cluster.nodes[0].api().set("canary", "alive").await?.expect(200);
    cluster.nodes[0].has("canary", Some("alive")).await;
    Ok(cluster)
}

fn mib(node: &Node) -> Result<u64> {
    let (resident, _) = node.resident_bytes().context("Linux tells")?;
    Ok(resident >> 20)
}

pub async fn ten_thousand_connections_are_bounded(ctx: Ctx) -> Result<()> {
    let count = FLOOD.min(allow_open_files().saturating_sub(OTHER_FILES));
    ensure!(count > 2 * TAKEN, "the limit of open files leaves {count} connections, too few for this test");
    // Nobody is given up for having been silent: that is another test.
    let cluster =
        node_with_canary(&ctx, Options::new().env("REQUEST_TIMEOUT", "10m").env("IDLE_TIMEOUT", "10m"))
            .await?;
    let node = &cluster.nodes[0];
    let mut known = Known::connect(node).await?;
    let alone = known.reads(500).await?;
    let before = mib(node)?;

    // Of connections that have sent nothing, the system forgets those for which it has no room, and their clients do not notice.
    let flood = Flood::start(node.api_port, count, b"G");
    known.has_connections("http", TAKEN).await.with_context(|| flood.seen())?;
    let opening = flood.began.elapsed();
    let waiting = newcomer(node.api_port);
    let reads = known.reads(500).await?;
    known.has_connections("http", TAKEN).await?;
    ensure!(!waiting.is_finished(), "a new caller was answered beside {TAKEN} connections");
    let (opened, during) = (flood.opened(), mib(node)?);
    ensure!(flood.closed() == 0, "{} were closed by the node", flood.closed());
    let left = Instant::now();
    flood.leave().await;
    let answered =
        tokio::time::timeout(PATIENCE, waiting).await.context("no answer once they have left")???;
    let after = mib(node)?;
    told(
        &format!("{count} connections to the HTTP port, each with one byte"),
        &format!(
            "{TAKEN} are taken ({opening:.1?} for all of them), the others wait in the system's queue ({} of them look open to their clients); who was connected before: {reads} (alone: {alone}); a new caller gets no answer until they leave, \
             and one {:.1?} after; the node's memory {before} MiB before, {during} MiB meanwhile, {after} MiB after",
            opened.saturating_sub(TAKEN - 1),
            answered.saturating_duration_since(left),
        ),
    );
    let grown = during.saturating_sub(before) << 20;
    ensure!(grown < TAKEN as u64 * BYTES_OF_ONE, "{grown} bytes more for {TAKEN} connections");

    let before = mib(node)?;
    let flood = Flood::start(node.avro_port, count, b"\0");
    known.has_connections("rpc", TAKEN).await.with_context(|| flood.seen())?;
    // The last of them may still wait for the system to send their byte again: it had no room for so many at once.
    let most = (count - TAKEN) / 2;
    wait::until("most of those beyond the limit are closed", PATIENCE, || async {
        if flood.closed() >= most { Ok(()) } else { Err(flood.seen()) }
    })
    .await;
    let opening = flood.began.elapsed();
    RpcConnection::open(node.avro_port).await?.closed().await.context("a new caller")?;
    let reads = known.reads(500).await?;
    known.has_connections("rpc", TAKEN).await?;
    let (during, refused) = (mib(node)?, flood.closed());
    let left = Instant::now();
    flood.leave().await;
    wait::until("a new caller gets in", PATIENCE, || async {
        RpcConnection::connect(node.avro_port).await.map(drop).map_err(|error| format!("{error:#}"))
    })
    .await;
    known.reads(1).await?;
    told(
        &format!("{count} connections to the RPC port, each with one byte"),
        &format!(
            "{TAKEN} are taken, those beyond are closed as soon as they are seen ({refused} of them by now, most within {opening:.1?}); who was connected before: {reads}; \
             a new caller is closed at once until they leave, and gets in {:.1?} after; the node's memory {before} MiB \
             before, {during} MiB meanwhile, {} MiB after",
            left.elapsed(),
            mib(node)?,
        ),
    );
    let grown = during.saturating_sub(before) << 20;
    ensure!(grown < TAKEN as u64 * BYTES_OF_ONE, "{grown} bytes more for {TAKEN} connections");
    cluster.nodes[0].api().set("canary", "still").await?.expect(200);
    cluster.nodes[0].has("canary", Some("still")).await;
    Ok(())
}

/// Callers of one port would otherwise use up the files that the node needs for the other, and for its brokers.
pub async fn a_low_limit_of_open_files_is_raised(ctx: Ctx) -> Result<()> {
    const COUNT: usize = 2000;
    allow_open_files();
    let mut cluster =
        ctx.no_nodes(Options::new().env("REQUEST_TIMEOUT", "10m").env("IDLE_TIMEOUT", "10m")).await?;
    let node = cluster.add().await?;
    node.launch_by(["sh", "-c", "ulimit -Sn 1024 && exec \"$@\"", "sh"].map(str::to_owned).to_vec());
    node.spawn()?;
    node.ready().await;
    let mut known = Known::connect(node).await?;
    let flood = Flood::start(node.api_port, COUNT, b"G");
    wait::until("they are taken", PATIENCE, || async {
        let mut other = RpcConnection::connect(node.avro_port).await.map_err(|error| format!("{error:#}"))?;
        other.value("nothing").await.map(drop).map_err(|error| format!("{error:#}"))?;
        if flood.opened() == COUNT { Ok(()) } else { Err(flood.seen()) }
    })
    .await;
    // Its own question, and perhaps those that asked whether it is ready.
    let end = Instant::now() + PATIENCE;
    while known.connections("http").await? <= COUNT {
        ensure!(Instant::now() < end, "{} connections are taken", known.connections("http").await?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(!node.log_tail(1000).contains("no connection could be accepted"), "it has run out of files");
    told(
        &format!(
            "{COUNT} connections to the HTTP port of a node that was started with a limit of 1024 open files"
        ),
        "all are taken, callers of the RPC port get in meanwhile: the node raises its limit when it starts",
    );
    flood.leave().await;
    Ok(())
}

/// After so long a silent connection is given up, in the tests that wait for it.
const GIVEN_UP: Duration = Duration::from_secs(3);

pub async fn idle_connections_shut_others_out_until_they_are_given_up(ctx: Ctx) -> Result<()> {
    const LIMIT: usize = 64;
    let options = Options::new()
        .env("MAX_CONNECTIONS", LIMIT)
        .env("IDLE_TIMEOUT", GIVEN_UP.as_millis())
        .env("REQUEST_TIMEOUT", GIVEN_UP.as_millis());
    let cluster = node_with_canary(&ctx, options).await?;
    let node = &cluster.nodes[0];
    // The wait for the canary was by connections of its own, of which some may be open.
    let flood = Flood::start(node.api_port, LIMIT, b"");
    wait::until("all are open", PATIENCE, || async {
        if flood.opened() == LIMIT { Ok(()) } else { Err(flood.opened().to_string()) }
    })
    .await;
    let began = Instant::now();
    let answered =
        tokio::time::timeout(PATIENCE, newcomer(node.api_port)).await.context("shut out for ever")???;
    // As seen from the first of them: its time began no sooner.
    let since = answered.saturating_duration_since(flood.began);
    ensure!(
        since >= GIVEN_UP,
        "a new caller was answered {since:?} after {LIMIT} had come, of {LIMIT} at most"
    );
    let waited = answered.saturating_duration_since(began);
    drop(flood);

    let flood = Flood::start(node.avro_port, LIMIT, b"");
    wait::until("all are open", PATIENCE, || async {
        if flood.opened() == LIMIT { Ok(()) } else { Err(flood.opened().to_string()) }
    })
    .await;
    let mut refused = 0;
    let let_in = wait::try_until(PATIENCE, || {
        refused += 1;
        let port = node.avro_port;
        async move { RpcConnection::connect(port).await.map(drop).map_err(|error| format!("{error:#}")) }
    });
    let_in.await.map_err(anyhow::Error::msg).context("a new caller is shut out for ever")?;
    let since = flood.began.elapsed();
    ensure!(since >= GIVEN_UP, "a new caller got in {since:?} after {LIMIT} had come, of {LIMIT} at most");
    told(
        "silent connections that do not leave, as many as a node takes",
        &format!(
            "with {LIMIT} and a time of {GIVEN_UP:?}: a new caller of HTTP waits and is answered {waited:.1?} later, once \
             they are given up (IDLE_TIMEOUT, 2 min by default); one of the RPC is closed at once, {} times, and gets in \
             {since:.1?} after they had come (REQUEST_TIMEOUT, 30 s by default, without a handshake; IDLE_TIMEOUT with one)",
            refused - 1,
        ),
    );
    Ok(())
}

/// How long a connection on which a byte comes now and then is endured, and what the node said before it closed.
async fn dribble(port: u16, first: &'static [u8], byte: &'static [u8]) -> Result<(Duration, bool)> {
    let began = Instant::now();
    let (mut reader, mut writer) = TcpStream::connect(("127.0.0.1", port)).await?.into_split();
    let send = async {
        let _ = writer.write_all(first).await;
        loop {
            tokio::time::sleep(Duration::from_millis(250)).await;
            if writer.write_all(byte).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut received = Vec::new();
    let receive = async {
        let _ = reader.read_to_end(&mut received).await;
    };
    let ended = async {
        tokio::select! { () = send => {} () = receive => {} }
    };
    tokio::time::timeout(PATIENCE, ended).await.context("a slow client is endured for ever")?;
    Ok((began.elapsed(), !received.is_empty()))
}

pub async fn slow_heads_and_frames_are_given_up(ctx: Ctx) -> Result<()> {
    const SLOW: usize = 500;
    let options =
        Options::new().env("IDLE_TIMEOUT", GIVEN_UP.as_millis()).env("REQUEST_TIMEOUT", GIVEN_UP.as_millis());
    let cluster = node_with_canary(&ctx, options).await?;
    let node = &cluster.nodes[0];
    let mut known = Known::connect(node).await?;
    let alone = known.reads(300).await?;
    let before = mib(node)?;
    // A head of HTTP without an end, and the head of a frame of the RPC, which has twelve bytes, and then its buffer.
    let kinds: [(&str, u16, &[u8], &[u8]); 2] = [
        ("heads of HTTP", node.api_port, b"GET /rpc?key=canary HTTP/1.1\r\nHost: node\r\nX-Slow: a", b"a"),
        ("frames of the RPC", node.avro_port, &[0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0], b"a"),
    ];
    for (what, port, first, byte) in kinds {
        let ended = AtomicBool::new(false);
        let reads = async {
            let mut took = Histogram::new(3)?;
            while !ended.load(Ordering::Relaxed) {
                known.read(&mut took).await?;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            anyhow::Ok(took)
        };
        let slow = async {
            let all = (0..SLOW).map(|_| dribble(port, first, byte));
            let all = futures_util::future::try_join_all(all).await;
            ended.store(true, Ordering::Relaxed);
            all
        };
        let (reads, slow) = tokio::join!(reads, slow);
        let (reads, slow) = (reads?, slow?);
        let (least, most) = (slow.iter().min().context("some")?.0, slow.iter().max().context("some")?.0);
        ensure!(least >= GIVEN_UP, "{what}: given up after {least:?}, sooner than is set");
        ensure!(reads.len() > 10, "{what}: only {} reads in between", reads.len());
        let answered = slow.iter().filter(|(_, answered)| *answered).count();
        told(
            &format!("{SLOW} {what} at once, a byte each 250 ms"),
            &format!(
                "all are given up, after {least:.1?} to {most:.1?} with a time of {GIVEN_UP:?}, {answered} of them with an answer; \
                 meanwhile {} (alone: {alone}); the node's memory {before} MiB before, {} MiB after",
                in_brief(&reads),
                mib(node)?,
            ),
        );
    }
    Ok(())
}
