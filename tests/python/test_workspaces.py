"""Workspaces: what the published client does with them, and the contract of their routes."""

import base64
import os

import httpx
import pytest
import sandkasten

from server import Server
from test_contract import check_error, form

EVERY_BYTE = bytes(range(256))


@pytest.fixture
def workspace(server):
    """A name that nobody has, and the proof that it can be removed."""
    workspace_id = "contract-" + base64.b32encode(os.urandom(5)).decode().lower()
    yield workspace_id
    assert server.request("DELETE", f"/v1/workspaces/{workspace_id}").json() == {"ok": True}


@pytest.fixture(scope="module")
def without():
    """A server on which workspaces are not enabled."""
    server = Server()
    yield server
    trouble = server.stop()
    assert not trouble, "\n".join(trouble)


def write(server, workspace, path, content):
    body = {"path": path, "content_base64": base64.b64encode(content).decode()}
    return server.request("POST", f"/v1/workspaces/{workspace}/fs/write", body)


def read(server, workspace, query):
    return server.request("GET", f"/v1/workspaces/{workspace}/fs/read?{query}")


def content(answer):
    assert answer.status == 200, answer
    return base64.b64decode(answer.json()["content_base64"])


# The client


async def test_the_client_shares_one_between_sessions(client, workspace):
    async with await client.create_session(workspace_id=workspace) as first:
        info = await first.info()
        assert info.workspace_id == workspace
        assert workspace in [listed.id for listed in await client.list_workspaces()]
        async with await client.create_session(workspace_id=workspace) as second:
            await first.write("shared/file", EVERY_BYTE)
            assert (await second.read("/workspace/shared/file")).content == EVERY_BYTE
            await second.exec("echo appended > shared/other")
            assert (await first.exec("cat shared/other")).output == "appended\n"
        with pytest.raises(httpx.HTTPStatusError) as caught:
            await client.delete_workspace(workspace)
        assert caught.value.response.status_code == 409
        assert caught.value.response.json()["error_code"] == "WORKSPACE_IN_USE"
    async with await client.create_session(workspace_id=f"sandkasten-ws-{workspace}") as later:
        assert (await later.exec("cat shared/other")).output == "appended\n"
    await client.delete_workspace(workspace)
    assert workspace not in [listed.id for listed in await client.list_workspaces()]
    await client.delete_workspace(workspace)


async def test_the_client_hears_that_they_are_off(without):
    async with sandkasten.SandboxClient(base_url=without.url, api_key=without.api_key) as client:
        for call in (client.create_session(workspace_id="user-123"), client.list_workspaces(),
                     client.delete_workspace("user-123")):
            with pytest.raises(httpx.HTTPStatusError) as caught:
                await call
            answer = caught.value.response
            assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_WORKSPACE")
            assert "workspace.enabled" in answer.json()["message"]


# The contract


def test_files(server, workspace):
    assert write(server, workspace, "/a/deep/file", EVERY_BYTE).json() == {"ok": True}
    answer = read(server, workspace, "path=/a/deep/file")
    assert answer.json() == {
        "path": "/a/deep/file", "content_base64": base64.b64encode(EVERY_BYTE).decode(), "truncated": False}
    cut = read(server, workspace, "path=a/deep/file&max_bytes=7").json()
    assert (base64.b64decode(cut["content_base64"]), cut["truncated"]) == (EVERY_BYTE[:7], True)
    server.request("POST", f"/v1/workspaces/{workspace}/fs/write", {"path": "a/b.txt", "text": ""})
    assert content(read(server, workspace, "path=a/b.txt")) == b""
    entries = server.request("GET", f"/v1/workspaces/{workspace}/fs?path=a").json()["entries"]
    assert [(entry["name"], entry["is_dir"]) for entry in entries] == [("b.txt", False), ("deep", True)]
    assert server.request("GET", f"/v1/workspaces/{workspace}/fs").json()["entries"][0]["name"] == "a"
    stat = server.request("GET", f"/v1/workspaces/{workspace}/fs/stat?path=a/deep/file").json()
    assert (stat["name"], stat["size"], stat["mode"]) == ("file", 256, "-rw-r--r--")
    route = f"/v1/workspaces/{workspace}/fs/raw?path=a/raw"
    assert server.request("PUT", route, EVERY_BYTE * 1000).json() == {"ok": True}
    part = server.request("GET", route, headers={"Range": "bytes=255-257"})
    assert (part.status, part.body, part.headers["Content-Range"]) == (206, b"\xff\x00\x01", "bytes 255-257/256000")
    check_error(server.request("GET", route, headers={"Range": "bytes=256000-"}), 416, "INVALID_RANGE")
    check_error(server.request("DELETE", f"/v1/workspaces/{workspace}/fs?path=a"), 409, "CONFLICT", "not empty")
    assert server.request("DELETE", f"/v1/workspaces/{workspace}/fs?path=a&recursive=true").json() == {"ok": True}
    assert server.request("GET", f"/v1/workspaces/{workspace}/fs").json() == {"entries": []}


