"""Which model decides at which station: loads what the store's pointer names, and swaps between batches.

A load happens on a thread of its own and warms the model up before anyone sees it. Whatever goes wrong with a
candidate, the model in place stays: a bad artifact is refused, logged, and not tried again until the pointer moves.
"""

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from model_store import ModelKey, ModelStore, Version
from pipeline.backbone import Backbone
from pipeline.backbone_spec import BackboneSpec
from pipeline.data import Artifact, Frame
from pipeline.decode import Limits
from pipeline.errors import ModelError, StoreError
from pipeline.heatmap import encode_picture
from pipeline.inspection import Inspected, Inspector
from workers import logs

log = logs.get(__name__)


class Inspects(Protocol):
    """What the worker needs of an inspector."""

    def inspect(self, frames: list[Frame]) -> Inspected:
        """Decide about a batch."""
        ...


@dataclass(frozen=True, slots=True)
class Live:
    """A model in service; it never changes, a swap replaces it whole."""

    inspector: Inspects
    method: str
    version: Version


class Models:
    """The models in service, one for each station and recipe; reading is one dictionary look-up."""

    def __init__(
        self,
        store: ModelStore,
        keys: list[ModelKey],
        *,
        open_backbone: Callable[[BackboneSpec], Backbone],
        limits: Limits,
        poll_s: float,
    ) -> None:
        self._store = store
        self._keys = keys
        self._open_backbone = _shared(open_backbone)
        self._limits = limits
        self._poll_s = poll_s
        self._live: Mapping[tuple[str, str], Live] = {}
        self._refused: dict[ModelKey, Version] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="models", daemon=True)

    def find(self, station: str, recipe: str) -> Live | None:
        """The model that decides here now, if there is one."""
        return self._live.get((station, recipe))

    def start(self) -> None:
        """Load what is current, then keep watching the store."""
        self.refresh()
        for key in self._keys:
            if (key.station, key.recipe) not in self._live:
                log.warning(
                    "no model: frames get no_decision until one is promoted",
                    station=key.station,
                    recipe=key.recipe,
                )
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()

    def refresh(self) -> None:
        """Compare every pointer with what is in service, and load what differs."""
        for key in self._keys:
            try:
                wanted = self._store.current(key)
                live = self.find(key.station, key.recipe)
                if wanted != self._refused.get(key):
                    self._refused.pop(key, None)  # the pointer moved: what it left may be mended by when it comes back
                    if wanted is not None and wanted != (live.version if live else None):
                        self._swap(key, wanted)
            except (StoreError, ModelError) as error:
                log.error("store: keeping the models there are", station=key.station, error=str(error))
                self._recall(key)

    def _recall(self, key: ModelKey) -> None:
        """With nothing in service and the store away: what this machine saw last."""
        version = self._store.remembered(key)
        if version is None or self.find(key.station, key.recipe) is not None:
            return
        try:
            self._swap(key, version)
            log.warning("started from this machine's copy", station=key.station, recipe=key.recipe, version=version)
        except StoreError as error:
            log.error("no copy of the model on this machine", station=key.station, version=version, error=str(error))

    def _swap(self, key: ModelKey, wanted: Version) -> None:
        try:
            artifact = _in_memory(self._store.get(key, wanted))
            inspector = Inspector.load(artifact, open_backbone=self._open_backbone, limits=self._limits)
            _warm(inspector)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a candidate, the model in place stays
            self._refused[key] = wanted
            kept = self.find(key.station, key.recipe)
            log.error(
                "model refused: keeping the one there is",
                station=key.station,
                recipe=key.recipe,
                refused=wanted,
                kept=kept.version if kept else None,
                error=f"{type(error).__name__}: {error}",
            )
            return
        self._live = {**self._live, (key.station, key.recipe): Live(inspector, artifact.method, wanted)}
        log.info("model in service", station=key.station, recipe=key.recipe, version=wanted, method=artifact.method)

    def _poll(self) -> None:
        while not self._stop.wait(self._poll_s * random.uniform(0.8, 1.2)):  # noqa: S311 - jitter, not a secret
            try:
                self.refresh()
            except Exception:  # the models in service stay, whatever a store or an artifact does
                log.exception("refresh failed: keeping the models there are")


def _in_memory(artifact: Artifact) -> Artifact:
    """A copy that does not stand on the store's file: a shared disk that goes away must not take the worker along."""
    tensors = {name: tensor.clone() for name, tensor in artifact.tensors.items()}
    return replace(artifact, tensors=tensors)


def _shared(open_backbone: Callable[[BackboneSpec], Backbone]) -> Callable[[BackboneSpec], Backbone]:
    """Open each backbone once, however many models stand on it."""
    opened: dict[BackboneSpec, Backbone] = {}

    def opener(spec: BackboneSpec) -> Backbone:
        if spec not in opened:
            opened[spec] = open_backbone(spec)
        return opened[spec]

    return opener


def _warm(inspector: Inspector) -> None:
    """One grey frame all the way: whatever fails at first use fails here."""
    height, width = inspector.view.size
    grey = encode_picture(np.full((height, width, 3), 128, np.uint8))
    inspected = inspector.inspect([Frame(frame_id="warm-up", image=grey)])
    if inspected.failures:
        raise ModelError(f"the model cannot score a grey frame: {inspected.failures[0].detail}")
