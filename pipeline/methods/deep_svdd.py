"""Deep SVDD: "Deep One-Class Classification", Ruff et al., ICML 2018.

fit: a small network learns to send good pictures near one centre; an autoencoder gives it its first weights.
score: the squared distance from the centre, less the squared radius for a soft boundary. Pictures only: the map is
    zero.

Departures, and why:

* Pictures are resized to `side`, the paper's 32 of CIFAR-10, whose network it is; a defect smaller than a pixel of that
  cannot be seen. The published average on MVTec AD is about 0.59 (not re-read): take it as a baseline.
* As in the released code each picture is scaled by its own mean absolute deviation, then by the goods' least and
  largest value; those two are the fit's own, not constants (not re-read).
* The autoencoder's second half, which no model keeps, is a linear map and three convolutions after nearest upsampling;
  the released code's has four transposed convolutions from a code in 4x4.
* The backbone is not run. The model names it all the same, as every model does.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pipeline import fitted, learned, training
from pipeline.backbone import Backbone
from pipeline.data import Artifact, Features, Images, Scores, Size
from pipeline.errors import ArtifactError, ConfigError, FitError, ShapeError
from pipeline.one_class import CODE, Decoder, Encoder, Objective, centre_of, reconstruction, squared
from pipeline.progress import Progress, silent
from pipeline.training import Checkpoint, train

NAME = "deep_svdd"
QUICK = {"pretrain_epochs": 60, "epochs": 60, "batch": 32, "rate": 1e-3}
_FEWEST_IMAGES = 2
_FIT_BATCH = 64
_LEAST_DEVIATION = 1e-6  # of an even picture
_PRETRAIN_DROP_EPOCH, _DROP_EPOCH = 250, 50


@dataclass(frozen=True, kw_only=True)
class DeepSvddConfig:
    """Settings; the defaults are the paper's for CIFAR-10.

    Attributes:
        objective: `one-class`, or `soft-boundary` with a radius that a share `nu` of the goods may exceed.
        side: pictures are resized to side x side pixels, a multiple of 8.
        pretrain_epochs: of the autoencoder.
        epochs: of the network.
        batch: pictures a step.
        rate: Adam's learning rate; a tenth of it from epoch 250 on in the pretraining, 50 after it.
        weight_decay: of both trainings.
        nu: see `objective`.
    """

    objective: Literal["one-class", "soft-boundary"] = "one-class"
    side: int = 32
    pretrain_epochs: int = 350
    epochs: int = 150
    batch: int = 200
    rate: float = 1e-4
    weight_decay: float = 5e-7
    nu: float = 0.1

    def __post_init__(self) -> None:
        if not 16 <= self.side <= 512 or self.side % 8:
            raise ConfigError(f"side must be a multiple of 8 from 16 to 512 px, not {self.side}")
        if self.epochs < 1 or self.batch < 1 or self.pretrain_epochs < 0:
            raise ConfigError(
                f"epochs and batch must be at least 1, pretrain_epochs not negative: {self.epochs}, {self.batch}, "
                f"{self.pretrain_epochs}"
            )
        if not 0 < self.rate < 1 or not 0 <= self.weight_decay < 1 or not 0 < self.nu < 1:
            raise ConfigError(
                f"rate, weight_decay and nu are within 0 to 1: {self.rate}, {self.weight_decay}, {self.nu}"
            )


class DeepSvddDetector:
    """A network and a centre; never changed by scoring."""

    def __init__(
        self,
        encoder: Encoder,
        centre: Tensor,
        radius: Tensor,
        extent: Tensor,
        config: DeepSvddConfig,
        size: Size,
        backbone: Backbone,
    ) -> None:
        self.config = config
        self.image_size = size
        self._backbone = backbone
        self._encoder = encoder.to(backbone.device).eval().requires_grad_(requires_grad=False)
        self._centre, self._radius, self._extent = (each.to(backbone.device) for each in (centre, radius, extent))

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Features:
        """Embeddings.

        Args:
            images: (B, 3, H, W) uint8, RGB, of the size it was fitted at.

        Returns:
            "embedding": (B, 128) float32.

        Raises:
            ShapeError: another size, or not RGB.
        """
        fitted.check_pixels(images, self.image_size)
        pictures = _scaled(_contrast(images, self.config.side, self._backbone.device), self._extent)
        return Features(maps={"embedding": self._encoder(pictures)}, image_size=self.image_size)

    @torch.inference_mode()
    def score(self, features: Features) -> Scores:
        """Squared distances from the centre, less the squared radius.

        Args:
            features: from `embed`.

        Returns:
            image (B,), and map (B, H, W) of zeros: this method does not localise.

        Raises:
            ShapeError: embeddings of another length.
        """
        embedding = features.maps["embedding"]
        if embedding.dim() != 2 or embedding.shape[1] != CODE:
            raise ShapeError(f"embeddings are {tuple(embedding.shape)}, not (B, {CODE})")
        image = (embedding - self._centre).square().sum(dim=1) - self._radius.square()
        return Scores(image=image, map=image.new_zeros(len(image), *features.image_size))

    def save(self) -> Artifact:
        """The network, the centre, the radius and the goods' extent."""
        tensors = {
            **learned.to_tensors({"encoder": self._encoder}),
            "centre": self._centre.cpu().clone(),
            "radius": self._radius.cpu().clone(),
            "extent": self._extent.cpu().clone(),
        }
        meta = fitted.to_meta(self.config, self._backbone, self.image_size)
        return Artifact(method=NAME, tensors=tensors, meta={**meta, "localises": False})


