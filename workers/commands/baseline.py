"""`goldline baseline`."""

import json
import uuid
from datetime import UTC, datetime

import click

from pipeline.errors import ConfigError
from pipeline.settings import Settings
from workers.commands import options


@click.group("baseline")
def command() -> None:
    """What drift is measured against."""


@command.command("accept")
@click.argument("station")
@click.option("--by", required=True, help="Who says so.")
@click.option("--why", required=True, help="What was found, and what was done about it.")
@options.recipe
@options.config
@options.as_json
def accept(settings: Settings, station: str, by: str, why: str, recipe: str, as_json: bool) -> None:
    """Take STATION as it is now for what it should be: its monitors begin anew, and so do alarms.

    For after a person has looked: the lamp is changed, the camera is fixed, or the new lot is as good as the old.
    Written to the topic of drift, from which every worker takes it within seconds, or when it starts.

    \b
    Example:
      goldline baseline accept line-1/top --by ana --why "lamp changed"
    """
    known = settings.stations.get(station)
    if known is None or recipe not in known.recipes:
        raise ConfigError(f"no station {station} with recipe {recipe} in the settings")
    from kafka.errors import KafkaError  # noqa: PLC0415

    from workers import clients, drift_events, topics, wire  # noqa: PLC0415 - torch takes seconds to import

    at = datetime.now(UTC)
    event = drift_events.BaselineAccepted(station=station, recipe=recipe, by=by, why=why, at=at)
    headers = wire.event_headers(wire.DRIFT_TYPE, uuid.uuid4().hex, "goldline/baseline", at, "application/json")
    producer = clients.producer(settings.kafka, outage_s=10.0)
    try:
        topic = topics.name(settings.kafka.prefix, "drift")
        producer.send(topic, drift_events.encode(event), key=station.encode(), headers=headers).get(timeout=15)
    except KafkaError as error:
        raise ConfigError(f"the broker did not take it: {type(error).__name__}: {error}") from error
    finally:
        producer.close(timeout=5)
    told = f"accepted: {station}, recipe {recipe}, begins a new baseline"
    click.echo(json.dumps({"station": station, "recipe": recipe, "by": by, "why": why}) if as_json else told)
