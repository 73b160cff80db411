"""Tries a node with what schemathesis makes of its description, once openapi-spec-validator has found that valid.

fuzz.py URL SECONDS SEED   prints what schemathesis prints; ends with 1 if it found anything
"""

import json
import os
import pathlib
import sys

import openapi_spec_validator
import requests

HERE = pathlib.Path(__file__).parent


def types_of(methods):
    """Of what a path answers to GET."""
    return methods.get("get", {}).get("responses", {}).get("200", {}).get("content", {})


def main(url, seconds, seed):
    described = requests.get(f"{url}/openapi.json", timeout=10).json()
    openapi_spec_validator.validate(described)
    partitions = requests.get(f"{url}/status", timeout=10).json()["partitions"]
    # More than a page of a scan.
    keys = [json.dumps({"op": "set", "key": f"page:{i:04}", "value": ""}) for i in range(300)]
    requests.post(f"{url}/rpc/batch", data="\n".join(keys), timeout=10).raise_for_status()
    os.environ.update(PARTITIONS=str(len(partitions)), SCHEMATHESIS_HOOKS="hooks")
    sys.path.insert(0, str(HERE))
    from schemathesis.cli import schemathesis

    arguments = ["--config-file", str(HERE / "schemathesis.toml"), "--no-color", "run", f"{url}/openapi.json"]
    # The snapshot is the whole store, and takes no parameter; what sends events has no end.
    for path, methods in described["paths"].items():
        if path == "/snapshot" or "text/event-stream" in types_of(methods):
            arguments += ["--exclude-path", path]
    arguments.append("--continue-on-failure")
    arguments += ["--max-time", seconds, "--seed", seed, "--generation-database", "none"]
    schemathesis.main(args=arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
