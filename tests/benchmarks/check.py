"""Whether this checkout is slower than the code that the checked-in figures are of: `make bench-check`, by hand.

Each file names its commit. That commit's code and this one's take turns in one run, and in another this one's and the
peers', where there is an environment for them. What counts is how many times as long the commit's code takes in the
same turns: a ratio to a peer of another hour falls by a quarter with the caches that a host's other guests leave, and
is printed beside. Two processes of the same code differ by some per cent for as long as they live, by where memory put
them; so several pairs of processes are measured, one after another, and the change is the mean of theirs. Code is worse
where that is below 1 by more than noise explains: 4 standard errors, and 3 % at least. The standard error is that of
the mean of the pairs, or what their turns leave, whichever is larger; a median of n turns has 0.93 IQR / sqrt(n), as
for turns that are spread normally (McGill, Tukey and Larsen, Variations of Box Plots, 1978). Where that would excuse
more than 20 % nothing is known: such a row fails, too, and wants more turns.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.speed import peers, score, turns
from workers.progress_bars import shown

ROOT = Path(__file__).parents[2]
FILES = tuple(Path(__file__).with_name(f"{name}.json") for name in ("score", "score-default", "score-padim"))
KEY = ("method", "settings", "backbone", "bank_rows", "batch", "device", "precision", "size")
_OF_PEER = (*KEY, "peer", "peer_bank_rows")
_ONE_RUN = ("method", "settings", "backbone", "bank_rows", "device", "precision", "size", "peer_bank_rows")
SIGMAS = 4.0
FLOOR = 0.03
UNKNOWN = 0.2
PAIRS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """This code beside the file's commit, and the file's ratios to peers beside today's.

    Attributes:
        row: what was measured, in words.
        change: of the speed by the code, as a share; below 0 it is slower.
        noise: what of a change means nothing, as a share.
        ratios: by peer, what the file says and what it is today, None where the peer was not measured.
    """

    row: str
    change: float
    noise: float
    ratios: Mapping[str, tuple[float, float | None]]

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

    def __str__(self) -> str:
        """As lines for people."""
        lines = [f"{self.said:7}{self.row}: {self.change:+.1%} by the code (noise {self.noise:.1%})"]
        for peer, (then, now) in self.ratios.items():
            today = "not measured" if now is None else f"{now} ({now / then - 1:+.1%})"
            lines.append(f"       {'':4}{peer}: {then} in the file, today {today}")
        return "\n".join(lines)


def main() -> None:
    """Measure anew, compare, print; exit status 1 where code is worse, or nobody knows."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument(
        "--against", type=Path, nargs="+", default=FILES, help="what `goldline bench score --peers --json` wrote"
    )
    words.add_argument("--repeats", type=int, default=9, help="turns of each pair of processes")
    words.add_argument("--pairs", type=int, default=PAIRS, help="pairs of processes, which take so many times as long")
    asked = words.parse_args()
    try:
        peers.python()
    except ConfigError as error:
        print(f"{error}\nwithout them only the code is compared")
        beside_peers = False
    else:
        beside_peers = True
    if min(asked.repeats, asked.pairs) < 1:
        words.error("--repeats and --pairs are 1 at least")
    failed = [path for path in asked.against if not _holds(path, asked.repeats, asked.pairs, beside_peers=beside_peers)]
    sys.exit(1 if failed else 0)


def _holds(path: Path, repeats: int, pairs: int, *, beside_peers: bool) -> bool:
    """Whether nothing of this file is slower now; says so, row by row."""
    if not path.exists():
        sys.exit(f"no {path}: make it first, with goldline bench score --peers --json {path}")
    before = json.loads(path.read_text(encoding="utf-8"))
    rows, then = before["rows"], before["machine"]
    if not rows:
        sys.exit(f"{path} has no rows: make it again")
    now = turns.machine()
    print(f"{path.name}, of {then.get('commit') or 'an unknown commit'}")
    for name in [each for each in ("cpu", "torch", "openvino") if then.get(each) != now[each]]:
        print(f"{name}: {then.get(name)} then, {now[name]} now; what that does is in the ratios to peers alone")
    with checked_out(str(then.get("commit", ""))) as folder:
        asked = pairs * again(rows, repeats=repeats, beside_peers=False, checkout=folder)
        if beside_peers:  # by themselves: what they leave in caches is most of the noise
            asked += again(rows, repeats=repeats, beside_peers=True, checkout=None)
        after = []
        for i, each in enumerate(asked):
            print(
                f"run {i + 1} of {len(asked)}: {each.methods[0]}, {each.backbones[0]}, {each.engines[0]}",
                file=sys.stderr,
            )
            after += [asdict(row) for row in _measured(each)]
    found = compare(rows, after)
    for each in found:
        print(each)
    if missing := len({_key(row, KEY) for row in rows}) - len(found):
        print(f"{missing} rows of {path.name} could not be measured here: what runs them is missing")
    if any(each.said == "NOISY" for each in found):
        print(f"a noisy row tells nothing: try again when the machine is quiet, or with --repeats {2 * repeats}")
    return not missing and not any(each.said in {"WORSE", "NOISY"} for each in found)


