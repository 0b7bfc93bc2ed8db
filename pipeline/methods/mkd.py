"""MKD: "Multiresolution Knowledge Distillation for Anomaly Detection", Salehi et al., CVPR 2021.

fit: a small cloner learns to give what a large frozen network gives for good pictures, at several depths.
score: how far the two are apart, in value and in direction; the map is that loss's gradient by the picture.

Departures, and why:

* The source is whichever backbone is given, with layers at growing strides; the paper's is VGG16 at its pools, for
  which the cloner has the paper's channels. Each layer's values are divided by their deviation over the good pictures,
  one number a layer, because other networks' layers differ in scale by orders of magnitude.
* Where a source's layer takes negative values the cloner's convolution for it is linear; a ReLU could not follow.
* The loss is that of the released code, L_dir + weight * L_val; the paper writes L_val + lambda * L_dir.
* Of four layers or more the shallowest serves training alone, as in the paper; of fewer all serve both.
* A map's values are scaled by its 99th percentile, as in the paper, and then by the picture's loss: without that the
  brightest spot of a good picture would equal a defect's.
* `map="distance"` shows how far the two are apart at each place instead of the gradient, which said less well where
  defects are with the sources tried here.
* `patience` ends a training where held-out goods gain no more; the paper's has a fixed length, as is the default here.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline import fitted, learned, training
from pipeline.backbone import Backbone
from pipeline.cloner import Cloner, distances, doublings_of, place_distances
from pipeline.data import Artifact, Features, Images, Scores, Size
from pipeline.errors import ArtifactError, ConfigError, FitError, ShapeError
from pipeline.maps import opened, smooth, upsample
from pipeline.progress import Progress, silent
from pipeline.training import Checkpoint, HeldOut, train

NAME = "mkd"
_FEWEST_IMAGES = 2
_FIT_BATCH = 8
_CLIP = 0.99  # quantile of a map's values


@dataclass(frozen=True, kw_only=True)
class MkdConfig:
    """Settings; the defaults are the paper's.

    Attributes:
        side: pictures are resized to side x side pixels.
        weight: of the difference in value beside that in direction.
        epochs: passes over the good pictures.
        batch: pictures a step.
        rate: Adam's learning rate.
        sigma: Gaussian smoothing of the map, in pixels of `side`; 0 for none.
        map: the loss's gradient by the picture, or the networks' distance at each place.
        patience: epochs in a row in which held-out goods gain nothing, after which the training ends; 0 for never.
        held_out: share of the good pictures, at least one, that `patience` looks at and that are not trained on.
    """

    side: int = 128
    weight: float = 0.5
    epochs: int = 601
    batch: int = 64
    rate: float = 1e-3
    sigma: float = 4.0
    map: Literal["gradient", "distance"] = "gradient"
    patience: int = 0
    held_out: float = 0.1

    def __post_init__(self) -> None:
        if not 32 <= self.side <= 2048:
            raise ConfigError(f"side must be 32 to 2048 px, not {self.side}")
        if min(self.epochs, self.batch) < 1:
            raise ConfigError(f"epochs and batch must be at least 1, not {self.epochs} and {self.batch}")
        if not 0 <= self.weight <= 1e6 or not 0 < self.rate < 1:
            raise ConfigError(f"weight must not be negative and rate within 0 to 1, not {self.weight}, {self.rate}")
        if not 0 <= self.sigma <= 100:
            raise ConfigError(f"sigma must be 0 to 100 px, not {self.sigma}")
        if self.patience < 0 or not 0 < self.held_out < 1:
            raise ConfigError(
                f"patience must not be negative and held_out within 0 to 1, not {self.patience}, {self.held_out}"
            )


class MkdDetector:
    """A source and its cloner; never changed by scoring."""

    def __init__(
        self, cloner: Cloner, scales: Tensor, signed: list[bool], config: MkdConfig, size: Size, backbone: Backbone
    ) -> None:
        self.config = config
        self.image_size = size
        self._backbone = backbone
        self._cloner = cloner.to(backbone.device).eval().requires_grad_(requires_grad=False)
        self._scales = scales.to(backbone.device)
        self._signed = signed

    def embed(self, images: Tensor) -> Features:
        """Pictures as the networks see them.

        Args:
            images: (B, 3, H, W) uint8, RGB, of the size it was fitted at.

        Returns:
            "prepared": (B, 3, side, side) float32.

        Raises:
            ShapeError: another size, or not RGB.
        """
        fitted.check_pixels(images, self.image_size)
        return Features(
            maps={"prepared": _prepared(images, self.config.side, self._backbone)}, image_size=self.image_size
        )

    def score(self, features: Features) -> Scores:
        """How far source and cloner are apart.

        Args:
            features: from `embed`.

        Returns:
            image (B,): L_dir + weight * L_val, summed over layers; map (B, H, W).

        Raises:
            ShapeError: pictures of another side.
        """
        prepared, side = features.maps["prepared"], self.config.side
        if tuple(prepared.shape[1:]) != (3, side, side):
            raise ShapeError(f"pictures are {tuple(prepared.shape)}; the model needs (B, 3, {side}, {side})")
        losses, grid = self._by_gradient(prepared) if self.config.map == "gradient" else self._by_place(prepared)
        return Scores(image=losses, map=upsample(grid, features.image_size))

    def save(self) -> Artifact:
        """The cloner, and what its layers were scaled by."""
        tensors = learned.to_tensors({"cloner": self._cloner})
        meta = fitted.to_meta(self.config, self._backbone, self.image_size)
        return Artifact(
            method=NAME,
            tensors={**tensors, "scales": self._scales.cpu().clone()},
            meta={**meta, "signed": list(self._signed)},
        )

    def _by_gradient(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (B,), and their gradients as a map (B, side, side)."""
        # A gradient is wanted, whatever mode the caller runs in.
        with torch.inference_mode(mode=False), torch.enable_grad():
            x = prepared.clone().requires_grad_()
            losses = distances(*self._compared(x), self.config.weight)
            (gradient,) = torch.autograd.grad(losses.sum(), x)
        losses = losses.detach()
        return losses, _shown(gradient.abs().sum(dim=1), self.config.sigma) * losses.view(-1, 1, 1)

    @torch.inference_mode()
    def _by_place(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (B,), and the networks' distance at each place (B, side, side)."""
        made, wanted = self._compared(prepared)
        grid = place_distances(made, wanted, self.config.weight, self.config.side)
        return distances(made, wanted, self.config.weight), smooth(grid, self.config.sigma)

    def _compared(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The cloner's maps and the source's, of the layers that the loss has."""
        maps = self._backbone.differentiable(x).values()
        wanted = [each / scale for each, scale in zip(maps, self._scales, strict=True)]
        first = 1 if len(wanted) > 3 else 0
        return self._cloner(x)[first:], wanted[first:]


class _Goods(NamedTuple):
    """Good pictures (N, 3, side, side), the source's scaled maps of them, and which to learn from and to hold out."""

    pictures: Tensor
    wanted: list[Tensor]
    kept: Tensor
    held: Tensor


class Mkd:
    """The method: `fit` and `load` are the only ways to a detector."""

    def fit(
        self,
        images: Images,
        config: MkdConfig,
        *,
        backbone: Backbone,
        seed: int,
        scratch: Path | None = None,
        progress: Progress = silent,
    ) -> MkdDetector:
        """Train a cloner on these good pictures; with `patience` some of them are held out of all that is learnt.

        Raises:
            ConfigError: the backbone's layers do not grow in stride by powers of two.
            FitError: too few pictures; the message says how many are needed.
        """
        fitted.check_enough(NAME, images, _FEWEST_IMAGES)
        parts = torch.split(images.pixels, _FIT_BATCH)
        pictures = torch.cat([_prepared(part, config.side, backbone).cpu() for part in parts])
        wanted = _source(pictures, backbone, progress)
        kept, held = torch.arange(len(images)), torch.arange(0)
        if config.patience:
            kept, held = learned.split(images, config.held_out, seed)
        scales = torch.stack([each[kept].std() for each in wanted]).clamp(min=1e-6)
        if not bool(scales.isfinite().all()):
            raise FitError(f"the features of {backbone.spec.name} are not finite: are these the right weights?")
        signed = [bool((each[kept] < 0).any()) for each in wanted]
        wanted = [each.div_(scale) for each, scale in zip(wanted, scales, strict=True)]
        doublings = doublings_of(config.side, [each.shape[2:] for each in wanted])
        with training.seeded(seed):
            cloner = Cloner([each.shape[1] for each in wanted], doublings, signed).to(backbone.device)
        key = training.digest(NAME, asdict(config), seed, backbone.spec.to_meta(), images.pixels)
        checkpoint = Checkpoint(scratch, "mkd", key) if scratch else None
        self._train(cloner, _Goods(pictures, wanted, kept, held), config, backbone, seed, checkpoint, progress)
        return MkdDetector(cloner, scales, signed, config, images.size, backbone)

    def load(self, artifact: Artifact, *, backbone: Backbone) -> MkdDetector:
        """The detector that `save` described.

        Raises:
            ArtifactError: a tensor or a setting is missing or does not fit, or another backbone made it.
        """
        config, size = fitted.from_meta(artifact, NAME, MkdConfig, backbone)
        signed = artifact.meta.get("signed")
        channels = list(backbone.channels.values())
        if not isinstance(signed, list | tuple) or [type(each) for each in signed] != [bool] * len(channels):
            raise ArtifactError(f"signed must say yes or no for each of {len(channels)} layers, not {signed!r:.200}")
        blank = torch.zeros(1, 3, config.side, config.side, dtype=torch.uint8)
        with torch.inference_mode():
            maps = backbone.differentiable(_prepared(blank, config.side, backbone)).values()
        try:
            cloner = Cloner(channels, doublings_of(config.side, [each.shape[2:] for each in maps]), list(signed))
        except ConfigError as error:
            raise ArtifactError(f"{NAME}: {error}") from error
        (scales,) = learned.restore(artifact, {"cloner": cloner}, {"scales": (len(channels),)})
        if not bool((scales > 0).all()):
            raise ArtifactError("scales must be positive")
        return MkdDetector(cloner, scales, list(signed), config, size, backbone)

    @staticmethod
    def _train(
        cloner: Cloner,
        goods: "_Goods",
        config: MkdConfig,
        backbone: Backbone,
        seed: int,
        checkpoint: Checkpoint | None,
        progress: Progress,
    ) -> None:
        def loss_of(at: Tensor) -> Tensor:
            made = [each.float() for each in cloner(goods.pictures[at].to(backbone.device))]
            return distances(made, [each[at].to(backbone.device) for each in goods.wanted], config.weight)

        def held_loss() -> float:
            return float(torch.cat([loss_of(at) for at in torch.split(goods.held, config.batch)]).mean())

        count = len(goods.kept)
        epoch = training.steps_of(1, count, config.batch)
        train(
            cloner,
            lambda step, _: loss_of(goods.kept[training.batch_of(step, count, config.batch, seed)]).mean(),
            steps=config.epochs * epoch,
            optimiser=torch.optim.Adam(cloner.parameters(), lr=config.rate),
            rate=training.constant(config.rate),
            seed=seed,
            stage="cloner",
            held_out=HeldOut(loss=held_loss, every=epoch, patience=config.patience) if config.patience else None,
            checkpoint=checkpoint,
            progress=progress,
        )


def _shown(gradient: Tensor, sigma: float) -> Tensor:
    """(B, h, w): clipped at its 99th percentile, scaled to at most 1, smoothed, opened."""
    if gradient.shape[0] == 0:
        return gradient
    top = gradient.flatten(1).quantile(_CLIP, dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    scaled = torch.minimum(gradient / top.view(-1, 1, 1), gradient.new_ones(()))
    return opened(smooth(scaled, sigma))


def _prepared(images: Tensor, side: int, backbone: Backbone) -> Tensor:
    """(B, 3, side, side) float32, as the source wants it."""
    pixels = images.to(backbone.device, torch.float32)
    if tuple(images.shape[2:]) != (side, side):
        pixels = interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
    return backbone.prepare(pixels)


@torch.inference_mode()
def _source(pictures: Tensor, backbone: Backbone, progress: Progress) -> list[Tensor]:
    """The source's maps of all pictures, by layer, on the CPU."""
    parts: list[list[Tensor]] = []
    for at in range(0, len(pictures), _FIT_BATCH):
        progress("features", at, len(pictures))
        maps = backbone.differentiable(pictures[at : at + _FIT_BATCH].to(backbone.device))
        parts.append([each.cpu() for each in maps.values()])
    progress("features", len(pictures), len(pictures))
    # Copies: inference tensors take no part in a training.
    with torch.inference_mode(mode=False):
        return [torch.cat(list(each)).clone() for each in zip(*parts, strict=True)]
