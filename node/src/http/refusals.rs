//! What the HTTP library refuses by itself (a head that is too large or malformed) never reaches a call, and is answered by it
//! without a body. On its way out such an answer gets the JSON that all errors have.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bitacora_protocol::http::Message;
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::server::MAX_HEAD_BYTES;

const HEAD_END: &[u8] = b"\r\n\r\n";
const NO_BODY: &str = "content-length: 0\r\n";

/// Marks an answer whose bytes are nobody's text: nothing is looked for in them.
#[derive(Clone, Copy, Debug)]
pub struct Verbatim;

/// Whether the answer under way on a connection is [`Verbatim`].
pub type VerbatimAnswer = Arc<AtomicBool>;

/// A connection on which the library's own answers get a body.
///
/// Such an answer is the last of its connection, a head and nothing else: it is at the end of what one write is given, in one
/// piece. An answer of the API has its body in a second piece, so that it costs no more than counting the pieces.
pub struct JsonRefusals<S> {
    stream: S,
    verbatim: VerbatimAnswer,
    refusal: Option<Refusal>,
}

/// What is written in place of the library's answer.
struct Refusal {
    bytes: Vec<u8>,
    written: usize,
    /// The length of the library's answer.
    replaces: usize,
}

impl<S> JsonRefusals<S> {
    pub fn new(stream: S, verbatim: VerbatimAnswer) -> Self {
        Self { stream, verbatim, refusal: None }
    }
}

impl<S: AsyncWrite + Unpin> JsonRefusals<S> {
    /// Writes what is left of the refusal. It counts as many bytes as the answer in whose place it is.
    fn poll_refusal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(refusal) = &mut self.refusal else { return Poll::Ready(Ok(0)) };
        while refusal.written < refusal.bytes.len() {
            let rest = &refusal.bytes[refusal.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => refusal.written += written,
            }
        }
        let replaces = refusal.replaces;
        self.refusal = None;
        Poll::Ready(Ok(replaces))
    }
}

/// Where the library's own answer begins, if there is one at the end of these bytes.
fn find(bytes: &[u8]) -> Option<usize> {
    if !bytes.ends_with(HEAD_END) {
        return None;
    }
    let start = memmem::rfind(bytes, b"HTTP/1.")?;
    let last = std::str::from_utf8(&bytes[start..]).ok()?;
    let is_refusal = last.get(8..).is_some_and(|rest| rest.starts_with(" 4"));
    (is_refusal && last.contains(NO_BODY) && !last.contains("content-type:")).then_some(start)
}

impl Refusal {
    fn of(head: &[u8]) -> Self {
        let text = String::from_utf8_lossy(head);
        let message = Message { message: sentence(&text).into(), may_take_effect: None };
        let body = serde_json::to_string(&message).unwrap_or_default();
        let length = body.len();
        let described = format!(
            "content-type: application/json\r\ncache-control: no-store\r\ncontent-length: {length}\r\n"
        );
        let bytes = (text.replacen(NO_BODY, &described, 1) + &body).into_bytes();
        Self { bytes, written: 0, replaces: head.len() }
    }
}

fn sentence(head: &str) -> String {
    match head.get(9..12) {
        Some("414") => "the URI of the request has more than 65534 bytes; a large value belongs into the body".to_owned(),
        Some("431") => format!("the head of the request has more than {MAX_HEAD_BYTES} bytes, or more than 100 headers"),
        _ => "the request can't be read as HTTP/1.1: its first line, a header, Content-Length or Transfer-Encoding is malformed, \
              or it is meant for another protocol (a node speaks TLS only with TLS_CERTIFICATE_FILE)"
            .to_owned(),
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for JsonRefusals<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for JsonRefusals<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.refusal.is_some() {
            return self.poll_refusal(cx);
        }
        let found = if self.verbatim.load(Ordering::Relaxed) { None } else { find(buf) };
        match found {
            Some(0) => {
                self.refusal = Some(Refusal::of(buf));
                self.poll_refusal(cx)
            }
            Some(start) => Pin::new(&mut self.stream).poll_write(cx, &buf[..start]),
            None => Pin::new(&mut self.stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match bufs {
            [buf] => self.poll_write(cx, buf),
            bufs => Pin::new(&mut self.stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const REFUSED: &str = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: d\r\n\r\n";

    /// What arrives of these bytes, by a pipe that takes `step` at a time.
    async fn through(bytes: &[u8], step: usize, verbatim: bool) -> String {
        let (near, mut far) = tokio::io::duplex(step);
        let mut stream = JsonRefusals::new(near, Arc::new(AtomicBool::new(verbatim)));
        let write = async move {
            stream.write_all(bytes).await.expect("written");
            drop(stream);
        };
        let mut text = String::new();
        let ((), read) = tokio::join!(write, far.read_to_string(&mut text));
        read.expect("text");
        text
    }

    #[tokio::test]
    async fn a_refusal_gets_its_body_however_it_is_written() {
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n";
        for step in 1..300 {
            for before in ["", answer, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"] {
                let text = through(format!("{before}{REFUSED}").as_bytes(), step, false).await;
                let refusal = text.strip_prefix(before).expect("the answer before it is whole");
                let (head, body) = refusal.split_once("\r\n\r\n").expect("a head");
                assert!(head.contains(&format!("content-length: {}", body.len())), "{text}");
                assert!(head.contains("\r\ncontent-type: application/json"), "{text}");
                assert!(body.starts_with("{\"message\":\"the head "), "{text}");
            }
        }
    }

    #[tokio::test]
    async fn everything_else_is_left_as_it_is() {
        let texts = [
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 7\r\n\r\n",
            "HTTP/1.1 431 A\r\ncontent-length: 0\r\n\r\nx",
            "\r\n\r\n",
            "0\r\n\r\n",
            "",
        ];
        for text in texts {
            assert_eq!(through(text.as_bytes(), 1_000, false).await, text);
        }
        assert_eq!(through(REFUSED.as_bytes(), 1_000, true).await, REFUSED);
    }
}
