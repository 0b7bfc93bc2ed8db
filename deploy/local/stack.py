"""A whole line on this machine, without containers: what deploy/compose.yaml starts, but for Grafana.

Kafka, Redis, Prometheus, two workers, a gate, two cameras that replay drawn pictures, and refits. Whatever it starts
it ends by process id, in order: cameras first, then who answers them, then what these stand on.
"""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

import click
from redis import Redis
from redis.exceptions import RedisError

from deploy.local.prometheus import Prometheus, prepare
from pipeline import synthetic
from pipeline.errors import ConfigError
from workers import dev_broker
from workers.rig import Process, Rig
from workers.scrape import scrape

STATIONS = ("line-1/top", "line-1/side")
PART = "gear"
_PROGRAMS = {"redis-server": "redis-server", "prometheus": "prometheus"}  # and Debian's packages that have them
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_UP_S = 120.0
_FIT_S = 600.0
_REDIS_S = 20.0

Say = Callable[[str], None]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or a closed terminal.

    Not KeyboardInterrupt itself: where that passes through an `exec` of text, as a dataclass has one, CPython ends the
    process by SIGINT at its very end, although somebody caught it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is wanted of a line.

    Attributes:
        folder: of everything it writes; what an earlier line left in it goes.
        rate: frames a second of each station.
        deadline_ms: from capture to the gate.
        goods: drawn for each station's fit.
        tests: good ones for its camera, and as many verified ones that refits are held to.
        defects: likewise, of each kind.
        port: where Prometheus answers if that is free.
    """

    folder: Path
    rate: float = 3.0
    deadline_ms: int = 2000
    goods: int = 200
    tests: int = 80  # 59 at least: a promise of 5 % false rejects needs so many to be made anew
    defects: int = 5
    port: int = 9090


def schedule(now: datetime) -> str:
    """Of refits: the first when there are frames to learn from, in two to three minutes, then every half hour."""
    minute = (now + timedelta(minutes=3)).minute
    return f"{minute},{(minute + 30) % 60} * * * *"


def tree(order: Order, redis: str) -> dict[str, Any]:
    """The settings, beside kafka, store and drift, which `Rig` adds.

    Pictures are above the limit of what travels inline: they go through Redis. Frames may be learnt from at once, not
    a day later. Ports are not those that other lines on this machine look for first: one that is free again when a
    process was killed must not become a stranger's.
    """
    folder = order.folder.resolve()
    return {
        "stations": {name: {"partition": i} for i, name in enumerate(STATIONS)},
        "defaults": {"deadline_ms": order.deadline_ms, "false_reject_rate": 0.05},
        "worker": {"threads": 1},
        "frames": {"inline_max_bytes": 65_536, "roots": [f"{redis}/1"], "keep_s": 120},
        "pool": {"url": f"file://{folder}/pool", "quarantine_h": 0.0},
        "refit": {"golden": f"{folder}/golden"},
        "metrics": {"port": 9890},
    }


@dataclass
class Line:
    """A line that runs; use it as a context manager, in the main thread.

    Attributes:
        order: what was wanted.
        say: told of each step.
        rig: its processes, Redis and Prometheus among them, in the order of their start.
        urls: `http://HOST:PORT` of each process of ours, by name.
    """

    order: Order
    say: Say = click.echo
    rig: Rig = field(init=False)
    prometheus: Prometheus = field(init=False)
    redis: str = field(init=False)
    urls: dict[str, str] = field(default_factory=dict)
    _ends: ExitStack = field(default_factory=ExitStack)
    _asked_to_end: bool = False

    def __enter__(self) -> Self:
        # SIGTERM and a terminal that is closed are what Ctrl-C is: an exception, which ends everything in order.
        for number in _SIGNALS:
            signal.signal(number, lambda *_: self._interrupt())  # not bound: `signal` looks at who it is
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _interrupt(self) -> None:
        self._asked_to_end = True
        raise Interrupted

    def go_on(self) -> None:
        """Raise Interrupted if one was lost, as in a destructor or a library that catches everything."""
        if self._asked_to_end:
            raise Interrupted

    def _tell(self, step: str) -> None:
        self.go_on()
        self.say(step)

    def close(self) -> None:
        """End everything that was started; another Ctrl-C does not stop that."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        self._ends.close()
        for number in _SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    @property
    def pids(self) -> dict[str, int]:
        """Of every process of the line, by name."""
        found = {process.name: process.popen.pid for process in self.rig.processes}
        kafka = dev_broker.status(self.rig.directory / "kafka")
        return found | ({"kafka": kafka.pid} if kafka else {})

    def process(self, name: str) -> Process:
        """One of them."""
        return next(process for process in self.rig.processes if process.name == name)

    def _start(self) -> None:
        for program, package in _PROGRAMS.items():
            if shutil.which(program) is None:
                raise ConfigError(f"no {program} here: install {package} (Debian: apt-get install {package})")
        folder = self.order.folder.resolve()
        self._clear(folder)
        port = free_port()
        self.redis = f"redis://127.0.0.1:{port}"
        self.rig = Rig(folder, {}, store=f"{self.redis}/0")
        self._ends.callback(self.rig.close)
        self._tell("starting Redis")
        redis = start_redis(folder / "redis", port)
        self.rig.processes.append(redis)
        wait_for_redis(redis, port)
        self._fit()
        self._tell("starting Kafka")
        self.rig.tree = tree(self.order, self.redis)
        self.rig.__enter__()
        self._start_ours()
        self._tell("starting Prometheus")
        prepare(folder / "prometheus", self.urls)
        self.prometheus = Prometheus(folder / "prometheus", free_port(self.order.port))
        self.rig.processes.append(self.prometheus.process)
        self.prometheus.wait()

    def _clear(self, folder: Path) -> None:
        """What an earlier line left, its broker too, if that line was killed; never beneath one that runs."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = self._ends.enter_context(folder.with_suffix(".lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"a line runs in {folder} already: end that one first") from error
        dev_broker.stop(folder / "kafka", erase=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    def _fit(self) -> None:
        """Draw parts and fit both stations, as a person would: `goldline fit`."""
        folder, order = self.rig.directory, self.order
        for seed, station in enumerate(STATIONS):
            self._tell(f"{station}: drawing parts")
            pictures = folder / "pictures" / station
            counts = {"test_goods": order.tests, "defects_each": order.defects}
            synthetic.write_dataset(pictures, PART, goods=order.goods, seed=seed, **counts)
            golden = folder / "golden" / station / "default"
            synthetic.write_dataset(golden, PART, goods=0, seed=seed + len(STATIONS), **counts)
            self._tell(f"{station}: fitting")
            options = ("--station", station, "--false-reject-rate", "0.05", "--store", self.rig.store_url)
            fit = self.rig.run(f"fit-{station.rpartition('/')[2]}", "fit", str(pictures), *options)
            fit.popen.wait(_FIT_S)
            fit.check()
            self.rig.processes.remove(fit)

    def _start_ours(self) -> None:
        """Each by the command that a person would start it with."""
        self._tell("starting two workers and the gate")
        for name in ("worker-1", "worker-2"):
            self._run(name, "worker")
        self._run("gate", "gate", "--output", str(self.rig.directory / "actions.jsonl"))
        self._wait_for_workers()
        self._tell("starting cameras and refits")
        for station in STATIONS:
            name = f"camera-{station.rpartition('/')[2]}"
            options = ("--station", station, "--rate", str(self.order.rate), "--loop", "--shuffle", "--json")
            self._run(name, "camera", str(self.rig.directory / "pictures" / station / "test"), *options)
        self._run("refit", "refit", "--watch", GOLDLINE_REFIT__SCHEDULE=schedule(datetime.now().astimezone()))

    def _run(self, name: str, *arguments: str, **environment: str) -> None:
        process = self.rig.run(name, *arguments, "--config", str(self.rig.config), environment=environment)
        self.urls[name] = self.rig.metrics_url(process, within_s=_UP_S)

    def _wait_for_workers(self) -> None:
        """Until the workers have shared the stations out, and all are ready."""
        until = time.monotonic() + _UP_S
        workers = ("worker-1", "worker-2")
        while not (all(ready(self.urls[name]) for name in (*workers, "gate")) and self._assigned(workers)):
            for process in self.rig.processes:
                process.check()
            if time.monotonic() > until:
                raise ConfigError(f"the line is not ready: {self.process('worker-1').last_words()}")
            time.sleep(0.5)

    def _assigned(self, workers: Sequence[str]) -> bool:
        shares = [scrape(self.urls[name]).sum("goldline_partitions_assigned") for name in workers]
        return sorted(shares) == [1, len(STATIONS) - 1]


def ready(url: str) -> bool:
    """Whether a process says that it does its work."""
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=5):  # noqa: S310 - a URL of ours
            return True
    except OSError:
        return False


def start_redis(folder: Path, port: int) -> Process:
    """Redis on loopback, in memory alone."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "redis.log"
    argv = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    with log.open("w") as out:
        # A session of its own: Ctrl-C in the terminal must not take the store from under the workers.
        popen = subprocess.Popen(argv, stdout=out, stderr=out, text=True, start_new_session=True)
    return Process("redis", popen, log)


def wait_for_redis(redis: Process, port: int) -> None:
    """Until it answers.

    Raises:
        ConfigError: it ended, or does not answer in time.
    """
    until = time.monotonic() + _REDIS_S
    while True:
        with suppress(RedisError), Redis(host="127.0.0.1", port=port, socket_timeout=1) as client:
            client.ping()
            return
        if redis.popen.poll() is not None or time.monotonic() > until:
            raise ConfigError(f"redis-server does not answer: {redis.last_words()}")
        time.sleep(0.02)


def free_port(wanted: int = 0) -> int:
    """This port on loopback, or another where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alive(pid: int) -> bool:
    """Whether there is such a process; a dead child of ours lingers until asked for."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
