"""Image AUROC of Goldline's default, and of settings of ours, beside anomalib's PatchCore.

`python -m tests.benchmarks.accuracy --json tests/benchmarks/accuracy.json` runs it on the folder that GOLDLINE_DATA
names, with the environment that `make bench-peers` makes. Both get the very same pixels, in the same run; the peer's
backbone is the ResNet-50 V2 of that folder, as it has no weights of its own without a network.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import choosing, settings
from pipeline.decode import Limits
from pipeline.evaluation import trial
from pipeline.evaluation.figures import auroc
from pipeline.methods import make_config
from pipeline.speed import peers
from pipeline.speed.turns import machine
from pipeline.view import View
from workers.backbones import Choice, choose

SETS = ("bottle", "cubes", "magnetic_tile", "deeppcb")
PEER_CORESET = 0.1  # its default
METHODS: tuple[tuple[str, dict[str, str]], ...] = (
    (choosing.AUTO, {}),
    ("patchcore", {}),
    ("patchcore", {"image_score": "map"}),
    ("padim", {"dim": "128", "embedding": "principal", "locally_aware": "true", "shrinkage": "0.2", "ridge": "1e-5"}),
    ("padim", {"dim": "384", "locally_aware": "true", "shrinkage": "0.2", "ridge": "1e-5"}),
)
_PEER = Path(__file__).with_name("accuracy_peer.py")


def run(data: Path, sets: tuple[str, ...], methods: tuple[str, ...], coreset: float, seeds: int) -> dict[str, Any]:
    """A row for each set and each of `METHODS` with one of these names.

    `image_auroc` and `peer_image_auroc` are means over seeds, with `_by_seed` the figures.
    """
    view, rows = View(), []
    backbone = choose(Choice(), settings.Settings(), view.size)
    for name in sets:
        pictures = trial.read(data / "data" / name, view, Limits())
        peer_scores = _peer_scores(pictures, data / "weights", coreset, seeds)
        good = np.array([sample.defect is None for sample in pictures.samples])
        theirs = [auroc([*map(float, each[good])], [*map(float, each[~good])]) for each in peer_scores]
        for method, settings_ in [each for each in METHODS if each[0] in methods]:
            config = None if method == choosing.AUTO else make_config(method, settings_)
            ours = [trial.run(pictures, method, config, backbone, seed=seed).row for seed in range(seeds)]
            first = ours[0]
            told = _told(settings_)
            if method == choosing.AUTO:
                took = [next(tried for tried in each.choice if tried["taken"]) for each in ours]
                told = "took " + ", ".join(f"{each['method']} {_told(each['settings'])}".strip() for each in took)
            rows.append(
                {
                    "dataset": name,
                    "goods": first.goods,
                    "defects": first.defects,
                    "method": method,
                    "settings": told,
                    "backbone": first.backbone,
                    "engine": first.engine,
                    **({"choices": [each.choice for each in ours]} if first.choice else {}),
                    **_over_seeds("image_auroc", [each.image_auroc for each in ours]),
                    "peer": f"anomalib torch, resnet50v2, coreset {coreset:g}",
                    **_over_seeds("peer_image_auroc", theirs),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return {"machine": machine(), "rows": rows}


def _told(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={str(value).lower()}" for key, value in given.items())


def _over_seeds(key: str, figures: list[float | None]) -> dict[str, Any]:
    there = [each for each in figures if each is not None]  # none, where a set has no goods or no defects
    return {
        key: round(float(np.mean(there)), 5) if there else None,
        f"{key}_by_seed": [round(each, 5) for each in there],
    }


def _peer_scores(pictures: trial.Pictures, weights: Path, coreset: float, seeds: int) -> np.ndarray[Any, Any]:
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "given.npz", Path(folder) / "scores.npy"
        np.savez(given, train=pictures.train.pixels.numpy(), test=pictures.test.pixels.numpy())
        asked = [str(given), str(weights), str(coreset), str(seeds), str(out)]
        subprocess.run([peers.python(), str(_PEER), *asked], check=True)
        scores: np.ndarray[Any, Any] = np.load(out, allow_pickle=False)
    return scores


def main() -> None:
    """As the module says."""
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    words.add_argument("--data", type=Path, default=os.environ.get("GOLDLINE_DATA"), help="has data/ and weights/")
    words.add_argument("--sets", default=",".join(SETS), help="Which, as in bottle,cubes.")
    words.add_argument("--methods", default="auto,patchcore,padim", help="Which of ours.")
    words.add_argument("--coreset", type=float, default=PEER_CORESET, help="Share of the patches that the peer keeps.")
    words.add_argument("--seeds", type=int, default=3, help="Fits with seeds 0, 1, ... of both.")
    words.add_argument("--json", type=Path, required=True, help="Where the figures go.")
    asked = words.parse_args()
    if asked.data is None:
        sys.exit("name the folder of data/ and weights/: GOLDLINE_DATA=DIR")
    sets, methods = (tuple(each.split(",")) for each in (asked.sets, asked.methods))
    report = run(asked.data, sets, methods, asked.coreset, asked.seeds)
    asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