class DeepSvdd:
    """The method: `fit` and `load` are the only ways to a detector."""

    def fit(
        self,
        images: Images,
        config: DeepSvddConfig,
        *,
        backbone: Backbone,
        seed: int,
        scratch: Path | None = None,
        progress: Progress = silent,
    ) -> DeepSvddDetector:
        """Train on these good pictures.

        Raises:
            FitError: too few pictures; the message says how many are needed.
        """
        fitted.check_enough(NAME, images, _FEWEST_IMAGES)
        device = backbone.device
        raw = torch.cat([_contrast(part, config.side, device) for part in torch.split(images.pixels, _FIT_BATCH)])
        extent = torch.stack([raw.min(), raw.max()])
        if not bool(extent[1] > extent[0]):
            raise FitError("all pictures are one even tone: there is nothing to learn")
        pictures = _scaled(raw, extent)
        with training.seeded(seed):
            encoder, decoder = Encoder(config.side).to(device), Decoder(config.side).to(device)
        key = training.digest(NAME, asdict(config), seed, images.pixels)

        def run(stage: str, module: nn.Module, loss: Callable[[int, Tensor], Tensor], epochs: int, drop: int) -> None:
            per_epoch = training.steps_of(1, len(pictures), config.batch)
            train(
                module,
                lambda step, _: loss(
                    step // per_epoch, pictures[training.batch_of(step, len(pictures), config.batch, seed)]
                ),
                steps=epochs * per_epoch,
                optimiser=torch.optim.Adam(module.parameters(), lr=config.rate, weight_decay=config.weight_decay),
                rate=training.dropped(config.rate, at=min(1.0, drop / epochs)),
                seed=seed,
                stage=stage,
                checkpoint=Checkpoint(scratch, f"{NAME}-{stage.replace(' ', '-')}", key) if scratch else None,
                progress=progress,
            )

        both = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        if config.pretrain_epochs:
            drop = _PRETRAIN_DROP_EPOCH
            run("autoencoder", both, lambda _, x: reconstruction(encoder, decoder, x), config.pretrain_epochs, drop)
        objective = Objective(encoder, centre_of(_embedded(encoder.eval(), pictures)), config.objective, config.nu)
        run("one class", objective, objective, config.epochs, _DROP_EPOCH)
        if config.objective == "soft-boundary":
            objective.renew(squared(_embedded(encoder.eval(), pictures), objective.centre))
        return DeepSvddDetector(encoder, objective.centre, objective.radius, extent, config, images.size, backbone)

    def load(self, artifact: Artifact, *, backbone: Backbone) -> DeepSvddDetector:
        """The detector that `save` described.

        Raises:
            ArtifactError: a tensor or a setting is missing or does not fit, or another backbone made it.
        """
        config, size = fitted.from_meta(artifact, NAME, DeepSvddConfig, backbone)
        encoder = Encoder(config.side)
        others: dict[str, tuple[int, ...]] = {"centre": (CODE,), "radius": (), "extent": (2,)}
        centre, radius, extent = learned.restore(artifact, {"encoder": encoder}, others)
        learned.check_increasing("extent", extent)
        if artifact.meta.get("localises") is not False:
            raise ArtifactError("a model of deep_svdd says that it does not localise")
        return DeepSvddDetector(encoder, centre, radius, extent, config, size, backbone)


@torch.no_grad()
def _embedded(encoder: Encoder, pictures: Tensor) -> Tensor:
    return torch.cat([encoder(part) for part in torch.split(pictures, _FIT_BATCH)])


def _contrast(images: Tensor, side: int, device: torch.device) -> Tensor:
    """(B, 3, side, side) float32: each picture less its mean, over its mean absolute deviation."""
    pixels = images.to(device, torch.float32) / 255
    small = interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
    centred = small - small.mean(dim=(1, 2, 3), keepdim=True)
    return centred / centred.abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=_LEAST_DEVIATION)


def _scaled(pictures: Tensor, extent: Tensor) -> Tensor:
    """From the goods' extent to 0..1; what no good picture has lies outside."""
    low, high = extent
    scaled: Tensor = (pictures - low) / (high - low)
    return scaled
