"""`goldline evaluate`."""

import json
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from pipeline.errors import ConfigError
from pipeline.evaluation import dataset
from workers.backbones import DEFAULT, Choice
from workers.commands import options, view_options
from workers.commands.model_page import plain
from workers.progress_bars import shown

if TYPE_CHECKING:
    from pipeline.evaluation.trial import Row
    from pipeline.view import View

_COLUMNS = {
    "image_auroc": "image\nAUROC",
    "pixel_auroc": "pixel\nAUROC",
    "aupro_030": "PRO\n0.3",
    "aupro_005": "PRO\n0.05",
    "average_precision": "avg.\nprec.",
}
_NAMES = 5  # of pictures that a warning names


@click.command("evaluate")
@click.argument("folders", type=click.Path(path_type=Path), nargs=-1, required=True)
@options.method("--methods", "names", says="Methods, as in patchcore,padim; auto is one that the goods choose.")
@options.setting(of="those methods that have it")
@options.presets
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Trials with seeds 0, 1, ...")
@options.without
@view_options.view
@options.scratch
@options.file_to_write("json", "json_file", says="Write the rows there.")
@options.file_to_write("html", says="Write a page with the worst cases.")
@click.option("--config", type=click.Path(path_type=Path), help="A line.toml, for where weights lie.")
@options.backbone
def command(
    folders: tuple[Path, ...],
    names: str | None,
    settings: tuple[str, ...],
    fixtured: bool,
    quick: bool,
    seeds: int,
    without: tuple[str, ...],
    view: "View",
    roi: Path | None,
    rotations: int,
    scratch: Path | None,
    json_file: Path | None,
    html: Path | None,
    config: Path | None,
    backbone: str | None,
    layers: str | None,
    weights: Path | None,
    random_weights: bool,
    engine: str,
    device: str,
) -> None:
    """Figures of merit of methods on FOLDERS: datasets in MVTec layout, or folders of such datasets.

    Fits on train/good, scores the test set. Labels are used for the figures alone. Misses are given where one false
    reject is at most the stated share of the test's goods; figures of pixels where every defect has a mask (positive:
    more than half after a nearest resize). With --roi these count what lies inside alone: what a mask shows outside is
    no miss. Pictures that cannot be read are in no figure, and are named.

    What was trained to its end under --scratch is not trained again, and a fit's time is that of what was left to do.
    Name the --engine then: auto may choose another one tomorrow, whose features train another network.

    \b
    Examples:
      goldline evaluate photos --methods patchcore --seeds 3
      goldline evaluate datasets/ --json rows.json --html worst.html
    """
    from pipeline import choosing  # noqa: PLC0415 - torch takes seconds to import
    from pipeline.decode import Limits  # noqa: PLC0415
    from pipeline.evaluation import trial  # noqa: PLC0415
    from workers import evaluation_page, picture_page  # noqa: PLC0415
    from workers.backbones import choose  # noqa: PLC0415

    console = Console(stderr=True)
    chosen = Choice(
        name=backbone or DEFAULT,
        layers=layers.split(",") if layers else (),
        weights=weights,
        random_weights=random_weights,
        engine=engine,
        device=device,
    )
    asked = options.method_or_default(names, fixtured=fixtured)
    configs = _configs(asked, options.pairs(settings), view, quick=quick, fixtured=fixtured)
    datasets = _datasets(folders, without)
    for folder in datasets:
        view_options.check_roi(roi, dataset.goods(folder, without))
    net = choose(chosen, options.optional_settings(config), view.size)
    rows: list[Row] = []
    sections: list[str] = []
    try:
        for folder in datasets:
            with shown(console) as progress:
                pictures = trial.read(folder, view, Limits(), without=without, device=net.device, progress=progress)
            if choosing.AUTO in configs:
                choosing.check_enough(pictures.learnt_from)
            for warning in evaluation_page.warnings(pictures, most=_NAMES):
                click.echo(plain(f"{pictures.name}: {warning}"), err=True)
            for name, seed in product(configs, range(seeds)):
                with shown(console) as progress:
                    done = trial.run(
                        pictures,
                        name,
                        configs[name],
                        net,
                        rotations=rotations,
                        seed=seed,
                        scratch=scratch,
                        progress=progress,
                    )
                rows.append(done.row)
                if json_file:  # after each trial: some train for hours
                    _write(json_file, rows)
                if html and seed == 0:
                    sections.append(evaluation_page.section(done))
                _tell(console, rows[-seed - 1 :], seeds)
    finally:  # a trial that fails does not take with it what was found before
        if rows:
            if html:
                picture_page.write(html, evaluation_page.render(sections))
            Console().print(_table(rows))


