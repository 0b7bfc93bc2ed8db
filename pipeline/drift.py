"""Drift at one station and recipe: a martingale for each of a frame's numbers, and one rate of false alarms for all.

Each monitor raises its alarm at M >= m / delta, m the number of monitors (Bonferroni), so that under exchangeability
any of them ever raises a false one with probability at most delta: for each baseline, and for the score for each model
version, as another model's scores are other numbers.

Which frames: the score's monitor takes frames that passed. They stay exchangeable however defects come, in runs or not,
because cutting each frame's score off at a fixed threshold does not depend on the others; a run of real defects is no
drift. The picture's monitors take every scored frame: a bumped camera or a dead lamp may turn all of them into rejects,
and has to be seen just then.

The reference that alignment is measured against is the mean of the baseline's first `REFERENCE_FRAMES` thumbnails. They
are not ranked themselves: given them, later frames are as exchangeable as before.
"""

import base64
import binascii
import math
from datetime import datetime
from random import Random
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from pipeline.appearance import ALIGNMENT, PICTURE, SIDE, Appearance, Registration
from pipeline.martingale import Alarm, Martingale

SCORE = "score"
MONITORS = (SCORE, *PICTURE, *ALIGNMENT)
REFERENCE_FRAMES = 32


class Raised(Struct, frozen=True, kw_only=True):
    """An alarm, and which monitor's it is."""

    monitor: str
    alarm: Alarm


class Reference(Struct, kw_only=True):
    """The mean thumbnail of a baseline's first frames.

    Attributes:
        frames: it is the mean of, up to `REFERENCE_FRAMES`.
        total: their sum, (64, 64) float32, little-endian, base64.
    """

    frames: Annotated[int, Meta(ge=0, le=REFERENCE_FRAMES)] = 0
    total: str = ""

    def __post_init__(self) -> None:
        if self.frames:
            self.sum()

    def sum(self) -> NDArray[np.float32]:
        """The sum of the thumbnails, (64, 64).

        Raises:
            ValueError: it is not one.
        """
        if not self.frames:
            return np.zeros((SIDE, SIDE), np.float32)
        try:
            values = np.frombuffer(base64.b64decode(self.total, validate=True), "<f4").reshape(SIDE, SIDE)
        except binascii.Error as error:
            raise ValueError(f"a reference must be base64: {error}") from error
        if not np.isfinite(values).all():
            raise ValueError("a reference must be finite")
        return values

    def add(self, thumbnail: NDArray[np.float32]) -> None:
        """Count one more thumbnail in."""
        total = self.sum() + thumbnail
        self.frames += 1
        self.total = base64.b64encode(total.astype("<f4").tobytes()).decode()


class Baseline(Struct, kw_only=True):
    """All monitors of one station and recipe since a baseline began. It is its own state, for JSON.

    Attributes:
        size: (H, W) of the pictures as the model sees them. Others make other numbers: they begin everything anew.
        version: of the model whose scores are ranked.
        monitors: by name, `MONITORS`.
    """

    size: tuple[int, int] | None = None
    version: str | None = None
    reference: Reference = msgspec.field(default_factory=Reference)
    monitors: dict[str, Martingale] = msgspec.field(default_factory=lambda: {name: Martingale() for name in MONITORS})

    def __post_init__(self) -> None:
        if set(self.monitors) != set(MONITORS):
            raise ValueError(f"a baseline needs the monitors {', '.join(MONITORS)}, not {', '.join(self.monitors)}")


class Drift:
    """The monitors of one station and recipe, at work. One thread's.

    Args:
        delta: the probability of any false alarm, for each baseline.
        baseline: to go on with.
        rng: breaks ties between equal numbers.
    """

    def __init__(self, delta: float, baseline: Baseline | None = None, *, rng: Random | None = None) -> None:
        self.baseline = baseline or Baseline()
        self.limit = math.log(len(MONITORS) / delta)
        self._rng = rng or Random()  # noqa: S311 - ties, not secrets
        self._registration: Registration | None = None

    def see(
        self, appearance: Appearance, *, score: float | None, version: str, at: datetime, frame_id: str
    ) -> list[Raised]:
        """Take one frame's numbers.

        Args:
            appearance: of the picture.
            score: of a frame that passed; None for others.
            version: of the model that scored it.
            at: when it was captured.
            frame_id: for the alarm.

        Returns:
            Alarms that this frame raised, each monitor's once.
        """
        if self.baseline.size != appearance.size:
            self.baseline = Baseline(size=appearance.size)
            self._registration = None
        numbers = {**appearance.numbers, **self._located(appearance)}
        if score is not None:
            if self.baseline.version != version:
                self.baseline.version, self.baseline.monitors[SCORE] = version, Martingale()
            numbers[SCORE] = score
        raised = []
        for name, number in numbers.items():
            alarm = self.baseline.monitors[name].take(number, limit=self.limit, at=at, frame_id=frame_id, rng=self._rng)
            if alarm is not None:
                raised.append(Raised(monitor=name, alarm=alarm))
        return raised

    def _located(self, appearance: Appearance) -> dict[str, float]:
        """Where the part lies; nothing while the reference is being gathered."""
        reference = self.baseline.reference
        if reference.frames < REFERENCE_FRAMES:
            reference.add(appearance.thumbnail)
            return {}
        if self._registration is None:
            self._registration = Registration(reference.sum() / reference.frames, appearance.size)
        return self._registration.locate(appearance.thumbnail)


def encode(baseline: Baseline) -> bytes:
    """A baseline as JSON."""
    return msgspec.json.encode(baseline)


def decode(value: bytes) -> Baseline:
    """The baseline that `encode` wrote, nothing in it taken for granted.

    Raises:
        ValueError: it is none, or does not fit together.
    """
    return msgspec.json.decode(value, type=Baseline)
