//! The threads of a node: each has a name, and its end can be waited for until a deadline.

use std::convert::Infallible;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Instant;

/// A thread of the node.
pub struct Worker {
    name: &'static str,
    thread: JoinHandle<()>,
    /// Nothing is ever sent; the sending side is dropped when the thread ends, however it ends.
    ended: Receiver<Infallible>,
}

impl Worker {
    /// Starts a thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn spawn(name: &'static str, run: impl FnOnce() + Send + 'static) -> std::io::Result<Self> {
        let (ends, ended) = mpsc::channel();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            let _ends: mpsc::Sender<Infallible> = ends;
            run();
        })?;
        Ok(Self { name, thread, ended })
    }

    /// Ends a [`std::thread::park_timeout`] of the thread.
    pub fn unpark(&self) {
        self.thread.thread().unpark();
    }

    /// The name of the thread if it has ended, however that came.
    #[must_use]
    pub fn ended(&self) -> Option<&'static str> {
        self.thread.is_finished().then_some(self.name)
    }

    /// Waits until the thread has ended, no longer than until `deadline`. Blocks.
    ///
    /// # Errors
    /// The name of the thread if it has not ended by then; it is left to itself.
    pub fn join_until(self, deadline: Instant) -> Result<(), &'static str> {
        match self.ended.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Err(RecvTimeoutError::Timeout) => Err(self.name),
            Ok(_) | Err(RecvTimeoutError::Disconnected) => {
                // A thread that panicked has said so itself.
                let _ = self.thread.join();
                Ok(())
            }
        }
    }
}

/// Has this thread, and those that it starts from now on, give way to all others where there are fewer cores than work. Nothing else
/// changes, and nothing does where the system knows no priorities of threads.
pub(crate) fn give_way() {
    // A thread's own, on Linux alone.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, 5) {
        tracing::debug!(%error, "the thread keeps its priority");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_thread_that_does_not_end_is_named() {
        let (release, released) = mpsc::channel::<()>();
        let worker = Worker::spawn("slow", move || {
            let _ = released.recv();
        });
        let ended = worker.expect("a thread").join_until(Instant::now() + Duration::from_millis(10));
        assert_eq!(ended, Err("slow"));
        drop(release);
    }

    #[test]
    fn an_ended_or_panicked_thread_is_joined_without_time() {
        for panics in [false, true] {
            let (begins, begun) = mpsc::channel::<()>();
            let worker = Worker::spawn("short", move || {
                drop(begins);
                assert!(!panics, "as the test wants it");
            });
            let _ = begun.recv();
            let ended = worker.expect("a thread").join_until(Instant::now() + Duration::from_secs(60));
            assert_eq!(ended, Ok(()));
        }
    }
}
