"""client.py BASE PREFIX LAST: follows what changes, by httpx-sse, until the key LAST and all before it are
told; goes on wherever the balancer leads."""

import json
import sys
import time

import httpx
from httpx_sse import connect_sse

base, prefix, last = sys.argv[1:]
state, told, byes, connections, token, done = {}, set(), 0, 0, "", False
# There is no order between keys: all before LAST was told once the watch says how far it is.
HOW_FAR = ("current", "progress")
with httpx.Client(timeout=httpx.Timeout(10, read=30), trust_env=False) as client:
    while not done:
        headers = {"Last-Event-ID": token} if token else {}
        query = {"prefix": prefix, "initial": "true"}
        try:
            with connect_sse(client, "GET", f"{base}/watch", params=query, headers=headers) as source:
                source.response.raise_for_status()
                connections += 1
                for event in source.iter_sse():
                    token = event.id or token
                    # This library also hands on what only says when to connect again.
                    data = event.json() if event.data else {}
                    if event.event == "set":
                        state[data["key"]] = data["value"]
                        told.add(data["key"])
                    elif event.event == "delete":
                        state.pop(data["key"], None)
                        # It may have come and gone while this was away.
                        told.add(data["key"])
                    elif event.event == "gap":
                        raise SystemExit(f"a gap: {data}")
                    elif event.event == "current":
                        print("current", flush=True)
                    elif event.event == "bye":
                        byes += 1
                    done = last in told and event.event in HOW_FAR
                    if done:
                        break
        except httpx.HTTPError:
            # What EventSource does by itself.
            time.sleep(0.2)
print(json.dumps({"state": state, "told": len(told), "byes": byes, "connections": connections}))
