"""What a picture costs, from decoded pixels to verdict and map.

Banks are coresets of drawn parts' patch features: as many rows as are asked for, of twice as many patches. The peer's
bank has as many, unless it is asked to have others.
Weights are random where the backbone does not ship with any, accuracy aside: a search may then have more to settle.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import commissioning, engines, goldline_s, methods, synthetic
from pipeline.backbone import Backbone, default_layers, resolve
from pipeline.coreset import select
from pipeline.data import Frame, Images
from pipeline.decide import calibrate
from pipeline.decode import Decoded, Limits
from pipeline.devices import resolve_device, sent, staging
from pipeline.errors import ConfigError
from pipeline.fastest import settled
from pipeline.inspection import Inspector
from pipeline.methods.base import Detector
from pipeline.methods.patchcore import PatchCoreConfig, PatchCoreDetector
from pipeline.patches import feature_dim
from pipeline.progress import Progress, silent
from pipeline.speed import peers, turns
from pipeline.speed.exactness import exactness
from pipeline.view import View

PART = "cap"
_HERE = Path(__file__).parents[2]
_GOODS = 20
_CORESET_DIMS = 32  # distances that a bank is chosen by are taken in so many
_FIT = 24
_OF_FITS = {"coreset", "whitening"}  # of PatchCore, whose bank is not fitted here


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to measure: every method on every backbone, with every batch and, for PatchCore, every bank.

    Attributes:
        settings: of the methods, as texts; each takes those that it has, and the rest are its paper's.
        quick, fixtured: the rest are those of a short training, or for parts that lie alike, where a method has such.
        batches: pictures at once; where there are none, 1 and 8, on a GPU 64, too.
        engines: what runs the backbones; where there are none, all that are worth it on this device.
        size: side of the pictures, in pixels.
        peers: whether anomalib's PatchCore is measured beside ours.
        peer_bank: rows of its bank; 0 for as many as ours, and for no peer beside a method that has no bank.
        checkout: folder of another checkout of Goldline to measure beside this one, each engine beside its own; both
            then run as peers do, in processes of their own, back and forth.
    """

    methods: Sequence[str] = ("patchcore",)
    settings: Mapping[str, str] = field(default_factory=dict)
    quick: bool = False
    fixtured: bool = False
    backbones: Sequence[str] = ("wide_resnet50_2", "goldline-s")
    bank_rows: Sequence[int] = (1638, 16385)
    batches: Sequence[int] = ()
    engines: Sequence[str] = ()
    device: str = "cpu"
    size: int = 224
    repeats: int = 25
    peers: bool = False
    peer_bank: int = 0
    checkout: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure.

    Attributes:
        settings: those of the method that were asked for, by name or as presets; the rest are its paper's.
        bank_rows: None of methods without a bank.
        size: side of the pictures, in pixels.
        precision: what runs the backbone, and in which numbers.
        ms_low, ms_high: quartiles of the turns, as those of the peer and of the ratio.
        turns: how many there were.
        peer: what it is compared with, measured in the same turns; None for nothing.
        peer_bank_rows: of its bank, where it has not as many as ours.
        peer_version: of the peer and of what it runs on.
        ratio: how many times as long the peer takes: the median of the turns' own ratios.
        exact_agreement: share of patches whose nearest row is the one that brute force in float64 finds.
        score_error: largest relative error of a patch's distance against it.
    """

    method: str
    settings: Mapping[str, str]
    backbone: str
    bank_rows: int | None
    batch: int
    size: int
    device: str
    precision: str
    ms_per_image: float
    ms_low: float
    ms_high: float
    turns: int
    peer: str | None = None
    peer_bank_rows: int | None = None
    peer_ms_per_image: float | None = None
    peer_ms_low: float | None = None
    peer_ms_high: float | None = None
    peer_version: str | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    exact_agreement: float | None = None
    score_error: float | None = None


def run(asked: Asked, *, progress: Progress = silent) -> list[Row]:
    """Measure everything that is asked for.

    Raises:
        ConfigError: a name or a setting is unknown or goes with no drawn bank, the device is not there, or there are no
            peers.
    """
    rows = []
    configs = methods.make_configs(asked.methods, asked.settings, quick=asked.quick, fixtured=asked.fixtured)
    if "patchcore" in configs and (unused := sorted(_OF_FITS & asked.settings.keys())):
        raise ConfigError(f"PatchCore's bank is drawn here, with as many rows as are asked for: no {unused[0]}")
    device = resolve_device(asked.device)
    rounded = [engines.INT8] if engines.can_round(device) else []
    here = asked.engines or engines.candidates(device) + rounded
    batches = asked.batches or ((1, 8, 64) if device.type == "cuda" else (1, 8))
    unseen = pictures(1, asked.size, first=2000).images.pixels
    for backbone in asked.backbones:
        nets = {engine: net_of(backbone, engine, str(device)) for engine in here}
        for method, config in configs.items():
            for bank in asked.bank_rows if method == "patchcore" else (None,):
                made = {engine: inspector_of(method, net, bank, asked.size, config) for engine, net in nets.items()}
                exact = {engine: exactness(each.detector, unseen) for engine, each in made.items()}
                for batch in batches:
                    rows += _measured(asked, method, backbone, bank, batch, made, exact, device, progress)
    return rows


def body(rows: Sequence[Row]) -> dict[str, Any]:
    """As JSON."""
    return {"machine": turns.machine(), "rows": [asdict(row) for row in rows]}


def _measured(
    asked: Asked,
    method: str,
    backbone: str,
    bank: int | None,
    batch: int,
    made: dict[str, Inspector],
    exact: Mapping[str, tuple[float | None, float | None]],
    device: torch.device,
    progress: Progress,
) -> list[Row]:
    decoded = pictures(batch, asked.size, first=1000)
    variants: dict[str, Callable[[], float]] = {engine: timed(inspector, decoded) for engine, inspector in made.items()}
    others: dict[str, peers.Peer] = {}
    if asked.peers and (rows_there := asked.peer_bank or bank):
        others |= peers.anomalibs(
            backbone=backbone, size=asked.size, images=batch, bank_rows=rows_there, device=str(device)
        )
    if asked.checkout:
        task = peers.CheckoutTask(
            method=method,
            settings=settings_of(asked, method),
            backbone=backbone,
            bank_rows=bank,
            batch=batch,
            size=asked.size,
            device=str(device),
            threads=torch.get_num_threads(),
        )
        others |= peers.checkouts(asked.checkout, task, tuple(made))
    with ExitStack() as stack:
        if asked.checkout:
            here = peers.checkouts(_HERE, task, tuple(made)).values()
            variants = {engine: stack.enter_context(peer).run for engine, peer in zip(made, here, strict=True)}
        variants |= {name: stack.enter_context(peer).run for name, peer in others.items()}
        both = asked.checkout is not None
        took = turns.measured(variants, repeats=asked.repeats, back_and_forth=both, progress=progress)
    rows = []
    for engine in made:
        ours = took[engine].spread
        row = Row(
            method=method,
            settings=settings_of(asked, method),
            backbone=backbone,
            bank_rows=bank,
            batch=batch,
            size=asked.size,
            device=str(device),
            precision=engine,
            ms_per_image=_ms(ours.median, batch),
            ms_low=_ms(ours.low, batch),
            ms_high=_ms(ours.high, batch),
            turns=asked.repeats,
            exact_agreement=exact[engine][0],
            score_error=exact[engine][1],
        )
        rows += [
            _beside(row, took[engine], took[name], name, peer.version, asked.peer_bank)
            for name, peer in others.items()
            if name.endswith(f" {engine}") or not peers.is_checkout(name)
        ] or [row]
    return rows


def _beside(row: Row, ours: turns.Took, theirs: turns.Took, peer: str, version: str, peer_bank: int) -> Row:
    """The row with what a peer took in the same turns."""
    spent, ratio = theirs.spread, theirs.times(ours)
    other_bank = None if peers.is_checkout(peer) or peer_bank in (0, row.bank_rows) else peer_bank
    return replace(
        row,
        peer=peer,
        peer_bank_rows=other_bank,
        peer_version=version,
        peer_ms_per_image=_ms(spent.median, row.batch),
        peer_ms_low=_ms(spent.low, row.batch),
        peer_ms_high=_ms(spent.high, row.batch),
        ratio=round(ratio.median, 3),
        ratio_low=round(ratio.low, 3),
        ratio_high=round(ratio.high, 3),
    )


def timed(inspector: Inspector, decoded: Decoded) -> Callable[[], float]:
    """From decoded pictures, on the host, to verdicts and maps, once: returns its seconds."""
    pixels = decoded.images.pixels.permute(0, 2, 3, 1)
    shown = staging(tuple(pixels.shape), inspector.device).copy_(pixels).permute(0, 3, 1, 2)

    def once() -> float:
        started = time.perf_counter()
        there = replace(decoded, images=Images(sent(shown, inspector.device)), shown=shown)
        inspector.judge(there)  # maps and verdicts are on the CPU afterwards: nothing is under way any more
        return time.perf_counter() - started

    return once


def net_of(name: str, engine: str, device: str) -> Backbone:
    """A backbone, with random weights where it ships with none."""
    return resolve(
        name,
        default_layers(name),
        weights=None,
        random_weights=name != goldline_s.NAME,
        factories=(),
        engine=engine,
        device=device,
    )


def inspector_of(method: str, net: Backbone, bank: int | None, size: int, config: Any) -> Inspector:
    """An inspector of drawn parts, with the method's settings; of PatchCore with so many rows."""
    images = pictures(_FIT, size).images
    net = settled(net, images.pixels)
    if bank is None:
        detector: Detector = methods.fit(method, images, config, backbone=net, seed=0)
    else:
        detector = PatchCoreDetector(_bank(net, bank, size, config), config, (size, size), net)
    goods = commissioning.score_all(detector, pictures(_GOODS, size, first=500).images)
    return Inspector(detector, calibrate(goods, rate=0.05), View(size=(size, size)), Limits(), device=net.device)


