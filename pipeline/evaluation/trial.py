"""One method on one dataset: fit on train/good, score the test set, and every figure that the set allows."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import choosing, tiling
from pipeline.backbone import Backbone
from pipeline.commissioning import decode_all, rotated, score_all
from pipeline.data import Frame, Images
from pipeline.decode import Limits
from pipeline.devices import CPU
from pipeline.errors import ConfigError
from pipeline.evaluation import dataset, masks
from pipeline.evaluation.dataset import Sample
from pipeline.evaluation.figures import aupro, auroc, average_precision, misses_at, pixel_auroc
from pipeline.methods.base import Detector
from pipeline.progress import Progress, silent
from pipeline.view import View

RATES = (0.01, 0.005, 0.001)
_TIMED = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Figures of one trial; None where the set does not allow one. Times in seconds and milliseconds.

    Attributes:
        choice: what was tried of planted defects, where the good pictures chose the method; else nothing.
        settings: the method's, defaults included.
        view: how pictures are seen: size, crop, tiles and so on, whether there is a region of interest, and the turns
            that goods are learnt in.
        misses_at: by rate of false rejects among the test goods, the share of defects that pass; None where that rate
            is less than one of them.
        ms_per_frame: embed and score, one picture at a time, median.
        learnt_from: how many good pictures it was fitted on.
        left_out: good pictures that it was not fitted on, by their paths in the dataset.
        unreadable: pictures that could not be read and are in no figure, likewise.
        lost_masks: defects with no pixel of their mask left where the model looks, likewise: too small to outlast the
            resize, or outside of the view. In figures of pixels nothing of them is to be found.
    """

    dataset: str
    method: str
    choice: list[dict[str, Any]]
    backbone: str
    engine: str
    seed: int
    settings: dict[str, Any]
    view: dict[str, Any]
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
    learnt_from: int
    left_out: list[str]
    unreadable: list[str]
    lost_masks: list[str]

    @property
    def title(self) -> str:
        """The method, and whether it was chosen."""
        return f"{choosing.AUTO}: {self.method}" if self.choice else self.method

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
        localises: whether the maps say where.
    """

    row: Row
    samples: list[Sample]
    scores: NDArray[np.float32]
    maps: NDArray[np.float32]
    pixels: NDArray[np.uint8]
    localises: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """A dataset's pictures as a model sees them, decoded once for all methods.

    Attributes:
        masks: (N, H, W) of the test pictures, or None where a defect has none.
        left_out: as in `Row`; so are `unreadable` and `lost_masks`.
    """

    name: str
    view: View
    train: Images
    test: Images
    samples: list[Sample]
    masks: NDArray[np.bool_] | None
    left_out: list[str]
    unreadable: list[str]
    lost_masks: list[str]

    @property
    def learnt_from(self) -> int:
        """How many good pictures there are to fit on."""
        return len(self.train)


def read(
    folder: Path,
    view: View,
    limits: Limits,
    *,
    without: Sequence[str] = (),
    device: torch.device = CPU,
    progress: Progress = silent,
) -> Pictures:
    """Decode a dataset in MVTec layout; `without` as in `dataset.goods`, `device` as in `decode_all`.

    Masks are as `masks.read` says; there are none unless every defect has its own.

    Raises:
        ConfigError: no pictures to learn from or to test, or a mask cannot be used.
    """
    goods = dataset.goods(folder, without)
    train = decode_all([Frame(frame_id=str(p), image=p.read_bytes()) for p in goods], view, limits, progress, device)
    if not train.frame_ids:
        raise ConfigError(f"no readable good picture in {folder}: {train.failures[0].detail}")
    listed = dataset.tests(folder)
    shown = [Frame(frame_id=str(s.path), image=s.path.read_bytes()) for s in listed]
    test = decode_all(shown, view, limits, progress, device)
    failed = [failure.frame_id for failure in (*train.failures, *test.failures)]
    readable = set(test.frame_ids)
    samples = [sample for sample in listed if str(sample.path) in readable]
    if not samples:
        raise ConfigError(f"no readable test picture in {folder}: {test.failures[0].detail}")
    drawn = _masks(samples, view)
    return Pictures(
        name=folder.name if folder.name.strip(".") else folder.resolve().name,
        view=view,
        train=train.images,
        test=test.images,
        samples=samples,
        masks=drawn,
        left_out=dataset.left_out(folder, goods),
        unreadable=[str(Path(path).relative_to(folder)) for path in failed],
        lost_masks=[str(sample.path.relative_to(folder)) for sample in _lost(samples, drawn, view.inside())],
    )


def run(
    pictures: Pictures,
    method: str,
    config: Any,
    backbone: Backbone,
    *,
    rotations: int = 1,
    seed: int,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> Trial:
    """Fit and score; `rotations` and `scratch` as in `commissioning.commission`.

    Method `choosing.AUTO`, whatever the config, is the one that the good pictures choose. Where a training goes on from
    a checkpoint, the row's `fit_s` is the time of what was left to do.

    Raises:
        FitError: the pictures are too few.
    """
    started = time.perf_counter()
    learnt, tiles, size = rotated(pictures.train, rotations), pictures.view.tiles, pictures.view.size
    choice: list[dict[str, Any]] = []
    if method == choosing.AUTO:
        first = choosing.candidates(pictures.view)[0]
        backbone = tiling.settled(backbone, first.method, learnt, tiles=tiles, size=size)
        found = choosing.choose_method(
            pictures.train, backbone=backbone, view=pictures.view, rotations=rotations, seed=seed, progress=progress
        )
        method, config, choice = found.taken.method, choosing.config_of(found.taken), found.body()
    backbone = tiling.settled(backbone, method, learnt, tiles=tiles, size=size)
    detector = tiling.fit(
        method,
        learnt,
        config,
        tiles=tiles,
        size=size,
        backbone=backbone,
        seed=seed,
        scratch=scratch,
        progress=progress,
    )
    fit_s = time.perf_counter() - started
    scored = score_all(detector, pictures.test, stage="score", progress=progress)
    scores, maps = scored.image.numpy(), scored.map.numpy()
    artifact = detector.save()
    goods = [float(v) for v, s in zip(scores, pictures.samples, strict=True) if s.defect is None]
    defects = [float(v) for v, s in zip(scores, pictures.samples, strict=True) if s.defect is not None]
    localises = bool(artifact.meta.get("localises", True))
    drawn = pictures.masks if localises else None
    inside = pictures.view.inside()
    row = Row(
        dataset=pictures.name,
        method=method,
        choice=choice,
        backbone=backbone.spec.name,
        engine=backbone.spec.engine,
        seed=seed,
        settings=asdict(config),
        view={**asdict(pictures.view), "roi": bool(pictures.view.roi), "rotations": rotations},
        image_auroc=_rounded(auroc(goods, defects)),
        pixel_auroc=_rounded(pixel_auroc(maps, drawn, inside)) if drawn is not None else None,
        aupro_030=_rounded(aupro(maps, drawn, 0.3, inside)) if drawn is not None else None,
        aupro_005=_rounded(aupro(maps, drawn, 0.05, inside)) if drawn is not None else None,
        average_precision=_rounded(average_precision(goods, defects)),
        misses_at={f"{rate:g}": _rounded(misses_at(goods, defects, rate)) for rate in RATES},
        goods=len(goods),
        defects=len(defects),
        fit_s=round(fit_s, 3),
        ms_per_frame=round(_ms_per_frame(detector, pictures.test), 3),
        bank_bytes=sum(t.numel() * t.element_size() for t in artifact.tensors.values()),
        learnt_from=pictures.learnt_from,
        left_out=pictures.left_out,
        unreadable=pictures.unreadable,
        lost_masks=pictures.lost_masks,
    )
    pixels = pictures.test.pixels.numpy()
    return Trial(row=row, samples=pictures.samples, scores=scores, maps=maps, pixels=pixels, localises=localises)


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


def _masks(samples: Sequence[Sample], view: View) -> NDArray[np.bool_] | None:
    """(N, H, W), empty for goods; None unless every defect has its own."""
    if not all(sample.mask for sample in samples if sample.defect):
        return None
    return np.stack([masks.read(s.mask, view) if s.mask else np.zeros(view.seen, np.bool_) for s in samples])


def _lost(samples: Sequence[Sample], drawn: NDArray[np.bool_] | None, inside: NDArray[np.bool_] | None) -> list[Sample]:
    if drawn is None:
        return []
    seen = drawn if inside is None else drawn & inside
    return [sample for sample, mask in zip(samples, seen, strict=True) if sample.defect and not mask.any()]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
