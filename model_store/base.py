"""What a model store promises, and the words it speaks in. `disk` keeps the promise on a shared disk."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, NewType, Protocol

import msgspec

from pipeline.data import JSON, Artifact
from pipeline.errors import ArtifactError, ConfigError, ModelNotFound

Version = NewType("Version", str)
"""sha256 of a model's file, 64 hexadecimal digits."""

MIN_PREFIX = 6  # digits of a version that a person may type instead of all 64

_STATION = re.compile(r"[a-z0-9-]{1,60}/[a-z0-9-]{1,60}")
_RECIPE = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_VERSION = re.compile(r"[0-9a-f]{64}")
_SHOWN = 8  # candidates named in an error


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
class Lineage:
    """Where a model comes from, beside it and not part of its version. JSON values only.

    Attributes:
        created_at: RFC 3339, UTC; the store fills it in.
        created_by: a person or a job.
        dataset: digest of the frames it was fitted on.
        frames: how many frames, by use: fit, tune, calibrate.
        code: Goldline's version, or a commit.
        extra: whatever else was given, by name.
    """

    created_at: str = ""
    created_by: str = ""
    dataset: str = ""
    frames: Mapping[str, int] = field(default_factory=dict)
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
    """A stored version, without its tensors."""

    version: Version
    size_bytes: int
    lineage: Lineage
    current: bool


class ModelStore(Protocol):
    """Models by key and version, and which one is current. A version, once stored, never changes.

    Every method may raise StoreUnavailable: retry with backoff and keep what you have meanwhile.
    """

    def put(self, key: ModelKey, artifact: Artifact, *, lineage: Mapping[str, JSON] | None = None) -> Version:
        """Store a model; it is not current until promoted. What is stored already keeps its first lineage."""
        ...

    def get(self, key: ModelKey, version: Version) -> Artifact:
        """The model, its checksum verified.

        Raises:
            ModelNotFound: no such version under this key.
            ArtifactError: it is damaged.
        """
        ...

    def current(self, key: ModelKey) -> Version | None:
        """The version promoted last; None where nothing ever was."""
        ...

    def remembered(self, key: ModelKey) -> Version | None:
        """What was current when this machine last asked, from its own disk: for a start while the store is away.

        None where the store keeps no such memory, or never was asked.
        """
        ...

    def promote(self, key: ModelKey, version: Version, *, expected: Version | None, who: str, why: str = "") -> None:
        """Make a version current if `expected` still is (None: if nothing is). Of several at once, one wins.

        Promoting what is current already changes nothing and records nothing.

        Raises:
            PromotionConflict: something else is current; the message names it.
            ModelNotFound: no such version under this key.
            ArtifactError: it is damaged; what was current stays.
            ConfigError: `who` is empty.
        """
        ...

    def history(self, key: ModelKey) -> list[Promotion]:
        """All promotions, oldest first; the last one's version is current."""
        ...

    def versions(self, key: ModelKey) -> list[ModelInfo]:
        """All stored versions, oldest first."""
        ...

    def keys(self) -> list[ModelKey]:
        """Every key that has a version, in order."""
        ...


def is_version(text: str) -> bool:
    """Whether this is a whole version, 64 lower-case hexadecimal digits."""
    return _VERSION.fullmatch(text) is not None


def short(version: str) -> str:
    """The first 12 digits, for people."""
    return version[:12]


def resolve_version(store: ModelStore, key: ModelKey, text: str) -> Version:
    """The version a person means by "current", by all 64 digits or by the first few.

    Raises:
        ModelNotFound: none or several; the message lists the candidates.
    """
    if text == "current":
        current = store.current(key)
        if current is None:
            raise ModelNotFound(f"{key}: nothing is current yet; {_listed(_stored(store, key))}")
        return current
    stored = _stored(store, key)
    if len(text) < MIN_PREFIX:
        raise ModelNotFound(
            f"{key}: {text!r} is too short, {MIN_PREFIX} digits are needed or 'current'; {_listed(stored)}"
        )
    found = [version for version in stored if version.startswith(text.lower())]
    if len(found) > 1:
        raise ModelNotFound(f"{key}: {text!r} is not unique; {_listed(found)}")
    if not found:
        raise ModelNotFound(f"{key}: no version {text[:64]!r}; {_listed(stored)}")
    return found[0]


def rollback(store: ModelStore, key: ModelKey, who: str, why: str = "rollback") -> Version:
    """Promote what was current before the last promotion; twice in a row comes back to where it started.

    Returns:
        The version that is current now.

    Raises:
        ModelNotFound: there is no earlier version.
        PromotionConflict: somebody promoted meanwhile.
        ArtifactError: the earlier version is damaged; the current one stays.
    """
    history = store.history(key)
    previous = history[-1].previous if history else None
    if previous is None:
        raise ModelNotFound(f"{key}: nothing to roll back to, {len(history)} promotion(s) so far")
    store.promote(key, previous, expected=history[-1].version, who=who, why=why)
    return previous


def _stored(store: ModelStore, key: ModelKey) -> list[Version]:
    return [info.version for info in store.versions(key)]


def _listed(versions: list[Version]) -> str:
    """The newest few, newest first."""
    if not versions:
        return "nothing is stored"
    shown = ", ".join(short(version) for version in versions[: -_SHOWN - 1 : -1])
    return f"there are {shown}" + (f" and {len(versions) - _SHOWN} more" if len(versions) > _SHOWN else "")
