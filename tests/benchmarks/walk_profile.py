"""Where a line's processor time goes at a steady rate: by process and thread, and in Python's by what the code is for.

`python -m tests.benchmarks.walk_profile --json tests/benchmarks/profile.json`, with py-spy on the path (`pip install
py-spy`). The kernel counts what each thread takes, those that Python does not know as well: the backbone's. What
Python's do comes from py-spy. A sample belongs to the innermost frame of its stack that one of the names below knows,
so that torch's own functions count for whoever called them; threads that wait are left out. The worker is not stopped
for a sample, which would make it late, so that now and then a stack is torn.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from model_store import ModelKey, open_store
from pipeline.speed.turns import machine
from workers.bench_busy import Busy, seconds_of
from workers.bench_line import in_time
from workers.bench_rate import Driven, assigned, fitted, pictures_of, shown
from workers.bench_rig import Reader, Stolen, play
from workers.camera import Camera
from workers.rig import temporary

_STATIONS = 4
_RATE_HZ = 50
_WARM_UP = 60
_PARTS = {  # a part of a path, and what its time is for; the more particular first
    "pipeline/engines": "backbone",
    "pipeline/decode": "decode and resize",
    "pipeline/view": "decode and resize",
    "pipeline/pruning": "search",
    "pipeline/neighbours": "search",
    "pipeline/remembered": "search",
    "pipeline/patches": "patches",
    "pipeline/maps": "map",
    "pipeline/heatmap": "heatmap",
    "pipeline/decide": "verdict and regions",
    "pipeline/appearance": "drift and pool",
    "pipeline/drift": "drift and pool",
    "workers/drift": "drift and pool",
    "workers/pooling": "drift and pool",
    "model_store/pool": "drift and pool",
    "workers/metrics": "metrics",
    "prometheus_client": "metrics",
    "workers/messages": "messages",
    "workers/wire": "messages",
    "workers/publish": "messages",
    "aiokafka": "Kafka's client",
    "kafka/": "Kafka's client",
    "faust": "Faust",
    "mode/": "Faust",
    "workers/": "the rest of the worker",
    "pipeline/": "the rest of the pipeline",
    "asyncio": "event loop",
}
_OTHER = "other"
_THREAD = re.compile(r"(?:[^;]*;)*?thread \((\d+)\): ([^;]*)")
_THREADS = {
    "device": "decoding, search, map, verdict",
    "MainThread": "event loop: Faust, messages, publishing",
    "Thread-": "Kafka's consumer",
    "drift": "drift and pool",
}
_OTHERS, _NATIVE = "other threads of Python", "the backbone, and others that Python does not know"
_WAITS = ("selectors.py:", "threading.py:", "concurrent/futures/thread.py:", "queues.py:", "locks.py:")
"""A thread whose innermost frame is one of these does nothing: py-spy is not sure of that when it does not stop it."""


def run(rate: float, seconds: float, size_bytes: int, spy: str) -> dict[str, Any]:
    """Drive a line of one worker, and look at it meanwhile.

    Returns:
        `cpu_ms`, what a frame takes of a core by process, `threads_ms`, of the worker's by kind of thread, `cores` that
        the worker kept busy, `stolen` (see `Stolen`) and `parts`: of the samples, the share of each.
    """
    inspector = fitted(Driven(size_bytes=size_bytes))
    images = shown(inspector, pictures_of(size_bytes), size_bytes)
    names = [f"bench/profile-{i}" for i in range(_STATIONS)]
    tree = {
        "stations": {name: {"deadline_ms": 1000} for name in names},
        "frames": {"inline_max_bytes": max(900_000, 2 * size_bytes)},
        "worker": {"threads": os.cpu_count() or 1},
    }
    with temporary(tree) as rig, tempfile.TemporaryDirectory() as folder:
        store = open_store(rig.store_url)
        for name in names:
            version = store.put(ModelKey(name), inspector.save())
            store.promote(ModelKey(name), version, expected=None, who="bench")
        worker = rig.run("worker", "worker", "--config", str(rig.config))
        assigned(rig, _STATIONS)
        cameras = [Camera(rig.settings, name) for name in names]
        with Reader(rig) as reader:
            reader.wait_for({frame_id for frame_id, _ in play(cameras, images, rate=rate, count=_WARM_UP)})
            raw, pid = Path(folder) / "raw", worker.popen.pid
            busy, stolen, started, before = Busy.of(rig), Stolen(), time.monotonic(), threads_s(pid)
            order = [spy, "record", "--pid", str(worker.popen.pid), "--duration", str(round(seconds))]
            order += ["--rate", str(_RATE_HZ), "--format", "raw", "--nonblocking", "--threads", "--output", str(raw)]
            with subprocess.Popen(order, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as looking:
                sent = {frame_id for frame_id, _ in play(cameras, images, rate=rate, count=round(rate * seconds))}
                taken, spent, took = stolen.share(), busy.seconds(), time.monotonic() - started
                threads = {thread: all_s - before.get(thread, 0.0) for thread, all_s in threads_s(pid).items()}
                _, said = looking.communicate(timeout=60)
            if looking.returncode:
                raise RuntimeError(f"py-spy: {said.strip()}")
            reader.wait_for(sent)
            decided = sum(in_time(reader.results[each]) for each in sent & reader.results.keys())
            stacks = raw.read_text(encoding="utf-8").splitlines()
        for camera in cameras:
            camera.close()
        worker.check()
    return {
        "rate_per_s": rate,
        "frame_bytes": sum(map(len, images)) // len(images),
        "frames": len(sent),
        "decided": decided,
        "engine": inspector.save().meta["backbone"]["engine"],
        "cores": round(spent["workers"] / took, 2),
        "stolen": round(taken, 3),
        "cpu_ms": {name: round(1000 * each / len(sent), 2) for name, each in spent.items()},
        "threads_ms": {name: round(1000 * each / len(sent), 2) for name, each in kinds(threads, stacks).items()},
        "parts": shares(stacks),
    }


def threads_s(pid: int) -> dict[int, float]:
    """Seconds of processors' time that each thread of a process has taken."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {int(task.name): seconds_of((task / "stat").read_text(encoding="ascii", errors="replace")) for task in tasks}


