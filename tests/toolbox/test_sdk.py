"""The TypeScript SDK's tests, which are a program of Node.js."""

import os
import subprocess


def test_typescript():
    done = subprocess.run(
        ["node", "--test", "--test-concurrency=1", os.environ["TOOLBOX_SDK_TESTS"]], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
