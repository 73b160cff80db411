//! `GET /openapi.json`: this API as OpenAPI 3.1.
//!
//! It is made from what the calls themselves go by: the table of the paths, the table of the errors, the lists of the parameters that
//! each call takes. The files of this folder add what those don't have: words, schemas, examples. The tests hold the rest against a
//! node that runs.

mod errors;
mod examples;
mod operations;
mod parameters;
mod patterns;
mod responses;
mod schemas;

use std::sync::LazyLock;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use warp::http::header::{CACHE_CONTROL, ETAG, HeaderMap, HeaderValue};
use warp::http::{Method, Response, StatusCode};
use xxhash_rust::xxh3::xxh3_64;

use self::operations::Operation;
use super::answers::{self, Reply};
use super::error::HttpError;
use super::etag;
use super::routes::{ROUTES, Route};
use crate::server::access::needs::Need;

const INTRODUCTION: &str = "\
A replicated key-value store whose log is a compacted Kafka topic. Every node answers every call.

Paths are compared as they are sent; one slash at the end is of no meaning. A path that is not here is 404, a method that its path does not have \
is 405, and `Allow` lists those it has. A query must not have other parameters than its call, nor one of them twice. Every error is JSON with a sentence.

`Cache-Control: max-age=N` on a read lets a cache keep the answer for N seconds; nothing is kept otherwise. `traceparent` makes a request part of a \
trace. A browser's write for a page of another origin is refused unless the setting `ALLOWED_ORIGINS` has that origin; for one that it has, preflights (`OPTIONS`) \
are answered and answers have `Access-Control-Allow-Origin`. ";

/// The description as it is sent.
struct Description {
    text: Bytes,
    tag: String,
}

static DESCRIPTION: LazyLock<Description> = LazyLock::new(|| {
    let text = document().to_string();
    let tag = format!("{:016x}", xxh3_64(text.as_bytes()));
    Description { text: text.into(), tag }
});

/// Answers with the description, or 304 to who has it already.
pub fn get(headers: &HeaderMap) -> Result<Reply, HttpError> {
    // An upgrade of the node changes it: so a cache may keep it, and asks before it is used again.
    const KEEP_AND_ASK: HeaderValue = HeaderValue::from_static("no-cache");
    let Description { text, tag } = &*DESCRIPTION;
    let known = etag::if_none_match(headers)?.is_some_and(|tags| tags.has(tag));
    let mut reply = if known {
        let mut reply = Response::new(Bytes::new());
        *reply.status_mut() = StatusCode::NOT_MODIFIED;
        reply
    } else {
        answers::respond(StatusCode::OK, "application/json", text.clone())
    };
    reply.headers_mut().insert(CACHE_CONTROL, KEEP_AND_ASK);
    if let Ok(value) = HeaderValue::try_from(format!("\"{tag}\"")) {
        reply.headers_mut().insert(ETAG, value);
    }
    Ok(reply)
}

/// The whole description.
fn document() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let methods = paths.entry(route.path).or_insert_with(|| json!({}));
        for method in route.methods {
            methods[method.as_str().to_ascii_lowercase()] = described(route, method);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Bitacora",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "A distributed, multi-master key-value store on a Kafka log",
            "description": INTRODUCTION,
            "license": { "name": "Apache 2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/", "description": "The node, or the balancer, that answers this" }],
        "security": [],
        "tags": [
            { "name": "keys", "description": "Read and write" },
            { "name": "node", "description": "What a node says of itself" },
            { "name": "members", "description": "What members ask one another" },
        ],
        "paths": paths,
        "components": {
            "schemas": schemas::all(),
            "headers": responses::headers(),
            "responses": errors::responses(),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token as `bitacora token` makes it, which the node knows from `TOKENS_FILE`",
                },
            },
        },
        "x-example-order": examples::in_order().iter().map(|example| example.name).collect::<Vec<_>>(),
    })
}

/// A method of a route.
fn described(route: &Route, method: &Method) -> Value {
    let operation = Operation::of(route.call, route.path);
    let is_head = *method == Method::HEAD;
    let mut described = if is_head { head(&operation) } else { whole(&operation, method) };
    if route.call.needs() != Need::Nothing {
        // A node may have no tokens, and then asks for none.
        described["security"] = json!([{}, { "token": [] }]);
        responses::add_refusals(&mut described["responses"], !is_head);
    }
    described
}

fn whole(operation: &Operation, method: &Method) -> Value {
    let mut described = json!({
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": parameters::of(operation),
        "responses": responses::of(operation, *method == Method::GET),
    });
    if !operation.description.is_empty() {
        described["description"] = operation.description.into();
    }
    if let Some(body) = &operation.body {
        described["requestBody"] = body.clone();
        examples::of_body(operation.id, &mut described["requestBody"]);
    }
    described
}

/// The same as GET, without bodies.
fn head(get: &Operation) -> Value {
    let id =
        get.id.strip_prefix("get").map_or_else(|| format!("head_{}", get.id), |rest| format!("head{rest}"));
    // An example is of one method.
    let without_examples = Operation { id: "", ..get.clone() };
    json!({
        "operationId": id,
        "tags": [get.tag],
        "summary": format!("{}: the head of the answer", get.summary),
        "parameters": parameters::of(&without_examples),
        "responses": responses::without_bodies(&without_examples),
    })
}

#[cfg(test)]
mod tests;
