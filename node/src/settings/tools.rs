//! The settings of the commands beside a node: `health`, `backup` and `restore`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;

use super::values::node_url;

#[derive(Debug, Clone, Args)]
#[command(after_help = BACKUP_EXAMPLES)]
pub struct BackupSettings {
    /// The node whose store is copied; it goes on serving [default: the one on this machine]
    #[arg(long, value_name = "URL", value_parser = node_url)]
    pub from: Option<reqwest::Url>,
    /// A file with the token to show to the node, of the scope admin; the variable `BITACORA_TOKEN` may have the token itself instead
    #[arg(long, env = "BITACORA_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    #[command(flatten)]
    pub node: OwnNode,
    /// The file to write, which must not be there yet; '-' for stdout
    pub file: PathBuf,
}

const BACKUP_EXAMPLES: &str = "\
Examples:
  bitacora-node backup bitacora.backup
  bitacora-node backup --from http://node-2:8080 /backups/bitacora-$(date +%F).backup
  bitacora-node backup - | ssh elsewhere 'cat > today.backup'

The file holds one node's whole store and its positions in the log, with a checksum. 'restore' starts from it.";

#[derive(Debug, Clone, Args)]
#[command(after_help = RESTORE_EXAMPLES)]
pub struct RestoreSettings {
    /// Folder of the store, which must hold none
    #[arg(long, env, value_name = "DIR", default_value = "bitacora-data")]
    pub data_dir: PathBuf,
    /// What 'backup' wrote; '-' for stdin
    pub file: PathBuf,
}

const RESTORE_EXAMPLES: &str = "\
Examples:
  bitacora-node restore bitacora.backup && bitacora-node serve
  bitacora-node restore --data-dir /var/lib/bitacora /backups/bitacora-2026-01-31.backup
  bitacora-node backup --from http://node-2:8080 - | bitacora-node restore --data-dir /var/lib/bitacora -

The node then reads on where the backup stands. A backup of another topic or cluster, or one that is older than
DELETE_RETENTION, is not used: the node empties the store and fills it from its peers or the log, as it always may.";

#[derive(Debug, Clone, Args)]
pub struct HealthSettings {
    /// Ask whether it is alive instead; a node that restores is alive, but not ready
    #[arg(long)]
    pub live: bool,
    #[command(flatten)]
    pub node: OwnNode,
}

/// Where the node on this machine listens, by the settings that it was started with.
#[derive(Debug, Clone, Args)]
pub struct OwnNode {
    /// Port of the HTTP API
    #[arg(long, env, value_name = "PORT", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    pub api_port: u16,
    /// Address that it listens on
    #[arg(long, env, value_name = "IP", default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
}

impl OwnNode {
    /// The root of its HTTP API. A node that listens on all addresses is asked at the loopback address of their family.
    #[must_use]
    pub fn url(&self) -> String {
        let address = match self.bind_address {
            IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            address => address,
        };
        format!("http://{}/", SocketAddr::new(address, self.api_port))
    }
}

impl BackupSettings {
    /// The root of the HTTP API of the node whose store is copied.
    ///
    /// # Errors
    /// When it is no URL.
    pub fn source(&self) -> anyhow::Result<reqwest::Url> {
        match &self.from {
            Some(url) => Ok(url.clone()),
            None => Ok(self.node.url().parse()?),
        }
    }
}
