//! TLS, as nodes, the client library and the command line speak it: its versions and ciphers, and how files in PEM are read.
//!
//! Versions 1.3 and 1.2, with the ciphers of `ring` that rustls takes by default; nothing of it is to be chosen.

use std::error::Error;
use std::sync::{Arc, LazyLock};
use std::{fmt, io};

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, InvalidMessage, RootCertStore, SupportedProtocolVersion,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The versions that are spoken.
pub const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
/// The only protocol over HTTP's connections, as ALPN names it.
pub const ALPN_HTTP: &[u8] = b"http/1.1";

/// What tokio-rustls says, in an error of no type of its own, when a server ends the connection instead of shaking hands.
const HANDSHAKE_ENDED: &str = "tls handshake eof";

/// Why certificates or a key can't be used. Says nothing of the file that they are from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// There is something like PEM that can't be read.
    #[error("it is no PEM: {0}")]
    Malformed(String),
    /// There is no certificate.
    #[error("it holds no certificate in PEM (-----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// As [`TlsError::Malformed`], where the key should be.
    #[error("it is no PEM: {0}")]
    MalformedKey(String),
    /// There is no key, or one that needs a password.
    #[error("it holds no private key in PEM without a password (-----BEGIN PRIVATE KEY-----)")]
    NoKey,
    /// A certificate is damaged, or of a kind that can't be used.
    #[error("a certificate in it can't be used: {0}")]
    Certificate(String),
    /// The key is damaged, or of a kind that can't be used.
    #[error("its key can't be used: {0}; RSA of 2048 bits or more, ECDSA (P-256, P-384) and Ed25519 can")]
    Key(String),
    /// The first certificate is of another key.
    #[error("its key is not the one of the first certificate")]
    OtherKey,
    /// A version or cipher is missing in this program.
    #[error("TLS can't be set up: {0}")]
    Unsupported(String),
}

impl TlsError {
    /// Whether it is about the text that should have the key.
    #[must_use]
    pub fn is_of_key(&self) -> bool {
        matches!(self, Self::MalformedKey(_) | Self::NoKey | Self::Key(_) | Self::OtherKey)
    }
}

/// What a client can do about TLS that fails. The text calls options as the client library does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsAdvice {
    /// The server's certificate is of no authority that is trusted.
    Authority,
    /// The server's certificate names other hosts.
    Name,
    /// What the server sent is not TLS.
    NoTls,
    /// The server ended the connection instead of shaking hands, as one does that does not speak TLS.
    PerhapsNoTls,
    /// The server wants a certificate, and was shown none.
    Certificate,
}

impl TlsAdvice {
    /// What helps against an error, by its own type or by that of the errors it comes from; `None` if that is not known.
    #[must_use]
    pub fn on(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            let advice = Self::on_one(error);
            if advice.is_some() {
                return advice;
            }
            // An error of io passes over the one that it holds when it is asked for its source.
            let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            next = held.map(|held| held as &(dyn Error + 'static)).or_else(|| error.source());
        }
        None
    }

    fn on_one(error: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            let ended = error.kind() == io::ErrorKind::UnexpectedEof && error.to_string() == HANDSHAKE_ENDED;
            return ended.then_some(Self::PerhapsNoTls);
        }
        match error.downcast_ref::<rustls::Error>()? {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => Some(Self::Authority),
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => Some(Self::Name),
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Some(Self::NoTls),
            rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => Some(Self::Certificate),
            _ => None,
        }
    }
}

impl fmt::Display for TlsAdvice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Authority => "its certificate is of none of the authorities of ClientTls::new",
            Self::Name => "reach it by a name that its certificate has",
            Self::NoTls => "this port does not speak TLS: leave ClientBuilder::tls out",
            Self::PerhapsNoTls => "if this port does not speak TLS, leave ClientBuilder::tls out",
            Self::Certificate => "it wants a certificate: give one with ClientTls::with_certificate",
        })
    }
}

/// What does the arithmetic.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    Arc::clone(&PROVIDER)
}

/// The certificates of a text in PEM, in their order; at least one.
///
/// # Errors
/// [`TlsError::NoCertificate`], [`TlsError::Malformed`].
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| TlsError::Malformed(error.to_string()))?;
    if found.is_empty() { Err(TlsError::NoCertificate) } else { Ok(found) }
}

/// The authorities of a text in PEM, for the check of others' certificates.
///
/// # Errors
/// As [`certificates`]; [`TlsError::Certificate`] of one that can't be an authority's.
pub fn authorities(pem: &[u8]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|error| TlsError::Certificate(error.to_string()))?;
    }
    Ok(Arc::new(roots))
}

/// What proves who one is: the first certificate of `chain_pem` is one's own, those that follow lead towards an authority, and the
/// key of `key_pem` is that of the first.
///
/// # Errors
/// As [`certificates`]; [`TlsError::NoKey`], [`TlsError::MalformedKey`], [`TlsError::Key`], [`TlsError::OtherKey`].
pub fn identity(chain_pem: &[u8], key_pem: &[u8]) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates(chain_pem)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey,
        error => TlsError::MalformedKey(error.to_string()),
    })?;
    let key = provider().key_provider.load_private_key(key);
    let key = CertifiedKey::new(chain, key.map_err(|error| TlsError::Key(error.to_string()))?);
    match key.keys_match() {
        Ok(()) => Ok(Arc::new(key)),
        Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::OtherKey),
        Err(error) => Err(TlsError::Certificate(error.to_string())),
    }
}

