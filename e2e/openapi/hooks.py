"""What schemathesis can't read from the description, since OpenAPI has no words for it.

It draws each parameter for itself, and some of them belong together: a request that is wrong for that alone would hide what else it
could find. What the lines of a batch are made of is in the description too, in an extension.
"""

import base64
import json
import os
import re

import hypothesis.strategies as st
import jsonschema
import schemathesis
from schemathesis.core import NOT_SET
from schemathesis.core.failures import Failure
from schemathesis.generation import GenerationMode

# Of the topic; fuzz.py asks the node.
PARTITIONS = int(os.environ["PARTITIONS"])
NDJSON = "application/x-ndjson"
POSITION = re.compile(r"^([0-9]+):(-1|[0-9]+)$")
READS = ("getKey", "headKey", "getKeyForMember", "headKeyForMember", "scan", "head_scan")
WRITES = ("setKey", "deleteKey")


def id_of(case):
    return case.operation.definition.raw.get("operationId", "")


def in_the_topic(text):
    """These positions, in partitions that there are, each once."""
    found = {}
    for position in str(text).split(","):
        match = POSITION.match(position)
        if match is None:
            return text
        found[int(match[1]) % PARTITIONS] = match[2]
    return ",".join(f"{partition}:{offset}" for partition, offset in found.items())


def pair_up_read(query, headers):
    if query.get("consistency") != "session":
        query.pop("position", None)
        headers.pop("Bitacora-Position", None)
        return
    if "position" in query or "Bitacora-Position" not in headers:
        headers.pop("Bitacora-Position", None)
        query["position"] = in_the_topic(query.get("position", "0:-1"))
    else:
        headers["Bitacora-Position"] = in_the_topic(headers["Bitacora-Position"])
    # What is not in the log yet is waited for.
    query["timeout"] = "20ms"


def pair_up_set(case, query):
    if isinstance(case.body, dict):
        for name in ("ttl", "visible", "timeout"):
            if name in query:
                case.body.pop(name, None)
    elif case.body is NOT_SET:
        query.setdefault("value", "v")
    elif case.media_type == "application/octet-stream":
        # A value is text.
        case.body = bytes(getattr(case.body, "data", case.body)).decode(errors="ignore").encode()


def cut(text):
    """JSON Schema counts characters, and a key is bounded in bytes."""
    return text.encode()[:1024].decode(errors="ignore") if isinstance(text, str) else text


def key_of(text):
    """A key as bytes, of base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def divide(query):
    """A range is divided in one way, at keys that ascend; and no key is longer than the store's."""
    for name in {"from", "to"} & set(query):
        if not isinstance(query[name], str) or len(query[name]) > 1024:
            query.pop(name)
    if "at" in query:
        for name in ("from", "to", "parts", "entries"):
            query.pop(name, None)
        keys = {key_of(text)[:512] for text in str(query["at"]).split(",")}
        texts = [base64.urlsafe_b64encode(key).decode().rstrip("=") for key in sorted(keys - {b""})[:63]]
        query["at"] = ",".join(texts)
        if not texts:
            query.pop("at")
    elif "parts" in query:
        query.pop("entries", None)


# The scans that the cursors of answers belong to.
scans = {}


def continue_scan(query):
    """A cursor is a node's own, and of one scan."""
    if query.get("cursor") in scans:
        for name, value in scans[query["cursor"]].items():
            query.pop(name, None)
            if value is not None:
                query[name] = value
    else:
        query.pop("cursor", None)


# The tokens of answers.
tokens = set()


def follow(query):
    """A token is a node's own, too."""
    if query.get("since") not in tokens:
        query.pop("since", None)
    if "key" in query:
        query.pop("prefix", None)
    # For an event that may not come.
    query["wait"] = "20ms"


@schemathesis.hook
def before_call(context, case, kwargs):
    query, headers, operation = case.query, case.headers, id_of(case)
    if operation == "setKey" and case.body is not NOT_SET:
        # It is in one of the two places.
        query.pop("value", None)
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    for name in [name for name, value in headers.items() if value == ""]:
        # An empty text fits none of their schemas; it comes of patterns that it can't follow.
        headers.pop(name)
    for name in {"key", "prefix", "start", "end"} & set(query):
        query[name] = cut(query[name])
    if operation in READS:
        pair_up_read(query, headers)
    if operation in WRITES and "If-Match" in headers:
        headers.pop("If-None-Match", None)
    if operation == "setKey":
        pair_up_set(case, query)
    if operation in ("scan", "head_scan"):
        continue_scan(query)
    if operation in ("readChanges", "head_readChanges"):
        follow(query)
    if operation == "getDigestRanges":
        divide(query)


