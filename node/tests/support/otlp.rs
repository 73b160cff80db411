//! A collector of traces: takes OTLP over HTTP in protobuf, and keeps the spans.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message as _;
use tokio::sync::watch;
use warp::Filter as _;

/// What a span says, without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedSpan {
    pub name: String,
    /// `service.instance.id` of who sent it.
    pub node: String,
    /// Lower-case hexadecimal.
    pub trace: String,
    pub span: String,
    /// Empty if it is a root.
    pub parent: String,
    /// `http` or `rpc`; empty if it is of no request.
    pub interface: String,
}

pub struct Collector {
    address: SocketAddr,
    spans: watch::Receiver<Vec<ReceivedSpan>>,
}

impl Collector {
    pub async fn start() -> Self {
        let (sender, spans) = watch::channel(Vec::new());
        let take = warp::path!("v1" / "traces").and(warp::post()).and(warp::body::bytes()).map(
            move |body: Bytes| {
                let request = ExportTraceServiceRequest::decode(body).expect("OTLP in protobuf");
                sender.send_modify(|spans| spans.extend(received(&request)));
                // An empty message: everything was taken.
                warp::reply::with_header(Vec::<u8>::new(), "content-type", "application/x-protobuf")
            },
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(warp::serve(take).incoming(listener).run());
        Self { address, spans }
    }

    /// For `OTLP_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until there is a span that passes, and returns it.
    pub async fn span(&self, patience: Duration, passes: impl Fn(&ReceivedSpan) -> bool) -> ReceivedSpan {
        let mut spans = self.spans.clone();
        let found = spans.wait_for(|spans| spans.iter().any(&passes));
        let found = tokio::time::timeout(patience, found).await;
        let Ok(Ok(spans)) = found else { panic!("no such span among {:?}", *self.spans.borrow()) };
        spans.iter().find(|span| passes(span)).expect("waited for").clone()
    }

    pub fn spans(&self) -> Vec<ReceivedSpan> {
        self.spans.borrow().clone()
    }
}

fn received(request: &ExportTraceServiceRequest) -> Vec<ReceivedSpan> {
    let mut received = Vec::new();
    for resource in &request.resource_spans {
        let of_node = resource.resource.as_ref().map(|resource| &resource.attributes[..]);
        let node = text(of_node.unwrap_or_default(), "service.instance.id");
        for span in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
            received.push(ReceivedSpan {
                name: span.name.clone(),
                node: node.clone(),
                trace: hex(&span.trace_id),
                span: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                interface: text(&span.attributes, "bitacora.interface"),
            });
        }
    }
    received
}

/// The text of an attribute; empty if it is not there.
fn text(attributes: &[KeyValue], key: &str) -> String {
    let value = attributes.iter().find(|attribute| attribute.key == key);
    match value.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        _ => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
