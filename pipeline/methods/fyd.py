"""FYD: "Focus Your Distribution: Coarse-to-Fine Non-Contrastive Learning for Anomaly Detection [...]", ICME 2022.

Zheng et al.; the title goes on: "and Localization".

fit: spatial transformers learn to lay good pictures, then their feature maps, over one another; each position's
    Gaussian is taken of the aligned maps.
score: the Mahalanobis distance at each position of the aligned maps, laid back over the picture; the largest.

Departures, and why:

* There is no official code; what the paper leaves open follows RegAD (Huang et al. 2022), which is of the same style.
* The backbone is frozen and given whole, so that layers' transformers act on its outputs and are not fed forward.
* Transformers turn, scale and shift within bounds, and what all pictures share is taken off, see `alignment`; the
  paper's are affine.
* Stages: the image transformer by L_ICA alone; then the layers' transformers, encoder and predictor by L_FA on features
  of aligned pictures, at the deepest layer's grid. A weight then only scales a stage's rate; both are settings.
* A picture transformer that aligns next to nothing is set to rest, see `alignment.rest_unless_it_gains`.
* A distance map is laid back over the picture by the inverse warp, so that regions lie where the defect is.
* The embedding is PaDiM's: with `align=none` this is PaDiM with its paper's settings.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from pipeline import embedding as embedding_
from pipeline import fitted, gaussian, learned, training
from pipeline.alignment import (
    Fine,
    Localiser,
    aligned,
    features_of,
    image_loss,
    rest_unless_it_gains,
    settle,
    small,
    undone,
    warp,
)
from pipeline.backbone import Backbone
from pipeline.data import Artifact, Features, Images, Scores, Size
from pipeline.errors import ConfigError, FitError, ShapeError
from pipeline.maps import smoothed
from pipeline.progress import Progress, silent
from pipeline.training import Checkpoint, train

NAME = "fyd"
QUICK = {"epochs": 20}
_FIT_BATCH = 16
_FEWEST_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class FydConfig:
    """Settings; the defaults are the paper's where it says them, else RegAD's.

    Attributes:
        align: `coarse` (the picture), `fine` (the layers' maps), `both`, or `none`, which is the paper's PaDiM.
        dim: d, how many of the layers' channels are kept.
        image_weight: of L_ICA, lambda 1; a sweep's, as the paper's is not known.
        feature_weight: of L_FA, lambda 2.
        epochs: passes over the good pictures, in each stage.
        batch: pictures a step, at least 2.
        rate: of stochastic gradient descent with momentum 0.9, falling by half a cosine.
        ridge: added to the covariances' diagonals.
        sigma: Gaussian smoothing of the map, in picture pixels; 0 for none.
    """

    align: Literal["none", "coarse", "fine", "both"] = "both"
    dim: int = 100
    image_weight: float = 0.3
    feature_weight: float = 1.0
    epochs: int = 50
    batch: int = 32
    rate: float = 1e-4
    ridge: float = 0.01
    sigma: float = 4.0

    def __post_init__(self) -> None:
        if min(self.dim, self.epochs) < 1 or self.batch < 2:
            raise ConfigError(f"dim and epochs must be at least 1, batch 2: {self.dim}, {self.epochs}, {self.batch}")
        if not 0 < self.ridge < float("inf") or not 0 < self.rate < 1:
            raise ConfigError(f"ridge must be positive, rate within 0 to 1: {self.ridge}, {self.rate}")
        if not (0 <= self.image_weight <= 1e6 and 0 <= self.feature_weight <= 1e6):
            raise ConfigError(f"weights must be 0 to 1e6: {self.image_weight}, {self.feature_weight}")
        if not 0 <= self.sigma <= 100:
            raise ConfigError(f"sigma must be 0 to 100 px, not {self.sigma}")


class FydDetector:
    """Transformers, and a Gaussian at each position; never changed by scoring."""

    def __init__(
        self,
        nets: nn.ModuleDict,
        embedding: Tensor,
        means: Tensor,
        factors: Tensor,
        config: FydConfig,
        size: Size,
        backbone: Backbone,
    ) -> None:
        self.config = config
        self.image_size = size
        self._backbone = backbone
        self._nets = nets.to(backbone.device).eval().requires_grad_(requires_grad=False)
        self._embedding, self._means, self._factors = (each.to(backbone.device) for each in (embedding, means, factors))

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Features:
        """Aligned features at the first layer's grid.

        Args:
            images: (B, 3, H, W) uint8, RGB, of the size it was fitted at.

        Returns:
            "patch": (B, d, h, w) float32, and "warp": (B, 6), where each of its positions lies in the picture.

        Raises:
            ShapeError: another size, or not RGB.
        """
        fitted.check_pixels(images, self.image_size)
        maps, theta = aligned(images, self._nets, self._backbone)
        patches = embedding_.embed(maps, self._embedding)
        return Features(maps={"patch": patches, "warp": theta.flatten(1)}, image_size=self.image_size)

    @torch.inference_mode()
    def score(self, features: Features) -> Scores:
        """Mahalanobis distances.

        Args:
            features: from `embed`.

        Returns:
            map (B, H, W), smoothed, laid over the picture, and image (B,), the largest value before that.

        Raises:
            ShapeError: the grid or d differ from the fitted ones.
        """
        patches = features.maps["patch"]
        b, d, h, w = patches.shape
        if (h * w, d) != tuple(self._means.shape):
            raise ShapeError(f"features are {d} values at {h * w} places; the model has {tuple(self._means.shape)}")
        distances = gaussian.mahalanobis(embedding_.rows(patches), self._means, self._factors).view(b, h, w)
        scores = smoothed(distances, features.image_size, self.config.sigma)
        image = scores.flatten(1).amax(dim=1)
        if self._nets and b:
            back = undone(features.maps["warp"].view(b, 2, 3))
            scores = warp(scores.unsqueeze(1), back, padding="border").squeeze(1)
        return Scores(image=image, map=scores)

    def save(self) -> Artifact:
        """The transformers, the Gaussians, and what `embed` takes of the layers."""
        tensors = {
            **learned.to_tensors(dict(self._nets.items())),
            "embedding": self._embedding.cpu().clone(),
            "means": self._means.cpu().clone(),
            "factors": gaussian.pack(self._factors.cpu()),
        }
        return Artifact(method=NAME, tensors=tensors, meta=fitted.to_meta(self.config, self._backbone, self.image_size))


class Fyd:
    """The method: `fit` and `load` are the only ways to a detector."""

    def fit(
        self,
        images: Images,
        config: FydConfig,
        *,
        backbone: Backbone,
        seed: int,
        scratch: Path | None = None,
        progress: Progress = silent,
    ) -> FydDetector:
        """Align these good pictures, and take their Gaussians. Memory: as PaDiM, and all features in float16.

        Raises:
            FitError: too few pictures; the message says how many are needed.
        """
        fitted.check_enough(NAME, images, _FEWEST_IMAGES)
        with training.seeded(seed):
            nets = _networks(config, backbone)
            fine = Fine(sum(backbone.channels.values())).to(backbone.device)
        key = training.digest(NAME, asdict(config), seed, backbone.spec.to_meta(), images.pixels)
        if "picture" in nets:
            pictures = small(images.pixels.to(backbone.device))

            def coarse_loss(at: Tensor) -> Tensor:
                part = pictures[at]
                value: Tensor = config.image_weight * image_loss(warp(part, nets["picture"](part)))
                return value

            _run("picture", nets["picture"], coarse_loss, len(images), config, seed, scratch, key, progress)
            settle(nets["picture"], pictures)
            rest_unless_it_gains(nets["picture"], pictures)
        if any(name.startswith("layer") for name in nets):
            kept = features_of(images, nets, backbone, progress)

            def fine_loss(at: Tensor) -> Tensor:
                maps = [each[at].to(backbone.device, torch.float32) for each in kept]
                grid = maps[-1].shape[2:]
                laid = [warp(each, nets[f"layer{i}"](each)) for i, each in enumerate(maps)]
                together = torch.cat([adaptive_avg_pool2d(each, (grid[0], grid[1])) for each in laid], dim=1)
                value: Tensor = config.feature_weight * fine(together)
                return value

            learning = nn.ModuleDict({**nets, "fine": fine})
            learning.pop("picture") if "picture" in learning else None
            _run("layers", learning, fine_loss, len(images), config, seed, scratch, key, progress)
            for i, each in enumerate(kept):
                settle(nets[f"layer{i}"], each)
        return _with_gaussians(images, nets, config, backbone, seed, progress)

    def load(self, artifact: Artifact, *, backbone: Backbone) -> FydDetector:
        """The detector that `save` described.

        Raises:
            ArtifactError: a tensor or a setting is missing or does not fit, or another backbone made it.
        """
        config, size = fitted.from_meta(artifact, NAME, FydConfig, backbone)
        nets = _networks(config, backbone)
        prefixes = tuple(f"{name}." for name in nets)
        own = {name: tensor for name, tensor in artifact.tensors.items() if name.startswith(prefixes or ("\0",))}
        learned.restore(Artifact(method=NAME, tensors=own, meta=artifact.meta), dict(nets.items()), {})
        others = {name: tensor for name, tensor in artifact.tensors.items() if name not in own}
        embedding, means, packed = fitted.tensors(
            Artifact(method=NAME, tensors=others, meta=artifact.meta), ["embedding", "means", "factors"]
        )
        embedding_.check(embedding, sum(backbone.channels.values()), config.dim, "random")
        factors = gaussian.read(means, packed, embedding.shape[0])
        return FydDetector(nets, embedding, means, factors, config, size, backbone)


def _networks(config: FydConfig, backbone: Backbone) -> nn.ModuleDict:
    """The transformers that a setting asks for: of the picture, and of each layer."""
    nets = nn.ModuleDict()
    if config.align in {"coarse", "both"}:
        nets["picture"] = Localiser(3)
    if config.align in {"fine", "both"}:
        for i, channels in enumerate(backbone.channels.values()):
            nets[f"layer{i}"] = Localiser(channels)
    return nets.to(backbone.device)


def _with_gaussians(
    images: Images, nets: nn.ModuleDict, config: FydConfig, backbone: Backbone, seed: int, progress: Progress
) -> FydDetector:
    embedding = embedding_.choose(sum(backbone.channels.values()), config.dim, "random", seed).to(backbone.device)
    nets.eval()
    sums: gaussian.RunningSums | None = None
    for at in range(0, len(images), _FIT_BATCH):
        progress("gaussians", at, len(images))
        maps, _ = aligned(images.pixels[at : at + _FIT_BATCH], nets, backbone)
        rows = embedding_.rows(embedding_.embed(maps, embedding))
        if not bool(rows.isfinite().all()):
            raise FitError(f"the features of {backbone.spec.name} are not finite: are these the right weights?")
        sums = sums or gaussian.RunningSums(rows.mean(dim=0))
        sums.add(rows)
    progress("gaussians", len(images), len(images))
    assert sums is not None  # noqa: S101 - there are pictures
    means, factors = sums.gaussians(config.ridge)
    return FydDetector(nets, embedding, means, factors, config, images.size, backbone)


def _run(
    stage: str,
    module: nn.Module,
    loss: Callable[[Tensor], Tensor],
    count: int,
    config: FydConfig,
    seed: int,
    scratch: Path | None,
    key: str,
    progress: Progress,
) -> None:
    batch = min(config.batch, count)
    per_epoch = count // batch  # a last, smaller batch could be one picture, which makes no pair

    def step_loss(step: int, _generator: torch.Generator) -> Tensor:
        whole = step // per_epoch * training.steps_of(1, count, batch) + step % per_epoch
        return loss(training.batch_of(whole, count, batch, seed))

    train(
        module,
        step_loss,
        steps=config.epochs * per_epoch,
        optimiser=torch.optim.SGD(module.parameters(), lr=config.rate, momentum=0.9),
        rate=training.cosine(config.rate),
        seed=seed,
        stage=f"align {stage}",
        checkpoint=Checkpoint(scratch, f"fyd-{stage}", key) if scratch else None,
        progress=progress,
    )
