//! The settings that a node of `serve` and one of `dev` have in common.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bitacora_program::secret_file;
use bitacora_protocol::token::Token;
use bitacora_protocol::units::{
    bytes, duration_or_ms as duration, positive_duration_or_ms as positive_duration,
};
use clap::{Args, ValueEnum};

use super::LiveSettings;
use super::values::{anonymous, otlp_endpoint, rate, request_memory, value_bytes};
use crate::http::AllowedOrigin;
use crate::metrics::Metrics;
use crate::replication::snapshot::SnapshotUse;
use crate::server::access::{Access, AccessSettings};
use crate::server::tls::{Tls, TlsSettings};
use crate::service::access::Scopes;
use crate::service::memory;
use crate::service::reads::PeerReads;

/// What a call has beside its value, handshake and key included, at most.
const FRAME_OVERHEAD_BYTES: u64 = 64 * 1024;
/// What the largest request needs beside its value or its frame: keys, lengths, what is read ahead.
const REQUEST_OVERHEAD_BYTES: u64 = 256 * 1024;

/// What a node of `serve` and one of `dev` have in common.
#[derive(Debug, Clone, Args)]
pub struct NodeSettings {
    /// After how long a delete marker or an expired key may leave the log; a node away for longer rebuilds its store
    #[arg(long, env, value_name = "TIME", default_value = "7d", value_parser = positive_duration, help_heading = "Store")]
    pub delete_retention: Duration,
    /// Memory for the cache of records over the store
    #[arg(long, env, value_name = "BYTES", default_value = "256MiB", value_parser = bytes, help_heading = "Store")]
    pub cache_bytes: u64,
    /// Whether a node without a store it can use takes a copy of another member's before it reads the log
    #[arg(long, env, value_name = "WHEN", default_value = "auto", help_heading = "Store")]
    pub snapshot: SnapshotUse,
    /// How many bytes a second a node spends on giving others a copy of its store
    #[arg(long, env, value_name = "BYTES", default_value = "256MiB", value_parser = rate, help_heading = "Store")]
    pub snapshot_rate: u64,
    /// When a key that is missing here is asked of the other members
    #[arg(long, env, value_name = "WHEN", default_value = "auto", help_heading = "Cluster")]
    pub peer_reads: PeerReads,
    /// How long the other members may take to answer
    #[arg(long, env, value_name = "TIME", default_value = "60ms", value_parser = positive_duration, help_heading = "Cluster")]
    pub external_request_timeout: Duration,
    /// The largest value that is taken
    #[arg(long, env, value_name = "BYTES", default_value = "1MiB", value_parser = value_bytes, help_heading = "Network")]
    pub max_value_bytes: u64,
    /// Memory for requests and answers under way; beyond it they are refused. At least 8 × `MAX_VALUE_BYTES` and 3 × `MAX_FRAME_BYTES`, and 256 KiB [default: a quarter of what the container or the machine has, at least 64MiB]
    #[arg(long, env, value_name = "BYTES", value_parser = request_memory, help_heading = "Network")]
    pub request_memory: Option<u64>,
    /// How long a client may take to shake hands over TLS, to send the body of a request or the rest of a frame, and go without reading its answers
    #[arg(long, env, value_name = "TIME", default_value = "30s", value_parser = positive_duration, help_heading = "Network")]
    pub request_timeout: Duration,
    /// Connections at a time, of each of the two ports; further ones wait (HTTP) or are closed (Avro RPC)
    #[arg(long, env, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Network")]
    pub max_connections: u32,
    /// Watches, and calls that read changes, at a time; further ones are refused
    #[arg(long, env, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Network")]
    pub max_watchers: u32,
    /// The largest frame of the Avro RPC; no less than a value and 64 KiB
    #[arg(long, env, value_name = "BYTES", default_value = "4MiB", value_parser = value_bytes, help_heading = "Network")]
    pub max_frame_bytes: u64,
    /// How long a connection may lie idle, or take over the head of a request; longer than the balancer before it keeps one
    #[arg(long, env, value_name = "TIME", default_value = "2m", value_parser = positive_duration, help_heading = "Network")]
    pub idle_timeout: Duration,
    /// Origins whose pages may write and read across origins, such as `https://app.example`, separated by ','; `*` for every one [default: none]
    #[arg(long, env, value_name = "ORIGINS", value_delimiter = ',', help_heading = "Network")]
    pub allowed_origins: Vec<AllowedOrigin>,
    /// How long a node that is told to stop still serves, unready, so that load balancers see it first
    #[arg(long, env, value_name = "TIME", default_value = "0s", value_parser = duration, help_heading = "Network")]
    pub drain_delay: Duration,
    /// How long the stop itself may take after `DRAIN_DELAY`: requests under way are aborted after three quarters of it, the rest is for the log and the store
    #[arg(long, env, value_name = "TIME", default_value = "5s", value_parser = duration, help_heading = "Network")]
    pub shutdown_grace: Duration,
    /// A file of the tokens that callers must show, a line of JSON each as `bitacora token` prints it; read again when it changes [default: everybody may do everything]
    #[arg(long, env, value_name = "FILE", help_heading = "Security")]
    pub tokens_file: Option<PathBuf>,
    /// What callers without a token may do where there is `TOKENS_FILE`: scopes separated by ',', of read, write, admin and member; or none
    #[arg(long, env, value_name = "SCOPES", default_value = "none", value_parser = anonymous, help_heading = "Security")]
    pub anonymous: Scopes,
    /// Answer `/metrics` without a token, too
    #[arg(long, env, value_name = "BOOL", default_value_t = false, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set, help_heading = "Security")]
    pub open_metrics: bool,
    /// A file with the token that this node shows to other members; needed where there is `TOKENS_FILE`
    #[arg(long, env, value_name = "FILE", help_heading = "Security")]
    pub member_token_file: Option<PathBuf>,
    /// A file with this node's certificate in PEM, and behind it what leads to an authority; it names what others reach this node by. Both ports then speak TLS only, and other members are asked over it; read again when it changes [default: plain text]
    #[arg(long, env, value_name = "FILE", help_heading = "Security")]
    pub tls_certificate_file: Option<PathBuf>,
    /// A file with the private key of that certificate, in PEM and without a password; read again when it changes
    #[arg(long, env, value_name = "FILE", help_heading = "Security")]
    pub tls_key_file: Option<PathBuf>,
    /// A file with the authorities, in PEM, of which other members must have their certificates; needed where there is `TLS_CERTIFICATE_FILE`; read again when it changes
    #[arg(long, env, value_name = "FILE", help_heading = "Security")]
    pub tls_ca_file: Option<PathBuf>,
    /// Whether callers, other members too, must show a certificate; one that is shown must be good [default: `none`, and `required` where there is `TLS_CLIENT_CA_FILE`]
    #[arg(long, env, value_name = "WHICH", help_heading = "Security")]
    pub tls_client_certificates: Option<ClientCertificates>,
    /// A file with the authorities, in PEM, of which callers must have their certificates; read again when it changes
    #[arg(long, env, value_name = "FILE", help_heading = "Security")]
    pub tls_client_ca_file: Option<PathBuf>,
    /// Requests that take longer are logged, with what they waited for; 0 for none
    #[arg(long, env, value_name = "TIME", default_value = "1s", value_parser = duration, help_heading = "Logging")]
    pub slow_request: Duration,
    /// A file of settings that may change while the node runs, a line `NAME=value` each, of `LOG_LEVEL`, `SLOW_REQUEST`, `MAX_CONNECTIONS`, `MAX_WATCHERS` and `SNAPSHOT_RATE`; they go before flags and variables; read again when it changes, and at SIGHUP
    #[arg(long, env, value_name = "FILE", help_heading = "Logging")]
    pub live_settings_file: Option<PathBuf>,
    /// Base URL of an OpenTelemetry collector that takes traces by OTLP over HTTP, such as `http://collector:4318` [default: no traces]
    #[arg(long, env, value_name = "URL", value_parser = otlp_endpoint, help_heading = "Logging")]
    pub otlp_endpoint: Option<String>,
}

