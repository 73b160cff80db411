//! Clients that want more memory of a node than it has, and come back when they are refused.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bitacora_protocol::rpc::{Answer as RpcAnswer, ErrorCode, Failure, Message, Request, put_frame};
use e2e::cluster::Node;
use e2e::http::{Answer, RawConnection, read_answer};
use e2e::rpc::RpcConnection;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Semaphore, watch};

const HTTP_CONNECTIONS: usize = 1_000;
const RPC_CONNECTIONS: usize = 1_000;
/// Of the connections by RPC, those that have memory before all others want some: half of what there is.
pub const SLOW_FRAMES: usize = 32;
/// Every client is refused or answered so many times, or let be, before the measuring ends.
const ROUNDS: usize = 3;
/// After those it waits twice as long each time, so that nearly all are connected at some time however slow the machine is; but
/// never more than so many times as long: a connection without a request is closed in the end.
const LONGEST_RETRY: u32 = 16;
/// Bytes of a body and of a slow frame in all, and those that are sent of it before the end of the measuring.
pub const BODY: usize = 1_000_000;
const SENT: usize = 990_000;
/// Bytes of the key in the other frames, and of what is sent last of a frame.
const FRAME: usize = 250_000;
const FRAME_END: usize = 1_000;
/// What a client sends at a time, and how long it waits after that.
const PIECE: usize = 128 * 1024;
const PIECE_PAUSE: Duration = Duration::from_millis(50);
/// Pieces of a frame, and the pause after a piece of a slow one.
const FRAME_PIECES: usize = 8;
const SLOW_PIECE: usize = 4_000;
const SLOW_PAUSE: Duration = Duration::from_millis(100);
/// Connections that are being opened at a time.
const OPENING: usize = 64;
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Greedy {
    /// A raw body that does not end.
    Body,
    /// A form that does not end.
    Form,
    /// A batch that is megabytes long, by a client that does not read.
    Batch,
    /// One frame after the other, the ends of which are long in coming.
    Frame,
    /// A frame that is sent a little at a time.
    SlowFrame,
}

impl Greedy {
    fn of(i: usize) -> Greedy {
        match i {
            _ if i < SLOW_FRAMES => Greedy::SlowFrame,
            _ if i < RPC_CONNECTIONS => Greedy::Frame,
            _ if i.is_multiple_of(4) => Greedy::Batch,
            _ if i % 4 == 1 => Greedy::Form,
            _ => Greedy::Body,
        }
    }
}

/// How a try of a greedy client ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// It was told that there is no memory for it.
    Refused,
    /// A frame was answered as if there were enough.
    Answered,
    /// It was let be until the end.
    Held,
}

/// What has become of a greedy client by now.
#[derive(Default)]
pub struct Tries {
    refused: AtomicUsize,
    answered: AtomicUsize,
    /// All was sent that is to be sent before the end, and no refusal came.
    held: AtomicBool,
}

impl Tries {
    fn note(&self, fate: Fate) {
        match fate {
            Fate::Refused => _ = self.refused.fetch_add(1, Ordering::Relaxed),
            Fate::Answered => _ = self.answered.fetch_add(1, Ordering::Relaxed),
            Fate::Held => self.held.store(true, Ordering::Relaxed),
        }
    }

    pub fn refusals(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// How many have ended.
    pub fn rounds(&self) -> usize {
        self.refusals() + self.answered.load(Ordering::Relaxed)
    }

    pub fn has_pressed(&self) -> bool {
        self.held.load(Ordering::Relaxed) || self.rounds() >= ROUNDS
    }
}

/// What all greedy clients share.
pub struct Load {
    api_port: u16,
    avro_port: u16,
    opening: Semaphore,
    /// True once the measuring is over.
    over: watch::Receiver<bool>,
    frame: Vec<u8>,
    slow_frame: Vec<u8>,
    batch: Vec<u8>,
    pub tries: Vec<Tries>,
}

impl Load {
    pub fn new(node: &Node, over: watch::Receiver<bool>) -> Load {
        let line = json!({ "op": "get", "key": LARGE_KEY }).to_string() + "\n";
        Load {
            api_port: node.api_port,
            avro_port: node.avro_port,
            opening: Semaphore::new(OPENING),
            over,
            frame: frame(FRAME),
            slow_frame: frame(BODY),
            batch: line.repeat(4 * BODY / line.len()).into_bytes(),
            tries: (0..HTTP_CONNECTIONS + RPC_CONNECTIONS).map(|_| Tries::default()).collect(),
        }
    }

