//! Examples of calls that read changes, and of a watch: what is there, and what has changed since.

use serde_json::{Value, json};

use super::{Content, Example, NONE, record};

/// The token behind what was there.
const SINCE: &str = "ASszM9NhcFPbr86H3KE0BAQMAwIAWOpsVA";

/// The token behind that.
const NEXT: &str = "ASszM9NhcFPbr86H3KE0BAUMAwIAboZOdA";

/// What a watch sends that goes on from there.
const EVENTS: &str = r#"retry: 500

event: delete
id: ASszM9NhcFPbr86H3KE0BAUMAwIAboZOdA
data: {"key":"fruit","timestamp":1790000000700,"position":"1:8","reason":"deleted"}

event: current
id: ASszM9NhcFPbr86H3KE0BAUMAwIAboZOdA
data: {"position":"0:3,1:8"}

"#;

/// All of them.
pub fn in_order() -> Vec<Example> {
    vec![
        Example {
            name: "whatIsThere",
            operation: "readChanges",
            query: &[("prefix", "fruit"), ("initial", "true"), ("limit", "10")],
            answer: list(
                &json!({
                    "event": "set",
                    "key": "fruit",
                    "value": "pear",
                    "timestamp": 1_790_000_000_600_i64,
                    "source": 1,
                    "ttl": 1_790_007_200_600_i64,
                    "uuid": "3a6c8b0d-94e1-47f2-8c36-5e7d1b9f0a27",
                    "position": "1:7",
                }),
                SINCE,
                "0:3,1:7",
            ),
            ..NONE
        },
        Example {
            name: "deleteFruit",
            operation: "deleteKey",
            query: &[("key", "fruit"), ("visible", "here")],
            answer_headers: &[("Bitacora-Position", "1:8")],
            answer: Content::Json(record(
                "fruit",
                "",
                -1,
                1_790_000_000_700,
                "b1d7e0c4-3f52-4c8e-9a61-0d4f7e2b6c93",
            )),
            ..NONE
        },
        Example {
            name: "whatHasChanged",
            operation: "readChanges",
            query: &[("prefix", "fruit"), ("since", SINCE), ("wait", "5s")],
            answer: list(
                &json!({
                    "event": "delete",
                    "key": "fruit",
                    "timestamp": 1_790_000_000_700_i64,
                    "position": "1:8",
                    "reason": "deleted",
                }),
                NEXT,
                "0:3,1:8",
            ),
            ..NONE
        },
        Example {
            name: "events",
            operation: "watch",
            query: &[("prefix", "fruit"), ("since", SINCE)],
            answer: Content::Text("text/event-stream", EVENTS),
            ..NONE
        },
    ]
}

fn list(event: &Value, next: &str, position: &str) -> Content {
    Content::Json(json!({ "events": [event], "next": next, "current": true, "position": position }))
}