/// Whether callers show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClientCertificates {
    /// they are not asked for one
    None,
    /// they may; one that is not good ends the connection
    Optional,
    /// they must
    Required,
}

impl NodeSettings {
    /// With the values of the settings that may change, as they are at the start.
    pub fn take(&mut self, live: &LiveSettings) {
        self.slow_request = live.slow_request;
        self.max_connections = live.max_connections;
        self.max_watchers = live.max_watchers;
        self.snapshot_rate = live.snapshot_rate;
    }

    /// The largest frame of the RPC, in bytes.
    #[must_use]
    pub fn frame_bytes(&self) -> u64 {
        self.max_frame_bytes.max(self.max_value_bytes + FRAME_OVERHEAD_BYTES)
    }

    /// What callers are asked for, and what this node shows to other members.
    ///
    /// # Errors
    /// When a file can't be read or makes no sense, or other members would not answer to this one.
    pub fn access(&self, metrics: Arc<Metrics>) -> Result<(Access, Option<Token>), String> {
        let file = self.member_token_file.as_deref();
        let token: Option<Token> =
            file.map(|path| secret_file::read("MEMBER_TOKEN_FILE", path)).transpose()?;
        let access = match &self.tokens_file {
            None if !self.anonymous.is_empty() => {
                return Err(
                    "ANONYMOUS is set without TOKENS_FILE; without tokens everybody may do everything"
                        .to_owned(),
                );
            }
            None => Access::open(),
            Some(tokens_file) => {
                let (tokens_file, anonymous, open_metrics) =
                    (tokens_file.clone(), self.anonymous, self.open_metrics);
                Access::new(AccessSettings { tokens_file, anonymous, open_metrics }, token.as_ref(), metrics)?
            }
        };
        Ok((access, token))
    }

