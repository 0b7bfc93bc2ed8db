"""`goldline refit`."""

import getpass
import json
import os
import threading
from contextlib import suppress
from pathlib import Path

import click

from model_store import ModelKey, ModelStore, Version, open_store, resolve_version, short, withdraw
from model_store.pool import open_pool
from pipeline import settings as line
from pipeline.errors import ConfigError, LeaseTaken
from pipeline.refit_settings import Approval
from pipeline.settings import Settings
from workers.commands import options
from workers.commands.model_page import plain, rows_of

REFUSED = 3
TAKEN = 4


@click.group("refit", invoke_without_command=True)
@click.option("--station", help="The camera viewpoint, as in line-1/top.")
@options.recipe
@click.option(
    "--golden",
    type=click.Path(path_type=Path, file_okay=False),
    help="Verified pictures: good/ and defect/ in it, or test/ in MVTec layout.  [STATION/RECIPE in refit.golden]",
)
@click.option(
    "--approval",
    type=click.Choice(["manual", "shadow-then-auto", "auto"]),
    help="Who lets the candidate go live.  [refit.approval]",
)
@click.option("--dry-run", is_flag=True, help="Fit and review, and store nothing.")
@click.option("--watch", is_flag=True, help="Stay, and refit every station at the times of refit.schedule.")
@options.metrics_port
@options.why
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default="line.toml",
    show_default=True,
    help="Settings of the line.",
)
@options.as_json
@click.pass_context
def command(
    ctx: click.Context,
    station: str | None,
    recipe: str,
    golden: Path | None,
    approval: Approval | None,
    dry_run: bool,
    watch: bool,
    metrics_port: int | None,
    why: str,
    config: Path,
    as_json: bool,
) -> None:
    """Let STATION's model learn the parts that it accepted lately, if a review finds nothing against it.

    From the pool of accepted frames (`goldline pool stats`) and the model in service comes a candidate, of the same
    method and settings: only `goldline fit --method auto` chooses anew. It is held to rules, and each is told with what
    was seen and what is needed: enough frames; none that the model now doubts, none unlike the others; not too much
    that is new, not too far from what was known; golden goods are not rejected more, golden defects are not missed.
    Its threshold comes from golden goods that neither model has learnt from: accepted frames cannot calibrate, as a
    threshold selected them. While the station drifts there is no refit.

    \b
    With approval = manual (the default) it waits for a person:
      goldline refit --station line-1/top
      goldline models show line-1/top VERSION          the review, again
      goldline refit approve line-1/top VERSION --by "A. Jones"
    With shadow-then-auto it is tried beside the model in service, and a later `goldline refit` promotes or withdraws
    it by how their verdicts differ. With auto it goes live at once, if every rule was checked and passed.

    \b
    Exit status: 0 done, as told; 2 it could not be done; 3 refused, for the reasons told; 4 another process is at it.
    """
    if ctx.invoked_subcommand is not None:
        return
    if bool(station) == watch:
        raise click.UsageError("name a --station, or --watch all of them")
    settings = line.read(config)
    _step_back(settings.refit.threads)
    if watch:
        from workers import logs, refit_watch  # noqa: PLC0415 - torch takes seconds to import
        from workers.health import Health  # noqa: PLC0415
        from workers.metrics import RefitMetrics  # noqa: PLC0415

        logs.set_up("info", process="refit")
        metrics = RefitMetrics(settings)
        Health(metrics, settings, port=metrics_port).start()
        refit_watch.run(settings, threading.Event(), metrics=metrics)
        return
    from workers import refitting  # noqa: PLC0415
    from workers.progress_bars import shown  # noqa: PLC0415

    assert station is not None  # noqa: S101 - it was asked for
    try:
        with shown() as progress:
            done = refitting.refit(
                settings,
                ModelKey(station, recipe),
                who=getpass.getuser(),
                why=why,
                golden=golden,
                approve=approval,
                dry_run=dry_run,
                progress=progress,
            )
    except LeaseTaken as error:
        click.echo(f"goldline: {error}", err=True)
        ctx.exit(TAKEN)
    rows = rows_of(done.review) if done.review else []
    click.echo(json.dumps(done.body()) if as_json else "\n".join([*rows, plain(done.words)]))
    ctx.exit(REFUSED if done.what == "refused" else 0)


@command.command("approve")
@click.argument("station")
@click.argument("version")
@click.option("--by", required=True, help="Who answers for it.")
@options.recipe
@options.why
@options.config
def approve(station: str, version: str, by: str, recipe: str, why: str, settings: Settings) -> None:
    """Put VERSION of STATION, the candidate of a refit, in service.

    Not one that its review refused, that was withdrawn, that learnt from a part reported as defective since, or that
    was held beside another model than the one in service now; and none while the station drifts.
    """
    from workers import approval  # noqa: PLC0415 - torch takes seconds to import

    store, key, found = _candidate(settings, station, recipe, version)
    pool = open_pool(settings.pool) if settings.pool.url else None
    approval.approve(settings, store, pool, key, found, who=by, why=why)
    click.echo(f"{short(found)} is in service at {key}")


@command.command("refuse")
@click.argument("station")
@click.argument("version")
@click.option("--by", required=True, help="Who refuses it.")
@options.recipe
@options.why
@options.config
def refuse(station: str, version: str, by: str, recipe: str, why: str, settings: Settings) -> None:
    """Withdraw VERSION of STATION: it goes in service no more, and is tried no more."""
    store, key, found = _candidate(settings, station, recipe, version)
    if found == store.current(key):
        raise ConfigError(f"{short(found)} is in service at {key}: `goldline models rollback` takes it out")
    withdraw(store, key, found, who=by, why=why or "refused")
    click.echo(f"{short(found)} of {key} is withdrawn")


def _candidate(settings: Settings, station: str, recipe: str, version: str) -> tuple[ModelStore, ModelKey, Version]:
    store, key = open_store(settings.store.url), ModelKey(station, recipe)
    return store, key, resolve_version(store, key, version)


def _step_back(threads: int) -> None:
    """Whatever else runs on this machine comes first; the system's order of disk accesses follows."""
    from pipeline import growth  # noqa: PLC0415 - torch takes seconds to import

    growth.use_threads(threads)
    with suppress(OSError):
        os.nice(19)
