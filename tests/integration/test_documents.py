"""What the documents tell a reader to type works, in the order in which it stands there."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from workers import topics

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).resolve().parents[2]
_RUN = re.compile(r"^```sh run\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOCUMENTS = [path for path in sorted((ROOT / "docs").rglob("*.md")) if _RUN.search(path.read_text())]
# `goldline` of this checkout. The broker is the tests' own: the documents' would want its usual port.
GOLDLINE = """#!/bin/sh
if [ "$1" = kafka ]; then echo "the tests' broker"; exit 0; fi
exec {python} -m workers "$@"
"""


def test_there_are_commands_to_run():
    assert ROOT / "docs" / "tutorial.md" in DOCUMENTS


@pytest.mark.parametrize("path", DOCUMENTS, ids=[str(p.relative_to(ROOT)) for p in DOCUMENTS])
def test_its_commands_do_what_they_should(path: Path, tmp_path: Path, broker: str, topics_prefix: str) -> None:
    program = tmp_path / "bin" / "goldline"
    program.parent.mkdir()
    program.write_text(GOLDLINE.format(python=sys.executable))
    program.chmod(0o755)
    folder = tmp_path / "reader"
    folder.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GOLDLINE_KAFKA__BROKERS": broker,
        "GOLDLINE_KAFKA__PREFIX": topics_prefix,
        "GOLDLINE_KAFKA__GROUP": topics_prefix,
    }
    script = "set -euxo pipefail\n" + "\n".join(_RUN.findall(path.read_text()))
    shell = subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        told, _ = shell.communicate(timeout=240)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)  # what it left running when it failed
        topics.delete([broker], topics.specs(partitions=1, frame_max_bytes=1024, prefix=topics_prefix))
    logs = "\n".join(log.read_text()[-2000:] for log in folder.glob("*.log"))
    assert shell.returncode == 0, f"{told[-4000:]}\n{logs}"
