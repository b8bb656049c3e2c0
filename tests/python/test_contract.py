"""The details of the HTTP contract that no client library shows: codes, headers, bodies, and how requests are read."""

import base64
import json
import re
import socket
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

ISO_TIME = r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?Z"


def check_error(answer, status, code, message=None):
    assert answer.status == status, answer
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    assert body["error_code"] == code, answer
    assert body["error"] == body["message"]
    if message is not None:
        assert message in body["message"], answer
    return body


# Every answer


def test_healthz_needs_no_key(server):
    answer = server.request("GET", "/healthz", key=False)
    assert (answer.status, answer.body) == (200, b'{"status":"ok"}\n')
    assert answer.headers["Content-Type"] == "application/json"
    assert server.request("HEAD", "/healthz", key=False).body == b""


def test_request_ids(server):
    assert re.fullmatch(r"[0-9a-f]{8}", server.request("GET", "/v1/sessions").headers["X-Request-ID"])
    for path in ("/v1/sessions", "/nowhere", "/v1/sessions/x"):
        answer = server.request("GET", path, headers={"X-Request-ID": "my-own-id"})
        assert answer.headers["X-Request-ID"] == "my-own-id"


def test_the_key_comes_first(server):
    for method, path in [("GET", "/v1/sessions"), ("POST", "/v1/sessions"), ("GET", "/nowhere"), ("PATCH", "/v1/sessions"),
                         ("GET", "/v1/sessions/bad/x.js"), ("GET", "/metrics")]:
        answer = server.request(method, path, key=False)
        body = check_error(answer, 401, "UNAUTHORIZED")
        assert body["message"] == "missing or invalid authorization"
    for wrong in ("Bearer", "Bearer ", "bearer " + server.api_key, server.api_key, "Basic x", f"Bearer {server.api_key}x"):
        answer = server.request("GET", "/v1/sessions", headers={"Authorization": wrong}, key=False)
        assert answer.status == 401, wrong
    assert server.request("GET", f"/v1/sessions?api_key={server.api_key}", key=False).status == 401


def test_unknown_paths_and_wrong_methods_are_plain_text(server):
    answer = server.request("GET", "/nowhere")
    assert (answer.status, answer.body) == (404, b"404 page not found\n")
    assert answer.headers["Content-Type"].startswith("text/plain")
    answer = server.request("PATCH", "/v1/sessions")
    assert (answer.status, answer.body) == (405, b"Method Not Allowed\n")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert "GET" in answer.headers["Allow"]


def test_head_works_where_get_does(server, session_id):
    for path in ("/v1/sessions", f"/v1/sessions/{session_id}", f"/v1/sessions/{session_id}/stats", "/v1/workspaces",
                 "/v1/images", "/openapi.json", "/metrics"):
        answer = server.request("HEAD", path)
        assert (answer.status, answer.body) == (200, b""), path


def test_openapi_and_metrics(server, session_id):
    document = server.request("GET", "/openapi.json", key=False).json()
    assert document["openapi"].startswith("3.")
    for path in ("/v1/sessions", "/v1/sessions/{id}/exec", "/v1/sessions/{id}/fs/raw", "/v1/images/{name}/tag"):
        assert path in document["paths"]
    server.request("POST", f"/v1/sessions/{session_id}/exec", {"cmd": "true"})
    text = server.request("GET", "/metrics").body.decode()
    assert re.search(r'^sandhaus_sandboxes\{phase="running"\} [1-9]', text, re.MULTILINE)
    assert re.search(r'^sandhaus_execs_total\{outcome="success"\} [1-9]', text, re.MULTILINE)
    assert re.search(r'^sandhaus_http_requests_total\{method="POST",route="/v1/sessions/\{id\}/exec",status="200"\} [1-9]',
                     text, re.MULTILINE)
    assert "sandhaus_http_request_duration_seconds_bucket" in text


# JSON


def test_requests_are_read_leniently(server):
    for body in ('{"TTL_Seconds": 60}', '{"ttl_seconds": 60, "unknown": {"deep": [1]}}', '{"ttl_seconds": 60} garbage',
                 "null", "{}", '{"image": null}'):
        answer = server.request("POST", "/v1/sessions", body, {"Content-Type": "text/plain"})
        assert answer.status == 201, (body, answer)
        assert answer.body.endswith(b"\n")
        server.request("DELETE", f"/v1/sessions/{answer.json()['id']}")


