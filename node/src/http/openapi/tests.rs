//! What the description says is compared with the tables and with the readers of the calls. `node/tests/http/description` compares it
//! with a node that runs.

use std::collections::{BTreeMap, BTreeSet};

use jsonschema::Validator;
use proptest::prelude::*;

use super::super::origins::EXPOSED_HEADERS;
use super::super::{keys, params};
use super::*;
use crate::service::changes::MAX_WAIT as LONGEST_WAIT;
use crate::service::consistency::{MAX_WAIT, wait_time};
use crate::service::error::ErrorKind;
use crate::service::writes::{MAX_TTL, check_key};

/// The operations of a description, by their ids.
fn operations(document: &Value) -> BTreeMap<String, Value> {
    let paths = document["paths"].as_object().expect("paths").values();
    let all = paths.flat_map(|path| path.as_object().expect("methods").values());
    all.map(|operation| (operation["operationId"].as_str().expect("an id").to_owned(), operation.clone()))
        .collect()
}

/// Every value of a field of that name, wherever it is.
fn every<'a>(value: &'a Value, field: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            if name == field {
                found.push(value);
            }
            every(value, field, found);
        }),
        Value::Array(values) => values.iter().for_each(|value| every(value, field, found)),
        _ => {}
    }
}

fn validator(schema: &Value) -> Validator {
    jsonschema::validator_for(schema).unwrap_or_else(|error| panic!("{schema}: {error}"))
}

fn matches(pattern: &str) -> Validator {
    validator(&json!({ "type": "string", "pattern": pattern }))
}

mod tables {
    use super::*;

    #[test]
    fn every_method_of_every_path_is_described_once() {
        let described = document();
        let methods: usize = ROUTES.iter().map(|route| route.methods.len()).sum();
        assert_eq!(operations(&described).len(), methods, "each with an id of its own");
        for route in ROUTES {
            for method in route.methods {
                let operation = &described["paths"][route.path][method.as_str().to_ascii_lowercase()];
                assert!(operation["responses"]["200"].is_object(), "{method} {}", route.path);
            }
        }
    }

    /// Each kind of error is one of an operation, but for those of requests that no operation is for.
    #[test]
    fn every_status_of_the_errors_is_described_and_no_other() {
        let described = document();
        let mut statuses = BTreeSet::new();
        for operation in operations(&described).values() {
            statuses.extend(operation["responses"].as_object().expect("answers").keys().cloned());
        }
        let mut expected: BTreeSet<String> = ErrorKind::ALL
            .iter()
            .filter(|kind| **kind != ErrorKind::MethodNotAllowed)
            .map(|kind| kind.http_status())
            .chain([200, 304, 414, 431])
            .map(|status| status.to_string())
            .collect();
        assert_eq!(statuses, expected);
        expected.insert(ErrorKind::MethodNotAllowed.http_status().to_string());
        let components = described["components"]["responses"].as_object().expect("components");
        let named: BTreeSet<String> = expected
            .into_iter()
            .filter(|status| !matches!(&**status, "200" | "304"))
            .map(|status| format!("Error{status}"))
            .collect();
        assert_eq!(components.keys().cloned().collect::<BTreeSet<_>>(), named);
    }

    #[test]
    fn every_parameter_has_a_description() {
        for (id, operation) in operations(&document()) {
            for parameter in operation["parameters"].as_array().expect("parameters") {
                assert_ne!(parameter["description"], "", "{id}: {}", parameter["name"]);
            }
        }
    }

    #[test]
    fn a_head_takes_what_its_get_takes() {
        let document = document();
        for (path, methods) in document["paths"].as_object().expect("paths") {
            let taken = |method: &str| {
                let parameters = methods[method]["parameters"].as_array().expect("parameters");
                let parts = |of: &Value| ["name", "in", "required", "schema"].map(|part| of[part].clone());
                parameters.iter().map(parts).collect::<Vec<_>>()
            };
            if methods["head"].is_object() {
                assert_eq!(taken("head"), taken("get"), "{path}");
            }
        }
    }

