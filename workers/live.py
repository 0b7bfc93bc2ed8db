"""Which model decides at which station: loads what the store's pointer names, and swaps between batches.

Of two batches that are computed at once, one may still be the old model's.

A load happens on a thread of its own and warms the model up before anyone sees it. Whatever goes wrong with a
candidate, the model in place stays: a bad artifact is refused, logged, and not tried again until the pointer moves.
Models beyond the memory that they may take are loaded when a frame asks for one, and the least recently used leave.
"""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from model_store import ModelKey, ModelStore, Version
from model_store.records import short
from pipeline.backbone import Backbone
from pipeline.backbone_spec import BackboneSpec
from pipeline.decode import Limits
from pipeline.errors import ModelError, StoreError
from pipeline.settings import Settings
from workers import loading, logs
from workers.metrics import WorkerMetrics
from workers.outages import Outages
from workers.shelf import Live, Place, Shelf, Trial

log = logs.get(__name__)

_ACTIVE, _SHADOW = "active", "shadow"


@dataclass(frozen=True, slots=True)
class State:
    """How it stands with a station's model; `ok` unless one is wanted here and cannot be had."""

    key: ModelKey
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class _Refusal:
    version: Version
    why: str


class Models:
    """The models in service, one for each station and recipe; reading is one dictionary look-up.

    At the start models are loaded until memory is full, afterwards when a frame asks for one.
    """

    def __init__(
        self,
        store: ModelStore,
        keys: list[ModelKey],
        *,
        open_backbone: Callable[[BackboneSpec], Backbone],
        limits: Limits,
        poll_s: float,
        most_bytes: int,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self._metrics = metrics or WorkerMetrics(Settings())
        self._store = store
        self._keys = keys
        self._known = {(key.station, key.recipe): key for key in keys}
        self._loader = loading.Loader(store, open_backbone, limits)
        self._poll_s = poll_s
        self._shelf = Shelf(most_bytes)
        self._shares: dict[Place, float] = {}  # where a model is tried, and the share of the parts that it decides
        self._forgotten: set[Place] = set()
        self._none: set[ModelKey] = set()  # asked for since the last look, and there is none
        self._refused: dict[Place, _Refusal] = {}
        self._away: dict[Place, str] = {}  # why the store could not be asked at the last look
        self._outages = Outages()
        self._asked: SimpleQueue[ModelKey | None] = SimpleQueue()
        self._loading: dict[ModelKey, Future[None]] = {}
        self._thread = threading.Thread(target=self._watch, name="models", daemon=True)

    def find(self, station: str, recipe: str) -> Live | None:
        """The model that decides here now, if there is one in memory."""
        return self._shelf.find((station, recipe))

    def trial(self, station: str, recipe: str) -> "Trial | None":
        """The model that is tried here beside the one that decides, if there is one in memory."""
        share = self._shares.get((station, recipe))
        live = self._shelf.find((station, recipe, _SHADOW)) if share is not None else None
        return Trial(live, share) if live is not None and share is not None else None

    def load(self, station: str, recipe: str) -> "Future[None] | None":
        """Ask for the model of a known station and recipe that is not in memory.

        Returns:
            What to wait for, then `find` again; None where waiting would bring nothing. Never cancel it.
        """
        key = self._known.get((station, recipe))
        if key is None or key in self._none or (station, recipe) in self._shelf or not self._thread.is_alive():
            return None
        future = self._loading.get(key)
        if future is None:
            future = self._loading[key] = Future()
            self._asked.put(key)
        return future

    def states(self) -> list["State"]:
        """How it stands with the model of each station and recipe."""
        found = []
        for key in self._keys:
            place = (key.station, key.recipe)
            live, refusal = self._shelf.peek(place), self._refused.get(place)
            trouble = f"{short(refusal.version)} is refused: {refusal.why}" if refusal else self._away.get(place)
            none = "loaded when a frame asks for it" if self._shelf.full else "none is promoted"
            there = f"{live.method} {short(live.version)}" if live else "" if trouble else none
            found.append(State(key, live is not None or trouble is None, "; ".join(filter(None, (there, trouble)))))
        return found

    def start(self) -> None:
        """Load what is current, as far as memory goes, then keep watching the store."""
        for key in self._keys:
            if self._shelf.full:
                log.info("memory for models is full: others are loaded when asked for", first=str(key))
                break
            self._look(key)
            if (key.station, key.recipe) not in self._shelf:
                log.warning(
                    "no model: frames get no_decision until one is promoted",
                    station=key.station,
                    recipe=key.recipe,
                )
        self._tell_of_store()
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._asked.put(None)

    def refresh(self) -> None:
        """Compare the pointers of all models in memory, and of those that were missed, with what is in service."""
        for key in self._keys:
            if (key.station, key.recipe) in self._shelf or not self._shelf.full:
                self._look(key)
        self._none.clear()
        self._tell_of_store()

    def _look(self, key: ModelKey) -> None:
        """Load what the pointer names, if it is not what is in service."""
        try:
            place = (key.station, key.recipe)
            current = self._store.current(key)
            self._put(key, place, current)
            self._away.pop(place, None)
            self._tell_if_forgotten(key, place, current)
            marks = self._store.marks(key)
            self._outages.works(str(key))
            if marks.shadow in {None, current}:
                self._shares.pop(place, None)
                self._shelf.remove((*place, _SHADOW))
                self._refused.pop((*place, _SHADOW), None)
                self._tell_refusals(place)
                self._metrics.model_gone(place, _SHADOW)
                return
            if (*place, _SHADOW) in self._shelf or not self._shelf.full:
                self._put(key, (*place, _SHADOW), marks.shadow)
            self._shares[place] = marks.canary_share
        except (StoreError, ModelError) as error:
            self._metrics.store_failed("models")
            self._away[(key.station, key.recipe)] = f"{type(error).__name__}: {error}"
            self._outages.fails(str(key), str(error))
            self._recall(key)

    def _tell_of_store(self) -> None:
        """Once for all stations, not at each look: an outage of an hour is no reason for thousands of lines."""
        told = self._outages.to_tell()
        if told is None:
            return
        failing, seconds = told
        if failing:
            error = next(iter(failing.values()))
            log.error(
                "store: keeping the models there are", stations=list(failing), error=error, seconds=round(seconds)
            )
        else:
            log.info("store: it answers again", seconds=round(seconds))

    def _put(self, key: ModelKey, place: Place, wanted: Version | None) -> None:
        refusal = self._refused.get(place)
        if refusal is not None and refusal.version == wanted:
            return
        self._refused.pop(place, None)  # the pointer moved: what it left may be mended by when it comes back
        self._tell_refusals(place)
        live = self._shelf.peek(place)
        if wanted is not None and wanted != (live.version if live else None):
            self._swap(key, place, wanted)

    def _tell_if_forgotten(self, key: ModelKey, place: Place, current: Version | None) -> None:
        """Once: the store knows nothing of a model in service, as after a flush. A restart would be without it."""
        live = self._shelf.peek(place)
        if current is None and live is not None and place not in self._forgotten:
            log.error(
                "the store has no model here any more",
                station=key.station,
                recipe=key.recipe,
                version=live.version,
            )
            self._forgotten.add(place)
        elif current is not None:
            self._forgotten.discard(place)

    def _recall(self, key: ModelKey) -> None:
        """With nothing in service and the store away: what this machine saw last."""
        version = self._store.remembered(key)
        if version is None or (key.station, key.recipe) in self._shelf:
            return
        try:
            self._swap(key, (key.station, key.recipe), version)
            log.warning("started from this machine's copy", station=key.station, recipe=key.recipe, version=version)
        except StoreError as error:
            log.error("no copy of the model on this machine", station=key.station, version=version, error=str(error))

    def _swap(self, key: ModelKey, place: Place, wanted: Version) -> None:
        before = self._shelf.replaced(place)
        kept = before if before is not None and before.version == wanted else None
        live = kept or self._opened(key, place, wanted)
        if live is None:
            self._metrics.model_load(key, "refused")
            self._tell_refusals(place)
            return
        for station, recipe, *trial in self._shelf.put(place, live):
            log.info("model left memory, which is full", station=station, recipe=recipe)
            self._metrics.models_evicted.inc()
            self._metrics.model_gone((station, recipe), _SHADOW if trial else _ACTIVE)
        self._metrics.model_load(key, "swapped_back" if kept else "loaded")
        self._metrics.model_in_memory(
            key, _SHADOW if _SHADOW in place else _ACTIVE, live, loading.created_at(self._store, key, wanted)
        )
        self._metrics.resident(len(self._shelf), self._shelf.size_bytes)
        log.info(
            "model tried" if _SHADOW in place else "model in service",
            station=key.station,
            recipe=key.recipe,
            version=live.version,
            method=live.method,
        )

    def _opened(self, key: ModelKey, place: Place, wanted: Version) -> Live | None:
        """The model, loaded and warm; None if it cannot be used, whatever is wrong with it."""
        try:
            return self._loader.load(key, wanted)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a candidate, the model in place stays
            self._refused[place] = _Refusal(wanted, f"{type(error).__name__}: {error}")
            kept = self._shelf.peek(place)
            log.error(
                "model refused: keeping the one there is",
                station=key.station,
                recipe=key.recipe,
                refused=wanted,
                kept=kept.version if kept else None,
                error=f"{type(error).__name__}: {error}",
            )
            return None

    def _tell_refusals(self, place: Place) -> None:
        self._metrics.model_refused(*place[:2], refused=any(other[:2] == place[:2] for other in self._refused))

    def _watch(self) -> None:
        """Until stopped: load what is asked for at once, look at every pointer now and then."""
        next_look = time.monotonic() + self._pause_s()
        while True:
            try:
                key = self._asked.get(timeout=max(0.0, next_look - time.monotonic()))
            except Empty:
                key, next_look = None, time.monotonic() + self._pause_s()
                self._safely(self.refresh)
                continue
            if key is None:
                return
            self._safely(lambda asked=key: self._look(asked))  # type: ignore[misc]
            self._tell_of_store()
            if (key.station, key.recipe) not in self._shelf:
                self._none.add(key)
            self._loading.pop(key).set_result(None)

    def _pause_s(self) -> float:
        return self._poll_s * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not a secret

    @staticmethod
    def _safely(act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:  # the models in service stay, whatever a store or an artifact does
            log.exception("refresh failed: keeping the models there are")
