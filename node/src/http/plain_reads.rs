//! Reads of a key as most clients send them, answered ahead of the HTTP library, whose part of such a call costs more than the node's own.
//!
//! Taken is only what can mean one thing: a `GET` of `/rpc` in HTTP/1.1 that is there as a whole, with one good `Host` and else only headers that say nothing
//! to a node, but for `Authorization`. Whatever else a connection brings is the library's, and so is all that follows on it. The answers are made
//! by the same functions either way; what is written here is their heads.

use std::io::{self, Write as _};
use std::pin::pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use httparse::{EMPTY_HEADER, Header, Status};
use smallvec::SmallVec;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use warp::http::Method;
use warp::http::header::{CONNECTION, HeaderMap};

use super::answers::Reply;
use super::error::HttpError;
use super::gate::{self, Passed};
use super::{Api, routes};
use crate::server::access::Caller;
use crate::server::access::needs::Call;
use crate::server::socket::Socket;

/// What is read at a time: several requests, as a rule.
const READ_BYTES: usize = 4 * 1024;
/// Answers are written before more are made once they have so many bytes.
const WRITE_BYTES: usize = 32 * 1024;
/// A body that has more is not copied to be written with its head.
const COPIED_BODY_BYTES: usize = 16 * 1024;
/// More headers than these are the library's affair.
const MAX_HEADERS: usize = 16;
/// Headers that say nothing to a node. Those that a proxy adds are among them.
const MEANINGLESS: [&str; 10] = [
    "user-agent",
    "accept",
    "accept-encoding",
    "accept-language",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
    "x-request-id",
];

/// Why no more is answered here.
pub enum Ended {
    /// The client is gone or has been silent for too long, or the node stops, and nothing is left to be answered.
    Closed,
    /// What comes next is the library's; so much of it was read already.
    Other(Vec<u8>),
}

/// Answers the plain reads that a connection begins with.
///
/// # Errors
/// When the client can't be read from or written to.
pub async fn serve(
    api: &Api,
    caller: &Caller,
    socket: &mut Socket,
    idle: Duration,
    mut closing: watch::Receiver<bool>,
) -> io::Result<Ended> {
    let (mut input, mut out) = (Vec::with_capacity(READ_BYTES), Vec::new());
    let mut date = Date::default();
    let mut active = Instant::now();
    // Set anew when it is over, not with each request.
    let mut silence = pin!(sleep_until(active + idle));
    loop {
        let closed = *closing.borrow_and_update();
        if closed {
            return Ok(Ended::Closed);
        }
        tokio::select! {
            biased;
            read = socket.read_buf(&mut input) => {
                if read? == 0 {
                    return Ok(Ended::Closed);
                }
            }
            () = &mut silence => {
                let until = active + idle;
                if until <= Instant::now() {
                    return Ok(Ended::Closed);
                }
                silence.as_mut().reset(until);
                continue;
            }
            _ = closing.changed() => continue,
        }
        // The library says in its answer that the connection ends with it.
        if *closing.borrow() {
            return Ok(Ended::Other(input));
        }
        let (mut used, mut last) = (0, false);
        while !last && let Some(get) = plain_get(&input[used..]) {
            used += get.length;
            let reply = answer(api, caller, &get).await;
            last = reply.headers().contains_key(CONNECTION);
            put_head(&reply, &mut date, &mut out);
            let body = reply.body();
            if body.len() <= COPIED_BODY_BYTES {
                out.extend_from_slice(body);
            } else {
                socket.write_all(&out).await?;
                out.clear();
                socket.write_all(body).await?;
            }
            if out.len() > WRITE_BYTES {
                socket.write_all(&out).await?;
                out.clear();
            }
        }
        socket.write_all(&out).await?;
        // TLS may hold the end of it back otherwise.
        socket.flush().await?;
        if last {
            return Ok(Ended::Closed);
        }
        if used < input.len() {
            input.drain(..used);
            return Ok(Ended::Other(input));
        }
        input.clear();
        out.clear();
        out.shrink_to(READ_BYTES);
        active = Instant::now();
    }
}

/// A request that is taken here.
#[derive(Debug, PartialEq, Eq)]
struct PlainGet<'a> {
    query: &'a str,
    authorization: SmallVec<[&'a [u8]; 1]>,
    /// Bytes of the request.
    length: usize,
}

