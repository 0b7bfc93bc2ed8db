"""What attacks on a refit are made of: goods and defects, drawn or from a dataset in MVTec layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data import Frame
from pipeline.evaluation import dataset
from pipeline.synthetic import defects_of, draw, encode

Picture: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """What attacks are made of; no part twice.

    Attributes:
        goods: to commission with; `line`: further good parts, as they pass by.
        defects: to poison with; `golden`: those that the review knows; `others`: those that nobody knows.
        worse: good parts without and with a defect, (H, W, 3) each, for the slow attack.
        size: (H, W) that a model sees.
    """

    goods: Sequence[Frame]
    line: Sequence[Frame]
    defects: Sequence[Frame]
    golden: Sequence[Frame]
    others: Sequence[Frame]
    worse: Sequence[tuple[Picture, Picture]]
    size: tuple[int, int]


def blend(good: Picture, bad: Picture, share: float) -> Picture:
    """A good part with so much of a defect."""
    return (good + share * (bad.astype(np.float32) - good)).round().astype(np.uint8)


def drawn(
    part: str,
    *,
    size: tuple[int, int],
    goods: int,
    line: int,
    defects: int,
    golden: int = 102,
    others: int = 102,
    seed: int = 0,
) -> Pictures:
    """Pictures of a drawn part, so many of each use; as many defects of each kind as of any other."""
    kinds = defects_of(part)
    first = 1_000_000 * (seed + 1)

    def some(start: int, count: int, *, spoilt: bool) -> list[Frame]:
        found = []
        for k in range(start, start + count):
            kind = kinds[k % len(kinds)] if spoilt else None
            found.append(
                Frame(
                    frame_id=f"{kind or 'good'}-{k}",
                    image=encode(draw(part, seed=first + k, defect=kind, size=size).image),
                )
            )
        return found

    worse = [
        (draw(part, seed=k, size=size).image, draw(part, seed=k, defect=kinds[k % len(kinds)], size=size).image)
        for k in range(first + 900_000, first + 900_000 + defects)
    ]
    return Pictures(
        goods=some(0, goods, spoilt=False),
        line=some(10_000, line, spoilt=False),
        defects=some(20_000, defects, spoilt=True),
        golden=some(30_000, golden, spoilt=True),
        others=some(40_000, others, spoilt=True),
        worse=worse,
        size=size,
    )


def real(folder: Path, size: tuple[int, int]) -> Pictures:
    """A dataset in MVTec layout whose defects have masks; for the slow attack each is pasted into a good part."""
    goods = [_frame(path, size) for path in dataset.goods(folder)]
    samples = [s for s in dataset.tests(folder) if s.defect is not None]
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    half = len(order) // 2
    poison, golden = order[:half], order[half:]
    plain = [_read(path, size) for path in dataset.goods(folder)[:40]]
    worse = [_pasted(plain[k % len(plain)], samples[i], size) for k, i in enumerate(order) if samples[i].mask]
    return Pictures(
        goods=goods[:140],
        line=goods[140:],
        defects=[_frame(samples[i].path, size) for i in poison],
        golden=[_frame(samples[i].path, size) for i in golden],
        others=[_frame(samples[i].path, size) for i in poison],
        worse=worse,
        size=size,
    )


def _read(path: Path, size: tuple[int, int], mode: str = "RGB") -> Picture:
    with Image.open(path) as image:
        return np.asarray(image.convert(mode).resize(size[::-1], Image.Resampling.BILINEAR))


def _frame(path: Path, size: tuple[int, int]) -> Frame:
    return Frame(frame_id=f"{path.parent.name}-{path.stem}", image=encode(_read(path, size), format="PNG"))


def _pasted(good: Picture, sample: dataset.Sample, size: tuple[int, int]) -> tuple[Picture, Picture]:
    assert sample.mask is not None
    mask = _read(sample.mask, size, "L") > 127
    return good, np.where(mask[..., None], _read(sample.path, size), good)
