"""A Kafka broker for development and tests: a real one, alone, on loopback only.

It is Apache Kafka in KRaft mode, one JVM for broker and controller. `fetch` (kafka_jars.py) has Maven copy
its jars into a cache folder; everything else lives in one folder of the caller's::

    data/  port  controller-port    topics, offsets and metadata; both ports are kept over restarts
    pid  server.properties          the running broker's process and settings
    kafka.log  kafka.log.1  gc.log  its output, that of the run before, the garbage collector's pauses
"""

import base64
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kafka.errors import KafkaError

from pipeline.errors import ConfigError
from workers import topics
from workers.kafka_jars import OWN_BROKER, RESOURCES, end_of, fetch, java

__all__ = ["DEFAULT_DIRECTORY", "DEFAULT_PORT", "Broker", "fetch", "start", "status", "stop"]

DEFAULT_DIRECTORY = Path(".goldline/kafka")
DEFAULT_PORT = 9092

_HOST = "127.0.0.1"
_START_S = 60.0
_STOP_S = 15.0
_OURS = ("data", "data.new", "gc.log*", "kafka.log*", "*.properties", "pid", "port", "controller-port", "lock")

# The heap is claimed and touched at once: growing it page by page made single collections take 60 ms instead
# of 20. The serial collector pauses least often where two cores are shared with the workers (once in 12 s at
# 6 MB/s), and the metaspace mark keeps class loading from forcing full collections during the first joins. The
# second compiler is left out: on two cores its threads take from the line more than they give back within the hour
# (200 kB at 30/s, frame sent to result read, without and with it: p50 8.9 and 11.3 ms, p99 21 and 33 ms in one run).
_JVM = (
    *("-Xms512m", "-Xmx512m", "-XX:+AlwaysPreTouch", "-XX:+UseSerialGC", "-XX:MetaspaceSize=96m"),
    "-XX:TieredStopAtLevel=1",
    *("-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true"),
)


@dataclass(frozen=True, kw_only=True)
class Broker:
    """A development broker that runs and answers."""

    address: str
    """HOST:PORT, as clients want it."""
    pid: int
    directory: Path
    """Absolute; holds data, log, pid and ports."""


def start(directory: Path, *, port: int | None = None, keep_data: bool = True) -> Broker:
    """Starts the folder's broker and waits until it answers; one that already runs is returned.

    Args:
        directory: made when missing.
        port: the broker's port; None is the one this folder had last, or else 9092; 0 is the one this folder
            had last, or else any free port.
        keep_data: False begins with an empty broker; it does not touch one that already runs.

    Raises:
        ConfigError: no Java, no jars, the port is taken, or the broker died (with the end of its log).
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        last, pid = _number(directory / "port"), _running(directory)
        if pid is not None:
            if port not in {None, 0, last}:
                raise ConfigError(f"the broker in {directory} runs on port {last}, not {port}: stop it first")
            broker = _wait(directory, pid)
            if broker is not None:
                return broker  # None: it was just dying
        wanted = port or last or (_free_port() if port == 0 else DEFAULT_PORT)
        broker = _wait(directory, _launch(directory, wanted, keep_data=keep_data))
        if broker is None:
            (directory / "pid").unlink(missing_ok=True)
            raise ConfigError(f"Kafka died while starting; {_tail(directory)}")
        return broker


def stop(directory: Path, *, erase: bool = False) -> bool:
    """Stops the folder's broker; after 15 s by force.

    Args:
        directory: as given to `start`.
        erase: also removes data, logs and ports, and the folder if nothing else is in it.

    Returns:
        Whether a broker of ours ran there.
    """
    directory = directory.resolve()
    if not directory.is_dir():
        return False
    with _locked(directory):
        pid = _running(directory)
        if pid is not None:
            _end(directory, pid)
        (directory / "pid").unlink(missing_ok=True)
        if erase:
            _erase(directory)
    return pid is not None


def status(directory: Path) -> Broker | None:
    """The folder's broker, or None when it does not run or does not answer."""
    directory = directory.resolve()
    pid, port = _running(directory), _number(directory / "port")
    if pid is None or port is None or not _answers(port):
        return None
    return Broker(address=f"{_HOST}:{port}", pid=pid, directory=directory)


