"""PaDiM: "A Patch Distribution Modeling Framework for Anomaly Detection and Localization", Defard et al., ICPR 2021.

fit: at each position of the feature grid, mean and covariance of the good pictures' concatenated features.
refit: the Gaussians' sums go on with further pictures, as if all had been there from the beginning.
score: the Mahalanobis distance at each position; the picture's is the largest of the smoothed map.

Departures, and why:

* The backbone and its layers are whichever are given; the paper's are ResNet-18 (d = 100) or Wide ResNet-50-2
  (d = 550), layers 1 to 3. Where the layers together have fewer than `dim` channels, all are taken.
* `embedding="semi-orthogonal"` projects to `dim` dimensions by a random semi-orthogonal matrix (Kim et al., "Semi-
  Orthogonal Embedding for Efficient Unsupervised Anomaly Segmentation", 2021; not re-read), no choice of channels.
* Three settings are not the paper's, and off by default. `embedding="principal"` projects to the axes along which good
  features vary most; `locally_aware` takes PatchCore's 3x3 means and interpolates deeper layers; `shrinkage` draws each
  position's covariance towards the mean of all positions', as some hundred pictures say little of some hundred
  dimensions.
* The paper fits once; `refit` is ours. It keeps the axes or channels of the first fit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pipeline import embedding as embedding_
from pipeline import fitted, gaussian
from pipeline.backbone import Backbone
from pipeline.data import Artifact, Features, Images, Scores, Size
from pipeline.errors import ArtifactError, ConfigError, FitError, ShapeError
from pipeline.gaussian import RunningSums, mahalanobis, pack
from pipeline.maps import smoothed
from pipeline.methods.base import Grown
from pipeline.progress import Progress, silent

NAME = "padim"
FIXTURED = {"dim": 128, "embedding": "principal", "locally_aware": True, "shrinkage": 0.2, "ridge": 1e-5}
_FIT_BATCH = 16
_FEWEST_IMAGES = 2
_MOST_IMAGES = 10**9
_COUNT = "images"


@dataclass(frozen=True, kw_only=True)
class PadimConfig:
    """Settings; the defaults are the paper's for ResNet-18.

    Attributes:
        dim: d, how many of the layers' channels (or dimensions of the projection) are kept.
        embedding: `random` channels, the same for all positions, a `semi-orthogonal` projection at random, or a
            projection to the `principal` axes of good features.
        locally_aware: features are 3x3 means, and deeper layers interpolated, as PatchCore's are.
        shrinkage: share of all positions' mean covariance in each position's, 0 to 0.9.
        ridge: added to the covariances' diagonals.
        sigma: Gaussian smoothing of the map, in picture pixels; 0 for none.
    """

    dim: int = 100
    embedding: Literal["random", "semi-orthogonal", "principal"] = "random"
    locally_aware: bool = False
    shrinkage: float = 0.0
    ridge: float = 0.01
    sigma: float = 4.0

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ConfigError(f"dim must be at least 1, not {self.dim}")
        if not 0 <= self.shrinkage <= 0.9:
            raise ConfigError(f"shrinkage must be 0 to 0.9, not {self.shrinkage}")
        if not 0 < self.ridge < float("inf"):
            raise ConfigError(f"ridge must be positive, not {self.ridge}")
        if not 0 <= self.sigma <= 100:
            raise ConfigError(f"sigma must be 0 to 100 px, not {self.sigma}")


class PadimDetector:
    """A Gaussian at each position, of `count` pictures; never changed by scoring."""

    def __init__(
        self,
        embedding: Tensor,
        means: Tensor,
        factors: Tensor,
        config: PadimConfig,
        size: Size,
        backbone: Backbone,
        count: int,
    ) -> None:
        self.config = config
        self.image_size = size
        self.count = count
        self._backbone = backbone
        self._embedding = embedding.to(backbone.device)
        self._means = means.to(backbone.device)
        self._factors = factors.to(backbone.device)

    def embed(self, images: Tensor) -> Features:
        """Concatenated features at the first layer's grid.

        Args:
            images: (B, 3, H, W) uint8, RGB, of the size it was fitted at.

        Returns:
            "patch": (B, d, h, w) float32.

        Raises:
            ShapeError: another size, or not RGB.
        """
        fitted.check_pixels(images, self.image_size)
        maps = list(self._backbone(images).values())
        patches = embedding_.embed(maps, self._embedding, locally_aware=self.config.locally_aware)
        return Features(maps={"patch": patches}, image_size=self.image_size)

    @torch.inference_mode()
    def score(self, features: Features) -> Scores:
        """Mahalanobis distances.

        Args:
            features: from `embed`; "patch" is (B, d, h, w) float32.

        Returns:
            map (B, H, W), smoothed, and image (B,), its largest value.

        Raises:
            ShapeError: the grid or d differ from the fitted ones.
        """
        patches = features.maps["patch"]
        b, d, h, w = patches.shape
        if (h * w, d) != tuple(self._means.shape):
            raise ShapeError(f"features are {d} values at {h * w} places; the model has {tuple(self._means.shape)}")
        distances = mahalanobis(embedding_.rows(patches), self._means, self._factors).view(b, h, w)
        scores = smoothed(distances, features.image_size, self.config.sigma)
        return Scores(image=scores.flatten(1).amax(dim=1), map=scores)

    def save(self) -> Artifact:
        """The Gaussians, with their factors' lower triangles, and what `embed` takes of the layers."""
        tensors = {
            "embedding": self._embedding.cpu().clone(),
            "means": self._means.cpu().clone(),
            "factors": pack(self._factors.cpu()),
        }
        meta = fitted.to_meta(self.config, self._backbone, self.image_size)
        return Artifact(method=NAME, tensors=tensors, meta={**meta, _COUNT: self.count})

    def sums(self) -> RunningSums:
        """What the Gaussians come from, to go on with."""
        return RunningSums.of(self._means, self._factors, self.count, self.config.ridge, self.config.shrinkage)

    def grown(self, sums: RunningSums) -> "PadimDetector":
        """The same but for its Gaussians."""
        means, factors = sums.gaussians(self.config.ridge, self.config.shrinkage)
        return PadimDetector(self._embedding, means, factors, self.config, self.image_size, self._backbone, sums.count)


