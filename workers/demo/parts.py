"""What the demo's cameras will see, and the truth about it: drawn parts, or a real dataset in MVTec layout."""

import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline import synthetic
from pipeline.errors import ConfigError
from pipeline.evaluation import dataset

DEFECT_SHARE = 0.2
STATIONS = ("line-1/top", "line-2/top")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One camera station of the demo.

    Attributes:
        goods: pictures to fit and calibrate on.
        frames: pictures to send, in this order; their defect, None for a good part.
        model_of: the station whose model serves here too, where both see the same parts.
    """

    station: str
    part: str
    goods: tuple[Path, ...]
    frames: tuple[tuple[Path, str | None], ...]
    model_of: str | None = None


def drawn(folder: Path, *, frames: int, goods: int, seed: int, told: Callable[[int, int], None]) -> tuple[Plan, ...]:
    """Draw two kinds of parts on two stations; every defect kind of theirs in turn, a fifth of the frames.

    Args:
        folder: where the pictures go.
        frames: of both stations together.
        goods: for fit and calibration, of each.
        seed: of everything.
        told: progress, as pictures drawn of how many.
    """
    chosen = _widest_pair()
    jobs: list[tuple[str, int, str | None, Path]] = []
    plans = []
    for number, (station, part) in enumerate(zip(STATIONS, chosen, strict=True)):
        order = random.Random(f"{seed}-{part}")  # noqa: S311 - parts, not secrets
        kinds = itertools.cycle(synthetic.defects_of(part))
        count = frames // 2 + (frames % 2 if number == 0 else 0)
        spoiled = set(order.sample(range(count), round(DEFECT_SHARE * count)))
        sent = []
        for i in range(count):
            defect = next(kinds) if i in spoiled else None
            path = folder / part / "frames" / f"{i:05d}-{defect or 'good'}.jpg"
            jobs.append((part, seed * 1_000_003 + 500_000 + i, defect, path))
            sent.append((path, defect))
        learnt = [folder / part / "goods" / f"{i:05d}.jpg" for i in range(goods)]
        jobs += [(part, seed * 1_000_003 + i, None, path) for i, path in enumerate(learnt)]
        plans.append(Plan(station=station, part=part, goods=tuple(learnt), frames=tuple(sent)))
        for kind in ("goods", "frames"):
            (folder / part / kind).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        for done, _ in enumerate(pool.map(_draw, jobs, chunksize=8), start=1):
            told(done, len(jobs))
    return tuple(plans)


def real(folder: Path, data: Path, *, frames: int | None, seed: int) -> tuple[Plan, ...]:
    """A real dataset's test pictures, shuffled and shared out to two stations that see the same kind of part.

    Args:
        folder: where links to the pictures go, so that each camera has a folder of its own.
        data: MVTec layout.
        frames: of both stations together; the test pictures once by default, again from the start beyond that.
        seed: of the order.

    Raises:
        ConfigError: the folder has no train/good or no test pictures.
    """
    goods = tuple(dataset.goods(data))
    tests = [(sample.path.resolve(), sample.defect) for sample in dataset.tests(data)]
    if not any(defect is None for _, defect in tests) or all(defect is None for _, defect in tests):
        raise ConfigError(f"{data}/test needs good and defective pictures, in test/good and test/<defect>")
    random.Random(seed).shuffle(tests)  # noqa: S311
    wanted = list(itertools.islice(itertools.cycle(tests), frames or len(tests)))
    plans = []
    for number, station in enumerate(STATIONS):
        here = folder / station.replace("/", "-")
        here.mkdir(parents=True, exist_ok=True)
        sent = []
        for i, (path, defect) in enumerate(wanted[number::2]):
            link = here / f"{i:05d}-{defect or 'good'}{path.suffix.lower()}"
            link.symlink_to(path)
            sent.append((link, defect))
        served_by = STATIONS[0] if number else None
        plans.append(Plan(station=station, part=data.name, goods=goods, frames=tuple(sent), model_of=served_by))
    return tuple(plans)


def clear(folder: Path) -> None:
    """Nothing left of an earlier run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _draw(job: tuple[str, int, str | None, Path]) -> None:
    part, seed, defect, path = job
    path.write_bytes(synthetic.encode(synthetic.draw(part, seed=seed, defect=defect).image))


def _widest_pair() -> tuple[str, str]:
    """The two kinds of part that show the most kinds of defect between them."""

    def shown(pair: tuple[str, str]) -> int:
        return len({defect for part in pair for defect in synthetic.defects_of(part)})

    pairs: Iterator[tuple[str, str]] = itertools.combinations(synthetic.PARTS, 2)
    return max(pairs, key=shown)
