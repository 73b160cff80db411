//! Child processes that cannot outlive the tests: killed on drop, on a signal to the tests, and (on Linux) by the
//! kernel when the tests themselves are killed.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

/// Pids that were spawned and not yet reaped: only these may be signalled, as a reaped pid can be anybody's.
static LIVE: Mutex<Option<HashSet<u32>>> = Mutex::new(None);

type Spawned = std::io::Result<Child>;
type Order = (Command, Sender<Spawned>);

/// The parent-death signal is sent when the *thread* that spawned ends, so one thread that never ends spawns all.
static SPAWNER: LazyLock<Mutex<Sender<Order>>> = LazyLock::new(|| {
    let (requests, inbox) = channel::<Order>();
    std::thread::Builder::new()
        .name("spawner".into())
        .spawn(move || {
            for (mut command, reply) in inbox {
                // The asker waits for the answer; if it is gone the child is dropped, which cannot happen.
                let _ = reply.send(command.spawn());
            }
        })
        .expect("the spawner thread starts");
    Mutex::new(requests)
});

pub struct Process {
    pid: u32,
    child: Mutex<Child>,
    pub log: PathBuf,
}

impl Process {
    /// Starts `command` with both its streams appended to `log`.
    pub fn spawn(mut command: Command, log: &Path) -> Result<Process> {
        let out = OpenOptions::new().create(true).append(true).open(log).context("opening the log file")?;
        let program = command.get_program().to_owned();
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        #[cfg(target_os = "linux")]
        {
            use std::os::unix::process::CommandExt;
            #[expect(unsafe_code, reason = "the standard library has no safe hook between fork and exec")]
            // SAFETY: between fork and exec only one system call that is safe after a fork is made.
            unsafe {
                command
                    .pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?));
            }
        }
        let (reply, answer) = channel();
        let spawner = SPAWNER.lock().unwrap_or_else(PoisonError::into_inner).clone();
        spawner.send((command, reply)).context("the spawner thread is gone")?;
        let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
        let child = answer
            .recv()
            .context("the spawner thread is gone")?
            .with_context(|| format!("starting {}", program.display()))?;
        let pid = child.id();
        live.get_or_insert_default().insert(pid);
        Ok(Process { pid, child: Mutex::new(child), log: log.to_path_buf() })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The exit status if it has ended.
    pub fn exited(&self) -> Option<ExitStatus> {
        let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let status = child.try_wait().expect("a child of ours can be waited for");
        if status.is_some() {
            live.get_or_insert_default().remove(&self.pid);
        }
        status
    }

    /// Sends `signal`; nothing happens if it has already ended.
    pub fn signal(&self, signal: Signal) {
        let live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
        if live.as_ref().is_some_and(|pids| pids.contains(&self.pid)) {
            send(self.pid, signal);
        }
    }

    /// Waits until it has ended by itself; `None` if it still runs at the deadline.
    pub async fn wait(&self, deadline: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.exited() {
                return Some(status);
            }
            if Instant::now() >= end {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// `kill -9`, and waits until the kernel has taken it away (its ports are free then).
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        while self.exited().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The most resident memory that it had so far, in bytes.
    pub fn peak_resident_bytes(&self) -> Option<u64> {
        self.status_bytes("VmHWM:")
    }

    /// The resident memory that it has now and that is no file's, in bytes.
    pub fn anonymous_bytes(&self) -> Option<u64> {
        self.status_bytes("RssAnon:")
    }

    /// All of the resident memory that it has now, in bytes.
    pub fn resident_bytes(&self) -> Option<u64> {
        self.status_bytes("VmRSS:")
    }

    /// A line of what Linux says of it.
    fn status_bytes(&self, name: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find(|line| line.starts_with(name))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // Fails only when it is already gone, which is what the caller wants.
        let _ = kill_process(pid, signal);
    }
}

/// Kills every child that still runs; for the way out on a signal, when nothing is dropped.
pub fn kill_all() {
    let live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    for pid in live.iter().flatten() {
        send(*pid, Signal::KILL);
    }
}

/// The last `lines` lines of a log file.
pub fn tail(log: &Path, lines: usize) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
