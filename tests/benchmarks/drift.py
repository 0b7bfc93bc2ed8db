"""Drift on drawn parts: how soon each kind is raised, and how often an alarm is false.

`python -m tests.benchmarks.drift` draws good parts and drifting ones, measures each picture once, and plays them in
many orders: a run is REFERENCE_FRAMES + `--baseline` good pictures, then the drifting ones. A false alarm is any
monitor's in a run of good pictures alone; delays count from where the drift begins. Lamp, camera and colour change in
the drawn scene itself, before the camera's curve and noise. Pictures, as the model sees them, are 224 px wide; without
`--no-score` a PaDiM on goldline-s scores them, and frames it rejects are not given to the score's monitor.
"""

import argparse
import json
import os
import statistics
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.appearance import Appearance, measure
from pipeline.drift import MONITORS, REFERENCE_FRAMES, Drift, decode, encode
from pipeline.synthetic import PARTS, Change, parts, scene
from pipeline.synthetic.change import NONE

SIZE = (224, 224)
DELTA = 0.01
DRIFTING = 200
_CHUNK = 20
_START = datetime(2025, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a run knows of a picture; `score` is None for a frame that was rejected."""

    appearance: Appearance
    score: float | None


DRIFTS: dict[str, Callable[[int], Change]] = {  # k-th part after it began -> what is changed
    "lamp ages 0.1 % a part": lambda k: Change(lamp=1 - 0.001 * k),
    "lamp ages 0.05 % a part": lambda k: Change(lamp=1 - 0.0005 * k),
    "defocus grows 0.005 px a part": lambda k: Change(blur_px=0.005 * k),
    "defocus of 0.7 px": lambda _: Change(blur_px=0.7),
    "camera bumped by 5 px": lambda _: Change(shift_px=5),
    "camera bumped by 2 px": lambda _: Change(shift_px=2),
    "camera turned by 1 degree": lambda _: Change(turn_deg=1),
    "colour lot 5 % redder": lambda _: Change(lot=(1.05, 1.0, 1.0)),
    "colour lot 10 % redder": lambda _: Change(lot=(1.1, 1.0, 1.0)),
    "colour lot 10 % greener": lambda _: Change(lot=(1.0, 1.1, 1.0)),
}


def picture(part: str, seed: int, change: Change = NONE) -> NDArray[np.uint8]:
    """A good part under a change: (224, 224, 3)."""
    rng = np.random.default_rng([zlib.crc32(part.encode()), seed])
    setting = change.scene(scene.arrange(part, rng, SIZE))
    surface = change.surface(scene.pose(parts.sheet(part, min(SIZE)), setting))
    return scene.photograph(change.lens(scene.render(surface, setting)), rng)


def play(pictures: Sequence[Seen], *, delta: float, seed: int) -> dict[str, int]:
    """The frame, counted from 0, at which each monitor of a new baseline raised its alarm."""
    return follow(Drift(delta, rng=Random(seed)), pictures)


def follow(drift: Drift, pictures: Sequence[Seen], *, first: int = 0) -> dict[str, int]:
    """The same of monitors that go on; the first picture has the number `first`."""
    raised = {}
    for k, seen in enumerate(pictures, start=first):
        at = _START + timedelta(seconds=k)
        for each in drift.see(seen.appearance, score=seen.score, version="v", at=at, frame_id=str(k)):
            raised[each.monitor] = k
    return raised


def draw(
    part: str, seeds: Sequence[int], drift: Callable[[int], Change], score: "Score", *, first: int = 0
) -> list[Seen]:
    """Pictures of as many parts, each as it looks at its step of a drift, from step `first` on."""
    found: list[Seen] = []
    for k in range(0, len(seeds), 16):
        some = [picture(part, seed, drift(first + k + i)) for i, seed in enumerate(seeds[k : k + 16])]
        pixels = torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2)
        found += [Seen(*each) for each in zip(measure(pixels), score(pixels), strict=True)]
    return found


Score = Callable[[torch.Tensor], list[float | None]]


def no_score(pixels: torch.Tensor) -> list[float | None]:
    """For runs without a model."""
    return [None] * len(pixels)


def fitted(part: str) -> Score:
    """A PaDiM on 80 good parts of its own, with a threshold from 80 others."""
    from pipeline.backbone import resolve  # noqa: PLC0415
    from pipeline.data import Images  # noqa: PLC0415
    from pipeline.decide import calibrate  # noqa: PLC0415
    from pipeline.methods import fit, make_config  # noqa: PLC0415

    def goods(first: int) -> torch.Tensor:
        return torch.from_numpy(np.stack([picture(part, first + k) for k in range(80)])).permute(0, 3, 1, 2)

    net = resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())
    detector = fit("padim", Images(goods(2_000_000)), make_config("padim", {}), backbone=net, seed=0)
    threshold = calibrate(detector.score(detector.embed(goods(3_000_000))), rate=0.005).image

    def score(pixels: torch.Tensor) -> list[float | None]:
        return [s if s <= threshold else None for s in detector.score(detector.embed(pixels)).image.tolist()]

    return score


def shuffled(goods: Sequence[Seen], count: int, seed: int) -> list[Seen]:
    """So many of the good pictures, in an order of this seed's."""
    return Random(seed).sample(goods, count)


def run(part: str, *, baseline: int, runs: int, good_runs: int, sequences: int, score: Score) -> dict[str, Any]:
    """Every drift at one part."""
    before = REFERENCE_FRAMES + baseline
    goods = draw(part, range(2 * before), lambda _: Change(), score)
    false = [play(shuffled(goods, len(goods), seed), delta=DELTA, seed=seed) for seed in range(good_runs)]
    row: dict[str, Any] = {
        "part": part,
        "good_runs": good_runs,
        "good_frames": len(goods),
        "runs_with_a_false_alarm": sum(map(bool, false)),
        "drifts": {},
    }
    states = []
    for seed in range(runs):
        watched = Drift(DELTA, rng=Random(seed))
        if not follow(watched, shuffled(goods, before, seed)):  # after a false alarm a delay would mean nothing
            states.append(encode(watched.baseline))
    for number, (name, drift) in enumerate(DRIFTS.items()):
        raised: list[dict[str, int]] = []
        for sequence in range(sequences):
            begin = 1_000_000 + (number * sequences + sequence) * DRIFTING
            raised += _delays(part, drift, begin, states[sequence::sequences], score)
        row["drifts"][name] = _summary(raised)
        print(part, name, row["drifts"][name], flush=True)
    return row


def _delays(
    part: str, drift: Callable[[int], Change], begin: int, states: Sequence[bytes], score: Score
) -> list[dict[str, int]]:
    """What each state's monitors raise first when a drift begins; the pictures are drawn until all have."""
    watched = [Drift(DELTA, decode(state), rng=Random(k)) for k, state in enumerate(states)]
    raised: list[dict[str, int]] = [{} for _ in states]
    for first in range(0, DRIFTING, _CHUNK):
        some = draw(part, range(begin + first, begin + first + _CHUNK), drift, score, first=first)
        for each, found in zip(watched, raised, strict=True):
            if not found:
                found.update(follow(each, some, first=first))
        if all(raised):
            break
    return raised


def _summary(raised: Sequence[dict[str, int]]) -> dict[str, Any]:
    parts = [min(found.values()) + 1 for found in raised if found]
    return {
        "runs": len(raised),
        "raised": len(parts),
        "parts_median": statistics.median(parts) if parts else None,
        "parts_max": max(parts, default=None),
        "first": Counter(min(found, key=found.__getitem__) for found in raised if found),
    }


def cost() -> dict[str, float]:
    """Milliseconds of this thread for a frame at 224 px: measuring the picture, and all monitors."""
    pixels = torch.from_numpy(np.stack([picture("gear", k) for k in range(64)])).permute(0, 3, 1, 2)
    measure(pixels)
    started = time.thread_time()
    seen = measure(pixels)
    measured = time.thread_time() - started
    many = [Seen(each, float(np.random.default_rng(k).normal(10, 1))) for k, each in enumerate(seen * 40)]
    started = time.thread_time()
    play(many, delta=1e-9, seed=0)
    return {
        "measure_ms": round(measured / len(seen) * 1000, 3),
        "monitors_ms": round((time.thread_time() - started) / len(many) * 1000, 3),
    }


def markdown(report: dict[str, Any]) -> str:
    """The table for people."""
    lines = ["| part | drift | raised | parts until then, median / most | seen first by |", "|" + " --- |" * 5]
    for row in report["rows"]:
        for name, found in row["drifts"].items():
            by = ", ".join(f"{monitor} {n}" for monitor, n in sorted(found["first"].items(), key=lambda p: -p[1]))
            lines.append(
                f"| {row['part']} | {name} | {found['raised']} of {found['runs']} | "
                f"{found['parts_median']} / {found['parts_max']} | {by} |"
            )
        false = f"{row['runs_with_a_false_alarm']} of {row['good_runs']} runs of {row['good_frames']} frames"
        lines.append(f"| {row['part']} | none | {false} | | |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print JSON and a table in Markdown."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--parts", nargs="*", default=list(PARTS))
    words.add_argument("--baseline", type=int, default=200, help="good frames before the drift, after the reference's")
    words.add_argument("--runs", type=int, default=20, help="of each drift at each part")
    words.add_argument("--good-runs", type=int, default=200, help="of good pictures alone, at each part")
    words.add_argument("--sequences", type=int, default=2, help="drifting sequences that are drawn for each drift")
    words.add_argument("--no-score", action="store_true")
    words.add_argument("--json", type=Path, default=Path("tests/benchmarks/drift.json"))
    asked = words.parse_args()
    torch.set_num_threads(1)
    costs = cost()
    report: dict[str, Any] = {
        "delta": DELTA,
        "monitors": list(MONITORS),
        "baseline_frames": asked.baseline,
        "scored": not asked.no_score,
        "machine": f"{os.cpu_count()} cores, torch {torch.__version__}",
        "cost": costs,
        "rows": [],
    }
    for part in asked.parts:
        row = run(
            part,
            baseline=asked.baseline,
            runs=asked.runs,
            good_runs=asked.good_runs,
            sequences=asked.sequences,
            score=no_score if asked.no_score else fitted(part),
        )
        report["rows"].append(row)
        asked.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(costs))
    print(markdown(report))


if __name__ == "__main__":
    main()
