"""Train a compact backbone to imitate a large one on unlabelled photographs.

For each of the teacher's two layers the student regresses the features' leading principal components, each divided by
its standard deviation to the power `whiten`, by mean squared error. Close to the distillation of EfficientAD's teacher
(Batzner et al. 2024, appendix), with principal components in place of the first channels.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline import distil_targets, engines
from pipeline.backbone import Backbone
from pipeline.backbone_spec import IMAGENET_MEAN, IMAGENET_STD
from pipeline.errors import FitError
from pipeline.goldline_s import LAYERS, NAME, WIDTHS, GoldlineS
from pipeline.networks import state_sha256
from pipeline.progress import Progress, silent


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
    epochs: int = 5
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
    """Train a student and write its weights to `out` (float16 safetensors), with a checkpoint beside it each epoch.

    Run again with the same arguments, it goes on from the last checkpoint.

    Args:
        teacher: with two layers, at strides 8 and 16.
        photos: natural photographs, the more and the more varied the better.
        out: the weights' file; OUT.targets and OUT.checkpoint lie beside it while training.
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
        fast=_half(str(teacher.device)),
        progress=progress,
    )
    scales = {layer: _scale(variance, config.whiten).to(device) for layer, variance in targets.variance.items()}
    torch.manual_seed(config.seed)
    student = GoldlineS(config.widths).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(student.parameters(), lr=config.peak_rate, weight_decay=config.weight_decay)
    steps = len(targets) // config.batch
    key = hashlib.sha256(json.dumps([targets.key, asdict(config)]).encode()).hexdigest()
    checkpoint = _Checkpoint(out.with_suffix(".checkpoint"), student, optimiser, key)
    first = checkpoint.resume()
    missed = dict.fromkeys(LAYERS, float("nan"))
    for epoch in range(first, config.epochs):
        student.train()
        order = np.random.default_rng((config.seed, epoch)).permutation(len(targets))
        sums = dict.fromkeys(LAYERS, 0.0)
        for step in range(steps):
            progress(f"epoch {epoch + 1}/{config.epochs}", step, steps)
            pixels, wanted = targets.batch(order[step * config.batch : (step + 1) * config.batch])
            with _half(device):
                made = student(_normalised(pixels.to(device)))
            losses = {
                layer: (made[layer].float() - wanted[layer].to(device) * scales[layer]).square().mean()
                for layer in LAYERS
            }
            for group in optimiser.param_groups:
                group["lr"] = config.peak_rate * _one_cycle((epoch * steps + step) / (config.epochs * steps))
            optimiser.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            for layer, loss in losses.items():
                sums[layer] += float(loss.detach()) / steps
        missed = {layer: round(value, 4) for layer, value in sums.items()}
        progress(f"epoch {epoch + 1}/{config.epochs}", steps, steps)
        checkpoint.save(epoch + 1)
        _write(student, out, teacher, len(photos), config, missed)
    return Distilled(photos=len(photos), epochs=config.epochs, unexplained=missed)


class _Checkpoint:
    """Student and optimiser as one safetensors file, written whole or not at all."""

    def __init__(self, path: Path, student: GoldlineS, optimiser: torch.optim.Optimizer, key: str) -> None:
        self._path, self._student, self._optimiser, self._key = path, student, optimiser, key

    def resume(self) -> int:
        """Load the last one, if it is of the same training; how many epochs are done."""
        if not self._path.exists():
            return 0
        with safe_open(self._path, "pt") as file:
            said = file.metadata() or {}
        if said.get("key") != self._key:
            return 0
        tensors = load_file(self._path)
        self._student.load_state_dict({k[2:]: v for k, v in tensors.items() if k.startswith("s.")})
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("o."):
                _, number, field = name.split(".", 2)
                state.setdefault(int(number), {})[field] = tensor
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": state})
        return int(said["epochs"])

    def save(self, epochs: int) -> None:
        """Write where the training stands."""
        tensors = {f"s.{name}": tensor.contiguous() for name, tensor in self._student.state_dict().items()}
        for number, entries in self._optimiser.state_dict()["state"].items():
            tensors |= {f"o.{number}.{field}": tensor.contiguous() for field, tensor in entries.items()}
        part = self._path.with_suffix(".part")
        save_file(tensors, part, {"epochs": str(epochs), "key": self._key})
        part.replace(self._path)


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


def _half(device: str) -> AbstractContextManager[Any]:
    """bfloat16 products, where the device has them: about four times as fast on a CPU with AMX."""
    kind = torch.device(device).type
    able = kind == "cuda" or engines.has_bf16()
    return torch.autocast(kind, torch.bfloat16, enabled=able)


def _one_cycle(done: float) -> float:
    """Share of the peak rate at a share of the training: a cosine up over a third, a cosine down to nothing."""
    up = 0.3
    phase = done / up if done < up else 1 - (done - up) / (1 - up)
    return 0.04 + 0.96 * (1 - math.cos(math.pi * phase)) / 2 if done < up else (1 - math.cos(math.pi * phase)) / 2


def _normalised(pixels: Tensor) -> Tensor:
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=pixels.device).view(1, 3, 1, 1)
    return ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
