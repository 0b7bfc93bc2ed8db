"""How many poisoned refits go live, and what that costs, with every defence and without each.

`python -m tests.benchmarks.poisoning` attacks drawn parts, and with GOLDLINE_DATA the bottles as well: half of their
defects poison and half are golden. Attacks are those of `tests/poisoning.py`. `share` is of defective parts among the
frames that the pool is offered, at least one part; 0 is a refit without poison, to compare with. `harmful` are live
refits that lost more than a point of recall, with 95 % certainty, on defects that no rule knows: of real sets these are
the ones that poison. Rows add up all seeds.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pipeline import threads
from pipeline.backbone import default_layers, resolve
from tests import attack_pictures, poisoning
from tests.poisoning import OFF, Outcome, Target

SHARES = (0.0, 0.001, 0.01, 0.05, 0.1)
_REMEMBERED_BYTES = 1_500_000_000
_SUMS = tuple(f.name for f in fields(Outcome) if f.name not in {"alarmed", "refused"})


def attacks(target: Target, shares: Sequence[float]) -> list[dict[str, Any]]:
    """Every attack on one model, with every defence and without each."""
    rows = []
    for off in OFF:
        if off not in {"approved anchor", "drift monitors"}:  # these guard against many small steps
            rows += [_row("missed", share, off, poisoning.missed_defects(target, share, off)) for share in shares]
        rows.append(_row("slow", 1.0, off, poisoning.slow_drift(target, off)))
    rows += [
        _row(
            "missed, 70 % reported", share, "nothing", poisoning.missed_defects(target, share, "nothing", reported=0.7)
        )
        for share in shares
        if share
    ]
    return rows


def _row(attack: str, share: float, off: str, came: Outcome) -> dict[str, Any]:
    return {"attack": attack, "share": share, "without": off, **asdict(came)}


def summed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the same attack on the same source and method, over seeds."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("source", "method", "attack", "share", "without"))
        if key not in found:
            found[key] = {**row, "seeds": 1, "alarmed": int(row["alarmed"]), "refused": dict(row["refused"])}
            continue
        into = found[key]
        into["seeds"] += 1
        into["alarmed"] += int(row["alarmed"])
        for name in _SUMS:
            into[name] += row[name]
        for rule, count in row["refused"].items():
            into["refused"][rule] = into["refused"].get(rule, 0) + count
    return list(found.values())


def markdown(report: dict[str, Any]) -> str:
    """The table for people."""
    heads = (
        "source",
        "method",
        "attack",
        "share",
        "without",
        "live",
        "harmful",
        "poison learnt",
        "golden lost / found",
    )
    lines = ["| " + " | ".join((*heads, "others lost / found", "refused by")) + " |", "|" + " --- |" * (len(heads) + 2)]
    for row in report["rows"]:
        refused = ", ".join(f"{rule} {n}" for rule, n in sorted(row["refused"].items(), key=lambda p: -p[1]))
        if row["alarmed"]:
            refused = f"drift raised in {row['alarmed']} of {row['seeds']}" + (f"; {refused}" if refused else "")
        lines.append(
            f"| {row['source']} | {row['method']} | {row['attack']} | {row['share']:.1%} | {row['without']} | "
            f"{row['live']} of {row['tried']} | {row['harmful']} | {row['learnt']} of {row['poison']} | "
            f"{row['lost']} / {row['found']} | {row['others_lost']} / {row['others_found']} | {refused} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Attack, and print a table in Markdown."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--methods", nargs="*", default=["patchcore", "padim", "spade"])
    words.add_argument("--parts", nargs="*", default=["cap"], help="drawn parts")
    words.add_argument("--sets", nargs="*", default=["bottle"], help="real sets, where GOLDLINE_DATA is set")
    words.add_argument("--size", type=int, default=96, help="pixels a side")
    words.add_argument("--line", type=int, default=200, help="good drawn parts that pass by")
    words.add_argument("--seeds", type=int, default=1)
    words.add_argument("--shares", nargs="*", type=float, default=SHARES)
    words.add_argument("--json", type=Path, default=Path("tests/benchmarks/poisoning.json"))
    asked = words.parse_args()
    with threads.limited(1):
        run(asked)


def run(asked: argparse.Namespace) -> None:
    """What the command line asks for."""
    size = (asked.size, asked.size)
    net = resolve("goldline-s", default_layers("goldline-s"), weights=None, factories=())
    rows: list[dict[str, Any]] = []
    data = os.environ.get("GOLDLINE_DATA")
    for source in (*asked.parts, *(asked.sets if data else ())):
        for seed in range(asked.seeds):
            backbone = net.remembering(_REMEMBERED_BYTES)
            if source in asked.parts:
                pictures = attack_pictures.drawn(source, size=size, goods=300, line=asked.line, defects=120, seed=seed)
            else:
                pictures = attack_pictures.real(Path(str(data)) / "data" / source, size)
            for method in asked.methods:
                target = Target(pictures, method, backbone, seed=seed)
                recall = {kind: round(float(caught.mean()), 3) for kind, caught in target.caught.items()}
                found = attacks(target, asked.shares)
                rows += [{"source": source, "method": method, "seed": seed, "recall": recall, **row} for row in found]
                print(source, method, "seed", seed, "recall", recall, flush=True)
                report = {"size": size, "seeds": asked.seeds, "rows": summed(rows)}
                asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(markdown({"rows": summed(rows)}))


if __name__ == "__main__":
    main()
