"""PatchCore: "Towards Total Recall in Industrial Anomaly Detection", Roth et al., CVPR 2022.

fit: a coreset of the good pictures' patch features, chosen by greedy k-centre selection, is the bank.
refit: the coreset of the bank and further pictures' patches, of the bank's size.
score: a patch's distance to the nearest row of the bank; the picture's is its worst patch's, re-weighted.

Departures, and why:

* The reference unfolds 3x3 patches and pools their values twice. Both poolings are linear, so one grouped
  convolution a layer gives the same numbers without the ninefold memory; pooling comes before upsampling,
  which is linear too, because deeper maps are smaller.
* Where the layers together have fewer than `dim` channels, each channel's 3x3 mean is taken as it is (D = sum
  of channels): pooling up to `dim` would repeat values and add no information.
* Re-weighting is on, as in the paper (equation 7), and distances are Euclidean. The released code leaves
  re-weighting out and uses squared distances: `reweight=False, squared=True`.
* The backbone is whichever is given; the paper's is Wide ResNet-50-2, layers 2 and 3.
* The paper fits once, takes Euclidean distances, and the score of the picture from one patch; `refit`, `whitening`
  and `image_score="map"` are ours.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pipeline import fitted, whitening
from pipeline.backbone import Backbone
from pipeline.coreset import extend, most_bytes, select
from pipeline.data import Artifact, Features, Images, Scores, Size
from pipeline.errors import ArtifactError, ConfigError, FitError, ShapeError
from pipeline.maps import smoothed
from pipeline.methods.base import Grown
from pipeline.neighbours import nearest, squared_norms
from pipeline.patches import Pooling, all_rows, feature_dim
from pipeline.progress import Progress, silent
from pipeline.pruning import PrunedBank
from pipeline.rounded import RoundedBank

NAME = "patchcore"
WHITENING_MAX = 0.99
_FEWEST_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class PatchCoreConfig:
    """Settings; the defaults are the paper's.

    Attributes:
        coreset: share of patch features kept, 0 to 1; the paper reports 0.01, 0.1 and 0.25.
        dim: dimension that the layers are pooled to, where they have as many channels.
        neighbours: b of the re-weighting, at least 2.
        image_score: `patch`, the paper's, for the worst patch's distance, or `map` for the largest of the smoothed
            map, as PaDiM's: one patch alone counts for less, and the heatmap peaks at what is decided on.
        reweight: whether a `patch` is re-weighted by how crowded the bank is around its match.
        squared: report squared distances, in the map and in the picture's score; weights stay Euclidean.
        whitening: share of the good features' covariance in the metric of distances, 0 to 0.99; 0, the paper's, for
            Euclidean ones. A refit from a model's own bank keeps its metric.
        sigma: Gaussian smoothing of the map, in picture pixels; 0 for none.
    """

    coreset: float = 0.01
    dim: int = 1024
    neighbours: int = 9
    image_score: Literal["patch", "map"] = "patch"
    reweight: bool = True
    squared: bool = False
    whitening: float = 0.0
    sigma: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.coreset <= 1:
            raise ConfigError(f"coreset must be above 0 and at most 1, not {self.coreset}")
        if self.dim < 1:
            raise ConfigError(f"dim must be at least 1, not {self.dim}")
        if self.neighbours < 2:
            raise ConfigError(f"neighbours must be at least 2 (with 1 every score is 0), not {self.neighbours}")
        if not 0 <= self.whitening <= WHITENING_MAX:
            raise ConfigError(f"whitening must be 0 to {WHITENING_MAX}, not {self.whitening}")
        if not 0 <= self.sigma <= 100:
            raise ConfigError(f"sigma must be 0 to 100 px, not {self.sigma}")


class PatchCoreDetector:
    """A bank of good patch features, able to score; never changed by scoring."""

    def __init__(
        self, bank: Tensor, config: PatchCoreConfig, image_size: Size, backbone: Backbone, axes: Tensor | None = None
    ) -> None:
        self.bank = bank.to(backbone.device, torch.float32).contiguous()
        self.config = config
        self.image_size = image_size
        self.backbone = backbone
        self.axes = None if axes is None else axes.to(backbone.device, torch.float32).contiguous()
        self._pooling = Pooling(tuple(backbone.channels.values()), config.dim, backbone.device)
        self._norms = squared_norms(self.bank)
        self._prepared = PrunedBank.of(self.bank) or RoundedBank.of(self.bank, config.neighbours * config.reweight)

    @property
    def bounded(self) -> bool:
        """Whether a bound rules most rows out, so that few distances are computed in full."""
        return isinstance(self._prepared, PrunedBank)

    def embed(self, images: Tensor) -> Features:
        """Locally aware patch features, in the metric that distances are taken in.

        Args:
            images: (B, 3, H, W) uint8, RGB, of the size it was fitted at.

        Returns:
            "patch": (B, D, h, w) float32, at the first layer's h and w.

        Raises:
            ShapeError: another size, or not RGB.
        """
        return _embed(images, self.image_size, self.backbone, self._pooling, self.axes)

    @torch.inference_mode()
    def score(self, features: Features) -> Scores:
        """Distance of each patch to the nearest row of the bank.

        Args:
            features: from `embed`; "patch" is (B, D, h, w) float32.

        Returns:
            Distances, squared where `squared`: image (B,), as `image_score` says, and map (B, H, W), smoothed.

        Raises:
            ShapeError: D differs from the bank's.
        """
        patches = features.maps["patch"]
        b, d, h, w = patches.shape
        if d != self.bank.shape[1]:
            raise ShapeError(f"patch features have {d} dimensions, the bank needs {self.bank.shape[1]}")
        rows = patches.permute(0, 2, 3, 1).reshape(b * h * w, d)
        distances, found = self.match(rows)
        squares = distances.view(b, h * w)
        grid = (squares if self.config.squared else squares.sqrt()).view(b, h, w)
        if b == 0:
            return Scores(image=grid.new_zeros(0), map=grid.new_zeros(0, *features.image_size))
        maps = smoothed(grid, features.image_size, self.config.sigma)
        if self.config.image_score == "map":
            return Scores(image=maps.flatten(1).amax(dim=1), map=maps)
        worst_square, worst = squares.max(dim=1)
        image = grid.flatten(1).amax(dim=1)
        if self.config.reweight:
            at = torch.arange(b, device=worst.device) * (h * w) + worst
            image = image * self._weights(rows[at], found.view(-1)[at], worst_square.sqrt())
        return Scores(image=image, map=maps)

    def match(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The row of the bank nearest to each patch, exactly.

        Args:
            rows: (N, D) float32, patches.

        Returns:
            Squared distances (N, 1) float32 and rows of the bank (N, 1) int64.
        """
        if self._prepared:
            return self._prepared.nearest(rows)
        return nearest(rows, self.bank, bank_norms=self._norms)

    def save(self) -> Artifact:
        """The bank, the settings and the backbone's description."""
        meta = fitted.to_meta(self.config, self.backbone, self.image_size)
        tensors = {"bank": self.bank} if self.axes is None else {"bank": self.bank, "axes": self.axes}
        return Artifact(method=NAME, tensors={name: each.cpu().clone() for name, each in tensors.items()}, meta=meta)

    def _weights(self, worst: Tensor, found: Tensor, distance: Tensor) -> Tensor:
        """1 - exp(s*) / sum over m in N_b(m*) of exp ||m_test* - m||, without overflow.

        Args:
            worst: (B, D), m_test*, each picture's patch with the largest nearest distance.
            found: (B,), the row m* of the bank nearest to it.
            distance: (B,), s*, between the two.

        Returns:
            (B,) within 0 to 1.
        """
        prepared, b = self._prepared, self.config.neighbours
        around = prepared.around(found, b) if prepared else nearest(self.bank[found], self.bank, b)[1]
        others = (self.bank[around] - worst.unsqueeze(1)).square_().sum(dim=2).sqrt_()
        largest = torch.maximum(others.amax(dim=1), distance)
        share = torch.exp(distance - largest) / torch.exp(others - largest.unsqueeze(1)).sum(dim=1)
        return (1 - share).clamp_(0, 1)


