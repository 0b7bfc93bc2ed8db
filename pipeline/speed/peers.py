"""Peers: other people's implementations of the same, each variant in a process of an environment of its own.

The process prints a line of JSON with its version when it is ready, and then, for every line that it reads, one with
the seconds that its work took. It gets no more than a size, counts and an engine, and makes its own random pictures and
bank: times do not depend on what a picture shows.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline import goldline_s
from pipeline.errors import ConfigError

VARIABLE = "GOLDLINE_PEERS"
FOLDER = ".venv-peers"
_OURS = {("GOMP_SPINCOUNT", "5000")}  # how `goldline` has torch's threads wait: a peer runs as its users would run it
_SCRIPT = Path(__file__).with_name("anomalib_peer.py")


def backbone_of(name: str) -> str:
    """What a peer runs beside a backbone of ours: the same, or beside goldline-s, which it has not, its default."""
    return "wide_resnet50_2" if name == goldline_s.NAME else name


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTask:
    """What a peer does.

    Attributes:
        kind: `score` a batch, or `fit`.
        engine: `torch`, `openvino-fp32` or `openvino-bf16`.
        images: in a batch, or to fit.
        bank_rows: of its memory bank; of a fit, what the coreset comes to.
    """

    kind: str
    engine: str
    backbone: str
    layers: tuple[str, ...]
    size: int
    images: int
    bank_rows: int
    threads: int
    device: str = "cpu"


class Peer:
    """One variant of a peer; use it as a context manager.

    Attributes:
        version: of it and of what it runs on, once it is entered.

    Raises:
        ConfigError: there is no environment for peers, or the peer does not run.
    """

    def __init__(self, task: PeerTask) -> None:
        self._task = task
        self.version = ""

    def __enter__(self) -> Self:
        asked = json.dumps({name: getattr(self._task, name) for name in PeerTask.__slots__})
        plain = dict(os.environ.items() - _OURS)
        self._process = subprocess.Popen(
            [python(), str(_SCRIPT), asked], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=plain
        )
        try:
            self.version = str(self._read().get("version", ""))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def run(self) -> float:
        """Do the work once; its seconds."""
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._read()["seconds"])

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _read(self) -> Any:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        while line := self._process.stdout.readline():
            if line.startswith("{"):  # libraries talk, too
                return json.loads(line)
        raise ConfigError(f"the peer ended with status {self._process.wait()}: {self._task}")


def python() -> str:
    """The interpreter of the peers' environment.

    Raises:
        ConfigError: there is none.
    """
    found = Path(os.environ.get(VARIABLE, FOLDER)) / "bin" / "python"
    if not found.exists():
        raise ConfigError(
            f"no peers in {found.parent.parent}: `make bench-peers` installs them, or name a virtual "
            f"environment that has anomalib and openvino, {VARIABLE}=DIR"
        )
    return str(found)
