//! Filling an empty store with another member's: the snapshot is fetched over HTTP, checked and opened.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use reqwest::StatusCode;
use reqwest::header::RETRY_AFTER;

use super::copy_file::{CopyFile, WrittenCopy};
use super::{Header, Receiver};
use crate::cluster::{Membership, MembershipState};
use crate::http_client::MemberClients;
use crate::log::LogIdentity;
use crate::read_text_limited;
use crate::store::{Checkpoint, Incoming, Store};

/// How long a member may take to begin its answer, or its next bytes.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the members may take to be known after the start.
const MEMBERS_KNOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// Rounds through members of which one is busy.
const MAX_ROUNDS: usize = 20;
/// Longest pause between two rounds.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Between two signs that it goes on.
const SIGN_OF_LIFE_INTERVAL: Duration = Duration::from_millis(200);
/// Of the reason that a member gives, as much is told.
pub(super) const REASON_BYTES: usize = 1000;
/// The disk keeps as much free, for the store's growth.
const SPARE_BYTES: u64 = 64 << 20;

/// Where a node gets a copy of another member's store.
pub trait SnapshotSource: Send + Sync + 'static {
    /// A copy of another member's store of this log, whole, opened and found to fit; `None` if there is none to be had. Blocks
    /// for as long as that takes, not on the runtime.
    fn fetch(
        &self,
        identity: &LogIdentity,
        store: &Store,
        check: CompatibilityCheck<'_>,
        report: ProgressReport<'_>,
    ) -> Option<(Incoming, Checkpoint)>;
}

/// Fetches them over HTTP.
pub struct Fetcher {
    clients: MemberClients,
    membership: Arc<dyn Membership>,
    own_address: String,
}

enum Failed {
    /// It is giving its store to somebody else, for about so long.
    Busy(Duration),
    /// Not this one.
    Unusable(String),
    /// The node is stopping.
    Stopped,
}

/// Whether the log as it is now is the one that a copy was made from; the reason if not.
pub type CompatibilityCheck<'a> = &'a dyn Fn(&Checkpoint) -> Result<(), String>;
/// Is told what is being done, several times a second, which is a sign of life too. Answers `false` to give up.
pub type ProgressReport<'a> = &'a dyn Fn(String) -> bool;