@pytest.mark.parametrize("body, message", [
    (b"", "invalid json: EOF"),
    (b"{", "invalid json: "),
    (b"[]", "invalid json: "),
    (b'{"ttl_seconds": "60"}', "invalid json: "),
    (b'{"ttl_seconds": 1.5}', "invalid json: "),
    (b'{"ttl_seconds": -1}', "ttl_seconds must be non-negative"),
    (b'{"ttl_seconds": 86401}', "ttl_seconds must not exceed 86400 (24 hours)"),
    (b'{"workspace_id": "a"}', "workspace_id must be at least 2 characters"),
    (b'{"workspace_id": "' + b"a" * 65 + b'"}', "workspace_id must not exceed 64 characters"),
    (b'{"workspace_id": "../victim"}', "workspace_id must contain only lowercase letters, numbers, and hyphens, and cannot "
                                       "start or end with a hyphen"),
    (b'{"cpus": -1}', "cpus must be"),
    (b'{"memory_mb": -1}', "memory_mb must be non-negative"),
    (b'{"name": "no spaces"}', "name must be"),
    (b'{"env": {"1x": "y"}}', "environment variable name"),
    (b'{"security": "none"}', "security must be"),
])
def test_creates_that_are_refused(server, body, message):
    before = server.sessions()
    check_error(server.request("POST", "/v1/sessions", body), 400, "INVALID_REQUEST", message)
    assert server.sessions() == before


@pytest.mark.parametrize("image", ["no-such-image", "../../etc", "a b", "x" * 65, "UPPER/slash"])
def test_images_that_are_refused(server, image):
    check_error(server.request("POST", "/v1/sessions", {"image": image}), 400, "INVALID_IMAGE", image)


def test_what_is_not_there_is_refused_by_name(server):
    check_error(server.request("POST", "/v1/sessions", {"snapshot": "s"}), 404, "SNAPSHOT_NOT_FOUND")
    check_error(server.request("POST", "/v1/sessions", {"engine": "another"}), 400, "UNSUPPORTED")


def test_body_limit(server, session_id):
    """The answer arrives although the client still sends."""
    for size in (2 * 1024 * 1024 + 1, 12 * 1024 * 1024):
        body = json.dumps({"path": "x", "text": "y" * size})
        answer = server.request("POST", f"/v1/sessions/{session_id}/fs/write", body)
        check_error(answer, 400, "INVALID_REQUEST", "invalid json: http: request body too large")
    allowed = json.dumps({"path": "x", "text": "y" * (2 * 1024 * 1024 - 100)})
    assert server.request("POST", f"/v1/sessions/{session_id}/fs/write", allowed).status == 200


# Sessions


def test_create_answers_201_with_all_fields(server):
    answer = server.request("POST", "/v1/sessions", {
        "image": "python", "ttl_seconds": 120, "name": "all-fields", "labels": {"team": "a b"}, "env": {"GREETING": "hi"},
        "cpus": 0.5, "memory_mb": 256, "pids": 64})
    assert answer.status == 201, answer
    info = answer.json()
    try:
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{3}", info["id"])
        assert (info["image"], info["status"], info["cwd"]) == ("python", "running", "/workspace")
        assert re.fullmatch(ISO_TIME, info["created_at"]) and re.fullmatch(ISO_TIME, info["expires_at"])
        assert info["acquire_source"] == "cold"
        assert "acquire_detail" not in info and "workspace_id" not in info
        assert (info["name"], info["labels"]) == ("all-fields", {"team": "a b"})
        assert info["limits"] == {"cpus": 0.5, "memory_bytes": 256 << 20, "pids": 64, "disk_bytes": info["limits"]["disk_bytes"]}
        again = server.request("GET", f"/v1/sessions/{info['id']}").json()
        assert "acquire_source" not in again
        assert {**again, "acquire_source": "cold"} == info
        ran = server.request("POST", f"/v1/sessions/{info['id']}/exec", {"cmd": "echo $GREETING"}).json()
        assert ran["output"] == "hi\n"
        taken = server.request("POST", "/v1/sessions", {"name": "all-fields"})
        check_error(taken, 409, "ALREADY_EXISTS")
    finally:
        assert server.request("DELETE", f"/v1/sessions/{info['id']}").body == b'{"ok":true}\n'


