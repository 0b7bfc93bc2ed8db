"""The table of backbones: what goldline-s costs and finds, beside its teacher, other sizes and random weights.

`make backbones` runs it on the folder that GOLDLINE_DATA names. Milliseconds are medians of one picture at 224x224,
alone; figures are those of PatchCore with a 1 % coreset, whole frame, seed 0; all rows come from one run.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pipeline import engines, synthetic
from pipeline.backbone import Backbone, resolve
from pipeline.decode import Limits
from pipeline.evaluation import trial
from pipeline.methods import make_config
from pipeline.view import View

SETS = ("bottle", "magnetic_tile", "deeppcb", "cubes")
TEACHER = "resnetv2:resnet50v2"
OWN_LAYERS = ("layer2", "layer3")
VIEW = View()


def main() -> None:
    """Measure, and print JSON and a table in Markdown."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--data", type=Path, default=os.environ.get("GOLDLINE_DATA"), help="has data/ and weights/")
    words.add_argument("--students", nargs="*", type=Path, default=[], help="weights files of further students")
    words.add_argument("--json", type=Path, default=Path("tests/benchmarks/backbones.json"))
    words.add_argument("--times", action="store_true", help="measure the milliseconds of the rows in JSON anew, alone")
    asked = words.parse_args()
    if asked.data is None:
        sys.exit("name the folder of data/ and weights/: GOLDLINE_DATA=DIR")
    if asked.times:
        print(markdown(_timed(asked.json, _backbones(asked.data, asked.students))))
        return
    with tempfile.TemporaryDirectory() as drawn:
        pictures = [trial.read(folder, VIEW, Limits()) for folder in _folders(asked.data, Path(drawn))]
    rows = [_row(name, net, pictures) for name, net in _backbones(asked.data, asked.students)]
    asked.json.write_text(json.dumps({"machine": _machine(), "rows": rows}, indent=2) + "\n", encoding="utf-8")
    print(markdown(rows))


def _timed(file: Path, backbones: list[tuple[str, Backbone]]) -> list[dict[str, Any]]:
    """The rows of an earlier run with times of now: what else ran then does not slow these."""
    report = json.loads(file.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = report["rows"]
    if [row["backbone"] for row in rows] != [name for name, _ in backbones]:
        sys.exit(f"{file} is of other backbones: name the same --students")
    for row, (_, net) in zip(rows, backbones, strict=True):
        row["ms"] = {engine: _milliseconds(net.on(engine)) for engine in engines.candidates(torch.device("cpu"))}
    file.write_text(json.dumps({**report, "times_machine": _machine()}, indent=2) + "\n", encoding="utf-8")
    return rows


def _folders(data: Path, drawn: Path) -> list[Path]:
    for part in synthetic.PARTS:
        synthetic.write_dataset(drawn / part, part, goods=100, test_goods=40, defects_each=6, seed=3)
    return [*(data / "data" / name for name in SETS), *(drawn / part for part in synthetic.PARTS)]


def _backbones(data: Path, students: list[Path]) -> list[tuple[str, Backbone]]:
    sys.path.insert(0, str(data / "weights"))
    best = engines.candidates(torch.device("cpu"))[-1]
    file = data / "weights" / "resnet50v2.safetensors"
    found = [
        (
            "teacher: ResNet-50 v2",
            resolve(TEACHER, ("layer2a", "layer3a"), weights=file, factories=[TEACHER], engine=best),
        ),
        ("goldline-s", resolve("goldline-s", OWN_LAYERS, weights=None, factories=(), engine=best)),
    ]
    found += [(p.stem, resolve("goldline-s", OWN_LAYERS, weights=p, factories=(), engine=best)) for p in students]
    random = resolve("goldline-s", OWN_LAYERS, weights=None, random_weights=True, factories=(), engine=best)
    return [*found, ("goldline-s, random weights", random)]


def _row(name: str, net: Backbone, pictures: list[trial.Pictures]) -> dict[str, Any]:
    config = make_config("patchcore", {})
    figures = {}
    for each in pictures:
        row = trial.run(each, "patchcore", config, net, seed=0).row
        figures[row.dataset] = {"image_auroc": row.image_auroc, "pixel_auroc": row.pixel_auroc}
        print(f"{name}: {row.dataset} {row.image_auroc} {row.pixel_auroc}", file=sys.stderr)
    return {
        "backbone": name,
        "parameters": sum(p.numel() for p in net.parameters()),
        "engine": net.spec.engine,
        "ms": {engine: _milliseconds(net.on(engine)) for engine in engines.candidates(torch.device("cpu"))},
        "figures": figures,
    }


def _milliseconds(net: Backbone) -> float:
    picture = torch.randint(0, 256, (1, 3, *VIEW.size), dtype=torch.uint8)
    times = []
    for _ in range(40):
        started = time.perf_counter()
        net(picture)
        times.append((time.perf_counter() - started) * 1000)
    return round(statistics.median(times[10:]), 2)


def _machine() -> str:
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")), "?")
    return f"{os.cpu_count()} cores, {model}, torch {torch.__version__}"


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table for the model card."""
    sets, kinds = list(rows[0]["figures"]), list(rows[0]["ms"])
    head = ["backbone", "parameters", *(f"ms {kind}" for kind in kinds), *sets]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        found = [row["figures"][name] for name in sets]
        shown = [
            f"{f['image_auroc']:.3f}" + (f" / {f['pixel_auroc']:.3f}" if f["pixel_auroc"] is not None else "")
            for f in found
        ]
        costs = [f"{row['ms'][kind]:.1f}" for kind in kinds]
        lines.append("| " + " | ".join([row["backbone"], f"{row['parameters'] / 1e6:.1f} M", *costs, *shown]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
