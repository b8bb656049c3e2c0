"""The examples of the published client's own README, run as they are printed there, but for the server's address."""

import ast
import contextlib
import importlib.metadata
import inspect
import io
import re
import subprocess
import sys

import pytest
import sandkasten

# Frameworks that the examples of the last part need; no model can be asked here.
FRAMEWORKS = ("from agents import", "from langchain")


def examples():
    readme = importlib.metadata.metadata("sandkasten").get_payload()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    return [block for block in blocks if not any(framework in block for framework in FRAMEWORKS)]


def addressed(code, server):
    code = code.replace("http://localhost:8080", server.url).replace('base_url="..."', f'base_url="{server.url}"')
    return code.replace('api_key="..."', f'api_key="{server.api_key}"')


async def run_fragment(code, namespace):
    """Runs a fragment that awaits at its top level, and gives back what it printed."""
    printed = io.StringIO()
    compiled = compile(code, "README", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with contextlib.redirect_stdout(printed):
        result = eval(compiled, namespace)
        if inspect.isawaitable(result):
            await result
    return printed.getvalue()


def test_readme_has_the_examples_that_are_run_here():
    found = examples()
    assert len(found) == 6, "the README has other examples than these tests know"
    assert [bool(re.search("asyncio.run", block)) for block in found].count(True) == 1


def test_quick_start(server):
    quick_start = next(block for block in examples() if "asyncio.run" in block)
    done = subprocess.run([sys.executable, "-c", addressed(quick_start, server)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Hello from sandbox\n\nHello, World!\n\nprint('Hello, World!')\n"


async def test_context_managers(server):
    block = next(block for block in examples() if "async with await client.create_session()" in block)
    namespace = {}
    await run_fragment("from sandkasten import SandboxClient\n" + addressed(block, server), namespace)
    # There is no network, and on some hosts no pip; the example asks only that the command runs to its end.
    assert namespace["result"].exit_code != 0
    assert namespace["result"].output != ""
    assert namespace["session"].id not in server.sessions()


async def test_stateful_shell(session):
    block = next(block for block in examples() if "cd /tmp" in block)
    assert await run_fragment(block, namespace := {"session": session}) == "/tmp\n"
    assert namespace["result"].output == "/tmp\n"


async def test_write(session):
    block = next(block for block in examples() if 'session.write("data.bin"' in block and "script.py" in block)
    await run_fragment(block, {"session": session})
    assert (await session.read("script.py")).content == b"print('hello')"
    assert (await session.read("data.bin")).content == b"\x00\x01\x02"


async def test_read(session):
    block = next(block for block in examples() if "(output was truncated)" in block)
    await session.write("output.txt", "some output")
    assert await run_fragment(block, {"session": session}) == "some output\n"


async def test_error_handling(session):
    block = next(block for block in examples() if "SandkastenStreamError" in block)
    printed = await run_fragment("import httpx\n" + block, namespace := {"session": session})
    # A command that is not there is no HTTP error and no stream error: it has an exit status.
    assert printed == ""
    assert namespace["result"].exit_code == 127
    assert (namespace["chunk"].done, namespace["chunk"].exit_code) == (True, 127)


@pytest.mark.parametrize("key, session_id, printed_first, printed_second", [
    (None, "00000000-000", "HTTP 404: .*SESSION_NOT_FOUND", "Stream error: session not found: 00000000-000"),
    ("wrong", "00000000-000", "HTTP 401: .*UNAUTHORIZED", None),
])
async def test_error_handling_prints_what_went_wrong(server, key, session_id, printed_first, printed_second):
    block = next(block for block in examples() if "SandkastenStreamError" in block)
    imports, first, second = block.split("\n\ntry:")
    async with sandkasten.SandboxClient(base_url=server.url, api_key=key or server.api_key) as client:
        namespace = {"session": sandkasten.Session(client, session_id)}
        printed = await run_fragment(f"import httpx\n{imports}\ntry:{first}", namespace)
        assert re.match(printed_first, printed), printed
        if printed_second is not None:
            printed = await run_fragment(f"{imports}\ntry:{second}", namespace)
            assert printed == printed_second + "\n"
