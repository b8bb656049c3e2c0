"""Language servers through the published toolbox client, each call tested by what it does."""

import os
import shlex
import time
import uuid

import pytest
from daytona import DaytonaError
from daytona._sync.lsp_server import LspServer
from daytona.common.lsp_server import LspCompletionPosition
from daytona_toolbox_api_client import ApiClient, Configuration, ExecuteRequest, FileSystemApi, LspApi, ProcessApi

URL = os.environ["TOOLBOX_URL"]
HEADERS = {"X-Daytona-SDK-Version": "0.226.1", "X-Daytona-Source": "python-sdk"}
if token := os.environ.get("TOOLBOX_TOKEN"):
    HEADERS["Authorization"] = f"Bearer {token}"
PATIENCE_SECONDS = 120

CLASS, METHOD, FUNCTION = 5, 6, 12

PYTHON = '''import os


class Greeter:
    """Says hello."""

    def greet(self, name):
        """Greets one."""
        return f"hello {name}"


def main():
    greeter = Greeter()
    greeter.
'''

TYPESCRIPT = """export class Greeter {
  /** Greets one. */
  greet(name: string): string {
    return `hello ${name}`;
  }
}

export function main(): void {
  const greeter = new Greeter();
  greeter.
}
"""


def toolbox():
    client = ApiClient(Configuration(host=URL))
    client.default_headers.update(HEADERS)
    return client


class Scene:
    """A project of its own below the work directory."""

    def __init__(self, language):
        client = toolbox()
        self.process = ProcessApi(client)
        self.files = FileSystemApi(client)
        self.project = f"lsp-{uuid.uuid4().hex[:8]}"
        self.server = LspServer(language, self.project, LspApi(client))

    def run(self, command):
        return self.process.execute_command(ExecuteRequest(command=command)).result.strip()

    def write(self, name, text):
        self.files.upload_file(path=f"{self.project}/{name}", file=text.encode())

    def running(self, program):
        """Processes with that name whose work directory is the project: number, session, command line."""
        script = (
            "for p in /proc/[0-9]*; do "
            f"test \"$(readlink $p/cwd)\" = \"$PWD/{self.project}\" && read -r line <$p/stat || continue; "
            "set -- ${line##*) }; echo ${p#/proc/} $4 $(tr '\\0' ' ' <$p/cmdline); done 2>/dev/null"
        )
        # The sandbox's own shell may split words otherwise.
        lines = [line.split(" ", 2) for line in self.run(f"sh -c {shlex.quote(script)}").splitlines()]
        return [line for line in lines if program in line[-1]]

    def servers(self, program):
        """Those that the agent has started, and not what these start: each leads a session."""
        return [(number, words) for number, session, words in self.running(program) if number == session]

    def __enter__(self):
        self.run(f"mkdir -p {self.project}")
        return self

    def __exit__(self, *_):
        try:
            self.server.stop()
        except DaytonaError:
            pass
        self.run(f"rm -rf {self.project}")


def refused(status, code, action):
    try:
        action()
    except DaytonaError as refusal:
        assert (refusal.status_code, refusal.code) == (status, code), (refusal.status_code, refusal.code, str(refusal))
        return
    raise AssertionError(f"not refused with {code}")


def until(what, action):
    """The first true answer of an action that is asked again for a while."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := action()):
        assert time.monotonic() < deadline, f"never: {what}"
    return answer


def symbols_of(scene, name, line):
    """The class, its method and the function of a document, under the name that the client gave it."""
    found = {symbol.name: symbol for symbol in scene.server.document_symbols(f"{scene.project}/{name}")}
    assert {"Greeter", "greet", "main"} <= set(found), sorted(found)
    assert (found["Greeter"].kind, found["greet"].kind, found["main"].kind) == (CLASS, METHOD, FUNCTION), found
    assert found["Greeter"].location.uri == f"file://{scene.project}/{name}", found["Greeter"]
    assert found["Greeter"].location.range.start.line == line, found["Greeter"]


def serve(scene, program, name, source):
    """Starts, opens, asks, stops: the same for every language. The completions of the last dot of the source are given."""
    server, document = scene.server, f"{scene.project}/{name}"
    refused(400, "LSP_SERVER_NOT_INITIALIZED", lambda: server.did_open(document))
    scene.write(name, source)
    server.start()
    first = scene.servers(program)
    assert len(first) == 1, first
    server.start()
    assert scene.servers(program) == first, "a second start started another server"
    refused(404, "FILE_NOT_FOUND", lambda: server.did_open(f"{scene.project}/none"))
    server.did_open(document)
    lines = source.splitlines()
    line = max(number for number, text in enumerate(lines) if text.endswith("."))
    place = LspCompletionPosition(line=line, character=len(lines[line]))

    def completions():
        return {item.label.split("(")[0]: item for item in server.completions(document, place).items}

    items = until("the method is offered", lambda: (found := completions()) and "greet" in found and found)
    symbols_of(scene, name, next(number for number, text in enumerate(lines) if "class Greeter" in text))
    # What is on the disk by now is what an opened document says.
    scene.write(name, source.replace("greet(", "welcome("))
    server.did_open(document)
    until("the renamed method is offered", lambda: "welcome" in completions())
    server.did_close(document)
    return items


def stopped(scene, program):
    scene.server.stop()
    assert not scene.running(program), scene.running(program)
    refused(400, "LSP_SERVER_NOT_INITIALIZED", lambda: scene.server.document_symbols("x"))


def killed(scene, program, name):
    """A server that dies says so, and another can be started in its place."""
    server = scene.server
    server.start()
    script = f"for p in /proc/[0-9]*; do test \"$(readlink $p/cwd)\" = \"$PWD/{scene.project}\" && kill -9 ${{p#/proc/}}; done"
    scene.run(script)
    until("its end is told", lambda: ended(lambda: server.document_symbols(f"{scene.project}/{name}")))
    server.start()
    server.did_open(f"{scene.project}/{name}")
    assert server.document_symbols(f"{scene.project}/{name}")


def ended(action):
    try:
        action()
    except DaytonaError as refusal:
        assert refusal.code == "LSP_SERVER_ENDED", refusal
        return True
    return False


def python(scene):
    items = serve(scene, "pylsp", "greeter.py", PYTHON)
    assert items["greet"].documentation is None or "value" in items["greet"].documentation, items["greet"]
    stopped(scene, "pylsp")
    killed(scene, "pylsp", "greeter.py")
    stopped(scene, "pylsp")


def typescript(scene):
    scene.write("tsconfig.json", "{}")
    serve(scene, "typescript-language-server", "greeter.ts", TYPESCRIPT)
    scene.server.did_open(f"{scene.project}/greeter.ts")
    found = until("the class is found", lambda: scene.server.sandbox_symbols("Greeter"))
    named = {symbol.name: symbol.location.uri for symbol in found}
    assert named.get("Greeter") == f"file://{scene.project}/greeter.ts", found
    stopped(scene, "typescript-language-server")
    killed(scene, "typescript-language-server", "greeter.ts")
    stopped(scene, "typescript-language-server")


def test_an_unknown_language():
    with Scene("cobol") as scene:
        refused(400, "BAD_REQUEST", scene.server.start)


@pytest.mark.parametrize("language", (python, typescript))
def test_language(language):
    with Scene(language.__name__) as scene:
        language(scene)
