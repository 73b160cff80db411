//! What signals do. A stop in order: SIGTERM, SIGINT, SIGQUIT; a second one of these ends the process at once. SIGHUP means that files
//! are to be read again; but when the process' terminal was closed, it is a stop in order too: a node that nobody sees should not go
//! on. Under `nohup`, which starts a program with SIGHUP ignored, it stays ignored.

use anyhow::{Context as _, Result};
use rustix::io::Errno;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::logging::Output;

/// What signals say.
pub struct Signals<F> {
    /// Completes when one says to stop.
    pub stop: F,
    /// Changes when one says that files are to be read again.
    pub hangups: watch::Receiver<()>,
}

/// Handles signals. To be called on the runtime.
///
/// # Errors
/// When a signal can't be handled.
pub fn handle_signals(output: Output) -> Result<Signals<impl Future<Output = ()>>> {
    ignore_meaningless()?;
    let mut stop = StopSignals::new()?;
    let mut hangup = if hangup_is_ignored() { None } else { Some(handle("SIGHUP", SignalKind::hangup())?) };
    let had_terminal = has_terminal();
    let (read_again, hangups) = watch::channel(());
    let stop = async move {
        let closed = async {
            loop {
                next(hangup.as_mut()).await;
                if had_terminal && !has_terminal() {
                    break;
                }
                tracing::info!("SIGHUP: the files of settings, tokens and TLS are read again");
                read_again.send_replace(());
            }
        };
        let name = tokio::select! {
            name = stop.next() => name,
            () = closed => "SIGHUP, and the terminal was closed",
        };
        tracing::info!("{name}: stopping");
        let hung_up = name.starts_with("SIGHUP");
        tokio::spawn(async move {
            // A closed terminal sends SIGHUP twice, and a system that shuts down adds SIGTERM: neither means "at once".
            if hung_up {
                stop.next().await;
            }
            // A handler stays installed for ever; SIGHUP has nothing more to say.
            let name = stop.next().await;
            tracing::warn!("{name}: told twice to stop: ending at once");
            output.finish();
            std::process::exit(1);
        });
    };
    Ok(Signals { stop, hangups })
}

/// Whether the process has a terminal that controls it; one that was closed does so no more.
fn has_terminal() -> bool {
    match std::fs::File::open("/dev/tty") {
        Ok(_) => true,
        // Of the errors these alone say that there is none: no more open files are allowed, for example, says nothing of it.
        Err(error) => !matches!(
            error.raw_os_error().map(Errno::from_raw_os_error),
            Some(Errno::NXIO | Errno::IO | Errno::NOENT | Errno::ACCESS)
        ),
    }
}

struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl StopSignals {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: handle("SIGTERM", SignalKind::terminate())?,
            interrupt: handle("SIGINT", SignalKind::interrupt())?,
            quit: handle("SIGQUIT", SignalKind::quit())?,
        })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.quit.recv() => "SIGQUIT",
        }
    }
}

async fn next(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

fn handle(name: &str, kind: SignalKind) -> Result<Signal> {
    signal(kind).with_context(|| format!("{name} can't be handled"))
}

/// Signals whose default is the end of the process, and which mean nothing here.
fn ignore_meaningless() -> Result<()> {
    let (first, second) = (SignalKind::user_defined1(), SignalKind::user_defined2());
    for (name, kind) in [("SIGUSR1", first), ("SIGUSR2", second)] {
        let mut signal = handle(name, kind)?;
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                tracing::warn!("{name} means nothing to a node and is ignored");
            }
        });
    }
    // A write beyond the limit of file sizes (`ulimit -f`) then fails as one on a full disk does.
    let too_large = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    drop(handle("SIGXFSZ", too_large)?);
    Ok(())
}

/// Whether the process was started with SIGHUP ignored. Elsewhere than on Linux nobody tells.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignores(&status, rustix::process::Signal::HUP.as_raw())
}

/// Whether a signal is in the mask `SigIgn` of `/proc/PID/status`.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_of_ignored_signals_is_read() {
        let status = "Name:\tn\nSigIgn:\t0000000000001001\nSigCgt:\t00000000ffffffff\n";
        assert!(ignores(status, 1) && ignores(status, 13));
        assert!(!ignores(status, 2) && !ignores("", 1) && !ignores("SigIgn:\tno", 1));
    }
}
