//! The network between a node and a server: a TCP proxy that can be slowed down and cut.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::ports;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flow {
    Open,
    /// Bytes a second, each way, of each connection.
    Slow(u32),
    Cut,
}

/// On 127.0.0.1; gone with its connections when dropped.
pub struct Proxy {
    pub port: u16,
    flow: watch::Sender<Flow>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// In front of `target`, which need not listen yet.
    pub async fn start(target: u16) -> Result<Proxy> {
        let port = ports::free();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.context("listening")?;
        let (flow, seen) = watch::channel(Flow::Open);
        Ok(Proxy { port, flow, task: tokio::spawn(serve(listener, target, seen)) })
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Lets through that many bytes a second, each way, of each connection.
    pub fn slow(&self, bytes_per_second: u32) {
        self.flow.send_replace(Flow::Slow(bytes_per_second));
    }

    /// Closes all connections, and every new one at once.
    pub fn cut(&self) {
        self.flow.send_replace(Flow::Cut);
    }

    pub fn mend(&self) {
        self.flow.send_replace(Flow::Open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, target: u16, flow: watch::Receiver<Flow>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => { connections.spawn(connect(client, target, flow.clone())); }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(client: TcpStream, target: u16, mut flow: watch::Receiver<Flow>) {
    if *flow.borrow() == Flow::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let (out, back) = (flow.clone(), flow.clone());
    // Whichever ends first takes the other with it.
    tokio::select! {
        _ = pump(from_client, to_server, out) => {}
        _ = pump(from_server, to_client, back) => {}
        _ = flow.wait_for(|flow| *flow == Flow::Cut) => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    flow: watch::Receiver<Flow>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let flow_now = *flow.borrow();
        let room = match flow_now {
            // In tenths of a second.
            Flow::Slow(rate) => (rate as usize / 10).clamp(1, buffer.len()),
            _ => buffer.len(),
        };
        let n = from.read(&mut buffer[..room]).await?;
        if n == 0 {
            return Ok(());
        }
        let flow_now = *flow.borrow();
        if let Flow::Slow(rate) = flow_now {
            tokio::time::sleep(Duration::from_secs_f64(n as f64 / f64::from(rate.max(1)))).await;
        }
        to.write_all(&buffer[..n]).await?;
    }
}
