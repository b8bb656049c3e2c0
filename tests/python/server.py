"""A server of its own for the tests, and the proof that it left nothing behind."""

import glob
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading

API_KEY = "sk-sandbox-quickstart"  # The one that the published README uses.

# How long a server may take to start or stop before the test run gives up.
PATIENCE_SECONDS = 60


class Server:
    """`sandhaus serve` on a free port and a data directory of its own, with the host's image also named `python`."""

    def __init__(self, api_key=API_KEY, config="", patience=PATIENCE_SECONDS):
        self.patience = patience
        self.api_key = api_key
        self.binary = os.environ["SANDHAUS_BIN"]
        self.data = tempfile.mkdtemp(prefix="sandhaus-python-")
        self.config = os.path.join(self.data, "config.yaml")
        with open(self.config, "w") as file:
            file.write(config)
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SAND")}
        if api_key is not None:
            self.environment["SANDHAUS_API_KEY"] = api_key
        self.log = []
        self.command("image", "tag", "host", "python")
        self.process = subprocess.Popen(
            [self.binary, "--config", self.config, "--data-dir", self.data, "serve", "--listen", "127.0.0.1:0"],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors="replace")
        self.port = None
        listening = threading.Event()
        self.reader = threading.Thread(target=self.read_log, args=(listening,), daemon=True)
        self.reader.start()
        listening.wait(PATIENCE_SECONDS)
        if self.port is None:
            self.process.kill()
            raise AssertionError("the server did not start:\n" + "".join(self.log))

    def read_log(self, listening):
        for line in self.process.stderr:
            self.log.append(line)
            address = re.search(r"http://127\.0\.0\.1:([1-9][0-9]*)", line)
            if address and self.port is None:
                self.port = int(address[1])
                listening.set()
        listening.set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def command(self, *arguments):
        """Runs the command line on the same data directory."""
        done = subprocess.run(
            [self.binary, "--config", self.config, "--data-dir", self.data, *arguments], env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            timeout=self.patience)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def request(self, method, path, body=None, headers=None, key=True):
        """One request; a body that is no text or bytes is sent as JSON."""
        headers = dict(headers or {})
        if key and self.api_key is not None:
            headers.setdefault("Authorization", f"Bearer {self.api_key}")
        if body is not None and not isinstance(body, (str, bytes)):
            body = json.dumps(body)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.patience)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def sessions(self):
        return [session["id"] for session in self.request("GET", "/v1/sessions").json()]

    def stop(self):
        """Deletes every session, stops the server, and says what was left or odd."""
        trouble = []
        try:
            for session in self.sessions():
                answer = self.request("DELETE", f"/v1/sessions/{session}")
                if answer.status != 200:
                    trouble.append(f"delete {session}: {answer.status} {answer.body!r}")
        finally:
            self.process.send_signal(signal.SIGTERM)
        return trouble + self.trouble()

    def trouble(self):
        """Waits until a server that was told to end has ended; what was left or odd."""
        trouble = []
        try:
            status = self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = "killed: it did not stop"
        self.reader.join(PATIENCE_SECONDS)
        self.process.stderr.close()
        if status != 0:
            trouble.append(f"the server ended with {status}")
        trouble += [f"log: {line.rstrip()}" for line in self.log if re.search(r"\b(WARN|ERROR|panicked)\b", line)]
        trouble += [f"left: {name}" for name in left(self.data)]
        shutil.rmtree(self.data, ignore_errors=True)
        return trouble


class Answer:
    """A whole HTTP answer."""

    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers
        self.body = body

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.body[:300]!r}"


def left(data):
    """Names of everything of the instance on a data directory that still exists."""
    with open(os.path.join(data, "instance")) as file:
        instance = file.read().strip()
    found = glob.glob(f"/sys/fs/cgroup/**/sandhaus/{instance}/*/", recursive=True)
    for folder in ("machines", "disks"):
        found += glob.glob(os.path.join(data, folder, "*"))
    # What is only being made or removed has a hidden name.
    found += glob.glob(os.path.join(data, "workspaces", ".*-*"))
    for process in glob.glob("/proc/[0-9]*"):
        try:
            with open(f"{process}/mountinfo") as mounts, open(f"{process}/cgroup") as cgroups:
                if f"{data}/" in mounts.read() or f"/sandhaus/{instance}" in cgroups.read():
                    found.append(process)
        except OSError:
            pass  # The process ended while it was looked at.
    return found
