"""Which pictures a version comes from, as its lineage says: by digests, so that none need be kept."""

import hashlib
from collections.abc import Iterable, Sequence

from model_store import Lineage, ModelKey, ModelStore, Version, short
from pipeline.data import Frame

PICTURES_MAX = 2000
ALL_MAX = 20_000
"""As many as forty refits add; beyond that the older refits' go, whose frames the pool has long forgotten."""


def digest(frames: Sequence[Frame]) -> str:
    """sha256 of the pictures, in order of their content's own digests: names and order do not matter."""
    each = sorted(hashlib.sha256(frame.image).hexdigest() for frame in frames)
    return hashlib.sha256("\n".join(each).encode()).hexdigest()


def pictures(frames: Iterable[Frame]) -> list[str]:
    """The beginnings of the pictures' digests, as lineages list them."""
    return sorted({short(hashlib.sha256(frame.image).hexdigest()) for frame in frames})


def grown(before: Sequence[str], new: Sequence[str]) -> list[str]:
    """What a model has learnt from that goes on from another: the first fit's pictures are never forgotten."""
    both = list(dict.fromkeys([*before, *new]))
    return both[:PICTURES_MAX] + both[PICTURES_MAX:][-(ALL_MAX - PICTURES_MAX) :]


def lineage_of(store: ModelStore, key: ModelKey, version: Version) -> Lineage:
    """A version's lineage; an empty one where it is stored no more."""
    return next((info.lineage for info in store.versions(key) if info.version == version), Lineage())


def anchor_of(store: ModelStore, key: ModelKey, version: Version) -> Version | None:
    """The version that a person put in service last, `version` or before it; None where the history tells of none."""
    history = store.history(key)
    for promotion in reversed(history):
        if promotion.who != ITSELF:
            return promotion.version
    return None


ITSELF = "goldline refit"
"""Who promotes where nobody is asked."""
