"""EfficientAD: "Accurate Visual Anomaly Detection at Millisecond-Level Latencies", Batzner et al., WACV 2024.

fit: a student learns to imitate a small teacher on good pictures, an autoencoder to imitate it from the whole picture.
score: where the student differs from the teacher, and from the autoencoder; the picture's is the map's largest value.

Departures, and why:

* The teacher is distilled inside `fit` from the backbone that is given (the paper's is Wide ResNet-101-2, layers 2 and
  3) on the pictures in `photos` (the paper's are ImageNet's; drawn ones if there are none), so that no file is needed
  from elsewhere. With fewer than `dim` channels in the layers, the networks are as wide as those.
* Pictures may have any size from 64 px: the autoencoder's sizes scale with it, and at 256 px they are the paper's.
* The teacher's distillation leaves out the border cells, whose patches are not whole, in place of zeros around them.
* All networks start from He's weights, and `one_cycle` with higher rates makes trainings of minutes useful; the quick
  settings take both. `crop_px` makes a step cheaper; no setting takes it unasked. Crops keep the losses' expectations,
  but for the share of hard features, which is of the crop's: a crop without a hard place has its own hardest counted.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline import fitted, imitation, learned, pdn, training
from pipeline.backbone import Backbone
from pipeline.data import Artifact, Features, Images, Scores, Size
from pipeline.errors import ArtifactError, ConfigError, FitError, ShapeError
from pipeline.maps import upsample
from pipeline.natural import NaturalPictures
from pipeline.patches import feature_dim
from pipeline.pdn import BORDER, SMALLEST_PX
from pipeline.progress import Progress, silent

NAME = "efficientad"
QUICK = {
    "teacher_px": 96,
    "teacher_steps": 500,
    "teacher_batch": 16,
    "teacher_rate": 1e-3,
    "statistics": 320,
    "steps": 1200,
    "rate": 2e-4,
    "one_cycle": True,
}
_FEWEST_IMAGES = 2
_QUANTILES = (0.9, 0.995)
_TOP = 0.1  # what the second quantile is mapped to
_DROP_AT = 0.95
_BATCH = 8
_LEAST_SPREAD = 1e-6


@dataclass(frozen=True, kw_only=True)
class EfficientAdConfig:
    """Settings; the defaults are the paper's.

    Attributes:
        model: the small or the medium patch description network.
        photos: a folder of natural pictures; empty for drawn ones.
        dim: channels that the backbone's features are pooled to, where it has as many.
        teacher_px: side of the pictures that the teacher is distilled on; the backbone sees them twice as large.
        teacher_steps: of distillation.
        teacher_batch: pictures a step of it.
        teacher_rate: its learning rate.
        statistics: natural pictures that give the mean and deviation of the backbone's features.
        steps: of the student and the autoencoder, each with one picture.
        rate: their learning rate.
        weight_decay: of all trainings.
        one_cycle: rates rise and fall by cosines; otherwise constant, and the student's a tenth from 95 %.
        crop_px: the student sees crops of this side in training, a multiple of 4 from 40; 0 for whole pictures.
        hard: quantile of the squared differences from which on they count in the student's loss.
        held_out: share of the good pictures, at least one, that the maps' quantiles are taken of.
    """

    model: Literal["s", "m"] = "s"
    photos: str = ""
    dim: int = 384
    teacher_px: int = 256
    teacher_steps: int = 60_000
    teacher_batch: int = 16
    teacher_rate: float = 1e-4
    statistics: int = 10_000
    steps: int = 70_000
    rate: float = 1e-4
    weight_decay: float = 1e-5
    one_cycle: bool = False
    crop_px: int = 0
    hard: float = 0.999
    held_out: float = 0.1

    def __post_init__(self) -> None:
        for name in ("dim", "teacher_steps", "teacher_batch", "statistics", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.teacher_px < SMALLEST_PX or self.teacher_px % 4:
            raise ConfigError(f"teacher_px must be a multiple of 4 from {SMALLEST_PX}, not {self.teacher_px}")
        if self.crop_px and (self.crop_px < 40 or self.crop_px % imitation.STRIDE):
            raise ConfigError(f"crop_px must be 0 or a multiple of 4 from 40, not {self.crop_px}")
        for name in ("teacher_rate", "rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be above 0 and at most 1, not {getattr(self, name)}")
        if not 0 <= self.weight_decay <= 1:
            raise ConfigError(f"weight_decay must be 0 to 1, not {self.weight_decay}")
        if not 0 <= self.hard < 1:
            raise ConfigError(f"hard must be at least 0 and below 1, not {self.hard}")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out must be above 0 and below 1, not {self.held_out}")


class EfficientAdDetector:
    """Three networks and the scales of their two maps; never changed by scoring.

    Attributes:
        quantiles: (2, 2) float32, by map (student's, autoencoder's) the two quantiles over held-out goods.
    """

    def __init__(
        self, nets: imitation.Nets, quantiles: Tensor, config: EfficientAdConfig, size: Size, backbone: Backbone
    ) -> None:
        self.config = config
        self.image_size = size
        self.quantiles = quantiles.to(backbone.device)
        self._nets = learned.freeze(learned.ready(nets, backbone.device))
        self._backbone = backbone

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Features:
        """Outputs of the three networks.

        Args:
            images: (B, 3, H, W) uint8, RGB, of the size it was fitted at.

        Returns:
            "teacher" (B, D, h, w), "student" (B, 2 D, h, w), "autoencoder" (B, D, h, w), float32.

        Raises:
            ShapeError: another size, or not RGB.
        """
        fitted.check_pixels(images, self.image_size)
        outputs = self._nets(learned.normalised(images, self._backbone.device))
        names = ("teacher", "student", "autoencoder")
        return Features(maps=dict(zip(names, outputs, strict=True)), image_size=self.image_size)

    @torch.inference_mode()
    def score(self, features: Features) -> Scores:
        """Mean of the two maps, each scaled by its quantiles.

        Args:
            features: from `embed`.

        Returns:
            map (B, H, W), and image (B,), its largest value; the 0.9 quantile of held-out goods is about 0, the 0.995
            quantile about 0.1.

        Raises:
            ShapeError: the outputs do not fit each other.
        """
        teacher, student, autoencoder = (features.maps[name] for name in ("teacher", "student", "autoencoder"))
        if teacher.shape != autoencoder.shape or student.shape[1] != 2 * teacher.shape[1]:
            raise ShapeError(f"outputs are {tuple(teacher.shape)}, {tuple(student.shape)}, {tuple(autoencoder.shape)}")
        maps = normalise(differences(teacher, student, autoencoder), self.quantiles).mean(dim=1)
        scores = upsample(functional.pad(maps, [BORDER] * 4), features.image_size)
        return Scores(image=scores.flatten(1).amax(dim=1), map=scores)

    def save(self) -> Artifact:
        """Weights of the networks, the teacher's with its normalisation in them, and the quantiles."""
        tensors = {**learned.to_tensors({"nets": self._nets}), "quantiles": self.quantiles.cpu().clone()}
        return Artifact(method=NAME, tensors=tensors, meta=fitted.to_meta(self.config, self._backbone, self.image_size))


