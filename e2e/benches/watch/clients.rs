//! Clients that watch a node, in a process of their own.

use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, ChildStdout, Command};

use crate::PATIENCE;

pub const MODE: &str = "--clients";
const CONNECT: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 64 * 1024;
/// What a client that takes nothing leaves to the system to keep for it.
const STALLED_BUFFER: u32 = 4 * 1024;

/// Clients that run, until this is dropped.
pub struct Clients {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Clients {
    /// So many clients of the node at a port, which are connected when this returns. `what`: `read`, until each was told of so many
    /// records; `read-keys`, the same without values; `stall`: take nothing; `catch-up`: be told so many records from the beginning, again and again.
    pub async fn start(what: &str, port: u16, count: usize, records: usize) -> Result<Clients> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([MODE, what, &port.to_string(), &count.to_string(), &records.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().context("starting the clients")?;
        let lines = BufReader::new(process.stdout.take().context("their output is read")?).lines();
        let mut clients = Clients { process, lines };
        ensure!(clients.line().await? == "connected", "the clients are not connected");
        Ok(clients)
    }

    /// What they print next.
    pub async fn line(&mut self) -> Result<String> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        line.context("the clients say nothing")??.context("the clients have ended")
    }

    /// Ends them; returns how many lines they have printed since.
    pub async fn end(mut self) -> Result<usize> {
        self.process.start_kill()?;
        let mut count = 0;
        while self.lines.next_line().await?.is_some() {
            count += 1;
        }
        self.process.wait().await?;
        Ok(count)
    }
}

pub fn main(arguments: &[String]) -> ExitCode {
    let run = || {
        let [what, port, count, records] = arguments else { bail!("four arguments") };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(clients(what, port.parse()?, count.parse()?, records.parse()?))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the clients: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn clients(what: &str, port: u16, count: usize, records: usize) -> Result<()> {
    let query = match what {
        "read" => "",
        "stall" => "initial=true",
        "read-keys" => "values=false",
        "catch-up" => return catch_up(port, count, records).await,
        other => bail!("{other} is nothing that clients do"),
    };
    let buffer = (what == "stall").then_some(STALLED_BUFFER);
    let mut watches = try_join_all((0..count).map(|_| Watch::open(port, query, buffer))).await?;
    println!("connected");
    if what == "stall" {
        std::future::pending::<()>().await;
    }
    try_join_all(watches.iter_mut().map(|watch| watch.read(records))).await?;
    println!("told");
    Ok(())
}

/// Prints a line each time that one of them has been told everything.
async fn catch_up(port: u16, count: usize, records: usize) -> Result<()> {
    println!("connected");
    let all = (0..count).map(|_| async {
        loop {
            Watch::open(port, "initial=true", None).await?.read(records).await?;
            println!("caught up");
        }
        #[expect(unreachable_code, reason = "it tells the type of an endless loop")]
        anyhow::Ok(())
    });
    try_join_all(all).await.map(drop)
}

struct Watch {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// The begin of a line whose rest has not come yet.
    unfinished: Vec<u8>,
    told: usize,
}

impl Watch {
    async fn open(port: u16, query: &str, buffer: Option<u32>) -> Result<Watch> {
        let socket = TcpSocket::new_v4()?;
        if let Some(buffer) = buffer {
            socket.set_recv_buffer_size(buffer)?;
        }
        let address = ([127, 0, 0, 1], port).into();
        let mut stream = tokio::time::timeout(CONNECT, socket.connect(address)).await??;
        let request =
            format!("GET /watch?{query} HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        // The first bytes are enough: whatever is written from then on is told.
        let mut status = [0; 12];
        tokio::time::timeout(CONNECT, stream.read_exact(&mut status)).await??;
        ensure!(status == *b"HTTP/1.1 200", "{}", String::from_utf8_lossy(&status));
        Ok(Watch { stream, buffer: vec![0; READ_BYTES], unfinished: Vec::new(), told: 0 })
    }

    /// Reads until it was told of so many records. An event's lines are never divided between two chunks of the answer.
    async fn read(&mut self, records: usize) -> Result<()> {
        while self.told < records {
            let count = self.stream.read(&mut self.buffer).await?;
            ensure!(count > 0, "the node closed the connection after {} records", self.told);
            let mut lines = self.buffer[..count].split(|byte| *byte == b'\n');
            let first = lines.next().unwrap_or_default();
            self.unfinished.extend_from_slice(first);
            for line in lines {
                self.told += usize::from(self.unfinished == b"event: set");
                self.unfinished.clear();
                self.unfinished.extend_from_slice(line);
            }
        }
        Ok(())
    }
}
