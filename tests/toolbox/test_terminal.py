"""Terminals that are made first and connected to later, and the session of the entry point, through the published client."""

import json
import os
import uuid

import pytest
import websocket
from daytona_toolbox_api_client import ApiClient, ApiException, Configuration, ProcessApi, PtyCreateRequest

URL = os.environ["TOOLBOX_URL"]
TOKEN = os.environ.get("TOOLBOX_TOKEN")
HEADERS = {"Authorization": f"Bearer {TOKEN}"} if TOKEN else {}


@pytest.fixture(scope="module")
def process():
    client = ApiClient(Configuration(host=URL))
    client.default_headers.update({"X-Daytona-SDK-Version": "0.226.1", "X-Daytona-Source": "sdk-python", **HEADERS})
    return ProcessApi(client)


def connect(name):
    url = f"ws{URL.removeprefix('http')}/process/pty/{name}/connect"
    return websocket.create_connection(url, timeout=60, header=HEADERS)


def read_until(socket, wanted):
    seen = b""
    while wanted not in seen:
        message = socket.recv()
        seen += message if isinstance(message, bytes) else message.encode()
    return seen


@pytest.mark.os
def test_a_terminal_outlives_its_connections_until_it_is_deleted(process):
    name = f"t-{uuid.uuid4()}"
    made = process.create_pty_session(PtyCreateRequest(id=name, rows=30, cols=100, cwd="/tmp", envs={"MARK": "kept"}))
    assert made.session_id == name
    first = connect(name)
    first.send_binary(b"stty size; here=$PWD-$MARK; echo $((6*7))-typed\n")
    assert b"30 100" in read_until(first, b"42-typed")
    first.close()
    again = connect(name)
    again.send_binary(b'echo "<$here>"\n')
    read_until(again, b"</tmp-kept>")
    assert process.get_pty_session(name).active
    process.delete_pty_session(name)
    # Whoever is connected hears of the end.
    with pytest.raises(websocket.WebSocketConnectionClosedException):
        while True:
            message = again.recv()
            if message in ("", b""):
                raise websocket.WebSocketConnectionClosedException(json.dumps({"closed": True}))
    with pytest.raises(ApiException) as gone:
        process.get_pty_session(name)
    assert gone.value.status == 404


def test_without_an_entry_point_its_session_is_not_there_and_cannot_be_deleted(process):
    for ask in (process.get_entrypoint_session, process.get_entrypoint_logs):
        with pytest.raises(ApiException) as missing:
            ask()
        assert missing.value.status == 404
    with pytest.raises(ApiException) as reserved:
        process.delete_session("entrypoint")
    assert reserved.value.status == 400
