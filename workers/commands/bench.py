"""`goldline bench`."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workers.commands import bench_pictures, options
from workers.commands.bench_pictures import as_file, write
from workers.progress_bars import shown

if TYPE_CHECKING:
    from workers.bench_load import Point
    from workers.bench_rate import Driven


@click.group("bench")
def command() -> None:
    """Measure, on this machine, with real servers."""


for _each in (bench_pictures.score, bench_pictures.frames, bench_pictures.fit, bench_pictures.cost):
    command.add_command(_each)


@command.command("walk")
@click.option("--size", default=200_000, show_default=True, help="Bytes of a frame.")
@click.option("--rate", default=30.0, show_default=True, help="Frames a second; 0 is as fast as it goes.")
@click.option("--frames", default=1000, show_default=True, help="How many are measured.")
@as_file
def walk(size: int, rate: float, frames: int, json_file: Path | None) -> None:
    """The walk without the model: from frame sent to result read, through a real broker and worker.

    The detector returns at once and nothing is decoded: what is left is Kafka, Faust and Goldline itself.
    """
    from workers import bench_walk  # noqa: PLC0415

    walked = bench_walk.run(size=size, rate=rate, frames=frames)
    click.echo(bench_walk.table(walked))
    write(walked.body(), json_file)


def _driven(command: Callable[..., None]) -> Callable[..., None]:
    """`--size`, `--seconds`, `--method`, `--set`, `--engine` and so on: the line that is driven, for `driven`."""

    @wraps(command)
    def with_line(
        *,
        size: int,
        seconds: float,
        method: str | None,
        settings: tuple[str, ...],
        fixtured: bool,
        quick: bool,
        engine: str,
        **others: Any,
    ) -> None:
        from pipeline import methods  # noqa: PLC0415 - torch takes seconds to import
        from workers.bench_rate import Driven  # noqa: PLC0415

        name = options.method_or_default(method, fixtured=fixtured)
        given = options.pairs(settings)
        methods.make_config(name, given, quick=quick, fixtured=fixtured)  # a servers' start later would be late
        presets = methods.presets(name, quick=quick, fixtured=fixtured)
        said = {key: str(value).lower() for key, value in presets.items()} | given
        command(driven=Driven(size_bytes=size, seconds=seconds, method=name, settings=said, engine=engine), **others)

    for option in (
        click.option("--engine", default="auto", show_default=True, help="What runs the backbone."),
        options.presets,
        options.setting(),
        options.method(says="Of the models, with goldline-s."),
        click.option("--seconds", default=20.0, show_default=True, help="How long each rate is tried."),
        click.option("--size", default=200_000, show_default=True, help="Bytes of a frame, about."),
    ):
        with_line = option(with_line)
    return with_line


@command.command("line")
@click.option("--stations", default=4, show_default=True, help="Cameras.")
@click.option("--rate", default=0.0, show_default=True, help="Frames a second of all; 0 looks for the highest.")
@_driven
@click.option("--workers", default=1, show_default=True, help="Worker processes.")
@click.option("--at-once", default=0, show_default=True, help="Batches that a worker computes at once; 0: as it likes.")
@click.option("--p99", "p99_ms", default=200.0, show_default=True, help="Bound, capture to result read, in ms.")
@as_file
def line(
    driven: "Driven",
    stations: int,
    rate: float,
    workers: int,
    at_once: int,
    p99_ms: float,
    json_file: Path | None,
) -> None:
    """The highest rate at which every frame is decided in time, and where the time of a frame goes.

    Parts are drawn, one in 25 with a defect, servers and processes real, all on this machine. Too high is a rate that
    was not kept up with twice; --rate tries its rate once.
    """
    from workers import bench_rate  # noqa: PLC0415

    with shown() as progress:
        report = bench_rate.run(
            driven,
            stations=stations,
            rate=rate,
            workers=workers,
            at_once=at_once,
            p99_ms=p99_ms,
            progress=progress,
        )
    click.echo(bench_rate.table(report))
    write(report, json_file)


@command.command("load")
@click.option("--fitted", default="", help="STATIONSxWORKERSxRATE, as in 1x1x10,16x2x30.  [seven of 1 to 16 stations]")
@click.option("--unseen", default="", help="Likewise, predicted from those and measured.  [8x1x20,8x2x25]")
@_driven
@as_file
def load(driven: "Driven", fitted: str, unseen: str, json_file: Path | None) -> None:
    """How the processors' time of a line grows with frames, stations and workers: fitted, and tried on unseen lines.

    Each line is driven at a rate that it keeps up with, broker, workers, cameras and readers on this machine.
    """
    from workers import bench_load  # noqa: PLC0415

    with shown() as progress:
        report = bench_load.run(
            driven,
            fitted=_points(fitted) or bench_load.FITTED,
            unseen=_points(unseen) or bench_load.UNSEEN,
            progress=progress,
        )
    click.echo(bench_load.table(report))
    write(report, json_file)


def _points(text: str) -> "list[Point]":
    from workers.bench_load import Point  # noqa: PLC0415

    try:
        each = [name.split("x") for name in text.split(",") if name.strip()]
        points = [Point(int(stations), int(workers), float(rate)) for stations, workers, rate in each]
    except ValueError as error:
        raise click.BadParameter(f"STATIONSxWORKERSxRATE, as in 4x1x20, not {text!r}") from error
    if any(point.stations < 1 or point.workers < 1 or not 0 < point.rate < 1e6 for point in points):
        raise click.BadParameter(f"a station, a worker and a rate above 0 at least, not {text!r}")
    return points


@command.command("swaps")
@click.option(
    "--frames", default=5000, show_default=True, help="Frames while models are swapped; more where loads are slow."
)
@click.option("--times", default=50, show_default=True, help="Swaps, back and forth between two models.")
@click.option("--share", default=0.5, show_default=True, help="Of the rate that this machine sustains, measured first.")
@as_file
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
@click.option("--seconds", default=60.0, show_default=True, help="How long without the flood, and as long with it.")
@click.option("--share", default=0.7, show_default=True, help="Of the rate that this machine sustains, all alike.")
@as_file
def stations(count: int, recipes: int, flood: float, seconds: float, share: float, json_file: Path | None) -> None:
    """Many stations, in turn alike and with a flood at one of them: what it does to the others' verdicts.

    The rate that is sustained is measured first, in the same run.
    """
    from workers import bench_line  # noqa: PLC0415

    _tell(bench_line.stations(count=count, recipes=recipes, flood=flood, seconds=seconds, share=share), json_file)


@command.command("overload")
@click.option("--factor", default=10.0, show_default=True, help="Times the rate that this machine sustains.")
@click.option("--seconds", default=120.0, show_default=True, help="How long.")
@click.option("--size", default=20_000, show_default=True, help="Bytes of a frame.")
@as_file
def overload(factor: float, seconds: float, size: int, json_file: Path | None) -> None:
    """Far more frames than can be decided: every one is answered, memory stays bounded, and soon all is well again."""
    from workers import bench_line  # noqa: PLC0415

    _tell(bench_line.overload(factor=factor, seconds=seconds, size=size), json_file)


@command.command("refit")
@click.option("--rate", default=5.0, show_default=True, help="Frames a second.")
@click.option("--size", default=200_000, show_default=True, help="Bytes of a frame, about.")
@click.option("--seconds", default=30.0, show_default=True, help="How long a turn is.")
@click.option("--turns", default=3, show_default=True, help="Without a refit, and as many with one.")
@as_file
def refit(rate: float, size: int, seconds: float, turns: int, json_file: Path | None) -> None:
    """What a refit that runs beside a line does to its p99.

    Turn by turn without and with `goldline refit --dry-run`, which does all the work and stores nothing.
    """
    from workers import bench_refit  # noqa: PLC0415

    with shown() as progress:
        report = bench_refit.run(rate=rate, size_bytes=size, seconds=seconds, turns=turns, progress=progress)
    _tell(report, json_file)


def _tell(report: dict[str, Any], json_file: Path | None) -> None:
    for name, value in report.items():
        click.echo(f"{name}: {value}")
    write(report, json_file)