def _measured(asked: score.Asked) -> list[score.Row]:
    """Nothing where an engine or the commit's code does not run here: the rows are missing then."""
    try:
        with shown() as progress:
            return score.run(asked, progress=progress)
    except ConfigError as error:
        print(error)
        return []


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A folder with that commit's code, for as long as it takes."""
    if commit.endswith("+"):
        print("the file's code differed from its commit, and is measured without what differed")
    with tempfile.TemporaryDirectory() as folder:
        clone = ["git", "clone", "--quiet", "--shared", "--no-checkout", str(ROOT), folder]
        checkout = ["git", "-C", folder, "checkout", "--quiet", "--detach", commit.rstrip("+")]
        known = re.fullmatch(r"[0-9a-f]{7,40}\+?", commit)
        if not known or any(subprocess.run(order, check=False).returncode for order in (clone, checkout)):
            sys.exit(f"no commit {commit!r} here: git fetch --unshallow gets all there are, or make the file again")
        yield Path(folder)


def again(
    rows: Sequence[Mapping[str, Any]], *, repeats: int, beside_peers: bool, checkout: Path | None
) -> list[score.Asked]:
    """What to ask for to have the rows again: a run for each of all but batches.

    All engines of both checkouts at once, each in a process of its own, would take too much memory.
    """
    runs: dict[tuple[Any, ...], list[int]] = {}
    for row in rows:
        batches = runs.setdefault(_key(row, _ONE_RUN), [])
        if row["batch"] not in batches:
            batches.append(row["batch"])
    return [
        score.Asked(
            methods=[method],
            settings=dict(settings),
            backbones=[backbone],
            bank_rows=[bank] if bank else (),
            batches=batches,
            engines=[engine],
            device=device,
            size=size,
            repeats=repeats,
            peers=beside_peers,
            peer_bank=peer_bank or 0,
            checkout=checkout,
        )
        for (method, settings, backbone, bank, device, engine, size, peer_bank), batches in runs.items()
    ]


def compare(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[Compared]:
    """What the rows of before measure, each once, where after has it beside the checkout."""
    checkouts: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in after:
        if row["peer"] and peers.is_checkout(row["peer"]):
            checkouts.setdefault(_key(row, KEY), []).append(row)
    today = {_key(row, _OF_PEER): row["ratio"] for row in after}
    found = []
    for key in dict.fromkeys(_key(row, KEY) for row in before):
        if (code := checkouts.get(key)) is None:
            continue
        then = [row for row in before if _key(row, KEY) == key and row["ratio"] is not None]
        found.append(
            Compared(
                row=" ".join(map(_said, (each for each in key if each not in (None, ())))),
                change=statistics.fmean(pair["ratio"] for pair in code) - 1,
                noise=max(FLOOR, SIGMAS * error_of(code)),
                ratios={row["peer"]: (row["ratio"], today.get(_key(row, _OF_PEER))) for row in then},
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


def error_of(pairs: Sequence[Mapping[str, Any]]) -> float:
    """Standard error of the mean ratio of these rows, pairs of processes that measured the same, as a share of it."""
    ratios = [pair["ratio"] for pair in pairs]
    of_turns = [0.93 * (pair["ratio_high"] - pair["ratio_low"]) / math.sqrt(pair["turns"]) for pair in pairs]
    within = math.sqrt(statistics.fmean(each**2 for each in of_turns))
    between = statistics.stdev(ratios) if len(ratios) > 1 else 0.0
    return max(within, between) / math.sqrt(len(ratios)) / statistics.fmean(ratios)


if __name__ == "__main__":
    main()
