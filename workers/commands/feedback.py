"""`goldline feedback`."""

import json
from typing import Literal

import click

from model_store import State, open_store, short
from model_store.pool import open_pool
from model_store.pool_records import Feedback, checked
from pipeline.errors import StoreError
from pipeline.settings import Settings
from workers import provenance, wire
from workers.commands import options
from workers.commands.model_page import plain
from workers.provenance import Fitted


@click.command("feedback")
@click.argument("part")
@click.argument("verdict", type=click.Choice(["good", "defect"]))
@click.option("--by", required=True, help="Who says so.")
@click.option("--station", help="It is about this station alone.")
@click.option("--recipe", help="It is about this product alone.")
@click.option("--note", default="", help="What was found, in your words.")
@options.config
@options.as_json
def command(
    part: str,
    verdict: Literal["good", "defect"],
    by: str,
    station: str | None,
    recipe: str | None,
    note: str,
    settings: Settings,
    as_json: bool,
) -> None:
    """Say that PART is good or a defect: its id as cameras say it, or a frame's id where it has none.

    A defect that had been accepted leaves the pool, and none of its frames comes in any more; a good one is marked as
    verified. It says as well which model versions were fitted with the part, as far as that is known; of these the
    candidates and the shadow are withdrawn: they go in service no more.
    """
    from workers import feedback as line  # noqa: PLC0415 - Kafka's client takes a moment to import

    said = checked(
        Feedback(part_id=part, verdict=verdict, by=by, at=wire.now(), station=station, recipe=recipe, note=note)
    )
    fitted, unknown = _fitted_with(settings, part)  # first: the pool's frames of it may go at once
    line.publish(settings, said)
    if fitted and verdict == "defect":
        fitted = provenance.withdraw_waiting(open_store(settings.store.url), fitted, said)
    rows = [
        {"station": each.key.station, "recipe": each.key.recipe, "version": each.version, "state": each.state.value}
        for each in fitted
    ]
    if as_json:
        click.echo(json.dumps({"part_id": part, "verdict": verdict, "fitted_with": rows, "unknown": unknown}))
        return
    click.echo(f"{plain(part)} is reported as {verdict}")
    for each in fitted:
        click.echo(f"fitted with it: {short(each.version)} of {each.key}, {each.state}")
    if verdict == "defect" and any(each.state is State.ACTIVE for each in fitted):
        click.echo("one is in service: `goldline models rollback` brings back the one before")
    click.echo(unknown or ("" if fitted else "no version is known to be fitted with it"))


def _fitted_with(settings: Settings, part_id: str) -> tuple[list[Fitted], str]:
    """Versions that have learnt from the part, and why there may be more."""
    try:
        seen = provenance.pictures_of(open_pool(settings.pool), part_id) if settings.pool.url is not None else set()
        found, silent = provenance.fitted_with(open_store(settings.store.url), part_id, seen)
    except StoreError as error:
        return [], f"which versions were fitted with it is not known: {error}"
    if settings.pool.url is None:
        return found, "which versions `goldline fit` made with it is not known: there is no [pool] to know its pictures"
    if not seen:
        return found, "which versions `goldline fit` made with it is not known: the pool has no picture of it"
    return found, f"not known of {silent} versions: their lineage lists no pictures" if silent else ""
