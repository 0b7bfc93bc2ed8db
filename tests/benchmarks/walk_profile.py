"""Where a worker's processor time goes at a steady rate: a profile by py-spy, added up by what the code is for.

`python -m tests.benchmarks.walk_profile --json tests/benchmarks/profile.json`, with py-spy on the path (`pip install
py-spy`). A sample belongs to the innermost frame of its stack that one of the names below knows, so that torch's own
functions count for whoever called them; threads that wait are left out. The worker is not stopped for a sample, which
would make it late, so that now and then a stack is torn. What runs in threads that Python does not
know (a backbone's second core) is not in it: `cores` is the whole, as the kernel counts it.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model_store import ModelKey, open_store
from pipeline.speed.turns import machine
from workers.bench_line import in_time
from workers.bench_rate import assigned, fitted, pictures_of
from workers.bench_rig import Reader, Stolen, play
from workers.camera import Camera
from workers.rig import temporary

_STATION = "bench/profile"
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
_WAITS = ("selectors.py:", "threading.py:", "concurrent/futures/thread.py:", "queues.py:", "locks.py:")
"""A thread whose innermost frame is one of these does nothing: py-spy is not sure of that when it does not stop it."""


def run(rate: float, seconds: float, size_bytes: int, spy: str) -> dict[str, Any]:
    """Drive one station, and look at its worker meanwhile.

    Returns:
        `cores` that the worker kept busy, `stolen` (see `Stolen`) and `parts`: of the samples, the share of each.
    """
    images = pictures_of(size_bytes)
    inspector = fitted(size_bytes, "patchcore")
    tree = {
        "stations": {_STATION: {"deadline_ms": 1000}},
        "frames": {"inline_max_bytes": max(900_000, 2 * size_bytes)},
        "worker": {"threads": os.cpu_count() or 1},
    }
    with temporary(tree) as rig, tempfile.TemporaryDirectory() as folder:
        store = open_store(rig.store_url)
        version = store.put(ModelKey(_STATION), inspector.save())
        store.promote(ModelKey(_STATION), version, expected=None, who="bench")
        worker = rig.run("worker", "worker", "--config", str(rig.config))
        assigned(rig, 1)
        camera = Camera(rig.settings, _STATION)
        with Reader(rig) as reader:
            reader.wait_for({frame_id for frame_id, _ in play([camera], images, rate=rate, count=_WARM_UP)})
            raw = Path(folder) / "raw"
            started, before, stolen = time.monotonic(), _busy_s(worker.popen.pid), Stolen()
            order = [spy, "record", "--pid", str(worker.popen.pid), "--duration", str(round(seconds))]
            order += ["--rate", str(_RATE_HZ), "--format", "raw", "--nonblocking", "--threads", "--output", str(raw)]
            with subprocess.Popen(order, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as looking:
                sent = {frame_id for frame_id, _ in play([camera], images, rate=rate, count=round(rate * seconds))}
                cores, taken = _cores(worker.popen.pid, before, started), stolen.share()
                _, said = looking.communicate(timeout=60)
            if looking.returncode:
                raise RuntimeError(f"py-spy: {said.strip()}")
            reader.wait_for(sent)
            decided = sum(in_time(reader.results[each]) for each in sent & reader.results.keys())
            parts = shares(raw.read_text(encoding="utf-8").splitlines())
        camera.close()
        worker.check()
    return {
        "rate_per_s": rate,
        "frame_bytes": sum(map(len, images)) // len(images),
        "frames": len(sent),
        "decided": decided,
        "cores": round(cores, 2),
        "stolen": round(taken, 3),
        "parts": parts,
    }


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


def _cores(pid: int, before: float, started: float) -> float:
    return (_busy_s(pid) - before) / (time.monotonic() - started)


def _busy_s(pid: int) -> float:
    """Seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """As the module says."""
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    words.add_argument("--json", type=Path, required=True, help="Where the figures go.")
    words.add_argument("--rate", type=float, default=12.0, help="Frames a second.")
    words.add_argument("--seconds", type=float, default=30.0, help="How long.")
    words.add_argument("--size", type=int, default=200_000, help="Bytes of a frame, about.")
    given = words.parse_args()
    spy = shutil.which("py-spy")
    if not spy:
        words.error("py-spy is not on the path: pip install py-spy")
    report = {"machine": machine(), **run(given.rate, given.seconds, given.size, spy)}
    given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, share in report["parts"].items():
        print(f"{share:6.1%}  {name}")
    print(f"{report['cores']} cores busy, {report['decided']} of {report['frames']} frames decided")
    print(f"others on the same host took {report['stolen']:.1%} of the processors")


if __name__ == "__main__":
    main()