class EfficientAd:
    """The method: `fit` and `load` are the only ways to a detector."""

    def fit(
        self,
        images: Images,
        config: EfficientAdConfig,
        *,
        backbone: Backbone,
        seed: int,
        scratch: Path | None = None,
        progress: Progress = silent,
    ) -> EfficientAdDetector:
        """Distil the teacher, train the student and the autoencoder, take the quantiles.

        A teacher in `scratch` serves every product: it depends on the backbone, the photos and the seed alone.

        Raises:
            FitError: too few pictures, or too small ones; the message says what is needed.
            ConfigError: `photos` names no folder with pictures.
        """
        fitted.check_enough(NAME, images, _FEWEST_IMAGES)
        if min(images.size) < SMALLEST_PX:
            raise FitError(f"{NAME} needs pictures of at least {SMALLEST_PX} px a side, not {images.size}")
        pictures = NaturalPictures.of_folder(config.photos, seed)
        train, held = learned.split(images, config.held_out, seed)
        with training.seeded(seed + 1):
            nets = imitation.Nets(config.model, images.size, feature_dim(tuple(backbone.channels.values()), config.dim))
        nets.teacher = _distil(backbone, config, pictures, seed, scratch, progress)
        learned.ready(nets, backbone.device)
        pdn.normalise_outputs(nets.teacher, images.pixels[train], progress)
        key = training.digest(asdict(config), pictures.listing(), seed, images.pixels, backbone.spec.to_meta())
        checkpoint = training.Checkpoint(scratch, f"{NAME}-student", key) if scratch else None
        how = imitation.Imitation(
            images=images.pixels[train],
            natural=pictures,
            crop_px=config.crop_px,
            hard=config.hard,
            steps=config.steps,
            rate=_rate(config, config.rate, _DROP_AT),
            weight_decay=config.weight_decay,
            seed=seed,
        )
        imitation.train(nets, how, checkpoint=checkpoint, progress=progress)
        quantiles = _quantiles(nets, images.pixels[held], progress)
        return EfficientAdDetector(nets, quantiles, config, images.size, backbone)

    def load(self, artifact: Artifact, *, backbone: Backbone) -> EfficientAdDetector:
        """The detector that `save` described.

        Raises:
            ArtifactError: a tensor or a setting is missing or does not fit, or another backbone made it.
        """
        config, size = fitted.from_meta(artifact, NAME, EfficientAdConfig, backbone)
        if min(size) < SMALLEST_PX:
            raise ArtifactError(f"image_size must be at least {SMALLEST_PX}, not {size}")
        with torch.device("meta"):
            nets = imitation.Nets(config.model, size, feature_dim(tuple(backbone.channels.values()), config.dim))
        (quantiles,) = learned.restore(artifact, {"nets": nets}, {"quantiles": (2, 2)})
        learned.check_increasing("quantiles", quantiles)
        return EfficientAdDetector(nets, quantiles, config, size, backbone)