def test_list_is_a_bare_array_and_filters(server):
    ids = []
    for n in range(3):
        ids.append(server.request("POST", "/v1/sessions", {"labels": {"test": "list", "n": str(n)}}).json()["id"])

    def listed(query):
        answer = server.request("GET", f"/v1/sessions?label=test%3Dlist{query}")
        assert answer.status == 200, answer
        return [info["id"] for info in answer.json()], answer.headers.get("X-Next-Cursor")

    assert listed("") == (ids[::-1], None)
    assert listed("&label=n%3D1")[0] == [ids[1]]
    page, cursor = listed("&limit=2")
    assert (page, cursor) == ([ids[2], ids[1]], ids[1])
    assert listed(f"&limit=2&cursor={cursor}") == ([ids[0]], None)
    server.request("DELETE", f"/v1/sessions/{ids[1]}")
    assert listed("")[0] == [ids[2], ids[0]]
    assert listed("&status=all")[0] == ids[::-1]
    for session in ids:
        server.request("DELETE", f"/v1/sessions/{session}")
    assert listed("") == ([], None)
    assert server.request("GET", "/v1/sessions?label=test%3Dlist").body == b"[]\n"
    for wrong in ("limit=0", "limit=x", "status=odd", "label=x", "cursor=../x"):
        check_error(server.request("GET", f"/v1/sessions?{wrong}"), 400, "INVALID_REQUEST")


def test_ids(server):
    for wrong in ("x", "0123", "0123abcd-01", "0123abcd-01234", "0123abcd_012", "0123abcg-012", "0" * 65, "..%2f..%2fx"):
        for method, rest in [("GET", ""), ("DELETE", ""), ("GET", "/stats"), ("POST", "/exec"), ("POST", "/exec/stream"),
                             ("GET", "/fs/read?path=x"), ("POST", "/fs/write")]:
            body = {"cmd": "true"} if method == "POST" else None
            answer = server.request(method, f"/v1/sessions/{wrong}{rest}", body)
            check_error(answer, 400, "INVALID_REQUEST", "invalid session id format")
    for unknown in ("00000000-000", "00000000-0000", "00000000-0000-0000-0000-000000000000"):
        check_error(server.request("GET", f"/v1/sessions/{unknown}"), 404, "SESSION_NOT_FOUND")
        check_error(server.request("DELETE", f"/v1/sessions/{unknown}"), 404, "SESSION_NOT_FOUND")


def test_upper_case_ids_name_the_same_session(server, session_id):
    assert server.request("GET", f"/v1/sessions/{session_id.upper()}").json()["id"] == session_id


def test_delete_again_is_success(server):
    session = server.request("POST", "/v1/sessions", {}).json()["id"]
    for _ in range(2):
        answer = server.request("DELETE", f"/v1/sessions/{session}")
        assert (answer.status, answer.body) == (200, b'{"ok":true}\n')
    assert server.request("GET", f"/v1/sessions/{session}").json()["status"] == "destroyed"
    check_error(server.request("GET", f"/v1/sessions/{session}/stats"), 409, "SESSION_NOT_RUNNING",
                f"session not running: {session} (status=destroyed)")


def test_pause_and_resume_stop_and_start(server, session_id):
    route = f"/v1/sessions/{session_id}"
    server.request("POST", f"{route}/fs/write", {"path": "kept", "text": "kept"})
    assert server.request("POST", f"{route}/pause").json()["status"] == "paused"
    check_error(server.request("POST", f"{route}/exec", {"cmd": "true"}), 409, "SESSION_NOT_RUNNING", "(status=paused)")
    assert server.request("POST", f"{route}/resume").json()["status"] == "running"
    assert server.request("POST", f"{route}/exec", {"cmd": "cat kept"}).json()["output"] == "kept"
    assert server.request("POST", f"{route}/stop").json()["status"] == "stopped"
    check_error(server.request("POST", f"{route}/exec", {"cmd": "true"}), 409, "SESSION_NOT_RUNNING", "(status=stopped)")
    assert server.request("POST", f"{route}/start").json()["status"] == "running"
    assert server.request("POST", f"{route}/exec", {"cmd": "cat kept"}).json()["output"] == "kept"


