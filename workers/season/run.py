"""A season from its first day to its last: the same parts for every strategy, and the report."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model_store import ModelKey, ModelStore, open_store
from model_store.pool import DiskPool
from pipeline import commissioning, methods, threads
from pipeline.backbone import Backbone, default_layers, resolve
from pipeline.commissioning import Commissioned
from pipeline.data import Frame
from pipeline.decode import Limits
from pipeline.guarantee import check_rate
from pipeline.progress import Progress, silent
from pipeline.refit_settings import Rules
from pipeline.settings import Pool
from pipeline.view import View
from workers.season import ledger
from workers.season.goldline import Goldline, sha256
from workers.season.ledger import Costs, DayOf
from workers.season.service import Service, look
from workers.season.strategies import NaiveNightly, NeverRefit, Strategy
from workers.season.world import Course, Day, World

_REMEMBERED_BYTES = 600_000_000
RULES = Rules(frames_max=150)  # a night's work takes seconds
POOL = Pool(keep=300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The station as it is commissioned, and the rules that it is kept by.

    Attributes:
        method: and its `settings`; on the backbone goldline-s.
        rate: the share of good parts that may be rejected.
        goods: that it is commissioned with; `commissioning.CALIBRATE_SHARE` of them for the threshold.
        delta: false alarms of drift, for each baseline.
    """

    method: str = "padim"
    settings: Mapping[str, str] = field(default_factory=dict)
    rate: float = 0.02
    goods: int = 500
    delta: float = 0.01


def simulate(
    course: Course, line: Line, costs: Costs, rules: Rules = RULES, *, progress: Progress = silent
) -> dict[str, Any]:
    """Play a season; models and pool are in a temporary folder.

    Returns:
        The report, for JSON.

    Raises:
        ConfigError: a value that cannot be.
    """
    check_rate(line.rate)
    with threads.limited(1):
        return _simulate(course, line, costs, rules, progress)


def _simulate(course: Course, line: Line, costs: Costs, rules: Rules, progress: Progress) -> dict[str, Any]:
    started = time.perf_counter()
    world = World(course)
    layers = default_layers("goldline-s")
    backbone = resolve("goldline-s", layers, weights=None, factories=()).remembering(_REMEMBERED_BYTES)
    with tempfile.TemporaryDirectory(prefix="goldline-season-") as folder:
        store = open_store(f"file://{folder}/models")
        strategies = _strategies(world, line, rules, store, backbone, Path(folder), progress)
        played: dict[str, list[DayOf]] = {strategy.name: [] for strategy in strategies}
        days: list[Day] = []
        for day in _drawn_ahead(world):
            progress("days", day.number, course.days)
            for name, done in _play(day, strategies).items():
                played[name].append(done)
            days.append(day)
        progress("days", course.days, course.days)
    report = _report(course, line, costs, days, played)
    return report | {"wall_s": round(time.perf_counter() - started, 1)}


def _drawn_ahead(world: World) -> Iterator[Day]:
    """Day by day, the next one drawn meanwhile."""
    with ThreadPoolExecutor(1) as drawing:
        coming = drawing.submit(world.day, 0)
        for number in range(1, world.course.days + 1):
            day = coming.result()
            if number < world.course.days:
                coming = drawing.submit(world.day, number)
            yield day


def _strategies(
    world: World, line: Line, rules: Rules, store: ModelStore, backbone: Backbone, folder: Path, progress: Progress
) -> list[Strategy]:
    """All three, beginning with the same model."""
    course = world.course
    goods = world.commissioning(line.goods)
    config = methods.make_config(line.method, dict(line.settings))
    made = commissioning.commission(
        goods,
        method=line.method,
        config=config,
        backbone=backbone,
        view=View(size=course.size),
        limits=Limits(),
        rate=line.rate,
        seed=course.seed,
        progress=progress,
    )
    services = [Service(store, ModelKey(f"season/{name}"), backbone) for name in ("never", "naive", "goldline")]
    for service in services:
        service.take(made.inspector, why="commissioned")
    never, naive, goldline = services
    held_out, learnt = _parted(goods, made)
    return [
        NeverRefit(service=never),
        NaiveNightly(service=naive, method=line.method, config=config, rate=line.rate, seed=course.seed),
        Goldline(
            service=goldline,
            pool=DiskPool(folder / "pool", POOL),
            rules=rules,
            goods=held_out,
            defects={frame.frame_id.rpartition("-")[0]: frame for frame in world.challenges()},
            learnt={sha256(frame) for frame in learnt},
            delta=line.delta,
            seed=course.seed,
        ),
    ]


def _parted(goods: list[Frame], made: Commissioned) -> tuple[list[Frame], list[Frame]]:
    """What the threshold came from, and what the model was fitted on."""
    held_out = set(made.calibrated_on)
    return [f for f in goods if f.frame_id in held_out], [f for f in goods if f.frame_id not in held_out]


def _play(day: Day, strategies: list[Strategy]) -> dict[str, DayOf]:
    """The day's parts go by, what is there for measuring is measured with the same models, then night falls."""
    services = [strategy.service for strategy in strategies]
    seen = look(services, [part.frame for part in day.parts])
    probed = look(services, [*day.probe_goods, *day.probe_defects])
    done = {}
    for strategy, of_parts, of_probe in zip(strategies, seen, probed, strict=True):
        for part, each in zip(day.parts, of_parts, strict=True):
            strategy.saw(part, each)
        night = strategy.night(day)
        done[strategy.name] = ledger.day_of(of_probe, len(day.probe_goods), day.parts, of_parts, night)
    return done


def _report(
    course: Course, line: Line, costs: Costs, days: list[Day], played: dict[str, list[DayOf]]
) -> dict[str, Any]:
    defective = {part.frame.frame_id for day in days for part in day.parts if part.defect is not None}
    first = next(iter(played.values()))
    told = ledger.rates(first)["miss_rate"] is not None
    equal_misses = ledger.misses_at(first, line.rate) if told else None
    weeks = {name: ledger.weekly(each) for name, each in played.items()}
    return {
        "course": asdict(course),
        "line": {**asdict(line), "settings": dict(line.settings)},
        "costs": asdict(costs),
        "strategies": {
            name: ledger.summary(
                each,
                defective,
                costs=costs,
                defect_rate=course.defect_rate,
                equal_false_rejects=line.rate,
                equal_misses=equal_misses,
            )
            for name, each in played.items()
        },
        "equal_false_reject_rate": line.rate,
        "equal_miss_rate": equal_misses,
        "days": [
            {
                "day": k,
                "lot": day.lot,
                "warmer_c": round(day.warmer_c, 2),
                "lamp": round(day.change.lamp, 4),
                "strategies": {name: each[k].body | {"week": weeks[name][k]} for name, each in played.items()},
            }
            for k, day in enumerate(days)
        ],
    }
