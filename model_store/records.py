"""The words a model store speaks in: keys, versions, promotions, marks, lineage. All frozen, all plain."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Literal, NewType

import msgspec

from pipeline.data import JSON
from pipeline.errors import ArtifactError, ConfigError

Version = NewType("Version", str)
"""sha256 of a model's file, 64 hexadecimal digits."""

_STATION = re.compile(r"[a-z0-9-]{1,60}/[a-z0-9-]{1,60}")
_RECIPE = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_VERSION = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class ModelKey:
    """Which model is meant: each station has one per recipe.

    Checked on the way in, so that a key can name a folder.

    Attributes:
        station: `[a-z0-9-]+/[a-z0-9-]+`, at most 60 characters either side.
        recipe: `[a-z0-9][a-z0-9._-]*`, at most 100 characters.

    Raises:
        ConfigError: another spelling.
    """

    station: str
    recipe: str = "default"

    def __post_init__(self) -> None:
        if not _STATION.fullmatch(self.station):
            raise ConfigError(f"a station is line/place in a-z, 0-9 and '-', not {self.station[:60]!r}")
        if not _RECIPE.fullmatch(self.recipe):
            raise ConfigError(
                f"a recipe is a-z, 0-9, '.', '_' and '-', a letter or digit first, not {self.recipe[:60]!r}"
            )

    def __str__(self) -> str:
        return f"{self.station} ({self.recipe})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """One line of a key's history: this version became current.

    Attributes:
        previous: what was current until then; None for the first.
        at: aware, UTC, by the clock of whoever promoted. The order is the history's, not the clock's.
    """

    version: Version
    previous: Version | None
    at: datetime
    who: str
    why: str = ""

    def __post_init__(self) -> None:
        for version in (self.version, self.previous):
            if version is not None and not is_version(version):
                raise ValueError(f"a version is 64 hexadecimal digits, not {short(version)!r}")
        if self.at.tzinfo is None:
            raise ValueError("`at` has no time zone")


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What people said about the versions of a key, apart from which is current.

    Attributes:
        pins: versions that are never deleted.
        shadow: the version that is tried beside the current one; None for none. Once current it is a shadow no more.
        canary_share: of the parts that the shadow decides, 0 to 1; with 0 it decides none.
        withdrawn: versions that must not go in service any more; see `base.withdraw`.

    Raises:
        ConfigError: a share outside 0 to 1, or one for no version.
    """

    pins: frozenset[Version] = frozenset()
    shadow: Version | None = None
    canary_share: float = 0.0
    withdrawn: frozenset[Version] = frozenset()

    def __post_init__(self) -> None:
        if not 0 <= self.canary_share <= 1:
            raise ConfigError(f"a canary's share is 0 to 1, not {self.canary_share}")
        if self.canary_share and self.shadow is None:
            raise ConfigError(f"a canary's share of {self.canary_share} needs a version to have it")

    def without_shadow(self) -> "Marks":
        """The same, with no version tried."""
        return replace(self, shadow=None, canary_share=0.0)

    @property
    def named(self) -> frozenset[Version]:
        """Every version that is marked in some way."""
        return self.pins | self.withdrawn | ({self.shadow} if self.shadow else set())


@dataclass(frozen=True, slots=True, kw_only=True)
class Marking:
    """One line of the marks' history: from then on these were the marks.

    Attributes:
        at: aware, UTC, by the clock of whoever changed them. The order is the history's, not the clock's.
    """

    marks: Marks
    at: datetime
    who: str
    why: str = ""

    def __post_init__(self) -> None:
        if self.at.tzinfo is None:
            raise ValueError("`at` has no time zone")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where a model comes from, beside it and not part of its version. JSON values only.

    Attributes:
        created_at: RFC 3339, UTC; the store fills it in.
        created_by: a person or a job.
        why: in that person's words.
        dataset: digest of all frames that it comes from.
        frames: how many of them, by use: fit, tune, calibrate.
        calibration: digest of the frames that its threshold comes from.
        pictures: the first 12 digits of each frame's sha256, to tell whether a picture is among them; empty where there
            are too many to list.
        parent: the version that was current when it was made; empty for none.
        method: what fitted it.
        settings: of the method, each with its value.
        backbone: sha256 of the backbone's weights.
        code: Goldline's version, or a commit.
        extra: whatever else was given, by name.
    """

    created_at: str = ""
    created_by: str = ""
    why: str = ""
    dataset: str = ""
    frames: Mapping[str, int] = field(default_factory=dict)
    calibration: str = ""
    pictures: tuple[str, ...] = ()
    parent: str = ""
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = ""
    code: str = ""
    notes: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Lineage":
        """The lineage in a flat mapping; names without a field of their own go to `extra`.

        Raises:
            ArtifactError: a field has another type than it should.
        """
        own = {f.name for f in fields(cls)} - {"extra"}
        known = {name: value for name, value in values.items() if name in own}
        extra = {name: value for name, value in values.items() if name not in own}
        try:
            return msgspec.convert(known | {"extra": extra}, type=cls)
        except msgspec.ValidationError as error:
            raise ArtifactError(f"lineage: {error}") from error

    def to_json(self) -> dict[str, JSON]:
        """One flat mapping, as `from_json` takes it."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {**self.extra, **own}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A stored version, without its tensors.

    Attributes:
        used_at: when it was last put or loaded, within a day; aware.
    """

    version: Version
    size_bytes: int
    lineage: Lineage
    current: bool
    used_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """A model's file that no entry names any more.

    Attributes:
        where: `store`, or `cache`: this machine's copies.
    """

    where: Literal["store", "cache"]
    version: Version
    size_bytes: int


def is_version(text: str) -> bool:
    """Whether this is a whole version, 64 lower-case hexadecimal digits."""
    return _VERSION.fullmatch(text) is not None


def short(version: str) -> str:
    """The first 12 digits, for people."""
    return version[:12]
