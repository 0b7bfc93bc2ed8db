"""Whether this checkout is slower beside its peers than score.json says: `make bench-check`, by hand, not in CI.

The file's rows are measured anew, ours and the peers' in turns, and the ratios compared: the machine's mood hits both.
A ratio is worse if it fell by more than the noise of both runs explains: 3 standard errors, and 3 % at least. The
standard error of a median of n turns is 0.93 IQR / sqrt(n), as for turns that are spread normally (McGill, Tukey and
Larsen, Variations of Box Plots, 1978), and those of the four medians in two ratios add up in squares.
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

FILE = Path(__file__).parent / "score.json"
KEY = ("method", "settings", "backbone", "bank_rows", "batch", "device", "precision", "size", "peer", "peer_bank_rows")
_ONE_RUN = ("method", "settings", "backbone", "bank_rows", "device", "size", "peer_bank_rows")
SIGMAS = 3.0
FLOOR = 0.03


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


def main() -> None:
    """Measure anew, compare, print; exit status 1 where a ratio is worse."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--against", type=Path, default=FILE, help="what `goldline bench score --peers --json` wrote")
    words.add_argument("--repeats", type=int, default=15, help="turns")
    asked = words.parse_args()
    if not asked.against.exists():
        sys.exit(f"no {asked.against}: make it first, with goldline bench score --peers --json {asked.against}")
    before = json.loads(asked.against.read_text(encoding="utf-8"))
    rows = [row for row in before["rows"] if row.get("ratio") is not None]
    if not rows:
        sys.exit(f"{asked.against} has no ratios: it was made without --peers")
    if (now := turns.machine())["cpu"] != before["machine"]["cpu"]:
        print(f"another machine: {before['machine']['cpu']} then, {now['cpu']} now; ratios hold less across them")
    after = [asdict(row) for each in again(rows, repeats=asked.repeats) for row in score.run(each)]
    found = compare(rows, after)
    for each in found:
        verdict = "WORSE" if each.worse else "better" if each.change > each.noise else "same"
        print(f"{verdict:7}{each.row}: {each.before:g} -> {each.after:g} ({each.change:+.1%}, noise {each.noise:.1%})")
    missing = len(rows) - len(found)
    if missing:
        print(f"{missing} rows of {asked.against.name} could not be measured here: their engine or peer is missing")
    sys.exit(1 if missing or any(each.worse for each in found) else 0)


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
        old, new = (
            row["peer_ms_per_image"] / row["ms_per_image"],
            now[key]["peer_ms_per_image"] / now[key]["ms_per_image"],
        )
        sigma = math.hypot(error_of(row), error_of(now[key]))
        found.append(
            Compared(
                row=" ".join(map(_said, (each for each in key if each not in (None, ())))),
                before=round(old, 2),
                after=round(new, 2),
                change=new / old - 1,
                noise=max(FLOOR, SIGMAS * sigma),
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
    ours = (row["ms_high"] - row["ms_low"]) / row["ms_per_image"]
    theirs = (row["peer_ms_high"] - row["peer_ms_low"]) / row["peer_ms_per_image"]
    return 0.93 * math.hypot(ours, theirs) / math.sqrt(row["turns"])


if __name__ == "__main__":
    main()
