//! An authority and a certificate of its own, for servers of tests and benchmarks.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

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
}
