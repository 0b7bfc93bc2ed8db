"""`goldline fit`."""

import getpass
import json
import math
from datetime import UTC, datetime
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from model_store import ModelKey, ModelStore, Version, open_store, short
from model_store import promote as put_in_service
from pipeline import choosing, commissioning, memory, methods, selection
from pipeline.backbone import Backbone
from pipeline.choice import MethodChoice
from pipeline.commissioning import Commissioned
from pipeline.data import JSON, Frame, Images
from pipeline.decode import Limits
from pipeline.errors import StoreUnavailable
from pipeline.evaluation import dataset
from pipeline.guarantee import check_rate
from pipeline.progress import Progress
from pipeline.view import View
from workers.backbones import DEFAULT, Choice, choose
from workers.commands import options, view_options
from workers.commands.model_page import plain, to_use
from workers.progress_bars import shown
from workers.provenance import PICTURES_MAX, digest, pictures

_SMALL_REGION = 0.05  # of the pixels that a model sees at once


@click.command("fit")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--station", required=True, help="The camera viewpoint, as in line-1/top.")
@click.option("--recipe", default="default", show_default=True, help="The product being made.")
@options.method(
    says="The method to fit; auto, of 28 pictures and more, what finds clearly more than patchcore of planted defects."
)
@options.setting()
@options.presets
@options.without
@view_options.view
@click.option("--false-reject-rate", "rate", type=float, help="Share of good parts that may be rejected.  [0.005]")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Settings of the line: where models are kept, false_reject_rate, weights.",
)
@click.option("--seed", default=0, show_default=True, help="Of the split, the coreset and random weights.")
@options.scratch
@options.why
@click.option("--promote", is_flag=True, help="Put it in service even if another model is. (The first one is anyway.)")
@options.backbone
@options.store
@options.as_json
def command(
    folder: Path,
    station: str,
    recipe: str,
    method: str | None,
    settings: tuple[str, ...],
    fixtured: bool,
    quick: bool,
    without: tuple[str, ...],
    view: View,
    roi: Path | None,
    rotations: int,
    rate: float | None,
    config: Path | None,
    seed: int,
    scratch: Path | None,
    why: str,
    promote: bool,
    backbone: str | None,
    layers: str | None,
    weights: Path | None,
    random_weights: bool,
    engine: str,
    device: str,
    store_url: str,
    as_json: bool,
) -> None:
    """Learn the good parts of a station from FOLDER and store one model version.

    FOLDER holds pictures of good parts, or is a dataset in MVTec layout (then its train/good is used). Some of the
    pictures are held out to calibrate the threshold; what can be promised about false rejects is printed. Pictures
    that a threshold selected (accepted frames, by the folder's selection.json) are refused: they bias it. Of
    pictures that are copies of each other, byte for byte, one is taken.

    \b
    Examples:
      goldline fit photos/good --station line-1/top --store file://$PWD/models
      goldline fit photos/good --station line-1/top --method auto --store file://$PWD/models
      goldline fit photos/good --station line-1/top --fixtured --store file://$PWD/models
      goldline fit bottle --station line-1/top --backbone resnet50 --weights resnet50.safetensors --set coreset=0.1
    """
    line = options.optional_settings(config)
    rate = line.false_reject_rate(station) if rate is None else rate
    check_rate(rate)
    key = ModelKey(station, recipe)
    store = open_store(store_url)
    paths = dataset.goods(folder, without)
    selection.check(folder, paths, station=station, recipe=recipe)
    view_options.check_roi(roi, paths)
    chosen = Choice(
        name=backbone or DEFAULT,
        layers=layers.split(",") if layers else (),
        weights=weights,
        random_weights=random_weights,
        engine=engine,
        device=device,
        seed=seed,
    )
    net = choose(chosen, line, view.size)
    console = Console(stderr=True)
    _tell_small(view, console)
    if random_weights:
        console.print(f"[yellow]{chosen.name} has random weights[/], as asked: it finds coarse defects only.")
    method_name, method_config = _asked(method, settings, view, fixtured=fixtured, quick=quick)
    goods = [Frame(frame_id=str(p), image=p.read_bytes()) for p in paths]
    given = len(goods)
    goods = _without_copies(goods)
    if len(goods) < given:
        console.print(f"[yellow]{given - len(goods)} of {given} pictures are copies of others[/] and are left out.")
    shown_to_fit = len(goods) * rotations * max(view.tiles) ** 2  # tiles of one level at a time
    needed = methods.fit_bytes(method_name, shown_to_fit, method_config, backbone=net, size=view.size)
    if needed is not None:
        console.print(memory.foreseen(f"the fit to {len(goods)} pictures", needed, net.device), soft_wrap=True)
    with shown(console) as progress:
        planting = _Planting(view, rotations, seed, progress) if method == choosing.AUTO else None
        made = commissioning.commission(
            goods,
            method=method_name,
            config=method_config,
            backbone=net,
            view=view,
            limits=Limits(),
            rate=rate,
            rotations=rotations,
            seed=seed,
            scratch=scratch,
            choose=planting,
            progress=progress,
        )
    artifact, left_out = made.inspector.save(), dataset.left_out(folder, paths)
    current, calibrated_on = _current(store, key), set(made.calibrated_on)
    lineage: dict[str, JSON] = {
        "created_at": datetime.now(UTC).isoformat(),
        "created_by": getpass.getuser(),
        "why": why,
        "dataset": digest(goods),
        "frames": {**made.frames, "unreadable": len(made.unreadable), "copies": given - len(goods)},
        "calibration": digest([frame for frame in goods if frame.frame_id in calibrated_on]),
        "left_out": list[JSON](left_out),
        "pictures": pictures(goods) if len(goods) <= PICTURES_MAX else [],
        "parent": current or "",
        "method": made.method,
        "settings": msgspec.to_builtins(made.config),
        "backbone": artifact.meta["backbone"]["weights_sha256"],
        "code": metadata.version("goldline"),
    }
    choice = planting.choice if planting else None
    if choice and choice.doubt:
        console.print(f"[yellow]Doubtful:[/] {choice.doubt}.", soft_wrap=True)
    if choice:
        lineage["choice"] = choice.body()
    version = store.put(key, artifact, lineage=lineage)
    promoted = promote or current is None
    if promoted and current != version:
        put_in_service(store, key, version, expected=current, who=getpass.getuser(), why=why or "fit")
    if as_json:
        body = _body(made, version, artifact.meta["backbone"], promoted=promoted)
        if choice:
            body["choice"] = choice.body()
        click.echo(json.dumps(body | {"left_out": left_out}))
        return
    if choice:
        click.echo(str(choice))
    _tell(made, key, version, store_url, left_out, artifact.meta["backbone"]["engine"], promoted=promoted)