def test_use_moves_the_deadline_and_looking_does_not(server):
    session = server.request("POST", "/v1/sessions", {"ttl_seconds": 3600}).json()
    route = f"/v1/sessions/{session['id']}"
    server.request("GET", f"{route}/stats")
    assert server.request("GET", route).json()["expires_at"] == session["expires_at"]
    server.request("POST", f"{route}/exec", {"cmd": "true"})
    # As times: the fraction's trailing zeros are not written, so texts of different length do not compare.
    later = server.request("GET", route).json()["expires_at"]
    assert datetime.fromisoformat(later) > datetime.fromisoformat(session["expires_at"])
    server.request("DELETE", route)


def test_expired_sessions_end(server):
    session = server.request("POST", "/v1/sessions", {"ttl_seconds": 1}).json()["id"]
    route = f"/v1/sessions/{session}"
    # The clock may need a moment; until it has struck, looking changes nothing.
    while (status := server.request("GET", route).json()["status"]) in ("running", "destroying"):
        pass
    assert status == "expired"
    check_error(server.request("POST", f"{route}/exec", {"cmd": "true"}), 410, "SESSION_EXPIRED")
    check_error(server.request("GET", f"{route}/fs/read?path=x"), 410, "SESSION_EXPIRED")


def test_images(server, session_id):
    names = {image["name"]: image for image in server.request("GET", "/v1/images").json()["images"]}
    assert {"host", "python"} <= set(names)
    assert names["host"]["digest"] == names["python"]["digest"]
    tagged = server.request("POST", "/v1/images/host/tag", {"tag": "further-name"})
    assert (tagged.status, tagged.json()["name"]) == (200, "further-name")
    assert server.request("DELETE", "/v1/images/further-name").body == b'{"ok":true}\n'
    check_error(server.request("DELETE", "/v1/images/further-name"), 404, "IMAGE_NOT_FOUND")
    check_error(server.request("POST", "/v1/images/missing/tag", {"tag": "x"}), 404, "IMAGE_NOT_FOUND")
    check_error(server.request("POST", "/v1/images/host/tag", {"tag": "../x"}), 400, "INVALID_IMAGE")
    check_error(server.request("DELETE", "/v1/images/host"), 409, "IMAGE_IN_USE")


# Commands


@pytest.mark.parametrize("request_body, message", [
    ({}, "cmd is required"),
    ({"cmd": ""}, "cmd is required"),
    ({"cmd": None}, "cmd is required"),
    ({"cmd": "true", "timeout_ms": -1}, "timeout_ms must be non-negative"),
    ({"cmd": "true", "timeout_ms": 600001}, "timeout_ms must not exceed 600000 (10 minutes)"),
])
def test_commands_that_are_refused(server, session_id, request_body, message):
    for route in ("exec", "exec/stream"):
        answer = server.request("POST", f"/v1/sessions/{session_id}/{route}", request_body)
        check_error(answer, 400, "INVALID_REQUEST", message)


def test_a_command_that_is_too_large_says_how_large(server, session_id):
    answer = server.request("POST", f"/v1/sessions/{session_id}/exec", {"cmd": "x" * 1048577})
    body = check_error(answer, 400, "INVALID_REQUEST", "cmd is too large (1048577 bytes), max is 1048576 bytes")
    assert (body["details"]["cmd_bytes"], body["details"]["max_cmd_bytes"]) == (1048577, 1048576)
    assert body["details"]["recommendation"]


def test_exec_answer(server, session_id):
    answer = server.request("POST", f"/v1/sessions/{session_id}/exec", {"cmd": "echo 42", "timeout_ms": 0})
    body = answer.json()
    assert body.pop("duration_ms") >= 0
    assert body == {"exit_code": 0, "cwd": "/workspace", "output": "42\n", "truncated": False}


