//! An authority and a certificate of its own, for servers of tests and benchmarks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use bitacora_protocol::tls;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::sign::SingleCertAndKey;

/// Files in PEM.
pub struct Certified {
    /// For 127.0.0.1.
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub authority: PathBuf,
    pub authority_pem: String,
}

impl Certified {
    /// Makes them in a folder.
    ///
    /// # Errors
    /// When they can't be made or written.
    pub fn create(dir: &Path) -> Result<Certified> {
        let authority_key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        // Two of one name would be taken for each other, until a signature does not fit.
        let name = format!("authority {:x}", fastrand::u64(..));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_pem = params.self_signed(&authority_key)?.pem();
        let issuer = Issuer::new(params, authority_key);
        let own_key = KeyPair::generate()?;
        let own = CertificateParams::new(["127.0.0.1".to_owned()])?.signed_by(&own_key, &issuer)?;
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).with_context(|| path.display().to_string())?;
            anyhow::Ok(path)
        };
        Ok(Certified {
            certificate: write("certificate.pem", &own.pem())?,
            key: write("key.pem", &own_key.serialize_pem())?,
            authority: write("authority.pem", &authority_pem)?,
            authority_pem,
        })
    }

    /// What a server with this certificate accepts connections by.
    ///
    /// # Errors
    /// When a file can't be read, or as [`acceptor`].
    pub fn acceptor(&self) -> Result<TlsAcceptor> {
        acceptor(&std::fs::read(&self.certificate)?, &std::fs::read(&self.key)?)
    }
}

/// What a server accepts connections by that has this certificate and key, in PEM, and asks for none.
///
/// # Errors
/// When they can't be used.
pub fn acceptor(certificate_pem: &[u8], key_pem: &[u8]) -> Result<TlsAcceptor> {
    let identity = SingleCertAndKey::from(tls::identity(certificate_pem, key_pem)?);
    let builder =
        ServerConfig::builder_with_provider(tls::provider()).with_protocol_versions(tls::VERSIONS)?;
    Ok(TlsAcceptor::from(Arc::new(builder.with_no_client_auth().with_cert_resolver(Arc::new(identity)))))
}
