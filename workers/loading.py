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
from pipeline.heatmap import encode_picture
from pipeline.inspection import Inspector
from workers.shelf import Live


def load(
    store: ModelStore,
    key: ModelKey,
    version: Version,
    *,
    open_backbone: Callable[[BackboneSpec], Backbone],
    limits: Limits,
) -> Live:
    """The model, loaded and warm.

    Raises:
        StoreError: the store has none, or does not answer.
        Exception: whatever else is wrong with it: it cannot be used.
    """
    artifact = _in_memory(store.get(key, version))
    inspector = Inspector.load(artifact, open_backbone=open_backbone, limits=limits)
    _warm(inspector)
    return Live(inspector, artifact.method, version, sum(tensor.nbytes for tensor in artifact.tensors.values()))


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


def _warm(inspector: Inspector) -> None:
    """One grey frame all the way: whatever fails at first use fails here."""
    height, width = inspector.view.size
    grey = encode_picture(np.full((height, width, 3), 128, np.uint8))
    inspected = inspector.inspect([Frame(frame_id="warm-up", image=grey)])
    if inspected.failures:
        raise ModelError(f"the model cannot score a grey frame: {inspected.failures[0].detail}")
