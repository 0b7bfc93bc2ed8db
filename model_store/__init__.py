"""Models that last: stored by content, promoted one at a time, checked on every load. Knows no method.

::

    store = open_store("file:///srv/goldline/models")
    key = ModelKey("line-1/top", "default")
    version = store.put(key, artifact, lineage={"created_by": "ana"})
    store.promote(key, version, expected=store.current(key), who="ana", why="first shift")
"""

from model_store.base import ModelStore, resolve_version, rollback
from model_store.codec import decode, encode, version_of
from model_store.lifecycle import State, state_of
from model_store.records import Lineage, Marking, Marks, ModelInfo, ModelKey, Promotion, Version, is_version, short
from model_store.urls import open_store

__all__ = [
    "Lineage",
    "Marking",
    "Marks",
    "ModelInfo",
    "ModelKey",
    "ModelStore",
    "Promotion",
    "State",
    "Version",
    "decode",
    "encode",
    "is_version",
    "open_store",
    "resolve_version",
    "rollback",
    "short",
    "state_of",
    "version_of",
]
