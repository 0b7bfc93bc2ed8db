"""Train a compact backbone to imitate a large one on unlabelled photographs.

For each of the teacher's two layers the student regresses the features' leading principal components, each divided by
its standard deviation to the power `whiten`, by mean squared error. Close to the distillation of EfficientAD's teacher
(Batzner et al. 2024, appendix), with principal components in place of the first channels.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline import distil_targets, training
from pipeline.backbone import Backbone
from pipeline.backbone_spec import IMAGENET_MEAN, IMAGENET_STD
from pipeline.errors import FitError
from pipeline.goldline_s import LAYERS, NAME, WIDTHS, GoldlineS
from pipeline.networks import state_sha256
from pipeline.progress import Progress, silent
from pipeline.training import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilConfig:
    """How to train.

    Attributes:
        views: crops of each photograph that the teacher sees.
        epochs: passes over all views.
        size: side of a crop, in pixels.
        peak_rate: AdamW's highest learning rate, on a one-cycle schedule.
        whiten: 0 keeps the components' own variances, 1 makes them equal.
        widths: the student's channels: stem and three stages.
    """

    views: int = 8
    epochs: int = 6
    batch: int = 32
    size: int = 224
    peak_rate: float = 3e-3
    weight_decay: float = 0.01
    whiten: float = 0.5
    widths: tuple[int, int, int, int] = WIDTHS
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """What came of it.

    Attributes:
        unexplained: by layer, the share of the components' variance that the student misses, last epoch's mean.
    """

    photos: int
    epochs: int
    unexplained: dict[str, float]


def distil(
    teacher: Backbone,
    photos: Sequence[Path],
    out: Path,
    config: DistilConfig,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> Distilled:
    """Train a student and write its weights to `out` (float16 safetensors), with a checkpoint beside it each minute.

    Run again with the same arguments, it goes on from the last checkpoint.

    Args:
        teacher: with two layers, at strides 8 and 16.
        photos: natural photographs, the more and the more varied the better.
        out: the weights' file; OUT.targets and a checkpoint, OUT-checkpoint-KEY.safetensors, lie beside it.
        config: how.
        device: of the student.
        progress: told of each stage.

    Raises:
        FitError: too few photographs.
        ConfigError: the teacher's layers have other strides.
    """
    if len(photos) < config.batch:
        raise FitError(f"{len(photos)} photographs; at least one batch, {config.batch}, is needed")
    targets = distil_targets.make(
        teacher,
        photos,
        out.with_suffix(".targets"),
        views=config.views,
        size=config.size,
        seed=config.seed,
        fast=training.half(str(teacher.device)),
        device=device,
        progress=progress,
    )
    scales = {layer: _scale(variance, config.whiten).to(device) for layer, variance in targets.variance.items()}
    imitation = _Imitation(config, scales).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = len(targets) // config.batch

    @lru_cache(maxsize=1)
    def order_of(epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((config.seed, epoch)).permutation(len(targets))

    def loss(step: int, _generator: torch.Generator) -> Tensor:
        epoch, place = divmod(step, steps)
        pixels, wanted = targets.batch(order_of(epoch)[place * config.batch : (place + 1) * config.batch])
        if place == 0:
            imitation.missed.zero_()
        losses: Tensor = imitation(_normalised(pixels), wanted)
        imitation.missed += losses.detach() / steps
        return losses.sum()

    training.train(
        imitation,
        loss,
        steps=steps * config.epochs,
        optimiser=torch.optim.AdamW(imitation.parameters(), lr=config.peak_rate, weight_decay=config.weight_decay),
        rate=training.one_cycle(config.peak_rate),
        seed=config.seed,
        stage="student",
        checkpoint=Checkpoint(out.parent, f"{out.stem}-checkpoint", training.digest(targets.key, asdict(config))),
        progress=progress,
    )
    missed = {layer: round(float(v), 4) for layer, v in zip(LAYERS, imitation.missed, strict=True)}
    _write(imitation.student, out, teacher, len(photos), config, missed)
    return Distilled(photos=len(photos), epochs=config.epochs, unexplained=missed)


class _Imitation(nn.Module):
    """A student, and by layer the share of the targets' variance that it misses, of the epoch that runs."""

    missed: Tensor

    def __init__(self, config: DistilConfig, scales: Mapping[str, Tensor]) -> None:
        super().__init__()
        with training.seeded(config.seed):
            self.student = GoldlineS(config.widths)
        self.register_buffer("missed", torch.zeros(len(LAYERS)))
        self._scales = dict(scales)

    def forward(self, pictures: Tensor, wanted: Mapping[str, Tensor]) -> Tensor:
        """Mean squared errors by layer, (L,)."""
        made = self.student(pictures)
        return torch.stack(
            [(made[layer].float() - wanted[layer] * self._scales[layer]).square().mean() for layer in LAYERS]
        )


def _write(
    student: GoldlineS, out: Path, teacher: Backbone, photos: int, config: DistilConfig, missed: Mapping[str, float]
) -> None:
    state: dict[str, Any] = student.state_dict()
    half = {n: t.half().contiguous().cpu() for n, t in state.items() if not n.endswith("num_batches_tracked")}
    card = {
        "name": NAME,
        "origin": f"distilled from {teacher.spec.name}",
        "sha256": state_sha256(half),
        "teacher": teacher.spec.to_meta(),
        "photos": photos,
        "config": asdict(config),
        "unexplained": dict(missed),
    }
    part = out.with_suffix(".part")
    save_file(half, part, {"goldline": json.dumps(card, sort_keys=True)})
    part.replace(out)


def _scale(variance: Tensor, whiten: float) -> Tensor:
    """Factors (D, 1, 1) that whiten so far, and leave a mean variance of 1."""
    scaled = variance.pow(-whiten / 2)
    return (scaled / (variance * scaled.square()).mean().sqrt()).view(-1, 1, 1)


def _normalised(pixels: Tensor) -> Tensor:
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=pixels.device).view(1, 3, 1, 1)
    return ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
