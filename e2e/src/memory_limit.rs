//! A bound on the memory of a process, as a container has one: a control group of Linux, version 1 or 2.

use std::path::{Path, PathBuf};

/// A group below this process's own. It is removed when this is dropped, so drop its processes first.
pub struct MemoryLimit {
    group: PathBuf,
}

impl MemoryLimit {
    /// A group of so many bytes; `None` where none can be made: on another system, or without the right to.
    pub fn new(bytes: u64) -> Option<MemoryLimit> {
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        own.lines().find_map(|line| {
            // Hierarchy, controllers, path; version 2 names no controllers.
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let (mount, file) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max"),
                _ if controllers.split(',').any(|name| name == "memory") => {
                    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
                }
                _ => return None,
            };
            let own = Path::new(mount).join(path.trim_start_matches('/'));
            Self::below(&own, file, bytes)
        })
    }

    fn below(own: &Path, file: &str, bytes: u64) -> Option<MemoryLimit> {
        let group = own.join(format!("bitacora-e2e-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&group).ok()?;
        let limit = MemoryLimit { group };
        // Opened as it is: in a group without the memory controller there is no such file.
        let options = std::fs::OpenOptions::new().write(true).open(limit.group.join(file));
        let written =
            options.and_then(|mut out| std::io::Write::write_all(&mut out, bytes.to_string().as_bytes()));
        written.ok().map(|()| limit)
    }

    /// A program that joins the group and then becomes the one that it is given.
    pub fn launcher(&self) -> Vec<String> {
        let script = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
        ["/bin/sh", "-c", script]
            .map(str::to_string)
            .into_iter()
            .chain([self.group.display().to_string()])
            .collect()
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir(&self.group) {
            eprintln!("e2e: {} is left: {error}", self.group.display());
        }
    }
}
