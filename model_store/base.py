"""What a model store promises. `disk` keeps the promise on a shared disk, `redis_store` in Redis."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Protocol, TypeVar

from model_store.records import Marking, Marks, ModelInfo, ModelKey, Promotion, Swept, Version, short
from pipeline.data import JSON, Artifact
from pipeline.errors import ArtifactError, ConfigError, MarksConflict, ModelNotFound, PromotionConflict

MIN_PREFIX = 6  # digits of a version that a person may type instead of all 64
_SHOWN = 8  # candidates named in an error
_READ_TRIES = 3
_MARK_TRIES = 5

T = TypeVar("T")


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

    def marks(self, key: ModelKey) -> Marks:
        """Which versions are pinned or tried; none where nobody ever said so."""
        ...

    def mark(self, key: ModelKey, marks: Marks, *, expected: Marks, who: str, why: str = "") -> None:
        """Change the marks if they still are as `expected`. Of several at once, one wins.

        Marks that are the same already change nothing and record nothing.

        Raises:
            MarksConflict: they are others; look again.
            ModelNotFound: a version that is newly marked is not under this key.
            ConfigError: `who` is empty.
        """
        ...

    def markings(self, key: ModelKey) -> list[Marking]:
        """All changes of the marks, oldest first; the last one's marks hold."""
        ...

    def versions(self, key: ModelKey) -> list[ModelInfo]:
        """All stored versions, oldest first."""
        ...

    def delete(self, key: ModelKey, version: Version, *, unused_since: datetime) -> str:
        """Delete a version's entry, unless something keeps it at that very moment; see `lifecycle.kept_because`.

        The model itself stays until `sweep` finds that no key names it.

        Returns:
            What keeps it; empty if it was deleted.

        Raises:
            ModelNotFound: no such version under this key.
        """
        ...

    def sweep(self, *, unused_since: datetime, dry_run: bool = False) -> list[Swept]:
        """Delete models that no key names, and this machine's copies that were not used since then.

        A model that is being put meanwhile ends up whole.
        """
        ...

    def keys(self) -> list[ModelKey]:
        """Every key that has a version, in order."""
        ...


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


def promote(
    store: ModelStore, key: ModelKey, version: Version, *, expected: Version | None, who: str, why: str = ""
) -> None:
    """Promote a version, as `ModelStore.promote`; what was a shadow is one no more.

    Otherwise a rollback would make it a shadow again, or even a canary.

    Raises:
        ConfigError: it is withdrawn; the message says by whom and why.
        MarksConflict: somebody changed the marks at that moment; the version is current all the same.
    """
    if version in store.marks(key).withdrawn:
        raise ConfigError(f"{key}: {short(version)} {withdrawal(store, key, version)}")
    store.promote(key, version, expected=expected, who=who, why=why)
    marks = store.marks(key)
    if marks.shadow == version:
        store.mark(key, marks.without_shadow(), expected=marks, who=who, why="promoted")


def withdraw(store: ModelStore, key: ModelKey, version: Version, *, who: str, why: str) -> None:
    """Keep a version out of service for good, whether it waits or is tried; what is in service is not withdrawn.

    Raises:
        ModelNotFound: no such version under this key.
        MarksConflict: somebody changed the marks, again and again.
        ConfigError: it is in service, or `who` is empty.
    """
    for left in reversed(range(_MARK_TRIES)):
        marks = store.marks(key)
        tried = marks.without_shadow() if marks.shadow == version else marks
        # Read after the marks: what is marked and not there was deleted, and need not be carried along.
        withdrawn = marks.withdrawn & set(_stored(store, key)) | {version}
        if version == store.current(key):
            raise ConfigError(f"{key}: {short(version)} is in service: `goldline models rollback` takes it out")
        try:
            store.mark(key, replace(tried, withdrawn=withdrawn), expected=marks, who=who, why=why)
            return
        except MarksConflict:
            if not left:
                raise


def withdrawal(store: ModelStore, key: ModelKey, version: Version) -> str:
    """Who withdrew a version and why, in words; empty if nobody did."""
    told = ""
    for marking in store.markings(key):
        if version not in marking.marks.withdrawn:
            told = ""
        elif not told:
            told = f"was withdrawn by {marking.who}, {marking.at:%Y-%m-%d %H:%M}: {marking.why}"
    return told


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
    promote(store, key, previous, expected=history[-1].version, who=who, why=why)
    return previous


def read_whole(read: Callable[[], T], require: Callable[[], None]) -> T:
    """What `read` makes of a model's file, which may be deleted, and even put anew, in the middle of it.

    Raises:
        ModelNotFound: from `require`, when it was deleted.
        ArtifactError: it is damaged, again and again.
    """
    for left in reversed(range(_READ_TRIES)):
        try:
            return read()
        except (ArtifactError, FileNotFoundError) as error:
            require()
            if left:
                continue
            if isinstance(error, FileNotFoundError):
                raise ArtifactError(f"the model's file is gone: {error.filename}") from error
            raise
    raise AssertionError("not reached")


def promotion_conflict(key: ModelKey, found: Version | None, expected: Version | None) -> PromotionConflict:
    """What somebody is told whose promotion came too late."""
    was, wanted = (short(version) if version else "nothing" for version in (found, expected))
    return PromotionConflict(f"{key}: {was} is current, not {wanted}; look at it, then promote again")


def marks_conflict(key: ModelKey) -> MarksConflict:
    """What somebody is told whose marks came too late."""
    return MarksConflict(f"{key}: somebody changed the pins or the shadow meanwhile; look at them, then try again")


def _stored(store: ModelStore, key: ModelKey) -> list[Version]:
    return [info.version for info in store.versions(key)]


def _listed(versions: list[Version]) -> str:
    """The newest few, newest first."""
    if not versions:
        return "nothing is stored"
    shown = ", ".join(short(version) for version in versions[: -_SHOWN - 1 : -1])
    return f"there are {shown}" + (f" and {len(versions) - _SHOWN} more" if len(versions) > _SHOWN else "")