def _configs(names: str, given: dict[str, str], view: "View", *, quick: bool, fixtured: bool) -> dict[str, Any]:
    """Each method's settings; what can be told now of methods and view is not told after hours of fits."""
    from pipeline import choosing, methods, tiling  # noqa: PLC0415

    asked = names.split(",")
    named = [name for name in asked if name != choosing.AUTO]
    if not named and (given or quick or fixtured):
        raise click.UsageError("auto chooses the settings, too: leave out --set, --fixtured and --quick")
    configs = methods.make_configs(named, given, quick=quick, fixtured=fixtured) if named else {}
    for name, config in configs.items():
        tiling.check(name, config, view.tiles)
    return {name: configs.get(name) for name in asked}


def _datasets(folders: tuple[Path, ...], without: tuple[str, ...]) -> list[Path]:
    """Each folder that has train/good, or those in it that do; all of them have pictures."""
    found: list[Path] = []
    for folder in folders:
        below = sorted(p.parent for p in folder.glob("*/train") if p.is_dir())
        inner = [folder] if (folder / "train").is_dir() else below
        if not inner:
            raise ConfigError(
                f"{folder}: neither a dataset in MVTec layout (train/good, test/good, test/DEFECT) nor a folder of such"
            )
        found += inner
    if without and len(found) > 1:
        raise ConfigError(f"--without goes with one dataset, not with {len(found)}")
    for folder in found:
        dataset.goods(folder, without)
        dataset.tests(folder)
    return found


def _tell(console: Console, so_far: "list[Row]", seeds: int) -> None:
    """The last row of a method on a dataset, and after its last seed the means."""
    from pipeline.evaluation import trial  # noqa: PLC0415

    row = so_far[-1]
    what = f"{row.dataset} {row.title}"
    if seeds > 1:
        console.print(f"{what} seed {row.seed}: {_line(trial.mean_of([row]))}", highlight=False)
    for rate, share in row.misses_at.items():
        if share is not None:
            passing = f"{share * row.defects:.0f} of {row.defects} defects pass"
            console.print(f"{what} seed {row.seed}: {passing} at {float(rate):.1%} false rejects", highlight=False)
    if len(so_far) == seeds:
        console.print(f"{what}{' mean' if seeds > 1 else ''}: {_line(trial.mean_of(so_far))}", highlight=False)


def _write(file: Path, rows: list[Any]) -> None:
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps([row.body() for row in rows], indent=2) + "\n", encoding="utf-8")
    part.replace(file)


def _line(means: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in means.items() if value is not None)


def _table(rows: list[Any]) -> Table:
    """Fits into 80 columns; the JSON has every digit."""
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        caption="s: fit; ms: embed and score a picture; masks are resized by nearest",
    )
    for name in ("dataset", "method", "seed"):
        table.add_column(name, no_wrap=True)
    for name in (*_COLUMNS.values(), "s", "ms", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        figures = [getattr(row, name) for name in _COLUMNS]
        shown_figures = ["-" if value is None else f"{value:.3f}" for value in figures]
        costs = [f"{row.fit_s:.0f}", f"{row.ms_per_frame:.1f}", f"{row.bank_bytes / 1e6:.1f}"]
        table.add_row(row.dataset, row.title, str(row.seed), *shown_figures, *costs)
    return table
