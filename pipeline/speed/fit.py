"""What a fit of PatchCore costs: features of so many pictures, and the coreset of their patches."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from pipeline import engines, goldline_s, memory, synthetic
from pipeline.backbone import Backbone, default_layers, resolve
from pipeline.data import Images
from pipeline.devices import resolve_device, wait_for
from pipeline.methods.patchcore import PatchCore, PatchCoreConfig
from pipeline.progress import Progress, silent
from pipeline.speed import peers, turns

PART = "cap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to measure.

    Attributes:
        images: good pictures.
        coreset: share of the patches kept.
        engine: what runs the backbone.
        peers: whether anomalib's fit is measured beside ours, in torch.
    """

    backbone: str = "wide_resnet50_2"
    images: int = 209
    coreset: float = 0.1
    engine: str = "openvino-fp32"
    device: str = "cpu"
    size: int = 224
    repeats: int = 1
    peers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure, medians of the turns; `ratio`, with its quartiles, is how many times as long the peer takes."""

    method: str
    backbone: str
    images: int
    bank_rows: int
    device: str
    precision: str
    fit_s: float
    features_s: float
    coreset_s: float
    turns: int
    peer: str | None = None
    peer_version: str | None = None
    peer_fit_s: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None


def run(asked: Asked, *, told: Callable[[str], object] = print, progress: Progress = silent) -> list[Row]:
    """Measure it; `told` gets a line about the memory that it takes, before it starts.

    Raises:
        ConfigError: a name is unknown, the device is not there, or there are no peers.
    """
    device = resolve_device(asked.device)
    candidates = engines.candidates(device)
    engine = asked.engine if asked.engine in candidates else candidates[-1]
    net = resolve(
        asked.backbone,
        default_layers(asked.backbone),
        weights=None,
        random_weights=asked.backbone != goldline_s.NAME,
        factories=(),
        engine=engine,
        device=str(device),
    )
    images = _drawn(asked.images, asked.size)
    net(images.pixels[:1])
    config = PatchCoreConfig(coreset=asked.coreset)
    needed = PatchCore().fit_bytes(asked.images, config, backbone=net, size=images.size)
    told(memory.foreseen(f"our fit to {asked.images} pictures", needed, device))
    patches = (asked.size // 8) ** 2 * asked.images
    rows = max(1, int(patches * asked.coreset))
    embedding: list[float] = []
    version = ""
    variants: dict[str, Callable[[], float]] = {"ours": lambda: _once(net, images, config, embedding, progress)}
    with ExitStack() as stack:
        if asked.peers:
            task = peers.PeerTask(
                kind="fit",
                engine="torch",
                backbone=peers.backbone_of(asked.backbone),
                layers=("layer2", "layer3"),
                size=asked.size,
                images=asked.images,
                bank_rows=rows,
                threads=torch.get_num_threads(),
                device=str(device),
            )
            peer = stack.enter_context(peers.anomalib(task))
            variants["anomalib torch"], version = peer.run, peer.version
        took = turns.measured(variants, repeats=asked.repeats, warm_up=False)
    ours, features = took["ours"].spread.median, statistics.median(embedding)
    row = Row(
        method="patchcore",
        backbone=asked.backbone,
        images=asked.images,
        bank_rows=rows,
        device=str(device),
        precision=engine,
        fit_s=round(ours, 2),
        features_s=round(features, 2),
        coreset_s=round(ours - features, 2),
        turns=asked.repeats,
    )
    if "anomalib torch" not in took:
        return [row]
    theirs = took["anomalib torch"]
    ratio = theirs.times(took["ours"])
    return [
        replace(
            row,
            peer="anomalib torch",
            peer_version=version,
            peer_fit_s=round(theirs.spread.median, 2),
            ratio=round(ratio.median, 2),
            ratio_low=round(ratio.low, 3),
            ratio_high=round(ratio.high, 3),
        )
    ]


def body(rows: Sequence[Row]) -> dict[str, Any]:
    """As JSON."""
    return {"machine": turns.machine(), "rows": [asdict(row) for row in rows]}


def _once(net: Backbone, images: Images, config: PatchCoreConfig, embedding: list[float], progress: Progress) -> float:
    started = time.perf_counter()
    seen = started

    def told(stage: str, done: int, total: int) -> None:
        nonlocal seen
        if stage == "features":
            wait_for(net.device)
            seen = time.perf_counter()
        progress(stage, done, total)

    PatchCore().fit(images, config, backbone=net, seed=0, progress=told)
    wait_for(net.device)
    embedding.append(seen - started)
    return time.perf_counter() - started


def _drawn(count: int, size: int) -> Images:
    pictures = [synthetic.draw(PART, seed=i, size=(size, size)).image for i in range(count)]
    return Images(torch.stack([torch.from_numpy(picture.copy()).permute(2, 0, 1) for picture in pictures]))
