"""One server for all tests of this folder; after the last one nothing of it may be left."""

import pytest
import sandkasten

from server import Server


@pytest.fixture(scope="session")
def server():
    server = Server(config="workspace: {enabled: true}\n")
    yield server
    trouble = server.stop()
    assert not trouble, "\n".join(trouble)


@pytest.fixture
async def client(server):
    async with sandkasten.SandboxClient(base_url=server.url, api_key=server.api_key) as client:
        yield client


@pytest.fixture
async def session(client):
    async with await client.create_session() as session:
        yield session


@pytest.fixture
def session_id(server):
    """A session for tests that speak HTTP themselves."""
    answer = server.request("POST", "/v1/sessions", {})
    assert answer.status == 201, answer
    session_id = answer.json()["id"]
    yield session_id
    server.request("DELETE", f"/v1/sessions/{session_id}")
