"""The guides, followed step by step as a new user would, on a machine where nothing of Sandhaus is yet.

Blocks of code marked `test` after their language (```sh test, ```python test, ```js test) run in the order in which they
stand, in one shell, against the built binary. A block marked `text output` right behind one is what that one prints; `…`
in it stands for anything. Each guide has a network of its own, so that the usual port is free, and sees an empty /var/lib
and a copy of /etc of its own, so that the usual places are.
"""

import ctypes
import fcntl
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile

import pytest

from server import PATIENCE_SECONDS, left

ROOT = pathlib.Path(__file__).resolve().parents[2]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs/guides").glob("*.md"))]

# Those that start where nothing is; all others go on where they end.
FIRST = ["README.md", "install.md"]
PRELUDE = """
sandhaus --quiet init
sandhaus serve --detach
export SANDHAUS_API_KEY=$(sandhaus config get api_key)
"""

FENCE = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)

# How a block of each language is run by the shell that runs them all.
RUN = {
    "sh": "{code}",
    "python": "python3 - <<'END_OF_BLOCK'\n{code}END_OF_BLOCK\n",
    "js": "node --input-type=module - <<'END_OF_BLOCK'\n{code}END_OF_BLOCK\n",
}

MARK = "::: line "


class Block:
    """A block that runs, where it stands, and what it prints."""

    def __init__(self, language, line, code):
        self.language = language
        self.line = line
        self.code = code
        self.output = None


def blocks(guide):
    text = guide.read_text()
    found = []
    end = None
    for match in FENCE.finditer(text):
        words = match["info"].split()
        line = text.count("\n", 0, match.start()) + 1
        if words[1:] == ["test"]:
            found.append(Block(words[0], line, match["code"]))
            end = match.end()
        elif words == ["text", "output"]:
            assert end is not None and not text[end:match.start()].strip(), f"line {line}: output of no block"
            found[-1].output = match["code"]
        else:
            assert len(words) == 1, f"line {line}: {match['info']!r} is not understood"
            end = None
    return found


def enter(folder):
    """Puts this process on a machine of its own, as far as its network, /etc and /var/lib go."""
    clone_newns, clone_newnet, ms_bind, ms_rec, ms_private = 0x2_0000, 0x4000_0000, 0x1000, 0x4000, 0x4_0000
    libc = ctypes.CDLL(None, use_errno=True)

    def done(status, what):
        if status != 0:
            raise OSError(ctypes.get_errno(), what)

    done(libc.unshare(clone_newns | clone_newnet), "unshare")
    done(libc.mount(b"none", b"/", None, ms_rec | ms_private, None), "make mounts private")
    etc = f"lowerdir=/etc,upperdir={folder}/etc,workdir={folder}/etc.work".encode()
    done(libc.mount(b"overlay", b"/etc", b"overlay", 0, etc), "mount /etc")
    done(libc.mount(f"{folder}/lib".encode(), b"/var/lib", None, ms_bind, None), "mount /var/lib")
    set_flags, up = 0x8914, 0x1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, set_flags, struct.pack("16sH14x", b"lo", up))


class Machine:
    """A machine on which nothing of Sandhaus is, as far as its command line sees."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="sandhaus-guide-"))
        self.data = self.folder / "lib/sandhaus"
        for name in ("bin", "etc", "etc.work", "lib", "work"):
            (self.folder / name).mkdir()
        (self.folder / "bin/sandhaus").symlink_to(os.environ["SANDHAUS_BIN"])
        path = [self.folder / "bin", pathlib.Path(sys.executable).parent, "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        self.environment = {
            "PATH": ":".join(map(str, path)),
            "HOME": str(self.folder / "work"),
            "LANG": "C.UTF-8",
            "EXAMPLES": str(ROOT / "examples"),
        }

    def shell(self, script, timeout=10 * PATIENCE_SECONDS):
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=self.folder / "work", env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout,
            preexec_fn=lambda: enter(self.folder))

    def close(self):
        """Stops what may run, and says what was left or odd."""
        trouble = []
        stop = [self.folder / "bin/sandhaus", "--data-dir", self.data, "stop"]
        subprocess.run(stop, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True)
        log = self.data / "run/sandhaus.log"
        if log.exists():
            trouble += [f"log: {line}" for line in log.read_text().splitlines() if re.search(r"\b(WARN|ERROR)\b", line)]
        if (self.data / "instance").exists():
            trouble += [f"left: {name}" for name in left(str(self.data))]
        shutil.rmtree(self.folder, ignore_errors=True)
        return trouble


@pytest.fixture
def machine():
    machine = Machine()
    yield machine
    trouble = machine.close()
    assert not trouble, "\n".join(trouble)


def matches(said, wanted):
    pattern = "".join(".*" if part == "…" else re.escape(part) for part in re.split("(…)", wanted.strip()))
    return re.fullmatch(pattern, said.strip(), re.DOTALL)


@pytest.mark.parametrize("guide", [guide for guide in GUIDES if blocks(guide)], ids=lambda guide: guide.stem)
def test_guide(guide, machine):
    found = blocks(guide)
    script = "" if guide.name in FIRST else PRELUDE
    for block in found:
        script += f"echo '{MARK}{block.line}'\n{RUN[block.language].format(code=block.code)}\n"
    done = machine.shell(script)
    said = dict(re.findall(rf"^{MARK}(\d+)\n(.*?)(?=^{MARK}|\Z)", done.stdout, re.MULTILINE | re.DOTALL))
    assert done.returncode == 0, f"{guide.name} ended with {done.returncode}:\n{done.stdout}"
    for block in found:
        if block.output is not None:
            printed = said[str(block.line)]
            assert matches(printed, block.output), f"{guide.name}:{block.line} printed:\n{printed}"


def test_links_of_guides_lead_somewhere():
    for guide in [*GUIDES, ROOT / "examples/README.md"]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", guide.read_text()):
            assert (guide.parent / link).exists(), f"{guide.name} links to {link}, which is not there"