def differences(teacher: Tensor, student: Tensor, autoencoder: Tensor) -> Tensor:
    """Squared differences, averaged over channels: student's and autoencoder's, (B, 2, h, w)."""
    first, second = student.chunk(2, dim=1)
    return torch.stack([(teacher - first).square().mean(dim=1), (autoencoder - second).square().mean(dim=1)], dim=1)


def normalise(maps: Tensor, quantiles: Tensor) -> Tensor:
    """(B, 2, h, w) with the first quantile mapped to 0, the second to 0.1."""
    low, high = quantiles.view(1, 2, 2, 1, 1).unbind(dim=2)
    return _TOP * (maps - low) / (high - low)


def _rate(config: EfficientAdConfig, rate: float, dropped_at: float) -> training.Rate:
    return training.one_cycle(rate) if config.one_cycle else training.dropped(rate, dropped_at)


def _distil(
    backbone: Backbone,
    config: EfficientAdConfig,
    pictures: NaturalPictures,
    seed: int,
    scratch: Path | None,
    progress: Progress,
) -> nn.Sequential:
    how = pdn.Distillation(
        kind=config.model,
        dim=config.dim,
        pictures=pictures,
        side_px=config.teacher_px,
        counted=config.statistics,
        steps=config.teacher_steps,
        batch=config.teacher_batch,
        rate=_rate(config, config.teacher_rate, 1.0),
        weight_decay=config.weight_decay,
        seed=seed,
    )
    said = [getattr(config, name) for name in ("model", "dim", "statistics", "weight_decay", "one_cycle")]
    said += [value for name, value in asdict(config).items() if name.startswith("teacher_")]
    key = training.digest(said, pictures.listing(), seed, backbone.spec.to_meta())
    checkpoint = training.Checkpoint(scratch, f"{NAME}-teacher", key) if scratch else None
    return pdn.distil(backbone, how, checkpoint=checkpoint, progress=progress)


def _quantiles(nets: imitation.Nets, images: Tensor, progress: Progress) -> Tensor:
    """Two quantiles of each map over these pictures, (2, 2)."""
    device = next(nets.parameters()).device
    maps = []
    for at in range(0, len(images), _BATCH):
        progress("quantiles", at, len(images))
        with torch.inference_mode():
            maps.append(differences(*nets(learned.normalised(images[at : at + _BATCH], device))).cpu())
    progress("quantiles", len(images), len(images))
    values = torch.cat(maps).transpose(0, 1).flatten(1).numpy()  # torch's own quantile takes 16 million values at most
    low, high = torch.from_numpy(np.quantile(values, _QUANTILES, axis=1)).float()
    return torch.stack([low, torch.maximum(high, low * (1 + _LEAST_SPREAD) + _LEAST_SPREAD)], dim=1)