    async fn over(&self) {
        // An error: the test has ended, so the measuring has too.
        let _ = self.over.clone().wait_for(|over| *over).await;
    }

    fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Waits for so long, but not beyond the measuring.
    async fn pause(&self, time: Duration) {
        // An error: the time has passed.
        let _ = tokio::time::timeout(time, self.over()).await;
    }

    pub async fn run(&self, i: usize) -> Result<()> {
        let greedy = Greedy::of(i);
        let ended = match greedy {
            Greedy::Body => self.requests(i, &self.write(i, "text/plain", b"")).await,
            Greedy::Form => {
                self.requests(i, &self.write(i, "application/x-www-form-urlencoded", b"value=")).await
            }
            Greedy::Batch => self.requests(i, &self.batch()).await,
            Greedy::Frame => self.frames(i).await,
            Greedy::SlowFrame => self.slow_frame(i).await,
        };
        ended.with_context(|| format!("the greedy client {i}, {greedy:?}"))
    }

    /// A write without its end.
    fn write(&self, i: usize, content_type: &str, begin: &[u8]) -> Vec<u8> {
        let head = format!(
            "POST /rpc?key=greedy-{i} HTTP/1.1\r\nhost: node\r\ncontent-type: {content_type}\r\ncontent-length: {BODY}\r\n\r\n"
        );
        // Any letters.
        let rest = &self.slow_frame[self.slow_frame.len() - SENT + begin.len()..];
        [head.as_bytes(), begin, rest].concat()
    }

    /// A whole batch, the answer to which is much longer.
    fn batch(&self) -> Vec<u8> {
        let head = format!(
            "POST /rpc/batch HTTP/1.1\r\nhost: node\r\ncontent-type: application/x-ndjson\r\ncontent-length: {}\r\n\r\n",
            self.batch.len()
        );
        [head.as_bytes(), &self.batch].concat()
    }

    /// Sends a request, each time on a connection of its own, until it is let be.
    async fn requests(&self, i: usize, request: &[u8]) -> Result<()> {
        for round in 0.. {
            // At once, so that its connection counts; but it asks when it has been told to, or nearly so.
            let connection = {
                let _permit = self.opening.acquire().await?;
                RawConnection::open(self.api_port).await?
            };
            if round > 0 {
                self.pause(retry_after(i, round)).await;
            }
            if self.is_over() {
                return Ok(());
            }
            let fate = self.request(i, connection, request).await?;
            self.tries[i].note(fate);
            if fate == Fate::Held {
                break;
            }
        }
        Ok(())
    }

    /// Sends a request, and looks at the begin of what comes back meanwhile. Nothing or a success: it waits for the end.
    async fn request(&self, i: usize, connection: RawConnection, request: &[u8]) -> Result<Fate> {
        let (mut reader, mut writer) = connection.split();
        let send = async {
            for piece in request.chunks(PIECE) {
                // Who is refused is soon not read from any more.
                if writer.write_all(piece).await.is_err() {
                    break;
                }
                self.pause(PIECE_PAUSE).await;
                if self.is_over() {
                    return;
                }
            }
            self.tries[i].note(Fate::Held);
            self.over().await;
        };
        let mut begin = vec![0; 4096];
        let length = tokio::select! {
            read = reader.read(&mut begin) => read.context("reading an answer")?,
            () = send => return Ok(Fate::Held),
            () = self.over() => return Ok(Fate::Held),
        };
        begin.truncate(length);
        if begin.starts_with(b"HTTP/1.1 200 ") {
            self.tries[i].note(Fate::Held);
            self.over().await;
            return Ok(Fate::Held);
        }
        self.tries[i].held.store(false, Ordering::Relaxed);
        let answer = read_answer(&mut begin.chain(reader), PATIENCE).await?;
        check_refusal(&answer.context("closed without an answer")?)?;
        Ok(Fate::Refused)
    }

