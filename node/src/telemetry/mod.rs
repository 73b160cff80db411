//! Traces for OpenTelemetry: a span for each request, and one for each record of it that a node applies. Off unless
//! `OTLP_ENDPOINT` is set. Nothing here blocks or fails a request: spans go into a bounded queue that a thread of its own
//! sends from; what does not fit is dropped.

mod trace_parent;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use bitacora_protocol::Position;
use opentelemetry::trace::{
    Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, Span};

pub use self::trace_parent::TraceParent;
use crate::http_client;

/// Spans that wait to be sent; further ones are dropped.
const MAX_QUEUED_SPANS: usize = 4096;
/// Spans of one request to the collector.
const MAX_SPANS_PER_EXPORT: usize = 512;
/// How long a span waits for others to be sent with.
const EXPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How long the collector may take to answer.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// Where a collector takes traces over HTTP, below its base URL.
const TRACES_PATH: &str = "/v1/traces";

/// Makes spans, or none if it is off. One for each node; clones share it.
#[derive(Clone, Default)]
pub struct Telemetry(Option<Arc<Exporter>>);

struct Exporter {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Telemetry {
    /// Makes no spans.
    #[must_use]
    pub fn off() -> Self {
        Self::default()
    }

    /// Sends spans to a collector, by OTLP over HTTP in protobuf. Does not connect yet.
    ///
    /// `endpoint` is the collector's base URL, such as `http://collector:4318`; `node` tells the nodes apart.
    ///
    /// # Errors
    /// When the URL can't be used, or the system gives no thread.
    pub fn export_to(endpoint: &str, node: &str) -> anyhow::Result<Self> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(http_client()?)
            .with_endpoint(format!("{}{TRACES_PATH}", endpoint.trim_end_matches('/')))
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .with_context(|| format!("OTLP_ENDPOINT={endpoint} can't be used"))?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(MAX_QUEUED_SPANS)
            .with_max_export_batch_size(MAX_SPANS_PER_EXPORT)
            .with_scheduled_delay(EXPORT_INTERVAL)
            .build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        let resource = Resource::builder()
            .with_service_name("bitacora")
            .with_attribute(KeyValue::new("service.instance.id", node.to_owned()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider =
            SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource).build();
        let tracer = provider.tracer("bitacora-node");
        Ok(Self(Some(Arc::new(Exporter { provider, tracer }))))
    }

    /// Whether spans are made.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins the span of a request, as a part of the caller's trace if there is one;
    /// `parent` is not asked when telemetry is off.
    #[must_use]
    pub fn request(
        &self,
        interface: &'static str,
        operation: &'static str,
        parent: impl FnOnce() -> Option<TraceParent>,
    ) -> RequestSpan {
        RequestSpan(self.0.as_ref().map(|exporter| {
            let attributes = [KeyValue::new("bitacora.interface", interface)];
            let span = exporter.tracer.span_builder(operation).with_kind(SpanKind::Server);
            Box::new(
                span.with_attributes(attributes).start_with_context(&exporter.tracer, &context(parent())),
            )
        }))
    }

    /// Tells that records were applied, by a span each. `began`: when the batch in which they came was read.
    pub fn applied(&self, records: &[(Position, TraceParent)], began: SystemTime) {
        let Some(exporter) = &self.0 else { return };
        for (position, parent) in records {
            let attributes = [
                KeyValue::new("messaging.destination.partition.id", position.partition.to_string()),
                KeyValue::new("messaging.kafka.offset", position.offset),
            ];
            let span = exporter.tracer.span_builder("apply").with_kind(SpanKind::Consumer);
            let span = span.with_start_time(began).with_attributes(attributes);
            span.start_with_context(&exporter.tracer, &context(Some(*parent))).end();
        }
    }

    /// Sends what waits, no longer than `timeout`. Blocks. No span is made afterwards.
    pub fn shutdown(&self, timeout: Duration) {
        let Some(exporter) = &self.0 else { return };
        if let Err(error) = exporter.provider.shutdown_with_timeout(timeout) {
            tracing::warn!(%error, "not every span was sent to OTLP_ENDPOINT");
        }
    }
}

/// It may only be made where nothing is asynchronous.
fn http_client() -> anyhow::Result<reqwest::blocking::Client> {
    let builder = std::thread::Builder::new().name("otlp-client".into());
    let client = builder.spawn(|| http_client::blocking_builder().timeout(EXPORT_TIMEOUT).build())?;
    let client = client.join().map_err(|_| anyhow::anyhow!("the HTTP client's thread panicked"))?;
    client.context("no HTTP client for OTLP_ENDPOINT")
}

fn context(parent: Option<TraceParent>) -> Context {
    match parent {
        Some(parent) => Context::new().with_remote_span_context(parent.context()),
        None => Context::new(),
    }
}

/// The span of a request; nothing if telemetry is off. It ends when it is dropped. As large as a pointer, so that a request
/// that is not traced carries next to nothing.
pub struct RequestSpan(Option<Box<Span>>);

const _: () = assert!(size_of::<RequestSpan>() == size_of::<usize>());

impl RequestSpan {
    /// No span.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// What the request's records carry, if its trace is recorded.
    #[must_use]
    pub fn trace_parent(&self) -> Option<TraceParent> {
        let context = self.0.as_ref()?.span_context();
        context.is_sampled().then(|| TraceParent::of(context))
    }

    /// Ends the span. `outcome` is the metrics' label.
    pub fn end(mut self, outcome: &'static str) {
        let Some(span) = &mut self.0 else { return };
        span.set_attribute(KeyValue::new("bitacora.outcome", outcome));
        if matches!(outcome, "failed" | "unavailable") {
            span.set_status(Status::error(outcome));
        }
        span.end();
    }
}
