"""Reads and writes with a Python client that openapi-python-client makes of a node's description.

client.py URL   writes the client into the folder where it is called
"""

import io
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def generate(url):
    arguments = ["generate", "--url", f"{url}/openapi.json", "--meta", "none", "--output-path", "bitacora_api"]
    arguments += ["--config", str(HERE / "generator.yml"), "--overwrite"]
    subprocess.run([sys.executable, "-m", "openapi_python_client", *arguments], check=True)
    sys.path.insert(0, ".")


def same(found, expected):
    assert found == expected, f"{found!r}, not {expected!r}"


def main(url):
    generate(url)
    from bitacora_api import Client
    from bitacora_api.api.keys import batch, delete_key, get_key, read_changes, scan, set_key
    from bitacora_api.models import BatchGet, BatchRead, BatchSet, BatchWritten, ConditionFailed, Consistency, DeleteEvent, Error, Record
    from bitacora_api.types import File

    client = Client(base_url=url)
    key, strong = "python:a ü", Consistency.STRONG
    begun = read_changes.sync(client=client, prefix="python:")
    same(begun.events, [])

    written = set_key.sync_detailed(client=client, key=key, value="1", ttl="2h")
    same((written.status_code, type(written.parsed)), (200, Record))
    position, version = written.headers["bitacora-position"], written.headers["etag"]
    read = get_key.sync_detailed(client=client, key=key, consistency=Consistency.SESSION, position=position)
    same((read.parsed.key, read.parsed.value, read.headers["etag"]), (key, "1", version))

    again = set_key.sync_detailed(client=client, key=key, value="2", if_match=version)
    same((again.status_code, again.parsed.value), (200, "2"))
    late = set_key.sync_detailed(client=client, key=key, body=File(io.BytesIO(b"3")), if_match=version)
    same((late.status_code, type(late.parsed), late.parsed.current.value), (412, ConditionFailed, "2"))
    taken = set_key.sync_detailed(client=client, key=key, value="3", if_none_match="*")
    same((taken.status_code, taken.parsed.current.value), (412, "2"))
    wrong = set_key.sync_detailed(client=client, key=key, value="3", ttl="60")
    same((wrong.status_code, type(wrong.parsed)), (400, Error))

    names = [f"python:{i}" for i in range(5)]
    lines = [BatchSet(op="set", key=name, value=name.upper()) for name in names]
    lines.append(BatchGet(op="get", key=key, consistency=strong))
    body = "\n".join(json.dumps(line.to_dict()) for line in lines)
    answer = batch.sync(client=client, body=File(io.BytesIO(body.encode())))
    results = [json.loads(line) for line in answer.payload.read().splitlines()]
    same([BatchWritten.from_dict(result).key for result in results[:-1]], names)
    same(BatchRead.from_dict(results[-1]).value, "2")

    found, cursor = [], {}
    while True:
        page = scan.sync(client=client, prefix="python:", limit=2, consistency=strong, **cursor)
        found += [(record.key, record.value) for record in page.records]
        if page.cursor is None:
            break
        cursor = {"cursor": page.cursor}
    same(found, [(name, name.upper()) for name in names] + [(key, "2")])

    deleted = delete_key.sync_detailed(client=client, key=key, if_match=again.headers["etag"])
    same((deleted.status_code, deleted.parsed.ttl), (200, -1))
    gone = get_key.sync_detailed(client=client, key=key, consistency=strong)
    same((gone.status_code, gone.parsed.message), (404, f"Key {key} not found"))

    # A key that changed quickly may be told with its last state only; the one that was deleted comes to its end.
    told, since = {}, begun.next_
    while not isinstance(told.get(key), DeleteEvent):
        changes = read_changes.sync(client=client, prefix="python:", since=since, limit=2, wait="20s")
        told.update((event.key, event) for event in changes.events)
        since = changes.next_
    same((told[key].reason, told[key].position), ("deleted", deleted.headers["bitacora-position"]))
    same({name: told[name].value for name in names}, {name: name.upper() for name in names})
    refused = read_changes.sync_detailed(client=client, since="x")
    same((refused.status_code, type(refused.parsed)), (400, Error))


if __name__ == "__main__":
    main(*sys.argv[1:])