    async fn connect(&self) -> Result<RpcConnection> {
        let _permit = self.opening.acquire().await?;
        RpcConnection::connect(self.avro_port).await
    }

    /// Sends one frame after the other on one connection. A refusal is told where the frame ends.
    async fn frames(&self, i: usize) -> Result<()> {
        let mut connection = self.connect().await?;
        let (begun, end) = self.frame.split_at(self.frame.len() - FRAME_END);
        for round in 0.. {
            for piece in begun.chunks(begun.len().div_ceil(FRAME_PIECES)) {
                connection.send_bytes(piece).await?;
                self.pause(retry_after(i, round) / FRAME_PIECES as u32).await;
            }
            connection.send_bytes(end).await?;
            self.tries[i].note(fate_of_frame(&mut connection).await?);
            if self.is_over() {
                break;
            }
        }
        Ok(())
    }

    async fn slow_frame(&self, i: usize) -> Result<()> {
        let mut connection = self.connect().await?;
        let mut sent = 0;
        while sent < SENT && !self.is_over() {
            let piece = &self.slow_frame[sent..SENT.min(sent + SLOW_PIECE)];
            connection.send_bytes(piece).await?;
            sent += piece.len();
            self.tries[i].note(Fate::Held);
            self.pause(SLOW_PAUSE).await;
        }
        self.over().await;
        connection.send_bytes(&self.slow_frame[sent..]).await?;
        self.tries[i].note(fate_of_frame(&mut connection).await?);
        Ok(())
    }

    /// How many of the clients are of a kind and so.
    pub fn count(&self, greedy: Greedy, is_so: impl Fn(&Tries) -> bool) -> usize {
        let tries = self.tries.iter().enumerate().filter(|(i, _)| Greedy::of(*i) == greedy);
        tries.filter(|(_, tries)| is_so(tries)).count()
    }
}

const SERIAL: i32 = 7;
/// Of a value that an answer to a batch has many times.
pub const LARGE_KEY: &str = "large";

/// A call with a key that nobody has, nor may have.
fn frame(key: usize) -> Vec<u8> {
    let (mut frame, key) = (Vec::new(), "k".repeat(key));
    put_frame(&mut frame, SERIAL, |out| Request::GetRecord { key: &key }.encode(out));
    frame
}

/// When a client comes back that has been told to after a second: more or less then, not all at the same time, and later once it
/// has been refused often.
fn retry_after(i: usize, round: usize) -> Duration {
    let doublings = round.saturating_sub(ROUNDS).try_into().unwrap_or(u32::MAX);
    let times = 2_u32.saturating_pow(doublings).min(LONGEST_RETRY);
    times * Duration::from_millis(800 + ((i * 37 + round * 211) % 1_200) as u64)
}

/// Reads the answer to such a call.
async fn fate_of_frame(connection: &mut RpcConnection) -> Result<Fate> {
    let (serial, answer) = connection.receive().await?.context("closed without an answer")?;
    ensure!(serial == SERIAL, "the answer has the serial {serial}");
    match RpcAnswer::decode(Message::GetRecord, &answer)? {
        Err(Failure::Declared(error)) if error.code == ErrorCode::NotReady => {
            check_sentence(&error.message)?;
            Ok(Fate::Refused)
        }
        Ok(_) | Err(Failure::Declared(_)) => Ok(Fate::Answered),
        other @ Err(_) => anyhow::bail!("an answer to a long key: {other:?}"),
    }
}

fn check_refusal(answer: &Answer) -> Result<()> {
    ensure!(answer.status == 503, "not a 503: {answer}");
    ensure!(answer.header("retry-after") == Some("1"), "no retry-after: {answer}");
    check_sentence(&answer.message())
}

fn check_sentence(message: &str) -> Result<()> {
    ensure!(message.contains("REQUEST_MEMORY"), "a refusal that does not name its setting: {message}");
    Ok(())
}
