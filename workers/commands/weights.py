"""`goldline weights`."""

import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from workers.commands import options


@click.group("weights")
def command() -> None:
    """Weights of backbones."""


@command.command("distil")
@click.option("--teacher", required=True, help="The large backbone: torchvision model or module:factory.")
@click.option("--teacher-weights", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Its weights.")
@click.option("--teacher-layers", required=True, help="Its two layers, at strides 8 and 16, as in layer2,layer3.")
@click.option("--photos", type=click.Path(path_type=Path), required=True, help="A folder of natural photographs.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The student's weights, .safetensors.")
@click.option("--epochs", default=12, show_default=True, help="Passes over all views.")
@click.option("--views", default=2, show_default=True, help="Crops of each photograph that the teacher sees.")
@click.option("--limit", type=int, help="Use this many photographs only.")
@click.option("--seed", default=0, show_default=True, help="Of crops, order and first weights.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@options.as_json
def distil(
    teacher: str,
    teacher_weights: Path,
    teacher_layers: str,
    photos: Path,
    out: Path,
    epochs: int,
    views: int,
    limit: int | None,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Train the compact backbone goldline-s to imitate a large one. Interrupted, it goes on where it was.

    \b
    Example:
      goldline weights distil --teacher resnet50 --teacher-weights resnet50.safetensors \\
        --teacher-layers layer2,layer3 --photos photos/ --out goldline-s.safetensors
    """
    from pipeline.backbone import resolve  # noqa: PLC0415 - torch takes seconds to import
    from pipeline.distil import DistilConfig  # noqa: PLC0415
    from pipeline.distil import distil as train  # noqa: PLC0415
    from pipeline.evaluation.dataset import pictures  # noqa: PLC0415

    net = resolve(
        teacher, tuple(teacher_layers.split(",")), weights=teacher_weights, factories=[teacher], device=device
    )
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        shown: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in shown:
                shown[stage] = bars.add_task(stage, total=total)
            bars.update(shown[stage], completed=done, total=total)

        made = train(
            net,
            pictures(photos)[:limit],
            out,
            DistilConfig(epochs=epochs, views=views, seed=seed),
            device=str(net.device),
            progress=progress,
        )
    body = {"out": str(out), "photos": made.photos, "epochs": made.epochs, "unexplained": made.unexplained}
    click.echo(json.dumps(body) if as_json else f"{out}: {made.photos} photos, variance missed {made.unexplained}")
