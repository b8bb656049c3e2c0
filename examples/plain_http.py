"""A session over plain HTTP: make one, run commands in it, watch output as it comes, fetch a file, delete it."""

import base64
import json
import os
import urllib.request

URL = os.environ.get("SANDHAUS_URL", "http://localhost:8080")
KEY = os.environ.get("SANDHAUS_API_KEY", "")


def request(method, path, body=None):
    request = urllib.request.Request(
        URL + path, method=method, data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"})
    return urllib.request.urlopen(request)


def call(method, path, body=None):
    with request(method, path, body) as answer:
        return json.load(answer)


def events(path, body):
    """Events of a stream, as they arrive: pairs of a name and its data."""
    name = None
    with request("POST", path, body) as answer:
        for line in answer:
            line = line.decode().rstrip("\n")
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


session = call("POST", "/v1/sessions", {"ttl_seconds": 300})
path = f"/v1/sessions/{session['id']}"
try:
    # One shell for all commands: the directory and variables stay.
    call("POST", f"{path}/exec", {"cmd": "mkdir -p work && cd work && export WHO=you"})
    result = call("POST", f"{path}/exec", {"cmd": "echo hello $WHO from $PWD", "timeout_ms": 5000})
    print(result["output"], end="")

    # Long commands are better watched.
    for name, data in events(f"{path}/exec/stream", {"cmd": "for i in 1 2 3; do echo step $i; sleep 0.1; done"}):
        if name == "chunk":
            print(data["chunk"], end="", flush=True)
        elif name == "done":
            print("ended with", data["exit_code"])

    content = base64.b64encode(b"a,b\n1,2\n").decode()
    call("POST", f"{path}/fs/write", {"path": "table.csv", "content_base64": content})
    read = call("GET", f"{path}/fs/read?path=table.csv")
    print(base64.b64decode(read["content_base64"]).decode(), end="")
finally:
    call("DELETE", path)
