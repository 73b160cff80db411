//! The processor time of processes, as Linux accounts it: user and system, of all threads, those that have ended too.

use anyhow::{Context, Result, bail};

/// In which the kernel tells times to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// Of a process so far, in seconds, to a hundredth.
///
/// # Errors
/// When there is no such process, or the system is not Linux.
pub fn seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in brackets, may hold anything.
    let (_, fields) = stat.rsplit_once(") ").context("stat has a name")?;
    let mut times = fields.split(' ').skip(11).map(str::parse::<u64>);
    let (Some(user), Some(system)) = (times.next(), times.next()) else { bail!("{stat}") };
    Ok((user? + system?) as f64 / TICKS_PER_SECOND)
}

/// Of several processes together.
///
/// # Errors
/// As [`seconds`].
pub fn seconds_of(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| seconds(*pid)).sum()
}

/// A process and those that it has started.
///
/// # Errors
/// When the system is not Linux.
pub fn with_children(pid: u32) -> Result<Vec<u32>> {
    let mut family = vec![pid];
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // It may have ended meanwhile.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{child}/stat")) else { continue };
        let parent = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(1)?.parse().ok());
        if parent == Some(pid) {
            family.push(child);
        }
    }
    Ok(family)
}

/// The resident memory of a process that is no file's, in bytes.
///
/// # Errors
/// As [`seconds`].
pub fn anonymous_bytes(pid: u32) -> Result<f64> {
    status_bytes(pid, "RssAnon:")
}

/// All of the resident memory of a process, in bytes.
///
/// # Errors
/// As [`seconds`].
pub fn resident_bytes(pid: u32) -> Result<f64> {
    status_bytes(pid, "VmRSS:")
}

fn status_bytes(pid: u32, name: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| name.to_owned())?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024.0)
}