def _tell_small(view: View, console: Console) -> None:
    inside, at_once = view.inside(), view.size[0] * view.size[1]
    if inside is not None and (seen := int(inside.sum())) < _SMALL_REGION * at_once:
        console.print(
            f"[yellow]The model has {seen:,} pixels in the region of interest[/], of {at_once:,} that it sees at once. "
            "Cut frames to it in the camera, or look closer with more --tiles.",
            soft_wrap=True,
        )


def _without_copies(goods: list[Frame]) -> list[Frame]:
    """The first of equal ones: one copy would be learnt and another calibrate, for too low a threshold."""
    firsts: dict[bytes, Frame] = {}
    for frame in goods:
        firsts.setdefault(sha256(frame.image).digest(), frame)
    return list(firsts.values())


class _Planting:
    """Chooses a method for `commission`, and knows what was tried."""

    def __init__(self, view: View, rotations: int, seed: int, progress: Progress) -> None:
        self._view, self._rotations, self._seed, self._progress = view, rotations, seed, progress
        self.choice: MethodChoice | None = None

    def __call__(self, images: Images, backbone: Backbone) -> tuple[str, Any]:
        self.choice = choosing.choose_method(
            images,
            backbone=backbone,
            view=self._view,
            rotations=self._rotations,
            seed=self._seed,
            progress=self._progress,
        )
        return self.choice.taken.method, choosing.config_of(self.choice.taken)


def _asked(
    method: str | None, settings: tuple[str, ...], view: View, *, fixtured: bool, quick: bool
) -> tuple[str, Any]:
    """The method and its settings; of auto those of the first candidate, until the pictures have been looked at."""
    if method != choosing.AUTO:
        name = options.method_or_default(method, fixtured=fixtured)
        return name, methods.make_config(name, options.pairs(settings), quick=quick, fixtured=fixtured)
    if settings or fixtured or quick:
        raise click.UsageError("auto chooses the settings, too: leave out --set, --fixtured and --quick")
    first = choosing.candidates(view)[0]
    return first.method, choosing.config_of(first)


def _body(made: Commissioned, version: str, backbone: dict[str, Any], *, promoted: bool) -> dict[str, Any]:
    threshold = made.inspector.threshold
    return {
        "version": version,
        "promoted": promoted,
        "method": made.method,
        "backbone": backbone,
        "threshold": threshold.image,
        "guarantee": {**threshold.to_meta()["guarantee"], "text": str(threshold.guarantee)},
        "frames": made.frames,
        "unreadable": list(made.unreadable),
        "fit_s": round(made.fit_s, 3),
    }


def _tell(
    made: Commissioned,
    key: ModelKey,
    version: Version,
    store_url: str,
    left_out: list[str],
    engine: str,
    *,
    promoted: bool,
) -> None:
    threshold, frames = made.inspector.threshold, made.frames
    click.echo(f"model      {short(version)} of {key}" + ("  (in service)" if promoted else "  (stored, not promoted)"))
    click.echo(f"kept in    {store_url}")
    click.echo(f"fitted on  {frames['fit']} goods in {made.fit_s:.1f} s, calibrated on {frames['calibrate']}")
    click.echo(f"run by     {engine}")
    if left_out:
        click.echo(f"left out   {len(left_out)}: {', '.join(map(plain, left_out[:5]))}")
    click.echo(f"threshold  {threshold.image:.4g}")
    click.echo(f"promise    {threshold.guarantee}")
    if not threshold.guarantee.holds:
        whole = math.ceil(threshold.guarantee.goods_needed / commissioning.CALIBRATE_SHARE)
        click.echo(
            f"           (of some {whole} pictures in all: {commissioning.CALIBRATE_SHARE:.0%} of them calibrate)"
        )
    if made.unreadable:
        click.echo(f"unreadable {len(made.unreadable)}: {', '.join(made.unreadable[:5])}")
    if not promoted:
        click.echo(to_use(key, version, store_url))


def _current(store: ModelStore, key: ModelKey) -> Version | None:
    """What is in service; nothing where there is no store yet, as before the first `put`."""
    try:
        return store.current(key)
    except StoreUnavailable:
        return None
