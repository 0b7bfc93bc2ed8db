"""`goldline weights`."""

import json
import shutil
from pathlib import Path
from typing import Literal

import click

from pipeline.errors import ConfigError
from workers.commands import options
from workers.progress_bars import shown


@click.group("weights")
def command() -> None:
    """Weights of backbones: where they are, and how they get here without a network."""


def _floats(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[float, float, float]:
    try:
        one, two, three = (float(each) for each in value.split(","))
    except ValueError as error:
        raise click.BadParameter("three numbers are needed, as in 0.485,0.456,0.406") from error
    return one, two, three


@command.command("where")
@click.argument("name")
@click.option("--weights", type=click.Path(path_type=Path, dir_okay=False), help="As other commands take it.")
@click.option("--config", type=click.Path(path_type=Path), help="A line.toml.")
@options.as_json
def where(name: str, weights: Path | None, config: Path | None, as_json: bool) -> None:
    """Where weights of backbone NAME are looked for, in that order; the first that is there is taken.

    \b
    Example:
      goldline weights where wide_resnet50_2
    """
    from workers.backbones import sources  # noqa: PLC0415 - torch takes seconds to import

    places = sources(options.optional_settings(config)).places(name, weights)
    chosen = next((place for place in places if place.there), None)
    if as_json:
        rows = [{"kind": p.kind, "path": str(p.path or ""), "there": p.there, "taken": p is chosen} for p in places]
        click.echo(json.dumps(rows))
        return
    for place in places:
        mark = "->" if place is chosen else "  "
        there = "there" if place.there else "not there"
        click.echo(
            f"{mark} {place.kind:20} {there:10} {place.path or ''}" + (f"  ({place.note})" if place.note else "")
        )
    if chosen is None:
        click.echo(f"nowhere: import a file with `goldline weights import FILE --name {name}`, or give --weights FILE")


@command.command("list")
@click.option("--config", type=click.Path(path_type=Path), help="A line.toml.")
@options.as_json
def list_them(config: Path | None, as_json: bool) -> None:
    """The weights on this machine: shipped, imported, and named in settings."""
    from pipeline import goldline_s, weight_files  # noqa: PLC0415
    from workers.backbones import sources  # noqa: PLC0415

    known = sources(options.optional_settings(config))
    files = {goldline_s.NAME: goldline_s.SHIPPED}
    files |= {str(weight_files.metadata(p).get("name", p.stem)): p for p in sorted(known.folder.glob("*.safetensors"))}
    files |= {name: path for name, path in known.named.items() if path}
    there = {name: path for name, path in files.items() if path.exists()}
    if as_json:
        rows = [{"name": name, "path": str(path), "bytes": path.stat().st_size} for name, path in there.items()]
        click.echo(json.dumps(rows))
        return
    for name, path in there.items():
        click.echo(f"{name:32} {path.stat().st_size / 1e6:8.1f} MB  {path}")


@command.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--name", required=True, help="The backbone they are for, as in wide_resnet50_2 or timm:resnet18.")
@click.option("--origin", default="", help="Where they come from; kept with them.")
@click.option("--mean", default="0.485,0.456,0.406", show_default=True, callback=_floats, help="Of pixels in [0, 1].")
@click.option("--std", default="0.229,0.224,0.225", show_default=True, callback=_floats, help="Likewise.")
@click.option("--order", type=click.Choice(["rgb", "bgr"]), default="rgb", show_default=True, help="Of the channels.")
@click.option("--config", type=click.Path(path_type=Path), help="A line.toml, for [weights] folder.")
@options.as_json
def import_them(
    file: Path,
    name: str,
    origin: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    order: Literal["rgb", "bgr"],
    config: Path | None,
    as_json: bool,
) -> None:
    """Convert FILE (.pth, .pt or .safetensors) and put it where every command finds it.

    A .pth is read in a process of its own, tensors only. The new file holds its origin, what its network wants of
    pixels, and the digest of its tensors: carry it to other machines as it is.

    \b
    Examples:
      goldline weights import wide_resnet50_2-95faca4d.pth --name wide_resnet50_2
      goldline weights import vgg16.safetensors --name vgg16 --order bgr \\
        --mean 0.408,0.458,0.485 --std 0.00392,0.00392,0.00392
    """
    from pipeline import weight_files  # noqa: PLC0415
    from pipeline.backbone_spec import Preprocessing  # noqa: PLC0415
    from workers.backbones import sources  # noqa: PLC0415

    wanted = weight_files.check_preprocessing(Preprocessing(mean=mean, std=std, order=order))
    folder = sources(options.optional_settings(config)).folder
    made = weight_files.import_file(file, name, folder, origin=origin, preprocessing=wanted)
    checked = weight_files.verify(made)
    body = {"name": name, "path": str(made), "sha256": checked.sha256, "tensors": checked.tensors}
    click.echo(json.dumps(body) if as_json else f"{made}: {checked.tensors} tensors, sha256 {checked.sha256}")


@command.command("export")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--config", type=click.Path(path_type=Path), help="A line.toml.")
def export(name: str, file: Path, config: Path | None) -> None:
    """Copy the weights of backbone NAME to FILE, to carry them to a machine without a network."""
    from pipeline import weight_files  # noqa: PLC0415
    from workers.backbones import sources  # noqa: PLC0415

    found = sources(options.optional_settings(config)).find(name)
    if found is None:
        raise ConfigError(f"there are no weights for {name} here: see `goldline weights where {name}`")
    if file.suffix != ".safetensors":
        raise ConfigError(f"{file.name}: weights travel as .safetensors")
    shutil.copyfile(found, file)
    click.echo(
        f"{file}: sha256 {weight_files.verify(file).sha256}; there: goldline weights import {file.name} --name {name}"
    )


@command.command("verify")
@click.argument("what")
@click.option("--config", type=click.Path(path_type=Path), help="A line.toml.")
@options.as_json
def verify(what: str, config: Path | None, as_json: bool) -> None:
    """Compare the tensors of WHAT, a file or a backbone's name, with the digest that it carries."""
    from pipeline import weight_files  # noqa: PLC0415
    from workers.backbones import sources  # noqa: PLC0415

    path = Path(what) if what.endswith(".safetensors") else sources(options.optional_settings(config)).find(what)
    if path is None:
        raise ConfigError(f"there are no weights for {what} here: see `goldline weights where {what}`")
    checked = weight_files.verify(path)
    if not checked.intact:
        raise ConfigError(f"{path} is damaged: its tensors have sha256 {checked.sha256}, it says {checked.stated}")
    said = "as it says" if checked.stated else "it carries no digest to compare with"
    body = {"path": str(path), "sha256": checked.sha256, "stated": checked.stated, "origin": checked.origin}
    click.echo(json.dumps(body) if as_json else f"{path}: {checked.tensors} tensors, sha256 {checked.sha256}, {said}")


@command.command("distil")
@click.option("--teacher", required=True, help="The large backbone: torchvision model or module:factory.")
@click.option("--teacher-weights", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Its weights.")
@click.option("--teacher-layers", required=True, help="Its two layers, at strides 8 and 16, as in layer2,layer3.")
@click.option("--photos", type=click.Path(path_type=Path), required=True, help="A folder of natural photographs.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The student's weights, .safetensors.")
@click.option("--epochs", default=6, show_default=True, help="Passes over all views.")
@click.option("--views", default=8, show_default=True, help="Crops of each photograph that the teacher sees.")
@click.option("--batch", default=32, show_default=True, help="Crops a step; a GPU does more with more.")
@click.option("--whiten", default=0.5, show_default=True, help="0: components weigh by variance; 1: all the same.")
@click.option(
    "--width", default=1.0, show_default=True, help="The student's channels, as a multiple of 32, 64, 128 and 256."
)
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
    batch: int,
    whiten: float,
    width: float,
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
    from pipeline.distil import DistilConfig  # noqa: PLC0415 - torch takes seconds to import
    from pipeline.distil import distil as train  # noqa: PLC0415
    from pipeline.evaluation.dataset import pictures  # noqa: PLC0415
    from pipeline.goldline_s import WIDTHS  # noqa: PLC0415
    from workers.backbones import Choice, choose  # noqa: PLC0415

    chosen = Choice(name=teacher, layers=teacher_layers.split(","), weights=teacher_weights, device=device)
    net = choose(chosen, options.optional_settings(None), (224, 224))
    stem, one, two, three = (max(8, round(width * usual / 8) * 8) for usual in WIDTHS)
    with shown() as progress:
        made = train(
            net,
            pictures(photos)[:limit],
            out,
            DistilConfig(
                epochs=epochs, views=views, batch=batch, whiten=whiten, widths=(stem, one, two, three), seed=seed
            ),
            device=str(net.device),
            progress=progress,
        )
    body = {"out": str(out), "photos": made.photos, "epochs": made.epochs, "unexplained": made.unexplained}
    click.echo(json.dumps(body) if as_json else f"{out}: {made.photos} photos, variance missed {made.unexplained}")