@schemathesis.hook
def after_call(context, case, response):
    if id_of(case) == "readChanges" and response.status_code == 200:
        tokens.add(response.json()["next"])
    if id_of(case) == "scan" and response.status_code == 200 and response.json()["cursor"]:
        scans[response.json()["cursor"]] = {name: case.query.get(name) for name in ("prefix", "start", "end")}


def is_value(case):
    """A body that is called a form, but has no field of one, is the value as it is: that is what `curl -d` sends."""
    fields = {"key", "value", "ttl", "visible", "timeout"}
    is_form = id_of(case) == "setKey" and case.media_type == "application/x-www-form-urlencoded"
    return is_form and not (isinstance(case.body, dict) and fields & set(case.body))


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """A request that may not wait is told so by a 503; any other 503 is a finding."""
    if type(failure).__name__ == "AcceptedNegativeData" and is_value(case):
        return False
    if response.status_code != 503 or type(failure).__name__ != "ServerError":
        return True
    may_not_wait = {"timeout", "max_staleness", "position"} & set(case.query) or "Bitacora-Position" in case.headers
    if isinstance(case.body, dict):
        may_not_wait = may_not_wait or "timeout" in case.body
    return not (may_not_wait and response.headers.get("retry-after"))


described = {}


def resolved(schema):
    name = schema.get("$ref", "").rsplit("/", 1)[-1]
    return described["components"]["schemas"][name] if name else schema


def value_of(schema):
    """Texts and flags as a field of a line has them."""
    schema = resolved(schema)
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    if schema["type"] == "boolean":
        return st.booleans()
    if schema.get("format") == "uuid":
        return st.uuids().map(str)
    if "pattern" in schema:
        longest = schema.get("maxLength", 1024)
        return st.from_regex(schema["pattern"]).filter(lambda text: len(text) <= longest and text == text.strip("\n"))
    return st.text()


@st.composite
def a_line(draw):
    schemas = described["components"]["schemas"]
    schema = resolved(draw(st.sampled_from(schemas["BatchLine"]["oneOf"])))
    line = {}
    for name, field in schema["properties"].items():
        if name in schema["required"] or draw(st.booleans()):
            line[name] = draw(value_of(field))
    line["key"] = cut(line["key"])
    if line.get("consistency") == "session":
        line["position"] = in_the_topic(line.get("position", "0:-1"))
        line["timeout"] = "20ms"
    else:
        line.pop("position", None)
    if "ifMatch" in line:
        line.pop("ifAbsent", None)
    return json.dumps(line).encode()


schemathesis.openapi.media_type(NDJSON, st.deferred(lambda: st.lists(a_line(), max_size=5).map(b"\n".join)))


@schemathesis.hook
def before_load_schema(context, raw_schema):
    # Of a type that has a strategy of its own it takes no example of text; node/tests/http sends it.
    raw_schema["paths"]["/rpc/batch"]["post"]["requestBody"]["content"][NDJSON].pop("examples")


@schemathesis.hook
def after_load_schema(context, schema):
    described.update(schema.raw_schema)
    batch = described["paths"]["/rpc/batch"]["post"]
    assert batch["requestBody"]["content"][NDJSON]["x-line-schema"].endswith("/BatchLine")
    assert batch["responses"]["200"]["content"][NDJSON]["x-line-schema"].endswith("/BatchResult")


class WrongLine(Failure):
    """A line of a batch's answer is not as it is described."""


@schemathesis.check
def batch_lines(ctx, response, case):
    if id_of(case) != "batch" or response.status_code != 200:
        return
    body = case.body if isinstance(case.body, bytes) else b""
    sent = [line for line in body.split(b"\n") if line.strip()]
    got = [json.loads(line) for line in response.text.split("\n") if line]
    schema = {"$ref": "#/components/schemas/BatchResult", "components": described["components"]}
    validator = jsonschema.Draft202012Validator(schema)
    wrong = [error.message for result in got for error in validator.iter_errors(result)]
    # Each line is right, but a condition may not hold, and a read may not wait.
    wrong += [f"status {line['status']}: {line}" for line in got if line["status"] not in (200, 404, 412, 503)]
    if len(sent) != len(got):
        wrong.append(f"{len(got)} results of {len(sent)} lines")
    if wrong:
        raise WrongLine(operation=case.operation.label, title="Wrong line of a batch", message="\n".join(wrong))
