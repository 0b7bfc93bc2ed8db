"""`goldline bench`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from workers.progress_bars import shown

_device = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
_peers = click.option(
    "--peers", is_flag=True, help="Beside anomalib, from the environment that `make bench-peers` makes."
)
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


@command.command("score")
@click.option("--methods", default="patchcore", show_default=True, help="As in patchcore,padim.")
@click.option("--backbones", default="wide_resnet50_2,goldline-s", show_default=True, help="With random weights.")
@click.option("--bank", "bank_rows", default="1638,16385", show_default=True, help="Rows of PatchCore's bank.")
@click.option("--batch", "batches", default="", help="Pictures at once.  [1,8; on a GPU 1,8,64]")
@click.option("--engines", default="", help="As in torch,torch-bf16.  [all that are worth it on the device]")
@click.option("--size", default=224, show_default=True, help="Side of the pictures, in pixels.")
@click.option("--repeats", default=9, show_default=True, help="Turns; figures are their medians.")
@_device
@_peers
@_as_file
def score(
    methods: str,
    backbones: str,
    bank_rows: str,
    batches: str,
    engines: str,
    size: int,
    repeats: int,
    device: str,
    peers: bool,
    json_file: Path | None,
) -> None:
    """What a picture costs, from decoded pixels to verdict and map, and how exact the answer is.

    Banks are patch features of drawn parts. Variants take turns in one run, ours and the peers', so that ratios hold
    where times do not.
    """
    from pipeline.speed import score as measured  # noqa: PLC0415 - torch takes seconds to import

    asked = measured.Asked(
        methods=_names(methods),
        backbones=_names(backbones),
        bank_rows=_counts(bank_rows, "--bank"),
        batches=_counts(batches, "--batch") if batches else (),
        device=device,
        size=size,
        repeats=repeats,
        peers=peers,
        engines=_names(engines),
    )
    with shown() as progress:
        rows = measured.run(asked, progress=progress)
    _table(
        rows,
        ("method", "backbone", "bank_rows", "batch", "precision", "ms_per_image", "peer", "ratio", "exact_agreement"),
    )
    _write(measured.body(rows), json_file)


@command.command("fit")
@click.option("--backbone", default="wide_resnet50_2", show_default=True, help="With random weights.")
@click.option("--images", default=209, show_default=True, help="Good pictures, drawn.")
@click.option("--coreset", default=0.1, show_default=True, help="Share of the patches kept.")
@click.option(
    "--engine",
    default="openvino-fp32",
    show_default=True,
    help="What runs the backbone; another where the device has not this.",
)
@click.option("--size", default=224, show_default=True, help="Side of the pictures, in pixels.")
@click.option("--repeats", default=1, show_default=True, help="Turns; figures are their medians.")
@_device
@_peers
@_as_file
def fit(
    backbone: str,
    images: int,
    coreset: float,
    engine: str,
    size: int,
    repeats: int,
    device: str,
    peers: bool,
    json_file: Path | None,
) -> None:
    """What a fit of PatchCore costs: features of so many pictures, and the coreset of their patches."""
    from pipeline.speed import fit as measured  # noqa: PLC0415 - torch takes seconds to import

    asked = measured.Asked(
        backbone=backbone,
        images=images,
        coreset=coreset,
        engine=engine,
        device=device,
        size=size,
        repeats=repeats,
        peers=peers,
    )
    with shown() as progress:
        rows = measured.run(asked, progress=progress)
    _table(rows, ("backbone", "images", "bank_rows", "precision", "fit_s", "features_s", "coreset_s", "peer", "ratio"))
    _write(measured.body(rows), json_file)


@command.command("line")
@click.option("--stations", default=4, show_default=True, help="Cameras.")
@click.option("--rate", default=0.0, show_default=True, help="Frames a second of all; 0 looks for the highest.")
@click.option("--size", default=200_000, show_default=True, help="Bytes of a frame, about.")
@click.option("--seconds", default=20.0, show_default=True, help="How long each rate is tried.")
@click.option("--method", default="patchcore", show_default=True, help="Of the models, with goldline-s.")
@click.option("--workers", default=1, show_default=True, help="Worker processes.")
@click.option("--p99", "p99_ms", default=200.0, show_default=True, help="Bound, capture to result read, in ms.")
@_as_file
def line(
    stations: int,
    rate: float,
    size: int,
    seconds: float,
    method: str,
    workers: int,
    p99_ms: float,
    json_file: Path | None,
) -> None:
    """The highest rate at which every frame is decided in time, and where the time of a frame goes.

    Parts are drawn, servers and processes real, all on this machine.
    """
    from workers import bench_rate  # noqa: PLC0415

    with shown() as progress:
        report = bench_rate.run(
            stations=stations,
            rate=rate,
            size_bytes=size,
            seconds=seconds,
            method=method,
            workers=workers,
            p99_ms=p99_ms,
            progress=progress,
        )
    click.echo(bench_rate.table(report))
    _write(report, json_file)


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


@command.command("refit")
@click.option("--rate", default=5.0, show_default=True, help="Frames a second.")
@click.option("--size", default=200_000, show_default=True, help="Bytes of a frame, about.")
@click.option("--seconds", default=30.0, show_default=True, help="How long a turn is.")
@click.option("--turns", default=3, show_default=True, help="Without a refit, and as many with one.")
@_as_file
def refit(rate: float, size: int, seconds: float, turns: int, json_file: Path | None) -> None:
    """What a refit that runs beside a line does to its p99.

    Turn by turn without and with `goldline refit --dry-run`, which does all the work and stores nothing.
    """
    from workers import bench_refit  # noqa: PLC0415

    with shown() as progress:
        report = bench_refit.run(rate=rate, size_bytes=size, seconds=seconds, turns=turns, progress=progress)
    _tell(report, json_file)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _counts(text: str, option: str) -> tuple[int, ...]:
    names = _names(text)
    if not names or not all(name.isdecimal() and int(name) > 0 for name in names):
        raise click.BadParameter(f"whole numbers from 1, separated by commas, not {text!r}", param_hint=option)
    return tuple(map(int, names))


def _table(rows: Sequence[Any], columns: Sequence[str]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name.replace("_", " "), justify="left" if isinstance(getattr(rows[0], name), str) else "right")
    for row in rows:
        table.add_row(*("-" if getattr(row, name) is None else str(getattr(row, name)) for name in columns))
    Console().print(table)


def _write(body: dict[str, Any], json_file: Path | None) -> None:
    if json_file:
        json_file.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


def _tell(report: dict[str, Any], json_file: Path | None) -> None:
    for name, value in report.items():
        click.echo(f"{name}: {value}")
    _write(report, json_file)
