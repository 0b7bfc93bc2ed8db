"""SPADE: "Sub-Image Anomaly Detection with Deep Pyramid Correspondences", Cohen and Hoshen, 2020.

fit: keeps the good pictures' feature maps, all layers, each at its own grid, and the deepest layer's means.
score: the mean squared distance to the K good pictures nearest by those means; at each position the squared distance
    to the nearest feature, layers concatenated, anywhere in these K pictures.

Departures, and why:

* Deeper layers are repeated (nearest) to the first one's grid, not interpolated. Squared distances of concatenated
  features are sums over layers, and those of repeated layers are shared by whole cells: this makes the exact search
  cheap (`pyramid.py`), 18 G multiply-adds a picture instead of 881 for the paper's network and K = 50.
* Feature maps are kept in float16, half the memory; distances are computed in float32.
* The image feature is the mean of the deepest layer given; the paper's is the last layer of Wide ResNet-50-2 (2048).
* `window` limits the search to positions near a pixel's own, for products that lie still; the paper searches all.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline import fitted
from pipeline.backbone import Backbone
from pipeline.data import Artifact, Features, Images, Scores, Size
from pipeline.errors import ArtifactError, ConfigError, FitError, ShapeError
from pipeline.maps import smoothed
from pipeline.neighbours import nearest
from pipeline.progress import Progress, silent
from pipeline.pyramid import matches_min, squared_distances

NAME = "spade"
_FIT_BATCH = 8
_FEWEST_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class SpadeConfig:
    """Settings; the defaults are the paper's.

    Attributes:
        images: K, the good pictures that a picture is compared with; all, where there are fewer.
        neighbours: k, of each position.
        window: positions of the second layer's grid, to each side, where a match may lie; 0 for anywhere.
        sigma: Gaussian smoothing of the map, in picture pixels; 0 for none.
    """

    images: int = 50
    neighbours: int = 1
    window: int = 0
    sigma: float = 4.0

    def __post_init__(self) -> None:
        if min(self.images, self.neighbours) < 1:
            raise ConfigError(f"images and neighbours must be at least 1, not {self.images} and {self.neighbours}")
        if not 0 <= self.window <= 10_000:
            raise ConfigError(f"window must be 0 to 10,000, not {self.window}")
        if not 0 <= self.sigma <= 100:
            raise ConfigError(f"sigma must be 0 to 100 px, not {self.sigma}")


class SpadeDetector:
    """The good pictures' features; never changed by scoring."""

    def __init__(
        self, gallery: list[Tensor], pooled: Tensor, config: SpadeConfig, image_size: Size, backbone: Backbone
    ) -> None:
        self.config = config
        self.image_size = image_size
        self._backbone = backbone
        self._gallery = [each.to(backbone.device) for each in gallery]
        self._pooled = pooled.to(backbone.device)

    def embed(self, images: Tensor) -> Features:
        """The backbone's maps.

        Args:
            images: (B, 3, H, W) uint8, RGB, of the size it was fitted at.

        Returns:
            By layer: (B, C, h, w) float32.

        Raises:
            ShapeError: another size, or not RGB.
        """
        fitted.check_pixels(images, self.image_size)
        return Features(maps=self._backbone(images), image_size=self.image_size)

    @torch.inference_mode()
    def score(self, features: Features) -> Scores:
        """Squared distances.

        Args:
            features: from `embed`.

        Returns:
            image (B,), mean over the K nearest pictures, and map (B, H, W), smoothed.

        Raises:
            ShapeError: the maps differ from the gallery's.
        """
        maps = list(features.maps.values())
        if [m.shape[1:] for m in maps] != [g.shape[1:] for g in self._gallery]:
            seen, kept = ([tuple(m.shape[1:]) for m in each] for each in (maps, self._gallery))
            raise ShapeError(f"features are {seen}, the gallery's {kept}")
        count = min(self.config.images, self._pooled.shape[0])
        distances, found = nearest(_pooled(maps), self._pooled, count)
        grids = [self._grid([m[b] for m in maps], found[b]) for b in range(maps[0].shape[0])]
        grid = torch.stack(grids) if grids else maps[0].new_zeros(0, *maps[0].shape[2:])
        return Scores(image=distances.mean(dim=1), map=smoothed(grid, features.image_size, self.config.sigma))

    def save(self) -> Artifact:
        """The gallery by layer, and the image features."""
        tensors = {f"gallery.{i}": each.cpu().clone() for i, each in enumerate(self._gallery)}
        meta = fitted.to_meta(self.config, self._backbone, self.image_size)
        return Artifact(method=NAME, tensors={**tensors, "pooled": self._pooled.cpu().clone()}, meta=meta)

    def _grid(self, maps: list[Tensor], chosen: Tensor) -> Tensor:
        """(h, w) of one picture, against the chosen good ones."""
        gallery = [each[chosen].float() for each in self._gallery]
        squares = squared_distances(maps, gallery, self.config.neighbours, window=self.config.window)
        return squares.mean(dim=2)