/// What checks the certificates of servers.
///
/// # Errors
/// [`TlsError::NoCertificate`] if there is no authority.
pub fn server_verifier(authorities: Arc<RootCertStore>) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(authorities, provider()).build();
    verifier.map_err(|_| TlsError::NoCertificate)
}

/// A client's side, whose check of certificates is still to be said.
///
/// # Errors
/// [`TlsError::Unsupported`].
pub fn client_builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(VERSIONS);
    builder.map_err(|error| TlsError::Unsupported(error.to_string()))
}

/// How a client speaks TLS with nodes: whom it trusts, and perhaps who it is. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls {
    authorities: Arc<RootCertStore>,
    config: Arc<ClientConfig>,
}

impl ClientTls {
    /// Trusts servers with a certificate of one of these authorities, in PEM, that is valid and names the host that was asked for.
    ///
    /// # Errors
    /// When there are none, or one can't be used.
    pub fn new(authorities_pem: &[u8]) -> Result<Self, TlsError> {
        Self::trusting(authorities(authorities_pem)?)
    }

    /// As [`ClientTls::new`], of authorities that were read already.
    ///
    /// # Errors
    /// When there are none.
    pub fn trusting(authorities: Arc<RootCertStore>) -> Result<Self, TlsError> {
        let verifier = server_verifier(Arc::clone(&authorities))?;
        let config = client_builder()?.with_webpki_verifier(verifier).with_no_client_auth();
        Ok(Self { authorities, config: Arc::new(config) })
    }

    /// Shows a certificate to servers that ask for one: `chain_pem` begins with it, and `key_pem` has its key, without a password.
    ///
    /// # Errors
    /// When they can't be used, or don't fit each other.
    pub fn with_certificate(self, chain_pem: &[u8], key_pem: &[u8]) -> Result<Self, TlsError> {
        let identity = identity(chain_pem, key_pem)?;
        let verifier = server_verifier(Arc::clone(&self.authorities))?;
        let builder = client_builder()?.with_webpki_verifier(verifier);
        let config = builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
        Ok(Self { config: Arc::new(config), ..self })
    }

    /// The same, for clients of HTTP/1.1.
    #[must_use]
    pub fn http_config(&self) -> ClientConfig {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = vec![ALPN_HTTP.to_vec()];
        config
    }

    /// Shakes hands on a connection to `address`, a `host:port` whose host the certificate must name. The caller bounds the time.
    ///
    /// # Errors
    /// Those of the connection, and those of TLS as [`std::io::ErrorKind::InvalidData`].
    pub async fn connect(&self, address: &str, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host_of(address).to_owned()).map_err(std::io::Error::other)?;
        TlsConnector::from(Arc::clone(&self.config)).connect(name, stream).await
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the key.
        let certificate = self.config.client_auth_cert_resolver.has_certs();
        out.debug_struct("ClientTls").field("certificate", &certificate).finish_non_exhaustive()
    }
}

/// A client's side that trusts nobody: for clients of plain text.
#[must_use]
pub fn trusting_nobody() -> ClientConfig {
    static CONFIG: LazyLock<ClientConfig> = LazyLock::new(|| {
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(VERSIONS).expect("ring has ciphers for both versions");
        let mut config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        config.resumption = Resumption::disabled();
        config
    });
    CONFIG.clone()
}

/// The host of a `host:port`, an IPv6 address without its brackets: what a certificate names.
#[must_use]
pub fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_found_however_deep_the_reason_is() {
        let of_tls = |error: rustls::Error| io::Error::new(io::ErrorKind::InvalidData, error);
        let unknown = || of_tls(CertificateError::UnknownIssuer.into());
        assert_eq!(TlsAdvice::on(&unknown()), Some(TlsAdvice::Authority));
        assert_eq!(TlsAdvice::on(&io::Error::other(unknown())), Some(TlsAdvice::Authority));
        let required = of_tls(rustls::Error::AlertReceived(AlertDescription::CertificateRequired));
        assert_eq!(TlsAdvice::on(&io::Error::other(required)), Some(TlsAdvice::Certificate));
        for other in [of_tls(CertificateError::Expired.into()), io::ErrorKind::UnexpectedEof.into()] {
            assert_eq!(TlsAdvice::on(&other), None, "{other}");
        }
    }

    /// What is known of tokio-rustls by its words only.
    #[tokio::test]
    async fn a_server_that_does_not_speak_tls_is_told_by_how_it_ends() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (authorities, config) = (Arc::new(RootCertStore::empty()), Arc::new(trusting_nobody()));
        let tls = ClientTls { authorities, config };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound").to_string();
        for (answer, advice) in [("", TlsAdvice::PerhapsNoTls), ("HTTP/1.1 400 \r\n", TlsAdvice::NoTls)] {
            let (client, server) = tokio::join!(TcpStream::connect(&address), listener.accept());
            let (mut server, _) = server.expect("it is connected");
            let served = async {
                let mut hello = [0; 4096];
                let _ = server.read(&mut hello).await.expect("the client begins");
                server.write_all(answer.as_bytes()).await.expect("the client reads");
                server.shutdown().await.expect("it is open");
            };
            let (outcome, ()) = tokio::join!(tls.connect(&address, client.expect("it listens")), served);
            let error = outcome.expect_err("it is no TLS");
            assert_eq!(TlsAdvice::on(&error), Some(advice), "{error}");
        }
    }

    #[test]
    fn the_host_is_what_a_certificate_names() {
        for (address, host) in [("node-1:8081", "node-1"), ("10.0.0.1:1", "10.0.0.1"), ("[::1]:80", "::1")] {
            assert_eq!(host_of(address), host);
            assert!(ServerName::try_from(host).is_ok());
        }
    }
}
