//! How values of flags are read.

use bitacora_protocol::units::bytes;
use bitacora_protocol::zookeeper::host_port;
use reqwest::Url;

pub(super) fn node(text: &str) -> Result<String, String> {
    host_port(text.trim()).map(|()| text.trim().to_owned())
}

pub(super) fn http_url(text: &str) -> Result<Url, String> {
    let text = text.trim();
    let wrong = || format!("'{text}' is not a URL such as http://127.0.0.1:8080");
    let mut url = Url::parse(text).map_err(|_| wrong())?;
    if !matches!(url.scheme(), "http" | "https")
        || url.host().is_none()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err(wrong());
    }
    // Joined with the API's paths.
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

/// With TLS, a URL is taken for one of https, whatever it says.
pub(super) fn spoken(url: &mut Url, tls: bool) {
    if tls {
        // From http to https there is nothing that could be wrong.
        let _ = url.set_scheme("https");
    }
}

/// A node's HTTP address, with or without `http://`.
pub(super) fn http_node(text: &str) -> Result<Url, String> {
    if text.contains("://") { http_url(text) } else { http_url(&format!("http://{}", node(text)?)) }
}

pub(super) fn size(text: &str) -> Result<usize, String> {
    let size = usize::try_from(bytes(text)?).ok().filter(|size| (1..=1 << 30).contains(size));
    size.ok_or_else(|| "it must be between 1 and 1GiB".to_owned())
}
