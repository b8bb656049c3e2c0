"""The sandbox as a machine, its ports and what is not there, through the published client, unmodified."""

import json
import os

import httpx
import pytest
from daytona._sync.process import Process
from daytona_toolbox_api_client import (
    ApiClient, ApiException, ComputerUseApi, Configuration, InfoApi, InitializeRequest, PortApi, ProcessApi, ServerApi,
    SystemApi, UpdateEnvRequest,
)

URL = os.environ["TOOLBOX_URL"]
TOKEN = os.environ.get("TOOLBOX_TOKEN")
HEADERS = {"Authorization": f"Bearer {TOKEN}"} if TOKEN else {}

# A server of one file that says what it was asked for.
SERVER = """
import http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        said = f"{self.path} {self.headers.get('X-Forwarded-Host', '-')}".encode()
        self.send_response(203)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)
for port in range(PORT, PORT + 200):
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Answer)
        break
    except OSError:
        pass
print(port, flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def api():
    client = ApiClient(Configuration(host=URL))
    client.default_headers.update({"X-Daytona-SDK-Version": "0.226.1", "X-Daytona-Source": "sdk-python", **HEADERS})
    return client


@pytest.fixture(scope="module")
def http():
    with httpx.Client(timeout=None, headers=HEADERS) as client:
        yield client


@pytest.fixture
def sh(api, http):
    process = Process("python", ProcessApi(api), http)
    return lambda command: process.exec(command).result


@pytest.mark.os
def test_who_and_where_it_is(api, http, sh):
    info = InfoApi(api)
    assert info.get_version()["version"]
    assert info.get_work_dir().dir == sh("pwd").strip()
    assert info.get_user_home_dir().dir == sh("echo $HOME").strip()
    assert http.get(f"{URL}/health").json() == {"status": "ok"}


@pytest.mark.os
def test_use_is_what_the_system_says(api, http, sh):
    metrics = SystemApi(api).get_system_metrics()
    used, free = (int(field) for field in sh("df --output=used,avail -B1 . | tail -n1").split())
    assert abs(metrics.disk_used - used) < 1 << 30 and abs(metrics.disk_free - free) < 1 << 30
    assert 0 < metrics.mem_used <= metrics.mem_total and metrics.mem_cache >= 0
    assert metrics.cpu_count >= 1 and 0 <= metrics.cpu_used_pct <= 100
    assert abs(metrics.timestamp_unix - int(sh("date +%s"))) < 60
    memory = http.get(f"{URL}/memory-stats").json()
    assert memory["total"] == metrics.mem_total and memory["used"] <= memory["total"]


@pytest.mark.os
def test_later_processes_find_the_changed_environment(api, sh):
    server = ServerApi(api)
    server.update_env(UpdateEnvRequest(set={"A_NEW_ONE": "x", "A_SECRET": "placeholder/1"}))
    assert sh("echo $A_NEW_ONE $A_SECRET") == "x placeholder/1\n"
    server.update_env(UpdateEnvRequest(unset=["A_NEW_ONE"], unset_value_prefix="placeholder/"))
    assert sh("echo ${A_NEW_ONE-none} ${A_SECRET-none}") == "none none\n"
    with pytest.raises(ApiException) as refused:
        server.update_env(UpdateEnvRequest(set={"not a name": "x"}))
    assert refused.value.status == 400
    assert server.initialize(InitializeRequest(token="x"))


@pytest.mark.os
def test_ports(api, http, sh):
    script = SERVER.replace("PORT", "3100")
    sh(f"cat > /tmp/served.py <<'TEXT'\n{script}\nTEXT\nrm -f /tmp/served")
    sh("python3 /tmp/served.py > /tmp/served 2> /dev/null & echo $! > /tmp/served.pid")
    port = int(sh("for n in $(seq 600); do [ -s /tmp/served ] && break; sleep 0.05; done; cat /tmp/served"))
    try:
        ports = PortApi(api)
        assert port in ports.get_ports().ports
        assert ports.is_port_in_use(port).is_in_use
        answer = http.get(f"{URL}/proxy/{port}/a%2Fb?c=%20d")
        assert answer.status_code == 203
        path, host = answer.text.split()
        assert path == "/a%2Fb?c=%20d" and host in URL
    finally:
        sh("kill $(cat /tmp/served.pid); while kill -0 $(cat /tmp/served.pid) 2>/dev/null; do sleep 0.05; done")
    assert not ports.is_port_in_use(port).is_in_use and port not in ports.get_ports().ports
    assert http.get(f"{URL}/proxy/{port}/").status_code == 502
    with pytest.raises(ApiException) as refused:
        ports.is_port_in_use(80)
    assert refused.value.status == 400


def test_what_is_not_there_says_so(api):
    desktop = ComputerUseApi(api)
    for call in [desktop.start_computer_use, desktop.take_screenshot, desktop.get_computer_use_status]:
        with pytest.raises(ApiException) as refused:
            call()
        assert refused.value.status == 503
        assert {"message", "details", "solution"} <= json.loads(refused.value.body).keys()
    with pytest.raises(ApiException) as refused:
        desktop.list_recordings()
    assert json.loads(refused.value.body)["code"] == "RECORDING_FFMPEG_NOT_FOUND"


def test_the_description_is_served(http):
    description = http.get(f"{URL}/swagger/doc.json").json()
    assert description["openapi"].startswith("3.") and "/process/execute" in description["paths"]
