//! `GET /openapi.json` says what a node does: its examples are sent to one, and each parameter, header, method and status of it is
//! compared with what the node takes and answers.

mod answers;
mod examples;
mod requests;

use serde_json::Value;

use super::{Answer, Running};

/// Headers that every answer of HTTP may have, and that no description names.
const OF_HTTP: [&str; 5] = ["connection", "content-length", "content-type", "date", "transfer-encoding"];

/// What a node says of itself.
struct Description(Value);

/// A method of a path.
struct Operation<'a> {
    method: String,
    path: &'a str,
    id: &'a str,
    described: &'a Value,
}

impl Description {
    async fn of(running: &Running) -> Self {
        let answer = running.ask("GET /openapi.json", &[], "").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        Self(answer.json())
    }

    fn operations(&self) -> impl Iterator<Item = Operation<'_>> {
        let paths = self.0["paths"].as_object().expect("paths");
        paths.iter().flat_map(|(path, methods)| {
            methods.as_object().expect("methods").iter().map(move |(method, described)| Operation {
                method: method.to_ascii_uppercase(),
                path,
                id: described["operationId"].as_str().expect("an id"),
                described,
            })
        })
    }

    /// What a reference leads to, or the value itself.
    fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => self.0.pointer(&reference[1..]).expect(reference),
            None => value,
        }
    }

    /// That JSON fits a schema, and has no field that the schema does not name.
    fn fits(&self, schema: &str, value: &Value) {
        let mut closed = serde_json::json!({ "$ref": schema, "components": self.0["components"] });
        close(&mut closed["components"]["schemas"]);
        let validator =
            jsonschema::validator_for(&closed).unwrap_or_else(|error| panic!("{schema}: {error}"));
        if let Err(error) = validator.validate(value) {
            panic!("{schema}: {error}: {value}");
        }
    }

    /// That an answer is as it is described: its status, headers, type and body.
    fn describes(&self, operation: &Operation<'_>, answer: &Answer) {
        let id = operation.id;
        let described = &operation.described["responses"][answer.status.to_string()];
        assert!(described.is_object(), "{id}: the status is not described: {answer:?}");
        let described = self.resolved(described);
        for line in answer.head.lines().skip(1) {
            let (name, _) = line.split_once(':').expect("a header");
            let mut known = described["headers"].as_object().expect("headers").keys();
            let known = OF_HTTP.contains(&name) || known.any(|known| known.eq_ignore_ascii_case(name));
            assert!(known, "{id}: the header {name} of {} is not described", answer.status);
        }
        let Some(content) = described["content"].as_object() else {
            assert!(answer.body.is_empty(), "{id}: no body is described: {answer:?}");
            return;
        };
        let kind = answer.header("content-type").and_then(|kind| kind.split(';').next()).unwrap_or_default();
        let described = content.get(kind).unwrap_or_else(|| panic!("{id}: {kind} is not described"));
        match (kind, described["schema"]["$ref"].as_str(), described["x-line-schema"].as_str()) {
            ("application/json", Some(schema), _) => self.fits(schema, &answer.json()),
            ("application/x-ndjson", _, Some(schema)) => {
                for line in answer.body.lines().filter(|line| line.starts_with('{')) {
                    self.fits(schema, &serde_json::from_str(line).expect("JSON"));
                }
            }
            _ => {}
        }
    }
}

/// Lets no object of these schemas have a field that they don't name.
fn close(schemas: &mut Value) {
    for schema in schemas.as_object_mut().expect("schemas").values_mut() {
        if schema["properties"].is_object() {
            schema["additionalProperties"] = false.into();
        }
    }
}

impl Operation<'_> {
    /// The names of its parameters at a place, `query` or `header`.
    fn parameters(&self, place: &str) -> Vec<&str> {
        let parameters = self.described["parameters"].as_array().expect("parameters").iter();
        let here = parameters.filter(|parameter| parameter["in"] == place);
        here.map(|parameter| parameter["name"].as_str().expect("a name")).collect()
    }

    /// Whether its answer goes on for as long as the client likes.
    fn is_endless(&self) -> bool {
        self.described["responses"]["200"]["content"]["text/event-stream"].is_object()
    }

    /// The first line of a request, with a query; of an answer without an end, its head.
    fn line(&self, query: &str) -> String {
        let method = if self.is_endless() { "HEAD" } else { &self.method };
        format!("{method} {}?{query}", self.path)
    }
}
