"""What has to be known of a frozen network for two of them to give the same features; models carry it with them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

import msgspec
import torch

from pipeline import engines
from pipeline.data import Meta
from pipeline.errors import ArtifactError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_SMALLEST, _LARGEST = 1e-7, 1e30  # of an 8-bit input's cut, in float32


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a network wants of its pixels: (pixel / 255 - mean) / std, channel by channel.

    Attributes:
        mean: per channel, in the network's own order, of pixels in [0, 1].
        std: likewise.
        order: of the channels that the network wants.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    order: Literal["rgb", "bgr"] = "rgb"


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """What has to be equal for two backbones to give the same features.

    Attributes:
        name: torchvision model, or `module:factory`.
        layers: the feature maps taken, in order.
        weights_sha256: digest of the state dict in use, see `state_sha256`.
        weights: provenance for people: `file:NAME`, `shipped:NAME` or `random:seed=N`.
        mean: per channel, in the network's order, of pixels in [0, 1].
        std: likewise.
        order: of the channels that the network wants: `rgb` or `bgr`.
        engine: what runs it, see `engines`; thresholds are calibrated with it.
        cuts: where the input of each convolution is cut off, 0 where it stays float32 (`int8`); for 8 bits alone.
    """

    name: str
    layers: tuple[str, ...]
    weights_sha256: str
    weights: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    order: Literal["rgb", "bgr"] = "rgb"
    engine: str = "torch"
    cuts: tuple[float, ...] = ()

    def to_meta(self) -> Meta:
        """JSON values that `from_meta` reads back."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        if not self.cuts:
            del plain["cuts"]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    @classmethod
    def from_meta(cls, meta: object) -> "BackboneSpec":
        """The spec that `to_meta` wrote.

        Raises:
            ArtifactError: a value is missing, unknown, or of the wrong kind.
        """
        known = {entry.name for entry in fields(cls)}
        if isinstance(meta, Mapping) and "ranges" in meta:
            raise ArtifactError("backbone: an earlier version rounded it to 8 bits, in another way: fit anew")
        if not isinstance(meta, Mapping) or not known - {"cuts"} <= set(meta) <= known:
            raise ArtifactError(f"backbone: needs exactly the values {', '.join(sorted(known))}, not {meta!r:.200}")
        try:
            spec = msgspec.convert(dict(meta), cls)
        except msgspec.ValidationError as error:
            raise ArtifactError(f"backbone: {error}") from error
        if not spec.name or not spec.layers or not all(spec.layers) or len(set(spec.layers)) < len(spec.layers):
            raise ArtifactError(f"backbone: needs a name and layers, each once, not {spec.name!r} {spec.layers}")
        if not re.fullmatch(r"[0-9a-f]{64}", spec.weights_sha256):
            raise ArtifactError(f"backbone: weights_sha256 needs 64 hex digits, not {spec.weights_sha256!r:.80}")
        finite = torch.tensor([spec.mean, spec.std]).isfinite().all()
        if not finite or min(spec.std) <= 0:
            raise ArtifactError(f"backbone: mean must be finite and std positive, not {spec.mean} {spec.std}")
        if spec.engine not in engines.ENGINES:
            raise ArtifactError(f"backbone: no engine {spec.engine!r:.40}; there are {', '.join(engines.ENGINES)}")
        spans = all(high == 0 or _SMALLEST <= high <= _LARGEST for high in spec.cuts)
        if not spans or bool(spec.cuts) != (spec.engine == engines.INT8):
            raise ArtifactError(f"backbone: {spec.engine} with cuts {spec.cuts!r:.80}: fit anew")
        return spec

    def same_features(self, other: "BackboneSpec") -> bool:
        """Whether both give equal features; where the weights came from does not matter."""
        return replace(self, weights="") == replace(other, weights="")