class Spade:
    """The method: `fit` and `load` are the only ways to a detector."""

    def fit(
        self,
        images: Images,
        config: SpadeConfig,
        *,
        backbone: Backbone,
        seed: int,  # noqa: ARG002 - nothing is drawn
        scratch: Path | None = None,  # noqa: ARG002 - nothing is trained
        progress: Progress = silent,
    ) -> SpadeDetector:
        """Keep the features of these good pictures: 2 bytes a value, 1.2 MB a picture for 512 + 1024 channels.

        Raises:
            FitError: too few pictures, also for `neighbours`; the message says how many are needed.
        """
        fitted.check_enough(NAME, images, _FEWEST_IMAGES)
        gallery: list[Tensor] = []
        pooled = []
        for at in range(0, len(images), _FIT_BATCH):
            maps = list(backbone(images.pixels[at : at + _FIT_BATCH]).values())
            gallery = gallery or [m.new_empty(len(images), *m.shape[1:], dtype=torch.float16) for m in maps]
            for kept, seen in zip(gallery, maps, strict=True):
                kept[at : at + _FIT_BATCH] = seen
            pooled.append(_pooled(maps))
            progress("features", min(at + _FIT_BATCH, len(images)), len(images))
        if not all(bool(each.isfinite().all()) for each in gallery):
            raise FitError(f"the features of {backbone.spec.name} are not finite in float16: are these its weights?")
        most = _neighbours_max(gallery, config)
        if config.neighbours > most:
            raise FitError(f"there are {most} places to match at a picture's corner: fewer than {config.neighbours}")
        return SpadeDetector(gallery, torch.cat(pooled), config, images.size, backbone)

    def load(self, artifact: Artifact, *, backbone: Backbone) -> SpadeDetector:
        """The detector that `save` described.

        Raises:
            ArtifactError: a tensor or a setting is missing or does not fit, or another backbone made it.
        """
        config, size = fitted.from_meta(artifact, NAME, SpadeConfig, backbone)
        names = [f"gallery.{i}" for i in range(len(backbone.channels))]
        *gallery, pooled = fitted.tensors(artifact, [*names, "pooled"])
        channels = list(backbone.channels.values())
        count = pooled.shape[0] if pooled.dim() else 0
        if count < 1:
            raise ArtifactError("the gallery is empty")
        fitted.check_shape("pooled", pooled, (count, channels[-1]), torch.float32)
        for name, kept, c in zip(names, gallery, channels, strict=True):
            if kept.dim() != 4:
                raise ArtifactError(f"{name} must be (N, {c}, h, w), not {tuple(kept.shape)}")
            fitted.check_shape(name, kept, (count, c, *kept.shape[2:]), torch.float16)
        if config.neighbours > _neighbours_max(gallery, config):
            raise ArtifactError(f"the gallery is smaller than {config.neighbours} neighbours")
        return SpadeDetector(gallery, pooled, config, size, backbone)


def _neighbours_max(gallery: list[Tensor], config: SpadeConfig) -> int:
    """The largest k for which each position has as many matches in the K pictures it is compared with."""
    grids = [(each.shape[2], each.shape[3]) for each in gallery]
    return min(config.images, len(gallery[0])) * matches_min(grids, config.window)


def _pooled(maps: list[Tensor]) -> Tensor:
    """(B, C) means of the deepest layer."""
    return maps[-1].mean(dim=(2, 3))
