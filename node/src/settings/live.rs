//! The settings that may change while a node runs, and the file that changes them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use bitacora_program::log_filter::log_filter;
use bitacora_protocol::units::duration_or_ms as duration;
use tokio::sync::watch;

use super::values::rate;
use super::{LogSettings, NodeSettings};
use crate::node::Node;
use crate::server::files;

const SETTING: &str = "LIVE_SETTINGS_FILE";

/// The values of the settings that may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveSettings {
    /// A filter of log lines.
    pub log_level: String,
    /// Requests that take longer are logged; none is if it is zero.
    pub slow_request: Duration,
    /// Of each port.
    pub max_connections: u32,
    pub max_watchers: u32,
    /// Bytes a second.
    pub snapshot_rate: u64,
}

impl LiveSettings {
    /// As flags and variables have them. `log_level` is the default of `LOG_LEVEL`.
    fn base(node: &NodeSettings, logging: &LogSettings, log_level: &str) -> Self {
        Self {
            log_level: logging.log_level.clone().unwrap_or_else(|| log_level.to_owned()),
            slow_request: node.slow_request,
            max_connections: node.max_connections,
            max_watchers: node.max_watchers,
            snapshot_rate: node.snapshot_rate,
        }
    }

    /// With the values that a file's text has in the place of these: a line `NAME=value` for each; empty ones, and those that begin
    /// with `#`, say nothing.
    ///
    /// # Errors
    /// Which line is wrong, and what would be right.
    fn with(mut self, text: &str) -> Result<Self, String> {
        let mut lines = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if !line.is_empty() && !line.starts_with('#') {
                let name = self.take(line).map_err(|error| format!("line {number}: {error}"))?;
                if let Some(first) = lines.insert(name, number) {
                    return Err(format!("line {number}: {name} is in line {first}, too"));
                }
            }
        }
        Ok(self)
    }

    /// Returns the name of the setting.
    fn take<'a>(&mut self, line: &'a str) -> Result<&'a str, String> {
        let (name, value) = line.split_once('=').ok_or_else(|| format!("'{line}' is not NAME=value"))?;
        let (name, value) = (name.trim(), value.trim());
        let wrong = |error| format!("{name}: {error}");
        match name {
            "LOG_LEVEL" => self.log_level = log_filter(value).map_err(wrong)?,
            "SLOW_REQUEST" => self.slow_request = duration(value).map_err(wrong)?,
            "MAX_CONNECTIONS" => self.max_connections = positive(name, value)?,
            "MAX_WATCHERS" => self.max_watchers = positive(name, value)?,
            "SNAPSHOT_RATE" => self.snapshot_rate = rate(value).map_err(wrong)?,
            _ => {
                return Err(format!(
                    "{name} can't change while a node runs; LOG_LEVEL, SLOW_REQUEST, MAX_CONNECTIONS, MAX_WATCHERS and SNAPSHOT_RATE can"
                ));
            }
        }
        Ok(name)
    }
}

/// As a file has them, in one line.
impl fmt::Display for LiveSettings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { log_level, slow_request, max_connections, max_watchers, snapshot_rate } = self;
        write!(
            out,
            "LOG_LEVEL={log_level} SLOW_REQUEST={slow_request:?} MAX_CONNECTIONS={max_connections} MAX_WATCHERS={max_watchers} \
             SNAPSHOT_RATE={snapshot_rate}"
        )
    }
}

fn positive(name: &str, value: &str) -> Result<u32, String> {
    match value.parse() {
        Ok(0) | Err(_) => Err(format!("{name}: '{value}' is no number of 1 or more")),
        Ok(number) => Ok(number),
    }
}

/// Where the values of the settings that may change come from.
#[derive(Debug, Clone)]
pub struct LiveSource {
    base: LiveSettings,
    file: Option<PathBuf>,
}

impl LiveSource {
    #[must_use]
    pub fn new(node: &NodeSettings, logging: &LogSettings, log_level: &str) -> Self {
        Self { base: LiveSettings::base(node, logging, log_level), file: node.live_settings_file.clone() }
    }

