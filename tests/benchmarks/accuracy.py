"""Image AUROC of Goldline's default, and of PaDiM with settings of ours, beside anomalib's PatchCore.

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
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import settings
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
METHODS: dict[str, dict[str, str]] = {
    "patchcore": {},
    "padim": {"dim": "384", "locally_aware": "true", "shrinkage": "0.2", "ridge": "1e-5"},
}
_PEER = Path(__file__).with_name("accuracy_peer.py")


def run(data: Path, sets: tuple[str, ...], coreset: float) -> dict[str, Any]:
    """A row for each set and method: `dataset`, `method`, `settings`, `image_auroc`, `peer_image_auroc`, and more."""
    view, rows = View(), []
    backbone = choose(Choice(), settings.Settings(), view.size)
    for name in sets:
        pictures = trial.read(data / "data" / name, view, Limits())
        started = time.monotonic()
        theirs = _peer_scores(pictures, data / "weights", coreset)
        took = time.monotonic() - started
        good = np.array([sample.defect is None for sample in pictures.samples])
        found = auroc([*map(float, theirs[good])], [*map(float, theirs[~good])])
        for method, settings_ in METHODS.items():
            ours = trial.run(pictures, method, make_config(method, settings_), backbone, seed=0).row
            rows.append(
                {
                    "dataset": name,
                    "goods": ours.goods,
                    "defects": ours.defects,
                    "method": method,
                    "settings": ", ".join(f"{key}={value}" for key, value in settings_.items()),
                    "backbone": ours.backbone,
                    "engine": ours.engine,
                    "image_auroc": ours.image_auroc,
                    "ms_per_frame": ours.ms_per_frame,
                    "peer": f"anomalib torch, resnet50v2, coreset {coreset:g}",
                    "peer_image_auroc": None if found is None else round(found, 5),
                    "fit_s": ours.fit_s,
                    "peer_s": round(took, 1),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return {"machine": machine(), "rows": rows}


def _peer_scores(pictures: trial.Pictures, weights: Path, coreset: float) -> np.ndarray[Any, Any]:
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "given.npz", Path(folder) / "scores.npy"
        np.savez(given, train=pictures.train.pixels.numpy(), test=pictures.test.pixels.numpy())
        subprocess.run([peers.python(), str(_PEER), str(given), str(weights), str(coreset), str(out)], check=True)
        scores: np.ndarray[Any, Any] = np.load(out, allow_pickle=False)
    return scores


def main() -> None:
    """As the module says."""
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    words.add_argument("--data", type=Path, default=os.environ.get("GOLDLINE_DATA"), help="has data/ and weights/")
    words.add_argument("--sets", default=",".join(SETS), help="Which, as in bottle,cubes.")
    words.add_argument("--coreset", type=float, default=PEER_CORESET, help="Share of the patches that the peer keeps.")
    words.add_argument("--json", type=Path, required=True, help="Where the figures go.")
    asked = words.parse_args()
    if asked.data is None:
        sys.exit("name the folder of data/ and weights/: GOLDLINE_DATA=DIR")
    report = run(asked.data, tuple(asked.sets.split(",")), asked.coreset)
    asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
