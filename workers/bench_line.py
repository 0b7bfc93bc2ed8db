"""A whole line under load: swaps while frames run, a flood at one station of many, far more frames than can be scored.

Rates are shares of what this machine sustains, measured first in the same run. Parts are drawn, models small, servers
and processes real.
"""

import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from model_store import ModelKey, Version, open_store
from pipeline.data import Frame, Reason
from pipeline.footprint import footprint
from pipeline.inspection import Inspector
from workers import messages
from workers.bench_rig import Reader, Stolen, backbone, fit, pictures, play, put, said, sustainable
from workers.camera import Camera
from workers.outcomes import LOADING
from workers.rig import Rig, temporary

_FOR_WANT_OF_TIME = frozenset({Reason.LATE, Reason.SHED})
_PATIENCE = 10  # times as many frames as asked for, while a swap is waited for
_TOLERANCE = 1e-4  # relative, of scores recomputed on the same engine


def swaps(*, frames: int, times: int, share: float, deadline_ms: int = 300) -> dict[str, Any]:
    """Two models in turn at one station, while frames run at a share of the sustainable rate.

    A swap is due every `frames / (times + 1)` frames, and waits until a result has named the version before. So frames
    run until each swap was seen, and more than `frames` of them where loading takes long, ten times as many at most.

    Returns:
        Among others `lost`, `late` and `mismatched`: results whose score is not that of the version they name;
        `swap_s`, median and most seconds from a promotion to the first result read that names it.
    """
    station = "bench/swaps"
    net = backbone()
    with temporary({"stations": {station: {"deadline_ms": deadline_ms}}, "store": {}}) as rig:
        store, key = open_store(rig.store_url), ModelKey(station)
        made = fit(store, net, (0, 1))
        versions = [store.put(key, inspector.save()) for inspector, _ in made]
        store.promote(key, versions[0], expected=None, who="bench")
        worker = rig.run("worker", "worker", "--config", str(rig.config))
        rig.wait_for(worker, "assigned")
        with Reader(rig) as reader:
            most = sustainable(rig, reader, [station])
            rate, images = share * most, pictures()
            camera = Camera(rig.settings, station)
            sent: dict[str, int] = {}
            promoted_at, took = [time.monotonic()], list[float]()
            for frame_id, number in play([camera], images, rate=rate, count=_PATIENCE * frames):
                sent[frame_id] = number
                done = len(promoted_at) - 1
                if done > len(took) and _named(reader.newest) == versions[done % 2]:
                    took.append(time.monotonic() - promoted_at[-1])
                if done > len(took) or len(sent) < (done + 1) * frames / (times + 1):
                    continue
                if done == times:
                    break
                old, new = versions[done % 2], versions[(done + 1) % 2]
                store.promote(key, new, expected=old, who="bench", why=f"swap {done + 1}")
                promoted_at.append(time.monotonic())
            camera.close()
            reader.wait_for(set(sent))
        worker.check()
    expected = [_scores(inspector, images) for inspector, _ in made]
    named = list(filter(None, (_named(reader.results.get(each)) for each in sent)))
    return {
        "frames": len(sent),
        "sustainable_per_s": round(most, 1),
        "rate_per_s": round(rate, 1),
        "promotions": len(promoted_at) - 1,
        "swaps_seen": sum(a != b for a, b in itertools.pairwise(named)),
        "swap_s": {"p50": round(median(took), 2), "max": round(max(took), 2)} if took else {},
        "said": said(reader.results, set(sent)),
        "lost": len(sent.keys() - reader.results.keys()),
        "repeats": reader.repeats,
        "late": sum(reader.results[each].late for each in sent.keys() & reader.results.keys()),
        "mismatched": sum(
            _differs(reader.results[each], number, versions, expected)
            for each, number in sent.items()
            if each in reader.results
        ),
    }


def _named(result: messages.Result | None) -> Version | None:
    return Version(result.model.version) if result is not None and result.model is not None else None


