"""What users do with the published Python client, and the traps that its parsers have."""

import asyncio
import hashlib
import io
import os

import httpx
import pytest
import sandkasten

OUTPUT_BYTES_MAX = 5 * 1024 * 1024


def status_of(caught):
    return caught.value.response.status_code


def body_of(caught):
    return caught.value.response.json()


# Sessions


async def test_create_and_destroy(client, server):
    session = await client.create_session(image="python", ttl_seconds=600)
    info = await session.info()
    assert (info.id, info.image, info.status, info.cwd) == (session.id, "python", "running", "/workspace")
    assert info.created_at < info.expires_at
    assert session.id in [listed.id for listed in await client.list_sessions()]
    assert (await (await client.get_session(session.id)).info()).id == session.id
    await session.destroy()
    assert session.id not in [listed.id for listed in await client.list_sessions()]
    assert (await session.info()).status == "destroyed"
    await session.destroy()


async def test_a_destroyed_session_refuses(client):
    session = await client.create_session()
    await session.destroy()
    for call in (session.exec("true"), session.read("x"), session.write("x", "y"), session.stats()):
        with pytest.raises(httpx.HTTPStatusError) as caught:
            await call
        assert status_of(caught) == 409
        assert body_of(caught)["error_code"] == "SESSION_NOT_RUNNING"
        assert f"session not running: {session.id} (status=destroyed)" == body_of(caught)["message"]


async def test_newest_first(client):
    sessions = [await client.create_session() for _ in range(3)]
    try:
        ours = {session.id for session in sessions}
        listed = [info.id for info in await client.list_sessions() if info.id in ours]
        assert listed == [session.id for session in reversed(sessions)]
    finally:
        for session in sessions:
            await session.destroy()


async def test_stats(session):
    before = await session.stats()
    await session.exec("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")
    after = await session.stats()
    assert 0 < after.memory_bytes < after.memory_limit == 512 << 20
    assert after.cpu_usage_usec > before.cpu_usage_usec


async def test_wrong_key(server):
    async with sandkasten.SandboxClient(base_url=server.url, api_key="sk-wrong") as client:
        for call in (client.create_session(), client.list_sessions(), client.get_session("00000000-000")):
            with pytest.raises(httpx.HTTPStatusError) as caught:
                await call
            assert status_of(caught) == 401
            assert body_of(caught)["error_code"] == "UNAUTHORIZED"
            assert body_of(caught)["message"] == "missing or invalid authorization"


async def test_unknown_id(client):
    ghost = sandkasten.Session(client, "00000000-000")
    for call in (ghost.info(), ghost.exec("true"), ghost.read("x"), ghost.write("x", "y"), ghost.stats(),
                 ghost.destroy(), ghost.upload(io.BytesIO(b"x"), filename="x")):
        with pytest.raises(httpx.HTTPStatusError) as caught:
            await call
        assert (status_of(caught), body_of(caught)["error_code"]) == (404, "SESSION_NOT_FOUND")
    with pytest.raises(sandkasten.SandkastenStreamError):
        async for _ in ghost.exec_stream("true"):
            pass


async def test_unknown_image(client):
    with pytest.raises(httpx.HTTPStatusError) as caught:
        await client.create_session(image="no-such-image")
    assert (status_of(caught), body_of(caught)["error_code"]) == (400, "INVALID_IMAGE")
    assert "no-such-image" in body_of(caught)["message"]


# Commands


async def test_output_is_exactly_what_was_printed(session):
    assert (await session.exec("echo $((6*7))")).output == "42\n"
    assert (await session.exec("printf 'no newline'")).output == "no newline"
    assert (await session.exec("true")).output == ""
    assert (await session.exec("echo out; echo err >&2; echo out")).output == "out\nerr\nout\n"
    assert (await session.exec("printf '\\033[1;31mred\\033[0m\\n'")).output == "red\n"
    assert (await session.exec("printf 'a\\rb\\r\\n'")).output == "ab\n"
    raw = await session.exec("printf '\\033[1mx\\033[0m'", raw_output=True)
    assert raw.output == "\x1b[1mx\x1b[0m"
    assert (await session.exec("printf '\\377\\376ok'")).output == "\ufffd\ufffdok"
    assert (await session.exec("printf 'ü€😀\\302\\205\\342\\200\\250'")).output == "ü€😀\u0085\u2028"


async def test_state_persists(session):
    result = await session.exec("cd /tmp && export GREETING=hello && unexported=1 && shout() { echo \"$1!\"; }")
    assert (result.exit_code, result.cwd) == (0, "/tmp")
    await session.exec("umask 077; set -o noglob; alias ll='echo listed'; shopt -s expand_aliases 2>/dev/null")
    result = await session.exec("pwd; echo $GREETING $unexported; shout hi; umask; echo *")
    assert result.output == "/tmp\nhello 1\nhi!\n0077\n*\n"
    assert result.cwd == "/tmp"
    assert (await session.info()).cwd == "/tmp"
    assert (await session.exec("ll")).output == "listed\n"


