"""Large frames with small defects, and several scales at once: a detector for each level of a pyramid of tiles.

A level n sees the frame as n x n overlapping tiles, each as large as the model's picture. Levels (1,) are the plain
way, (2,) sees twice as fine, (1, 2) both. Each level has a detector of its own, fitted on all of its tiles. Where tiles
overlap their maps are blended linearly, so that no seam shows; a level's score is its worst tile's. Levels are compared
in units of good pictures held out for it: (score - mean) / standard deviation, and the mean over levels is the score.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline import fastest, fitted, learned, methods
from pipeline.backbone import Backbone
from pipeline.data import Artifact, Features, Images, Scores, Size
from pipeline.engines import INT8
from pipeline.errors import ArtifactError, ConfigError, FitError
from pipeline.methods import METHODS
from pipeline.methods.base import Detector
from pipeline.progress import Progress, silent
from pipeline.view import MOST_TILES, are_tiles, seen_size

WHOLE = (1,)
_TUNE_SHARE = 0.2
_FEW = 32  # good pictures that say how a backbone runs
_TUNE_MIN = 4
_BATCH = 4
_LEAST_DEVIATION = 1e-6  # of scores; goods that are all alike must not divide by nothing


class TiledDetector:
    """Detectors by level; never changed by scoring."""

    def __init__(
        self, detectors: list[Detector], tiles: tuple[int, ...], size: Size, spread: Tensor, *, localises: bool
    ) -> None:
        """With `size` of a tile and `spread` (L, 2): mean and deviation of held-out goods' scores by level.

        Maps of a method that does not tell where are left as it gives them: zero.
        """
        self.tiles = tiles
        self._localises = localises
        self.tile_size = size
        self._detectors = detectors
        self._spread = spread

    def embed(self, images: Tensor) -> Features:
        """Features of all tiles.

        Args:
            images: (B, 3, H, W) uint8, RGB, of `seen_size`.

        Returns:
            By "level/name": (B n n, ...).

        Raises:
            ShapeError: another size, or not RGB.
        """
        size = seen_size(self.tile_size, self.tiles)
        fitted.check_pixels(images, size)
        maps: dict[str, Tensor] = {}
        for n, detector in zip(self.tiles, self._detectors, strict=True):
            features = detector.embed(cut(images, self.tile_size, n))
            maps |= {f"{n}/{name}": each for name, each in features.maps.items()}
        return Features(maps=maps, image_size=size)

    def score(self, features: Features) -> Scores:
        """Means over levels, in deviations of good pictures' scores.

        Args:
            features: from `embed`.

        Returns:
            image (B,) and map (B, H, W).
        """
        images, maps = [], []
        for n, detector, (mean, deviation) in zip(self.tiles, self._detectors, self._spread.tolist(), strict=True):
            scored = _level(detector, features, n, self.tile_size)
            images.append((scored.image - mean) / deviation)
            each = _resized(scored.map, features.image_size)
            maps.append((each - mean) / deviation if self._localises else each)
        return Scores(image=torch.stack(images).mean(dim=0), map=torch.stack(maps).mean(dim=0))

    def save(self) -> Artifact:
        """All levels' artifacts in one."""
        inner = [detector.save() for detector in self._detectors]
        tensors = {f"{n}/{k}": t for n, each in zip(self.tiles, inner, strict=True) for k, t in each.tensors.items()}
        meta = {
            **inner[0].meta,
            "tiles": list(self.tiles),
            "image_size": list(self.tile_size),
            "levels": [dict(each.meta) for each in inner],
        }
        return Artifact(method=inner[0].method, tensors={**tensors, "spread": self._spread.cpu().clone()}, meta=meta)


