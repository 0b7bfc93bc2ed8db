"""What travels through the walk. Everything here is frozen.

Axes: B batch, C channel, H height, W width, D feature dimension; lower-case h, w are a feature map's.
Sizes are always (H, W); boxes and points are (x, y), in pixels of the picture as a person sees it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor  # cameras and gates know frames and verdicts, and start without torch

JSON: TypeAlias = bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"] | None
Size: TypeAlias = tuple[int, int]
Meta: TypeAlias = dict[str, Any]


class Decision(StrEnum):
    """The three verdicts there are."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    REJECT = "reject"
    NO_DECISION = "no_decision"


class Reason(StrEnum):
    """Why there is no decision."""

    LATE = "late"
    SHED = "shed"
    BAD_FRAME = "bad_frame"
    NO_MODEL = "no_model"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One picture of one part at one station, still encoded."""

    frame_id: str
    image: bytes
    station: str = ""
    recipe: str = "default"
    part_id: str | None = None
    captured_at: datetime | None = None
    deadline_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Images:
    """A batch of decoded pictures, all of one size.

    Attributes:
        pixels: (B, 3, H, W) uint8, RGB.
        originals: (B,), which picture each is a turn or a part of; empty where each is one of its own.
    """

    pixels: "Tensor"
    originals: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(self.pixels.shape)
        if len(shape) != 4 or shape[1] != 3 or str(self.pixels.dtype) != "torch.uint8":
            raise ShapeError(f"images must be (B, 3, H, W) uint8, not {shape} {self.pixels.dtype}")
        if self.originals and len(self.originals) != shape[0]:
            raise ShapeError(f"{shape[0]} images must have as many originals, not {len(self.originals)}")

    def __len__(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def size(self) -> Size:
        """(H, W) of every picture."""
        return int(self.pixels.shape[2]), int(self.pixels.shape[3])


@dataclass(frozen=True, slots=True)
class Features:
    """What a detector sees of a batch.

    Attributes:
        maps: named tensors, (B, D, h, w) or (B, D), float32, on the detector's device.
        image_size: (H, W) of the pictures they come from.
    """

    maps: "Mapping[str, Tensor]"
    image_size: Size


@dataclass(frozen=True, slots=True)
class Scores:
    """How unlike good parts a batch is; raw, higher means more anomalous.

    Attributes:
        image: (B,) float32.
        map: (B, H, W) float32 at the pictures' size.
    """

    image: "Tensor"
    map: "Tensor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A connected area of the map above the pixel threshold, in image pixels after EXIF rotation.

    Attributes:
        box: (x0, y0, x1, y1), the far edges exclusive.
        peak: (x, y) of the highest score inside.
        area_px: image pixels covered.
    """

    box: tuple[int, int, int, int]
    peak: tuple[int, int]
    area_px: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was decided about one scored frame.

    Attributes:
        score: raw, comparable with `threshold` of the same model version only.
        p_value: share of calibration goods at least as anomalous, (1 + #) / (n + 1), in (0, 1].
    """

    frame_id: str
    decision: Decision
    score: float
    threshold: float
    p_value: float
    regions: tuple[Region, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A frame that could not be scored, as data: one bad frame never stops its neighbours."""

    frame_id: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A fitted model as plain tensors and plain JSON: nothing in it can run.

    Attributes:
        method: key of the METHODS table.
        tensors: by name, on the CPU.
        meta: JSON values only.
    """

    method: str
    tensors: "Mapping[str, Tensor]"
    meta: Mapping[str, Any] = field(default_factory=dict)
