"""THE WALK: a frame's way from encoded bytes to a verdict, in four steps.

The fifth, publishing, is in `workers/inspect.py`.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import Protocol

import msgspec
import torch
from torch import Tensor

from pipeline import nvjpeg, tiling
from pipeline.backbone import Backbone
from pipeline.backbone_spec import BackboneSpec
from pipeline.data import Artifact, Failure, Frame, Scores, Size, Verdict
from pipeline.decide import Threshold, decide
from pipeline.decode import Decoded, Limits, Placement, decode
from pipeline.devices import CPU, to_host, wait_for
from pipeline.errors import ArtifactError, ConfigError, FrameError
from pipeline.methods import METHODS
from pipeline.methods.base import Detector
from pipeline.view import View

# What an inspector's artifact has beside its detector's.
_CALIBRATION = "calibration"
_OWN_META = frozenset({"threshold", "view"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """What became of a batch: every frame is in `verdicts` or in `failures`, never in both.

    Attributes:
        maps: frame id -> (H, W) float32 map on the CPU, of every frame that was scored.
        placements: frame id -> where its map lies in the picture.
        pixels: frame id -> (3, H, W) uint8 as the model saw it, of every frame that was decoded.
        seconds: wall time of decode, embed and score, for the batch as a whole. A GPU is not waited for before scores
            are there: what it took to embed is in score.
    """

    verdicts: tuple[Verdict, ...]
    failures: tuple[Failure, ...]
    maps: Mapping[str, Tensor]
    placements: Mapping[str, Placement]
    seconds: Mapping[str, float]
    pixels: Mapping[str, Tensor] = field(default_factory=dict)


class Inspector:
    """A detector, its threshold and its view: all that turns frames into verdicts. It never changes.

    Attributes:
        shares: the backbone whose run it can share with others (`inspect_together`), if there is one.
        device: where the detector runs.
    """

    def __init__(
        self,
        detector: Detector,
        threshold: Threshold,
        view: View,
        limits: Limits,
        *,
        shares: Backbone | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.detector = detector
        self.threshold = threshold
        self.view = view
        self.limits = limits
        self.shares = shares
        self.device = device

    def inspect(self, frames: Sequence[Frame]) -> Inspected:
        """Decide about a batch; thread-safe, and the same for a batch of one as for a batch of many."""
        started = time.perf_counter()
        decoded = decode(frames, self.view, self.limits, self.device)
        return self.judge(decoded, decode_s=time.perf_counter() - started)

    def judge(self, decoded: Decoded, *, decode_s: float = 0.0) -> Inspected:
        """Decide about decoded frames; `decode_s` goes to the timings."""
        if not decoded.frame_ids:
            return _inspected(decoded, [], [], None, {"decode": decode_s, "embed": 0.0, "score": 0.0})
        started = time.perf_counter()
        features = self.detector.embed(decoded.images.pixels)
        at_embedded = time.perf_counter()
        scored = self.detector.score(features)
        scores = Scores(image=to_host(scored.image), map=to_host(scored.map))
        verdicts, failures = decide(decoded, scores, self.threshold)
        seconds = {
            "decode": decode_s,
            "embed": at_embedded - started,
            "score": time.perf_counter() - at_embedded,
        }
        return _inspected(decoded, verdicts, failures, scores.map, seconds)

    def save(self) -> Artifact:
        """The whole inspector as one artifact."""
        inner = self.detector.save()
        return Artifact(
            method=inner.method,
            tensors={**inner.tensors, _CALIBRATION: torch.from_numpy(self.threshold.goods)},
            meta={
                **inner.meta,
                "threshold": self.threshold.to_meta(),
                "view": json.loads(msgspec.json.encode(self.view)),
            },
        )

    @classmethod
    def load(
        cls,
        artifact: Artifact,
        *,
        open_backbone: Callable[[BackboneSpec], Backbone],
        limits: Limits,
        tried: bool = False,
    ) -> "Inspector":
        """The inspector that `save` described.

        Args:
            artifact: as it came from a store.
            open_backbone: finds the backbone that the artifact names, if it is permitted here.
            limits: what this line accepts as a picture.
            tried: the very same artifact was loaded before, and has embedded a picture: it need not do so now.

        Raises:
            ArtifactError: it is incomplete, does not fit together, or names a backbone that differs or is not
                permitted here.
        """
        try:
            view = _read_view(artifact.meta["view"])
            spec = BackboneSpec.from_meta(artifact.meta["backbone"])
            threshold = threshold_of(artifact)
        except KeyError as error:
            raise ArtifactError(f"the model lacks what scoring needs: {error}") from error
        inner = Artifact(
            method=artifact.method,
            tensors={name: tensor for name, tensor in artifact.tensors.items() if name != _CALIBRATION},
            meta={name: value for name, value in artifact.meta.items() if name not in _OWN_META},
        )
        try:
            backbone = open_backbone(spec)
            if view.resized_by == "gpu":
                nvjpeg.check(backbone.device)
            detector = tiling.load(inner, backbone=backbone)
            if not tried or backbone.spec.cuts:  # in 8 bits it may be compiled anew
                detector.embed(torch.zeros(1, 3, *view.seen, dtype=torch.uint8))
        except (ConfigError, FrameError) as error:  # the artifact's fault, not the line's: the old model must stay
            raise ArtifactError(f"the model does not fit together: {error}") from error
        shares = backbone if METHODS[inner.method].one_pass and "tiles" not in inner.meta else None
        wait_for(backbone.device)  # other threads use what was copied there
        return cls(detector, threshold, view, limits, shares=shares, device=backbone.device)


def threshold_of(artifact: Artifact) -> Threshold:
    """The threshold in an inspector's artifact; nothing else of it is looked at.

    Raises:
        ArtifactError: there is none, or one that cannot be.
    """
    try:
        return Threshold.from_meta(artifact.meta["threshold"], artifact.tensors[_CALIBRATION])
    except KeyError as error:
        raise ArtifactError(f"the model lacks what deciding needs: {error}") from error


def with_threshold(artifact: Artifact, threshold: Threshold) -> Artifact:
    """The same detector and view, to the bit, with another threshold."""
    return Artifact(
        method=artifact.method,
        tensors={**artifact.tensors, _CALIBRATION: torch.from_numpy(threshold.goods)},
        meta={**artifact.meta, "threshold": threshold.to_meta()},
    )


class Inspects(Protocol):
    """Whatever decides about a batch of frames."""

    def inspect(self, frames: Sequence[Frame]) -> Inspected:
        """Decide about a batch."""
        ...


def inspect_together(asked: Sequence[tuple[Inspects, Sequence[Frame]]]) -> Iterator[Inspected | Exception]:
    """Decide about several models' frames, model by model as they are ready.

    Models on one backbone, with views of one size, share one run of it; it counts as the first one's time to embed. The
    very same list of frames, asked for twice in equal views, is decoded and run once.

    Args:
        asked: inspectors and their frames. Frame ids need not differ between inspectors.

    Yields:
        What became of each inspector's frames, in the order of `asked`; the exception of one that failed, which harms
        no other's.
    """
    ready: list[tuple[Decoded, float] | Exception | None] = []
    seen: dict[tuple[int, View, Limits, torch.device], Decoded] = {}
    passes: dict[tuple[int, Size], tuple[Backbone, list[Tensor]]] = {}
    for inspector, frames in asked:
        if not isinstance(inspector, Inspector) or inspector.shares is None:
            ready.append(None)
            continue
        started = time.perf_counter()
        same = (id(frames), inspector.view, inspector.limits, inspector.device)
        try:
            decoded = seen[same] = seen.get(same) or decode(frames, inspector.view, inspector.limits, inspector.device)
        except Exception as error:  # noqa: BLE001 - it is the answer for this model's frames
            ready.append(error)
            continue
        ready.append((decoded, time.perf_counter() - started))
        if decoded.frame_ids:
            _, batches = passes.setdefault((id(inspector.shares), decoded.images.size), (inspector.shares, []))
            if not any(batch is decoded.images.pixels for batch in batches):
                batches.append(decoded.images.pixels)
    with ExitStack() as stack:
        for backbone, batches in passes.values():
            stack.enter_context(backbone.one_pass(batches))
        for (inspector, frames), each in zip(asked, ready, strict=True):
            yield each if isinstance(each, Exception) else _answer(inspector, frames, each)


def _answer(
    inspector: Inspects, frames: Sequence[Frame], decoded: tuple[Decoded, float] | None
) -> Inspected | Exception:
    try:
        if decoded is not None and isinstance(inspector, Inspector):
            return inspector.judge(decoded[0], decode_s=decoded[1])
        return inspector.inspect(frames)
    except Exception as error:  # noqa: BLE001 - it is the answer for this model's frames
        return error


def _read_view(meta: object) -> View:
    """The view that `save` described, nothing in it taken for granted."""
    known = {entry.name for entry in fields(View)}
    if not isinstance(meta, Mapping) or set(meta) != known:
        raise ArtifactError(
            f"view: needs exactly {', '.join(sorted(known))}, not {meta!r:.200}; a model of an older version must be "
            "fitted anew"
        )
    try:
        return msgspec.convert(dict(meta), View)
    except (msgspec.ValidationError, ConfigError) as error:
        raise ArtifactError(f"view: {error}") from error


def _inspected(
    decoded: Decoded,
    verdicts: list[Verdict],
    failures: list[Failure],
    maps: Tensor | None,
    seconds: dict[str, float],
) -> Inspected:
    shown = to_host(decoded.images.pixels) if decoded.shown is None else decoded.shown
    return Inspected(
        verdicts=tuple(verdicts),
        failures=(*decoded.failures, *failures),
        maps={} if maps is None else dict(zip(decoded.frame_ids, maps, strict=True)),
        placements=dict(zip(decoded.frame_ids, decoded.placements, strict=True)),
        seconds=seconds,
        pixels=dict(zip(decoded.frame_ids, shown, strict=True)),
    )
