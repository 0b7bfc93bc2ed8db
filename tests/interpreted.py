"""Kernels run by Triton's interpreter, on a CPU, in a process of its own: it reads its variable when it is imported."""

import json
import os
import subprocess
import sys

import pytest


def run(program):
    """What a Python program prints as JSON."""
    pytest.importorskip("triton")
    told = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)
