//! The settings of the commands beside a node: `health`, `backup`, `restore` and `export`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use bitacora_protocol::tls::{self, ClientTls, TlsError};
use bitacora_protocol::token::Token;
use clap::Args;

use super::values::node_url;
use crate::http_client::{self, MemberClients};

#[derive(Debug, Clone, Args)]
#[command(after_help = BACKUP_EXAMPLES)]
pub struct BackupSettings {
    /// The node whose store is copied; it goes on serving [default: the one on this machine]
    #[arg(long, value_name = "URL", value_parser = node_url)]
    pub from: Option<reqwest::Url>,
    /// A file with the token to show to the node, of the scope admin; the variable `BITACORA_TOKEN` may have the token itself instead
    #[arg(long, env = "BITACORA_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// A file with the authorities, in PEM, of which the node must have its certificate; for a node that speaks TLS
    #[arg(long, env, value_name = "FILE")]
    pub tls_ca_file: Option<PathBuf>,
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
#[command(after_help = EXPORT_EXAMPLES)]
pub struct ExportSettings {
    /// Folder of a node that is stopped, or one that 'restore' filled
    #[arg(long, env, value_name = "DIR", default_value = "bitacora-data")]
    pub data_dir: PathBuf,
}

const EXPORT_EXAMPLES: &str = "\
Examples:
  bitacora-node export --data-dir /var/lib/bitacora > all.ndjson
  bitacora-node restore --data-dir unpacked bitacora.backup && bitacora-node export --data-dir unpacked | bitacora import -

It needs neither Kafka nor ZooKeeper: with it the records come into a new topic when the one that they are of is lost.
What is deleted or has expired is left out.";

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
    /// The node's certificate if it speaks TLS, to be shown where callers must show one
    #[arg(long, env, value_name = "FILE", requires = "tls_key_file")]
    pub tls_certificate_file: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, env, value_name = "FILE", requires = "tls_certificate_file")]
    pub tls_key_file: Option<PathBuf>,
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
        let scheme = if self.tls_certificate_file.is_some() { "https" } else { "http" };
        format!("{scheme}://{}/", SocketAddr::new(address, self.api_port))
    }

    /// What is shown to a node that asks for a certificate, if there is anything: the certificates and the key.
    fn identity(&self) -> anyhow::Result<Option<(Vec<u8>, Vec<u8>)>> {
        let (Some(certificate), Some(key)) = (&self.tls_certificate_file, &self.tls_key_file) else {
            return Ok(None);
        };
        Ok(Some((read("TLS_CERTIFICATE_FILE", certificate)?, read("TLS_KEY_FILE", key)?)))
    }

    fn wrong_identity(&self, error: &TlsError) -> anyhow::Error {
        let (setting, path) = if error.is_of_key() {
            ("TLS_KEY_FILE", &self.tls_key_file)
        } else {
            ("TLS_CERTIFICATE_FILE", &self.tls_certificate_file)
        };
        anyhow!("{setting} {}: {error}", path.as_deref().unwrap_or(Path::new("")).display())
    }

    /// A client that asks the node on this machine how it is. It takes whoever listens there for the node: nothing is shown but its
    /// certificate, which is public, and nothing is believed but its health.
    ///
    /// # Errors
    /// When a file can't be used.
    pub fn health_client(&self) -> anyhow::Result<reqwest::ClientBuilder> {
        let builder = http_client::builder();
        let Some((certificate, key)) = self.identity()? else { return Ok(builder) };
        let identity = tls::identity(&certificate, &key).map_err(|error| self.wrong_identity(&error))?;
        Ok(builder.tls_backend_preconfigured(http_client::trusting_everybody(identity)?))
    }
}

fn read(setting: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| anyhow!("{setting} {}: it can't be read: {error}", path.display()))
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

    /// What asks the node at `source`, and shows it this token.
    ///
    /// # Errors
    /// When a file of TLS is missing or can't be used.
    pub fn clients(&self, source: &reqwest::Url, token: Option<&Token>) -> anyhow::Result<MemberClients> {
        if source.scheme() != "https" {
            return Ok(MemberClients::new(token, None));
        }
        let Some(path) = &self.tls_ca_file else {
            bail!(
                "{source} speaks TLS: TLS_CA_FILE (--tls-ca-file) must name the authority of its certificate"
            );
        };
        let trusting = ClientTls::new(&read("TLS_CA_FILE", path)?);
        let mut tls = trusting.map_err(|error| anyhow!("TLS_CA_FILE {}: {error}", path.display()))?;
        if let Some((certificate, key)) = self.node.identity()? {
            tls =
                tls.with_certificate(&certificate, &key).map_err(|error| self.node.wrong_identity(&error))?;
        }
        Ok(MemberClients::new(token, Some(tls.http_config())))
    }
}
