//! TLS of both interfaces: its files, which are read again when they change, and the handshake of each connection.
//!
//! A connection keeps what it was made with. Only those that are made later get to see new files.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bitacora_protocol::http::Message;
use bitacora_protocol::tls::{self, ALPN_HTTP, TlsError};
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::http_client::{MemberTls, MemberTrust};
use crate::metrics::Metrics;
use crate::server::files;
use crate::server::socket::{Socket, Stream};
use crate::service::access::AUDIT;

/// The first byte of everything that speaks TLS: the type of a record that is part of a handshake.
const HANDSHAKE_RECORD: u8 = 22;
/// Between two log lines about handshakes that failed.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Where certificates and keys are, and what clients must show.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// `TLS_CERTIFICATE_FILE`
    pub certificate_file: PathBuf,
    /// `TLS_KEY_FILE`
    pub key_file: PathBuf,
    /// `TLS_CA_FILE`: those whom this node trusts as members.
    pub ca_file: PathBuf,
    /// `TLS_CLIENT_CA_FILE`, if certificates of clients are looked at.
    pub client_ca_file: Option<PathBuf>,
    /// Whether clients without a certificate are refused.
    pub client_certificates_required: bool,
    /// How long a client may take to shake hands.
    pub handshake_timeout: Duration,
}

/// What both interfaces speak.
pub struct Tls {
    settings: TlsSettings,
    metrics: Arc<Metrics>,
    http: ArcSwap<ServerConfig>,
    rpc: ArcSwap<ServerConfig>,
    members: Arc<MemberTls>,
    /// The host by which members and clients know this node.
    own_host: String,
    /// What is in use.
    taken: Mutex<Contents>,
    /// When a failed handshake was last written about, and how many there were since.
    last_line: Mutex<(Option<Instant>, u64)>,
}

/// What the files hold.
#[derive(Clone, PartialEq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// The same, ready for use.
struct Loaded {
    http: ServerConfig,
    rpc: ServerConfig,
    members: MemberTrust,
    /// When the first of the node's certificates runs out, Unix time in s.
    expiry: i64,
}

