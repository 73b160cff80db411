//! Jobs that run in processes of their own: the benchmark starts itself again for each, so that neither threads nor processor time are shared.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::bare::{ProducingServer, Server};
use super::bulk::{Batches, Consume, Flood, Produce};
use super::cpu;
use super::load::{Hold, Load};
use crate::process::Process;

const MODE: &str = "--job";

/// What a process of its own does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Job {
    Load(Load),
    Hold(Hold),
    Produce(Produce),
    Flood(Flood),
    Consume(Consume),
    Batches(Batches),
    Serve(Server),
    ServeProducing(ProducingServer),
}

/// What a job saw. Zero where it has no such figure.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    pub calls: f64,
    pub seconds: f64,
    /// In µs.
    pub p50: f64,
    /// In µs.
    pub p99: f64,
    /// The processor time of the job's own process while it worked, in seconds.
    pub cpu: f64,
}

impl Figures {
    pub fn rate(&self) -> f64 {
        self.calls / self.seconds
    }

    /// Processor seconds of the job's own process for a million calls.
    pub fn own_cpu_per_million(&self) -> f64 {
        self.cpu / self.calls * 1e6
    }
}

/// What was seen of a server, or of a bare peer, in one round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    pub rate: f64,
    /// In µs.
    pub p50: f64,
    /// In µs.
    pub p99: f64,
    /// Processor seconds for a million calls.
    pub cpu: f64,
}

impl Measured {
    /// A job that is itself what is measured.
    pub fn own(figures: Figures) -> Measured {
        let Figures { p50, p99, .. } = figures;
        Measured { rate: figures.rate(), p50, p99, cpu: figures.own_cpu_per_million() }
    }
}

/// The exit code of this process if it was started for a job, once that is done.
pub fn main_if_asked() -> Option<ExitCode> {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, mode, job] = &arguments[..] else { return None };
    if mode != MODE {
        return None;
    }
    Some(match work(job) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    })
}

fn work(job: &str) -> Result<()> {
    let job: Job = serde_json::from_str(job).context("the job")?;
    match &job {
        Job::Serve(server) => return server.run(),
        Job::ServeProducing(server) => return server.run(),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let before = cpu::seconds(std::process::id())?;
    let mut figures = match &job {
        Job::Load(load) => runtime.block_on(load.run())?,
        Job::Hold(hold) => runtime.block_on(hold.run())?,
        Job::Produce(produce) => runtime.block_on(produce.run())?,
        Job::Flood(flood) => flood.run()?,
        Job::Consume(consume) => consume.run()?,
        Job::Batches(batches) => runtime.block_on(batches.run())?,
        Job::Serve(_) | Job::ServeProducing(_) => Figures::default(),
    };
    figures.cpu = cpu::seconds(std::process::id())? - before;
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

fn command(job: &Job) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([MODE, &serde_json::to_string(job)?]).stdin(Stdio::null());
    Ok(command)
}

/// Runs a job to its end.
///
/// # Errors
/// What the job's process said on stderr.
pub async fn run(job: &Job) -> Result<Figures> {
    let mut command = tokio::process::Command::from(command(job)?);
    let output = command.kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "{job:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("what the job printed")
}

/// Starts a job that runs until the process is dropped.
///
/// # Errors
/// When it can't be started.
pub fn start(job: &Job, log: &Path) -> Result<Process> {
    Process::spawn(command(job)?, log)
}

/// As [`start`], beside others that are measured: at a lower priority, since clients of a server mostly have processors of their own.
///
/// # Errors
/// When it can't be started.
pub fn start_beside(job: &Job, log: &Path) -> Result<Process> {
    Process::spawn(at_lower_priority(&command(job)?), log)
}

/// A command whose process gives way to others.
pub fn at_lower_priority(command: &Command) -> Command {
    let mut lower = Command::new("nice");
    lower.args(["-n", "10"]).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    if let Some(dir) = command.get_current_dir() {
        lower.current_dir(dir);
    }
    lower
}

/// Runs a job against servers, whose processor time counts.
///
/// # Errors
/// As [`run`].
pub async fn against(servers: &[u32], job: &Job) -> Result<Measured> {
    let before = cpu::seconds_of(servers)?;
    let figures = run(job).await?;
    let cpu = (cpu::seconds_of(servers)? - before) / figures.calls * 1e6;
    Ok(Measured { rate: figures.rate(), p50: figures.p50, p99: figures.p99, cpu })
}
