"""What a refit may learn from and is held to: the pool's frames, the golden set, and whether drift forbids it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_store import Lineage, ModelKey
from model_store.pool import DiskPool
from model_store.pool_records import Pooled
from pipeline import selection
from pipeline.data import Frame
from pipeline.errors import BlobError, ConfigError
from pipeline.evaluation import dataset
from pipeline.golden import Golden
from pipeline.review import Finding, not_checked
from pipeline.settings import Settings
from workers import baselines
from workers.baselines import Window

_SEED = 0


@dataclass(frozen=True, slots=True)
class Source:
    """A pooled frame that was read, and where it comes from."""

    pooled: Pooled
    frame: Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Drifting:
    """What the monitors of a station and recipe say.

    Attributes:
        finding: of the rule `drift`.
        windows: of drift that is over: their frames may be of what was wrong then.
    """

    finding: Finding
    windows: tuple[Window, ...] = ()


def drifting(settings: Settings, key: ModelKey) -> Drifting:
    """Whether drift forbids a refit: an alarm that no person has answered does."""
    path = baselines.place(settings, key.station, key.recipe)
    try:
        kept = baselines.read(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"whether {key} drifts cannot be read: {path}: {error}") from error
    if kept is None:
        words = f"nothing is kept of {key} in {settings.drift.folder}: is that the folder of its worker?"
        return Drifting(finding=not_checked("drift", words))
    raised = {name: monitor.alarm for name, monitor in kept.baseline.monitors.items() if monitor.alarm}
    if not raised:
        words = f"no alarm of {len(kept.baseline.monitors)} monitors, {len(kept.windows)} times of drift are left out"
        return Drifting(finding=Finding(rule="drift", outcome="passed", words=words), windows=kept.windows)
    since = min(alarm.since for alarm in raised.values())
    words = (
        f"{', '.join(raised)} changed, since {since:%Y-%m-%d %H:%M} UTC: a person has to look, and then say "
        f"`goldline baseline accept {key.station} --recipe {key.recipe} --by NAME --why WORDS`"
    )
    return Drifting(finding=Finding(rule="drift", outcome="failed", words=words), windows=kept.windows)


def pooled_frames(pool: DiskPool, key: ModelKey, windows: Sequence[Window], most: int) -> tuple[list[Source], int]:
    """Frames of the pool that may be learnt from, at most so many, drawn by lot: they are read into memory.

    Returns:
        These, and how many there are.
    """
    usable = [
        pooled
        for pooled in pool.usable(key)
        if not any(each.since <= pooled.entry.captured_at <= each.until for each in windows)
    ]
    drawn = np.sort(np.random.default_rng(_SEED).permutation(len(usable))[:most])
    found = []
    for pooled in (usable[i] for i in drawn):
        try:
            image = pool.read(pooled)
        except BlobError:  # removed meanwhile, or damaged: the others are still good
            continue
        found.append(Source(pooled, Frame(frame_id=pooled.entry.frame_id, image=image, part_id=pooled.entry.part_id)))
    return found, len(usable)


def golden_set(settings: Settings, key: ModelKey, folder: Path | None, learnt: Lineage) -> Golden:
    """The golden set in a folder, or in the one of settings; an empty one where there is none.

    Args:
        settings: with the folder of all golden sets.
        key: whose.
        folder: another one, which must be there.
        learnt: of the model in service: its pictures cannot calibrate.

    Raises:
        ConfigError: the folder is none, or a threshold selected its goods.
    """
    if folder is None:
        if settings.refit.golden is None:
            return Golden(learnt=learnt.pictures)
        folder = Path(settings.refit.golden).expanduser() / key.station / key.recipe
        if not folder.is_dir():
            return Golden(learnt=learnt.pictures)
    goods, defects = dataset.golden(folder)
    for place in {path.parent for path in goods} | {folder}:
        selection.check(place, [p for p in goods if p.parent == place], station=key.station, recipe=key.recipe)
    return Golden(goods=_read(goods), defects=_read(defects), learnt=learnt.pictures)


def _read(paths: Sequence[Path]) -> list[Frame]:
    return [Frame(frame_id=str(path), image=path.read_bytes()) for path in paths]
