"""A sandbox of the toolbox image for all tests of this folder, unless TOOLBOX_URL names a toolbox that is there already."""

import json
import os

import pytest

from server import Server

# How long the image may take to be imported or made a disk of, and a machine to boot under emulation.
PATIENCE_SECONDS = 900

# Where the image lies as an OCI layout.
IMAGE = os.environ.get("TOOLBOX_IMAGE")

CONFIG = "default_image: toolbox\ndefaults: {readonly_rootfs: false, security_profile: container}\n"

# What a server warns of where the processor runs no guests, which is no trouble of a test.
EMULATED = "virtual machines are emulated"

# Port of the sandbox's own SSH.
SSH_PORT = 22220

server = pytest.StashKey[Server]()


def pytest_addoption(parser):
    parser.addoption("--engine", default="namespace", choices=["namespace", "qemu"], help="what the sandbox runs on")


def pytest_configure(config):
    """Before the test modules are read: they find their toolbox in the environment."""
    if os.environ.get("TOOLBOX_URL"):
        return
    engine = config.getoption("--engine")
    running = Server(config=CONFIG, patience=PATIENCE_SECONDS)
    config.stash[server] = running
    wanted = {"image": "toolbox", "memory_mb": 2048, "ttl_seconds": 3600, "engine": engine, "ports": [{"port": SSH_PORT}]}
    running.command("image", "import", "toolbox", IMAGE)
    if engine == "qemu":
        # The kernel of all guests of tests; a compressed disk takes longer than it saves.
        running.command(
            "image", "build-vm", "--from", "toolbox", "--name", "toolbox-vm", "--no-compress",
            "--kernel", os.environ["TOOLBOX_KERNEL"])
        wanted["image"] = "toolbox-vm"
    made = running.request("POST", "/v1/sessions", wanted)
    assert made.status == 201, made
    session = made.json()["id"]
    doors = running.request("GET", f"/v1/sessions/{session}/doors")
    assert doors.status == 200, doors
    os.environ["TOOLBOX_SSH"] = json.dumps(doors.json()["ssh"])
    os.environ["TOOLBOX_URL"] = f"{running.url}/toolbox/{session}"
    os.environ["TOOLBOX_TOKEN"] = running.api_key


def pytest_unconfigure(config):
    running = config.stash.get(server, None)
    if running is not None:
        trouble = [line for line in running.stop() if EMULATED not in line]
        assert not trouble, "\n".join(trouble)
