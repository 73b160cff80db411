//! How the values of settings are read. A wrong one is a sentence that says what would be right.

use std::time::Duration;

use bitacora_protocol::record::LARGEST_VALUE_BYTES;
use bitacora_protocol::token::Scope;
use bitacora_protocol::units::{bytes, duration_or_ms as duration};
use bitacora_protocol::zookeeper::host_port;

use crate::service::access::Scopes;

pub fn hosts(text: &str) -> Result<String, String> {
    let hosts: Vec<_> = text.split(',').map(str::trim).collect();
    // librdkafka takes a protocol before the host.
    hosts.iter().try_for_each(|host| host_port(host.split_once("://").map_or(*host, |(_, rest)| rest)))?;
    Ok(hosts.join(","))
}

pub fn topic(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.is_empty() || text.len() > 249 || text == "." || text == ".." || !text.chars().all(legal) {
        return Err("a topic's name has 1 to 249 of the characters a-z A-Z 0-9 . _ -".to_owned());
    }
    Ok(text.to_owned())
}

pub fn node_url(text: &str) -> Result<reqwest::Url, String> {
    let url = reqwest::Url::parse(text).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.ok_or_else(|| "it must be a URL such as http://node-2:8080 or https://node-2:8080".to_owned())
}

pub fn otlp_endpoint(text: &str) -> Result<String, String> {
    match reqwest::Url::parse(text) {
        Ok(url) if url.scheme() == "http" && url.has_host() => Ok(text.to_owned()),
        Ok(url) if url.scheme() == "https" => {
            Err("it must begin with http://; TLS is a job of a collector beside the node".to_owned())
        }
        _ => Err("it must be a URL such as http://collector:4318".to_owned()),
    }
}

pub fn node_address(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || "/@?#".contains(c)) {
        return Err("it must be a host's name or address, without a port".to_owned());
    }
    Ok(text.to_owned())
}

pub fn replication_factor(text: &str) -> Result<i32, String> {
    match text.parse() {
        Ok(factor @ (-1 | 1..=1_000)) => Ok(factor),
        _ => Err("it must be 1 or more, or -1 for the brokers' default".to_owned()),
    }
}

pub fn session_timeout(text: &str) -> Result<Duration, String> {
    // The client pings after two thirds of it, and counts whole seconds.
    let time = duration(text)?;
    if time < Duration::from_secs(2) { Err("it must be 2s or more".to_owned()) } else { Ok(time) }
}

pub fn anonymous(text: &str) -> Result<Scopes, String> {
    match text.trim() {
        "none" => Ok(Scopes::default()),
        text => text
            .split(',')
            .map(str::parse::<Scope>)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("{error}; several are separated by ',', and none is for no scope")),
    }
}

pub fn rate(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        0..1024 => {
            Err("it must be 1KiB or more; SNAPSHOT=never on the others keeps them from asking".to_owned())
        }
        rate => Ok(rate),
    }
}

pub fn request_memory(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        size if size < 8 << 20 => Err("it must be 8MiB or more".to_owned()),
        size => Ok(size),
    }
}

pub fn value_bytes(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        size @ 1..=LARGEST_VALUE_BYTES => Ok(size),
        _ => Err("it must be between 1 and 256MiB".to_owned()),
    }
}