async def test_exit_codes(session):
    for cmd, code in [("true", 0), ("false", 1), ("(exit 7)", 7), ("no-such-command", 127), ("kill -9 $BASHPID", 137),
                      ("sh -c 'kill -TERM $$'", 143)]:
        assert (await session.exec(cmd)).exit_code == code, cmd
    await session.exec("cd /tmp")
    ended = await session.exec("exit 3")
    assert (ended.exit_code, ended.cwd) == (3, "/tmp")
    assert (await session.exec("pwd")).output == "/tmp\n"


@pytest.mark.parametrize("cmd, output", [
    ("echo one\necho two", "one\ntwo\n"),
    ("cat <<END\nheredoc $((1+1))\nEND", "heredoc 2\n"),
    ("for i in 1 2 3; do\n  echo $i\ndone", "1\n2\n3\n"),
    ("cat; echo 'the rest still runs'", "the rest still runs\n"),
    ("read line; echo status $?", "status 1\n"),
    ("echo \"it's quoted\" '\"both\"'", "it's quoted \"both\"\n"),
    ("sleep 0.01 & wait; echo waited", "waited\n"),
    ("# only a comment", ""),
])
async def test_shell_text(session, cmd, output):
    result = await session.exec(cmd)
    assert (result.exit_code, result.output) == (0, output)


async def test_unbalanced_quotes(session):
    assert (await session.exec('echo "unclosed')).exit_code != 0
    assert (await session.exec("echo still here")).output == "still here\n"


async def test_large_command(session):
    text = "x" * 1_000_000
    result = await session.exec(f"big='{text}'; echo ${{#big}}")
    assert result.output == "1000000\n"
    assert (await session.exec("echo ${#big}; ls -A /workspace")).output == "1000000\n"
    with pytest.raises(httpx.HTTPStatusError) as caught:
        await session.exec("#" * (1024 * 1024 + 1))
    assert status_of(caught) == 400
    assert "cmd is too large (1048577 bytes), max is 1048576 bytes" in body_of(caught)["message"]


async def test_background_job(session):
    result = await session.exec("(sleep 0.2; echo done > finished) & echo started")
    assert result.output.splitlines()[-1] == "started"
    # `wait` is of the same shell, so the job is its child still.
    assert (await session.exec("wait; cat finished")).output.splitlines()[-1] == "done"


async def test_six_megabytes_of_output(session):
    result = await session.exec("head -c 6000000 /dev/zero | tr '\\0' x; exit_code=5; (exit 5)", timeout_ms=60000)
    assert result.truncated
    assert result.exit_code == 5
    assert len(result.output) == OUTPUT_BYTES_MAX
    assert set(result.output) == {"x"}
    whole = await session.exec("head -c 5000000 /dev/zero | tr '\\0' y", timeout_ms=60000)
    assert (len(whole.output), whole.truncated) == (5_000_000, False)


async def test_a_line_that_grows_when_escaped(session):
    result = await session.exec("yes '\"\\' | head -c 5000000", timeout_ms=60000)
    assert (len(result.output), result.truncated) == (5_000_000, False)


async def test_timeout_then_the_next_command_works(session):
    await session.exec("cd /tmp; kept=1")
    with pytest.raises(httpx.HTTPStatusError) as caught:
        await session.exec("echo partial; sleep 60; echo never", timeout_ms=1000)
    assert status_of(caught) == 504
    body = body_of(caught)
    assert body["error_code"] == "COMMAND_TIMEOUT"
    assert body["message"] == "command timeout: timeout: command exceeded 1s"
    assert body["details"]["output"].startswith("partial\n")
    result = await session.exec("pwd; echo $kept; pgrep -x sleep || echo none sleeps")
    assert result.output == "/tmp\n1\nnone sleeps\n"


async def test_commands_of_a_session_run_in_order(session):
    results = await asyncio.gather(*(session.exec(f"n=$((n+1)); echo {i} >> order; echo $n") for i in range(10)))
    assert sorted(int(result.output) for result in results) == list(range(1, 11))
    assert len((await session.read("order")).content.splitlines()) == 10


async def test_sessions_do_not_see_each_other(client, session):
    await session.exec("echo secret > mine; touch /tmp/mine; (sleep 60 &)")
    async with await client.create_session() as other:
        result = await other.exec("ls -A /workspace /tmp; pgrep -x sleep")
        assert "mine" not in result.output and result.exit_code == 1


# Streams


async def collect(stream):
    chunks = [chunk async for chunk in stream]
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    return "".join(chunk.output for chunk in chunks), chunks[-1]


async def test_stream(session):
    output, done = await collect(session.exec_stream("cd /tmp; echo one; echo two >&2; (exit 4)"))
    assert output == "one\ntwo\n"
    assert (done.exit_code, done.cwd) == (4, "/tmp")
    assert done.duration_ms >= 0


async def test_chunks_arrive_before_the_end(session):
    """The command waits for a file that is made only after its first line has arrived."""
    seen = []
    async for chunk in session.exec_stream("echo first; until [ -e go ]; do sleep 0.01; done; echo second"):
        seen.append(chunk.output)
        if chunk.output == "first\n":
            await session.write("go", "")
    assert "".join(seen) == "first\nsecond\n"