    #[test]
    fn a_form_has_the_fields_of_a_set() {
        let set = &operations(&document())["setKey"];
        let form =
            &set["requestBody"]["content"]["application/x-www-form-urlencoded"]["schema"]["properties"];
        let mut fields: BTreeSet<&str> =
            form.as_object().expect("fields").keys().map(String::as_str).collect();
        // The query has it, or else the form: to say so is more than OpenAPI can.
        fields.insert("key");
        assert_eq!(fields, keys::FIELDS.iter().copied().collect());
    }

    /// A page of an allowed origin may read every header that it can have a use for.
    #[test]
    fn described_headers_are_exposed_to_pages() {
        let exposed = EXPOSED_HEADERS;
        let exposed: BTreeSet<&str> = exposed.to_str().expect("text").split(", ").collect();
        let described = responses::headers();
        // The first is exposed by every browser, some are for members or proxies, and those of the console for the browser itself.
        let others = [
            "cache-control",
            "bitacora-log",
            "bitacora-out-of-memory",
            "content-security-policy",
            "cross-origin-opener-policy",
            "referrer-policy",
            "x-accel-buffering",
            "x-content-type-options",
        ];
        let names = described.as_object().expect("headers").keys().map(|name| name.to_ascii_lowercase());
        let names: BTreeSet<String> = names.filter(|name| !others.contains(&name.as_str())).collect();
        assert_eq!(exposed, names.iter().map(String::as_str).collect());
    }
}

mod the_document {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let mut references = Vec::new();
        every(&document, "$ref", &mut references);
        every(&document, "x-line-schema", &mut references);
        assert!(references.len() > 100);
        for reference in references {
            let pointer = reference.as_str().and_then(|text| text.strip_prefix('#')).expect("a pointer");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn links_name_operations_and_their_parameters() {
        let document = document();
        let operations = operations(&document);
        let mut links = Vec::new();
        every(&document, "links", &mut links);
        assert!(!links.is_empty());
        for link in links.iter().flat_map(|links| links.as_object().expect("links").values()) {
            let target = &operations[link["operationId"].as_str().expect("an id")];
            for name in link["parameters"].as_object().expect("parameters").keys() {
                let name = name.rsplit('.').next().expect("a name");
                let known = target["parameters"].as_array().expect("parameters").iter();
                assert!(known.clone().any(|parameter| parameter["name"] == name), "{link}");
            }
        }
    }

    #[test]
    fn every_example_is_in_it() {
        let document = document();
        let mut examples = Vec::new();
        every(&document, "examples", &mut examples);
        let order = document["x-example-order"].as_array().expect("the order");
        let names: BTreeSet<&str> = order.iter().map(|name| name.as_str().expect("a name")).collect();
        assert_eq!(names.len(), order.len(), "each has a name of its own");
        let found: BTreeSet<&str> = examples
            .iter()
            .flat_map(|of| of.as_object().expect("named").keys())
            .map(String::as_str)
            .collect();
        assert_eq!(found, names);
    }

    #[test]
    fn examples_of_parameters_fit_their_schemas() {
        let document = document();
        for (id, operation) in operations(&document) {
            for parameter in operation["parameters"].as_array().expect("parameters") {
                let mut schema = parameter["schema"].clone();
                schema["components"] = document["components"].clone();
                let validator = validator(&schema);
                for (name, example) in parameter["examples"].as_object().into_iter().flatten() {
                    let fits = validator.is_valid(&example["value"]);
                    // Those of what is refused.
                    let refused = matches!(&**name, "blank" | "noUnit" | "noLimit" | "waitWithoutUnit");
                    assert!(fits || refused, "{id}: {name}: {example}");
                }
            }
        }
    }
}

/// A pattern takes what the calls take: not the longest zeros and the largest numbers, but no text that they refuse.
mod the_patterns {
    use super::*;

    fn key_schema() -> Validator {
        validator(&parameters::schemas()["Key"])
    }

