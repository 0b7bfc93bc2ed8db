"""The kinds of stores that one suite holds to the same promises, and processes to race with."""

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import redis
import torch

from model_store import ModelKey, ModelStore, Version
from pipeline.data import Artifact

KEY = ModelKey("line-1/top", "default")
OTHER = ModelKey("line-1/side", "sku-7.b")
DAY_S = 86400.0


@dataclass(frozen=True)
class Backend:
    """A kind of store. `read` and `write` reach a model's raw bytes behind its back, to damage them.

    `age` makes a version as if it was last put or used so many days ago; `objects` are the models there is anything of.
    """

    name: str
    url: Callable[[Path], str]
    read: Callable[[Path, Version], bytes]
    write: Callable[[Path, Version, bytes | None], None]
    age: Callable[[Path, ModelKey, Version, float], None]
    objects: Callable[[Path], set[str]]


def disk_blob(folder: Path, version: Version) -> Path:
    return folder / "store" / "objects" / version[:2] / version


def disk_write(folder: Path, version: Version, data: bytes | None) -> None:
    path = disk_blob(folder, version)
    path.unlink()
    if data is not None:
        path.write_bytes(data)


def disk_age(folder: Path, key: ModelKey, version: Version, days: float) -> None:
    entry = folder.joinpath("store", "models", *key.station.split("/"), key.recipe, "versions", f"{version}.json")
    entry.with_suffix(".used").unlink(missing_ok=True)
    for path in (entry, disk_blob(folder, version)):
        os.utime(path, (time.time() - days * DAY_S,) * 2)


def disk_objects(folder: Path) -> set[str]:
    return {path.name for path in (folder / "store" / "objects").glob("*/*") if not path.name.startswith(".")}


BACKENDS = [
    Backend(
        name="disk",
        url=lambda folder: f"file://{folder}/store",
        read=lambda folder, version: disk_blob(folder, version).read_bytes(),
        write=disk_write,
        age=disk_age,
        objects=disk_objects,
    ),
]


def in_redis(folder: Path) -> redis.Redis:
    host, port = os.environ["GOLDLINE_TEST_REDIS"].split(":")
    return redis.Redis(host, int(port))


def redis_chunk(folder: Path, version: Version) -> str:
    return f"{folder.name}:object:{version}:0"


def redis_write(folder: Path, version: Version, data: bytes | None) -> None:
    with in_redis(folder) as client:
        if data is None:
            client.delete(redis_chunk(folder, version))
        else:
            client.set(redis_chunk(folder, version), data)


def redis_read(folder: Path, version: Version) -> bytes:
    with in_redis(folder) as client:
        return client.get(redis_chunk(folder, version))


def redis_age(folder: Path, key: ModelKey, version: Version, days: float) -> None:
    with in_redis(folder) as client:
        client.hset(f"{folder.name}:used:{key.station}:{key.recipe}", version, time.time() - days * DAY_S)


def redis_objects(folder: Path) -> set[str]:
    with in_redis(folder) as client:
        return {name.decode().split(":")[2] for name in client.scan_iter(f"{folder.name}:object:*", count=1000)}


BACKENDS.append(
    Backend(
        name="redis",
        url=lambda folder: f"redis://{os.environ['GOLDLINE_TEST_REDIS']}/0?prefix={folder.name}&cache={folder}/cache",
        read=redis_read,
        write=redis_write,
        age=redis_age,
        objects=redis_objects,
    )
)


def model(n: float = 0.0) -> Artifact:
    tensors = {
        "bank": torch.full((40, 6), n),
        "half": torch.full((3,), n, dtype=torch.bfloat16),
        "index": torch.arange(5),
        "mask": torch.tensor([True, False]),
        "pixels": torch.arange(7, dtype=torch.uint8),
        "nothing": torch.empty(0, 3),
    }
    return Artifact(method="padim", tensors=tensors, meta={"n": n, "layers": ["layer1"]})


def put_current(store: ModelStore, n: float, key: ModelKey = KEY) -> Version:
    version = store.put(key, model(n))
    store.promote(key, version, expected=store.current(key), who="ana")
    return version


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["model_store.disk", "torch"])


def run_together(target, arguments):
    processes = [FORKS.Process(target=target, args=args) for args in arguments]
    for process in processes:
        process.start()
    return processes


def finish(processes):
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(processes)
