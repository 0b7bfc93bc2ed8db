"""Uninformed Students: "Student-Teacher Anomaly Detection with Discriminative Latent Embeddings", Bergmann et al. 2020.

fit: students learn to describe the good pictures' patches as a teacher does, for each of several patch sizes.
score: how far the students are from the teacher, and from each other; the picture's is the map's largest value.

Departures, and why:

* The teachers are distilled inside `fit` from the backbone that is given: its deepest layer's means over a patch, each
  dimension normalised, where the paper takes ResNet-18's 512 values. The patches are of the pictures in `photos`, or of
  drawn ones (the paper's are ImageNet's), so that no file is needed from elsewhere. Their side is a half to an eighth
  of a crop that is itself half to all of the photograph, in place of a quarter to a sixteenth: small photographs would
  be magnified to nothing but blur.
* `stride` describes every n-th patch instead of all; what it describes is the same to rounding.
* The paper gives no score of the whole picture: here it is the largest of the map.
* `by_position` standardises the maps at each place by what good pictures show there, where the paper has one mean and
  one deviation for all places: what students find hard in good parts, a rim or a highlight, then hides no defect.
  Variances count with one picture more, of what places vary by on average. The quick settings take it.
* Epochs of the good pictures are counted in steps: 20,000 are the paper's 100 of 200 pictures. `crop_px` and
  `one_cycle` make trainings of minutes useful; the quick settings take them, and one patch size.
* All networks start from He's weights.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline import families, fitted, learned, patch_cnn, training
from pipeline.backbone import Backbone
from pipeline.data import Artifact, Features, Images, Scores, Size
from pipeline.errors import ArtifactError, ConfigError, FitError, ShapeError
from pipeline.families import Family
from pipeline.maps import upsample
from pipeline.natural import NaturalPictures
from pipeline.patch_cnn import FIELDS, PER_PICTURE, STRIDES, PatchCnn
from pipeline.progress import Progress, silent

NAME = "students"
QUICK = {
    "fields": "33",
    "teacher_steps": 500,
    "teacher_rate": 1e-3,
    "statistics": 1280,
    "steps": 400,
    "rate": 1e-3,
    "one_cycle": True,
    "crop_px": 96,
    "stride": 4,
    "by_position": True,
}
_FEWEST_IMAGES = 2
_SMALLEST_PX = 64


@dataclass(frozen=True, kw_only=True)
class StudentsConfig:
    """Settings; the defaults are the paper's.

    Attributes:
        fields: patch sizes p, of 17, 33 and 65, with commas between.
        photos: a folder of natural pictures; empty for drawn ones.
        view_px: side that a patch has for the backbone.
        teacher_steps: of distillation.
        teacher_batch: patches a step of it.
        teacher_rate: its learning rate.
        statistics: patches that give the mean and deviation of the backbone's features.
        knowledge: lk, weight of the distillation's loss.
        metric: lm, weight of its triplets; 0 leaves them out, and more needs a `teacher_batch` of 8, 12, 16 and so on.
        compactness: lc, weight of the descriptors' correlations.
        margin: delta of the triplets.
        students: M, for each patch size.
        steps: of the students, each with one picture.
        rate: their learning rate.
        weight_decay: of all trainings.
        one_cycle: rates rise and fall by cosines instead of staying.
        crop_px: students learn from crops of this side; 0 for whole pictures.
        stride: px between patches: 1, 2, 4 or 8.
        held_out: share of the good pictures, at least one, that the maps' means and deviations are taken of.
        by_position: take them at each place, for parts that lie the same way in each picture.
    """

    fields: str = "17,33,65"
    photos: str = ""
    view_px: int = 64
    teacher_steps: int = 50_000
    teacher_batch: int = 64
    teacher_rate: float = 2e-4
    statistics: int = 12_800
    knowledge: float = 1.0
    metric: float = 0.0
    compactness: float = 1.0
    margin: float = 1.0
    students: int = 3
    steps: int = 20_000
    rate: float = 1e-4
    weight_decay: float = 1e-5
    one_cycle: bool = False
    crop_px: int = 0
    stride: int = 1
    held_out: float = 0.1
    by_position: bool = False

    def __post_init__(self) -> None:
        sizes = self.sizes()
        if not sizes or len(set(sizes)) < len(sizes) or not set(sizes) <= set(FIELDS):
            raise ConfigError(f"fields must be some of 17,33,65, each once, not {self.fields!r}")
        if self.stride not in STRIDES:
            raise ConfigError(f"stride must be 1, 2, 4 or 8, not {self.stride}")
        least = {"view_px": 32, "teacher_steps": 1, "teacher_batch": 2, "statistics": 2, "students": 2, "steps": 1}
        for name, fewest in {**least, "crop_px": 0}.items():
            if getattr(self, name) < fewest:
                raise ConfigError(f"{name} must be at least {fewest}, not {getattr(self, name)}")
        for name in ("teacher_rate", "rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be above 0 and at most 1, not {getattr(self, name)}")
        for name in ("knowledge", "metric", "compactness", "margin", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be at least 0 and finite, not {getattr(self, name)}")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out must be above 0 and below 1, not {self.held_out}")
        self._check_triplets()

    def sizes(self) -> tuple[int, ...]:
        """`fields` as numbers; none if one is no number."""
        parts = self.fields.split(",")
        return tuple(int(part) for part in parts) if all(part.strip().isdecimal() for part in parts) else ()

    def _check_triplets(self) -> None:
        if self.metric and (self.teacher_batch < 2 * PER_PICTURE or self.teacher_batch % PER_PICTURE):
            raise ConfigError(
                f"metric above 0 needs a teacher_batch that is a multiple of {PER_PICTURE} from {2 * PER_PICTURE}, so "
                f"that each patch has one of another picture to differ from, not {self.teacher_batch}"
            )


class StudentsDetector:
    """Families of networks and the scales of their maps; never changed by scoring.

    Attributes:
        scales: (F, 2, 2) float32, by patch size and map (error, variance) its mean and deviation over held-out goods;
            (F, 2, 2, h, w) by position.
    """

    def __init__(
        self, nets: nn.ModuleList, scales: Tensor, config: StudentsConfig, size: Size, backbone: Backbone
    ) -> None:
        self.config = config
        self.image_size = size
        self.scales = scales.to(backbone.device)
        self._nets = learned.freeze(learned.ready(nets, backbone.device))
        self._backbone = backbone

    def embed(self, images: Tensor) -> Features:
        """What the networks' descriptors differ by; the descriptors of a batch would take gigabytes.

        Args:
            images: (B, 3, H, W) uint8, RGB, of the size it was fitted at.

        Returns:
            "error" and "variance", (B, F, h, w) float32, a channel for each patch size.

        Raises:
            ShapeError: another size, or not RGB.
        """
        fitted.check_pixels(images, self.image_size)
        maps = families.maps_of(self._nets, images, self.config.stride, self._backbone.device)
        return Features(maps={"error": maps[:, :, 0], "variance": maps[:, :, 1]}, image_size=self.image_size)

    @torch.inference_mode()
    def score(self, features: Features) -> Scores:
        """Error and variance, standardised and summed, averaged over the patch sizes.

        Args:
            features: from `embed`.

        Returns:
            map (B, H, W), and image (B,), its largest value.

        Raises:
            ShapeError: another number of patch sizes or, by position, of places.
        """
        maps = torch.stack([features.maps["error"], features.maps["variance"]], dim=2)
        if maps.shape[1] != len(self.scales):
            raise ShapeError(f"features are of {maps.shape[1]} patch sizes, the model has {len(self.scales)}")
        scales = self.scales if self.config.by_position else self.scales[..., None, None]
        if self.config.by_position and maps.shape[3:] != scales.shape[3:]:
            raise ShapeError(f"features are of {tuple(maps.shape[3:])} places, the model has {tuple(scales.shape[3:])}")
        grid = ((maps - scales[:, :, 0]) / scales[:, :, 1]).sum(dim=2).mean(dim=1)
        scores = upsample(grid, features.image_size)
        return Scores(image=scores.flatten(1).amax(dim=1), map=scores)

    def save(self) -> Artifact:
        """Weights of all networks, the teachers' with their normalisation in them, and the maps' scales."""
        tensors = {**learned.to_tensors({"families": self._nets}), "scales": self.scales.cpu().clone()}
        return Artifact(method=NAME, tensors=tensors, meta=fitted.to_meta(self.config, self._backbone, self.image_size))


class Students:
    """The method: `fit` and `load` are the only ways to a detector."""

    def fit(
        self,
        images: Images,
        config: StudentsConfig,
        *,
        backbone: Backbone,
        seed: int,
        scratch: Path | None = None,
        progress: Progress = silent,
    ) -> StudentsDetector:
        """Distil the teachers, train their students, take the maps' scales.

        Teachers in `scratch` serve every product: they depend on the backbone, the photos and the seed alone.

        Raises:
            FitError: too few pictures, or too small ones; the message says what is needed.
            ConfigError: `photos` names no folder with pictures.
        """
        fitted.check_enough(NAME, images, _FEWEST_IMAGES)
        if min(images.size) < _SMALLEST_PX:
            raise FitError(f"{NAME} needs pictures of at least {_SMALLEST_PX} px a side, not {images.size}")
        train, held = learned.split(images, config.held_out, seed)
        pictures = NaturalPictures.of_folder(config.photos, seed)
        teachers = _distil(backbone, config, pictures, seed, scratch, progress)
        with training.seeded(seed + 1):
            each = [Family(field, config.students) for field in config.sizes()]
        key = training.digest(asdict(config), pictures.listing(), seed, images.pixels, backbone.spec.to_meta())
        for family in each:
            family.teacher = teachers[family.field]
            learned.ready(family, backbone.device)
            families.normalise(family, images.pixels[train], config.stride, progress)
            how = families.Schooling(
                images=images.pixels[train],
                crop_px=config.crop_px,
                stride=config.stride,
                steps=config.steps,
                rate=_rate(config, config.rate),
                weight_decay=config.weight_decay,
                seed=seed,
            )
            checkpoint = training.Checkpoint(scratch, f"{NAME}-{family.field}", key) if scratch else None
            families.train(family, how, checkpoint=checkpoint, progress=progress)
        nets = nn.ModuleList(each)
        maps = families.maps_of(nets, images.pixels[held], config.stride, backbone.device, progress)
        return StudentsDetector(nets, families.scales_of(maps, config.by_position), config, images.size, backbone)

    def load(self, artifact: Artifact, *, backbone: Backbone) -> StudentsDetector:
        """The detector that `save` described.

        Raises:
            ArtifactError: a tensor or a setting is missing or does not fit, or another backbone made it.
        """
        config, size = fitted.from_meta(artifact, NAME, StudentsConfig, backbone)
        if min(size) < _SMALLEST_PX:
            raise ArtifactError(f"image_size must be at least {_SMALLEST_PX}, not {size}")
        if config.students * len(config.sizes()) > len(artifact.tensors):
            raise ArtifactError(f"{config.students} students for each patch size, and {len(artifact.tensors)} tensors")
        with torch.device("meta"):
            nets = nn.ModuleList(Family(field, config.students) for field in config.sizes())
        places = patch_cnn.grid_of(size, config.stride) if config.by_position else ()
        (scales,) = learned.restore(artifact, {"families": nets}, {"scales": (len(nets), 2, 2, *places)})
        if not bool((scales[:, :, 1] > 0).all()):
            raise ArtifactError("scales have a deviation that is not positive")
        return StudentsDetector(nets, scales, config, size, backbone)


def _rate(config: StudentsConfig, rate: float) -> training.Rate:
    return training.one_cycle(rate) if config.one_cycle else training.constant(rate)


def _distil(
    backbone: Backbone,
    config: StudentsConfig,
    pictures: NaturalPictures,
    seed: int,
    scratch: Path | None,
    progress: Progress,
) -> dict[int, PatchCnn]:
    how = patch_cnn.Distillation(
        fields=config.sizes(),
        pictures=pictures,
        view_px=config.view_px,
        counted=config.statistics,
        steps=config.teacher_steps,
        batch=config.teacher_batch,
        rate=_rate(config, config.teacher_rate),
        weight_decay=config.weight_decay,
        weights=(config.knowledge, config.metric, config.compactness),
        margin=config.margin,
        seed=seed,
    )
    others = ("photos", "students", "steps", "rate", "crop_px", "stride", "held_out", "by_position")
    said = {name: value for name, value in asdict(config).items() if name not in others}
    key = training.digest(said, pictures.listing(), seed, backbone.spec.to_meta())
    checkpoint = training.Checkpoint(scratch, f"{NAME}-teacher", key) if scratch else None
    return patch_cnn.distil(backbone, how, checkpoint=checkpoint, progress=progress)
