//! Settings in, runtime up, a command run, exit code out; nothing else.
//!
//! Exit codes: 0 stopped as asked, 1 could not start or gave up, 2 wrong settings.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bitacora_node::process::logging::Output;
use bitacora_node::process::memory::keep_private;
use bitacora_node::process::open_files;
use bitacora_node::process::signals::{Signals, handle_signals};
use bitacora_node::replication::snapshot::{backup, export};
use bitacora_node::settings::{
    Cli, Command, HealthSettings, LiveSource, LiveUpdates, LogSettings, NodeSettings,
};
use bitacora_node::{dev, serve};
use bitacora_program::{console, token};
use tikv_jemallocator::Jemalloc;

/// The cache reckons with its classes of sizes (`store/cache/mod.rs`).
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// How jemalloc finds its settings: as a C string, by this name. By default there are four arenas for each processor, each with pages of its own, and
/// what is freed is kept for ten seconds.
#[used]
#[allow(unsafe_code)]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: &[u8; 36] = b"narenas_ratio:1,dirty_decay_ms:1000\0";

fn main() -> ExitCode {
    let cli = Cli::read();
    // Without a thread for its words it can still say why by its exit code.
    let Ok(output) = Output::start() else { return ExitCode::FAILURE };
    let outcome = start_runtime(cli, &output);
    // Whoever stopped reading a backup knows it, and it is not whole.
    if let Err(error) = outcome.as_ref()
        && !console::nobody_reads(error.as_ref())
    {
        output.say(&format!("bitacora-node: {error:#}"));
    }
    output.finish();
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn start_runtime(cli: Cli, output: &Output) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime could not be started")?;
    let outcome = runtime.block_on(run(cli, output));
    // What did not end within the deadline of the stop must not hold up the end of the process.
    runtime.shutdown_background();
    outcome
}

async fn run(cli: Cli, output: &Output) -> Result<()> {
    match cli.command {
        Command::Serve(mut settings) => {
            keep_private()?;
            let (stop, live) = begin(output, &mut settings.node, &settings.logging, "info")?;
            open_files::warn_if_few(open_files::raise_limit(), settings.node.max_connections);
            serve::run(settings, live, stop).await
        }
        Command::Dev(mut settings) => {
            // Its screen says what a developer needs to know.
            let (stop, live) = begin(output, &mut settings.node, &settings.logging, "warn")?;
            open_files::raise_limit();
            dev::run(settings, live, stop).await
        }
        Command::Health(settings) => health(&settings).await,
        Command::Backup(settings) => {
            let token = token::read(settings.token_file.as_deref()).map_err(|error| anyhow!(error))?;
            let source = settings.source()?;
            backup::write(&source, &settings.clients(&source, token.as_ref())?, &settings.file).await
        }
        Command::Restore(settings) => backup::restore(&settings.file, &settings.data_dir),
        Command::Export(settings) => export::export(&settings.data_dir),
    }
}

/// Starts log lines and the handling of signals, by the settings as `LIVE_SETTINGS_FILE` has them now. `log_level` is the default of
/// `LOG_LEVEL`.
fn begin(
    output: &Output,
    node: &mut NodeSettings,
    logging: &LogSettings,
    log_level: &str,
) -> Result<(impl Future<Output = ()> + use<>, LiveUpdates)> {
    let source = LiveSource::new(node, logging, log_level);
    let current = source.read().map_err(|error| anyhow!(error))?;
    node.take(&current);
    let set_log_level = Box::new(output.start_logging(logging.log_format, &current.log_level)?);
    let Signals { stop, hangups } = handle_signals(output.clone())?;
    Ok((stop, LiveUpdates { source, current, set_log_level, hangups }))
}

async fn health(settings: &HealthSettings) -> Result<()> {
    let (path, missing) = if settings.live { ("live", "alive") } else { ("ready", "ready") };
    let url = format!("{}health/{path}", settings.node.url());
    let client = settings.node.health_client()?.timeout(Duration::from_secs(2)).build()?;
    let answer = client.get(&url).send().await.with_context(|| format!("no answer from {url}"))?;
    let (status, body) = (answer.status(), answer.text().await.unwrap_or_default());
    if status == reqwest::StatusCode::BAD_REQUEST {
        // No node answers this question so: it was asked without TLS, or it is something else.
        bail!(
            "{url} answers 400: {body}; health takes the settings of the node that it asks, those of TLS too"
        );
    }
    // What the exit code tells is enough for who can't read it.
    let _ = console::print(body);
    if !status.is_success() {
        bail!("the node is not {missing}");
    }
    Ok(())
}
