"""`goldline screen`."""

import json
from pathlib import Path

import click
from rich.console import Console

from pipeline import methods, screening
from pipeline.data import Frame
from pipeline.decode import Limits
from pipeline.evaluation import dataset
from pipeline.screening import Screened
from pipeline.view import View
from workers import picture_page, screening_page
from workers.backbones import DEFAULT, Choice, choose
from workers.commands import options, view_options
from workers.commands.model_page import plain
from workers.progress_bars import shown


@click.command("screen")
@click.argument("folder", type=click.Path(path_type=Path))
@options.method()
@options.setting()
@options.presets
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    default=screening.FOLDS,
    show_default=True,
    help="Models to fit, each without its share of the pictures, which it scores.",
)
@click.option("--top", type=click.IntRange(min=1), default=30, show_default=True, help="Pictures to show.")
@options.file_to_write("html", says="Write a page with them there.")
@options.without
@view_options.view
@click.option("--config", type=click.Path(path_type=Path), help="A line.toml, for where weights lie.")
@click.option("--seed", default=0, show_default=True, help="Of the folds, the fits and random weights.")
@options.backbone
@options.as_json
def command(
    folder: Path,
    method: str | None,
    settings: tuple[str, ...],
    fixtured: bool,
    quick: bool,
    folds: int,
    top: int,
    html: Path | None,
    without: tuple[str, ...],
    view: View,
    roi: Path | None,
    rotations: int,
    config: Path | None,
    seed: int,
    backbone: str | None,
    layers: str | None,
    weights: Path | None,
    random_weights: bool,
    engine: str,
    device: str,
    as_json: bool,
) -> None:
    """Show which good pictures in FOLDER are unlike the others, before a model learns from them.

    A defect among the goods teaches a model that it is good, and it is missed from then on. Each picture is scored by
    a model that learnt from the others alone. Look at those that stand out: a rare good part should stay, a defect
    should not. Write its name, as it is shown, into a text file (UTF-8), a line each, and give that to fit.

    What stands out may be good, most of all among a few dozen pictures, and what does not may be a defect. Another
    --seed makes other folds: near scores change places, and a part that is there in two pictures, and hides itself
    where they fall into different folds, may show.

    FOLDER holds pictures of good parts, or is a dataset in MVTec layout (then its train/good is used).

    \b
    Examples:
      goldline screen photos/good --html unlike.html
      goldline fit photos/good --without defects.txt --station line-1/top --store file://$PWD/models
    """
    paths = dataset.goods(folder, without)
    view_options.check_roi(roi, paths)
    goods = [Frame(frame_id=str(p), image=p.read_bytes()) for p in paths]
    method_name = options.method_or_default(method, fixtured=fixtured)
    method_config = methods.make_config(method_name, options.pairs(settings), quick=quick, fixtured=fixtured)
    chosen = Choice(
        name=backbone or DEFAULT,
        layers=layers.split(",") if layers else (),
        weights=weights,
        random_weights=random_weights,
        engine=engine,
        device=device,
        seed=seed,
    )
    net = choose(chosen, options.optional_settings(config), view.size)
    with shown(Console(stderr=True)) as progress:
        found = screening.screen(
            goods,
            method=method_name,
            config=method_config,
            backbone=net,
            view=view,
            limits=Limits(),
            count=folds,
            most=top,
            rotations=rotations,
            seed=seed,
            progress=progress,
        )
    names, unreadable = (
        [str(Path(each).relative_to(folder)) for each in ids] for ids in (found.frame_ids, found.unreadable)
    )
    if as_json:
        left_out = dataset.left_out(folder, paths)
        click.echo(json.dumps({"pictures": _rows(found, names), "unreadable": unreadable, "left_out": left_out}))
    else:
        _tell(found, names, unreadable, folds=folds, html=html)
    if html:
        picture_page.write(html, screening_page.render(found, names, folder=str(folder)))


def _rows(found: Screened, names: list[str]) -> list[dict[str, object]]:
    return [
        {"picture": name, "score": round(float(score), 6), "stands_out": place < found.standing_out}
        for place, (name, score) in enumerate(zip(names, found.scores, strict=True))
    ]


def _tell(found: Screened, names: list[str], unreadable: list[str], *, folds: int, html: Path | None) -> None:
    shown_names = names[: len(found.maps)]
    for place, name in enumerate(shown_names):
        mark = "*" if place < found.standing_out else " "
        click.echo(f"{place + 1:>4} {mark} {found.scores[place]:>9.4g}  {plain(name)}")
    click.echo(
        f"{found.standing_out} of {len(names)} pictures stand out (*): more than {screening.DEVIATIONS:g} robust "
        f"deviations above the median, each scored by a model of the others, in {min(folds, len(names))} folds"
    )
    if (hidden := found.standing_out - len(shown_names)) > 0:
        click.echo(f"{hidden} of these are not shown: --top {found.standing_out} shows them")
    if unreadable:
        click.echo(f"unreadable {len(unreadable)}: {', '.join(map(plain, unreadable[:5]))}")
    click.echo(f"look at the first ones: {html}" if html else "to look at the first ones: --html FILE writes a page")
    click.echo("if one is a defect, write its name into a file: goldline fit --without FILE leaves it out")