/// Why a handshake failed: as the metric and as the log have it.
#[derive(Debug, PartialEq, Eq)]
struct Failed(&'static str, String);

impl Tls {
    /// # Errors
    /// When a file can't be read or makes no sense: which setting, which file, what is wrong.
    pub fn new(settings: TlsSettings, own_host: &str, metrics: Arc<Metrics>) -> Result<Self, String> {
        let contents = settings.read()?;
        let loaded = settings.load(&contents)?;
        settings.warn_if_refused(&loaded, own_host);
        let Loaded { http, rpc, members, expiry } = loaded;
        metrics.tls_certificate_expiry.set(expiry);
        let (http, rpc) = (ArcSwap::from_pointee(http), ArcSwap::from_pointee(rpc));
        let members = Arc::new(MemberTls::new(members));
        let (own_host, taken) = (own_host.to_owned(), Mutex::new(contents));
        Ok(Self { settings, metrics, http, rpc, members, own_host, taken, last_line: Mutex::default() })
    }

    /// What this node's own questions to members go by.
    #[must_use]
    pub fn members(&self) -> &Arc<MemberTls> {
        &self.members
    }

    /// Takes over the files whenever they have changed, for ever. While they make no sense, what was there before stays.
    pub async fn follow_files(tls: Option<Arc<Self>>, hangups: watch::Receiver<()>) {
        let Some(tls) = tls else { return std::future::pending().await };
        let settings = tls.settings.clone();
        files::follow(move || settings.read(), |read| tls.take_over(read.as_ref()), hangups).await;
    }

    fn take_over(&self, read: Result<&Contents, &String>) {
        let mut taken = self.taken.lock();
        let loaded = match read {
            // As when the node began, or before files that could not be taken.
            Ok(contents) if *contents == *taken => return self.metrics.file_taken("tls", true),
            Ok(contents) => self.settings.load(contents).map(|loaded| (contents, loaded)),
            Err(error) => Err(error.clone()),
        };
        self.metrics.file_taken("tls", loaded.is_ok());
        match loaded {
            Ok((contents, loaded)) => {
                self.settings.warn_if_refused(&loaded, &self.own_host);
                let Loaded { http, rpc, members, expiry } = loaded;
                taken.clone_from(contents);
                self.metrics.tls_certificate_expiry.set(expiry);
                self.http.store(Arc::new(http));
                self.rpc.store(Arc::new(rpc));
                self.members.replace(members);
                tracing::info!(target: AUDIT, "took over the files of TLS for new connections");
            }
            Err(error) => {
                self.metrics.tls_files_failures.inc();
                tracing::error!("{error}; the certificates of before stay");
            }
        }
    }

    /// Counts a handshake that failed, and writes about it, but not often: anybody can make as many as they like.
    fn note(&self, interface: &'static str, address: IpAddr, Failed(reason, why): &Failed) {
        self.metrics.tls_handshake_failures.with_label_values(&[interface, reason]).inc();
        // Balancers look in this way whether somebody listens.
        if *reason == "closed" {
            return;
        }
        let mut last = self.last_line.lock();
        let (at, left_out) = &mut *last;
        if at.is_some_and(|at| at.elapsed() < LINE_INTERVAL) {
            *left_out += 1;
            return;
        }
        let left_out = std::mem::take(left_out);
        *at = Some(Instant::now());
        drop(last);
        tracing::warn!(target: AUDIT, %address, interface, reason, left_out, "no TLS connection: {why}");
    }
}

impl TlsSettings {
    /// # Errors
    /// When a file can't be read or makes no sense: which setting, which file, what is wrong.
    pub fn check(&self) -> Result<(), String> {
        self.read().and_then(|contents| self.load(&contents)).map(drop)
    }

    fn read(&self) -> Result<Contents, String> {
        let read = |setting: &str, path: &Path| {
            files::read_file(path).map_err(|error| format!("{setting} {}: {error}", path.display()))
        };
        let client_ca = self.client_ca_file.as_deref();
        Ok(Contents {
            certificate: read("TLS_CERTIFICATE_FILE", &self.certificate_file)?,
            key: read("TLS_KEY_FILE", &self.key_file)?,
            ca: read("TLS_CA_FILE", &self.ca_file)?,
            client_ca: client_ca.map(|path| read("TLS_CLIENT_CA_FILE", path)).transpose()?,
        })
    }

    fn load(&self, contents: &Contents) -> Result<Loaded, String> {
        let wrong =
            |setting: &str, path: &Path, error: &TlsError| format!("{setting} {}: {error}", path.display());
        let identity = tls::identity(&contents.certificate, &contents.key).map_err(|error| {
            if error.is_of_key() {
                let certificate = self.certificate_file.display();
                let text = wrong("TLS_KEY_FILE", &self.key_file, &error);
                if error == TlsError::OtherKey {
                    format!("{text} of TLS_CERTIFICATE_FILE {certificate}")
                } else {
                    text
                }
            } else {
                wrong("TLS_CERTIFICATE_FILE", &self.certificate_file, &error)
            }
        })?;
        let expiry = expiry(&identity)
            .map_err(|error| wrong("TLS_CERTIFICATE_FILE", &self.certificate_file, &error))?;
        let verifier = tls::authorities(&contents.ca).and_then(tls::server_verifier);
        let verifier = verifier.map_err(|error| wrong("TLS_CA_FILE", &self.ca_file, &error))?;
        let clients = match (&contents.client_ca, &self.client_ca_file) {
            (Some(pem), Some(path)) => {
                let authorities = tls::authorities(pem);
                let authorities = authorities.map_err(|error| wrong("TLS_CLIENT_CA_FILE", path, &error))?;
                let builder = WebPkiClientVerifier::builder_with_provider(authorities, tls::provider());
                let optional = !self.client_certificates_required;
                let builder = if optional { builder.allow_unauthenticated() } else { builder };
                let built = builder.build();
                Some(built.map_err(|error| format!("TLS_CLIENT_CA_FILE {}: {error}", path.display()))?)
            }
            _ => None,
        };
        let rpc =
            server_config(&identity, clients).map_err(|error| format!("TLS can't be set up: {error}"))?;
        let mut http = rpc.clone();
        http.alpn_protocols = vec![ALPN_HTTP.to_vec()];
        Ok(Loaded { http, rpc, members: MemberTrust { verifier, identity }, expiry })
    }

    /// Says so if others, who trust as this node does, would not take its certificate for that of its address. It still serves those who
    /// know it by another name.
    fn warn_if_refused(&self, loaded: &Loaded, own_host: &str) {
        let MemberTrust { verifier, identity } = &loaded.members;
        let Some((own, others)) = identity.cert.split_first() else { return };
        // Under an address that is no name nobody finds it.
        let Ok(name) = ServerName::try_from(own_host) else { return };
        if let Err(error) = verifier.verify_server_cert(own, others, &name, &[], UnixTime::now()) {
            let path = self.certificate_file.display();
            tracing::error!(
                "TLS_CERTIFICATE_FILE {path}: other members refuse this node, which they know as {own_host} (NODE_ADDRESS): {error}; \
                 the certificate has to name it, and to be of an authority in TLS_CA_FILE"
            );
        }
    }
}

/// When the first of the certificates runs out, Unix time in s.
fn expiry(identity: &CertifiedKey) -> Result<i64, TlsError> {
    let mut expiry = i64::MAX;
    for certificate in &identity.cert {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|error| TlsError::Certificate(error.to_string()))?;
        expiry = expiry.min(certificate.validity().not_after.timestamp());
    }
    Ok(expiry)
}

