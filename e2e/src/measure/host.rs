//! The machine that figures are of, and the peers that it has.

use std::process::Command;

use serde::{Deserialize, Serialize};

use super::peers::program;
use crate::backends::{Backends, KAFKA_VERSION};

/// Stands at the head of the table.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Host {
    pub cores: usize,
    pub processor: String,
    pub memory_gib: f64,
    pub kernel: String,
    /// Processes that wanted to run in the minute before, on average: above 0 somebody else was at work.
    pub load_before: f64,
    pub kafka: String,
    pub redis: String,
    pub nginx: String,
    /// The sizes that were measured with.
    pub sizes: String,
    /// The commit that was measured.
    pub commit: String,
}

impl Host {
    /// See [`Host::load_before`]; 0 where the system does not tell.
    pub fn load() -> f64 {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default()
    }

    pub async fn look(sizes: String) -> Host {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map(|(_, rest)| rest.trim().to_owned()).unwrap_or_default()
        };
        let kilobytes = after(&read("/proc/meminfo"), "MemTotal");
        let kilobytes: f64 = kilobytes.trim_end_matches(" kB").parse().unwrap_or_default();
        let kafka = match Backends::choose().await {
            Ok(Backends::None) | Err(_) => "not found".to_owned(),
            Ok(Backends::Docker) => format!("{KAFKA_VERSION} (a container)"),
            Ok(Backends::Local) => format!("{KAFKA_VERSION} (a local process)"),
        };
        Host {
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            processor: after(&read("/proc/cpuinfo"), "model name"),
            memory_gib: kilobytes / f64::from(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_before: Host::load(),
            kafka,
            redis: version("redis-server", &["--version"], "v="),
            nginx: version("nginx", &["-v"], "nginx/"),
            sizes,
            commit: printed(Command::new("git").args(["rev-parse", "--short", "HEAD"])).trim().to_owned(),
        }
    }

    /// Sentences for the head of a table.
    pub fn describe(&self) -> String {
        let Host { cores, processor, memory_gib, kernel, load_before, kafka, redis, nginx, sizes, commit } =
            self;
        format!(
            "Machine: {cores} cores ({processor}), {memory_gib:.0} GiB of memory, Linux {kernel}, load {load_before:.2} before. \
             Peers: Kafka {kafka}, Redis {redis}, nginx {nginx}. Measured: {sizes}; commit {commit}."
        )
    }
}

/// What a program prints, on either stream.
fn printed(command: &mut Command) -> String {
    let Ok(output) = command.output() else { return String::new() };
    [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat()
}

/// The word behind `before` in what the program says of itself.
fn version(name: &str, arguments: &[&str], before: &str) -> String {
    let Some(program) = program(name) else { return "not found".to_owned() };
    let text = printed(Command::new(program).args(arguments));
    let version = text.split_once(before).and_then(|(_, rest)| rest.split_whitespace().next());
    version.unwrap_or("of an unknown version").to_owned()
}
