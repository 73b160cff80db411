//! Settings in, runtime up, a command run, exit code out; nothing else.
//!
//! Exit codes: 0 stopped as asked, 1 could not start or gave up, 2 wrong settings.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bitacora_node::replication::snapshot::backup;
use bitacora_node::settings::{Cli, Command, HealthSettings, LogFormat, LogSettings};
use bitacora_node::{dev, serve};
use bitacora_program::console;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::read();
    match start_runtime(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever stopped reading a backup knows it, and it is not whole.
            if !console::nobody_reads(error.as_ref()) {
                console::tell(format_args!("bitacora-node: {error:#}"));
            }
            ExitCode::FAILURE
        }
    }
}

fn start_runtime(cli: Cli) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime could not be started")?;
    let outcome = runtime.block_on(run(cli));
    // What did not end within the deadline of the stop must not hold up the end of the process.
    runtime.shutdown_background();
    outcome
}

async fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Serve(settings) => {
            start_logging(&settings.logging, "info")?;
            serve::run(settings, stop_signal()?).await
        }
        Command::Dev(settings) => {
            // Its screen says what a developer needs to know.
            start_logging(&settings.logging, "warn")?;
            dev::run(settings, stop_signal()?).await
        }
        Command::Health(settings) => health(&settings).await,
        Command::Backup(settings) => backup::write(&settings.from, &settings.file).await,
        Command::Restore(settings) => backup::restore(&settings.file, &settings.data_dir),
    }
}

fn start_logging(settings: &LogSettings, level: &str) -> Result<()> {
    let level = settings.log_level.as_deref().unwrap_or(level);
    // ZooKeeper's client logs every try to reach a server as an error; the node says what matters of it by itself.
    let quiet = "zookeeper_async=off,hyper=warn";
    let filter = EnvFilter::try_new(format!("{quiet},{level}"))
        .with_context(|| format!("LOG_LEVEL '{level}' is not a filter"))?;
    let logging = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let logging = logging.with_ansi(std::io::stderr().is_terminal());
    match settings.log_format {
        LogFormat::Human => logging.with_target(false).init(),
        LogFormat::Json => logging.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Completes on SIGTERM or SIGINT; a second one ends the process at once.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be handled")?;
    Ok(async move {
        let name = tokio::select! { _ = terminate.recv() => "SIGTERM", _ = interrupt.recv() => "SIGINT" };
        tracing::info!("{name}: stopping");
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::warn!("told twice to stop: ending at once");
            std::process::exit(1);
        });
    })
}

async fn health(settings: &HealthSettings) -> Result<()> {
    let (path, missing) = if settings.live { ("live", "alive") } else { ("ready", "ready") };
    let url = format!("http://127.0.0.1:{}/health/{path}", settings.api_port);
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
    let answer = client.get(&url).send().await.with_context(|| format!("no answer from {url}"))?;
    let (status, body) = (answer.status(), answer.text().await.unwrap_or_default());
    // What the exit code tells is enough for who can't read it.
    let _ = console::print(body);
    if !status.is_success() {
        bail!("the node is not {missing}");
    }
    Ok(())
}
