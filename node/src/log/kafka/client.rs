//! What all clients of librdkafka have in common: their configuration, and what is kept of their complaints.

use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

use super::KafkaSettings;
use super::login::Tokens;

/// Properties that the node's correctness rests on; they can't be passed through.
pub const RESERVED_PROPERTIES: [&str; 11] = [
    "acks",
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "message.timeout.ms",
    "partitioner",
    "request.required.acks",
];

pub(super) fn client_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set_log_level(RDKafkaLogLevel::Warning);
    for (name, value) in &settings.properties {
        config.set(name, value);
    }
    config.set("bootstrap.servers", &settings.brokers);
    set_default(&mut config, "client.id", "bitacora");
    // Nagle's algorithm and long back-offs would each cost more than a whole round trip.
    set_default(&mut config, "socket.nagle.disable", "true");
    set_default(&mut config, "reconnect.backoff.max.ms", "1000");
    config
}

pub(super) fn set_default(config: &mut ClientConfig, name: &str, value: &str) {
    set_default_of(config, &[name], value);
}

/// As [`set_default`], of a property that has several names. librdkafka takes any of them, and the last one that it is told wins.
pub(super) fn set_default_of(config: &mut ClientConfig, names: &[&str], value: &str) {
    if let Some(first) = names.first()
        && names.iter().all(|name| config.get(name).is_none())
    {
        config.set(*first, value);
    }
}

/// A client's context that keeps librdkafka's last complaint for whoever has to tell why nothing answers, instead of
/// logging every try to connect. Shared, since only the producer's are told while nothing else is polled.
#[derive(Clone, Default)]
pub(super) struct LastProblem {
    text: Arc<Mutex<String>>,
    /// If clients log in by tokens.
    tokens: Option<Tokens>,
}

impl LastProblem {
    pub fn new(tokens: Option<Tokens>) -> Self {
        Self { text: Arc::default(), tokens }
    }

    pub fn tokens(&self) -> Option<&Tokens> {
        self.tokens.as_ref()
    }

    /// Empty if nothing is known.
    pub fn text(&self) -> String {
        // Without a token no client even tries to connect.
        if let Some(problem) = self.tokens.as_ref().and_then(Tokens::problem) {
            return problem;
        }
        let text = self.text.lock().clone();
        match &self.tokens {
            Some(tokens) if is_refused_login(&text) => {
                // What follows is how long it took and how often it was told, so that the same reason looked like another one.
                let reason = text.split_once(" (after ").map_or(text.as_str(), |(reason, _)| reason);
                format!("{}: {reason}", tokens.refusal())
            }
            _ => text,
        }
    }
}

/// Whether it is a complaint of librdkafka's that a broker did not let it in.
fn is_refused_login(line: &str) -> bool {
    line.contains("SASL authentication error") || line.contains("authentication failed")
}

impl ClientContext for LastProblem {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        tracing::debug!(?level, facility, "librdkafka: {line}");
        // `[thrd:…]: the problem`
        let problem = line.split_once("]: ").map_or(line, |(_, problem)| problem);
        problem.clone_into(&mut self.text.lock());
        if let Some(tokens) = &self.tokens
            && is_refused_login(problem)
        {
            tokens.note_refusal();
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka reports a problem");
    }
}

impl ConsumerContext for LastProblem {}
