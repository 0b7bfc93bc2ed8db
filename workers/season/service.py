"""One model in service, as the store has it: whatever a strategy makes is put, promoted and loaded again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model_store import ModelKey, ModelStore, Version, promote
from model_store.lifecycle import collect
from pipeline.backbone import Backbone
from pipeline.data import JSON, Frame, Verdict
from pipeline.decode import Limits
from pipeline.inspection import Inspected, Inspector, inspect_together
from workers import wire

_WHO = "simulate season"
_COLLECT_EVERY = 20  # versions; a season of them would fill a disk


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of a frame: its verdict, and the batch that it was in."""

    verdict: Verdict
    batch: Inspected


class Service:
    """A key of the store, and the model that is current there.

    Attributes:
        inspector: what was promoted last, loaded from the store; `version` is its.
    """

    inspector: Inspector
    version: Version

    def __init__(self, store: ModelStore, key: ModelKey, backbone: Backbone) -> None:
        self.key = key
        self.backbone = backbone
        self._store = store
        self._taken = 0

    def take(self, inspector: Inspector, *, why: str, lineage: Mapping[str, JSON] | None = None) -> None:
        """Put a model, promote it, and serve what the store gives back."""
        before = self._store.current(self.key) if self._taken else None
        version = self._store.put(
            self.key, inspector.save(), lineage={"created_by": _WHO, "why": why, **(lineage or {})}
        )
        promote(self._store, self.key, version, expected=before, who=_WHO, why=why)
        artifact = self._store.get(self.key, version)
        self.inspector = Inspector.load(artifact, open_backbone=lambda _: self.backbone, limits=Limits())
        self.version = version
        self._taken += 1
        if self._taken % _COLLECT_EVERY == 0:
            collect(self._store, unused_since=wire.now())


def look(services: Sequence[Service], frames: Sequence[Frame]) -> list[list[Seen]]:
    """What each model says of the same frames, in their order; the backbone runs once for all."""
    said = []
    for result in inspect_together([(service.inspector, frames) for service in services]):
        if isinstance(result, Exception):
            raise result
        verdicts = {verdict.frame_id: verdict for verdict in result.verdicts}
        said.append([Seen(verdicts[frame.frame_id], result) for frame in frames])
    return said
