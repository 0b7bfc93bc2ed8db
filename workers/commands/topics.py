"""`goldline topics`."""

import json

import click

from pipeline.settings import Settings
from workers.commands import options
from workers.words import counted


@click.group("topics")
def command() -> None:
    """Create and check the topics that a line needs."""


@command.command("create")
@options.config
@click.option("--replication", default=1, show_default=True, help="Copies of each partition; 3 in a plant.")
@options.as_json
def create(settings: Settings, replication: int, as_json: bool) -> None:
    """Make the topics that are missing, with settings for the job, and add the partitions that new stations need.

    Nothing else of a topic that is there is changed: what differs is told. Append new stations at the end of the
    settings, or give every station its `partition`: those without one take the lowest that are free, in the order of
    the file. Cameras, workers and gates read their settings once: restart them, the cameras last.
    """
    from workers import clients, topics  # noqa: PLC0415

    wanted = topics.of(settings)
    options_ = clients.client_options(settings.kafka)
    made = topics.create(settings.kafka.brokers, wanted, replication=replication, client_options=options_)
    widened = topics.widen(settings.kafka.brokers, wanted, client_options=options_)
    problems = topics.check(settings.kafka.brokers, wanted, client_options=options_)
    if as_json:
        added = {topic: {"before": before, "after": after} for topic, (before, after) in widened.items()}
        click.echo(json.dumps({"created": made, "widened": added, "problems": problems}))
    else:
        for spec in wanted:
            before, after = widened.get(spec.name, (None, spec.partitions))
            what = "made " if spec.name in made else "there" if before is None else "wider"
            click.echo(f"{what}  {spec.name}  {counted(after, 'partition')}" + (f", {before} before" if before else ""))
        for problem in problems:
            click.echo(f"differs: {problem}")
    click.get_current_context().exit(1 if problems else 0)


@command.command("check")
@options.config
@options.as_json
def check(settings: Settings, as_json: bool) -> None:
    """Compare the topics with what the settings need; exit status 1 where something is missing or too small."""
    from workers import clients, topics  # noqa: PLC0415

    problems = topics.check(
        settings.kafka.brokers, topics.of(settings), client_options=clients.client_options(settings.kafka)
    )
    if as_json:
        click.echo(json.dumps({"problems": problems}))
    else:
        click.echo("\n".join(problems) or "the topics are as they should be")
    click.get_current_context().exit(1 if problems else 0)
