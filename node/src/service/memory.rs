//! One budget of memory for all requests of a node, whichever interface they come through.
//!
//! What a request needs memory for (a body that is arriving, an operation that waits, an answer that its client has yet to
//! take) is counted by a [`Permit`] that travels with it and gives the bytes back when it is dropped. Nobody ever waits for
//! memory while holding some: who finds none is refused, and has done nothing. Small answers need no permit, so that small
//! reads go on while the budget is spent.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::IntCounter;

/// An answer up to this size needs no permit. What such answers can take is bounded by the number of connections.
pub const SMALL_ANSWER_BYTES: usize = 16 * 1024;
/// A node that has less than this refuses too much.
const MIN_DEFAULT_BYTES: u64 = 64 << 20;

/// The budget of a node. Clones share it.
#[derive(Clone)]
pub struct Memory(Arc<Budget>);

struct Budget {
    limit: u64,
    used: AtomicU64,
    refusals: IntCounter,
}

/// The budget is spent. Whoever is told so has done nothing yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this node's memory for requests is spent (REQUEST_MEMORY, {limit} bytes) and nothing was done; try again, or ask another node"
)]
pub struct OutOfMemory {
    limit: u64,
}

impl Memory {
    /// A budget of `limit` bytes; `refusals` counts who found it spent.
    #[must_use]
    pub fn new(limit: u64, refusals: IntCounter) -> Self {
        Self(Arc::new(Budget { limit, used: AtomicU64::new(0), refusals }))
    }

    /// A budget that is never spent.
    ///
    /// # Panics
    /// Never: the counter's name is a good one.
    #[must_use]
    pub fn unlimited() -> Self {
        let refusals = IntCounter::new("refusals", "None.").expect("a name of letters");
        Self::new(u64::MAX, refusals)
    }

    /// A permit for so many bytes.
    ///
    /// # Errors
    /// When there are not so many left; counted as a refusal.
    pub fn take(&self, bytes: usize) -> Result<Permit, OutOfMemory> {
        let mut permit = self.nothing();
        permit.grow(bytes)?;
        Ok(permit)
    }

    /// A permit for an answer of so many bytes; `None` for a small one.
    ///
    /// # Errors
    /// As [`Memory::take`].
    pub fn take_for_answer(&self, bytes: usize) -> Result<Option<Permit>, OutOfMemory> {
        if bytes <= SMALL_ANSWER_BYTES { Ok(None) } else { self.take(bytes).map(Some) }
    }

    /// A permit for what is there already, whether or not there are so many bytes left.
    #[must_use]
    pub fn take_anyway(&self, bytes: usize) -> Permit {
        let mut permit = self.nothing();
        permit.set(bytes);
        permit
    }

    /// A permit for no bytes, to be grown.
    #[must_use]
    pub fn nothing(&self) -> Permit {
        Permit { memory: self.clone(), bytes: 0 }
    }

    /// The error for who finds no memory; counted as a refusal.
    pub fn refuse(&self) -> OutOfMemory {
        self.0.refusals.inc();
        self.spent()
    }

    /// The same, for a refusal that was counted before.
    #[must_use]
    pub fn spent(&self) -> OutOfMemory {
        OutOfMemory { limit: self.0.limit }
    }

    /// Bytes that permits stand for.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Bytes that there are in all.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    fn try_take(&self, bytes: u64) -> bool {
        let more = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.0.limit);
        self.0.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

/// So many bytes of the budget, until this is dropped.
pub struct Permit {
    memory: Memory,
    bytes: usize,
}

impl Permit {
    /// What it stands for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes more bytes, if there are any; not counted as a refusal, for those who can wait for their own bytes.
    pub fn try_grow(&mut self, more: usize) -> bool {
        let taken = self.memory.try_take(more as u64);
        if taken {
            self.bytes += more;
        }
        taken
    }

    /// Takes more bytes.
    ///
    /// # Errors
    /// When there are not so many left; counted as a refusal. The permit stays as it was.
    pub fn grow(&mut self, more: usize) -> Result<(), OutOfMemory> {
        if self.try_grow(more) { Ok(()) } else { Err(self.memory.refuse()) }
    }

