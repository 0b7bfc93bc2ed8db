"""`goldline calibrate`."""

import getpass
import json
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from model_store import ModelKey, ModelStore, Version, open_store, resolve_version, short
from model_store import promote as put_in_service
from pipeline import selection
from pipeline.commissioning import Recalibrated, recalibrate
from pipeline.data import JSON, Frame
from pipeline.decide import Threshold
from pipeline.errors import ConfigError
from pipeline.evaluation import dataset
from pipeline.guarantee import check_rate
from pipeline.inspection import with_threshold
from pipeline.selection import Selection
from workers.backbones import open_inspector
from workers.commands import options
from workers.commands.model_page import to_use
from workers.progress_bars import shown
from workers.provenance import digest, pictures

UNSELECTED = "unselected, as stated"


@click.command("calibrate")
@click.argument("station")
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--verified-by",
    required=True,
    metavar="NAME",
    help="Who verified that each part is good, and answers for it that no verdict chose them.",
)
@click.option("--rate", type=float, help="Share of good parts that may be rejected.  [as the model in service]")
@click.option("--promote", is_flag=True, help="Put it in service. Without, it waits for `goldline models promote`.")
@options.recipe
@options.why
@options.model_backbone
@options.store
@options.as_json
def command(
    station: str,
    folders: tuple[Path, ...],
    verified_by: str,
    rate: float | None,
    promote: bool,
    recipe: str,
    why: str,
    weights: Path | None,
    backbone: str | None,
    config: Path | None,
    device: str,
    store_url: str,
    as_json: bool,
) -> None:
    """Give the model in service at STATION a threshold from the verified good pictures in FOLDER.

    It is stored as a new version: the same detector, another threshold. FOLDER holds one picture for each part, of
    parts that the model was not fitted on and that a person found good, chosen whatever the verdict on them was: as
    `goldline audit sample` draws them, for one. A folder whose selection.json says that a threshold selected its
    pictures (accepted frames) is refused: a threshold from these rejects more good parts than it promises.

    \b
    Examples:
      goldline calibrate line-1/top audit --verified-by "A. Jones" --why "new lamp"
      goldline calibrate line-1/top monday tuesday --verified-by ana --rate 0.01 --promote
    """
    store = open_store(store_url)
    key = ModelKey(station, recipe)
    if not verified_by.strip():
        raise click.BadParameter("a person's name is needed", param_hint="--verified-by")
    if rate is not None:
        check_rate(rate)
    parent = resolve_version(store, key, "current")
    artifact = store.get(key, parent)
    goods, said = _read(folders, key)
    _refuse_what_it_was_fitted_on(store, key, parent, goods)
    settings = options.optional_settings(config)
    inspector = open_inspector(artifact, settings, backbone=backbone, weights=weights, device=device)
    before = inspector.threshold
    with shown() as progress:
        made = recalibrate(inspector, goods, rate=before.guarantee.rate if rate is None else rate, progress=progress)
    lineage = _lineage(store, key, parent, goods, made) | {
        "why": why,
        "verified_by": verified_by,
        "chosen_by": ", ".join(sorted({each.chosen_by if each else UNSELECTED for each in said})),
    }
    version = store.put(key, with_threshold(artifact, made.threshold), lineage=lineage)
    if promote:
        put_in_service(store, key, version, expected=parent, who=getpass.getuser(), why=why or "calibrate")
    if as_json:
        click.echo(json.dumps(_body(made, version, parent, before, promoted=promote)))
        return
    _tell(made, key, version, store_url, before, promoted=promote)


def _read(folders: tuple[Path, ...], key: ModelKey) -> tuple[list[Frame], list[Selection | None]]:
    """The pictures of all folders, and what each folder says of itself."""
    goods, said = [], []
    for folder in folders:
        paths = dataset.goods(folder)
        said.append(selection.check(folder, paths, station=key.station, recipe=key.recipe))
        goods += [Frame(frame_id=str(path), image=path.read_bytes()) for path in paths]
    return goods, said


def _refuse_what_it_was_fitted_on(store: ModelStore, key: ModelKey, parent: Version, goods: list[Frame]) -> None:
    """A detector knows what it was fitted on: scores of that are too low."""
    lineage = _lineage_of(store, key, parent)
    known = set(lineage.get("pictures", ()))  # empty where there were too many to list
    learnt = [frame.frame_id for frame in goods if known.issuperset(pictures([frame]))]
    if learnt or lineage.get("dataset") == digest(goods):
        which = f"{len(learnt)} of these very pictures ({', '.join(learnt[:3])})" if learnt else "these very pictures"
        raise ConfigError(
            f"{short(parent)} was fitted on {which}: their scores are lower than other good parts', and a threshold "
            "from them would be too low; `goldline fit` held some of them out for its own"
        )


def _lineage(
    store: ModelStore, key: ModelKey, parent: Version, goods: list[Frame], made: Recalibrated
) -> dict[str, JSON]:
    """The parent's, but for the threshold's part in it."""
    inherited = _lineage_of(store, key, parent)
    for name in ("refit", "review"):  # of another threshold
        inherited.pop(name, None)
    used = set(made.calibrated_on)
    return inherited | {
        "created_at": datetime.now(UTC).isoformat(),
        "created_by": getpass.getuser(),
        "frames": dict(inherited["frames"]) | {"calibrate": len(used), "unreadable": len(made.unreadable)},
        "calibration": digest([frame for frame in goods if frame.frame_id in used]),
        "parent": parent,
        "code": metadata.version("goldline"),
    }


def _lineage_of(store: ModelStore, key: ModelKey, version: Version) -> dict[str, Any]:
    return next(info.lineage.to_json() for info in store.versions(key) if info.version == version)


def _body(
    made: Recalibrated, version: Version, parent: Version, before: Threshold, *, promoted: bool
) -> dict[str, Any]:
    return {
        "version": version,
        "parent": parent,
        "promoted": promoted,
        "threshold": made.threshold.image,
        "threshold_before": before.image,
        "guarantee": {**made.threshold.to_meta()["guarantee"], "text": str(made.threshold.guarantee)},
        "calibrated_on": len(made.calibrated_on),
        "rejected_before": made.rejected_before,
        "unreadable": list(made.unreadable),
    }


def _tell(
    made: Recalibrated, key: ModelKey, version: Version, store_url: str, before: Threshold, *, promoted: bool
) -> None:
    threshold, n = made.threshold, len(made.calibrated_on)
    way = "higher: it rejects less" if threshold.image > before.image else "lower: it rejects more"
    way = "as before" if threshold.image == before.image else way
    click.echo(f"model      {short(version)} of {key}" + ("  (in service)" if promoted else "  (stored, not promoted)"))
    click.echo(f"calibrated on {n} goods, of which the threshold so far rejects {made.rejected_before}")
    click.echo(f"threshold  {before.image:.4g} -> {threshold.image:.4g}  ({way})")
    click.echo(f"promise    {threshold.guarantee}")
    if made.unreadable:
        click.echo(f"unreadable {len(made.unreadable)}: {', '.join(made.unreadable[:5])}")
    if not promoted:
        click.echo(to_use(key, version, store_url))
