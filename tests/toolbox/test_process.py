"""Processes, sessions, terminals and interpreters through the published client, unmodified."""

import asyncio
import os
import threading
import uuid

import httpx
import pytest
from daytona import DaytonaConflictError, DaytonaError, DaytonaNotFoundError, DaytonaTimeoutError
from daytona._sync.code_interpreter import CodeInterpreter
from daytona._sync.process import Process
from daytona.common.process import CodeRunParams, SessionExecuteRequest
from daytona.common.pty import PtySize
from daytona_toolbox_api_client import ApiClient, ApiException, Configuration, InterpreterApi, ProcessApi

VERSION = "0.226.1"

URL = os.environ["TOOLBOX_URL"]


@pytest.fixture(scope="module")
def api():
    client = ApiClient(Configuration(host=URL))
    client.default_headers["X-Daytona-SDK-Version"] = VERSION
    client.default_headers["X-Daytona-Source"] = "sdk-python"
    if token := os.environ.get("TOOLBOX_TOKEN"):
        client.default_headers["Authorization"] = f"Bearer {token}"
    return client


@pytest.fixture(scope="module")
def http():
    with httpx.Client(timeout=None) as client:
        yield client


@pytest.fixture
def process(api, http):
    return Process("python", ProcessApi(api), http)


@pytest.fixture
def interpreter(api, http):
    return CodeInterpreter(InterpreterApi(api), http)


@pytest.fixture
def session(process):
    name = f"s-{uuid.uuid4()}"
    process.create_session(name)
    yield name
    process.delete_session(name)


def code(api, http, language):
    return Process(language, ProcessApi(api), http)


@pytest.mark.os
def test_execute(process):
    answer = process.exec("echo out; echo err >&2; echo $A; pwd; exit 3", cwd="/usr", env={"A": "b"})
    assert (answer.exit_code, answer.result) == (3, "out\nerr\nb\n/usr\n")
    with pytest.raises(DaytonaTimeoutError):
        process.exec("sleep 60", timeout=1)
    with pytest.raises(DaytonaError):
        process.exec("true", env={"1x": "y"})


def test_code_in_three_languages(api, http):
    arguments = CodeRunParams(argv=["one", "two words"], env={"A": "b"})
    python = code(api, http, "python").code_run("import sys, os\nprint(sys.argv[1:], os.environ['A'])", arguments)
    assert (python.exit_code, python.result) == (0, "['one', 'two words'] b\n")
    failed = code(api, http, "python").code_run("def f():\n    raise ValueError('no')\nf()")
    assert failed.exit_code == 1
    assert 'File "<stdin>", line 2, in f\nValueError: no\n' in failed.result
    script = "'use strict';\nconst os = require('os');\nconsole.log(process.argv.slice(1), process.env.A, typeof os)"
    javascript = code(api, http, "javascript").code_run(script, arguments)
    assert (javascript.exit_code, javascript.result) == (0, "[ 'one', 'two words' ] b object\n")
    script = "enum E { A = 4 }\nconst n: number = E.A\nconsole.log(process.argv.slice(1), n)\nprocess.exit(n)"
    typescript = code(api, http, "typescript").code_run(script, arguments)
    if "npm install" in typescript.result:
        pytest.skip("SKIPPED: nothing here translates TypeScript")
    assert (typescript.exit_code, typescript.result) == (4, "[ 'one', 'two words' ] 4\n")
    # This call of the client's does not translate refusals.
    for language, text, status in [("python", "import time; time.sleep(60)", 408), ("cobol", "x", 400)]:
        with pytest.raises(ApiException) as refused:
            code(api, http, language).code_run(text, timeout=1)
        assert refused.value.status == status


FIGURES = """
import matplotlib.pyplot as plt
print("before")
plt.figure(); plt.plot([1, 2, 3], [1, 4, 9], label="squares"); plt.title("Line"); plt.xlabel("x"); plt.yscale("log")
plt.show()
plt.figure(); plt.scatter([1, 2], [3, float("nan")]); plt.title("Scatter"); plt.show()
plt.figure(); plt.bar(["a", "b"], [1.5, 2], label="g"); plt.show()
plt.figure(); plt.pie([1, 3], labels=["p", "q"], autopct="%d%%"); plt.show()
plt.figure(); plt.boxplot([[1, 2, 3, 4, 100], [1, 1, 1]]); plt.show()
figure, (left, right) = plt.subplots(1, 2)
left.plot([0, 1]); right.barh(["k"], [7]); figure.suptitle("Both")
print("after")
"""


def test_charts(process):
    if process.exec("python3 -c 'import matplotlib'").exit_code != 0:
        pytest.skip("SKIPPED: no matplotlib where the toolbox is")
    answer = process.code_run(FIGURES)
    assert (answer.exit_code, answer.result) == (0, "before\nafter\n")
    line, scatter, bar, pie, box, both = answer.artifacts.charts
    kinds = [type(chart).__name__ for chart in answer.artifacts.charts]
    assert kinds == ["LineChart", "ScatterChart", "BarChart", "PieChart", "BoxAndWhiskerChart", "CompositeChart"]
    assert all(chart.png.startswith("iVBORw0KGgo") for chart in answer.artifacts.charts)
    assert (line.title, line.x_label, line.y_scale, line.elements[0].label) == ("Line", "x", "log", "squares")
    assert line.elements[0].points == [[1, 1], [2, 4], [3, 9]]
    assert len(line.x_ticks) == len(line.x_tick_labels) > 0
    assert scatter.elements[0].points == [[1, 3]]
    assert [(e.label, e.group, e.value) for e in bar.elements] == [("a", "g", "1.5"), ("b", "g", "2")]
    assert [(e.label, round(e.angle), e.radius) for e in pie.elements] == [("p", 90, 1), ("q", 270, 1)]
    assert [e.autopct for e in pie.elements] == ["25%", "75%"] if hasattr(pie.elements[0], "autopct") else True
    first = box.elements[0]
    assert (first.min, first.first_quartile, first.median, first.third_quartile, first.max) == (1, 2, 3, 4, 4)
    assert first.outliers == [100]
    assert (both.title, [e.type for e in both.elements]) == ("Both", ["line", "bar"])


