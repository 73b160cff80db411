//! Bare servers that answer every request with the same body: what an HTTP server costs that does nothing else, or nothing but hand a
//! record to Kafka.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::Result;
use bitacora_protocol::record::{KeyValue, source, ttl};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use warp::Filter as _;
use warp::http::StatusCode;

use super::bulk;

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

/// A server on 127.0.0.1 that writes the body of each request to a topic, under the key that its query names, with a producer that is set up
/// as a node's, and answers when it is acknowledged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProducingServer {
    pub port: u16,
    pub brokers: String,
    pub topic: String,
    /// Of each answer.
    pub body: String,
}

impl ProducingServer {
    /// Serves until the process ends.
    pub(super) fn run(&self) -> Result<()> {
        let producer: FutureProducer = bulk::producer(&self.brokers).create()?;
        let (topic, answer): (&'static str, &'static str) =
            (self.topic.clone().leak(), self.body.clone().leak());
        let write = move |query: String, value: Bytes| {
            let producer = producer.clone();
            async move {
                let status = match (query.strip_prefix("key="), std::str::from_utf8(&value)) {
                    (Some(key), Ok(value)) => produce(&producer, topic, key, value).await,
                    _ => StatusCode::BAD_REQUEST,
                };
                warp::reply::with_status(answer, status)
            }
        };
        let route = warp::path!("rpc").and(warp::query::raw()).and(warp::body::bytes()).then(write);
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(warp::serve(route).run(([127, 0, 0, 1], self.port)));
        Ok(())
    }
}

async fn produce(producer: &FutureProducer, topic: &str, key: &str, value: &str) -> StatusCode {
    // The time and the uuid of a record are of one size, whatever they are.
    let (timestamp, uuid) = (1_700_000_000_000, "00000000-0000-4000-8000-000000000000");
    let record = KeyValue { key, value, timestamp, source: source::PRODUCER, ttl: ttl::FOR_EVER, uuid };
    let mut bytes = Vec::with_capacity(key.len() + value.len() + 64);
    record.encode(&mut bytes);
    let sent = producer.send(FutureRecord::to(topic).key(key).payload(&bytes), Duration::from_secs(5));
    sent.await.map_or(StatusCode::SERVICE_UNAVAILABLE, |_| StatusCode::OK)
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
