"""What every method promises: `fit` and `load` are the only ways to a detector, and scoring never mutates it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from pipeline.backbone import Backbone
from pipeline.data import Artifact, Features, Images, Scores, Size
from pipeline.progress import Progress, silent


class Detector(Protocol):
    """A fitted method. A higher score always means more anomalous."""

    def embed(self, images: Tensor) -> Features:
        """Features of (B, 3, H, W) uint8 pictures.

        Raises:
            ShapeError: H or W differ from the size it was fitted at, or the pictures are not RGB.
        """
        ...

    def score(self, features: Features) -> Scores:
        """Scores of what `embed` returned."""
        ...

    def save(self) -> Artifact:
        """All that `load` needs beside the backbone's weights."""
        ...


Config_contra = TypeVar("Config_contra", contravariant=True)


class Method(Protocol[Config_contra]):
    """One paper."""

    def fit(
        self,
        images: Images,
        config: Config_contra,
        *,
        backbone: Backbone,
        seed: int,
        scratch: Path | None = None,
        progress: Progress = silent,
    ) -> Detector:
        """A detector that knows what these good pictures look like.

        Args:
            images: good pictures, (N, 3, H, W).
            config: settings of the method's own class.
            backbone: what sees the pictures, or what a teacher is distilled from.
            seed: the same seed gives the same detector.
            scratch: a folder for the checkpoints of a long training; the same call goes on from them.
            progress: called as `progress(stage, done, total)`.

        Raises:
            FitError: the pictures are too few; the message says how many are needed.
        """
        ...

    def load(self, artifact: Artifact, *, backbone: Backbone) -> Detector:
        """The detector that `save` described.

        Raises:
            ArtifactError: a tensor or a setting is missing or does not fit.
        """
        ...


@runtime_checkable
class Foreseeable(Protocol):
    """A method that says beforehand how much memory a fit takes."""

    def fit_bytes(self, count: int, config: Any, *, backbone: Backbone, size: Size) -> int:
        """The most that a fit on so many pictures of (H, W) takes, beside these and the backbone."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """A detector that has learnt from further pictures.

    Attributes:
        taken: which of the pictures, by their places.
        new_share: share of the model that comes from them: of a bank's rows, of a Gaussian's weight.
    """

    detector: Detector
    taken: tuple[int, ...]
    new_share: float


@runtime_checkable
class Refittable(Protocol):
    """A method whose detectors can learn further pictures from what they keep, without those they were fitted on."""

    def can_refit(self, parent: Any) -> bool:
        """Whether this detector keeps what that takes."""
        ...

    def refit(
        self, parent: Any, images: Images, *, new_share_max: float, seed: int, progress: Progress = silent
    ) -> Grown:
        """Another detector that knows the parent's pictures and these; the parent stays as it is.

        Args:
            parent: a detector that `can_refit`.
            images: good pictures, (N, 3, H, W), as large as the parent's; at least 1.
            new_share_max: of the model, at most this share comes from these pictures: above 0, at most 1.
            seed: the same seed gives the same detector.
            progress: called as `progress(stage, done, total)`.

        Raises:
            ShapeError: the pictures are of another size.
            FitError: their features are unfit.
        """
        ...
