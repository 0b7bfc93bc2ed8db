"""`goldline demo`."""

import os
from pathlib import Path

import click
from rich.console import Console

from workers.backbones import DEFAULT, Choice
from workers.commands import options


@click.command("demo")
@click.option("--frames", type=click.IntRange(min=2), help="How many to send: 600 drawn, or a dataset's test set once.")
@click.option("--rate", type=float, help="Frames a second, of both stations together: 15 drawn, 5 real.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path(".goldline/demo.json"),
    show_default=True,
    help="Write the figures there, and a page beside them (.html).",
)
@click.option("--data", type=click.Path(path_type=Path), help="A dataset in MVTec layout, instead of drawn parts.")
@click.option("--keep", is_flag=True, help="Keep pictures, models, settings and logs in .goldline/demo-PID.")
@click.option("--broker", help="HOST:PORT of a broker of your own (or GOLDLINE_BROKER); without, one is started.")
@options.method()
@options.setting()
@options.presets
@options.backbone
@click.option("--deadline-ms", default=1000, show_default=True, help="From capture to the gate.")
@click.option("--seed", default=0, show_default=True, help="Of the parts, the fit and random weights.")
def command(
    frames: int | None,
    rate: float | None,
    report: Path,
    data: Path | None,
    keep: bool,
    broker: str | None,
    method: str | None,
    settings: tuple[str, ...],
    fixtured: bool,
    quick: bool,
    backbone: str | None,
    layers: str | None,
    weights: Path | None,
    random_weights: bool,
    engine: str,
    device: str,
    deadline_ms: int,
    seed: int,
) -> None:
    """The whole line on this machine: parts, a fit, a broker, a worker, two cameras, a gate, and a report.

    Everything is real: a Kafka broker, separate processes, frames on topics. The parts are drawn, so that the truth
    about each is known, unless --data names real pictures. Everything it starts it stops.

    \b
    Examples:
      goldline demo
      goldline demo --frames 2000 --rate 30 --report r.json
      goldline demo --data bottle --backbone resnet50 --weights resnet50.safetensors
    """
    from workers.demo.run import Order, run  # noqa: PLC0415 - torch takes seconds to import

    console = Console()
    directory = Path(".goldline") / f"demo-{os.getpid()}"
    run(
        Order(
            frames=frames,
            rate=rate or (5.0 if data else 15.0),
            data=data,
            report=report,
            directory=directory,
            keep=keep,
            broker=broker or os.environ.get("GOLDLINE_BROKER"),
            method=options.method_or_default(method, fixtured=fixtured),
            settings=options.pairs(settings),
            fixtured=fixtured,
            quick=quick,
            backbone=Choice(
                name=backbone or DEFAULT,
                layers=layers.split(",") if layers else (),
                weights=weights,
                random_weights=random_weights,
                engine=engine,
                device=device,
                seed=seed,
            ),
            deadline_ms=deadline_ms,
            seed=seed,
        ),
        console,
    )
    console.print(f"report: {report}\npage:   {report.with_suffix('.html')}")
    if keep:
        console.print(f"kept:   {directory}")
