//! Settings in, runtime up, one command, exit code out; nothing else.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod advice;
mod api;
mod bench;
mod checkpoint;
mod cli;
mod diff;
mod export;
mod http;
mod import;
mod key_list;
mod keys;
mod members;
mod output;
mod records;
mod token;
mod watch;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bitacora_program::console::{nobody_reads, print, tell};
use tikv_jemallocator::Jemalloc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

use crate::api::{Api, Failure};
use crate::cli::{Cli, Command, Connection};

/// Records are read on one thread, sent on others and settled on a third: an import takes a sixth less of the processors than with the C
/// library's allocator.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::read();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime could not be started")
        .and_then(|runtime| {
            let outcome = runtime.block_on(run(cli));
            // A thread that waits for stdin can't be told to end.
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads has enough, as in `scan | head`.
        Err(error) if nobody_reads(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(format_args!("bitacora: {error:#}"));
            error.downcast_ref::<Failure>().map_or(ExitCode::FAILURE, |failure| failure.exit_code().into())
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    let Cli { connection, output, log_level, command } = cli;
    start_logging(&log_level)?;
    let (connection, output) = (&connection, output);
    match &command {
        Command::Get(arguments) => {
            over(connection, 1, async |api| keys::get(&api, arguments, output).await).await
        }
        Command::Set(arguments) => {
            over(connection, 1, async |api| keys::set(&api, arguments, output).await).await
        }
        Command::Del(arguments) => {
            over(connection, 1, async |api| keys::del(&api, arguments, output).await).await
        }
        Command::Scan(arguments) => {
            over(connection, 1, async |api| keys::scan(&api, arguments, output).await).await
        }
        Command::Watch(arguments) => {
            over(connection, 1, async |api| watch::run(&api, arguments, output).await).await
        }
        Command::Import(arguments) => {
            over(connection, 2, async |api| import::run(&api, arguments).await).await
        }
        Command::Export(arguments) => {
            export::check(arguments)?;
            over(connection, 1, async |api| export::run(&api, arguments).await).await
        }
        Command::Bench(arguments) => {
            over(connection, arguments.connections, async |api| bench::run(&api, arguments, output).await)
                .await
        }
        Command::Members => members::members(connection, output).await,
        Command::Status(arguments) => members::status(connection, arguments, output).await,
        Command::Diff(arguments) => diff::run(connection, arguments, output).await,
        Command::Token(arguments) => token::make(arguments),
        Command::Completions(arguments) => {
            let mut script = Vec::new();
            clap_complete::generate(arguments.shell, &mut Cli::program(), "bitacora", &mut script);
            Ok(print(script)?)
        }
    }
}

/// Connects, so many times to each node, does what is asked, and takes leave.
async fn over(
    connection: &Connection,
    connections: u32,
    work: impl AsyncFnOnce(Arc<Api>) -> Result<()>,
) -> Result<()> {
    let api = Api::connect(connection, connections).await?;
    let outcome = work(Arc::clone(&api)).await;
    api.close().await;
    outcome
}

fn start_logging(level: &str) -> Result<()> {
    // ZooKeeper's client logs every try to reach a server as an error.
    let filter = EnvFilter::try_new(format!("zookeeper_async=off,hyper=warn,{level}"))
        .with_context(|| format!("--log-level (BITACORA_LOG_LEVEL) '{level}' is not a filter"))?;
    let logging = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // What can't be logged is not reported either: that goes to stderr too, and ends the program if it fails.
    let logging = logging.log_internal_errors(false);
    logging.with_ansi(std::io::stderr().is_terminal()).with_target(false).init();
    Ok(())
}

/// Completes on SIGTERM or SIGINT; a second one ends the process at once.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be handled")?;
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        let _ = tell.send(());
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        std::process::exit(1);
    });
    Ok(async move {
        let _ = told.await;
    })
}
