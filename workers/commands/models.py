"""`goldline models`."""

import getpass
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from model_store import ModelKey, ModelStore, Version, carry, open_store, resolve_version, short, state_of
from model_store import promote as put_in_service
from model_store import rollback as roll_back
from pipeline.errors import ConfigError
from workers.commands import compare, model_page, options, upkeep

T = TypeVar("T")

_NONE = "no models; make one with: goldline fit FOLDER --station S"


@click.group("models")
def command() -> None:
    """List, show, compare, promote, roll back, try, keep, delete and carry model versions."""


for _other in (compare.compare, upkeep.history, upkeep.pin, upkeep.shadow, upkeep.gc):
    command.add_command(_other)


@command.command("list")
@click.argument("station", required=False)
@options.recipe
@options.line_store
@options.as_json
def list_(station: str | None, recipe: str, store_url: str, as_json: bool) -> None:
    """Versions of STATION, or of every station there is; the one in service has a star.

    Each is a candidate (never promoted), shadow (tried beside the active one), active (in service) or retired (was).
    """
    store = open_store(store_url)
    rows = [row for key in ([ModelKey(station, recipe)] if station else store.keys()) for row in _rows(store, key)]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        star = "*" if row["current"] else " "
        made = str(row["lineage"]["created_at"])[:19]
        method = model_page.plain(row["lineage"].get("method", ""))
        canary = f"  canary {row['canary_share']:.3g}" if row["canary_share"] else ""
        click.echo(
            f"{star} {short(row['version'])}  {row['station']}  {row['recipe']}  {row['state']:<9}  "
            f"{method:<11}  {row['size_bytes']:>12,} B  {made}" + ("  pinned" if row["pinned"] else "") + canary
        )
    if not rows:
        there = ", ".join(map(str, store.keys())) if station else ""
        click.echo(f"no models of {station} (there: {there})" if there else _NONE, err=True)


@command.command("show")
@click.argument("station")
@click.argument("version", default="current")
@options.recipe
@options.line_store
@options.as_json
def show(station: str, version: str, recipe: str, store_url: str, as_json: bool) -> None:
    """One VERSION of STATION (its beginning is enough): what it is, what it promises, where it comes from."""
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
    click.echo(json.dumps(body, default=str) if as_json else model_page.page(body))


@command.command("promote")
@click.argument("station")
@click.argument("version")
@options.recipe
@options.why
@options.line_store
def promote(station: str, version: str, recipe: str, why: str, store_url: str) -> None:
    """Put VERSION in service at STATION; workers swap to it between batches."""
    store = open_store(store_url)
    key = ModelKey(station, recipe)
    found = resolve_version(store, key, version)
    before = store.current(key)
    put_in_service(store, key, found, expected=before, who=getpass.getuser(), why=why)
    after = "" if before is None else " already: nothing changed" if before == found else f", after {short(before)}"
    click.echo(f"{short(found)} is in service at {key}{after}")


@command.command("rollback")
@click.argument("station")
@options.recipe
@options.why
@options.line_store
def rollback(station: str, recipe: str, why: str, store_url: str) -> None:
    """Put the version that was in service before back."""
    store = open_store(store_url)
    key = ModelKey(station, recipe)
    version = roll_back(store, key, getpass.getuser(), f"rollback: {why}" if why else "rollback")
    click.echo(f"{short(version)} is in service at {key} again")


@command.command("export")
@click.argument("station")
@click.argument("version", default="current")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file to write.")
@options.recipe
@options.line_store
def export(station: str, version: str, out: Path, recipe: str, store_url: str) -> None:
    """One VERSION of STATION as one file with checksums, to carry to a plant without a network."""
    store = open_store(store_url)
    key = ModelKey(station, recipe)
    found = resolve_version(store, key, version)
    _written(out, lambda: carry.export(store, key, found, out))
    click.echo(f"{short(found)} of {key} is in {out}, {out.stat().st_size:,} bytes")


@command.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--station", help="Another station than the file names.")
@click.option("--recipe", help="Another product than the file names.")
@click.option("--promote", is_flag=True, help="Put it in service. Without, it waits for `goldline models promote`.")
@options.why
@options.line_store
def import_(file: Path, station: str | None, recipe: str | None, promote: bool, why: str, store_url: str) -> None:
    """Put the model in FILE, from `goldline models export`, into the store."""
    store = open_store(store_url)
    who = getpass.getuser()
    key = ModelKey(station, recipe or "default") if station else None
    if recipe and not station:
        raise click.UsageError("--recipe needs --station: name both, or neither to keep the file's")
    arrived, version = _written(
        file, lambda: carry.import_(store, file, key=key, lineage={"imported_by": who, "imported_from": file.name})
    )
    if promote:
        put_in_service(
            store, arrived, version, expected=store.current(arrived), who=who, why=why or f"import of {file.name}"
        )
    click.echo(f"{short(version)} is stored for {arrived}" + (", and in service" if promote else ""))


@command.command("diff")
@click.argument("station")
@click.argument("one")
@click.argument("other", default="current")
@options.recipe
@options.line_store
@options.as_json
def diff(station: str, one: str, other: str, recipe: str, store_url: str, as_json: bool) -> None:
    """What differs between version ONE of STATION and OTHER: settings, backbone, threshold, sizes."""
    store = open_store(store_url)
    key = ModelKey(station, recipe)
    sides = [_flat(store, key, resolve_version(store, key, each)) for each in (one, other)]
    names = sorted(sides[0].keys() | sides[1].keys())
    changed = {n: [side.get(n) for side in sides] for n in names if sides[0].get(n) != sides[1].get(n)}
    if as_json:
        click.echo(json.dumps(changed))
        return
    for name, (left, right) in changed.items():
        click.echo(f"{name}: {left} -> {right}")
    if not changed:
        click.echo("they are the same")


def _flat(store: ModelStore, key: ModelKey, version: Version) -> dict[str, Any]:
    """A version's meta, lineage and tensors' shapes by dotted names."""
    artifact = store.get(key, version)
    row = next(r for r in _rows(store, key) if r["version"] == version)
    shapes = {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in artifact.tensors.items()}
    lineage = {name: value for name, value in row["lineage"].items() if name != "pictures"}  # `dataset` tells
    flat: dict[str, Any] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                walk(f"{path}.{name}" if path else str(name), inner)
        else:
            flat[path] = value

    walk("", {"method": artifact.method, "meta": artifact.meta, "tensors": shapes, "lineage": lineage})
    return flat


def _written(path: Path, act: Callable[[], T]) -> T:
    """What a file's own trouble says, in one line."""
    try:
        return act()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error


def _rows(store: ModelStore, key: ModelKey) -> list[dict[str, Any]]:
    promotions, marks = store.history(key), store.marks(key)
    return [
        {
            "station": key.station,
            "recipe": key.recipe,
            "version": info.version,
            "current": info.current,
            "state": state_of(info.version, promotions, marks),
            "pinned": info.version in marks.pins,
            "canary_share": marks.canary_share if info.version == marks.shadow else 0.0,
            "used_at": info.used_at.isoformat(),
            "size_bytes": info.size_bytes,
            "lineage": info.lineage.to_json(),
        }
        for info in store.versions(key)
    ]
