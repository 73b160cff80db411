//! Bare servers that answer every request with the same body: what an HTTP server costs that does nothing else.

use std::convert::Infallible;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use warp::Filter as _;

/// What the server is made with.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Kind {
    Warp,
    Hyper,
}

/// A server on 127.0.0.1 with as many threads as a node has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Server {
    pub kind: Kind,
    pub port: u16,
    pub body: String,
}

impl Server {
    /// Serves until the process ends.
    pub(super) fn run(&self) -> Result<()> {
        let runtime = tokio::runtime::Runtime::new()?;
        match self.kind {
            Kind::Warp => runtime.block_on(warp_route(self.port, self.body.clone())),
            Kind::Hyper => runtime.block_on(bare_hyper(self.port, self.body.clone().into()))?,
        }
        Ok(())
    }
}

async fn warp_route(port: u16, body: String) {
    let route = warp::path!("rpc").and(warp::query::raw()).map(move |_| {
        warp::http::Response::builder().header("content-type", "application/json").body(body.clone())
    });
    warp::serve(route).run(([127, 0, 0, 1], port)).await;
}

async fn bare_hyper(port: u16, body: Bytes) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let body = body.clone();
        let answer = service_fn(move |_| {
            let mut response = Response::new(Full::new(body.clone()));
            let json = hyper::header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
            std::future::ready(Ok::<_, Infallible>(response))
        });
        // A client that has gone is no error of the server's.
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}
