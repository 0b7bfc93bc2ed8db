"""`goldline bench`."""

import json
from pathlib import Path
from typing import Any

import click

_as_file = click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file.")


@click.group("bench")
def command() -> None:
    """Measure, on this machine, with real servers."""


@command.command("walk")
@click.option("--size", default=200_000, show_default=True, help="Bytes of a frame.")
@click.option("--rate", default=30.0, show_default=True, help="Frames a second; 0 is as fast as it goes.")
@click.option("--frames", default=1000, show_default=True, help="How many are measured.")
@_as_file
def walk(size: int, rate: float, frames: int, json_file: Path | None) -> None:
    """The walk without the model: from frame sent to result read, through a real broker and worker.

    The detector returns at once and nothing is decoded: what is left is Kafka, Faust and Goldline itself.
    """
    from workers import bench_walk  # noqa: PLC0415

    walked = bench_walk.run(size=size, rate=rate, frames=frames)
    click.echo(bench_walk.table(walked))
    if json_file:
        json_file.write_text(json.dumps(walked.body(), indent=2) + "\n", encoding="utf-8")


@command.command("swaps")
@click.option("--frames", default=5000, show_default=True, help="Frames while models are swapped.")
@click.option("--times", default=50, show_default=True, help="Swaps, back and forth between two models.")
@click.option("--share", default=0.5, show_default=True, help="Of the rate that this machine sustains, measured first.")
@_as_file
def swaps(frames: int, times: int, share: float, json_file: Path | None) -> None:
    """Swaps under load: no frame lost, none late, every score that of the version that its result names.

    Scores are recomputed without Kafka from the models by their versions.
    """
    from workers import bench_line  # noqa: PLC0415

    _tell(bench_line.swaps(frames=frames, times=times, share=share), json_file)


@command.command("stations")
@click.option("--stations", "count", default=20, show_default=True, help="Stations in one worker.")
@click.option("--recipes", default=3, show_default=True, help="Products of each.")
@click.option("--flood", default=10.0, show_default=True, help="How much more one station sends than each other.")
@click.option("--seconds", default=30.0, show_default=True, help="How long.")
@_as_file
def stations(count: int, recipes: int, flood: float, seconds: float, json_file: Path | None) -> None:
    """Many stations, a flood at one of them: what it does to the others' verdicts."""
    from workers import bench_line  # noqa: PLC0415

    _tell(bench_line.stations(count=count, recipes=recipes, flood=flood, seconds=seconds), json_file)


@command.command("overload")
@click.option("--factor", default=10.0, show_default=True, help="Times the rate that this machine sustains.")
@click.option("--seconds", default=120.0, show_default=True, help="How long.")
@click.option("--size", default=20_000, show_default=True, help="Bytes of a frame.")
@_as_file
def overload(factor: float, seconds: float, size: int, json_file: Path | None) -> None:
    """Far more frames than can be decided: every one is answered, memory stays bounded, and soon all is well again."""
    from workers import bench_line  # noqa: PLC0415

    _tell(bench_line.overload(factor=factor, seconds=seconds, size=size), json_file)


def _tell(report: dict[str, Any], json_file: Path | None) -> None:
    for name, value in report.items():
        click.echo(f"{name}: {value}")
    if json_file:
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
