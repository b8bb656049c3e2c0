"""A server without a key: only programs of this host may use it, and no web page in a browser on it."""

import signal
import socket

import pytest

from server import Server


@pytest.fixture(scope="module")
def keyless():
    server = Server(api_key=None)
    yield server
    trouble = server.stop()
    assert not trouble, "\n".join(trouble)


def test_it_serves_without_a_key(keyless):
    assert keyless.request("GET", "/v1/sessions").json() == []


@pytest.mark.parametrize("headers, status", [
    ({"Host": "localhost:8080"}, 200),
    ({"Host": "127.0.0.1"}, 200),
    ({"Host": "[::1]:80"}, 200),
    ({"Host": "evil.example"}, 403),
    ({"Host": "127.0.0.1.evil.example"}, 403),
    ({"Origin": "http://localhost:3000"}, 200),
    ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "null"}, 403),
])
def test_foreign_names_are_refused(keyless, headers, status):
    answer = keyless.request("GET", "/v1/sessions", headers=headers)
    assert answer.status == status, answer
    if status == 403:
        assert answer.json()["error_code"] == "FORBIDDEN"


def test_a_web_page_cannot_make_a_session(keyless):
    headers = {"Origin": "http://evil.example", "Content-Type": "text/plain"}
    assert keyless.request("POST", "/v1/sessions", {}, headers).status == 403
    assert keyless.sessions() == []


def test_it_ends_although_clients_stay_connected():
    server = Server(api_key=None)
    with socket.create_connection(("127.0.0.1", server.port)) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.recv(100).startswith(b"HTTP/1.1 200")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        while idle.recv(1000):
            pass
    assert server.trouble() == []
