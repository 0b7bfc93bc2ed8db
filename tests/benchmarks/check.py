"""Whether this checkout is slower beside its peers than the checked-in figures say: `make bench-check`, by hand.

The files' rows are measured anew, ours and the peers' in turns, and the ratios compared: the machine's mood hits both.
A ratio, the median of its turns', is worse if it fell by more than the noise of both runs explains: 3 standard errors,
and 3 % at least. The standard error of a median of n turns is 0.93 IQR / sqrt(n), as for turns that are spread normally
(McGill, Tukey and Larsen, Variations of Box Plots, 1978), and those of two runs add up in squares. Where that would
excuse more than 20 % nothing is known: such a row fails, too, and wants more turns.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.speed import score, turns

FILES = tuple(Path(__file__).with_name(f"{name}.json") for name in ("score", "score-default", "score-padim"))
KEY = ("method", "settings", "backbone", "bank_rows", "batch", "device", "precision", "size", "peer", "peer_bank_rows")
_ONE_RUN = ("method", "settings", "backbone", "bank_rows", "device", "size", "peer_bank_rows")
SIGMAS = 3.0
FLOOR = 0.03
UNKNOWN = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A ratio then and now.

    Attributes:
        change: of the ratio, as a share; below 0 it is worse.
        noise: what of a change means nothing, as a share.
    """

    row: str
    before: float
    after: float
    change: float
    noise: float

    @property
    def worse(self) -> bool:
        """Whether that is more than noise."""
        return self.change < -self.noise

    @property
    def said(self) -> str:
        """In a word."""
        if self.worse:
            return "WORSE"
        if self.noise > UNKNOWN:
            return "NOISY"
        return "better" if self.change > self.noise else "same"


def main() -> None:
    """Measure anew, compare, print; exit status 1 where a ratio is worse, or nobody knows."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument(
        "--against", type=Path, nargs="+", default=FILES, help="what `goldline bench score --peers --json` wrote"
    )
    words.add_argument("--repeats", type=int, default=25, help="turns")
    asked = words.parse_args()
    failed = [path for path in asked.against if not _holds(path, asked.repeats)]
    sys.exit(1 if failed else 0)


def _holds(path: Path, repeats: int) -> bool:
    """Whether no ratio of this file is worse now; says so, row by row."""
    if not path.exists():
        sys.exit(f"no {path}: make it first, with goldline bench score --peers --json {path}")
    before = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for row in before["rows"] if row.get("ratio_low") is not None]
    if not rows:
        sys.exit(f"{path} has no ratios with quartiles: make it again, with --peers")
    if (now := turns.machine())["cpu"] != before["machine"]["cpu"]:
        print(f"another machine: {before['machine']['cpu']} then, {now['cpu']} now; ratios hold less across them")
    after = [asdict(row) for each in again(rows, repeats=repeats) for row in score.run(each)]
    found = compare(rows, after)
    for each in found:
        print(f"{each.said:7}{each.row}: {each.before} -> {each.after} ({each.change:+.1%}, noise {each.noise:.1%})")
    missing = len(rows) - len(found)
    if missing:
        print(f"{missing} rows of {path.name} could not be measured here: their engine or peer is missing")
    if any(each.said == "NOISY" for each in found):
        print(f"a noisy row tells nothing: try again when the machine is quiet, or with --repeats {2 * repeats}")
    return not missing and not any(each.said in {"WORSE", "NOISY"} for each in found)


def again(rows: Sequence[Mapping[str, Any]], *, repeats: int) -> list[score.Asked]:
    """What to ask for to have the rows again: a run for each method, backbone, bank, device, size and peer's bank."""
    runs: dict[tuple[Any, ...], dict[str, list[Any]]] = {}
    for row in rows:
        run = runs.setdefault(_key(row, _ONE_RUN), {})
        for name in ("batch", "precision"):
            values = run.setdefault(name, [])
            if row[name] not in values:
                values.append(row[name])
    return [
        score.Asked(
            methods=[method],
            settings=dict(settings),
            backbones=[backbone],
            bank_rows=[bank] if bank else (),
            batches=run["batch"],
            engines=run["precision"],
            device=device,
            size=size,
            repeats=repeats,
            peers=True,
            peer_bank=peer_bank or 0,
        )
        for (method, settings, backbone, bank, device, size, peer_bank), run in runs.items()
    ]


def compare(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[Compared]:
    """Each row of before that is in after, too."""
    now = {_key(row, KEY): row for row in after}
    found = []
    for row in before:
        key = _key(row, KEY)
        if key not in now:
            continue
        old, new = row["ratio"], now[key]["ratio"]
        found.append(
            Compared(
                row=" ".join(map(_said, (each for each in key if each not in (None, ())))),
                before=old,
                after=new,
                change=new / old - 1,
                noise=max(FLOOR, SIGMAS * math.hypot(error_of(row), error_of(now[key]))),
            )
        )
    return found


def _key(row: Mapping[str, Any], names: Sequence[str]) -> tuple[Any, ...]:
    """These values; settings, which older reports lack, as pairs."""
    return tuple(
        tuple(sorted((row.get(name) or {}).items())) if name == "settings" else row.get(name) for name in names
    )


def _said(value: Any) -> str:
    return " ".join(f"{name}={each}" for name, each in value) if isinstance(value, tuple) else str(value)


def error_of(row: Mapping[str, Any]) -> float:
    """Standard error of a row's ratio, as a share of it."""
    return float(0.93 * (row["ratio_high"] - row["ratio_low"]) / row["ratio"] / math.sqrt(row["turns"]))


if __name__ == "__main__":
    main()
