//! What the program says: log lines, and its last sentence. All of it is best effort, see [`crate::log_lines`].

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal as _;
use std::panic::PanicHookInfo;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::Layer;
use tracing_subscriber::fmt::format::{DefaultFields, Format};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, reload};

use crate::log_lines::LogLines;
use crate::service::access::AUDIT;
use crate::settings::LogFormat;

/// How long the lines of a process that ends may take: a reader that reads nothing must not keep it.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a thread that panics waits for its line: the process may be about to be aborted.
const PANIC_TIMEOUT: Duration = Duration::from_millis(100);

/// Where the program's words go. Clones share it.
#[derive(Clone)]
pub struct Output(LogLines);

impl Output {
    /// To standard error.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start() -> Result<Self> {
        let lines = LogLines::to(std::io::stderr()).context("there is no thread for log lines")?;
        Ok(Self(lines))
    }

    /// Sends log lines from now on, those about panics too. Returns what sets another level, which is a filter such as that of
    /// `LOG_LEVEL`, later on.
    ///
    /// # Errors
    /// When `level` is no filter.
    pub fn start_logging(
        &self,
        format: LogFormat,
        level: &str,
    ) -> Result<impl Fn(&str) -> Result<()> + use<>> {
        let lines = self.0.clone();
        let (changeable, handle) = reload::Layer::new(filter(level)?);
        let filtered = tracing_subscriber::registry().with(changeable);
        match format {
            LogFormat::Human => {
                // Lines for who audits have their target, so that they can be told from others.
                let others =
                    layer(&lines).with_target(false).with_filter(filter_fn(|of| of.target() != AUDIT));
                let audit = layer(&lines).with_filter(filter_fn(|of| of.target() == AUDIT));
                filtered.with(others).with(audit).init();
            }
            LogFormat::Json => filtered.with(layer(&lines).json().flatten_event(true)).init(),
        }
        let lines = self.0.clone();
        std::panic::set_hook(Box::new(move |panic| {
            log_panic(panic);
            lines.flush(PANIC_TIMEOUT);
        }));
        Ok(move |level: &str| {
            handle.reload(filter(level)?).context("the level of log lines can't be changed")
        })
    }

    /// Says a sentence that is no log line.
    pub fn say(&self, sentence: &str) {
        self.0.add(format!("{sentence}\n").as_bytes());
    }

    /// Waits for what was said, but not for long. Blocks.
    pub fn finish(&self) {
        self.0.flush(LAST_LINES_TIMEOUT);
    }
}

/// What writes log lines.
fn layer<S>(lines: &LogLines) -> Layer<S, DefaultFields, Format, impl Fn() -> LogLines + use<S>> {
    let lines = lines.clone();
    // Its own words about a line that failed would be printed, and a print that fails is a panic.
    let layer = tracing_subscriber::fmt::layer().log_internal_errors(false);
    layer.with_ansi(std::io::stderr().is_terminal()).with_writer(move || lines.clone())
}

fn filter(level: &str) -> Result<EnvFilter> {
    // ZooKeeper's client logs every try to reach a server as an error; the node says what matters of it by itself. Who audits is to find
    // every line, whatever the level of the others is.
    let quiet = "zookeeper_async=off,hyper=warn,audit=info";
    EnvFilter::try_new(format!("{quiet},{level}"))
        .with_context(|| format!("LOG_LEVEL '{level}' is not a filter"))
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let what = panic.payload_as_str().unwrap_or("no reason given");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    // Made if RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        tracing::error!(thread, place, "a thread panicked: {what}\n{backtrace}");
    } else {
        tracing::error!(thread, place, "a thread panicked: {what}");
    }
}
