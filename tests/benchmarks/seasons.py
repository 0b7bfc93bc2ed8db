"""What refits save and cost in several seasons of drawn parts: `goldline simulate season`, one row a strategy.

`python -m tests.benchmarks.seasons --json tests/benchmarks/seasons.json` plays the seasons that README tells of, as
many at once as there are cores, each in a process of one thread: some minutes of processor time each.
"""

import argparse
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import threads
from pipeline.speed.turns import machine
from workers.season import run as season
from workers.season.ledger import Costs
from workers.season.world import Course

SEASONS = ((0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0), (0, 3.0), (3, 3.0))
DAYS = 90


def rows_of(days: int, seed: int, changes: float) -> list[dict[str, Any]]:
    """A season's strategies, with what `goldline simulate season --json` says of each."""
    report = season.simulate(Course(days=days, seed=seed, changes=changes), season.Line(), Costs())
    of_all = {"seed": seed, "changes": changes, "wall_s": report["wall_s"]}
    return [{**of_all, "strategy": name, **found} for name, found in report["strategies"].items()]


def played(seasons: Sequence[tuple[int, float]], days: int) -> Iterator[dict[str, Any]]:
    """Rows of all seasons, in their order."""
    with ProcessPoolExecutor(threads.cores(), mp_context=multiprocessing.get_context("spawn")) as processes:
        under_way = [processes.submit(rows_of, days, seed, changes) for seed, changes in seasons]
        for each in under_way:
            yield from each.result()


def main() -> None:
    """As the module says."""
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    words.add_argument("--days", type=int, default=DAYS, help="How long each is.")
    words.add_argument("--json", type=Path, required=True, help="Where the figures go.")
    asked = words.parse_args()
    rows = []
    for row in played(SEASONS, asked.days):
        print(json.dumps(row), flush=True)
        rows.append(row)
    said = {"course": asdict(Course(days=asked.days)), "line": asdict(season.Line()), "costs": asdict(Costs())}
    for varied in ("seed", "changes"):
        del said["course"][varied]
    report = {"machine": machine(), **said, "rows": rows}
    asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
