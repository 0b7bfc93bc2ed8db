"""What a student regresses: crops of photographs, and the leading principal components of what a teacher makes of them.

The teacher sees each photograph once for each view (a crop, perhaps mirrored, perhaps without colour). Pixels and
components are kept on disk, so that every further epoch costs the student's time alone.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbone import Backbone
from pipeline.errors import ConfigError
from pipeline.goldline_s import CHANNELS, LAYERS
from pipeline.natural import GREY, SMALLEST_CROP, crop_of
from pipeline.progress import Progress
from pipeline.threads import cores

_PCA_PHOTOS = 400
_AT_ONCE = 32
_MOVED_AT_ONCE = 1024
_PIXELS = "pixels"
_STRIDES = (8, 16)


class Targets:
    """Crops and what the teacher makes of them, on disk.

    Attributes:
        key: digest of all that the targets depend on.
        variance: by layer, of each component, over the photographs: (D,).
    """

    def __init__(self, folder: Path, count: int, key: str, device: torch.device) -> None:
        self.key = key
        self._device = device
        found = {name: _open(folder / f"{name}.npy") for name in (_PIXELS, *LAYERS)}
        # Read from disk batch by batch, unless the GPU has room for all of it twice.
        room = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        whole = 2 * sum(values.nbytes for values in found.values()) <= room
        self._kept: dict[str, Any] = {
            name: _moved(values, device) if whole else values for name, values in found.items()
        }
        told = json.loads((folder / "done.json").read_text())["variance"]
        self.variance = {layer: torch.tensor(told[layer]) for layer in LAYERS}
        self._count = count

    def __len__(self) -> int:
        return self._count

    def batch(self, places: NDArray[np.int64]) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixels (B, 3, H, W) uint8 and components (B, D, h, w) float32, on the device."""
        rows = np.sort(places)
        taken = {name: _rows(values, rows).to(self._device) for name, values in self._kept.items()}
        pixels = taken.pop(_PIXELS)
        return pixels, {layer: each.float() for layer, each in taken.items()}


def make(
    teacher: Backbone,
    photos: Sequence[Path],
    folder: Path,
    *,
    views: int,
    size: int,
    seed: int,
    fast: AbstractContextManager[Any],
    device: str,
    progress: Progress,
) -> Targets:
    """Targets of these photographs; those that lie in the folder already are taken as they are.

    Args:
        teacher: with two layers, at strides 8 and 16.
        photos: pictures' files.
        folder: where to write, 0.3 MB a view at 224 pixels.
        views: crops of each photograph.
        size: side of a crop, in pixels.
        seed: of the crops.
        fast: context in which the teacher runs, such as autocast; may be entered again and again.
        device: where batches of them are wanted.
        progress: told of each stage.

    Raises:
        ConfigError: the teacher's layers have other strides, or fewer channels than the student's.
    """
    count = len(photos) * views
    said = [teacher.spec.to_meta(), [p.name for p in photos], views, size, seed, SMALLEST_CROP, GREY]
    key = hashlib.sha256(json.dumps(said).encode()).hexdigest()
    done = folder / "done.json"
    if done.exists() and json.loads(done.read_text())["key"] == key:
        return Targets(folder, count, key, torch.device(device))
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    sample = photos[:: max(1, len(photos) // _PCA_PHOTOS)]
    with fast:
        bases = _principal(teacher, sample, size, seed, progress)
    pixels = _array(folder / f"{_PIXELS}.npy", np.uint8, (count, 3, size, size))
    maps = {
        layer: _array(folder / f"{layer}.npy", np.float16, (count, c, size // stride, size // stride))
        for layer, c, stride in zip(LAYERS, CHANNELS, _STRIDES, strict=True)
    }
    with ThreadPoolExecutor(max_workers=cores()) as pool:
        for at in range(0, count, _AT_ONCE):
            progress("teacher", at, count)
            places = range(at, min(at + _AT_ONCE, count))
            crops = np.stack(
                list(pool.map(lambda i: crop_of(photos[i % len(photos)], (size, size), (seed, i)), places))
            )
            pixels[at : places.stop] = crops
            with fast:
                seen = teacher(torch.from_numpy(crops))
            for (layer, (mean, basis, _)), features in zip(bases.items(), seen.values(), strict=True):
                where = features.device
                scored = torch.einsum("bchw,cd->bdhw", features - mean.to(where).view(1, -1, 1, 1), basis.to(where))
                maps[layer][at : places.stop] = scored.half().cpu().numpy()
    progress("teacher", count, count)
    variance = {layer: kept.tolist() for layer, (_, _, kept) in bases.items()}
    done.write_text(json.dumps({"key": key, "variance": variance}))
    return Targets(folder, count, key, torch.device(device))


def _principal(
    teacher: Backbone, photos: Sequence[Path], size: int, seed: int, progress: Progress
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """By student's layer: mean (C,), leading components (C, D) and their variance (D,), from float64 sums."""
    sums: list[tuple[Tensor, Tensor, int]] = []
    for done, photo in enumerate(photos):
        progress("components", done, len(photos))
        maps = teacher(torch.from_numpy(crop_of(photo, (size, size), (seed, done))[None]))
        for i, (features, stride) in enumerate(zip(maps.values(), _STRIDES, strict=True)):
            if features.shape[-1] != size // stride:
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
        if len(total) < width:
            raise ConfigError(f"the teacher's layer for {layer} has {len(total)} channels; at least {width} are needed")
        mean = total / n
        values, vectors = torch.linalg.eigh(square / n - torch.outer(mean, mean))
        leading = vectors[:, -width:].flip(1).float().contiguous()
        bases[layer] = (mean.float(), leading, values[-width:].flip(0).clamp_(min=1e-12).float())
    return bases


def _rows(values: Any, rows: NDArray[np.int64]) -> Tensor:
    """Of an array on disk or a tensor on a GPU."""
    if isinstance(values, Tensor):
        return values[torch.from_numpy(rows).to(values.device)]
    return torch.from_numpy(values[rows])


def _moved(values: Any, device: torch.device) -> Tensor:
    """An array on disk, on a GPU; piece by piece, as memory of the host may not hold it."""
    there = torch.empty(values.shape, dtype=torch.from_numpy(values[:1].copy()).dtype, device=device)
    for at in range(0, len(values), _MOVED_AT_ONCE):
        there[at : at + _MOVED_AT_ONCE] = torch.from_numpy(values[at : at + _MOVED_AT_ONCE].copy())
    return there


def _open(path: Path) -> Any:  # numpy's memory map is not typed; it holds no objects, so nothing is unpickled
    return np.lib.format.open_memmap(path, mode="r")


def _array(path: Path, kind: Any, shape: tuple[int, ...]) -> Any:  # numpy's memory map is not typed
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
