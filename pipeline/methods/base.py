"""What every method promises: `fit` and `load` are the only ways to a detector, and scoring never mutates it."""

from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor

from pipeline.backbone import Backbone
from pipeline.data import Artifact, Features, Images, Scores
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
