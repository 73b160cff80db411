//! The examples of the description, sent to a node in their order.

use std::collections::BTreeMap;

use bitacora_node::service::changes::Token;
use bitacora_protocol::SessionPosition;
use serde_json::Value;
use tokio::time::timeout;

use super::super::support::PATIENCE;
use super::super::watch::Watch;
use super::super::{Answer, Running};
use super::{Description, Operation};

/// What differs from node to node: the examples' text, and the node's own.
#[derive(Default)]
struct Own(BTreeMap<String, String>);

impl Own {
    /// The example's text with the node's own positions.
    fn in_text(&self, text: &str) -> String {
        let quoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        match (self.0.get(quoted.unwrap_or(text)), quoted) {
            (Some(own), Some(_)) => format!("\"{own}\""),
            (Some(own), None) => own.clone(),
            (None, _) => text.to_owned(),
        }
    }

    /// Compares a text of an answer with the example's, and learns what is this node's own.
    fn compare(&mut self, example: &str, text: &str, what: &str) {
        let bare = |text: &str| text.trim_matches('"').to_owned();
        let (example, text) = (bare(example), bare(text));
        if is_token(&example) && is_token(&text) {
            // Two at the same place may differ, by the time up to which what expired has been told.
            self.0.insert(example, text);
            return;
        }
        if is_position(&example) && is_position(&text) || is_uuid(&example) && is_uuid(&text) {
            let own = self.0.entry(example.clone()).or_insert_with(|| text.clone());
            assert_eq!(*own, text, "{what}: {example} was {own} before");
            return;
        }
        if is_positions(&example) && is_positions(&text) {
            return;
        }
        let words = |text: &str| {
            text.split(' ').map(|word| word.trim_end_matches(';').to_owned()).collect::<Vec<_>>()
        };
        let (examples, texts) = (words(&example), words(&text));
        assert_eq!(examples.len(), texts.len(), "{what}: {text}");
        for (example, text) in examples.iter().zip(texts) {
            if is_position(example) && is_position(&text) {
                self.compare(example, &text, what);
            } else {
                assert_eq!(*example, text, "{what}");
            }
        }
    }

    fn compare_json(&mut self, example: &Value, value: &Value, what: &str) {
        match (example, value) {
            (Value::Object(examples), Value::Object(values)) => {
                assert!(examples.keys().eq(values.keys()), "{what}: {value}");
                for (name, example) in examples {
                    self.compare_json(example, &values[name], &format!("{what}.{name}"));
                }
            }
            (Value::Array(examples), Value::Array(values)) => {
                assert_eq!(examples.len(), values.len(), "{what}: {value}");
                examples
                    .iter()
                    .zip(values)
                    .for_each(|(example, value)| self.compare_json(example, value, what));
            }
            (Value::String(example), Value::String(text)) => self.compare(example, text, what),
            (Value::Number(example), Value::Number(number)) if is_time(example) && is_time(number) => {}
            (example, value) => assert_eq!(example, value, "{what}"),
        }
    }
}

