//! Reads and writes of a key as most clients send them, answered ahead of the HTTP library, whose part of such a call costs more than the node's own.
//!
//! Taken is only what can mean one thing: a `GET` or `POST` of `/rpc` in HTTP/1.1 that is there as a whole, with one good `Host` and else only headers that say
//! nothing to a node, but for `Authorization` and what tells the body's length and type. Whatever else a connection brings is the library's, and so is all that
//! follows on it. The answers are made by the same functions either way; what is written here is their heads.

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitacora_protocol::http::{POSITION_HEADER, SOURCE_HEADER, TIMESTAMP_HEADER};
use futures_util::{poll, stream};
use httparse::{EMPTY_HEADER, Header, Status};
use smallvec::SmallVec;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};
use warp::http::Method;
use warp::http::header::{CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue};

use super::answers::{self, Reply};
use super::error::HttpError;
use super::etag::Tags;
use super::gate::{self, Passed};
use super::{Api, routes};
use crate::server::access::Caller;
use crate::server::access::needs::Call;
use crate::server::socket::Socket;
use crate::service::memory::SMALL_ANSWER_BYTES;
use crate::service::reads::Answer;
use crate::store::UuidText;

/// What is read at a time: several requests, as a rule. Longer ones are the library's.
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

/// Answers the plain calls that a connection begins with.
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
    let mut found = Found::default();
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
        while !last && let Some(call) = plain_call(&input[used..]) {
            used += call.length;
            let answered = {
                let may_write = || api.origins.are_none() && !*closing.borrow();
                let mut answering = pin!(answer(api, caller, call, &mut found, may_write));
                match poll!(answering.as_mut()) {
                    Poll::Ready(answered) => answered,
                    // Those before it don't wait for it.
                    Poll::Pending => {
                        socket.write_all(&out).await?;
                        socket.flush().await?;
                        out.clear();
                        answering.await
                    }
                }
            };
            match answered {
                Answered::Found => out.extend_from_slice(&found.text),
                Answered::Reply(mut reply) => {
                    // It may have waited for long, and the node is to stop by now.
                    if *closing.borrow() {
                        reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    last = reply.headers().contains_key(CONNECTION);
                    put_head(&reply, &mut found.date, &mut out);
                    let body = reply.body();
                    if body.len() <= COPIED_BODY_BYTES {
                        out.extend_from_slice(body);
                    } else {
                        socket.write_all(&out).await?;
                        out.clear();
                        write_in_turns(socket, body).await?;
                    }
                }
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

/// Writes a long body. What the kernel does with it costs more than a whole other call, so those who wait for this thread are let in between.
async fn write_in_turns(socket: &mut Socket, body: &[u8]) -> io::Result<()> {
    for piece in body.chunks(WRITE_BYTES) {
        socket.write_all(piece).await?;
        yield_now().await;
    }
    Ok(())
}

/// A request that is taken here.
#[derive(Debug, PartialEq, Eq)]
struct PlainCall<'a> {
    call: Call,
    query: &'a str,
    authorization: SmallVec<[&'a [u8]; 1]>,
    content_type: Option<HeaderValue>,
    body: &'a [u8],
    /// Bytes of the request.
    length: usize,
}

/// The request at the front of the input, if it is there as a whole and is taken here.
fn plain_call(input: &[u8]) -> Option<PlainCall<'_>> {
    let call = match input {
        [b'G', b'E', b'T', b' ', ..] => Call::Get,
        [b'P', b'O', b'S', b'T', b' ', ..] => Call::Set,
        _ => return None,
    };
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(Status::Complete(head)) = request.parse(input) else { return None };
    let query = request.path?.strip_prefix("/rpc?").filter(|_| request.version == Some(1))?;
    if !query.bytes().all(is_plain) {
        return None;
    }
    let (mut host, mut content_length, mut content_type) = (None, None, None);
    let mut authorization = SmallVec::new();
    for Header { name, value } in request.headers.iter() {
        if name.eq_ignore_ascii_case("host") {
            let is_good = host.replace(value).is_none() && gate::is_host(value);
            is_good.then_some(())?;
        } else if name.eq_ignore_ascii_case("authorization") {
            authorization.push(*value);
        } else if name.eq_ignore_ascii_case("connection") {
            value.eq_ignore_ascii_case(b"keep-alive").then_some(())?;
        } else if call == Call::Set && name.eq_ignore_ascii_case("content-length") {
            content_length.replace(length(value)?).is_none().then_some(())?;
        } else if call == Call::Set && name.eq_ignore_ascii_case("content-type") {
            content_type.replace(HeaderValue::from_bytes(value).ok()?).is_none().then_some(())?;
        } else {
            MEANINGLESS.iter().any(|known| name.eq_ignore_ascii_case(known)).then_some(())?;
        }
    }
    host?;
    let body = input[head..].get(..content_length.unwrap_or_default())?;
    Some(PlainCall { call, query, authorization, content_type, body, length: head + body.len() })
}

/// A `Content-Length` that is written in the one way that everybody reads alike.
fn length(value: &[u8]) -> Option<usize> {
    let digits =
        std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits?.parse().ok()
}

/// What may be in a query, and means the same to everybody.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%+=&:/,".contains(&byte)
}

/// What a call is answered with.
enum Answered {
    /// A record: the answer is in [`Found::text`].
    Found,
    Reply(Reply),
}

impl From<Reply> for Answered {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

/// Answers a call; one about a record that is found, and `may_write` then, without making a reply of the library's.
async fn answer(
    api: &Api,
    caller: &Caller,
    plain: PlainCall<'_>,
    found: &mut Found,
    may_write: impl Fn() -> bool,
) -> Answered {
    let PlainCall { call, query, authorization, content_type, body, .. } = plain;
    let shown = || authorization.iter().copied();
    // No other of its headers says anything to the call.
    let mut headers = HeaderMap::new();
    headers.extend(content_type.map(|content_type| (CONTENT_TYPE, content_type)));
    let answered = match caller.admit(call.name(), call.needs(), shown) {
        Ok(grant) if call == Call::Set => {
            let body = stream::iter([Ok::<_, Infallible>(body)]);
            // Its future is large, and would otherwise be moved about with each read.
            Box::pin(routes::set(api, &grant, query, &headers, body)).await.into()
        }
        Ok(grant) => {
            let make = |key: &str, answer: &Answer, known: Option<&Tags>| {
                if may_write() && found.write(answer) {
                    return Ok(Answered::Found);
                }
                answers::read(key, answer, known, api.service.memory()).map(Answered::Reply)
            };
            routes::get_with(api, &grant, &Method::GET, query, &headers, make).await
        }
        Err(refused) => HttpError::from(refused).reply(false).into(),
    };
    match answered {
        Answered::Found => Answered::Found,
        Answered::Reply(mut reply) => {
            let status = reply.status();
            Passed::plain().describe(&api.origins, status, reply.headers_mut());
            Answered::Reply(reply)
        }
    }
}

/// The answer with a record that was found, and what it is put together in: without an allocation for each, and without a map of its headers.
#[derive(Default)]
struct Found {
    text: Vec<u8>,
    body: Vec<u8>,
    date: Date,
}

impl Found {
    /// Puts the answer together that [`answers::read`] makes to who has no tags, if there is a record, and a small one.
    fn write(&mut self, answer: &Answer) -> bool {
        let Self { text, body, date } = self;
        let mut uuid = UuidText::default();
        let Some(record) = answer.record(&mut uuid).filter(|it| it.value.len() <= SMALL_ANSWER_BYTES) else {
            return false;
        };
        body.clear();
        // Nothing in it is a map with keys that are no strings.
        if serde_json::to_writer(&mut *body, &record).is_err() || body.len() > SMALL_ANSWER_BYTES {
            body.shrink_to(SMALL_ANSWER_BYTES);
            return false;
        }
        let (mut partition, mut offset) = (itoa::Buffer::new(), itoa::Buffer::new());
        let (mut timestamp, mut length) = (itoa::Buffer::new(), itoa::Buffer::new());
        let partition = partition.format(answer.position.partition);
        let offset = offset.format(answer.position.offset);
        text.clear();
        for part in [
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n",
            SOURCE_HEADER,
            ": ",
            answer.from.name(),
            "\r\n",
            POSITION_HEADER,
            ": ",
            partition,
            ":",
            offset,
            "\r\netag: \"",
            partition,
            ":",
            offset,
            "\"\r\n",
            TIMESTAMP_HEADER,
            ": ",
            timestamp.format(record.timestamp),
            "\r\ncache-control: no-store\r\ncontent-length: ",
            length.format(body.len()),
            "\r\ndate: ",
            date.now(),
            "\r\n\r\n",
        ] {
            text.extend_from_slice(part.as_bytes());
        }
        text.extend_from_slice(body);
        true
    }
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

    fn request(call: &str, headers: &str) -> String {
        format!("{call} HTTP/1.1\r\nHost: a:1\r\n{headers}\r\n")
    }

    #[test]
    fn what_clients_send_for_a_read_is_taken() {
        let curl = "User-Agent: curl/8.0\r\nAccept: */*\r\n";
        for headers in
            ["", curl, "accept-encoding: gzip\r\nConnection: keep-alive\r\nX-Forwarded-For: ::1\r\n"]
        {
            let text = request("GET /rpc?key=a%2Fb+c&consistency=strong", headers) + "GET /rp";
            let get = plain_call(text.as_bytes()).expect("it is plain");
            let (query, length) = ("key=a%2Fb+c&consistency=strong", text.len() - 7);
            assert_eq!((get.call, get.query, get.body, get.length), (Call::Get, query, &b""[..], length));
            assert!(get.authorization.is_empty());
        }
        let text = request("GET /rpc?", "Authorization: Bearer a\r\nauthorization: b\r\n");
        let get = plain_call(text.as_bytes()).expect("it is plain");
        assert_eq!(get.authorization[..], [b"Bearer a".as_slice(), b"b".as_slice()]);
    }

    #[test]
    fn what_clients_send_for_a_write_is_taken() {
        let form = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 7\r\n";
        for (headers, body, content_type) in [
            ("", "", None),
            ("Content-Length: 0\r\n", "", None),
            ("content-length: 007\r\n", "value=v", None),
            (form, "value=v", Some("application/x-www-form-urlencoded")),
        ] {
            let text = request("POST /rpc?key=k", headers) + body + "POST /rp";
            let set = plain_call(text.as_bytes()).expect("it is plain");
            assert_eq!((set.call, set.query, set.length), (Call::Set, "key=k", text.len() - 8));
            assert_eq!(
                (set.body, set.content_type),
                (body.as_bytes(), content_type.map(HeaderValue::from_static))
            );
        }
    }

    #[test]
    fn whatever_else_is_left_to_the_library() {
        let plain = request("GET /rpc?key=k", "");
        let set = request("POST /rpc?key=k", "Content-Length: 3\r\n");
        let mut others = vec![
            plain[..plain.len() - 1].to_owned(),
            plain.replacen("GET", "HEAD", 1),
            plain.replacen("GET", "DELETE", 1),
            plain.replacen("1.1", "1.0", 1),
            plain.replacen("Host: a:1\r\n", "", 1),
            plain.replacen("Host: a:1", "Host: a/b", 1),
            request("GET /rpc?key=k", "Host: b\r\n"),
            request("GET /rpc?key=k", &"Accept: a\r\n".repeat(MAX_HEADERS)),
            request("GET /rpc?key=k", "Content-Length: 0\r\n"),
            request("GET /rpc?key=k", "Content-Type: text/plain\r\n"),
            set.clone() + "ab",
            set.replacen(": 3", ": +3", 1) + "abc",
            set.replacen(": 3", ": 3, 3", 1) + "abc",
            set.replacen(": 3", ": ", 1) + "abc",
            set.replacen(": 3", ": 99999999999999999999", 1) + "abc",
            request("POST /rpc?key=k", "Content-Length: 3\r\ncontent-length: 3\r\n") + "abc",
            request("POST /rpc?key=k", "Content-Type: a/b\r\ncontent-type: a/b\r\n"),
        ];
        for path in [
            "/rpc",
            "/rpc/?key=k",
            "/rpc/scan?key=k",
            "/rpc?key=\u{e9}",
            "/rpc?key=a\"b",
            "http://a/rpc?key=k",
        ] {
            others.push(request(&format!("GET {path}"), ""));
            others.push(request(&format!("POST {path}"), ""));
        }
        for header in [
            "Transfer-Encoding: chunked",
            "Connection: close",
            "Expect: 100-continue",
            "If-None-Match: \"0:1\"",
            "If-Match: *",
            "Idempotency-Key: a",
            "Content-Encoding: gzip",
            "Origin: http://a",
            "Cache-Control: max-age=5",
            "bitacora-position: 0:1",
            "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "Unknown: 1",
        ] {
            others.push(request("GET /rpc?key=k", &format!("{header}\r\n")));
            others.push(request("POST /rpc?key=k", &format!("{header}\r\n")));
        }
        for other in others {
            assert_eq!(plain_call(other.as_bytes()), None, "{other}");
        }
    }
}
