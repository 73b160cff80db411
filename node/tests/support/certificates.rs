//! An authority of a test's own, certificates of it, and the files that a node reads.
// Each test program uses what it needs.
#![allow(dead_code)]

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use bitacora_client::ClientTls;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

pub const HOST: &str = "127.0.0.1";

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate and its key, in PEM.
pub struct Certified {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        let name = format!("authority {}", NEXT.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Certifies that a node or client is `host`, by a certificate that `change` has changed before it is signed.
    pub fn certify_as(&self, host: &str, change: impl FnOnce(&mut CertificateParams)) -> Certified {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([host.to_owned()]).expect("a name");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.distinguished_name.push(DnType::CommonName, host);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Certified { certificate, key: key.serialize_pem() }
    }

    pub fn certify(&self) -> Certified {
        self.certify_as(HOST, |_| ())
    }

    /// One that is over.
    pub fn certify_expired(&self) -> Certified {
        self.certify_as(HOST, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        })
    }

    pub fn trusted(&self) -> ClientTls {
        ClientTls::new(self.pem.as_bytes()).expect("an authority")
    }
}

impl Certified {
    pub fn shown_to(&self, authority: &Authority) -> ClientTls {
        let tls = authority.trusted();
        tls.with_certificate(self.certificate.as_bytes(), self.key.as_bytes()).expect("a certificate")
    }

    /// Into files by which one replaces another at once.
    pub fn write(&self, folder: &Path) {
        write(&folder.join("node.pem"), &self.certificate);
        write(&folder.join("node.key"), &self.key);
    }
}

pub fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("written");
}

/// Writes the files of a node, and returns the flags that name them.
pub fn files(
    folder: &Path,
    own: &Certified,
    authority: &Authority,
    clients: Option<&Authority>,
) -> Vec<String> {
    std::fs::create_dir_all(folder).expect("a folder");
    own.write(folder);
    write(&folder.join("ca.pem"), &authority.pem);
    let path = |name: &str| folder.join(name).to_str().expect("a plain path").to_owned();
    let mut flags = Vec::new();
    for (flag, name) in
        [("--tls-certificate-file", "node.pem"), ("--tls-key-file", "node.key"), ("--tls-ca-file", "ca.pem")]
    {
        flags.extend([flag.to_owned(), path(name)]);
    }
    if let Some(clients) = clients {
        write(&folder.join("clients.pem"), &clients.pem);
        flags.extend(["--tls-client-ca-file".to_owned(), path("clients.pem")]);
    }
    flags
}
