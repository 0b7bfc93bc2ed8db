"""Models that last: stored by content, promoted one at a time, checked on every load. Knows no method.

Large pictures of frames, kept for a while, are `frames.py`'s.

::

    store = open_store("file:///srv/goldline/models")
    key = ModelKey("line-1/top", "default")
    version = store.put(key, artifact, lineage={"created_by": "ana"})
    store.promote(key, version, expected=store.current(key), who="ana", why="first shift")
"""

from typing import TYPE_CHECKING, Any

from model_store.base import ModelStore, promote, resolve_version, rollback, withdraw, withdrawal
from model_store.lifecycle import ITSELF, State, approved_last, state_of
from model_store.records import Lineage, Marking, Marks, ModelInfo, ModelKey, Promotion, Version, is_version, short
from model_store.urls import open_store

if TYPE_CHECKING:
    from model_store.codec import decode, encode, version_of

__all__ = [
    "ITSELF",
    "Lineage",
    "Marking",
    "Marks",
    "ModelInfo",
    "ModelKey",
    "ModelStore",
    "Promotion",
    "State",
    "Version",
    "approved_last",
    "decode",
    "encode",
    "is_version",
    "open_store",
    "promote",
    "resolve_version",
    "rollback",
    "short",
    "state_of",
    "version_of",
    "withdraw",
    "withdrawal",
]


def __getattr__(name: str) -> Any:
    """The codec loads torch, which takes seconds: cameras and gates know pictures alone."""
    if name in {"decode", "encode", "version_of"}:
        from model_store import codec  # noqa: PLC0415

        return getattr(codec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
