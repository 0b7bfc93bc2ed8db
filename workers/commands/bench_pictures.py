"""`goldline bench score`, `frames`, `fit` and `cost`: what pictures cost, without a line."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
from rich.console import Console
from rich.table import Table

from workers.commands import options
from workers.progress_bars import shown

_WIDE = 240
as_file = click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file.")
_device = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
_peers = click.option(
    "--peers", is_flag=True, help="Beside anomalib, from the environment that `make bench-peers` makes."
)


def write(body: dict[str, Any], json_file: Path | None) -> None:
    """The figures to a file, where one was asked for, and the machine with them."""
    from pipeline.speed import turns  # noqa: PLC0415 - torch takes seconds to import

    if json_file:
        told = body if "machine" in body else {"machine": turns.machine(), **body}
        json_file.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


@click.command("score")
@options.method("--methods", says="As in patchcore,padim.")
@options.setting("the methods")
@options.presets
@click.option(
    "--backbones",
    default="wide_resnet50_2,goldline-s",
    show_default=True,
    help="With random weights unless it ships some.",
)
@click.option("--bank", "bank_rows", default="1638,16385", show_default=True, help="Rows of PatchCore's bank.")
@click.option(
    "--peer-bank",
    type=click.IntRange(min=0),
    default=0,
    help="Rows of the peer's bank.  [as many as ours; beside a method without a bank, no peer]",
)
@click.option("--batch", "batches", default="", help="Pictures at once.  [1,8; on a GPU 1,8,64]")
@click.option("--engines", default="", help="As in torch,torch-bf16.  [all that are worth it on the device]")
@click.option("--size", default=224, show_default=True, help="Side of the pictures, in pixels.")
@click.option("--repeats", default=25, show_default=True, help="Turns; figures are their medians.")
@_device
@_peers
@click.option(
    "--beside",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of another checkout of Goldline, to measure each engine beside its.",
)
@as_file
def score(
    methods: str | None,
    settings: tuple[str, ...],
    fixtured: bool,
    quick: bool,
    backbones: str,
    bank_rows: str,
    peer_bank: int,
    batches: str,
    engines: str,
    size: int,
    repeats: int,
    device: str,
    peers: bool,
    beside: Path | None,
    json_file: Path | None,
) -> None:
    """What a picture costs, from decoded pixels to verdict and map, and how exact the answer is.

    Banks are patch features of drawn parts. Variants take turns in one run, ours and the peers', so that ratios hold
    where times do not.
    """
    from pipeline.speed import score as measured  # noqa: PLC0415 - torch takes seconds to import

    if peer_bank and not peers:
        raise click.UsageError("--peer-bank is of peers: add --peers")
    asked = measured.Asked(
        methods=_names(options.method_or_default(methods, fixtured=fixtured)),
        settings=options.pairs(settings),
        quick=quick,
        fixtured=fixtured,
        backbones=_names(backbones),
        bank_rows=_counts(bank_rows, "--bank"),
        batches=_counts(batches, "--batch") if batches else (),
        device=device,
        size=size,
        repeats=repeats,
        peers=peers,
        peer_bank=peer_bank,
        checkout=beside,
        engines=_names(engines),
    )
    with shown() as progress:
        rows = measured.run(asked, progress=progress)
    ours = ("method", "backbone", "bank_rows", "batch", "precision", "ms_per_image")
    theirs = ("peer", *(["peer_bank_rows"] if peer_bank else []), "peer_ms_per_image", "ratio")
    _table(rows, (*ours, *(theirs if peers or beside else ()), "exact_agreement"))
    write(measured.body(rows), json_file)


@click.command("frames")
@click.option("--backbone", default="goldline-s", show_default=True, help="With random weights unless it ships some.")
@click.option("--bank", "bank_rows", default=1638, show_default=True, help="Rows of PatchCore's bank.")
@click.option("--batch", default=0, help="Frames together.  [16; on a GPU 64]")
@click.option("--at-once", default="1,2", show_default=True, help="Batches computed at the same time: each number.")
@click.option("--engine", default="", help="What runs the backbone.  [the device's fastest]")
@click.option("--frame-bytes", default=200_000, show_default=True, help="Bytes of a frame, about.")
@click.option("--size", default=224, show_default=True, help="Side of the square the model sees, in pixels.")
@click.option("--repeats", default=9, show_default=True, help="Turns; figures are their medians.")
@_device
@as_file
def frames(
    backbone: str,
    bank_rows: int,
    batch: int,
    at_once: str,
    engine: str,
    frame_bytes: int,
    size: int,
    repeats: int,
    device: str,
    json_file: Path | None,
) -> None:
    """What frames cost, from JPEGs to verdicts and maps, in a worker's threads without a line around them.

    One batch is decoded while another is copied and scored. On a GPU pictures are decoded by the CPU's cores and, in
    the same turns, by the GPU, as `goldline fit --decode-on` chooses for a model.
    """
    from pipeline.speed import frames as measured  # noqa: PLC0415 - torch takes seconds to import

    asked = measured.Asked(
        backbone=backbone,
        bank_rows=bank_rows,
        batch=batch,
        at_once=_counts(at_once, "--at-once"),
        engine=engine,
        device=device,
        size=size,
        size_bytes=frame_bytes,
        repeats=repeats,
    )
    with shown() as progress:
        rows = measured.run(asked, progress=progress)
    _table(rows, ("backbone", "bank_rows", "batch", "precision", "decode_on", "at_once", "frames_per_s"))
    write(measured.body(rows), json_file)


@click.command("fit")
@click.option(
    "--backbone", default="wide_resnet50_2", show_default=True, help="With random weights unless it ships some."
)
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
@as_file
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
    console = Console(stderr=True)
    with shown(console) as progress:
        rows = measured.run(asked, told=partial(console.print, soft_wrap=True), progress=progress)
    _table(rows, ("backbone", "images", "bank_rows", "precision", "fit_s", "features_s", "coreset_s", "peer", "ratio"))
    write(measured.body(rows), json_file)


@click.command("cost")
@click.option("--sizes", default="128,224,320", show_default=True, help="Sides of the pictures, in pixels.")
@click.option("--bank", "bank_rows", default="250,500,1500,4096,16384", show_default=True, help="Rows of the banks.")
@click.option(
    "--unseen",
    default="176x1000,288x8192",
    show_default=True,
    help="SIZExROWS, predicted from the others and measured.",
)
@click.option("--backbone", default="goldline-s", show_default=True, help="With random weights unless it ships some.")
@click.option("--engine", default="openvino-fp32", show_default=True, help="What runs the backbone.")
@click.option("--repeats", default=9, show_default=True, help="Turns; figures are their medians.")
@_device
@as_file
def cost(
    sizes: str,
    bank_rows: str,
    unseen: str,
    backbone: str,
    engine: str,
    repeats: int,
    device: str,
    json_file: Path | None,
) -> None:
    """How a picture's cost grows with its pixels and the rows of PatchCore's bank: fitted, and tried on unseen points.

    All sizes with all banks, in turns, give what a pixel, a row and a patch against a row cost here; the unseen points
    are predicted from that. How a line's processor time grows with stations and workers: `goldline bench load`.
    """
    from pipeline.speed import cost as measured  # noqa: PLC0415 - torch takes seconds to import

    points = [_counts(each.replace("x", ","), "--unseen") for each in _names(unseen)]
    if any(len(point) != 2 for point in points):
        raise click.BadParameter(f"SIZExROWS, as in 176x1000, not {unseen!r}", param_hint="--unseen")
    asked = measured.Asked(
        sizes=_counts(sizes, "--sizes"),
        bank_rows=_counts(bank_rows, "--bank"),
        unseen=[(size, rows) for size, rows in points],
        backbone=backbone,
        engine=engine,
        device=device,
        repeats=repeats,
    )
    with shown() as progress:
        found = measured.run(asked, progress=progress)
    _table(found.rows, ("size", "bank_rows", "bounded", "unseen", "ms", "predicted_ms", "relative_error"))
    click.echo("nanoseconds for one " + ", ".join(f"{name} {value:.3g}" for name, value in found.nanoseconds.items()))
    write(measured.body(found), json_file)


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
        side: Literal["left", "right"] = "left" if isinstance(getattr(rows[0], name), str) else "right"
        table.add_column(name.replace("_", " "), justify=side, overflow="fold")  # engines differ in how they end
    for row in rows:
        table.add_row(*("-" if getattr(row, name) is None else str(getattr(row, name)) for name in columns))
    console = Console()
    if not console.is_terminal:  # a file has no edge to fold names at
        console.width = _WIDE
    console.print(table)