def test_uploads(server, workspace):
    def upload(*fields):
        body, headers = form(*fields)
        return server.request("POST", f"/v1/workspaces/{workspace}/fs/upload", body, headers)

    answer = upload(("path", None, b"sub"), ("file", "f", EVERY_BYTE), ("file", "/evil/g", b"g"))
    assert answer.json() == {"ok": True, "paths": ["sub/f", "sub/g"]}
    assert content(read(server, workspace, "path=sub/f")) == EVERY_BYTE
    assert upload(("file", "top", b"t")).json()["paths"] == ["top"]
    check_error(upload(("path", None, b"../x"), ("file", "f", b"x")), 400, "INVALID_WORKSPACE")
    check_error(upload(("path", None, b"x")), 400, "INVALID_REQUEST", "no file provided")


@pytest.mark.parametrize("query, status, code, message", [
    ("", 400, "INVALID_REQUEST", "path query parameter is required"),
    ("path=missing", 404, "FILE_NOT_FOUND", "missing"),
    ("path=dir", 400, "INVALID_REQUEST", "is a directory"),
    ("path=../x", 400, "INVALID_WORKSPACE", "path must stay within the workspace"),
    ("path=f&max_bytes=-1", 400, "INVALID_REQUEST", "max_bytes must be non-negative"),
    ("path=f&max_bytes=104857601", 400, "INVALID_REQUEST", "max_bytes must not exceed 104857600 (100MB)"),
    ("path=f&max_bytes=x", 400, "INVALID_REQUEST", "max_bytes"),
])
def test_reads_that_are_refused(server, workspace, query, status, code, message):
    write(server, workspace, "dir/f", b"x")
    check_error(read(server, workspace, query), status, code, message)


@pytest.mark.parametrize("body, code, message", [
    ({"path": "", "text": "x"}, "INVALID_REQUEST", "path is required"),
    ({"path": "/", "text": "x"}, "INVALID_REQUEST", "path must point to a file"),
    ({"path": "../x", "text": "x"}, "INVALID_WORKSPACE", "path must stay within the workspace"),
    ({"path": "f"}, "INVALID_REQUEST", "either 'text' or 'content_base64' must be provided"),
    ({"path": "f", "text": "a", "content_base64": "AAEC"}, "INVALID_REQUEST", "not both"),
    ({"path": "f", "content_base64": "***"}, "INVALID_REQUEST", "not base64"),
])
def test_writes_that_are_refused_make_nothing(server, workspace, body, code, message):
    check_error(server.request("POST", f"/v1/workspaces/{workspace}/fs/write", body), 400, code, message)
    assert workspace not in [listed["id"] for listed in server.request("GET", "/v1/workspaces").json()["workspaces"]]


def test_what_is_not_there(server, workspace):
    for route in ("fs", "fs/read?path=x", "fs/raw?path=x", "fs/stat?path=x"):
        answer = server.request("GET", f"/v1/workspaces/{workspace}/{route}")
        check_error(answer, 404, "WORKSPACE_NOT_FOUND", workspace)
    check_error(server.request("DELETE", f"/v1/workspaces/{workspace}/fs?path=x"), 404, "WORKSPACE_NOT_FOUND")


@pytest.mark.parametrize("workspace_id, message", [
    ("a", "workspace id must be at least 2 characters"),
    ("a" * 65, "workspace id must not exceed 64 characters"),
    ("A-B", "workspace id must contain only lowercase letters, numbers, and hyphens, and cannot start or end with a hyphen"),
    ("..%2Fx", "workspace id must contain only lowercase letters"),
])
def test_names(server, workspace_id, message):
    check_error(server.request("DELETE", f"/v1/workspaces/{workspace_id}"), 400, "INVALID_REQUEST", message)
    check_error(write(server, workspace_id, "f", b"x"), 400, "INVALID_REQUEST", message)


def test_listing(server, workspace):
    write(server, f"sandkasten-ws-{workspace}", "f", b"x" * 5000)
    listed = {info["id"]: info for info in server.request("GET", "/v1/workspaces").json()["workspaces"]}
    info = listed[workspace]
    assert (info["session_count"], info["active_session_count"]) == (0, 0)
    assert info["used_bytes"] >= 5000 and info["created_at"].endswith("Z")