@pytest.mark.parametrize("text", ["\u0085", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c\x1d\x1e", "😀\U0010ffff", "\"\\/"])
async def test_characters_that_split_lines(session, text):
    await session.write("text", f"before{text}after\n")
    output, done = await collect(session.exec_stream("cat text"))
    assert output == f"before{text}after\n"
    assert done.exit_code == 0


async def test_large_stream(session):
    output, done = await collect(session.exec_stream("seq 1 200000", timeout_ms=60000))
    assert output == "".join(f"{n}\n" for n in range(1, 200001))
    assert done.exit_code == 0


async def test_stream_timeout(session):
    seen = []
    with pytest.raises(sandkasten.SandkastenStreamError) as caught:
        async for chunk in session.exec_stream("echo partial; sleep 60", timeout_ms=500):
            seen.append(chunk.output)
    assert str(caught.value) == "command timeout: timeout: command exceeded 500ms"
    assert "".join(seen).startswith("partial\n")
    assert (await session.exec("echo next")).output == "next\n"


async def test_a_stream_left_early_does_not_end_the_command(session):
    stream = session.exec_stream("echo first; sleep 0.3; echo finished > finished")
    async for chunk in stream:
        assert chunk.output == "first\n"
        break
    await stream.aclose()
    # Commands of a session run one after another, so this one begins when the other has ended.
    assert (await session.exec("cat finished")).output == "finished\n"


# Files


@pytest.mark.parametrize("content", [b"", b"\0", bytes(range(256)), "ü€😀".encode(), b"\r\n\x1b[0m", b"no newline"])
async def test_write_and_read(session, content):
    await session.write("deep/er/file", content)
    read = await session.read("deep/er/file")
    assert (read.content, read.path, read.truncated) == (content, "deep/er/file", False)
    assert (await session.read("/workspace/deep/er/file")).content == content
    assert (await session.exec("cat deep/er/file | sha256sum")).output.split()[0] == hashlib.sha256(content).hexdigest()


async def test_files_belong_to_the_user_inside(session):
    await session.write("script.sh", "echo $0 runs")
    result = await session.exec("stat -c %U script.sh; echo more >> script.sh; chmod +x script.sh; id -un")
    assert result.output.splitlines()[0] == result.output.splitlines()[-1]
    assert result.exit_code == 0


async def test_read_part(session):
    await session.write("file", b"0123456789")
    part = await session.read("file", max_bytes=4)
    assert (part.content, part.truncated) == (b"0123", True)
    whole = await session.read("file", max_bytes=10)
    assert (whole.content, whole.truncated) == (b"0123456789", False)


async def test_nine_megabytes_up_and_down(session, tmp_path):
    content = os.urandom(9 * 1000 * 1000)
    (tmp_path / "big.bin").write_bytes(content)
    assert await session.upload(tmp_path / "big.bin") == ["/workspace/big.bin"]
    read = await session.read("big.bin")
    assert read.content == content
    assert not read.truncated


async def test_upload(session, tmp_path):
    (tmp_path / "data.csv").write_text("a,b\n")
    assert await session.upload(str(tmp_path / "data.csv"), dest_path="/workspace/data") == ["/workspace/data/data.csv"]
    paths = await session.upload(io.BytesIO(bytes(range(256))), filename="all bytes ü.bin", dest_path="data")
    assert paths == ["/workspace/data/all bytes ü.bin"]
    assert (await session.read("data/all bytes ü.bin")).content == bytes(range(256))
    assert await session.upload(io.BytesIO(b""), filename="empty") == ["/workspace/empty"]
    assert (await session.read("empty")).content == b""


@pytest.mark.parametrize("path, status", [
    ("missing", 404), ("/etc/passwd", 400), ("../etc/passwd", 400), ("/workspace", 400), (".", 400),
])
async def test_reads_that_are_refused(session, path, status):
    with pytest.raises(httpx.HTTPStatusError) as caught:
        await session.read(path)
    assert status_of(caught) == status
    if status == 404:
        assert body_of(caught)["error_code"] == "FILE_NOT_FOUND"


async def test_links_do_not_lead_out(session):
    await session.exec("ln -s /etc/passwd link; ln -s /etc dir; ln -s / root")
    for path in ("link", "dir/passwd", "root/etc/passwd"):
        with pytest.raises(httpx.HTTPStatusError):
            await session.read(path)
    with pytest.raises(httpx.HTTPStatusError):
        await session.write("root/tmp/escaped", "x")
    assert (await session.exec("ls -A /tmp")).output == ""


async def test_python_program(session):
    program = "import json\nwith open('result.json', 'w') as f:\n    json.dump({'sum': sum(range(101))}, f)\nprint('done')\n"
    await session.write("job.py", program)
    result = await session.exec("python3 job.py")
    assert (result.exit_code, result.output) == (0, "done\n")
    assert (await session.read("result.json")).content == b'{"sum": 5050}'
