"""A whole line on one machine, for the demo, the benchmarks and the tests: a broker, topics, settings, processes.

Everything it starts it stops, by process id, whatever happens in between.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline import settings as line
from pipeline.errors import ConfigError
from pipeline.settings import ENVIRONMENT_PREFIX, Settings
from workers import clients, dev_broker, topics

BROKER_VARIABLE = "GOLDLINE_BROKER"


@dataclass(slots=True)
class Process:
    """A command of ours that runs beside us; its standard error is in a file."""

    name: str
    popen: "subprocess.Popen[str]"
    log: Path

    def end(self, *, within_s: float = 15.0, by: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, then insist; its exit status."""
        if self.popen.poll() is None:
            self.popen.send_signal(by)
        try:
            return self.popen.wait(within_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()

    def check(self) -> None:
        """Nothing, while it runs or has ended well.

        Raises:
            ConfigError: it ended badly; the message has the end of its log.
        """
        status = self.popen.poll()
        if status not in {None, 0}:
            raise ConfigError(f"{self.name} ended with status {status}: {self.last_words()}")

    def last_words(self, characters: int = 800) -> str:
        """The end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:].strip() or "(it said nothing)"


@dataclass(slots=True)
class Rig:
    """A line in a folder; use it as a context manager.

    Attributes:
        directory: where settings, logs, models and the broker's data go.
        tree: what its line.toml says, beside kafka and store; may be changed before `start`.
        address: a broker to use; without one a development broker is started.
        store: URL of the models' store; a folder of its own unless given.
        keep: leave the folder behind.
    """

    directory: Path
    tree: dict[str, Any]
    address: str | None = None
    keep: bool = True
    store: str | None = None
    prefix: str = field(default_factory=lambda: f"goldline-{uuid.uuid4().hex[:8]}")
    processes: list[Process] = field(default_factory=list)
    _own_broker: bool = False

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def config(self) -> Path:
        """The line.toml."""
        return self.directory / "line.toml"

    @property
    def settings(self) -> Settings:
        """What it says."""
        return line.read(self.config, {})

    @property
    def store_url(self) -> str:
        """Where its models are."""
        return self.store or f"file://{self.directory.resolve()}/models"

    def run(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Process:
        """Start `goldline ARGUMENTS`, logging to NAME.log; standard output goes to NAME.out."""
        log, out = self.directory / f"{name}.log", self.directory / f"{name}.out"
        with log.open("a") as errors, out.open("a") as output:
            popen = subprocess.Popen(
                [sys.executable, "-m", "workers", *arguments],
                stdout=output,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                text=True,
                env={**_environment(), **(environment or {})},
            )
        process = Process(name, popen, log)
        self.processes.append(process)
        return process

    def wait_for(self, process: Process, words: str, *, within_s: float = 90.0) -> None:
        """Wait until a process has logged these words.

        Raises:
            ConfigError: it ended, or did not say them in time.
        """
        until = time.monotonic() + within_s
        while words not in process.log.read_text(encoding="utf-8", errors="replace"):
            if process.popen.poll() is not None or time.monotonic() > until:
                raise ConfigError(f"{process.name} did not get as far as {words!r}: {process.last_words()}")
            time.sleep(0.1)

    def metrics_url(self, process: Process, *, within_s: float = 90.0) -> str:
        """Where a process answers /metrics and /health, without either."""
        self.wait_for(process, '"metrics served"', within_s=within_s)
        told = next(line for line in process.log.read_text().splitlines() if '"metrics served"' in line)
        return str(json.loads(told)["url"]).removesuffix("/metrics")

    def start_broker(self) -> str:
        """Start the development broker (again), on the port it had."""
        port = None if self._own_broker else 0
        self._own_broker = True  # from here on: whoever is interrupted while it starts must still stop it
        self.address = dev_broker.start(self.directory / "kafka", port=port).address
        return self.address

    def stop_broker(self) -> None:
        """Stop the development broker, keeping its data."""
        dev_broker.stop(self.directory / "kafka")

    def close(self) -> None:
        """End every process, then the broker or the topics made on somebody else's."""
        for process in reversed(self.processes):
            process.end()
        if self._own_broker:
            dev_broker.stop(self.directory / "kafka", erase=True)
        elif self.address and self.config.exists():
            wanted = self.settings
            topics.delete(wanted.kafka.brokers, topics.of(wanted), client_options=clients.client_options(wanted.kafka))
        if not self.keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self) -> None:
        self.address = self.address or os.environ.get(BROKER_VARIABLE) or self.start_broker()
        tree = {
            **self.tree,
            "kafka": {"brokers": [self.address], "prefix": self.prefix, "group": self.prefix},
            "store": {"url": self.store_url, "poll_s": 1.0},
            "drift": {"folder": f"{self.directory.resolve()}/drift"},
        }
        self.config.write_text(to_toml(tree), encoding="utf-8")
        wanted = self.settings
        topics.create(wanted.kafka.brokers, topics.of(wanted), client_options=clients.client_options(wanted.kafka))


def temporary(tree: dict[str, Any], *, address: str | None = None) -> Rig:
    """A rig in a folder that goes when it does."""
    return Rig(Path(tempfile.mkdtemp(prefix="goldline-")), tree, address=address, keep=False)


def _environment() -> dict[str, str]:
    """Our own, without overrides of settings: a rig's line.toml is all that counts."""
    ours = ENVIRONMENT_PREFIX
    return {name: value for name, value in os.environ.items() if not (name.startswith(ours) and "__" in name)}


def to_toml(tree: Mapping[str, Any], path: Sequence[str] = ()) -> str:
    """A nested mapping as TOML: texts, numbers, flags, lists of these, and tables."""
    plain = [f"{_key(k)} = {_value(v)}" for k, v in tree.items() if not isinstance(v, Mapping)]
    parts = [f"[{'.'.join(_key(p) for p in path)}]", *plain] if path else plain
    for key, table in tree.items():
        if isinstance(table, Mapping):
            parts.append(to_toml(table, (*path, key)))
    return "\n".join(parts) + "\n"


def _key(text: str) -> str:
    return text if text.replace("_", "").isalnum() and text.isascii() else _value(text)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        if not escaped.isprintable():
            raise ConfigError(f"cannot write {value!r} to a TOML file")
        return f'"{escaped}"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return repr(value)