def test_timeout_answer(server, session_id):
    answer = server.request("POST", f"/v1/sessions/{session_id}/exec",
                            {"cmd": "cd /tmp; printf partial; sleep 60", "timeout_ms": 1500})
    body = check_error(answer, 504, "COMMAND_TIMEOUT")
    assert body["message"] == "command timeout: timeout: command exceeded 1.5s"
    assert body["details"]["output"].startswith("partial")
    assert body["details"]["cwd"] == "/tmp"


def test_memory_limit_is_told(server):
    session = server.request("POST", "/v1/sessions", {"memory_mb": 64}).json()["id"]
    route = f"/v1/sessions/{session}"
    body = server.request("POST", f"{route}/exec", {"cmd": "python3 -c 'x = bytearray(1 << 30)'"}).json()
    assert body.get("oom") is True, body
    assert body["exit_code"] == 137
    after = server.request("POST", f"{route}/exec", {"cmd": "echo alive"}).json()
    assert (after["output"], after.get("oom")) == ("alive\n", None)
    server.request("DELETE", route)


def test_a_client_that_hangs_up_leaves_its_command(server, session_id):
    body = json.dumps({"cmd": "touch begun; sleep 0.3; echo finished > finished"})
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"POST /v1/sessions/{session_id}/exec HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
                           f"{server.api_key}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        while server.request("GET", f"/v1/sessions/{session_id}/fs/stat?path=begun").status != 200:
            pass
    after = server.request("POST", f"/v1/sessions/{session_id}/exec", {"cmd": "cat finished"}).json()
    assert after["output"] == "finished\n"


# Streams


class Stream:
    """A raw event stream, as its reads come."""

    def __init__(self, server, session_id, body, headers=""):
        body = json.dumps(body)
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        self.socket.sendall(f"POST /v1/sessions/{session_id}/exec/stream HTTP/1.1\r\nHost: localhost\r\n"
                            f"Authorization: Bearer {server.api_key}\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
                            f"{body}".encode())
        self.file = self.socket.makefile("rb")
        self.status = int(self.file.readline().split()[1])
        self.headers = {}
        while (line := self.file.readline()) != b"\r\n":
            name, value = line.decode().split(":", 1)
            self.headers[name.lower()] = value.strip()

    def chunks(self):
        """The pieces of the chunked body: one is one write of the server."""
        while size := int(self.file.readline(), 16):
            chunk = self.file.read(size)
            assert self.file.read(2) == b"\r\n"
            yield chunk

    def events(self):
        for chunk in self.chunks():
            assert chunk.isascii() and chunk.endswith(b"\n\n") and chunk.count(b"\n\n") == 1, chunk
            assert len(chunk) <= 8192
            if not chunk.startswith(b":"):
                fields = dict(line.split(b": ", 1) for line in chunk.rstrip(b"\n").split(b"\n"))
                yield fields[b"event"].decode(), json.loads(fields[b"data"]), fields.get(b"id", b"").decode()

    def close(self):
        self.file.close()
        self.socket.close()


def test_stream_head_and_framing(server, session_id):
    stream = Stream(server, session_id, {"cmd": "cd /tmp; printf 'ü\\302\\205\\342\\200\\250😀'; seq 1 20000; (exit 3)"})
    assert stream.status == 200
    assert stream.headers["content-type"] == "text/event-stream"
    assert stream.headers["cache-control"] == "no-cache"
    assert stream.headers["x-accel-buffering"] == "no"
    assert "x-request-id" in stream.headers
    events = list(stream.events())
    stream.close()
    assert [kind for kind, _, _ in events] == ["chunk"] * (len(events) - 1) + ["done"]
    output = "".join(data["chunk"] for kind, data, _ in events if kind == "chunk")
    assert output == "ü\u0085\u2028😀" + "".join(f"{n}\n" for n in range(1, 20001))
    assert all(isinstance(data["timestamp"], int) for kind, data, _ in events if kind == "chunk")
    done = events[-1][1]
    assert (done["exit_code"], done["cwd"], done["truncated"]) == (3, "/tmp", False)
    assert isinstance(done["duration_ms"], int)


def test_stream_errors_are_events(server):
    stream = Stream(server, "00000000-000", {"cmd": "true"})
    assert stream.status == 200
    [(kind, data, _)] = list(stream.events())
    stream.close()
    assert kind == "error"
    assert data == {"error": "session not found: 00000000-000", "error_code": "SESSION_NOT_FOUND"}
    check_error(server.request("POST", "/v1/sessions/00000000-000/exec/stream", "{"), 400, "INVALID_REQUEST", "invalid json")


