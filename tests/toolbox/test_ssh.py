"""The sandbox's own SSH by OpenSSH's client, where this run has made the sandbox; what it does is seen by the published
client."""

import json
import os
import subprocess
import uuid

import pytest
from daytona_toolbox_api_client import ApiClient, Configuration, FileSystemApi

URL = os.environ["TOOLBOX_URL"]
HEADERS = {"Authorization": f"Bearer {token}"} if (token := os.environ.get("TOOLBOX_TOKEN")) else {}

# What the client ends with that was not let in.
NOT_IN = 255
PATIENCE_SECONDS = 300

pytestmark = [
    pytest.mark.os,
    pytest.mark.skipif("TOOLBOX_SSH" not in os.environ, reason="SKIPPED: nobody said how to come into this toolbox"),
]


@pytest.fixture
def door():
    return json.loads(os.environ["TOOLBOX_SSH"])


@pytest.fixture
def files():
    client = ApiClient(Configuration(host=URL))
    client.default_headers.update(HEADERS)
    return FileSystemApi(client)


def come_in(folder, door, *words, program=("ssh", "-p"), **more):
    """Runs a program of OpenSSH's that knows the host by its key, and the password."""
    known, ask = folder / "known", folder / "ask"
    known.write_text(f"[127.0.0.1]:{door['host_port']} {door['host_key']}\n")
    ask.write_text(f"#!/bin/sh\necho '{door['secret']}'\n")
    ask.chmod(0o700)
    name, port_option = program
    options = ["StrictHostKeyChecking=yes", f"UserKnownHostsFile={known}", "GlobalKnownHostsFile=/dev/null",
               "PubkeyAuthentication=no", "NumberOfPasswordPrompts=1", "LogLevel=ERROR"]
    command = [name, "-F", "none", *(f"-o{option}" for option in options), port_option, str(door["host_port"]), *words]
    environment = {**os.environ, "SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"}
    environment.pop("SSH_AUTH_SOCK", None)
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        timeout=PATIENCE_SECONDS, check=False, **more)


def test_commands_and_files(files, door, tmp_path):
    name = f"/tmp/ssh-{uuid.uuid4()}"
    done = come_in(tmp_path, door, "anybody@127.0.0.1", f"echo by ssh > {name}; tty; exit 7")
    assert (done.returncode, done.stdout) == (7, b"not a tty\n"), done
    assert bytes(files.download_file(path=name)) == b"by ssh\n"
    content = os.urandom(300_000)
    (tmp_path / "local").write_bytes(content)
    done = come_in(tmp_path, door, str(tmp_path / "local"), f"anybody@127.0.0.1:{name}", program=("scp", "-P"))
    assert done.returncode == 0, done
    assert bytes(files.download_file(path=name)) == content
    files.delete_file(path=name)


def test_nobody_comes_in_with_another_secret(door, tmp_path):
    wrong = {**door, "secret": "0" * len(door["secret"])}
    done = come_in(tmp_path, wrong, "anybody@127.0.0.1", "true")
    assert done.returncode == NOT_IN and b"Permission denied" in done.stderr, done