fn server_config(
    identity: &Arc<CertifiedKey>,
    clients: Option<Arc<dyn rustls::server::danger::ClientCertVerifier>>,
) -> Result<ServerConfig, rustls::Error> {
    let builder =
        ServerConfig::builder_with_provider(tls::provider()).with_protocol_versions(tls::VERSIONS)?;
    let resumes = clients.is_none();
    let builder = match clients {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(identity))));
    if !resumes {
        // A session that is taken up again shows no certificate, and the one of before may have expired.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

/// How the connections of an interface begin.
#[derive(Clone)]
pub struct Opening {
    tls: Option<Arc<Tls>>,
    interface: &'static str,
}

impl Opening {
    /// `interface` is `http` or `rpc`; without TLS a connection is as it comes.
    #[must_use]
    pub fn new(tls: Option<Arc<Tls>>, interface: &'static str) -> Self {
        Self { tls, interface }
    }

    /// Shakes hands on a connection that was accepted. Takes no longer than a request may; `None` if that failed, which is noted.
    pub async fn open(&self, stream: TcpStream, address: IpAddr) -> Option<Stream> {
        let Some(tls) = &self.tls else { return Some(Stream::Plain(stream)) };
        // On the heap: a connection without TLS should not keep room for it.
        Box::pin(self.open_tls(tls, stream, address)).await
    }

    async fn open_tls(&self, tls: &Tls, stream: TcpStream, address: IpAddr) -> Option<Stream> {
        let limit = tls.settings.handshake_timeout;
        let (failed, stream) = match timeout(limit, self.shake_hands(tls, stream)).await {
            Ok(Ok(stream)) => return Some(Stream::Tls(Box::new(stream))),
            Ok(Err(failed)) => failed,
            Err(_) => {
                let why = format!("the client did not shake hands within {} s", limit.as_secs_f64());
                (Failed("timeout", why), None)
            }
        };
        tls.note(self.interface, address, &failed);
        if let Some(stream) = stream {
            let mut socket = Socket::new(Stream::Plain(stream), limit);
            // One of the RPC would take whatever it is sent for something else.
            if failed.0 == "not_tls" && self.interface == "http" {
                // Who does not take it has gone.
                let _ = socket.write_all(plain_text_refused().as_bytes()).await;
            }
            // Reads on for a moment, so that the client gets to see the answer, or the alert of TLS.
            let _ = socket.shutdown().await;
        }
        None
    }

    /// With the connection, if there is somebody to be told why.
    async fn shake_hands(
        &self,
        tls: &Tls,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, (Failed, Option<TcpStream>)> {
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(1..) if first[0] == HANDSHAKE_RECORD => {}
            Ok(1..) => {
                let why = "the client speaks plain text, and this port TLS".to_owned();
                return Err((Failed("not_tls", why), Some(stream)));
            }
            Ok(0) | Err(_) => return Err((Failed("closed", "the client has gone".to_owned()), None)),
        }
        let config = if self.interface == "http" { &tls.http } else { &tls.rpc };
        let accepted = TlsAcceptor::from(config.load_full()).accept(stream).into_fallible().await;
        accepted.map_err(|(error, stream)| (Failed::of(&error), Some(stream)))
    }
}

fn plain_text_refused() -> String {
    let message = Message { message: "this port speaks TLS: use https".into(), may_take_effect: None };
    let body = serde_json::to_string(&message).unwrap_or_default();
    format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncache-control: no-store\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

impl Failed {
    fn of(error: &io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let reason = match tls {
            Some(rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_)) => {
                "certificate"
            }
            Some(rustls::Error::AlertReceived(_)) => "refused_by_client",
            Some(_) => "protocol",
            None => "closed",
        };
        let why = match (reason, tls) {
            ("refused_by_client", Some(tls)) => {
                format!(
                    "the client does not go on, {tls}; does it trust this node's certificate, and does that name the host that it asked for?"
                )
            }
            ("certificate", Some(tls)) => format!("the client's certificate is not good: {tls}"),
            _ => error.to_string(),
        };
        Self(reason, why)
    }
}
