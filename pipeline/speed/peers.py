"""Peers: other people's implementations of the same, and other checkouts of Goldline, each variant in its own process.

The process prints a line of JSON with its version when it is ready, and then, for every line that it reads, one with
the seconds that its work took. Anomalib's has an environment of its own and gets no more than a size, counts and an
engine: it makes random pictures and a random bank, as times do not depend on what a picture shows.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from pipeline import engines, goldline_s
from pipeline.errors import ConfigError

ENGINES = ("torch", "openvino-fp32", "openvino-bf16")
VARIABLE = "GOLDLINE_PEERS"
FOLDER = ".venv-peers"
_OURS = {("GOMP_SPINCOUNT", "5000")}  # how `goldline` has torch's threads wait: a peer runs as its users would run it
_SCRIPT = Path(__file__).with_name("anomalib_peer.py")
CHECKOUT = "goldline"
_CHECKOUT_SCRIPT = Path(__file__).with_name("checkout_peer.py")


def backbone_of(name: str) -> str:
    """What a peer runs beside a backbone of ours: the same, or beside goldline-s, which it has not, its default."""
    return "wide_resnet50_2" if name == goldline_s.NAME else name


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTask:
    """What anomalib does.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutTask:
    """What another checkout does: score a batch, as `score.Row` says."""

    method: str
    settings: Mapping[str, str]
    backbone: str
    bank_rows: int | None
    batch: int
    size: int
    device: str
    threads: int
    engine: str = ""


class Peer:
    """A program that does its task whenever it is told; use it as a context manager.

    Attributes:
        version: of it and of what it runs on, once it is entered.

    Raises:
        ConfigError: it does not run.
    """

    def __init__(self, program: Sequence[str], task: PeerTask | CheckoutTask, env: Mapping[str, str]) -> None:
        self._program, self._task, self._env = program, task, env
        self.version = ""

    def __enter__(self) -> Self:
        asked = json.dumps(asdict(self._task))
        self._process = subprocess.Popen(
            [*self._program, asked], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._env
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


def anomalib(task: PeerTask) -> Peer:
    """Anomalib's PatchCore.

    Raises:
        ConfigError: there is no environment for peers.
    """
    return Peer([python(), str(_SCRIPT)], task, dict(os.environ.items() - _OURS))


def anomalibs(*, backbone: str, size: int, images: int, bank_rows: int, device: str) -> dict[str, Peer]:
    """Anomalib scoring a batch, by name, with each engine that there is on this device.

    Raises:
        ConfigError: there is no environment for peers.
    """
    task = PeerTask(
        kind="score",
        engine="",
        backbone=backbone_of(backbone),
        layers=("layer2", "layer3"),
        size=size,
        images=images,
        bank_rows=bank_rows,
        threads=torch.get_num_threads(),
        device=device,
    )
    there = engines.candidates(torch.device(device))
    return {f"anomalib {each}": anomalib(replace(task, engine=each)) for each in ENGINES if each in there}


def checkouts(folder: Path, task: CheckoutTask, engines: Sequence[str]) -> dict[str, Peer]:
    """The Goldline in this folder doing a task with each of these engines, by name; its version is the commit.

    Raises:
        ConfigError: there is none.
    """
    if not (folder / "pipeline" / "speed" / "score.py").exists():
        raise ConfigError(f"no checkout of Goldline in {folder}: make one with git clone, or git worktree add")
    env = {**os.environ, "PYTHONPATH": str(folder.resolve())}
    program = [sys.executable, "-P", str(_CHECKOUT_SCRIPT)]
    return {f"{CHECKOUT} {each}": Peer(program, replace(task, engine=each), env) for each in engines}


def is_checkout(name: str) -> bool:
    """Whether this peer is a Goldline."""
    return name.startswith(f"{CHECKOUT} ")


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