fn is_position(text: &str) -> bool {
    text.parse::<bitacora_protocol::Position>().is_ok()
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

fn is_token(text: &str) -> bool {
    Token::decode(text).is_ok()
}

/// Of all partitions, some of which no example writes to.
fn is_positions(text: &str) -> bool {
    text.parse::<SessionPosition>().is_ok()
}

fn is_time(number: &serde_json::Number) -> bool {
    number.as_i64().is_some_and(|ms| ms > 1_000_000_000_000)
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// The parameters of an example: those of the query, and the headers.
fn parameters(operation: &Operation<'_>, name: &str, own: &Own) -> (String, Vec<String>) {
    let (mut query, mut headers) = (Vec::new(), Vec::new());
    for parameter in operation.described["parameters"].as_array().expect("parameters") {
        let value = &parameter["examples"][name]["value"];
        let text = match value {
            Value::Null => continue,
            Value::String(text) => own.in_text(text),
            value => value.to_string(),
        };
        let parameter_name = parameter["name"].as_str().expect("a name");
        if parameter["in"] == "query" {
            query.push(format!("{parameter_name}={}", encoded(&text)));
        } else {
            headers.push(format!("{parameter_name}: {text}"));
        }
    }
    (query.join("&"), headers)
}

/// Sends an example of an operation.
async fn ask(running: &Running, operation: &Operation<'_>, name: &str, own: &Own) -> Answer {
    let (query, mut headers) = parameters(operation, name, own);
    let mut body = String::new();
    for (kind, content) in operation.described["requestBody"]["content"].as_object().into_iter().flatten() {
        if let Some(text) = content["examples"][name]["value"].as_str() {
            headers.push(format!("Content-Type: {kind}"));
            text.clone_into(&mut body);
        }
    }
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    running.ask(&operation.line(&query), &headers, &body).await
}

/// Sends it again while the node has not read all that the examples before have put into the log.
async fn ask_until_current(running: &Running, operation: &Operation<'_>, name: &str, own: &Own) -> Answer {
    loop {
        let answer = ask(running, operation, name, own).await;
        if answer.status != 200 || operation.id != "readChanges" || answer.json()["current"] == true {
            return answer;
        }
    }
}

/// Begins a watch as an example does, and compares what it is sent.
async fn watch(
    running: &Running,
    description: &Description,
    operation: &Operation<'_>,
    name: &str,
    own: &mut Own,
) {
    let content = &operation.described["responses"]["200"]["content"]["text/event-stream"];
    let text = content["examples"][name]["value"].as_str().expect("a text");
    let mut watch = Watch::begin(running, &format!("?{}", parameters(operation, name, own).0), "").await;
    let (begin, events) = text.split_once("\n\n").expect("what it begins with");
    assert_eq!(watch.until("\n\n").await.trim_end(), begin);
    for event in events.split_terminator("\n\n") {
        let lines = event.split('\n').map(|line| line.split_once(": ").expect("a field"));
        let [("event", kind), ("id", id), ("data", data)] = lines.collect::<Vec<_>>()[..] else {
            panic!("{event}")
        };
        let (own_id, own_data) = watch.event(kind).await;
        own.compare(id, &own_id, name);
        own.compare_json(&serde_json::from_str(data).expect("JSON"), &own_data, name);
        description.fits(content["x-event-schemas"][kind]["$ref"].as_str().expect("a schema"), &own_data);
    }
}

/// Whether an answer or a part of it has an example.
fn has(described: &Value, name: &str) -> bool {
    match described {
        Value::Object(fields) => {
            fields.get("examples").is_some_and(|examples| examples.get(name).is_some())
                || fields.values().any(|value| has(value, name))
        }
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_answers_as_the_examples_say() {
    let running = Running::start(&[]).await;
    let description = Description::of(&running).await;
    let mut own = Own::default();
    let order = description.0["x-example-order"].as_array().expect("the order");
    assert!(order.len() > 15);
    for name in order.iter().map(|name| name.as_str().expect("a name")) {
        let mut answers = description.operations().flat_map(|operation| {
            let answers = operation.described["responses"].as_object().expect("answers").clone();
            let with_it = answers.into_iter().filter(|(_, answer)| has(answer, name));
            with_it.map(|(status, answer)| (operation.id.to_owned(), status, answer)).collect::<Vec<_>>()
        });
        let (id, status, expected) = answers.next().unwrap_or_else(|| panic!("{name} has an answer"));
        assert!(answers.next().is_none(), "{name} has one answer");
        let operation = description.operations().find(|operation| operation.id == id).expect("it is there");
        let answered = ask_until_current(&running, &operation, name, &own);
        let answer =
            timeout(PATIENCE, answered).await.unwrap_or_else(|_| panic!("{name}: it is never current"));
        assert_eq!(answer.status.to_string(), status, "{name}: {answer:?}");
        description.describes(&operation, &answer);
        for (header, described) in expected["headers"].as_object().expect("headers") {
            if let Some(example) = described["examples"][name]["value"].as_str() {
                let text = answer.header(header).unwrap_or_else(|| panic!("{name}: {header}: {answer:?}"));
                let both_times = [example, text].map(|text| text.parse::<i64>().is_ok()) == [true; 2];
                if !both_times {
                    own.compare(example, text, name);
                }
            }
        }
        for (kind, described) in expected["content"].as_object().into_iter().flatten() {
            match &described["examples"][name]["value"] {
                Value::String(text) if kind.ends_with("ndjson") => {
                    let json = |line: &str| {
                        line.starts_with('{').then(|| serde_json::from_str::<Value>(line).expect("JSON"))
                    };
                    let examples = text.lines().filter_map(json).collect();
                    let lines = answer.body.lines().filter_map(json).collect();
                    own.compare_json(&Value::Array(examples), &Value::Array(lines), name);
                }
                Value::String(_) if kind == "text/event-stream" => {
                    watch(&running, &description, &operation, name, &mut own).await;
                }
                Value::String(text) => assert_eq!(*text, answer.body, "{name}"),
                example => own.compare_json(example, &answer.json(), name),
            }
        }
    }
    running.stop().await;
}