def fit(
    method: str,
    images: Images,
    config: object,
    *,
    tiles: tuple[int, ...],
    size: Size,
    backbone: Backbone,
    seed: int,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> Detector:
    """A detector of that method, for each level of tiles; for `(1,)` it is the method's own.

    Args:
        method: a key of METHODS.
        images: good pictures of `seen_size(size, tiles)`.
        config: of the method.
        tiles: levels, as a View has them.
        size: (H, W) of a tile.
        backbone: what sees the pictures.
        seed: of the fit, and of which pictures are held out, with all turns of them.
        scratch: a folder for checkpoints.
        progress: called as `progress(stage, done, total)`.

    Raises:
        ConfigError: the method keeps statistics by position, which tiles have not.
        FitError: too few pictures.
    """
    backbone = settled(backbone, method, images, tiles=tiles, size=size)
    if tiles == WHOLE:
        return methods.fit(method, images, config, backbone=backbone, seed=seed, scratch=scratch, progress=progress)
    check(method, config, tiles)
    count = len(learned.originals_of(images))
    kept = max(_TUNE_MIN, round(count * _TUNE_SHARE))
    if count - kept < kept:
        raise FitError(f"tiles need at least {2 * _TUNE_MIN} good pictures to fit, not {count}")
    places, held = learned.hold_out(images, kept, seed)
    used, tune = images.pixels[places], images.pixels[held]
    of = images.originals or range(len(images))
    detectors: list[Detector] = []
    spread = torch.empty(len(tiles), 2)
    for level, n in enumerate(tiles):
        at = _named(progress, f"tiles {n}x{n}: ")
        folder = scratch / str(n) if scratch else None
        originals = tuple(of[place] for place in places.tolist() for _ in range(n * n))
        cuts = Images(torch.cat([cut(part, size, n) for part in torch.split(used, _BATCH)]), originals)
        detectors.append(methods.fit(method, cuts, config, backbone=backbone, seed=seed, scratch=folder, progress=at))
        scores = []
        for place, part in enumerate(torch.split(tune, _BATCH)):
            at("tune", place * _BATCH, len(tune))
            features = detectors[level].embed(cut(part, size, n))
            scores.append(_worst(detectors[level].score(features).image, n).cpu())
        deviation, mean = torch.std_mean(torch.cat(scores))
        spread[level] = torch.stack([mean, deviation.clamp(min=_LEAST_DEVIATION)])
    return TiledDetector(detectors, tiles, size, spread, localises=_localises(detectors[0].save()))


def settled(backbone: Backbone, method: str, images: Images, *, tiles: tuple[int, ...], size: Size) -> Backbone:
    """The backbone as a fit of this method on these good pictures runs it; see `fastest.settled`.

    Where nobody asked for 8 bits only those methods have them that compare features as they are.
    """
    compares = method in METHODS and METHODS[method].one_pass
    if fastest.is_settled(backbone) or not (compares or backbone.spec.engine == INT8):
        return backbone
    few = images.pixels[:: max(1, len(images) // _FEW)][:_FEW]
    return fastest.settled(backbone, few if tiles == WHOLE else torch.cat([cut(few, size, n) for n in tiles]))


def check(method: str, config: object, tiles: tuple[int, ...]) -> None:
    """Refuse, before there is a picture, a method that these levels do not go with.

    Raises:
        ConfigError: the method keeps statistics by position, which tiles have not.
    """
    if tiles == WHOLE:
        return
    if method in METHODS and METHODS[method].by_position:
        raise ConfigError(f"{method} keeps statistics by position, and tiles of one frame have none in common")
    if getattr(config, "by_position", False):
        raise ConfigError(f"tiles of one frame have no positions in common: {method} with --set by_position=false")


def load(artifact: Artifact, *, backbone: Backbone) -> Detector:
    """The detector that an artifact describes, tiled or not.

    Raises:
        ArtifactError: an unknown method, or the artifact is damaged or was made with another backbone.
    """
    tiles = artifact.meta.get("tiles")
    if tiles is None:
        return methods.load(artifact, backbone=backbone)
    levels = artifact.meta.get("levels")
    if not are_tiles(tiles) or not isinstance(levels, list | tuple) or len(levels) != len(tiles):
        raise ArtifactError(f"tiles must be levels from 1 to {MOST_TILES}, ascending, not {tiles!r:.100}")
    spread = artifact.tensors.get("spread", torch.empty(0))
    fitted.check_shape("spread", spread, (len(tiles), 2), torch.float32)
    if not bool(spread.isfinite().all()) or not bool((spread[:, 1] > 0).all()):
        raise ArtifactError("spread must be finite, and deviations positive")
    detectors, sizes = [], set()
    left = set(artifact.tensors) - {"spread"}
    for n, meta in zip(tiles, levels, strict=True):
        prefix = f"{n}/"
        mine = {k.removeprefix(prefix): t for k, t in artifact.tensors.items() if k.startswith(prefix)}
        left -= {prefix + name for name in mine}
        if not isinstance(meta, dict):
            raise ArtifactError("levels must be what each level's method wrote")
        detectors.append(methods.load(Artifact(method=artifact.method, tensors=mine, meta=meta), backbone=backbone))
        sizes.add(tuple(meta["image_size"]))  # its method has checked it
    if left or len(sizes) != 1:
        raise ArtifactError(f"levels do not fit together: sizes {sorted(sizes)}, tensors of none {sorted(left)}")
    height, width = sizes.pop()
    return TiledDetector(detectors, tuple(tiles), (height, width), spread, localises=_localises(artifact))


def cut(images: Tensor, size: Size, n: int) -> Tensor:
    """(B, 3, H, W) uint8, resized where it must be, as n x n overlapping tiles: (B n n, 3, *size)."""
    whole = seen_size(size, (n,))
    fitting = _resized(images, whole)
    rows, columns = (
        range(0, w - s + 1, (w - s) // (n - 1)) if n > 1 else (0,) for w, s in zip(whole, size, strict=True)
    )
    tiles = [fitting[:, :, y : y + size[0], x : x + size[1]] for y in rows for x in columns]
    return torch.stack(tiles, dim=1).flatten(0, 1)


def join(maps: Tensor, n: int) -> Tensor:
    """(B n n, h, w) maps of tiles as (B, H, W), blended linearly where they overlap."""
    height, width = maps.shape[1:]
    whole = seen_size((height, width), (n,))
    tiles = maps.view(-1, n, n, height, width)
    total = maps.new_zeros(tiles.shape[0], *whole)
    down, across = (_ramps(side, n, maps) for side in (height, width))
    step_y, step_x = (((w - s) // (n - 1)) if n > 1 else 0 for w, s in zip(whole, (height, width), strict=True))
    for i in range(n):
        for j in range(n):
            y, x = i * step_y, j * step_x
            weight = down[i].unsqueeze(1) * across[j]
            total[:, y : y + height, x : x + width] += tiles[:, i, j] * weight
    return total


def _ramps(side: int, n: int, like: Tensor) -> Tensor:
    """(n, side) weights of the tiles along one axis; those of overlapping tiles add up to 1."""
    overlap = n * side - seen_size((side, side), (n,))[0]
    overlap = overlap // (n - 1) if n > 1 else 0
    rising = (torch.arange(overlap, device=like.device, dtype=like.dtype) + 0.5) / max(overlap, 1)
    weights = like.new_ones(n, side)
    weights[1:, :overlap] = rising
    weights[:-1, side - overlap :] *= rising.flip(0)
    return weights


def _localises(artifact: Artifact) -> bool:
    return bool(artifact.meta.get("localises", True))


def _level(detector: Detector, features: Features, n: int, size: Size) -> Scores:
    prefix = f"{n}/"
    maps = {name.removeprefix(prefix): each for name, each in features.maps.items() if name.startswith(prefix)}
    scored = detector.score(Features(maps=maps, image_size=size))
    return Scores(image=_worst(scored.image, n), map=join(scored.map, n))


def _worst(scores: Tensor, n: int) -> Tensor:
    """(B n n,) -> (B,)."""
    return scores.view(-1, n * n).amax(dim=1)


def _resized(images: Tensor, size: Size) -> Tensor:
    """(B, C, H, W) uint8 or (B, H, W) float32, resampled without aliasing."""
    if images.shape[-2:] == size:
        return images
    if images.dtype == torch.uint8:  # on the host, wherever they are: a fit's are there, and a GPU rounds otherwise
        made = interpolate(images.cpu().float(), size=size, mode="bilinear", antialias=True)
        return made.round_().to(images.device, torch.uint8)
    return interpolate(images.unsqueeze(1), size=size, mode="bilinear", antialias=True).squeeze(1)


def _named(progress: Progress, prefix: str) -> Callable[[str, int, int], None]:
    return lambda stage, done, total: progress(prefix + stage, done, total)
