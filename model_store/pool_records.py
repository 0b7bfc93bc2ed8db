"""The words a pool speaks in: candidates, entries, what feedback says, what was removed. All frozen, all plain."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from model_store.records import ModelKey
from model_store.reservoir import Place, bucket_of, digest
from pipeline.data import Decision
from pipeline.errors import ConfigError
from pipeline.settings import Recipe, StationName

Moment: TypeAlias = Annotated[datetime, Meta(tz=True)]
Identifier: TypeAlias = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^(?=.*\S)[^\x00-\x1f\x7f]+$")]


class Answer(StrEnum):
    """What became of a frame that the pool was offered."""

    ADMITTED = "admitted"
    UNFIT = "unfit"
    """By the rule of admission, or out of the time that is kept."""
    FLAGGED = "flagged"
    """Its part was reported as defective."""
    LEFT_OUT = "left out"
    """It is there already, or the sample has enough of its time or of its part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An inspected frame that the pool is offered.

    Attributes:
        image: encoded, as the camera sent it.
        model: the version that decided.
        sharpness: in the caller's units, more is sharper; None where it was not measured.
        exposure: mean brightness, 0 black to 1 white; None where it was not measured.
    """

    key: ModelKey
    frame_id: str
    part_id: str | None
    captured_at: datetime
    image: bytes
    decision: Decision
    score: float
    p_value: float
    model: str
    sharpness: float | None = None
    exposure: float | None = None

    @property
    def place(self) -> Place:
        """Where it would lie."""
        return Place(
            frame=digest(self.frame_id),
            bucket=bucket_of(self.captured_at),
            part=digest(self.part_id or self.frame_id),
            size_bytes=len(self.image),
        )

    def entry(self, at: datetime) -> "Entry":
        """What would be kept beside it, admitted then."""
        return Entry(
            frame_id=self.frame_id,
            part_id=self.part_id or self.frame_id,
            captured_at=self.captured_at,
            score=self.score,
            p_value=self.p_value,
            model=self.model,
            sha256=hashlib.sha256(self.image).hexdigest(),
            size_bytes=len(self.image),
            admitted_at=at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What a picture must be like to be learnt from, in the units of `Candidate`; all is well unless it says more."""

    sharpness_min: float = 0.0
    exposure_min: float = 0.0
    exposure_max: float = 1.0

    def allows(self, candidate: Candidate) -> bool:
        """Whether what was measured is within these bounds; what was not measured is."""
        sharpness, exposure = candidate.sharpness, candidate.exposure
        return (sharpness is None or sharpness >= self.sharpness_min) and (
            exposure is None or self.exposure_min <= exposure <= self.exposure_max
        )


class Entry(Struct, frozen=True, kw_only=True):
    """What is kept beside a pooled picture: the first line of its file.

    Attributes:
        part_id: the frame's own id where it belongs to no part.
        admitted_at: by the clock of the worker that admitted it.
    """

    frame_id: str
    part_id: str
    captured_at: Moment
    score: float
    p_value: float
    model: str
    sha256: str
    size_bytes: int
    admitted_at: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """A frame in the pool.

    Attributes:
        verified: somebody said that its part is good.
    """

    key: ModelKey
    place: Place
    entry: Entry
    verified: bool


class Feedback(Struct, frozen=True, kw_only=True):
    """What a person or a later inspection found a part to be.

    Attributes:
        part_id: as cameras say it in `ce_partid`; the frame's id for a frame without one.
        by: who says so.
        at: when that was found.
        station: what it is about, if not all stations; `recipe` likewise.
    """

    part_id: Identifier
    verdict: Literal["good", "defect"]
    by: Identifier
    at: Moment
    station: StationName | None = None
    recipe: Recipe | None = None
    note: Annotated[str, Meta(max_length=1000)] = ""

    def concerns(self, key: ModelKey) -> bool:
        """Whether it is about this station and recipe."""
        return self.station in {None, key.station} and self.recipe in {None, key.recipe}


class RemovedFrame(Struct, frozen=True, kw_only=True):
    """A frame that is in the pool no more."""

    frame_id: str
    station: str
    recipe: str
    sha256: str


class Removal(Struct, frozen=True, kw_only=True):
    """One line of the log of removals: what was said, when that reached the pool, and the frames that went."""

    feedback: Feedback
    at: Moment
    frames: tuple[RemovedFrame, ...]


def checked(feedback: Feedback) -> Feedback:
    """The same, if its values are what a message may say: building one does not check.

    Raises:
        ConfigError: which value is wrong.
    """
    try:
        return msgspec.json.decode(msgspec.json.encode(feedback), type=Feedback)
    except (msgspec.MsgspecError, UnicodeEncodeError) as error:
        raise ConfigError(f"feedback: {error}") from error