/// The request at the front of the input, if it is there as a whole and is taken here.
fn plain_get(input: &[u8]) -> Option<PlainGet<'_>> {
    if !input.starts_with(b"GET /rpc?") {
        return None;
    }
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(Status::Complete(length)) = request.parse(input) else { return None };
    let query = request.path?.strip_prefix("/rpc?").filter(|_| request.version == Some(1))?;
    if !query.bytes().all(is_plain) {
        return None;
    }
    let (mut hosts, mut authorization) = (0, SmallVec::new());
    for Header { name, value } in request.headers.iter() {
        if name.eq_ignore_ascii_case("host") {
            hosts += 1;
            gate::is_host(value).then_some(())?;
        } else if name.eq_ignore_ascii_case("authorization") {
            authorization.push(*value);
        } else if name.eq_ignore_ascii_case("connection") {
            value.eq_ignore_ascii_case(b"keep-alive").then_some(())?;
        } else {
            MEANINGLESS.iter().any(|known| name.eq_ignore_ascii_case(known)).then_some(())?;
        }
    }
    (hosts == 1).then_some(PlainGet { query, authorization, length })
}

/// What may be in a query, and means the same to everybody.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%+=&:/,".contains(&byte)
}

async fn answer(api: &Api, caller: &Caller, get: &PlainGet<'_>) -> Reply {
    let shown = || get.authorization.iter().copied();
    let mut reply = match caller.admit(Call::Get.name(), Call::Get.needs(), shown) {
        // None of its headers says anything to the call.
        Ok(grant) => routes::get(api, &grant, &Method::GET, get.query, &HeaderMap::new()).await,
        Err(refused) => HttpError::from(refused).reply(false),
    };
    let status = reply.status();
    Passed::plain().describe(&api.origins, status, reply.headers_mut());
    reply
}

/// Appends the head of an answer, as the library spells it.
fn put_head(reply: &Reply, date: &mut Date, out: &mut Vec<u8>) {
    let status = reply.status();
    let (code, reason) = (status.as_str(), status.canonical_reason().unwrap_or_default());
    for part in ["HTTP/1.1 ", code, " ", reason, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for (name, value) in reply.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    // Writing to a vector does not fail.
    let _ = write!(out, "content-length: {}\r\ndate: {}\r\n\r\n", reply.body().len(), date.now());
}

/// The time as `Date` has it, which is put together once a second.
#[derive(Default)]
struct Date {
    second: u64,
    text: String,
}

impl Date {
    fn now(&mut self) -> &str {
        let now = SystemTime::now();
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if self.second != second || self.text.is_empty() {
            (self.second, self.text) = (second, httpdate::fmt_http_date(now));
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str, headers: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: a:1\r\n{headers}\r\n")
    }

    #[test]
    fn what_clients_send_for_a_read_is_taken() {
        let curl = "User-Agent: curl/8.0\r\nAccept: */*\r\n";
        for headers in
            ["", curl, "accept-encoding: gzip\r\nConnection: keep-alive\r\nX-Forwarded-For: ::1\r\n"]
        {
            let text = request("/rpc?key=a%2Fb+c&consistency=strong", headers) + "GET /rp";
            let get = plain_get(text.as_bytes()).expect("it is plain");
            assert_eq!((get.query, get.length), ("key=a%2Fb+c&consistency=strong", text.len() - 7));
            assert!(get.authorization.is_empty());
        }
        let text = request("/rpc?", "Authorization: Bearer a\r\nauthorization: b\r\n");
        let get = plain_get(text.as_bytes()).expect("it is plain");
        assert_eq!(get.authorization[..], [b"Bearer a".as_slice(), b"b".as_slice()]);
    }

    #[test]
    fn whatever_else_is_left_to_the_library() {
        let plain = request("/rpc?key=k", "");
        let mut others = vec![
            plain[..plain.len() - 1].to_owned(),
            plain.replacen("GET", "HEAD", 1),
            plain.replacen("GET", "POST", 1),
            plain.replacen("1.1", "1.0", 1),
            plain.replacen("Host: a:1\r\n", "", 1),
            plain.replacen("Host: a:1", "Host: a/b", 1),
            request("/rpc?key=k", "Host: b\r\n"),
            request("/rpc?key=k", &"Accept: a\r\n".repeat(MAX_HEADERS)),
        ];
        for path in [
            "/rpc",
            "/rpc/?key=k",
            "/rpc/scan?key=k",
            "/rpc?key=\u{e9}",
            "/rpc?key=a\"b",
            "http://a/rpc?key=k",
        ] {
            others.push(request(path, ""));
        }
        for header in [
            "Content-Length: 0",
            "Transfer-Encoding: chunked",
            "Connection: close",
            "Expect: 100-continue",
            "If-None-Match: \"0:1\"",
            "If-Match: *",
            "Origin: http://a",
            "Cache-Control: max-age=5",
            "bitacora-position: 0:1",
            "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "Unknown: 1",
        ] {
            others.push(request("/rpc?key=k", &format!("{header}\r\n")));
        }
        for other in others {
            assert_eq!(plain_get(other.as_bytes()), None, "{other}");
        }
    }
}