def _launch(directory: Path, port: int, *, keep_data: bool) -> int:
    if not _is_free(port):
        raise ConfigError(f"port {port} on {_HOST} is taken: choose another with --port, {OWN_BROKER}")
    controller_port = _number(directory / "controller-port")
    if controller_port is None or controller_port == port or not _is_free(controller_port):
        controller_port = _free_port()
    jars, runtime, data = fetch(), str(java()), directory / "data"
    (directory / "port").write_text(f"{port}\n")
    (directory / "controller-port").write_text(f"{controller_port}\n")
    ports = {"host": _HOST, "port": port, "controller_port": controller_port}
    log4j = f"-Dlog4j2.configurationFile={(RESOURCES / 'log4j2.xml').as_uri()}"
    classes = [log4j, "-cp", f"{jars}/*"]
    if not keep_data:
        shutil.rmtree(data, ignore_errors=True)
    if not data.exists():
        _format(directory, [runtime, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", *classes], ports)
    settings = directory / "server.properties"
    settings.write_text(_settings(data=data, **ports))
    log = directory / "kafka.log"
    if log.exists():
        log.replace(directory / "kafka.log.1")
    gc_log = "-Xlog:gc:file=gc.log:time:filecount=1,filesize=1m"
    argv = [runtime, *_JVM, gc_log, _mark(directory), *classes, "kafka.Kafka", str(settings)]
    with log.open("wb") as out:
        # A session of its own: Ctrl-C in the terminal that started it must not end it.
        process = subprocess.Popen(
            argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    process.returncode = 0  # it outlives us on purpose; without this Popen warns when it is collected
    (directory / "pid").write_text(f"{process.pid}\n")
    return process.pid


def _settings(**values: object) -> str:
    return (RESOURCES / "server.properties").read_text().format(**values)


def _format(directory: Path, jvm: list[str], ports: dict[str, object]) -> None:
    """Formats aside and renames: an interrupted format never counts."""
    fresh, settings = directory / "data.new", directory / "format.properties"
    shutil.rmtree(fresh, ignore_errors=True)
    settings.write_text(_settings(data=fresh, **ports))
    # The first byte is fixed, so that the id never begins with a dash, which would make it an option.
    cluster = base64.urlsafe_b64encode(b"\x82" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
    tool = ["kafka.tools.StorageTool", "format", "--standalone", "-t", cluster, "-c", str(settings)]
    ran = subprocess.run([*jvm, *tool], capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise ConfigError(f"Kafka could not format {fresh}:\n{end_of(ran.stdout + ran.stderr)}")
    fresh.rename(directory / "data")


def _wait(directory: Path, pid: int) -> Broker | None:
    """The broker once it answers, or None when its process ends first."""
    deadline = time.monotonic() + _START_S
    while _is_ours(directory, pid):
        broker = status(directory)
        if broker is not None:
            return broker
        if time.monotonic() > deadline:
            _end(directory, pid)
            raise ConfigError(f"Kafka did not answer within {_START_S:.0f} s; {_tail(directory)}")
        time.sleep(0.05)
    return None


def _answers(port: int) -> bool:
    """Whether the broker serves metadata and is itself part of its cluster."""
    with contextlib.suppress(OSError, KafkaError):
        # Only once the port is open, and one attempt: kafka-python's retries are slow, and leak when refused.
        socket.create_connection((_HOST, port), timeout=1).close()
        with topics.admin([f"{_HOST}:{port}"], {"reconnect_backoff_ms": 5000}, timeout_s=3.0) as client:
            return any(not broker.get("is_fenced") for broker in client.describe_cluster()["brokers"])
    return False


def _end(directory: Path, pid: int) -> None:
    for sent, within_s in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, _STOP_S)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sent)
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if not _is_ours(directory, pid):
                return
            time.sleep(0.02)


def _erase(directory: Path) -> None:
    for pattern in _OURS:
        for path in directory.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with contextlib.suppress(OSError):  # not empty: the rest is not ours
        directory.rmdir()


def _running(directory: Path) -> int | None:
    pid = _number(directory / "pid")
    return pid if pid is not None and _is_ours(directory, pid) else None


def _is_ours(directory: Path, pid: int) -> bool:
    """A pid file may outlive its process and the number may be another's by now: the command line tells."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # a dead child of our own lingers until asked for
    if Path("/proc/self").exists():
        with contextlib.suppress(OSError):
            told = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
            for _ in range(20):  # empty for a moment after exec, whosever process it is
                if told != [""]:
                    break
                time.sleep(0.005)
                told = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
            # Empty while it ends, too; a zombie holds its port until its last thread is gone.
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            over = state in "ZX" and len(list(Path(f"/proc/{pid}/task").iterdir())) <= 1
            return not over and (told == [""] or _mark(directory) in told)
        return False
    ps = ["ps", "-ww", "-o", "args=", "-p", str(pid)]
    return f"{_mark(directory)} " in subprocess.run(ps, capture_output=True, text=True, check=False).stdout


def _mark(directory: Path) -> str:
    return f"-Dgoldline.broker={directory}"


def _number(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(path.read_text())
    return None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind((_HOST, port))
            return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One start or stop at a time in a folder; the lock falls with the process that holds it."""
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _tail(directory: Path) -> str:
    log = directory / "kafka.log"
    return f"{log} ends:\n{end_of(log.read_text(errors='replace'))}"


def main() -> None:
    """`python -m workers.dev_broker fetch`, for `make setup`."""
    if sys.argv[1:] != ["fetch"]:
        raise SystemExit("usage: python -m workers.dev_broker fetch (everything else: goldline kafka --help)")
    try:
        fetch()
    except ConfigError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
