"""How a candidate learns new frames: from its parent's state where the method can, else anew beside golden goods."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from pipeline import methods, screening, tiling
from pipeline.backbone import Backbone
from pipeline.data import Images, Scores
from pipeline.decode import Decoded
from pipeline.errors import FitError
from pipeline.inspection import Inspector
from pipeline.methods.base import Detector, Grown
from pipeline.progress import Progress, silent

Way: TypeAlias = Literal["incremental", "anew"]

_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Makes detectors that know new frames, all in the same way.

    Attributes:
        parent: the model in service.
        how: from its state, or anew; see `way`.
        base: (G, 3, H, W) uint8, golden goods that a fit anew learns beside the new frames; not used otherwise.
        new_share_max: of a candidate, at most this share comes from new frames.
    """

    parent: Inspector
    how: Way
    method: str
    config: Any
    backbone: Backbone
    base: Tensor
    new_share_max: float
    seed: int
    scratch: Path | None
    progress: Progress = silent

    def candidate(self, pixels: Tensor) -> Grown:
        """The detector that knows these frames, (N, 3, H, W), as far as their share allows.

        Raises:
            FitError: there is nothing to fit on, or nothing new that would fit in.
        """
        if self.how == "incremental":
            return self._grown(pixels, self.new_share_max)
        most = len(pixels)
        if self.new_share_max < 1:
            most = min(most, int(len(self.base) * self.new_share_max / (1 - self.new_share_max)))
        if most < 1:
            raise FitError(
                f"{self.method} is fitted anew, on golden goods, and new frames may be {self.new_share_max:.0%} of "
                f"them: {len(self.base)} golden goods leave no place for one"
            )
        taken = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(self.seed))[:most].sort().values
        detector = self._anew(torch.cat([self.base, pixels[taken]]), self.scratch)
        share = most / (most + len(self.base))
        return Grown(detector=detector, taken=tuple(taken.tolist()), new_share=share)

    def without(self, others: Tensor) -> Detector:
        """What would have learnt from these frames alone, and all of them: to score the ones left out."""
        if self.how == "incremental":
            return self._grown(others, 1.0).detector
        return self._anew(torch.cat([self.base, others]), None)

    def _grown(self, pixels: Tensor, share: float) -> Grown:
        return methods.grow(
            self.method,
            self.parent.detector,
            Images(pixels),
            new_share_max=share,
            seed=self.seed,
            progress=self.progress,
        )

    def _anew(self, pixels: Tensor, scratch: Path | None) -> Detector:
        view = self.parent.view
        return tiling.fit(
            self.method,
            Images(pixels),
            self.config,
            tiles=view.tiles,
            size=view.size,
            backbone=self.backbone,
            seed=self.seed,
            scratch=scratch,
            progress=self.progress,
        )


def way(method: str, detector: Detector) -> Way:
    """How this detector would be refitted."""
    return "incremental" if methods.can_grow(method, detector) else "anew"


@dataclass(frozen=True, slots=True)
class Looked:
    """What a detector says of pictures, without their maps.

    Attributes:
        scores: image (N,), and of each map its peak, (N, 1, 1): all that a threshold needs.
        means: (N,), of each map.
    """

    scores: Scores
    means: Tensor

    def numbers(self) -> tuple[Tensor, Tensor]:
        """What says how far a picture lies from what the detector knows: its score, and its map as a whole."""
        return self.scores.image, self.means


def look(detector: Detector, pixels: Tensor, progress: Progress, stage: str) -> Looked:
    """Score many pictures, (N, 3, H, W) uint8, in batches; the maps of all of them would not fit into memory."""
    image, peaks, means = [torch.empty(0)], [torch.empty(0)], [torch.empty(0)]
    for at in range(0, len(pixels), _BATCH):
        progress(stage, at, len(pixels))
        scored = detector.score(detector.embed(pixels[at : at + _BATCH]))
        flat = scored.map.flatten(1).cpu()
        image.append(scored.image.cpu())
        peaks.append(flat.amax(dim=1))
        means.append(flat.mean(dim=1))
    progress(stage, len(pixels), len(pixels))
    return Looked(Scores(torch.cat(image), torch.cat(peaks).view(-1, 1, 1)), torch.cat(means))


def out_of_bag(growth: Growth, pixels: Tensor, folds: int) -> Tensor:
    """Scores of frames, (N,), by detectors that learnt from the others alone, beside what their parent knows.

    Args:
        growth: how to learn.
        pixels: (N, 3, H, W) uint8, N at least 2.
        folds: at least 2; at most N are made.
    """
    scores = torch.empty(len(pixels))
    for held, others in screening.folds(len(pixels), folds, growth.seed):
        detector = growth.without(pixels[others])
        scores[held] = look(detector, pixels[held], growth.progress, "out of bag").scores.image
    return scores


def rows_of(decoded: Decoded, kept: list[int]) -> Tensor:
    """The pictures at these places."""
    return decoded.images.pixels[torch.tensor(kept, dtype=torch.int64)]


def use_threads(count: int) -> None:
    """Let this process compute with so many threads, to leave the others' alone."""
    torch.set_num_threads(count)
