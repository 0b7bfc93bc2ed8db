"""A stored model, made ready to decide: verified, in memory, warm."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import numpy as np

from model_store import ModelKey, ModelStore, Version
from pipeline.backbone import Backbone
from pipeline.backbone_spec import BackboneSpec
from pipeline.data import Artifact, Frame
from pipeline.decode import Limits
from pipeline.errors import ModelError, StoreError
from pipeline.footprint import footprint
from pipeline.heatmap import encode_picture
from pipeline.inspection import Inspector
from workers.shelf import Live


class Loader:
    """Loads models, and warms each version up once: whatever fails at first use fails there.

    Args:
        store: where models come from.
        open_backbone: finds the backbone that a model names, if it is permitted here.
        limits: what this line accepts as a picture.
    """

    def __init__(self, store: ModelStore, open_backbone: Callable[[BackboneSpec], Backbone], limits: Limits) -> None:
        self._store = store
        self._open_backbone = open_backbone
        self._limits = limits
        self._tried: set[Version] = set()

    def load(self, key: ModelKey, version: Version) -> Live:
        """The model, verified and in memory.

        Raises:
            StoreError: the store has none, or does not answer.
            Exception: whatever else is wrong with it: it cannot be used.
        """
        artifact = _in_memory(self._store.get(key, version))
        tried = version in self._tried
        inspector = Inspector.load(artifact, open_backbone=self._open_backbone, limits=self._limits, tried=tried)
        if not tried:
            _warm_up(inspector)
            self._tried.add(version)
        return Live(inspector, artifact.method, version, footprint(inspector))


def created_at(store: ModelStore, key: ModelKey, version: Version) -> datetime | None:
    """When a version was made; None where the store cannot say."""
    try:
        made = [info.lineage.created_at for info in store.versions(key) if info.version == version]
        return datetime.fromisoformat(made[0]) if made else None
    except (StoreError, ModelError, ValueError):
        return None


def _in_memory(artifact: Artifact) -> Artifact:
    """A copy that does not stand on the store's file: a shared disk that goes away must not take the worker along."""
    tensors = {name: tensor.clone() for name, tensor in artifact.tensors.items()}
    return replace(artifact, tensors=tensors)


def _warm_up(inspector: Inspector) -> None:
    """One grey frame all the way."""
    height, width = inspector.view.size
    grey = encode_picture(np.full((height, width, 3), 128, np.uint8))
    inspected = inspector.inspect([Frame(frame_id="warm-up", image=grey)])
    if inspected.failures:
        raise ModelError(f"the model cannot score a grey frame: {inspected.failures[0].detail}")
