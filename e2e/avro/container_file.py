"""Reads and writes Avro object container files with fastavro.

container_file.py read FILE                 prints {"codec", "records"} as JSON
container_file.py write FILE CODEC EXPIRY   writes the JSON list of {"key", "value", "expiry"} that is on stdin; EXPIRY is the
                                            name of the field for the expiry, a number or null
"""

import json
import sys

import fastavro


def read(file):
    with open(file, "rb") as source:
        reader = fastavro.reader(source)
        json.dump({"codec": reader.codec, "records": list(reader)}, sys.stdout)


def write(file, codec, expiry):
    schema = {
        "type": "record",
        "name": "Entry",
        "fields": [
            {"name": "key", "type": "string"},
            {"name": "value", "type": "string"},
            {"name": expiry, "type": ["null", "long"], "default": None},
            {"name": "comment", "type": {"type": "array", "items": "int"}},
        ],
    }
    records = [
        {"key": entry["key"], "value": entry["value"], expiry: entry["expiry"], "comment": [1, 2]}
        for entry in json.load(sys.stdin)
    ]
    with open(file, "wb") as target:
        fastavro.writer(target, fastavro.parse_schema(schema), records, codec=codec, sync_interval=4096)


{"read": read, "write": write}[sys.argv[1]](*sys.argv[2:])