    /// Stands for so many bytes from now on, whether or not there are so many left: for what is there already, such as a text
    /// that turned out longer than was reckoned with.
    pub fn set(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.memory.0.used.fetch_add((bytes - self.bytes) as u64, Ordering::Relaxed);
        } else {
            self.memory.0.used.fetch_sub((self.bytes - bytes) as u64, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit({})", self.bytes)
    }
}

/// The budget of a node that is told none: a quarter of what the container, or else the machine, has, and at least 64 MiB.
#[must_use]
pub fn default_limit() -> u64 {
    let available = available_under(Path::new("/")).unwrap_or(0);
    (available / 4).max(MIN_DEFAULT_BYTES)
}

/// The least of the limits of the control groups that this process is in, version 1 or 2, and the machine's memory; `None` if
/// nothing can be read.
fn available_under(root: &Path) -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(root.join(path.trim_start_matches('/'))).ok();
    let machine = read("proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let groups = read("proc/self/cgroup").unwrap_or_default();
    let limits = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let (mount, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        // Every group above bounds it too. Inside a container its own group is often the only one to be seen.
        let groups = Path::new(path).ancestors().map(|group| group.to_string_lossy().into_owned());
        groups.filter_map(|group| read(&format!("{mount}{group}/{file}"))?.trim().parse().ok()).collect()
    });
    limits.chain(machine).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(limit: u64) -> Memory {
        Memory::new(limit, IntCounter::new("refusals", "In a test.").expect("a name"))
    }

    #[test]
    fn permits_share_the_budget_and_give_it_back() {
        let memory = memory(100);
        let mut first = memory.take(60).expect("there is room");
        let second = memory.take(40).expect("there is room");
        assert_eq!(memory.used(), 100);
        assert_eq!(memory.take(1).expect_err("it is spent").limit, 100);
        assert!(first.grow(1).is_err() && !first.try_grow(1));
        assert_eq!((first.bytes(), memory.0.refusals.get()), (60, 2));
        drop(second);
        assert!(first.try_grow(40));
        first.set(10);
        assert_eq!(memory.used(), 10);
        first.set(1_000);
        assert_eq!(memory.used(), 1_000, "what is there already is counted, whatever the limit");
        assert!(memory.take(1).is_err());
        drop(first);
        assert_eq!(memory.used(), 0);
        assert!(memory.take(usize::MAX).is_err());
    }

    #[test]
    fn a_small_answer_needs_no_permit() {
        let memory = memory(0);
        assert!(memory.take_for_answer(SMALL_ANSWER_BYTES).expect("always").is_none());
        assert!(memory.take_for_answer(SMALL_ANSWER_BYTES + 1).is_err());
    }

    #[test]
    fn concurrent_permits_never_exceed_the_budget() {
        let memory = memory(1_000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for bytes in 0..1_000 {
                        let permit = memory.take(bytes);
                        assert!(memory.used() <= 1_000);
                        drop(permit);
                    }
                });
            }
        });
        assert_eq!(memory.used(), 0);
    }

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("in a folder")).expect("made");
            std::fs::write(path, text).expect("written");
        }
        root
    }

    #[test]
    fn the_smallest_limit_of_control_groups_and_machine_counts() {
        let total = ("proc/meminfo", "MemTotal:        8 kB\nMemFree: 1 kB\n");
        let available = |files: &[(&str, &str)]| available_under(machine(files).path());
        assert_eq!(available(&[]), None);
        assert_eq!(available(&[total]), Some(8192));
        let version_2 = ("proc/self/cgroup", "0::/a/b\n");
        let limits = [("sys/fs/cgroup/a/memory.max", "4096\n"), ("sys/fs/cgroup/a/b/memory.max", "max\n")];
        assert_eq!(available(&[total, version_2, limits[0], limits[1]]), Some(4096));
        let in_a_container = [("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "2048\n")];
        assert_eq!(available(&[total, in_a_container[0], in_a_container[1]]), Some(2048));
        let version_1 = ("proc/self/cgroup", "4:cpu,cpuacct:/a\n3:memory:/docker/b\n");
        let limit = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1024\n");
        assert_eq!(available(&[total, version_1, limit]), Some(1024));
        assert_eq!(available(&[total, version_1]), Some(8192));
    }
}