    /// The values as they are now.
    ///
    /// # Errors
    /// When the file can't be read or makes no sense: which one, where, and what would be right.
    pub fn read(&self) -> Result<LiveSettings, String> {
        match &self.file {
            None => Ok(self.base.clone()),
            Some(path) => read_file(path, self.base.clone()),
        }
    }
}

/// What changes settings while nodes run.
pub struct LiveUpdates {
    pub source: LiveSource,
    /// What the nodes begin with.
    pub current: LiveSettings,
    /// Takes a filter of log lines.
    pub set_log_level: Box<dyn Fn(&str) -> Result<()>>,
    /// Tells of each SIGHUP.
    pub hangups: watch::Receiver<()>,
}

impl LiveUpdates {
    /// Gives nodes, and the process' log, the values of the file whenever it has changed, for ever. While it makes no sense, those of
    /// before stay.
    pub async fn follow(self, nodes: &[Node]) {
        let Self { source, mut current, set_log_level, hangups } = self;
        let Some(path) = source.file.clone() else { return std::future::pending().await };
        let take = |read: &Result<LiveSettings, String>| {
            let adjusted = read.as_ref().map_err(String::clone).and_then(|live| {
                if current == *live {
                    return Ok(());
                }
                let in_file = |error| format!("{SETTING} {}: {error:#}", path.display());
                set_log_level(&live.log_level).map_err(in_file)?;
                for node in nodes {
                    node.adjust(live);
                }
                tracing::info!("took over {SETTING} {}: {live}", path.display());
                current.clone_from(live);
                Ok(())
            });
            for node in nodes {
                node.metrics().file_taken("live_settings", adjusted.is_ok());
            }
            if let Err(error) = adjusted {
                for node in nodes {
                    node.metrics().live_settings_failures.inc();
                }
                tracing::error!("{error}; the settings of before stay");
            }
        };
        files::follow(move || source.read(), take, hangups).await;
    }
}

fn read_file(path: &Path, base: LiveSettings) -> Result<LiveSettings, String> {
    let bytes = files::read_file(path);
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned()));
    text.and_then(|text| base.with(&text)).map_err(|error| format!("{SETTING} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> LiveSettings {
        LiveSettings {
            log_level: "info".to_owned(),
            slow_request: Duration::from_secs(1),
            max_connections: 10,
            max_watchers: 20,
            snapshot_rate: 1 << 20,
        }
    }

    #[test]
    fn a_file_changes_what_it_names() {
        let text = "# for a while\nLOG_LEVEL = debug,hyper=warn\n\nSLOW_REQUEST=250ms\nMAX_CONNECTIONS=7\n";
        let expected = LiveSettings {
            log_level: "debug,hyper=warn".to_owned(),
            slow_request: Duration::from_millis(250),
            max_connections: 7,
            ..base()
        };
        assert_eq!(base().with(text), Ok(expected));
        let text = "MAX_WATCHERS=8\nSNAPSHOT_RATE=2MiB";
        assert_eq!(base().with(text), Ok(LiveSettings { max_watchers: 8, snapshot_rate: 2 << 20, ..base() }));
        assert_eq!(base().with(""), Ok(base()));
    }

    #[test]
    fn a_wrong_line_is_told() {
        for (text, says) in [
            ("LOG_LEVEL", "line 1: 'LOG_LEVEL' is not NAME=value"),
            ("\nLOG_LEVEL=loud", "line 2: LOG_LEVEL: 'loud' is no level"),
            ("API_PORT=1", "line 1: API_PORT can't change while a node runs; LOG_LEVEL"),
            ("LOG_LEVEL=info\n#\nLOG_LEVEL=warn", "line 3: LOG_LEVEL is in line 1, too"),
            ("MAX_CONNECTIONS=0", "MAX_CONNECTIONS: '0' is no number of 1 or more"),
            ("MAX_WATCHERS=many", "MAX_WATCHERS: 'many' is no number"),
            ("SNAPSHOT_RATE=1", "SNAPSHOT_RATE: it must be 1KiB or more"),
            ("SLOW_REQUEST=soon", "SLOW_REQUEST: "),
        ] {
            let error = base().with(text).expect_err(text);
            assert!(error.contains(says), "{error}");
        }
    }
}