impl SnapshotSource for Fetcher {
    fn fetch(
        &self,
        identity: &LogIdentity,
        store: &Store,
        check: CompatibilityCheck<'_>,
        report: ProgressReport<'_>,
    ) -> Option<(Incoming, Checkpoint)> {
        self.wait_for_members(report);
        let mut unusable: Vec<String> = Vec::new();
        for _ in 0..MAX_ROUNDS {
            let mut busy = None;
            for member in self.others() {
                if unusable.contains(&member) {
                    continue;
                }
                match self.fetch_from(&member, identity, store, check, report) {
                    Ok(copy) => return Some(copy),
                    Err(Failed::Stopped) => return None,
                    Err(Failed::Busy(pause)) => {
                        busy = Some(busy.map_or(pause, |known: Duration| known.min(pause)));
                    }
                    Err(Failed::Unusable(reason)) => {
                        tracing::warn!("no snapshot from {member}: {reason}");
                        unusable.push(member);
                    }
                }
            }
            // No back-off, and so none of `backon`'s: a busy member says in `Retry-After` when to ask again.
            let pause = busy?;
            let until = Instant::now() + pause.min(MAX_PAUSE);
            while Instant::now() < until {
                if !report("waiting for a member that gives its store to others".to_owned()) {
                    return None;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        None
    }
}

impl Fetcher {
    /// `own_address`: `host:API_PORT` as the membership lists this node.
    #[must_use]
    pub fn new(clients: MemberClients, membership: Arc<dyn Membership>, own_address: String) -> Self {
        Self { clients, membership, own_address }
    }

    fn others(&self) -> Vec<String> {
        let members = self.membership.members();
        let mut others: Vec<_> =
            members.iter().filter(|member| **member != self.own_address).cloned().collect();
        // Nodes that start together do not all begin with the same one.
        let turn = self.own_address.bytes().map(usize::from).sum::<usize>() % others.len().max(1);
        others.rotate_left(turn);
        others
    }

    fn wait_for_members(&self, report: ProgressReport<'_>) {
        let until = Instant::now() + MEMBERS_KNOWN_TIMEOUT;
        while matches!(self.membership.state(), MembershipState::Disconnected { .. })
            && Instant::now() < until
        {
            if !report("waiting for the members".to_owned()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn fetch_from(
        &self,
        member: &str,
        identity: &LogIdentity,
        store: &Store,
        check: CompatibilityCheck<'_>,
        report: ProgressReport<'_>,
    ) -> Result<(Incoming, Checkpoint), Failed> {
        let unusable = |error: &dyn std::fmt::Display| Failed::Unusable(error.to_string());
        let mut incoming = store.incoming().map_err(|error| unusable(&error))?;
        let started = Instant::now();
        let doing = RefCell::new(format!("asking {member} for its store"));
        // A runtime of this thread alone, and a client whose connection is on it: what arrives is written by the thread that has read it, instead
        // of being handed from one to another piece by piece.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| unusable(&error))?;
        let downloaded = runtime.block_on(async {
            let stopped = async {
                while report(doing.borrow().clone()) {
                    tokio::time::sleep(SIGN_OF_LIFE_INTERVAL).await;
                }
            };
            tokio::select! {
                downloaded = self.download(member, identity, &incoming, &doing) => downloaded,
                () = stopped => Err(Failed::Stopped),
            }
        });
        // The connection ends here. A look-up of the member's name, which can't be cut short, is not waited for.
        runtime.shutdown_background();
        let (bytes, file) = downloaded?;
        let fetched = started.elapsed();
        let checkpoint = open(&mut incoming, file, report, || format!("looking at the store of {member}"))?;
        check(&checkpoint).map_err(Failed::Unusable)?;
        let (fetching, all) = (fetched.as_secs_f64(), started.elapsed().as_secs_f64());
        tracing::info!(bytes, fetching, seconds = all, "took a snapshot from {member}");
        Ok((incoming, checkpoint))
    }

    async fn download(
        &self,
        member: &str,
        identity: &LogIdentity,
        incoming: &Incoming,
        doing: &RefCell<String>,
    ) -> Result<(u64, WrittenCopy), Failed> {
        let unusable = |error: &dyn std::fmt::Display| Failed::Unusable(error.to_string());
        let http =
            self.clients.build(|http| http.connect_timeout(MEMBER_TIMEOUT).read_timeout(MEMBER_TIMEOUT));
        let http = http.map_err(|error| unusable(&Chain(&error)))?;
        let url =
            http.url(member, "/snapshot").ok_or_else(|| unusable(&"it is registered under no address"))?;
        let response = http.get(url).send().await;
        let response = response.map_err(|error| unusable(&Chain(&error)))?;
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            let pause = response.headers().get(RETRY_AFTER).and_then(|text| text.to_str().ok()?.parse().ok());
            return Err(match pause {
                Some(seconds) => Failed::Busy(Duration::from_secs(seconds)),
                None => Failed::Unusable(read_text_limited(response, REASON_BYTES).await.unwrap_or_default()),
            });
        }
        if response.status() != StatusCode::OK {
            return Err(Failed::Unusable(format!("it answers {}", response.status())));
        }
        let file = CopyFile::create(incoming.file()).map_err(|error| unusable(&error))?;
        let folder = incoming.file().parent().unwrap_or(incoming.file()).to_owned();
        let accept = |header: &Header| {
            if !header.identity.fits(identity) {
                return Err(format!("it is of {}, and this node reads {identity}", header.identity));
            }
            room_for(&folder, header.bytes)
        };
        let mut receiver = Receiver::new(file, accept);
        let mut body = response.bytes_stream();
        while let Some(piece) = body.next().await {
            receiver
                .push(&piece.map_err(|error| unusable(&Chain(&error)))?)
                .map_err(|error| unusable(&error))?;
            let of = receiver.header().map_or(0, |header| header.bytes).max(1);
            let percent = (receiver.written() as f64 / of as f64 * 100.0).min(100.0);
            *doing.borrow_mut() = format!("fetching the store of {member}, {percent:.0} %");
        }
        let bytes = receiver.written();
        let (_, file) = receiver.finish().map_err(|error| unusable(&error))?;
        let file = file.finish().map_err(|error| unusable(&error))?;
        Ok((bytes, file))
    }
}

/// Opens a copy while the rest of it goes to disk, which takes a while, and says so meanwhile.
fn open(
    incoming: &mut Incoming,
    file: WrittenCopy,
    report: ProgressReport<'_>,
    doing: impl Fn() -> String,
) -> Result<Checkpoint, Failed> {
    let stop = AtomicBool::new(false);
    let (send, opened) = mpsc::channel();
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| {
            // Who asks waits until this scope ends.
            let _ = send.send(file.open(incoming, &stop));
        });
        loop {
            match opened.recv_timeout(SIGN_OF_LIFE_INTERVAL) {
                Ok(_) if stop.load(Ordering::Relaxed) => return Err(Failed::Stopped),
                Ok(opened) => return opened.map_err(|error| Failed::Unusable(error.to_string())),
                Err(RecvTimeoutError::Timeout) => {
                    if !report(doing()) {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    // Joined, so that the panic ends here.
                    let _ = opening.join();
                    return Err(Failed::Unusable("looking at it ended in a panic".to_owned()));
                }
            }
        }
    })
}

/// Whether a store of this size fits on the disk of a folder.
///
/// # Errors
/// How much room is missing, and where.
pub fn room_for(folder: &std::path::Path, bytes: u64) -> Result<(), String> {
    let Ok(disk) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if bytes.saturating_add(SPARE_BYTES) > free {
        return Err(format!("it has {bytes} bytes, and the disk of {} has {free} free", folder.display()));
    }
    Ok(())
}

/// reqwest's errors say little without what caused them.
pub(super) struct Chain<'a>(pub &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(out, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
