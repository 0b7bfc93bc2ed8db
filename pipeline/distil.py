"""Train a compact backbone to imitate a large one on unlabelled photographs.

For each of the teacher's two layers the student regresses the features' leading principal components, by mean squared
error over the variance of those components. The teacher sees each photograph once for each view (a crop, perhaps
mirrored); its targets are kept on disk as float16, so that every further epoch costs the student's time alone.
Close to the distillation of EfficientAD's teacher (Batzner et al. 2024, appendix), with principal components in place
of the first channels.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import mse_loss

from pipeline.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone
from pipeline.errors import ConfigError, FitError
from pipeline.goldline_s import CHANNELS, LAYERS, GoldlineS
from pipeline.progress import Progress, silent

_PCA_PHOTOS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilConfig:
    """How to train.

    Attributes:
        views: crops of each photograph that the teacher sees.
        epochs: passes over all views.
        size: side of a crop, in pixels.
        peak_rate: AdamW's highest learning rate, on a one-cycle schedule.
    """

    views: int = 2
    epochs: int = 12
    batch: int = 32
    size: int = 224
    peak_rate: float = 2e-3
    weight_decay: float = 0.01
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
    targets = _Targets.make(teacher, photos, out.with_suffix(".targets"), config, progress)
    torch.manual_seed(config.seed)
    student = GoldlineS().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(student.parameters(), lr=config.peak_rate, weight_decay=config.weight_decay)
    steps = len(targets) // config.batch
    checkpoint = _Checkpoint(out.with_suffix(".checkpoint"), student, optimiser, targets.key)
    first = checkpoint.resume()
    missed = dict.fromkeys(LAYERS, float("nan"))
    for epoch in range(first, config.epochs):
        student.train()
        order = np.random.default_rng((config.seed, epoch)).permutation(len(targets))
        sums = dict.fromkeys(LAYERS, 0.0)
        for step in range(steps):
            progress(f"epoch {epoch + 1}/{config.epochs}", step, steps)
            pixels, wanted = targets.batch(order[step * config.batch : (step + 1) * config.batch])
            made = student(_normalised(pixels.to(device)))
            losses = {
                layer: mse_loss(made[layer], wanted[layer].to(device)) / targets.variance[layer] for layer in LAYERS
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


class _Targets:
    """Crops and what the teacher makes of them, on disk."""

    def __init__(self, folder: Path, count: int, key: str) -> None:
        self.key = key
        self._pixels = _open(folder / "pixels.npy")
        self._maps = {layer: _open(folder / f"{layer}.npy") for layer in LAYERS}
        self.variance = json.loads((folder / "done.json").read_text())["variance"]
        self._count = count

    def __len__(self) -> int:
        return self._count

    def batch(self, places: NDArray[np.int64]) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixels (B, 3, H, W) uint8 and targets (B, D, h, w) float32."""
        rows = np.sort(places)
        maps = {layer: torch.from_numpy(values[rows].astype(np.float32)) for layer, values in self._maps.items()}
        return torch.from_numpy(self._pixels[rows]), maps

    @classmethod
    def make(
        cls, teacher: Backbone, photos: Sequence[Path], folder: Path, config: DistilConfig, progress: Progress
    ) -> "_Targets":
        count = len(photos) * config.views
        said = [teacher.spec.to_meta(), [p.name for p in photos], config.views, config.size, config.seed]
        key = hashlib.sha256(json.dumps(said).encode()).hexdigest()
        done = folder / "done.json"
        if done.exists() and json.loads(done.read_text())["key"] == key:
            return cls(folder, count, key)
        folder.mkdir(parents=True, exist_ok=True)
        done.unlink(missing_ok=True)
        sample = photos[:: max(1, len(photos) // _PCA_PHOTOS)]
        bases = _principal(teacher, sample, config, progress)
        sides = {layer: config.size // stride for layer, stride in zip(LAYERS, (8, 16), strict=True)}
        pixels = _array(folder / "pixels.npy", np.uint8, (count, 3, config.size, config.size))
        maps = {
            layer: _array(folder / f"{layer}.npy", np.float16, (count, c, sides[layer], sides[layer]))
            for layer, c in zip(LAYERS, CHANNELS, strict=True)
        }
        for at in range(0, count, config.batch):
            progress("teacher", at, count)
            places = range(at, min(at + config.batch, count))
            crops = [_crop(photos[i % len(photos)], config.size, (config.seed, i)) for i in places]
            batch = torch.from_numpy(np.stack(crops))
            pixels[places.start : places.stop] = crops
            for (layer, (mean, basis)), features in zip(bases.items(), teacher(batch).values(), strict=True):
                scored = torch.einsum("bchw,cd->bdhw", features.cpu() - mean.view(1, -1, 1, 1), basis)
                maps[layer][places.start : places.stop] = scored.numpy().astype(np.float16)
        progress("teacher", count, count)
        few = np.random.default_rng(config.seed).choice(count, min(count, 256), replace=False)
        variance = {layer: float(np.var(maps[layer][np.sort(few)].astype(np.float32))) for layer in LAYERS}
        done.write_text(json.dumps({"key": key, "variance": variance}))
        return cls(folder, count, key)


def _principal(
    teacher: Backbone, photos: Sequence[Path], config: DistilConfig, progress: Progress
) -> dict[str, tuple[Tensor, Tensor]]:
    """By student's layer: mean (C,) and leading components (C, D) of the teacher's, in float64 sums."""
    sums: list[tuple[Tensor, Tensor, int]] = []
    for done, photo in enumerate(photos):
        progress("components", done, len(photos))
        maps = teacher(torch.from_numpy(_crop(photo, config.size, (config.seed, done))[None]))
        for i, (features, stride) in enumerate(zip(maps.values(), (8, 16), strict=True)):
            if features.shape[-1] != config.size // stride:
                raise ConfigError(f"the teacher's layers must have strides 8 and 16; one has {features.shape[-1]} px")
            rows = features[0].flatten(1).T.cpu().double()
            if done == 0:
                sums.append((rows.sum(0), rows.T @ rows, len(rows)))
            else:
                total, square, n = sums[i]
                sums[i] = (total + rows.sum(0), square + rows.T @ rows, n + len(rows))
    progress("components", len(photos), len(photos))
    bases = {}
    for layer, width, (total, square, n) in zip(LAYERS, CHANNELS, sums, strict=True):
        mean = total / n
        _, vectors = torch.linalg.eigh(square / n - torch.outer(mean, mean))
        bases[layer] = (mean.float(), vectors[:, -width:].flip(1).float().contiguous())
    return bases


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
    card = {
        "teacher": teacher.spec.to_meta(),
        "photos": photos,
        "config": asdict(config),
        "unexplained": dict(missed),
    }
    state: dict[str, Any] = student.state_dict()
    half = {n: t.half().contiguous() for n, t in state.items() if not n.endswith("num_batches_tracked")}
    part = out.with_suffix(".part")
    save_file(half, part, {"goldline": json.dumps(card, sort_keys=True)})
    part.replace(out)


def _one_cycle(done: float) -> float:
    """Share of the peak rate at a share of the training: a cosine up over a third, a cosine down to nothing."""
    up = 0.3
    phase = done / up if done < up else 1 - (done - up) / (1 - up)
    return 0.04 + 0.96 * (1 - math.cos(math.pi * phase)) / 2 if done < up else (1 - math.cos(math.pi * phase)) / 2


def _crop(photo: Path, size: int, seed: tuple[int, int]) -> NDArray[np.uint8]:
    """A crop (3, size, size) of at least three quarters of the short side, mirrored half the time."""
    chance = np.random.default_rng(seed)
    with Image.open(photo) as opened:
        picture = opened.convert("RGB")
    side = max(1.0, min(picture.size) * chance.uniform(0.75, 1.0))
    x0, y0 = (chance.uniform(0, extent - side) for extent in picture.size)
    resized = picture.resize((size, size), Image.Resampling.BILINEAR, box=(x0, y0, x0 + side, y0 + side))
    pixels = np.asarray(resized).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[:, :, ::-1] if chance.random() < 0.5 else pixels)


def _open(path: Path) -> Any:  # numpy's memory map is not typed; it holds no objects, so nothing is unpickled
    return np.lib.format.open_memmap(path, mode="r")


def _array(path: Path, kind: Any, shape: tuple[int, ...]) -> Any:  # numpy's memory map is not typed
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)


def _normalised(pixels: Tensor) -> Tensor:
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=pixels.device).view(1, 3, 1, 1)
    return ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
