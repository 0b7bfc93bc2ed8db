"""`goldline pool`."""

import json
from collections import Counter
from typing import Any

import click
import msgspec

from model_store import ModelKey, open_store, short
from model_store.pool import DiskPool, open_pool
from model_store.pool_records import Feedback, Pooled, checked
from pipeline.errors import StoreError
from pipeline.settings import Settings
from workers import provenance, wire
from workers.commands import options
from workers.commands.model_page import plain


@click.group("pool")
def command() -> None:
    """Recently accepted frames, candidates for the next refit: what is there, and what has to go."""


@command.command("stats")
@options.config
@options.as_json
def stats(settings: Settings, as_json: bool) -> None:
    """How many frames of each station and day there are, their ages and sizes, and how many are in quarantine."""
    pool = open_pool(settings.pool)
    frames: dict[ModelKey, list[Pooled]] = {}
    for pooled in pool.frames():
        frames.setdefault(pooled.key, []).append(pooled)
    rows = [_station(pool, key, frames[key]) for key in sorted(frames)]
    defects, removals = pool.defects(), len(pool.removals())
    if as_json:
        click.echo(json.dumps({"stations": rows, "defects": defects, "removals": removals}))
        return
    for row in rows:
        click.echo(
            f"{row['station']} ({row['recipe']}): {row['frames']} frames, {row['size_bytes']:,} bytes, "
            f"{row['oldest'][:16]} to {row['newest'][:16]}; {row['quarantined']} in quarantine, "
            f"{row['verified']} verified, {row['usable']} usable"
        )
        for day, count in row["days"].items():
            click.echo(f"  {day}  {count:>6}")
    click.echo(f"reports of defective parts: {defects}; removals: {removals}")


@command.command("show")
@click.argument("part")
@options.config
@options.as_json
def show(part: str, settings: Settings, as_json: bool) -> None:
    """The frames of PART that are in the pool, reports of it, what was removed, and which versions learnt from it."""
    pool = open_pool(settings.pool)
    frames = [_frame(pool, pooled) for pooled in pool.frames(part_id=part)]
    reports = pool.reports(part)
    removals = [removal for removal in pool.removals() if removal.feedback.part_id == part]
    fitted = _fitted(settings, pool, part)
    if as_json:
        body = {"part_id": part, "frames": frames, "reports": reports, "removals": removals, "fitted_with": fitted}
        click.echo(json.dumps(msgspec.to_builtins(body)))
        return
    for row in frames:
        state = "in quarantine" if row["quarantined"] else "usable"
        verified = ", verified" if row["verified"] else ""
        click.echo(
            f"{row['captured_at'][:19]}  {row['station']} ({row['recipe']})  {plain(row['frame_id'])}  "
            f"score {row['score']:.4g}  p {row['p_value']:.3f}  model {plain(short(row['model']))}  "
            f"{row['size_bytes']:,} bytes  {state}{verified}"
        )
    for report in reports:
        click.echo(f"reported as defective by {plain(report.by)}, {report.at:%Y-%m-%d %H:%M}: {plain(report.note)}")
    for removal in removals:
        click.echo(
            f"{removal.at:%Y-%m-%d %H:%M}  {len(removal.frames)} frames removed, by {plain(removal.feedback.by)}"
        )
    for row in fitted:
        key = ModelKey(row["station"], row["recipe"])
        click.echo(f"learnt from it: {short(row['version'])} of {key}, {row['state']}")
    if not frames:
        click.echo(f"no frame of {plain(part)} is in the pool", err=True)


@command.command("remove")
@click.argument("part")
@click.option("--by", required=True, help="Who removes it.")
@click.option("--why", required=True, help="For the log.")
@click.option("--station", help="Its frames of this station alone.")
@options.config
@options.as_json
def remove(part: str, by: str, why: str, station: str | None, settings: Settings, as_json: bool) -> None:
    """Remove the frames of PART and keep it out from now on; who and why go to the pool's log."""
    said = checked(Feedback(part_id=part, verdict="defect", by=by, at=wire.now(), station=station, note=why))
    (count,) = open_pool(settings.pool).report([said])
    click.echo(json.dumps({"part_id": part, "removed": count}) if as_json else f"{count} frames removed")


def _station(pool: DiskPool, key: ModelKey, frames: list[Pooled]) -> dict[str, Any]:
    """What there is of one station and recipe; the frames are in the order of their times."""
    days = Counter(f"{pooled.entry.captured_at:%Y-%m-%d}" for pooled in frames)
    quarantined = sum(pool.quarantined(pooled.entry) for pooled in frames)
    return {
        "station": key.station,
        "recipe": key.recipe,
        "frames": len(frames),
        "size_bytes": sum(pooled.place.size_bytes for pooled in frames),
        "oldest": wire.rfc3339(frames[0].entry.captured_at),
        "newest": wire.rfc3339(frames[-1].entry.captured_at),
        "quarantined": quarantined,
        "verified": sum(pooled.verified for pooled in frames),
        "usable": len(pool.usable(key)),
        "days": dict(days),
    }


def _fitted(settings: Settings, pool: DiskPool, part: str) -> list[dict[str, Any]]:
    """Versions that learnt from a part; none where there is no store."""
    try:
        seen = provenance.pictures_of(pool, part)
        found, _ = provenance.fitted_with(open_store(settings.store.url), part, seen)
    except StoreError as error:
        click.echo(f"which versions learnt from it is not known: {error}", err=True)
        return []
    return [
        {"station": each.key.station, "recipe": each.key.recipe, "version": each.version, "state": each.state.value}
        for each in found
    ]


def _frame(pool: DiskPool, pooled: Pooled) -> dict[str, Any]:
    return {
        "station": pooled.key.station,
        "recipe": pooled.key.recipe,
        **msgspec.to_builtins(pooled.entry),
        "quarantined": pool.quarantined(pooled.entry),
        "verified": pooled.verified,
    }