def test_a_stream_goes_on_where_it_was_left(server, session_id):
    """Whatever the point at which the connection ends, what follows is exactly the rest."""
    stream = Stream(server, session_id, {"cmd": "for i in 1 2 3 4 5 6; do printf '%s\\033[1m€\\n' $i; sleep 0.05; done"})
    whole, seen, last = "".join(f"{i}€\n" for i in range(1, 7)), "", ""
    for kind, data, last in stream.events():
        seen += data["chunk"]
        if "2" in seen:
            break
    stream.close()
    assert whole.startswith(seen) and seen != whole
    again = Stream(server, session_id, {"cmd": "echo this is not run"}, f"Last-Event-ID: {last}\r\n")
    events = list(again.events())
    again.close()
    rest = "".join(data["chunk"] for kind, data, _ in events if kind == "chunk")
    assert seen + rest == whole
    assert events[-1][0] == "done"
    check_error(server.request("POST", f"/v1/sessions/{session_id}/exec/stream", {"cmd": "true"}, {"Last-Event-ID": "x"}),
                400, "INVALID_REQUEST", "Last-Event-ID")


# Files


def read(server, session_id, path, query=""):
    answer = server.request("GET", f"/v1/sessions/{session_id}/fs/read?path={urllib.parse.quote(path)}{query}")
    assert answer.status == 200, answer
    return base64.b64decode(answer.json()["content_base64"])


@pytest.mark.parametrize("content, expected", [
    ({"text": "hällo"}, "hällo".encode()), ({"text": ""}, b""), ({"content_base64": ""}, b""),
    ({"content_base64": "AAEC/w=="}, b"\0\1\2\xff"), ({"TEXT": "x"}, b"x"),
])
def test_write(server, session_id, content, expected):
    answer = server.request("POST", f"/v1/sessions/{session_id}/fs/write", {"path": "f", **content})
    assert (answer.status, answer.body) == (200, b'{"ok":true}\n')
    assert read(server, session_id, "/workspace/f") == expected


@pytest.mark.parametrize("body, message", [
    ({"text": "x"}, "path is required"),
    ({"path": "", "text": "x"}, "path is required"),
    ({"path": "/etc/passwd", "text": "x"}, "path must be under /workspace"),
    ({"path": "../x", "text": "x"}, "path must be under /workspace"),
    ({"path": "/workspace", "text": "x"}, "path must point to a file under /workspace"),
    ({"path": "x"}, "either 'text' or 'content_base64' must be provided"),
    ({"path": "x", "text": "a", "content_base64": "AAEC"}, "provide either 'text' or 'content_base64', not both"),
    ({"path": "x", "content_base64": "%%%"}, "base64"),
])
def test_writes_that_are_refused(server, session_id, body, message):
    check_error(server.request("POST", f"/v1/sessions/{session_id}/fs/write", body), 400, "INVALID_REQUEST", message)


@pytest.mark.parametrize("query, status, code, message", [
    ("", 400, "INVALID_REQUEST", "path query parameter is required"),
    ("?path=", 400, "INVALID_REQUEST", "path query parameter is required"),
    ("?path=x&max_bytes=-1", 400, "INVALID_REQUEST", "max_bytes must be non-negative"),
    ("?path=x&max_bytes=104857601", 400, "INVALID_REQUEST", "max_bytes must not exceed 104857600 (100MB)"),
    ("?path=x&max_bytes=ten", 400, "INVALID_REQUEST", "max_bytes"),
    ("?path=/etc/passwd", 400, "INVALID_REQUEST", "path must be under /workspace"),
    ("?path=.", 400, "INVALID_REQUEST", ""),
    ("?path=missing", 404, "FILE_NOT_FOUND", ""),
    ("?path=missing/deep", 404, "FILE_NOT_FOUND", ""),
])
def test_reads_that_are_refused(server, session_id, query, status, code, message):
    check_error(server.request("GET", f"/v1/sessions/{session_id}/fs/read{query}"), status, code, message)