    proptest! {
        #[test]
        fn keys(key in "\\PC{0,4}|[\\x00-\\x20\u{85}\u{a0}\u{1680}\u{2028}\u{3000}\u{feff}]{0,3}[a\\x00 ]?") {
            prop_assert_eq!(key_schema().is_valid(&json!(key)), check_key(&key).is_ok());
        }

        #[test]
        fn times(number in "0{0,2}[0-9]{0,14}", unit in "ms|s|m|h|d||x") {
            let text = format!("{number}{unit}");
            let of = |pattern: &str| matches(pattern).is_valid(&json!(text));
            prop_assert_eq!(of(&patterns::time(MAX_TTL)), params::parse_ttl(&text).is_ok(), "ttl={}", text);
            let timeout = super::super::super::options::timeout(Some(&text)).ok();
            let timeout = timeout.is_some_and(|timeout| wait_time(timeout).is_ok());
            prop_assert_eq!(of(&patterns::time_or_ms(MAX_WAIT)), timeout, "timeout={}", text);
            let wait = super::super::super::changes::wait(Some(&text)).is_ok_and(|wait| wait <= LONGEST_WAIT);
            prop_assert_eq!(of(&patterns::time_or_zero(LONGEST_WAIT)), wait, "wait={}", text);
            if of(&patterns::any_time()) {
                prop_assert!(super::super::super::options::max_staleness(Some(&text)).is_ok(), "max_staleness={}", text);
            }
        }

        #[test]
        fn positions(text in "-?[0-9]{1,3}:-?[0-9]{1,20}(,[0-9]:[0-9]{1,3})?") {
            if matches(&patterns::positions()).is_valid(&json!(text)) {
                let partitions: Vec<_> = text.split(',').filter_map(|one| one.split(':').next()).collect();
                let twice = partitions.len() == 2 && partitions[0] == partitions[1];
                prop_assert_eq!(text.parse::<bitacora_protocol::SessionPosition>().is_err(), twice, "{}", text);
            }
        }

        #[test]
        fn keys_as_bytes(text in "[AQgwz_-]{0,9}(,[AQgwz_-]{0,5})?") {
            let is_key = |text: &str| text.parse::<bitacora_protocol::http::KeyBytes>().is_ok();
            prop_assert_eq!(matches(&patterns::key_bytes()).is_valid(&json!(text)), is_key(&text), "{}", text);
            let are_keys = text.split(',').all(|text| !text.is_empty() && is_key(text));
            prop_assert_eq!(matches(&patterns::keys_bytes()).is_valid(&json!(text)), are_keys, "{}", text);
        }

        #[test]
        fn conditions(text in "\"?(\\*|-?[0-9]{1,2}:-?[0-9]{1,20})\"?") {
            let given = super::super::super::conditions::if_match(&text);
            if matches(&patterns::condition("\"")).is_valid(&json!(text)) {
                prop_assert!(given.is_ok(), "{}: {:?}", text, given);
            } else if text.len() < 20 {
                prop_assert!(given.is_err(), "{}: {:?}", text, given);
            }
        }

        #[test]
        fn tags(text in "(\\*|(W/)?\"[!-~]{0,3}\"?)(, ?\"[a-z]\")?") {
            let mut headers = HeaderMap::new();
            headers.insert("if-none-match", HeaderValue::from_str(&text).expect("a header"));
            let read = etag::if_none_match(&headers);
            prop_assert_eq!(matches(&patterns::tags()).is_valid(&json!(text)), read.is_ok(), "{}", text);
        }
    }

    #[test]
    fn the_longest_times_are_exact() {
        for (longest, longer) in
            [("36500d", "36501d"), ("3153600000s", "3153600001s"), ("876000h", "876001h")]
        {
            let of = |text: &str| matches(&patterns::time(MAX_TTL)).is_valid(&json!(text));
            assert_eq!((of(longest), of(longer), of("0d")), (true, false, false), "{longest}");
        }
        for (longest, longer) in [("60000", "60001"), ("60s", "61s"), ("1m", "2m"), ("0h", "1h")] {
            let of = |text: &str| matches(&patterns::time_or_ms(MAX_WAIT)).is_valid(&json!(text));
            assert_eq!((of(longest), of(longer)), (true, false), "{longest}");
        }
    }
}