class PatchCore:
    """The method: `fit` and `load` are the only ways to a detector."""

    def fit(
        self,
        images: Images,
        config: PatchCoreConfig,
        *,
        backbone: Backbone,
        seed: int,
        scratch: Path | None = None,  # noqa: ARG002 - nothing is trained
        progress: Progress = silent,
    ) -> PatchCoreDetector:
        """A bank of these good pictures; memory as `fit_bytes` says.

        Raises:
            FitError: too few pictures, or too small a coreset; the message says how much is needed.
        """
        fitted.check_enough(NAME, images, _FEWEST_IMAGES)
        pooling = Pooling(tuple(backbone.channels.values()), config.dim, backbone.device)
        features = all_rows(images, lambda pixels: _embed(pixels, images.size, backbone, pooling), progress)
        count = max(1, int(features.shape[0] * config.coreset))
        if config.reweight and count < config.neighbours:
            share = math.ceil(1e4 * config.neighbours / features.shape[0]) / 1e4
            raise FitError(
                f"a bank of {count} rows is smaller than neighbours = {config.neighbours}: give more "
                f"pictures, or a coreset of at least {share} instead of {config.coreset}"
            )
        if not bool(features.isfinite().all()):
            raise FitError(f"the features of {backbone.spec.name} are not finite: are these the right weights?")
        axes = whitening.axes_of(features, config.whitening) if config.whitening else None
        if axes is not None:
            features = whitening.turned(features, axes)
        if count < features.shape[0]:
            features = features[select(features, count, seed=seed, progress=progress)]
        return PatchCoreDetector(features, config, images.size, backbone, axes)

    def fit_bytes(self, count: int, config: PatchCoreConfig, *, backbone: Backbone, size: Size) -> int:
        """Of `count` pictures: all patch features and their coreset's."""
        first = next(iter(backbone(torch.zeros(1, 3, *size, dtype=torch.uint8)).values()))
        rows, dim = count * first.shape[2] * first.shape[3], feature_dim(tuple(backbone.channels.values()), config.dim)
        return most_bytes(rows, dim, max(1, int(rows * config.coreset)), device=backbone.device)

    def load(self, artifact: Artifact, *, backbone: Backbone) -> PatchCoreDetector:
        """The detector that `save` described.

        Raises:
            ArtifactError: a tensor or a setting is missing or does not fit, or another backbone made it.
        """
        config, size = fitted.from_meta(artifact, NAME, PatchCoreConfig, backbone)
        bank, *more = fitted.tensors(artifact, ["bank", "axes"] if config.whitening else ["bank"])
        dim = feature_dim(tuple(backbone.channels.values()), config.dim)
        fewest = config.neighbours if config.reweight else 1
        if bank.dtype != torch.float32 or bank.dim() != 2 or bank.shape[1] != dim or bank.shape[0] < fewest:
            seen = f"{tuple(bank.shape)} {bank.dtype}"
            raise ArtifactError(f"bank must be (M >= {fewest}, {dim}) float32, not {seen}")
        for axes in more:
            fitted.check_shape("axes", axes, (dim, dim), torch.float32)
        return PatchCoreDetector(bank, config, size, backbone, *more)

    def can_refit(self, parent: object) -> bool:
        """A bank is all it takes."""
        return isinstance(parent, PatchCoreDetector)

    def refit(
        self,
        parent: PatchCoreDetector,
        images: Images,
        *,
        new_share_max: float,
        seed: int,
        progress: Progress = silent,
    ) -> Grown:
        """The coreset of the parent's bank and these pictures' patches, as large as that bank.

        Greedy selection takes what lies farthest first, and so what is wrong before what is new. Where new patches may
        have a share alone, these are the ones farthest from the bank and from each other; the coreset of them and the
        bank then drops those rows that others cover best.

        Memory: all new patch features, N * D float32, twice, and their coreset's.

        Raises:
            ShapeError: the pictures are of another size.
            FitError: the features are not finite.
        """
        bank = parent.bank
        rows = all_rows(images, parent.embed, progress)
        if not bool(rows.isfinite().all()):
            raise FitError("the features of the new pictures are not finite: are these the right weights?")
        count = len(bank)
        most = int(count * new_share_max)
        if most < count:
            few = min(most, len(rows))
            rows = rows[extend(bank, rows, few, seed=seed, progress=progress)] if few else rows[:0]
        both = torch.cat([bank, rows])
        chosen = select(both, count, seed=seed, progress=progress)
        grown = PatchCoreDetector(both[chosen], parent.config, parent.image_size, parent.backbone, parent.axes)
        new = int((chosen >= count).sum())
        return Grown(detector=grown, taken=tuple(range(len(images))), new_share=new / count)


@torch.inference_mode()
def _embed(images: Tensor, size: Size, backbone: Backbone, pooling: Pooling, axes: Tensor | None = None) -> Features:
    fitted.check_pixels(images, size)
    patches = pooling(list(backbone(images).values()))
    if axes is not None:
        patches = (patches.permute(0, 2, 3, 1) @ axes).permute(0, 3, 1, 2)
    return Features(maps={"patch": patches}, image_size=size)