def test_read_answer(server, session_id):
    server.request("POST", f"/v1/sessions/{session_id}/fs/write", {"path": "a b/ü", "text": "0123456789"})
    path = urllib.parse.quote("./a b//ü")
    answer = server.request("GET", f"/v1/sessions/{session_id}/fs/read?path={path}&max_bytes=4")
    assert answer.json() == {"path": "./a b//ü", "content_base64": base64.b64encode(b"0123").decode(), "truncated": True}
    for length in range(12):
        assert read(server, session_id, "a b/ü", f"&max_bytes={length}") == b"0123456789"[:length or 10]


def test_read_limits(server, session_id):
    server.request("POST", f"/v1/sessions/{session_id}/exec", {"cmd": "head -c 12000000 /dev/zero > big"})
    answer = server.request("GET", f"/v1/sessions/{session_id}/fs/read?path=big").json()
    assert (len(base64.b64decode(answer["content_base64"])), answer["truncated"]) == (10 << 20, True)
    answer = server.request("GET", f"/v1/sessions/{session_id}/fs/read?path=big&max_bytes=104857600").json()
    assert (len(base64.b64decode(answer["content_base64"])), answer["truncated"]) == (12000000, False)


def form(*fields):
    """A multipart body: (name, file name or None, content)."""
    body = b""
    for name, file_name, content in fields:
        disposition = f'form-data; name="{name}"' + (f'; filename="{file_name}"' if file_name is not None else "")
        body += f"--limit\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
    return body + b"--limit--\r\n", {"Content-Type": "multipart/form-data; boundary=limit"}


def upload(server, session_id, *fields):
    body, headers = form(*fields)
    return server.request("POST", f"/v1/sessions/{session_id}/fs/upload", body, headers)


def test_uploads(server, session_id):
    every_byte = bytes(range(256))
    answer = upload(server, session_id, ("path", None, b"/workspace/one"), ("file", "a.bin", every_byte), ("file", "b", b""))
    assert answer.json() == {"ok": True, "paths": ["/workspace/one/a.bin", "/workspace/one/b"]}
    assert read(server, session_id, "one/a.bin") == every_byte
    assert read(server, session_id, "one/b") == b""
    # The directory may come after the files, a file name loses its folders, the second name counts alone only.
    answer = upload(server, session_id, ("file", "/evil/path/c", b"c"), ("path", None, b"two"), ("files", "d", b"d"))
    assert answer.json()["paths"] == ["/workspace/two/c"]
    assert upload(server, session_id, ("files", "e", b"e")).json()["paths"] == ["/workspace/e"]


def test_uploads_that_are_refused(server, session_id):
    none = "no file provided: use form field 'file' or 'files'"
    check_error(upload(server, session_id, ("path", None, b"x")), 400, "INVALID_REQUEST", none)
    check_error(upload(server, session_id, ("other", "x", b"x")), 400, "INVALID_REQUEST", none)
    check_error(upload(server, session_id, ("file", "..", b"x")), 400, "INVALID_REQUEST", "file name")
    check_error(upload(server, session_id, ("path", None, b"/etc"), ("file", "x", b"x")), 400, "INVALID_REQUEST",
                "path must be under /workspace")
    many = [("file", f"f{n}", b"") for n in range(101)]
    body = check_error(upload(server, session_id, *many), 400, "INVALID_REQUEST", "too many files")
    assert body["details"] == {"max_files": 100}
    body = check_error(upload(server, session_id, ("file", "big", b"x" * (10 << 20))), 400, "INVALID_REQUEST",
                       "request body too large")
    assert body["details"] == {"max_bytes": 10 << 20}
    answer = server.request("POST", f"/v1/sessions/{session_id}/fs/upload", b"x", {"Content-Type": "text/plain"})
    check_error(answer, 400, "INVALID_REQUEST")
    # One part waits for its directory, the other goes through while it arrives.
    for fields in [[("file", "x", b"x" * 100)], [("path", None, b"/workspace"), ("file", "x", b"x" * 100_000)]]:
        broken, headers = form(*fields)
        answer = server.request("POST", f"/v1/sessions/{session_id}/fs/upload", broken[:-60], headers)
        check_error(answer, 400, "INVALID_REQUEST", "invalid multipart form: it ends in the middle of a part")
    assert server.request("GET", f"/v1/sessions/{session_id}/fs/stat?path=x").status == 404


