"""Every route of the description with values that its schema allows and such that it does not, in a sandbox of its own: the
routes remove files and end processes. No answer is a failure of the agent's, none fails to come, and each is what the
description says. What is sent is the same in every run."""

import os
from pathlib import Path

import httpx
import pytest
import schemathesis
from schemathesis.specs.openapi.checks import (
    content_type_conformance, response_schema_conformance, status_code_conformance,
)

import conftest

DESCRIPTION = Path(__file__).parents[2] / "docs" / "openapi-toolbox.json"

# Requests to each route. More find more: what was found by hundreds is fixed, and these keep it so.
EXAMPLES = int(os.environ.get("TOOLBOX_SCHEMA_EXAMPLES", "12"))

# How long an answer may take to be whole. Nothing that is asked for runs longer.
PATIENCE_SECONDS = 60

FOLDER = "/tmp/known"

FURNISH = (
    f"rm -rf {FOLDER} && mkdir -p {FOLDER} && cd {FOLDER} && echo a > file.txt && git init -q repository && "
    "cd repository && echo b > file.txt && git add file.txt && git -c user.name=a -c user.email=a@b commit -qm first"
)

# What is there, by the beginning of a route and the names of its parameters and of what its body consists of. The last one that
# fits counts. Made-up values alone would meet nothing.
KNOWN = {
    "/": {"id": "known", "cwd": FOLDER, "command": "true", "argv": ["true"], "cols": 80, "rows": 24, "name": "known"},
    "/files": {
        "path": f"{FOLDER}/file.txt", "source": f"{FOLDER}/file.txt", "destination": f"{FOLDER}/other.txt",
        "paths": [f"{FOLDER}/file.txt", "/none"], "pattern": "a", "files": [f"{FOLDER}/file.txt"], "newValue": "b",
    },
    "/files/find": {"path": FOLDER},
    "/files/search": {"path": FOLDER, "pattern": "*.txt"},
    "/files/folder": {"path": f"{FOLDER}/folder", "mode": "755"},
    "/files/permissions": {"mode": "600"},
    "/git": {
        "path": f"{FOLDER}/repository", "files": ["file.txt"], "branch": "main", "message": "second", "author": "a",
        "email": "a@b", "key": "user.name", "value": "a", "scope": "local", "target": "HEAD", "mode": "hard",
        "url": "http://127.0.0.1:9/none",
    },
    "/git/clone": {"path": f"{FOLDER}/clone"},
    "/lsp": {"languageId": "python", "pathToProject": FOLDER, "uri": f"file://{FOLDER}/file.txt", "query": "a"},
    "/process/code-run": {"code": "print(1)", "language": "python"},
    "/process/session": {"sessionId": "known"},
    "/sandhaus": {"cmd": "true", "signal": 15},
}

# Those that last as long as the client wants to. Others end by themselves, or with the command that is run.
STREAMS = ["/files/watch", "/sandhaus/shell/{name}/log"]

# Its answer is that of whoever listens on a port; what it says when nobody does is tested elsewhere.
# A greeting tells the agent whom it serves from now on, which the server alone may say.
NOT_THE_AGENT = ["/proxy/{port}", "/proxy/{port}/{rest}", "/sandhaus/hello"]

# What answers cannot help: there is no desktop, and no network either.
REFUSALS = {503: ["/computeruse/"], 502: ["/git/clone", "/git/pull", "/git/push"]}


schema = schemathesis.openapi.from_path(
    DESCRIPTION,
    config=schemathesis.Config.from_dict({
        "generation": {"deterministic": True, "max-examples": EXAMPLES, "no-shrink": True, "database": "none"},
    }),
).exclude(path=STREAMS + NOT_THE_AGENT)


class Toolbox:
    """A toolbox with something in it."""

    def __init__(self, url, token):
        self.url = url
        self.headers = {"Authorization": f"Bearer {token}"}
        self.http = httpx.Client(headers=self.headers, timeout=PATIENCE_SECONDS)
        self.ready_for = None
        self.sent = 0
        self.command = None

    def ask(self, method, path, body=None):
        return self.http.request(method, self.url + path, json=body)

    def furnish(self, operation):
        """Makes what is known anew for each route: those before it removed it, perhaps."""
        if self.ready_for == operation:
            return
        made = self.ask("POST", "/process/execute", {"command": FURNISH})
        assert made.status_code == 200 and made.json()["exitCode"] == 0, made.text
        for kind, body in [("session", {"sessionId": "known"}), ("pty", {"id": "known"})]:
            self.ask("DELETE", f"/process/{kind}/known")
            made = self.ask("POST", f"/process/{kind}", body)
            assert made.status_code == 201, made.text
        made = self.ask("POST", "/process/session/known/exec", {"command": "true", "runAsync": True})
        assert made.status_code == 202, made.text
        self.command = made.json()["cmdId"]
        self.ready_for, self.sent = operation, 0

    def known_for(self, path):
        known = {"command_id": self.command}
        for beginning, values in KNOWN.items():
            if path.startswith(beginning):
                known |= values
        return known

    def make_known(self, case):
        """Lets the request name what is there: every second one, and every fourth says nothing besides."""
        self.sent += 1
        if self.sent % 2 == 0:
            known, others = self.known_for(case.operation.path), self.sent % 4 != 0
            for values in (case.path_parameters, case.query, case.body):
                if isinstance(values, dict):
                    named = {name: known[name] for name in values if name in known}
                    kept = dict(values) if others or values is case.path_parameters else {}
                    values.clear()
                    values.update(kept | named)


@pytest.fixture(scope="module")
def toolbox(pytestconfig):
    running = pytestconfig.stash.get(conftest.server, None)
    if running is None:
        pytest.skip("no sandbox of its own: the toolbox that TOOLBOX_URL names is not there to be broken")
    wanted = {"image": "toolbox", "memory_mb": 2048, "ttl_seconds": 3600, "network": "none"}
    made = running.request("POST", "/v1/sessions", wanted)
    assert made.status == 201, made
    session = made.json()["id"]
    yield Toolbox(f"{running.url}/toolbox/{session}", running.api_key)
    assert running.request("DELETE", f"/v1/sessions/{session}").status == 200


@schema.parametrize()
def test_answers_are_what_the_description_says(case, toolbox):
    toolbox.furnish(case.operation.label)
    toolbox.make_known(case)
    answer = case.call(base_url=toolbox.url, headers=toolbox.headers, timeout=PATIENCE_SECONDS)
    refused = any(case.operation.path.startswith(path) for path in REFUSALS.get(answer.status_code, []))
    assert answer.status_code < 500 or refused, answer.text
    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
    case.validate_response(answer, checks=checks)