def stations(
    *,
    count: int,
    recipes: int,
    flood: float,
    seconds: float,
    share: float,
    turns: int = 3,
    deadline_ms: int = 500,
    budget_models: int | None = None,
) -> dict[str, Any]:
    """Many stations and recipes in one worker, in turn at one rate each and with one that sends `flood` times as much.

    At one rate each the stations together take `share` of what is sustained. In turn, because a machine's own speed
    changes from one minute to the next. At each turn every station goes over to another product. Memory is for
    `budget_models` models, two thirds of them unless given. `seconds` are of each, all its turns together.

    Returns:
        For `even` and for `flooded` what was said to the station that floods and to the others; `others_late` had a
        verdict too late, or none for want of time, and `others_loading` of these waited for their model; frames
        decided in time of the one that floods and of the worst of the others; and for each turn what share of the
        processors' time others on the same machine took, where it is a virtual one.
    """
    names = [f"bench/s{i:02d}" for i in range(count)]
    products = [f"p{i}" for i in range(recipes)]
    net = backbone()
    tree = {"stations": {name: {"recipes": products, "deadline_ms": deadline_ms} for name in names}}
    rig = temporary(tree)
    store = open_store(rig.store_url)
    made = fit(store, net, range(recipes))
    budget_bytes = (budget_models or count * recipes * 2 // 3) * footprint(made[0][0])
    rig.tree["worker"] = {"models_max_mb": max(1, round(budget_bytes / 1e6))}
    with rig:
        for name in names:
            for product, model in zip(products, made, strict=True):
                put(store, ModelKey(name, product), model)
        worker = rig.run("worker", "worker", "--config", str(rig.config))
        rig.wait_for(worker, "worker started")
        _all_assigned(rig, worker, count)
        with Reader(rig) as reader:
            most = sustainable(rig, reader, names, recipe=products[0])
            base, images = share * most / count, pictures()
            cameras = [Camera(rig.settings, name) for name in names]

            def turn(number: int, factor: float) -> _Turn:
                """Each station at its next product, one of them at so many times the rate of each other."""
                for i, camera in enumerate(cameras):
                    camera.recipe = products[(i + number) % recipes]
                stolen = Stolen()
                with ThreadPoolExecutor(2) as drivers:
                    flooding = drivers.submit(_ids, cameras[:1], images, base * factor, seconds / turns)
                    others = drivers.submit(_ids, cameras[1:], images, base * (count - 1), seconds / turns)
                    sent = flooding.result(), others.result()
                reader.wait_for(sent[0] | sent[1])
                return _Turn(*sent, stolen=stolen.share())

            played = [turn(number, factor) for number, factor in enumerate((1.0, flood) * turns)]
            for camera in cameras:
                camera.close()
        worker.check()
        loads = worker.log.read_text(encoding="utf-8").count('"event": "model in service"')
    return {
        "stations": count,
        "recipes": recipes,
        "flood": flood,
        "sustainable_per_s": round(most, 1),
        "share": share,
        "models_loaded": loads,
        "repeats": reader.repeats,
        "even": {"offered_per_s": round(base * count, 1), **_of_each(played[::2], reader, names)},
        "flooded": {"offered_per_s": round(base * (count - 1 + flood), 1), **_of_each(played[1::2], reader, names)},
    }


@dataclass(frozen=True, slots=True)
class _Turn:
    """Ids of the frames that were sent, of the station that floods and of the others, and what was stolen meanwhile."""

    flood: set[str]
    others: set[str]
    stolen: float


def _ids(cameras: Sequence[Camera], images: Sequence[bytes], rate: float, seconds: float) -> set[str]:
    return {frame_id for frame_id, _ in play(cameras, images, rate=rate, count=round(rate * seconds))}


def _of_each(turns: Sequence[_Turn], reader: Reader, names: Sequence[str]) -> dict[str, Any]:
    flood, others = (set().union(*(getattr(turn, group) for turn in turns)) for group in ("flood", "others"))
    found = reader.results
    late = {each for each in others & found.keys() if found[each].late or found[each].reason in _FOR_WANT_OF_TIME}
    decided = Counter(found[each].station for each in (flood | others) & found.keys() if in_time(found[each]))
    return {
        "flood": said(found, flood),
        "others": said(found, others),
        "others_late": len(late),
        "others_loading": sum(LOADING in (found[each].detail or "") for each in late),
        "decided": {"flood": decided[names[0]], "worst_other": min(decided[name] for name in names[1:])},
        "turns": [
            {"stolen": round(turn.stolen, 3), "others": len(turn.others), "others_late": len(turn.others & late)}
            for turn in turns
        ],
    }


def in_time(result: messages.Result) -> bool:
    """Whether there is a decision, and not too late."""
    return result.reason is None and not result.late


def overload(
    *, factor: float, seconds: float, size: int, deadline_ms: int = 300, after_s: float = 30.0
) -> dict[str, Any]:
    """`factor` times as many frames as can be decided, then half as many for `after_s`.

    Returns:
        Among others the worker's memory at the start, at most, and after; and how long after the end of the flood the
        first second was in which every frame was decided in time.
    """
    station = "bench/overload"
    net = backbone()
    images = [image + b"\0" * max(0, size - len(image)) for image in pictures()]  # a JPEG ends before its file does
    with temporary({"stations": {station: {"deadline_ms": deadline_ms}}}) as rig:
        store = open_store(rig.store_url)
        put(store, ModelKey(station), fit(store, net, (0,))[0])
        worker = rig.run("worker", "worker", "--config", str(rig.config))
        rig.wait_for(worker, "assigned")
        with Reader(rig) as reader:
            most = sustainable(rig, reader, [station])
            memory = [_resident_bytes(worker.popen.pid)]
            camera = Camera(rig.settings, station)
            flooded: set[str] = set()
            started = next_look = time.monotonic()
            for frame_id, _ in play([camera], images, rate=factor * most, count=round(factor * most * seconds)):
                flooded.add(frame_id)
                if time.monotonic() > next_look:
                    memory.append(_resident_bytes(worker.popen.pid))
                    next_look += 1.0
            ended = time.monotonic()
            after: dict[str, float] = {}
            for frame_id, _ in play([camera], images, rate=most / 2, count=round(most / 2 * after_s)):
                after[frame_id] = time.monotonic()
            camera.close()
            reader.wait_for(flooded | after.keys())
            memory.append(_resident_bytes(worker.popen.pid))
        worker.check()
    return {
        "sustainable_per_s": round(most, 1),
        "offered_per_s": round(factor * most, 1),
        "achieved_per_s": round(len(flooded) / (ended - started), 1),
        "seconds": seconds,
        "flood": said(reader.results, flooded),
        "after": said(reader.results, set(after)),
        "lost": len((flooded | after.keys()) - reader.results.keys()),
        "memory_mb": {
            "start": memory[0] // 1_000_000,
            "most": max(memory) // 1_000_000,
            "after": memory[-1] // 1_000_000,
        },
        "recovered_after_s": _recovered(reader.results, after, ended),
    }


def _scores(inspector: Inspector, images: Sequence[bytes]) -> list[float]:
    frames = [Frame(frame_id=str(i), image=image) for i, image in enumerate(images)]
    return [verdict.score for verdict in inspector.inspect(frames).verdicts]


def _differs(
    result: messages.Result, number: int, versions: Sequence[Version], expected: Sequence[Sequence[float]]
) -> bool:
    if result.score is None or result.model is None:
        return False
    wanted = expected[versions.index(Version(result.model.version))][number]
    return abs(result.score - wanted) > _TOLERANCE * abs(wanted)


def _recovered(results: Mapping[str, messages.Result], after: Mapping[str, float], ended: float) -> float | None:
    """Seconds from `ended` to the last frame that was not decided in time; None if the end was not better."""
    bad = [at for frame_id, at in after.items() if frame_id not in results or results[frame_id].late]
    bad += [at for frame_id, at in after.items() if frame_id in results and results[frame_id].reason]
    if not bad:
        return 0.0
    last = max(bad)
    return round(last - ended, 2) if last < max(after.values()) - 1.0 else None


def _all_assigned(rig: Rig, worker: Any, count: int) -> None:
    until = time.monotonic() + 60
    while worker.log.read_text(encoding="utf-8").count('"event": "assigned"') < count:
        worker.check()
        if time.monotonic() > until:
            raise TimeoutError(f"{rig.directory}: not every partition was assigned: {worker.last_words()}")
        time.sleep(0.1)


def _resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))
