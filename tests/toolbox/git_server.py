"""A git server for tests: the repositories below a folder over HTTP, through git's own http-backend.

    python3 git_server.py FOLDER USER PASSWORD

It serves on a free port of the loopback and prints that port on its first line; further lines tell which requests came: the
host they were meant for, their path, and whether they showed the right password. The first part of a path says how it behaves:

    /open/NAME       everybody may read
    /private/NAME    only USER may, and write, too
    /forbidden/NAME  answers 403 to USER
    /broken/NAME     answers 500
    /silent/NAME     takes the request and never answers
    /away/NAME       sends to /private/NAME of another name of this host
"""

import base64
import http.server
import os
import subprocess
import sys
import threading
import urllib.parse

FOLDER, USER, PASSWORD = sys.argv[1:4]
EXPECTED = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
PRINTING = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def refuse(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().strip(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def handle_git(self):
        path, _, query = self.path.partition("?")
        behaviour, _, rest = path.lstrip("/").partition("/")
        given = self.headers.get("Authorization")
        shown = {None: "nothing", EXPECTED: "password"}.get(given, "other")
        with PRINTING:
            print(self.headers.get("Host"), self.path, shown, flush=True)
        body = self.body()
        if behaviour == "silent":
            threading.Event().wait()
        if behaviour == "broken":
            return self.refuse(500)
        if behaviour == "away":
            port = self.server.server_address[1]
            return self.refuse(302, Location=f"http://localhost:{port}/private/{rest}?{query}")
        if behaviour != "open" and given != EXPECTED:
            return self.refuse(401, WWW_Authenticate='Basic realm="git"')
        if behaviour == "forbidden":
            return self.refuse(403)
        env = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": FOLDER,
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": "/" + urllib.parse.unquote(rest),
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_ADDR": "127.0.0.1",
            # The repositories may belong to somebody else.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        if behaviour != "open":
            env["REMOTE_USER"] = USER
        done = subprocess.run(["git", "http-backend"], input=body, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = [line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line]
        status = next((int(value.split()[0]) for name, value in headers if name == "Status"), 200)
        self.send_response(status)
        for name, value in headers:
            if name != "Status":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = handle_git


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(server.server_address[1], flush=True)
server.serve_forever()
