//! A connection of either interface: accepted in spite of a shortage, given up on when its client does not read, and read from
//! for a moment after the last answer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;

/// How long a connection reads on after its last answer, at most.
///
/// A client that is still sending when it is refused gets the refusal only if this side takes in what is under way: a
/// socket that is closed with unread bytes is reset, and a reset can overtake the answer (RFC 9112, section 9.6).
const LINGER_AFTER_ANSWER: Duration = Duration::from_secs(1);

/// The next connection.
pub async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                // Out of file descriptors, most likely: those under way go on, and some will end.
                tracing::warn!(%error, "no connection could be accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// What a connection is read from and written to.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Does the same with whichever it is.
macro_rules! either {
    ($stream:expr, $inner:ident => $result:expr) => {
        match $stream {
            Stream::Plain($inner) => $result,
            Stream::Tls($inner) => $result,
        }
    };
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    fn tcp_mut(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_mut().0,
        }
    }
}

pub struct Socket {
    stream: Stream,
    /// What was read already and is to be read once more.
    unread: Vec<u8>,
    /// Bytes that one read takes, at most.
    max_read: usize,
    /// Whether a flush fails once the client has reset the connection.
    notices_reset: bool,
    /// A client may go without reading for so long while there is something to write.
    write_timeout: Duration,
    /// Running while the client does not read.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Running once the sending side is closed.
    until: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    #[must_use]
    pub fn new(stream: Stream, write_timeout: Duration) -> Self {
        let (unread, max_read, notices_reset) = (Vec::new(), usize::MAX, false);
        Self { stream, unread, max_read, notices_reset, write_timeout, stalled: None, until: None }
    }

    /// One read takes so many bytes at most, for who makes its buffer as large as its reads were.
    #[must_use]
    pub fn with_max_read(self, max_read: usize) -> Self {
        Self { max_read, ..self }
    }

    /// These bytes are read before what the client sends next.
    #[must_use]
    pub fn with_unread(self, unread: Vec<u8>) -> Self {
        Self { unread, ..self }
    }

    /// For a task that flushes each time it is woken, and reads nothing while a call is under way: it is woken when the client has
    /// reset the connection, and the flush fails. Nothing else may read at the same time.
    #[must_use]
    pub fn noticing_reset(self) -> Self {
        Self { notices_reset: true, ..self }
    }

    fn poll_read_stream(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(&mut self.stream, stream => Pin::new(stream).poll_read(cx, buf))
    }

    /// Turns a write that has been waiting for too long into an error.
    fn in_time<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answers")))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let length = self.unread.len().min(self.max_read).min(buf.remaining());
            buf.put_slice(&self.unread[..length]);
            self.unread.drain(..length);
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() <= self.max_read {
            return self.poll_read_stream(cx, buf);
        }
        let max_read = self.max_read;
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(max_read));
        ready!(self.poll_read_stream(cx, &mut part))?;
        let length = part.filled().len();
        buf.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = either!(&mut self.stream, stream => Pin::new(stream).poll_write(cx, buf));
        self.in_time(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = either!(&mut self.stream, stream => Pin::new(stream).poll_write_vectored(cx, bufs));
        self.in_time(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        either!(&self.stream, stream => stream.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Of what has come, nothing is taken.
        let mut byte = [0; 1];
        if self.notices_reset
            && let Poll::Ready(Err(reset)) = self.stream.tcp().poll_peek(cx, &mut ReadBuf::new(&mut byte))
        {
            return Poll::Ready(Err(reset));
        }
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            // What was written may still wait for room in the system's buffer.
            Stream::Tls(stream) => {
                let flushed = Pin::new(stream).poll_flush(cx);
                self.in_time(cx, flushed)
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.until.is_none() {
            let shut = either!(&mut self.stream, stream => Pin::new(stream).poll_shutdown(cx));
            ready!(self.in_time(cx, shut))?;
            self.until = Some(Box::pin(sleep(LINGER_AFTER_ANSWER)));
        }
        let mut scratch = [0; 16 * 1024];
        loop {
            if let Some(until) = &mut self.until
                && until.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Ok(()));
            }
            let mut buf = ReadBuf::new(&mut scratch);
            // Nobody looks at it, so it need not be decrypted.
            match ready!(Pin::new(self.stream.tcp_mut()).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                // The client has closed too, or is gone.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}
