//! Log lines on their way to standard error, best effort: the disk of the log may be full, its reader gone or not reading.
//! None of that may hold up, or end, a thread that has something to say. So lines wait in a bounded queue for a thread of
//! their own; those that do not fit, and those that can't be written, are dropped and counted.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Lines that wait, at most, in bytes: more than a burst has, and little memory.
const MAX_QUEUED_BYTES: usize = 1 << 20;

/// Of this process, which has one standard error.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Log lines that this process has dropped so far.
#[must_use]
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Takes lines and never blocks for long. Clones share the queue.
#[derive(Clone)]
pub struct LogLines(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// Signalled when a line was added, and when the last one was written.
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether the thread is writing a line.
    writing: bool,
}

impl LogLines {
    /// Starts the thread that writes to `out`. It ends with the process.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn to(out: impl Write + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new() });
        let writing = Arc::clone(&shared);
        // Should it end, the queue fills, and what is dropped from then on is counted.
        std::thread::Builder::new().name("log-lines".into()).spawn(move || writing.write_all_to(out))?;
        Ok(Self(shared))
    }

    /// Adds a line, which ends with a line break, or drops it.
    pub fn add(&self, line: &[u8]) {
        let mut queue = self.0.queue.lock();
        if queue.bytes.saturating_add(line.len()) > MAX_QUEUED_BYTES {
            DROPPED.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line.to_vec());
        self.0.changed.notify_all();
    }

    /// Waits until all lines so far are written or dropped, no longer than `timeout`. Blocks.
    pub fn flush(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut queue = self.0.queue.lock();
        while queue.writing || !queue.lines.is_empty() {
            if self.0.changed.wait_until(&mut queue, deadline).timed_out() {
                return;
            }
        }
    }
}

impl Shared {
    fn write_all_to(&self, mut out: impl Write) {
        loop {
            let line = {
                let mut queue = self.queue.lock();
                queue.writing = false;
                loop {
                    if let Some(line) = queue.lines.pop_front() {
                        queue.bytes -= line.len();
                        queue.writing = true;
                        break line;
                    }
                    self.changed.notify_all();
                    self.changed.wait(&mut queue);
                }
            };
            // Not tried again: what is lost is counted, and the next line may fit.
            if out.write_all(&line).and_then(|()| out.flush()).is_err() {
                DROPPED.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// For one event of `tracing`, which writes it in one piece.
impl Write for LogLines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Passes on what is written; a line `fail` fails.
    struct Passing(mpsc::Sender<String>);

    impl Write for Passing {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            if line == b"fail\n" {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let _ = self.0.send(String::from_utf8_lossy(line).into_owned());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Blocks until the other side is dropped.
    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_written_in_order_and_a_failure_is_counted() {
        let (send, written) = mpsc::channel();
        let lines = LogLines::to(Passing(send)).expect("a thread");
        let before = dropped();
        for line in ["one\n", "fail\n", "two\n"] {
            lines.add(line.as_bytes());
        }
        lines.flush(PATIENCE);
        assert_eq!(written.try_iter().collect::<Vec<_>>(), ["one\n", "two\n"]);
        assert!(dropped() > before);
    }

    #[test]
    fn a_stuck_reader_costs_lines_and_no_time() {
        let (release, held) = mpsc::channel();
        let lines = LogLines::to(Stuck(held)).expect("a thread");
        let before = dropped();
        let line = [b'x'; 1000];
        for _ in 0..=2 * MAX_QUEUED_BYTES / line.len() {
            lines.add(&line);
        }
        assert!(dropped() >= before + (MAX_QUEUED_BYTES / line.len()) as u64 - 1);
        assert!(lines.0.queue.lock().bytes <= MAX_QUEUED_BYTES);
        lines.flush(Duration::from_millis(1));
        drop(release);
        lines.flush(PATIENCE);
        assert_eq!(lines.0.queue.lock().bytes, 0);
    }
}
