"""What a version has learnt from, as its lineage says: by digests, so that neither pictures nor ids need be kept."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from model_store import Lineage, ModelKey, ModelStore, State, Version, short, state_of, withdraw
from model_store.pool import DiskPool
from model_store.pool_records import Feedback
from pipeline.data import Frame

PICTURES_MAX = 2000
_ALL_MAX = 20_000  # some forty refits; older ones' are of frames that no pool keeps and nobody reports any more
_PARTS = "pool_parts"


def digest(frames: Sequence[Frame]) -> str:
    """sha256 of the pictures, in order of their content's own digests: names and order do not matter."""
    each = sorted(hashlib.sha256(frame.image).hexdigest() for frame in frames)
    return hashlib.sha256("\n".join(each).encode()).hexdigest()


def pictures(frames: Iterable[Frame]) -> list[str]:
    """The beginnings of the pictures' digests, as lineages list them."""
    return sorted({short(hashlib.sha256(frame.image).hexdigest()) for frame in frames})


def pictures_of(pool: DiskPool, part_id: str) -> set[str]:
    """The beginnings of the digests of a part's pictures that are in the pool, or were removed from it."""
    there = {short(pooled.entry.sha256) for pooled in pool.frames(part_id=part_id)}
    removed = (removal for removal in pool.removals() if removal.feedback.part_id == part_id)
    return there | {short(frame.sha256) for removal in removed for frame in removal.frames}


def part(part_id: str) -> str:
    """What stands for a part in a lineage."""
    return short(hashlib.sha256(part_id.encode()).hexdigest())


def grown(before: Sequence[str], new: Sequence[str]) -> list[str]:
    """What a model has learnt from that goes on from another; what the first one was fitted on is never forgotten."""
    both = list(dict.fromkeys([*before, *new]))
    return both[:PICTURES_MAX] + both[PICTURES_MAX:][-(_ALL_MAX - PICTURES_MAX) :]


def parts(lineage: Lineage) -> list[str]:
    """The parts whose pooled frames a version has learnt from, each as `part` says."""
    listed = lineage.extra.get(_PARTS, [])
    return [str(each) for each in listed] if isinstance(listed, list | tuple) else []


def lineage_of(store: ModelStore, key: ModelKey, version: Version) -> Lineage:
    """A version's lineage; an empty one where it is stored no more."""
    return next((info.lineage for info in store.versions(key) if info.version == version), Lineage())


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A version that has learnt from a part."""

    key: ModelKey
    version: Version
    state: State


def fitted_with(store: ModelStore, part_id: str, seen: set[str]) -> tuple[list[Fitted], int]:
    """Versions that have learnt from a part.

    Args:
        store: whose versions are looked through.
        part_id: known to refits.
        seen: beginnings of the digests of its pictures, known to every fit.

    Returns:
        These, and how many versions do not say what they have learnt from.
    """
    found, silent = [], 0
    for key in sorted(store.keys()):
        history, marks = store.history(key), store.marks(key)
        for info in store.versions(key):
            silent += not info.lineage.pictures
            if seen & set(info.lineage.pictures) or part(part_id) in parts(info.lineage):
                state = state_of(info.version, history, marks)
                found.append(Fitted(key=key, version=info.version, state=state))
    return found, silent


def withdraw_waiting(store: ModelStore, fitted: Sequence[Fitted], said: Feedback) -> list[Fitted]:
    """Withdraw those that are not in service yet, as the part is defective; what became of each."""
    why = f"fitted with {said.part_id}, reported as defective"
    after = []
    for each in fitted:
        waiting = each.state in {State.CANDIDATE, State.SHADOW} and said.concerns(each.key)
        if waiting:
            withdraw(store, each.key, each.version, who=said.by, why=why)
        after.append(replace(each, state=State.WITHDRAWN) if waiting else each)
    return after