class Padim:
    """The method: `fit` and `load` are the only ways to a detector."""

    def fit(
        self,
        images: Images,
        config: PadimConfig,
        *,
        backbone: Backbone,
        seed: int,
        scratch: Path | None = None,  # noqa: ARG002 - nothing is trained
        progress: Progress = silent,
    ) -> PadimDetector:
        """Gaussians of these good pictures. Memory: 12 P d^2 bytes; 11.4 GB at 56x56 and d = 550.

        With principal axes the backbone runs twice.

        Raises:
            FitError: too few pictures; the message says how many are needed.
        """
        fitted.check_enough(NAME, images, _FEWEST_IMAGES)
        embedding = _embedding(images, config, backbone, seed, progress)
        sums: RunningSums | None = None
        for maps in _maps(images, backbone, "features", progress):
            rows = embedding_.rows(embedding_.embed(maps, embedding, locally_aware=config.locally_aware))
            if not bool(rows.isfinite().all()):
                raise FitError(f"the features of {backbone.spec.name} are not finite: are these the right weights?")
            sums = sums or RunningSums(rows.mean(dim=0))
            sums.add(rows)
        assert sums is not None  # noqa: S101 - there are pictures
        means, factors = sums.gaussians(config.ridge, config.shrinkage)
        return PadimDetector(embedding, means, factors, config, images.size, backbone, len(images))

    def load(self, artifact: Artifact, *, backbone: Backbone) -> PadimDetector:
        """The detector that `save` described.

        Raises:
            ArtifactError: a tensor or a setting is missing or does not fit, or another backbone made it.
        """
        config, size = fitted.from_meta(artifact, NAME, PadimConfig, backbone)
        embedding, means, packed = fitted.tensors(artifact, ["embedding", "means", "factors"])
        embedding_.check(embedding, sum(backbone.channels.values()), config.dim, config.embedding)
        dim = embedding.shape[-1]
        factors = gaussian.read(means, packed, dim)
        count = artifact.meta.get(_COUNT, 0)
        if not isinstance(count, int) or not 0 <= count <= _MOST_IMAGES:
            raise ArtifactError(f"{_COUNT} must be how many pictures it was fitted on, not {count!r:.60}")
        return PadimDetector(embedding, means, factors, config, size, backbone, count)

    def can_refit(self, parent: object) -> bool:
        """Whether it says how many pictures it is the Gaussians of; those of before 0.2 do not."""
        return isinstance(parent, PadimDetector) and parent.count >= _FEWEST_IMAGES

    def refit(
        self,
        parent: PadimDetector,
        images: Images,
        *,
        new_share_max: float,
        seed: int,
        progress: Progress = silent,
    ) -> Grown:
        """The parent's sums and these pictures', along the parent's axes.

        Of too many for their share so many as fit in it are drawn by lot.

        Raises:
            ShapeError: the pictures are of another size.
            FitError: the features are not finite.
        """
        most = len(images)
        if new_share_max < 1:
            most = min(most, max(1, int(parent.count * new_share_max / (1 - new_share_max))))
        taken = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:most].sort().values
        sums = parent.sums()
        for at in range(0, most, _FIT_BATCH):
            progress("features", at, most)
            rows = embedding_.rows(parent.embed(images.pixels[taken[at : at + _FIT_BATCH]]).maps["patch"])
            if not bool(rows.isfinite().all()):
                raise FitError("the features of the new pictures are not finite: are these the right weights?")
            sums.add(rows)
        progress("features", most, most)
        return Grown(detector=parent.grown(sums), taken=tuple(taken.tolist()), new_share=most / sums.count)


def _embedding(images: Images, config: PadimConfig, backbone: Backbone, seed: int, progress: Progress) -> Tensor:
    """What `embed` takes of the layers, on the backbone's device."""
    channels = sum(backbone.channels.values())
    if config.embedding != "principal" or embedding_.chooses(config.embedding, config.dim, channels):
        return embedding_.choose(channels, config.dim, config.embedding, seed).to(backbone.device)
    seen = _maps(images, backbone, "axes", progress)
    return embedding_.principal(seen, config.dim, locally_aware=config.locally_aware)


def _maps(images: Images, backbone: Backbone, stage: str, progress: Progress) -> Iterator[list[Tensor]]:
    """The layers' maps of all pictures, some pictures at a time."""
    for at in range(0, len(images), _FIT_BATCH):
        progress(stage, at, len(images))
        yield list(backbone(images.pixels[at : at + _FIT_BATCH]).values())
    progress(stage, len(images), len(images))