@pytest.mark.os
def test_sessions(process, session):
    def run(command, **options):
        return process.execute_session_command(session, SessionExecuteRequest(command=command, **options))

    run("cd /usr; x=5")
    answer = run("pwd; echo $x; echo err >&2; false")
    assert (answer.exit_code, answer.stdout, answer.stderr) == (1, "/usr\n5\n", "err\n")
    with pytest.raises(DaytonaConflictError):
        process.create_session(session)
    started = run("echo ready; read line; echo got $line; echo oops >&2", run_async=True)
    process.send_session_command_input(session, started.cmd_id, "hello")
    out, err = [], []
    asyncio.run(process.get_session_command_logs_async(session, started.cmd_id, out.append, err.append))
    assert "got hello\n" in "".join(out) and "".join(err) == "oops\n"
    logs = process.get_session_command_logs(session, started.cmd_id)
    assert logs.stderr == "oops\n" and "got hello\n" in logs.stdout
    assert process.get_session_command(session, started.cmd_id).exit_code == 0
    with pytest.raises(DaytonaError):
        process.send_session_command_input(session, started.cmd_id, "late")
    assert len(process.get_session(session).commands) == 3
    assert session in [one.session_id for one in process.list_sessions()]
    with pytest.raises(DaytonaNotFoundError):
        process.get_session("nosuch")


@pytest.mark.os
def test_terminals(process):
    name = f"t-{uuid.uuid4()}"
    seen = []
    handle = process.create_pty_session(name, pty_size=PtySize(rows=30, cols=100), envs={"A": "b"})
    try:
        assert name in [one.id for one in process.list_pty_sessions()]
        assert process.resize_pty_session(name, PtySize(rows=11, cols=77)).cols == 77
        handle.send_input("stty size; echo $A-; exit 7\n")
        result = handle.wait(on_data=seen.append)
        assert result.exit_code == 7
        assert b"11 77\r\nb-" in b"".join(seen)
    finally:
        handle.disconnect()
    with pytest.raises(DaytonaNotFoundError):
        process.get_pty_session_info(name)
    with pytest.raises(DaytonaError):
        process.resize_pty_session(name, PtySize(rows=11, cols=77))


def test_interpreter(interpreter):
    out = []
    result = interpreter.run_code("x = 41\nprint('hi', flush=True)", on_stdout=lambda m: out.append(m.output))
    assert (result.stdout, result.stderr, result.error, "".join(out)) == ("hi\n", "", None, "hi\n")
    assert interpreter.run_code("x += 1; print(x)").stdout == "42\n"
    error = interpreter.run_code("def f():\n    return 1 / 0\nf()").error
    assert (error.name, error.value) == ("ZeroDivisionError", "division by zero")
    assert "return 1 / 0" in error.traceback and "worker" not in error.traceback and "/fd/" not in error.traceback
    seen = interpreter.run_code("import os; print(os.environ.get('A'))", envs={"A": "b"}).stdout
    assert seen + interpreter.run_code("print(os.environ.get('A'))").stdout == "b\nNone\n"
    assert interpreter.run_code("import subprocess; _ = subprocess.run(['echo', 'child'])").stdout == "child\n"
    with pytest.raises(DaytonaTimeoutError):
        interpreter.run_code("import time; y = 1; time.sleep(60)", timeout=1)
    assert interpreter.run_code("print(x, y)").stdout == "42 1\n", "an interrupt keeps the state"
    died = interpreter.run_code("os._exit(3)").error
    assert died.name == "InterpreterDied" and "status 3" in died.value
    assert interpreter.run_code("print('x' in globals())").stdout == "False\n"
    big = interpreter.run_code("print('ä€😀' * 100_000)").stdout
    assert big == "ä€😀" * 100_000 + "\n"


def test_contexts(interpreter):
    context = interpreter.create_context(cwd="/usr")
    try:
        assert (context.cwd, context.active, context.language) == ("/usr", True, "python")
        assert context.id in [one.id for one in interpreter.list_contexts()]
        assert interpreter.run_code("import os; z = 1; print(os.getcwd())", context=context).stdout == "/usr\n"
        assert interpreter.run_code("print('z' in globals())").stdout == "False\n"
        # One after another, never two at once.
        alone = "import time; assert not globals().get('busy'); busy = 1; time.sleep(0.05); busy = 0; z += 1"
        errors = []

        def run():
            errors.append(interpreter.run_code(alone, context=context).error)

        many = [threading.Thread(target=run) for _ in range(4)]
        for one in many:
            one.start()
        for one in many:
            one.join()
        assert errors == [None] * 4
        assert interpreter.run_code("print(z)", context=context).stdout == "5\n"
    finally:
        interpreter.delete_context(context)
    with pytest.raises(DaytonaError, match="not found"):
        interpreter.run_code("1", context=context)
    with pytest.raises(DaytonaError):
        interpreter.create_context(cwd="/nosuch")
