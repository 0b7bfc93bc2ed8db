"""`goldline bench`."""

import json
from pathlib import Path

import click


@click.group("bench")
def command() -> None:
    """Measure, on this machine, with real servers."""


@command.command("walk")
@click.option("--size", default=200_000, show_default=True, help="Bytes of a frame.")
@click.option("--rate", default=30.0, show_default=True, help="Frames a second; 0 is as fast as it goes.")
@click.option("--frames", default=1000, show_default=True, help="How many are measured.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file.")
def walk(size: int, rate: float, frames: int, json_file: Path | None) -> None:
    """The walk without the model: from frame sent to result read, through a real broker and worker.

    The detector returns at once and nothing is decoded: what is left is Kafka, Faust and Goldline itself.
    """
    from workers import bench_walk  # noqa: PLC0415

    walked = bench_walk.run(size=size, rate=rate, frames=frames)
    click.echo(bench_walk.table(walked))
    if json_file:
        json_file.write_text(json.dumps(walked.body(), indent=2) + "\n", encoding="utf-8")
