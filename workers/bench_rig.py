"""What benchmarks of a whole line share: small models of drawn parts, cameras in turn, every result read."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from model_store import ModelKey, ModelStore, Version
from pipeline import commissioning, methods, settings, synthetic
from pipeline.backbone import Backbone
from pipeline.data import Frame
from pipeline.decode import Limits
from pipeline.inspection import Inspector
from pipeline.view import View
from workers import clients, messages, topics
from workers.backbones import Choice, choose
from workers.camera import Camera
from workers.rig import Rig
from workers.shots import Shot

VIEW = View(size=(64, 64))
PART = "cap"
_SIDE_PX = 160
_GOODS = 40
_CORESET = 0.1
_PICTURES = 24
_TRIAL_FRAMES = 1000
_IN_FLIGHT = 16
_TRIAL_S = 60.0
_LEFT_S = 30.0
_STAT = Path("/proc/stat")


@dataclass(slots=True)
class Reader:
    """Reads every result in a thread, first one of a frame id first."""

    rig: Rig
    results: dict[str, messages.Result] = field(default_factory=dict)
    read_at: dict[str, float] = field(default_factory=dict)
    read_wall: dict[str, float] = field(default_factory=dict)
    repeats: int = 0
    newest: messages.Result | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        client = clients.tail(self.rig.settings.kafka, topics.name(self.rig.prefix, "results"))
        self._thread = threading.Thread(target=self._run, args=(client,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(10)

    def wait_for(self, frame_ids: set[str], within_s: float = _LEFT_S) -> None:
        """Until all are there, or nothing new has come for so long."""
        until, seen = time.monotonic() + within_s, -1
        while not frame_ids <= self.results.keys() and time.monotonic() < until:
            if len(self.results) != seen:
                until, seen = time.monotonic() + within_s, len(self.results)
            time.sleep(0.05)

    def _run(self, client: Any) -> None:
        while not self._stop.is_set():
            for record in clients.records(client, timeout_ms=50):
                result = messages.decode_result(record.value)
                if result is not None:
                    self.repeats += result.frame_id in self.results
                    self.results.setdefault(result.frame_id, result)
                    self.read_at.setdefault(result.frame_id, time.monotonic())
                    self.read_wall.setdefault(result.frame_id, time.time())
                    self.newest = result
        client.close()


def pictures(count: int = _PICTURES, *, first: int = 10_000) -> list[bytes]:
    """Drawn good parts as JPEG, some 4 kB each."""
    drawn = (synthetic.draw(PART, seed=first + i, size=(_SIDE_PX, _SIDE_PX)).image for i in range(count))
    return [synthetic.encode(image, format="JPEG") for image in drawn]


def backbone() -> Backbone:
    """The one that ships, as the worker opens it."""
    return choose(Choice(name="goldline-s"), settings.Settings(), VIEW.size)


def fit(store: ModelStore, net: Backbone, seeds: Sequence[int]) -> list[tuple[Inspector, Version]]:
    """A small PatchCore for each seed, stored under a key of the benchmark's own."""
    goods = [Frame(frame_id=str(i), image=image) for i, image in enumerate(pictures(_GOODS, first=0))]
    made = []
    for seed in seeds:
        inspector = commissioning.commission(
            goods,
            method="patchcore",
            config=methods.make_config("patchcore", {"coreset": _CORESET}),
            backbone=net,
            view=VIEW,
            limits=Limits(),
            rate=0.05,
            seed=seed,
        ).inspector
        made.append((inspector, store.put(ModelKey("bench/line"), inspector.save())))
    return made


def put(store: ModelStore, key: ModelKey, model: tuple[Inspector, Version]) -> None:
    """Make a model of `fit` current at a key."""
    version = store.put(key, model[0].save())
    store.promote(key, version, expected=store.current(key), who="bench")


def play(cameras: Sequence[Camera], images: Sequence[bytes], *, rate: float, count: int) -> Iterator[tuple[str, int]]:
    """Send `count` frames in turn over the cameras at `rate` a second together (0: as fast as it goes).

    Yields:
        Each frame's id and the number of its picture.
    """
    started = time.monotonic()
    for i in range(count):
        left = started + i / rate - time.monotonic() if rate else 0.0
        if left > 0:
            time.sleep(left)
        number = i % len(images)
        shot = Shot(name="drawn", image=images[number], content_type="image/jpeg")
        yield cameras[i % len(cameras)].send(shot) or "", number


def sustainable(rig: Rig, reader: Reader, stations: Sequence[str], *, recipe: str = "default") -> float:
    """Frames a second of these stations in turn that the worker decides, however long each waits.

    A frame is sent for each that is decided, so that cameras take from the machine what they take at that rate.
    """
    images = pictures()
    cameras = [Camera(rig.settings, station, recipe=recipe, deadline_ms=60_000) for station in stations]
    for count in (_TRIAL_FRAMES // 4, _TRIAL_FRAMES):  # the first time to warm up
        before, started = len(reader.results), time.monotonic()
        sent: set[str] = set()
        for frame_id, _ in play(cameras, images, rate=0.0, count=count):
            sent.add(frame_id)
            while len(sent) - (len(reader.results) - before) >= _IN_FLIGHT and time.monotonic() < started + _TRIAL_S:
                time.sleep(0.001)
        reader.wait_for(sent)
        took = max(reader.read_at[each] for each in sent) - started
    for camera in cameras:
        camera.close()
    return count / took


class Stolen:
    """What others on the same machine took of these processors, as far as the kernel was told (`/proc/stat`)."""

    def __init__(self) -> None:
        self._since = _ticks()

    def share(self) -> float:
        """Of the processors' time since the last time that it was asked; 0 where the kernel does not say."""
        before, self._since = self._since, _ticks()
        stolen, everything = (now - then for now, then in zip(self._since, before, strict=True))
        return stolen / everything if everything else 0.0


def _ticks() -> tuple[int, int]:
    """Stolen, and all: user, nice, system, idle, iowait, irq, softirq, steal."""
    try:
        counts = [int(each) for each in _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return (counts[7], sum(counts)) if len(counts) == 8 else (0, 0)


def said(results: Mapping[str, messages.Result], frame_ids: set[str]) -> dict[str, int]:
    """How often each verdict, or reason for none, was given; `lost` where there is no result."""
    words = (results[each].reason or results[each].verdict if each in results else "lost" for each in frame_ids)
    return dict(sorted(Counter(words).items()))