def _bank(net: Backbone, rows: int, size: int, config: PatchCoreConfig) -> Tensor:
    """A coreset of drawn parts' patch features, (M, D): rows that lie close together are dearer to search."""
    dim = feature_dim(tuple(net.channels.values()), config.dim)
    few = PatchCoreDetector(torch.zeros(config.neighbours, dim), config, (size, size), net)
    found, have, first = [], 0, 0
    while have < 2 * rows:
        patches = few.embed(pictures(8, size, first=first).images.pixels).maps["patch"]
        found.append(patches.permute(0, 2, 3, 1).reshape(-1, patches.shape[1]))
        have, first = have + len(found[-1]), first + 8
    patches = torch.cat(found)
    return patches[select(patches, rows, seed=0, projection=_CORESET_DIMS)]


def pictures(count: int, size: int, *, first: int = 0) -> Decoded:
    """Drawn parts, decoded."""
    drawn = [synthetic.draw(PART, seed=first + i, size=(size, size)).image for i in range(count)]
    frames = [Frame(frame_id=str(i), image=synthetic.encode(image)) for i, image in enumerate(drawn)]
    return commissioning.decode_all(frames, View(size=(size, size)), Limits(), silent)


def settings_of(asked: Asked, method: str) -> dict[str, str]:
    """Those of the method that were asked for, by name or as presets, as texts."""
    presets = methods.presets(method, quick=asked.quick, fixtured=asked.fixtured)
    return {name: str(value).lower() for name, value in presets.items()} | methods.settings_for(method, asked.settings)


def _ms(seconds: float, batch: int) -> float:
    return round(seconds * 1000 / batch, 3)
