//! The settings of the log lines.

use bitacora_program::log_filter::log_filter;
use clap::{Args, ValueEnum};

#[derive(Debug, Clone, Args)]
pub struct LogSettings {
    /// error, warn, info, debug, trace, or a filter such as `info,bitacora_node=debug` [default: info; warn in dev]
    #[arg(long, env, value_name = "FILTER", value_parser = log_filter, help_heading = "Logging")]
    pub log_level: Option<String>,
    /// How log lines look
    #[arg(long, env, value_name = "FORMAT", default_value = "human", help_heading = "Logging")]
    pub log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Human,
    Json,
}
