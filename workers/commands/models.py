"""`goldline models`."""

import getpass
import json
from typing import Any

import click

from model_store import ModelKey, ModelStore, open_store, resolve_version, short
from model_store import rollback as roll_back
from workers.commands import options

_recipe = click.option("--recipe", default="default", show_default=True, help="The product.")
_why = click.option("--why", default="", help="For the history.")


@click.group("models")
def command() -> None:
    """List, show, promote and roll back model versions."""


@command.command("list")
@click.argument("station", required=False)
@_recipe
@options.store
@options.as_json
def list_(station: str | None, recipe: str, store_url: str, as_json: bool) -> None:
    """Versions of STATION, or of every station there is; the one in service has a star."""
    store = open_store(store_url)
    rows = [row for key in ([ModelKey(station, recipe)] if station else store.keys()) for row in _rows(store, key)]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        star = "*" if row["current"] else " "
        made = str(row["lineage"]["created_at"])[:19]
        click.echo(
            f"{star} {short(row['version'])}  {row['station']}  {row['recipe']}  {row['size_bytes']:>12,} B  {made}"
        )
    if not rows:
        click.echo("no models; make one with: goldline fit FOLDER --station S", err=True)


@command.command("show")
@click.argument("station")
@click.argument("version", default="current")
@_recipe
@options.store
@options.as_json
def show(station: str, version: str, recipe: str, store_url: str, as_json: bool) -> None:
    """One VERSION of STATION (its beginning is enough): what it is, what it promises, how it came about."""
    store = open_store(store_url)
    key = ModelKey(station, recipe)
    found = resolve_version(store, key, version)
    artifact = store.get(key, found)
    row = next(r for r in _rows(store, key) if r["version"] == found)
    history = [
        {"version": p.version, "at": p.at.isoformat(), "who": p.who, "why": p.why}
        for p in store.history(key)
        if p.version == found
    ]
    body = {**row, "method": artifact.method, "meta": artifact.meta, "promotions": history}
    click.echo(json.dumps(body, indent=None if as_json else 2, default=str))


@command.command("promote")
@click.argument("station")
@click.argument("version")
@_recipe
@_why
@options.store
def promote(station: str, version: str, recipe: str, why: str, store_url: str) -> None:
    """Put VERSION in service at STATION; workers swap to it between batches."""
    store = open_store(store_url)
    key = ModelKey(station, recipe)
    found = resolve_version(store, key, version)
    before = store.current(key)
    store.promote(key, found, expected=before, who=getpass.getuser(), why=why)
    click.echo(f"{short(found)} is in service at {key}" + (f", after {short(before)}" if before else ""))


@command.command("rollback")
@click.argument("station")
@_recipe
@_why
@options.store
def rollback(station: str, recipe: str, why: str, store_url: str) -> None:
    """Put the version that was in service before back."""
    store = open_store(store_url)
    key = ModelKey(station, recipe)
    version = roll_back(store, key, getpass.getuser(), why or "rollback")
    click.echo(f"{short(version)} is in service at {key} again")


def _rows(store: ModelStore, key: ModelKey) -> list[dict[str, Any]]:
    return [
        {
            "station": key.station,
            "recipe": key.recipe,
            "version": info.version,
            "current": info.current,
            "size_bytes": info.size_bytes,
            "lineage": info.lineage.to_json(),
        }
        for info in store.versions(key)
    ]
