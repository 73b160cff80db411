//! The files by which TLS is spoken.

use std::path::Path;

use bitacora_client::{ClientTls, TlsError};
use reqwest::Url;

use super::Connection;

/// How TLS is spoken, if it is; `named` are nodes that a command names beside the connection's.
pub(super) fn read<'a>(
    connection: &'a Connection,
    named: impl Iterator<Item = &'a Url>,
) -> Result<Option<ClientTls>, String> {
    let Connection { ca_file, cert_file, key_file, http, .. } = connection;
    let Some(ca_file) = ca_file else {
        if cert_file.is_some() || key_file.is_some() {
            return Err("--cert-file and --key-file need --ca-file, by which nodes are trusted".to_owned());
        }
        return match http.iter().chain(named).find(|url| url.scheme() == "https") {
            Some(url) => Err(format!("{url} needs --ca-file, the authority of the node's certificate")),
            None => Ok(None),
        };
    };
    let wrong = |flag: &str, path: &Path, error: &TlsError| format!("{flag} {}: {error}", path.display());
    let tls = ClientTls::new(&file("--ca-file", ca_file)?);
    let tls = tls.map_err(|error| wrong("--ca-file", ca_file, &error))?;
    match (cert_file, key_file) {
        (None, None) => Ok(Some(tls)),
        (Some(cert), Some(key)) => {
            let tls = tls.with_certificate(&file("--cert-file", cert)?, &file("--key-file", key)?);
            tls.map(Some).map_err(|error| {
                let (flag, path) =
                    if error.is_of_key() { ("--key-file", key) } else { ("--cert-file", cert) };
                wrong(flag, path, &error)
            })
        }
        _ => Err("--cert-file and --key-file belong together: one is missing".to_owned()),
    }
}

fn file(flag: &str, path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{flag} {}: it can't be read: {error}", path.display()))
}
