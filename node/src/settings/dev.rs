//! The settings of `dev`.

use std::path::PathBuf;

use clap::Args;

use super::{LogSettings, NodeSettings};

#[derive(Debug, Clone, Args)]
pub struct DevSettings {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub nodes: u16,
    /// HTTP port of the first node; the next ones follow in steps of two
    #[arg(long, value_name = "PORT", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Folder of the log and the stores; it survives a restart
    #[arg(long, value_name = "DIR", default_value = "bitacora-data/dev")]
    pub data_dir: PathBuf,
    #[command(flatten)]
    pub node: NodeSettings,
    #[command(flatten)]
    pub logging: LogSettings,
}
