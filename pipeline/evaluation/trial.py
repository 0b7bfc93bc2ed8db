"""One method on one dataset: fit on train/good, score the test set, and every figure that the set allows."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import tiling
from pipeline.backbone import Backbone
from pipeline.commissioning import decode_all, rotated, score_all
from pipeline.data import Frame, Images
from pipeline.decode import Limits
from pipeline.errors import ConfigError
from pipeline.evaluation import dataset
from pipeline.evaluation.dataset import Sample
from pipeline.evaluation.figures import aupro, auroc, average_precision, misses_at, pixel_auroc
from pipeline.methods.base import Detector
from pipeline.progress import Progress, silent
from pipeline.view import View, see

RATES = (0.01, 0.005, 0.001)
_TIMED = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Figures of one trial; None where the set does not allow one. Times in seconds and milliseconds.

    Attributes:
        misses_at: by rate of false rejects among the test goods, the share of defects that pass.
        ms_per_frame: embed and score, one picture at a time, median.
        left_out: good pictures that it was not fitted on, by their paths in the dataset.
    """

    dataset: str
    method: str
    backbone: str
    engine: str
    seed: int
    image_auroc: float | None
    pixel_auroc: float | None
    aupro_030: float | None
    aupro_005: float | None
    average_precision: float | None
    misses_at: dict[str, float | None]
    goods: int
    defects: int
    fit_s: float
    ms_per_frame: float
    bank_bytes: int
    left_out: list[str]

    def body(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A row and what it rests on.

    Attributes:
        samples: the test pictures that could be read.
        scores: (N,) of them.
        maps: (N, H, W) of them.
        pixels: (N, 3, H, W) uint8, as the model saw them.
    """

    row: Row
    samples: list[Sample]
    scores: NDArray[np.float32]
    maps: NDArray[np.float32]
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """A dataset's pictures as a model sees them, decoded once for all methods."""

    name: str
    view: View
    train: Images
    test: Images
    samples: list[Sample]
    masks: NDArray[np.bool_] | None
    left_out: list[str]


def read(
    folder: Path, view: View, limits: Limits, *, without: Sequence[str] = (), progress: Progress = silent
) -> Pictures:
    """Decode a dataset in MVTec layout; `without` as in `dataset.goods`.

    Masks: positive where more than half, after a nearest resize; there are none unless every defect has its own.

    Raises:
        ConfigError: no pictures to learn from or to test.
    """
    goods = dataset.goods(folder, without)
    train = decode_all([Frame(frame_id=str(p), image=p.read_bytes()) for p in goods], view, limits, progress)
    listed = dataset.tests(folder)
    test = decode_all([Frame(frame_id=str(s.path), image=s.path.read_bytes()) for s in listed], view, limits, progress)
    readable = set(test.frame_ids)
    samples = [sample for sample in listed if str(sample.path) in readable]
    if not samples:
        raise ConfigError(f"no readable test picture in {folder}")
    masked = all(sample.mask for sample in samples if sample.defect)
    masks = np.stack([_mask(sample, view) for sample in samples]) if masked else None
    return Pictures(
        name=folder.name,
        view=view,
        train=train.images,
        test=test.images,
        samples=samples,
        masks=masks,
        left_out=dataset.left_out(folder, goods),
    )


def run(
    pictures: Pictures,
    method: str,
    config: object,
    backbone: Backbone,
    *,
    rotations: int = 1,
    seed: int,
    progress: Progress = silent,
) -> Trial:
    """Fit and score; `rotations` as in `commissioning.commission`.

    Raises:
        FitError: the pictures are too few.
    """
    started = time.perf_counter()
    detector = tiling.fit(
        method,
        Images(rotated(pictures.train.pixels, rotations)),
        config,
        tiles=pictures.view.tiles,
        size=pictures.view.size,
        backbone=backbone,
        seed=seed,
        progress=progress,
    )
    fit_s = time.perf_counter() - started
    scored = score_all(detector, pictures.test, progress=progress)
    scores, maps = scored.image.numpy(), scored.map.numpy()
    artifact = detector.save()
    goods = [float(v) for v, s in zip(scores, pictures.samples, strict=True) if s.defect is None]
    defects = [float(v) for v, s in zip(scores, pictures.samples, strict=True) if s.defect is not None]
    masks = pictures.masks if artifact.meta.get("localises", True) else None
    row = Row(
        dataset=pictures.name,
        method=method,
        backbone=backbone.spec.name,
        engine=backbone.spec.engine,
        seed=seed,
        image_auroc=_rounded(auroc(goods, defects)),
        pixel_auroc=_rounded(pixel_auroc(maps, masks)) if masks is not None else None,
        aupro_030=_rounded(aupro(maps, masks, 0.3)) if masks is not None else None,
        aupro_005=_rounded(aupro(maps, masks, 0.05)) if masks is not None else None,
        average_precision=_rounded(average_precision(goods, defects)),
        misses_at={f"{rate:g}": _rounded(misses_at(goods, defects, rate)) for rate in RATES},
        goods=len(goods),
        defects=len(defects),
        fit_s=round(fit_s, 3),
        ms_per_frame=round(_ms_per_frame(detector, pictures.test), 3),
        bank_bytes=sum(t.numel() * t.element_size() for t in artifact.tensors.values()),
        left_out=pictures.left_out,
    )
    return Trial(row=row, samples=pictures.samples, scores=scores, maps=maps, pixels=pictures.test.pixels.numpy())


def mean_of(rows: Sequence[Row]) -> dict[str, float | None]:
    """Means over seeds of the figures that every row has."""
    means: dict[str, float | None] = {}
    for name in ("image_auroc", "pixel_auroc", "aupro_030", "aupro_005", "average_precision", "fit_s", "ms_per_frame"):
        values = [getattr(row, name) for row in rows]
        means[name] = None if None in values else round(statistics.fmean(values), 4)
    return means


def _ms_per_frame(detector: Detector, images: Images) -> float:
    times = []
    for at in range(min(_TIMED, len(images))):
        one = images.pixels[at : at + 1]
        started = time.perf_counter()
        detector.score(detector.embed(one)).image.cpu()
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def _mask(sample: Sample, view: View) -> NDArray[np.bool_]:
    if sample.mask is None:
        return np.zeros(view.seen, np.bool_)
    with Image.open(sample.mask) as opened:
        grey = opened.convert("L")
    box = view.box((grey.height, grey.width))
    return see(grey, box, view.seen, Image.Resampling.NEAREST) > 127


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
