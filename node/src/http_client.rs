//! The HTTP client of all calls within a deployment: to other members, to this node itself, to metadata of the machine, to a
//! collector beside the node.

use std::error::Error;
use std::io;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use bitacora_protocol::tls::{self, ALPN_HTTP, TlsError};
use bitacora_protocol::token::Token;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{ClientBuilder, RequestBuilder, Url};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

/// A client to be built with timeouts. It uses no proxy, whatever `http_proxy` or `all_proxy` say: a proxy leads out of the
/// deployment, and the members are not there. It trusts no server that speaks TLS.
pub fn builder() -> ClientBuilder {
    ClientBuilder::new().no_proxy().tls_backend_preconfigured(tls::trusting_nobody())
}

/// The same for a thread without a runtime.
pub fn blocking_builder() -> reqwest::blocking::ClientBuilder {
    reqwest::blocking::ClientBuilder::new().no_proxy().tls_backend_preconfigured(tls::trusting_nobody())
}

/// Makes the clients by which members are asked: each request shows a token.
#[derive(Clone, Default)]
pub struct MemberClients {
    /// For `Authorization`; clients that were made before see a change, too.
    shown: Arc<ArcSwapOption<HeaderValue>>,
    /// If members speak TLS.
    tls: Option<ClientConfig>,
}

impl MemberClients {
    /// `token` is what `MEMBER_TOKEN_FILE` has, or who makes a backup; `tls` is for members that speak it.
    #[must_use]
    pub fn new(token: Option<&Token>, tls: Option<ClientConfig>) -> Self {
        let clients = Self { shown: Arc::default(), tls };
        if let Some(token) = token {
            clients.show(token);
        }
        clients
    }

    /// Shows this token from now on. Returns whether it is another one.
    pub fn show(&self, token: &Token) -> bool {
        let Ok(mut authorization) = HeaderValue::try_from(token.authorization()) else { return false };
        authorization.set_sensitive(true);
        let before = self.shown.swap(Some(Arc::new(authorization.clone())));
        before.as_deref() != Some(&authorization)
    }

    /// A client with what `settings` adds, such as timeouts. It follows no redirect: a member has no reason to send one, and what it
    /// led to would be shown the token.
    ///
    /// # Errors
    /// When it can't be built.
    pub fn build(
        &self,
        settings: impl FnOnce(ClientBuilder) -> ClientBuilder,
    ) -> reqwest::Result<MemberClient> {
        let builder = match &self.tls {
            None => builder(),
            // Not the plain scheme, which would show the token to whoever listens.
            Some(tls) => builder().tls_backend_preconfigured(tls.clone()).https_only(true),
        };
        let builder = builder.redirect(reqwest::redirect::Policy::none());
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        Ok(MemberClient { http: settings(builder).build()?, shown: Arc::clone(&self.shown), scheme })
    }
}

/// A client by which members are asked.
#[derive(Clone)]
pub struct MemberClient {
    http: reqwest::Client,
    shown: Arc<ArcSwapOption<HeaderValue>>,
    scheme: &'static str,
}

impl MemberClient {
    /// Where a member, `host:API_PORT`, answers this path; `None` if that is no address.
    #[must_use]
    pub fn url(&self, member: &str, path: &str) -> Option<Url> {
        Url::parse(&format!("{}://{member}{path}", self.scheme)).ok()
    }

    pub fn get(&self, url: Url) -> RequestBuilder {
        self.showing(self.http.get(url))
    }

    pub fn head(&self, url: Url) -> RequestBuilder {
        self.showing(self.http.head(url))
    }

    fn showing(&self, request: RequestBuilder) -> RequestBuilder {
        match self.shown.load_full() {
            Some(authorization) => request.header(AUTHORIZATION, (*authorization).clone()),
            None => request,
        }
    }
}

/// What TLS has against whom a request went to, if that is why there is no answer: its certificate, for example.
#[must_use]
pub fn tls_reason(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls.to_string());
        }
        cause = match error.downcast_ref::<io::Error>() {
            // What is inside is not its source.
            Some(error) => error.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

/// Whom a node trusts among the members, and what it shows to them; both may change while connections are open.
#[derive(Debug)]
pub struct MemberTls(ArcSwap<MemberTrust>);

/// What [`MemberTls`] goes by.
#[derive(Debug)]
pub struct MemberTrust {
    /// Checks members' certificates.
    pub verifier: Arc<WebPkiServerVerifier>,
    /// This node's own.
    pub identity: Arc<CertifiedKey>,
}

impl MemberTls {
    #[must_use]
    pub fn new(trust: MemberTrust) -> Self {
        Self(ArcSwap::from_pointee(trust))
    }

    /// For connections that are made from now on.
    pub fn replace(&self, trust: MemberTrust) {
        self.0.store(Arc::new(trust));
    }

    /// For clients of HTTP.
    ///
    /// # Errors
    /// When TLS can't be set up.
    pub fn client_config(self: &Arc<Self>) -> Result<ClientConfig, TlsError> {
        let builder = tls::client_builder()?.dangerous().with_custom_certificate_verifier(self.clone());
        let mut config = builder.with_client_cert_resolver(self.clone());
        config.alpn_protocols = vec![ALPN_HTTP.to_vec()];
        // A session that is taken up again shows no certificate, and whom it was trusted to may be trusted no more.
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

impl ServerCertVerifier for MemberTls {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let trust = self.0.load();
        trust.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.load().verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.load().verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.load().verifier.supported_verify_schemes()
    }
}

impl ResolvesClientCert for MemberTls {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().identity))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A client's side that takes every certificate for a good one, and shows this one: for questions to this machine's own node, whose
/// certificate need not name it by the address that it is asked at.
///
/// # Errors
/// When TLS can't be set up.
pub fn trusting_everybody(identity: Arc<CertifiedKey>) -> Result<ClientConfig, TlsError> {
    let builder = tls::client_builder()?.dangerous().with_custom_certificate_verifier(Arc::new(Everybody));
    Ok(builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity))))
}

#[derive(Debug)]
struct Everybody;

impl ServerCertVerifier for Everybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = tls::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = tls::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}
