"""The search in PatchCore's bank, by bounds and as a whole product, on real sets.

`python -m tests.benchmarks.bank_search --json tests/benchmarks/bank-search.json` runs it on the folder that
GOLDLINE_DATA names. Banks are coresets of a set's good pictures; one test picture's patches are asked at a time, both
ways in turns.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.backbone import Backbone, resolve
from pipeline.coreset import select
from pipeline.decode import Limits
from pipeline.evaluation import trial
from pipeline.methods.patchcore import PatchCoreConfig, PatchCoreDetector
from pipeline.neighbours import nearest, squared_norms
from pipeline.patches import all_rows, feature_dim
from pipeline.pruning import PrunedBank
from pipeline.rounded import RoundedBank, by_product
from pipeline.speed import turns
from pipeline.view import View

SETS = ("bottle", "magnetic_tile", "deeppcb")
STRONG = "resnetv2:resnet50v2"
_LAYERS = {"goldline-s": ("layer2", "layer3"), STRONG: ("layer2a", "layer3a")}
_ROWS = (1638, 9000)
_ASKED = 8  # test pictures, from all over the set
_CORESET_DIMS = 32  # distances that a bank is chosen by are taken in so many


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One bank.

    Attributes:
        axes: of the bound; None where the bank is searched as a whole.
        bounded_ms, whole_ms: median of the turns, for the patches of one picture.
        ratio: how many times as long the whole product takes, the median of the turns' own; then their quartiles.
        around_ms, around_whole_ms: likewise, for the neighbours that re-weighting wants of one row of the bank.
        agreement: share of patches for which both name the same row, or one as far in float64.
        left: share of patches that a GPU's search would have to look for in float32; counted here, on a CPU.
    """

    dataset: str
    backbone: str
    rows: int
    dim: int
    patches: int
    axes: int | None
    bounded_ms: float
    whole_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    around_ms: float
    around_whole_ms: float
    agreement: float
    left: float


def run(data: Path, sets: Sequence[str], backbones: Sequence[str], rows: Sequence[int], repeats: int) -> dict[str, Any]:
    """A row for each set, backbone and bank that the set has patches for."""
    found = []
    for name in sets:
        pictures = trial.read(data / "data" / name, View(), Limits())
        for backbone in backbones:
            goods, asked = _patches(pictures, _opened(backbone, data))
            for count in (each for each in rows if each <= len(goods)):
                bank = goods[select(goods, count, seed=0, projection=_CORESET_DIMS)]
                found.append(measured(name, backbone, bank, asked, repeats))
                print(json.dumps(asdict(found[-1])), file=sys.stderr, flush=True)
    return {"machine": turns.machine(), "rows": [asdict(row) for row in found]}


@torch.inference_mode()
def measured(name: str, backbone: str, bank: Tensor, asked: Sequence[Tensor], repeats: int) -> Row:
    """Both searches for each picture's patches (N, D) in turn, `repeats` times each."""
    norms, pruned, k = squared_norms(bank), PrunedBank.of(bank), PatchCoreConfig().neighbours

    def whole(patches: Tensor) -> Tensor:
        return nearest(patches, bank, bank_norms=norms)[1][:, 0]

    def bounded(patches: Tensor) -> Tensor:
        return pruned.nearest(patches)[1][:, 0] if pruned else whole(patches)

    def around_whole(row: Tensor) -> Tensor:
        return nearest(bank[row], bank, k, bank_norms=norms)[1]

    def around(row: Tensor) -> Tensor:
        return pruned.around(row, k) if pruned else around_whole(row)

    rounded = RoundedBank(bank, by_product)
    settled = torch.cat([rounded.settles(each) for each in asked])
    same = [_as_far(bank, each, bounded(each), whole(each)) for each in asked]
    rows = [torch.tensor([row]) for row in range(0, len(bank), max(1, len(bank) // _ASKED))]
    searches = {"bounded": _timed(bounded, asked), "whole": _timed(whole, asked)}
    searches |= {"around": _timed(around, rows), "around_whole": _timed(around_whole, rows)}
    took = turns.measured(searches, repeats=repeats)
    ratio = took["whole"].times(took["bounded"])
    return Row(
        dataset=name,
        backbone=backbone,
        rows=len(bank),
        dim=bank.shape[1],
        patches=len(asked[0]),
        axes=pruned.axes if pruned else None,
        bounded_ms=round(took["bounded"].spread.median * 1000, 2),
        whole_ms=round(took["whole"].spread.median * 1000, 2),
        ratio=round(ratio.median, 3),
        ratio_low=round(ratio.low, 3),
        ratio_high=round(ratio.high, 3),
        around_ms=round(took["around"].spread.median * 1000, 3),
        around_whole_ms=round(took["around_whole"].spread.median * 1000, 3),
        agreement=round(float(torch.cat(same).double().mean()), 5),
        left=round(1 - float(settled.double().mean()), 5),
    )


def _as_far(bank: Tensor, patches: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """Of each patch, whether both rows of the bank are one, or as far."""
    ours, theirs = (torch.linalg.vector_norm(bank[at].double() - patches.double(), dim=1) for at in (rows, others))
    return (rows == others) | torch.isclose(ours, theirs, rtol=1e-6, atol=0)


def _timed(search: Callable[[Tensor], Tensor], asked: Sequence[Tensor]) -> Callable[[], float]:
    """Seconds for the next picture's patches."""
    turn = 0

    def once() -> float:
        nonlocal turn
        patches, turn = asked[turn % len(asked)], turn + 1
        started = time.perf_counter()
        search(patches)
        return time.perf_counter() - started

    return once


def _patches(pictures: trial.Pictures, net: Backbone) -> tuple[Tensor, list[Tensor]]:
    """The good pictures' patches (N, D), and those of some test pictures, one by one."""
    config = PatchCoreConfig()
    dim = feature_dim(tuple(net.channels.values()), config.dim)
    embeds = PatchCoreDetector(torch.zeros(config.neighbours, dim), config, pictures.train.size, net)
    test = pictures.test.pixels[:: max(1, len(pictures.test) // _ASKED)][:_ASKED]
    asked = [embeds.embed(each.unsqueeze(0)).maps["patch"] for each in test]
    goods = all_rows(pictures.train, embeds.embed, lambda *_: None)
    return goods, [each.permute(0, 2, 3, 1).reshape(-1, dim) for each in asked]


def _opened(name: str, data: Path) -> Backbone:
    if name != STRONG:
        return resolve(name, _LAYERS[name], weights=None, factories=())
    sys.path.insert(0, str(data / "weights"))
    return resolve(name, _LAYERS[name], weights=data / "weights" / "resnet50v2.safetensors", factories=[name])


def main() -> None:
    """As the module says."""
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    words.add_argument("--data", type=Path, default=os.environ.get("GOLDLINE_DATA"), help="has data/ and weights/")
    words.add_argument("--sets", default=",".join(SETS), help="Which, as in bottle,deeppcb.")
    words.add_argument("--backbones", default=",".join(_LAYERS), help="Which, as in goldline-s.")
    words.add_argument("--rows", default=",".join(map(str, _ROWS)), help="Of the banks.")
    words.add_argument("--repeats", type=int, default=48, help="Turns.")
    words.add_argument("--json", type=Path, required=True, help="Where the figures go.")
    asked = words.parse_args()
    if asked.data is None:
        sys.exit("name the folder of data/ and weights/: GOLDLINE_DATA=DIR")
    counts = [int(each) for each in asked.rows.split(",")]
    report = run(asked.data, asked.sets.split(","), asked.backbones.split(","), counts, asked.repeats)
    asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