def kinds(threads: Mapping[int, float], stacks: Iterable[str]) -> dict[str, float]:
    """Seconds by kind of thread, of those that Python knows by the name that py-spy tells; largest first."""
    names = {int(each[1]): each[2] for each in map(_THREAD.match, stacks) if each}
    counted: Counter[str] = Counter()
    for thread, seconds in threads.items():
        counted[_kind(names.get(thread))] += seconds
    return dict(counted.most_common())


def _kind(name: str | None) -> str:
    if name is None:
        return _NATIVE
    return next((kind for part, kind in _THREADS.items() if name.startswith(part)), _OTHERS)


def shares(stacks: Iterable[str]) -> dict[str, float]:
    """Lines of `frame;frame;... count`, outermost first, added up by what they are for, largest first."""
    counted: Counter[str] = Counter()
    for line in stacks:
        frames, _, count = line.rpartition(" ")
        stack = frames.split(";")
        if not any(name in stack[-1] for name in _WAITS):
            counted[part_of(stack)] += int(count)
    whole = counted.total() or 1
    return {name: round(count / whole, 3) for name, count in counted.most_common()}


def part_of(stack: list[str]) -> str:
    """What the innermost frame that is known is for."""
    for frame in reversed([each for each in stack if not each.startswith("thread (")]):
        for name, part in _PARTS.items():
            if name in frame:
                return part
    return _OTHER


def main() -> None:
    """As the module says."""
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    words.add_argument("--json", type=Path, required=True, help="Where the figures go.")
    words.add_argument("--rate", type=float, default=48.0, help="Frames a second.")
    words.add_argument("--seconds", type=float, default=30.0, help="How long.")
    words.add_argument("--size", type=int, default=200_000, help="Bytes of a frame, about.")
    given = words.parse_args()
    spy = shutil.which("py-spy")
    if not spy:
        words.error("py-spy is not on the path: pip install py-spy")
    report = {"machine": machine(), **run(given.rate, given.seconds, given.size, spy)}
    given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, spent in {**report["cpu_ms"], **report["threads_ms"]}.items():
        print(f"{spent:6.2f} ms a frame  {name}")
    for name, share in report["parts"].items():
        print(f"{share:6.1%}  {name}")
    print(f"{report['cores']} cores busy, {report['decided']} of {report['frames']} frames decided")
    print(f"others on the same host took {report['stolen']:.1%} of the processors")


if __name__ == "__main__":
    main()
