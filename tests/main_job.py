"""The main job, end to end, on real input: start a server, make a sandbox over HTTP, run a Python program in it that
writes a file, read the file back, delete the sandbox, stop the server, and look whether anything is left.

    python3 tests/main_job.py PATH-TO-SANDHAUS

Prints what the program said and how long each step took. Needs nothing but Python and root.
"""

import base64
import glob
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

PROGRAM = """
import collections, json, os, platform, sys
text = open("/usr/share/common-licenses/GPL-3").read()
words = collections.Counter(word.lower() for word in text.split() if word.isalpha())
report = {"top": words.most_common(3), "uid": os.getuid(), "host": platform.node(), "pid": os.getpid()}
with open("report.json", "w") as file:
    json.dump(report, file)
print(f"counted {sum(words.values())} words as uid {os.getuid()} on {platform.node()}")
"""


class Steps:
    """Takes the time of each step."""

    def __init__(self):
        self.times = []

    def __call__(self, name, work):
        start = time.perf_counter()
        result = work()
        self.times.append((name, (time.perf_counter() - start) * 1000))
        return result

    def show(self):
        for name, milliseconds in self.times:
            print(f"  {name:<44}{milliseconds:9.2f} ms")


class Server:
    """`sandhaus serve` on a data directory of its own."""

    def __init__(self, binary, data):
        self.data = data
        self.process = subprocess.Popen(
            [binary, "--data-dir", data, "serve", "--listen", "127.0.0.1:0"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        said = []
        for line in self.process.stderr:
            said.append(line)
            address = re.search(r"127\.0\.0\.1:([1-9][0-9]*)", line)
            if address:
                self.connection = http.client.HTTPConnection("127.0.0.1", int(address[1]), timeout=60)
                # One thread's worth of log fits the pipe; a longer one would block the server.
                return
        sys.exit("the server did not start:\n" + "".join(said))

    def call(self, method, path, body=None):
        text = None if body is None else json.dumps(body)
        self.connection.request(method, path, text, {"Content-Type": "application/json"} if text else {})
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status >= 300:
            sys.exit(f"{method} {path}: {answer.status} {content.decode(errors='replace')}")
        return json.loads(content)

    def stop(self):
        self.process.terminate()
        if self.process.wait(60) != 0:
            sys.exit(f"the server ended with {self.process.returncode}")


    def abandon(self):
        try:
            for session in self.call("GET", "/v1/sessions"):
                self.call("DELETE", "/v1/sessions/" + session["id"])
        finally:
            self.process.kill()
            self.process.wait(60)


def left_of(data):
    """Names of everything that still exists of the instance on a data directory."""
    with open(os.path.join(data, "instance")) as file:
        instance = file.read().strip()
    left = glob.glob(f"/sys/fs/cgroup/**/sandhaus/{instance}/*/", recursive=True)
    for folder in ("machines", "disks"):
        left += glob.glob(os.path.join(data, folder, "*"))
    for table in glob.glob("/proc/[0-9]*/mountinfo"):
        try:
            with open(table) as file, open(os.path.dirname(table) + "/cgroup") as cgroups:
                if data + "/" in file.read() or f"/sandhaus/{instance}" in cgroups.read():
                    left.append(os.path.dirname(table))
        except OSError:
            pass  # The process ended while it was looked at.
    return left


def main(binary):
    data = tempfile.mkdtemp(prefix="sandhaus-run-")
    steps = Steps()
    server = None
    try:
        server = steps("start the server", lambda: Server(binary, data))
        session = steps("create a sandbox", lambda: server.call("POST", "/v1/sessions", {}))
        route = "/v1/sessions/" + session["id"]
        first = steps("first command: echo", lambda: server.call("POST", route + "/exec", {"cmd": "echo ready"}))
        steps("write the program", lambda: server.call("POST", route + "/fs/write", {"path": "job.py", "text": PROGRAM}))
        ran = steps("run it: python3 job.py", lambda: server.call("POST", route + "/exec", {"cmd": "python3 job.py"}))
        read = steps("read its file back", lambda: server.call("GET", route + "/fs/read?path=report.json"))
        again = steps("another command: true", lambda: server.call("POST", route + "/exec", {"cmd": "true"}))
        steps("delete the sandbox", lambda: server.call("DELETE", route))
        steps("stop the server", server.stop)
        report = json.loads(base64.b64decode(read["content_base64"]))
        print(f"sandbox {session['id']} said: {ran['output'].rstrip()}")
        print(f"its file, read back:      {report}")
        steps.show()
        if (first["output"], ran["exit_code"], again["exit_code"], report["uid"]) != ("ready\n", 0, 0, 1000):
            sys.exit("the job did not do what it should")
        left = left_of(data)
        if left:
            sys.exit("something is left: " + " ".join(left))
        print("nothing is left: no process, mount, cgroup or file of the sandbox")
    finally:
        if server and server.process.poll() is None:
            # The job failed midway: what it made must go all the same.
            server.abandon()
        shutil.rmtree(data, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
