"""`goldline models history`, `pin`, `shadow` and `gc`: what becomes of versions."""

import getpass
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from model_store import Marks, ModelKey, ModelStore, open_store, resolve_version, short, withdrawal
from model_store.lifecycle import Collected, collect
from pipeline.errors import ConfigError
from workers.commands import options
from workers.commands.model_page import plain


@click.command("history")
@click.argument("station")
@options.recipe
@options.line_store
@options.as_json
def history(station: str, recipe: str, store_url: str, as_json: bool) -> None:
    """Every promotion and every change of pins and shadow at STATION: when, what, who and why, oldest first."""
    store = open_store(store_url)
    rows = list(_history(store, ModelKey(station, recipe)))
    if as_json:
        click.echo(json.dumps(rows))
        return
    stored = {info.version for info in store.versions(ModelKey(station, recipe))}
    for row in rows:
        gone = " (deleted since)" if row["version"] and row["version"] not in stored else ""
        what = f"{row['what']} {short(row['version'] or '')}".rstrip()
        said = f": {plain(row['why'])}" if row["why"] else ""
        click.echo(f"{row['at'][:19]}  {what}{gone}  {plain(row['who'])}{said}")


@click.command("pin")
@click.argument("station")
@click.argument("version")
@click.option("--unpin", is_flag=True, help="Let it be deleted again, once nothing else keeps it.")
@options.recipe
@options.why
@options.line_store
def pin(station: str, version: str, unpin: bool, recipe: str, why: str, store_url: str) -> None:
    """Keep VERSION of STATION for good: `goldline models gc` does not delete it."""
    store = open_store(store_url)
    key = ModelKey(station, recipe)
    found = resolve_version(store, key, version)
    marks = store.marks(key)
    pins = marks.pins - {found} if unpin else marks.pins | {found}
    store.mark(key, replace(marks, pins=pins), expected=marks, who=getpass.getuser(), why=why)
    click.echo(f"{short(found)} of {key} is {'not pinned' if unpin else 'pinned'}")


@click.command("shadow")
@click.argument("station")
@click.argument("version", required=False)
@click.option(
    "--canary",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of the parts that it decides, not only looks at.",
)
@click.option("--off", is_flag=True, help="No version is tried any more.")
@options.recipe
@options.why
@options.line_store
def shadow(station: str, version: str | None, canary: float, off: bool, recipe: str, why: str, store_url: str) -> None:
    """Mark VERSION of STATION as the one to be tried beside the one in service."""
    if off == bool(version) or (off and canary):
        raise click.UsageError("name a VERSION, or --off alone")
    store = open_store(store_url)
    key = ModelKey(station, recipe)
    marks = store.marks(key)
    if version is None:
        wanted, told = marks.without_shadow(), f"{key} tries no version"
    else:
        found = resolve_version(store, key, version)
        if found == store.current(key):
            raise ConfigError(f"{short(found)} is in service at {key}: it cannot be tried beside itself")
        if found in marks.withdrawn:
            raise ConfigError(f"{short(found)} {withdrawal(store, key, found)}")
        wanted = replace(marks, shadow=found, canary_share=canary)
        told = f"{short(found)} is the shadow at {key}" + (f", deciding {canary:.3g} of the parts" if canary else "")
    store.mark(key, wanted, expected=marks, who=getpass.getuser(), why=why)
    click.echo(told)


@click.command("gc")
@click.option(
    "--keep-days",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    help="Keep what was put, loaded, promoted or in service in so many days.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@options.line_store
@options.as_json
def gc(keep_days: int, dry_run: bool, store_url: str, as_json: bool) -> None:
    """Delete versions that nothing keeps, and say of each why it stays or goes.

    Kept are the current and the previous version of each station and recipe, pinned ones, shadows, and what was used
    lately. With a store in Redis this machine's copies are deleted by the same age, but for those in service.
    """
    unused_since = datetime.now(UTC) - timedelta(days=keep_days)
    collected = collect(open_store(store_url), unused_since=unused_since, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(_body(collected, dry_run=dry_run)))
        return
    for fate in collected.fates:
        does = "keep  " if fate.kept else "delete"
        why = fate.kept or f"not used in {keep_days} days"
        click.echo(
            f"{does}  {short(fate.version)}  {fate.key.station}  {fate.key.recipe}  {fate.size_bytes:,} B  {why}"
        )
    for swept in collected.swept:
        what = "copy on this machine" if swept.where == "cache" else "model of no station any more"
        click.echo(f"delete  {short(swept.version)}  {swept.size_bytes:,} B  {what}")
    gone = sum(not fate.kept for fate in collected.fates)
    would = "would be " if dry_run else ""
    click.echo(
        f"{gone} of {len(collected.fates)} versions {would}deleted, {collected.freed_bytes:,} bytes {would}freed"
    )


def _body(collected: Collected, *, dry_run: bool) -> dict[str, Any]:
    rows = [
        {
            "station": fate.key.station,
            "recipe": fate.key.recipe,
            "version": fate.version,
            "size_bytes": fate.size_bytes,
            "kept": fate.kept or None,
        }
        for fate in collected.fates
    ]
    return {
        "dry_run": dry_run,
        "versions": rows,
        "swept": [{"where": s.where, "version": s.version, "size_bytes": s.size_bytes} for s in collected.swept],
        "freed_bytes": collected.freed_bytes,
    }


def _history(store: ModelStore, key: ModelKey) -> Iterator[dict[str, Any]]:
    """Promotions and changes of marks in one list, by their times; either log keeps its own order."""
    promotions = [
        (p.at, {"what": "promoted", "version": p.version, "previous": p.previous, "who": p.who, "why": p.why})
        for p in store.history(key)
    ]
    changes = []
    before = Marks()
    for marking in store.markings(key):
        for what, version in _changes(before, marking.marks):
            changes.append((marking.at, {"what": what, "version": version, "who": marking.who, "why": marking.why}))
        before = marking.marks
    for at, row in sorted(promotions + changes, key=lambda dated: dated[0]):
        yield {"at": at.isoformat(), **row}


def _changes(before: Marks, after: Marks) -> Iterator[tuple[str, str | None]]:
    for version in sorted(after.pins - before.pins):
        yield "pinned", version
    for version in sorted(before.pins - after.pins):
        yield "unpinned", version
    if (before.shadow, before.canary_share) != (after.shadow, after.canary_share):
        share = f", canary {after.canary_share:.3g}:" if after.canary_share else ""
        yield (f"shadow{share}", after.shadow) if after.shadow else ("shadow off:", before.shadow)