    /// The TLS of both ports, if they speak it.
    ///
    /// # Errors
    /// When a file is missing, can't be read or makes no sense: which one, and what is wrong.
    pub fn tls(&self, own_host: &str, metrics: Arc<Metrics>) -> Result<Option<Tls>, String> {
        self.tls_settings()?.map(|settings| Tls::new(settings, own_host, metrics)).transpose()
    }

    /// The files of TLS, if there is any.
    ///
    /// # Errors
    /// When one is missing. None of them is read.
    pub fn tls_settings(&self) -> Result<Option<TlsSettings>, String> {
        let Self { tls_certificate_file, tls_key_file, tls_ca_file, tls_client_ca_file, .. } = self;
        let asked = self.tls_client_certificates;
        let files = [
            ("TLS_CERTIFICATE_FILE", tls_certificate_file),
            ("TLS_KEY_FILE", tls_key_file),
            ("TLS_CA_FILE", tls_ca_file),
        ];
        let (Some(certificate_file), Some(key_file), Some(ca_file)) =
            (tls_certificate_file.clone(), tls_key_file.clone(), tls_ca_file.clone())
        else {
            let asks =
                tls_client_ca_file.is_some() || !matches!(asked, None | Some(ClientCertificates::None));
            if !asks && files.iter().all(|(_, file)| file.is_none()) {
                return Ok(None);
            }
            let also = [
                ("TLS_CLIENT_CERTIFICATES", asked.is_some()),
                ("TLS_CLIENT_CA_FILE", tls_client_ca_file.is_some()),
            ];
            let all = files.iter().map(|(name, file)| (*name, file.is_some()));
            let (set, missing): (Vec<_>, Vec<_>) = all.partition(|(_, is_set)| *is_set);
            let set = set.into_iter().chain(also.into_iter().filter(|(_, is_set)| *is_set));
            let names = |settings: Vec<(&str, bool)>| {
                settings.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
            };
            return Err(format!(
                "TLS needs TLS_CERTIFICATE_FILE, TLS_KEY_FILE and TLS_CA_FILE, to show a certificate and to check those of other \
                 members; not set: {}; set: {}",
                names(missing),
                names(set.collect())
            ));
        };
        let (client_ca_file, client_certificates_required) = match (asked, tls_client_ca_file) {
            (Some(ClientCertificates::None), _) | (None, None) => (None, false),
            (Some(ClientCertificates::Optional | ClientCertificates::Required), None) => {
                return Err("TLS_CLIENT_CERTIFICATES is set without TLS_CLIENT_CA_FILE, by which they would be checked"
                    .to_owned());
            }
            (Some(ClientCertificates::Optional), Some(path)) => (Some(path.clone()), false),
            (Some(ClientCertificates::Required) | None, Some(path)) => (Some(path.clone()), true),
        };
        Ok(Some(TlsSettings {
            certificate_file,
            key_file,
            ca_file,
            client_ca_file,
            client_certificates_required,
            handshake_timeout: self.request_timeout.min(self.idle_timeout),
        }))
    }

    /// Bytes of the budget for requests: `REQUEST_MEMORY` or its default.
    ///
    /// # Errors
    /// When it is less than the largest request needs, which would then be refused for ever.
    pub fn request_memory_bytes(&self) -> Result<u64, String> {
        // A form has three bytes for one of the value's, twice, beside the record and the answer. A frame is held as it
        // arrives, put together, and as the batch that it is.
        let least = (8 * self.max_value_bytes).max(3 * self.frame_bytes()) + REQUEST_OVERHEAD_BYTES;
        match self.request_memory {
            None => Ok(memory::default_limit().max(least)),
            Some(bytes) if bytes >= least => Ok(bytes),
            Some(bytes) => Err(format!(
                "REQUEST_MEMORY is {bytes} bytes, and the largest request that MAX_VALUE_BYTES and MAX_FRAME_BYTES allow needs \
                 {least}; raise REQUEST_MEMORY to that, or lower the other two"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::{Cli, Command};
    use super::*;

    fn node(flags: &[&str]) -> NodeSettings {
        let cli = Cli::try_parse_from([&["bitacora-node", "dev"], flags].concat()).expect("settings");
        let Command::Dev(settings) = cli.command else { panic!("dev was asked for") };
        settings.node
    }

    #[test]
    fn request_memory_holds_the_largest_request() {
        for (flags, least) in [
            (&["--max-value-bytes", "4MiB"][..], 32 << 20),
            (&["--max-frame-bytes", "32MiB"], 96 << 20),
            (&["--max-value-bytes", "256MiB"], 2 << 30),
        ] {
            let least = least + REQUEST_OVERHEAD_BYTES;
            let with = |bytes: u64| {
                node(&[flags, &["--request-memory", &bytes.to_string()]].concat()).request_memory_bytes()
            };
            assert_eq!(with(least), Ok(least));
            let error = with(least - 1).expect_err("it is too little");
            for name in ["REQUEST_MEMORY", "MAX_VALUE_BYTES", "MAX_FRAME_BYTES", &least.to_string()] {
                assert!(error.contains(name), "{error}");
            }
            assert!(node(flags).request_memory_bytes().expect("a default") >= least);
        }
    }
}