def test_list_stat_and_remove(server, session_id):
    route = f"/v1/sessions/{session_id}/fs"
    assert server.request("GET", f"{route}/list").json() == {"entries": []}
    for path in ("b", "a/inner", "c"):
        server.request("POST", f"{route}/write", {"path": path, "text": "12345"})
    entries = server.request("GET", f"{route}/list?path=/workspace").json()["entries"]
    assert [(entry["name"], entry["is_dir"]) for entry in entries] == [("a", True), ("b", False), ("c", False)]
    assert entries[1]["size"] == 5 and entries[1]["mode"].startswith("-rw") and re.match(r"\d{4}-", entries[1]["modified_at"])
    stat = server.request("GET", f"{route}/stat?path=b").json()
    assert stat == entries[1]
    check_error(server.request("DELETE", f"{route}?path=a"), 400, "INVALID_REQUEST")
    assert server.request("DELETE", f"{route}?path=a&recursive=true").body == b'{"ok":true}\n'
    assert server.request("DELETE", f"{route}?path=b").status == 200
    check_error(server.request("DELETE", f"{route}?path=b"), 404, "FILE_NOT_FOUND")
    check_error(server.request("DELETE", f"{route}?path=/workspace&recursive=true"), 400, "INVALID_REQUEST")
    assert [entry["name"] for entry in server.request("GET", f"{route}/list").json()["entries"]] == ["c"]


def test_raw_files(server, session_id):
    route = f"/v1/sessions/{session_id}/fs/raw?path=dir/raw.bin"
    content = bytes(range(256)) * 100_000
    assert server.request("PUT", route, content).body == b'{"ok":true}\n'
    answer = server.request("GET", route)
    assert (answer.status, answer.body == content) == (200, True)
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Length"] == str(len(content))
    answer = server.request("GET", route, headers={"Range": "bytes=10-19"})
    assert (answer.status, answer.body) == (206, content[10:20])
    assert answer.headers["Content-Range"] == f"bytes 10-19/{len(content)}"
    check_error(server.request("GET", route, headers={"Range": f"bytes={len(content)}-"}), 416, "INVALID_RANGE")
    head = server.request("HEAD", route)
    assert (head.status, head.headers["Content-Length"], head.body) == (200, str(len(content)), b"")
    assert server.request("PUT", route, b"").status == 200
    assert server.request("GET", route).body == b""
    check_error(server.request("GET", f"/v1/sessions/{session_id}/fs/raw?path=none"), 404, "FILE_NOT_FOUND")


# The way to the agent


def test_toolbox(server, session_id):
    route = f"/v1/sessions/{session_id}/toolbox"
    assert "version" in server.request("GET", f"{route}/version").json()
    ran = server.request("POST", f"{route}/process/execute", {"command": "echo inside"}, {"Content-Type": "application/json"})
    assert ran.json()["result"] == "inside\n"
    missing = server.request("GET", f"{route}/no/such/route")
    assert missing.status == 404
    check_error(server.request("GET", "/v1/sessions/00000000-000/toolbox/version"), 404, "SESSION_NOT_FOUND")
    assert server.request("GET", f"{route}/version", key=False).status == 401


# Connections


def exchange(server, raw):
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(raw)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


@pytest.mark.parametrize("raw, status", [
    (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"200"),
    (b"GET /healthz HTTP/1.0\r\n\r\n", b"200"),
    (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", b"431"),
    (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"4"),
    (b"nonsense\r\n\r\n", b"400"),
    (b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"4"),
])
def test_odd_requests(server, raw, status):
    answer = exchange(server, raw)
    assert re.match(rb"HTTP/1\.[01] " + status, answer), answer


def test_many_connections(server, session_id):
    """More clients at once than there are threads; each has its own answer."""
    def one(n):
        return server.request("POST", f"/v1/sessions/{session_id}/exec", {"cmd": f"echo {n}"}).json()["output"]

    with ThreadPoolExecutor(64) as pool:
        assert list(pool.map(one, range(200))) == [f"{n}\n" for n in range(200)]
