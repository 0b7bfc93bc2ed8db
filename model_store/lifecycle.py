"""What becomes of versions: their states, what keeps them, and the collection of those that nothing keeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from model_store.base import ModelStore
from model_store.records import Marks, ModelKey, Promotion, Swept, Version
from pipeline.errors import ModelNotFound

ITSELF = "goldline refit"
"""Who promotes and withdraws where no person is asked."""


class State(StrEnum):
    """Where a version is in its life under a key."""

    CANDIDATE = "candidate"  # never promoted
    SHADOW = "shadow"  # tried beside the current one
    ACTIVE = "active"  # current
    RETIRED = "retired"  # was current
    WITHDRAWN = "withdrawn"  # must not be current


def state_of(version: Version, history: Sequence[Promotion], marks: Marks) -> State:
    """A version's state, from the key's promotions (oldest first) and marks."""
    if history and version == history[-1].version:
        return State.ACTIVE
    if version in marks.withdrawn:
        return State.WITHDRAWN
    if version == marks.shadow:
        return State.SHADOW
    return State.RETIRED if any(version == p.version for p in history) else State.CANDIDATE


def approved_last(history: Sequence[Promotion]) -> Version | None:
    """The version that a person promoted last, from the key's promotions (oldest first); None where nobody did."""
    return next((p.version for p in reversed(history) if p.who != ITSELF), None)


def last_used(version: Version, used_at: datetime, history: Sequence[Promotion]) -> datetime:
    """When a version was last put, loaded, promoted, or replaced: until then it was in service."""
    return max([used_at, *(p.at for p in history if version in {p.version, p.previous})])


def kept_because(
    version: Version, *, used_at: datetime, history: Sequence[Promotion], marks: Marks, unused_since: datetime
) -> str:
    """What keeps a version from being deleted; empty if nothing does.

    Args:
        version: which.
        used_at: when it was last put or loaded.
        history: all promotions of its key, oldest first.
        marks: of its key.
        unused_since: who was used later stays.
    """
    if history and version == history[-1].version:
        return "current"
    if history and version == history[-1].previous:
        return "previous: a rollback returns to it"
    if version == approved_last(history):
        return "approved last by a person: refits are held beside it"
    if version in marks.pins:
        return "pinned"
    if version == marks.shadow:
        return f"canary for {marks.canary_share:.3g} of the parts" if marks.canary_share else "shadow"
    used = last_used(version, used_at, history)
    return f"used {used:%Y-%m-%d}" if used > unused_since else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What a collection decided about a version of a key.

    Attributes:
        kept: why it stays; empty if it goes.
    """

    key: ModelKey
    version: Version
    size_bytes: int
    kept: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection did, or would do.

    Attributes:
        fates: of every version of every key.
        swept: models that went with the last entry that named them, and copies on this machine.
    """

    fates: tuple[Fate, ...]
    swept: tuple[Swept, ...]

    @property
    def freed_bytes(self) -> int:
        """What was deleted in all."""
        return sum(each.size_bytes for each in self.swept)


def collect(store: ModelStore, *, unused_since: datetime, dry_run: bool = False) -> Collected:
    """Delete every version that nothing keeps, then the models that no key names.

    It may be stopped at any moment and run again; two at once do no harm.
    """
    keys = store.keys()
    fates = [fate for key in keys for fate in _fates(store, key, unused_since, dry_run=dry_run)]
    swept = list(store.sweep(unused_since=unused_since, dry_run=dry_run))
    if dry_run:
        named = {fate.version for fate in fates if fate.kept}
        sizes = {fate.version: fate.size_bytes for fate in fates if fate.version not in named}
        swept += [Swept(where="store", version=version, size_bytes=size) for version, size in sizes.items()]
    return Collected(fates=tuple(fates), swept=tuple(swept))


def _fates(store: ModelStore, key: ModelKey, unused_since: datetime, *, dry_run: bool) -> list[Fate]:
    history, marks = store.history(key), store.marks(key)
    fates = []
    for info in store.versions(key):
        kept = kept_because(info.version, used_at=info.used_at, history=history, marks=marks, unused_since=unused_since)
        if not kept and not dry_run:
            try:
                kept = store.delete(key, info.version, unused_since=unused_since)
            except ModelNotFound:
                continue  # another collection was faster
        fates.append(Fate(key=key, version=info.version, size_bytes=info.size_bytes, kept=kept))
    return fates
