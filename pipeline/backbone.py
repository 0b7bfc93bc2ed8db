"""Frozen feature extractors, by name and layer: pictures in, feature maps out.

A name is either a torchvision model (`resnet18`) or a factory of one's own (`module:factory`), which must be
permitted by name before it is imported: an artifact never causes an import. Weights are read from safetensors
alone; nothing is unpickled.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from pipeline import goldline_s as own
from pipeline.data import Meta
from pipeline.errors import ArtifactError, ConfigError, ShapeError
from pipeline.networks import (
    check_layers,
    check_weights_file,
    from_factory,
    from_torchvision,
    goldline_s,
    state_sha256,
)

SHIPPED = "shipped:"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_PROBE_SIZE_PX = 224  # every torchvision classifier accepts it, vision transformers nothing else


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """What has to be equal for two backbones to give the same features.

    Attributes:
        name: torchvision model, or `module:factory`.
        layers: the feature maps taken, in order.
        weights_sha256: digest of the state dict in use, see `state_sha256`.
        weights: provenance for people: `file:NAME`, `shipped:NAME` or `random:seed=N`.
        mean: per channel (R, G, B), of pixels in [0, 1].
        std: likewise.
    """

    name: str
    layers: tuple[str, ...]
    weights_sha256: str
    weights: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def to_meta(self) -> Meta:
        """JSON values that `from_meta` reads back."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    @classmethod
    def from_meta(cls, meta: object) -> "BackboneSpec":
        """The spec that `to_meta` wrote.

        Raises:
            ArtifactError: a value is missing, unknown, or of the wrong kind.
        """
        known = {entry.name for entry in fields(cls)}
        if not isinstance(meta, Mapping) or set(meta) != known:
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
        return spec

    def same_features(self, other: "BackboneSpec") -> bool:
        """Whether both give equal features; where the weights came from does not matter."""
        ours, theirs = self.to_meta(), other.to_meta()
        return all(ours[key] == theirs[key] for key in ours if key != "weights")


class Backbone:
    """A frozen network, ready to run; safe to call from several threads.

    Attributes:
        spec: what it is.
        device: where it runs and where its feature maps lie.
        channels: C of each layer.
    """

    def __init__(self, net: nn.Module, spec: BackboneSpec, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        self._net = net.eval().requires_grad_(requires_grad=False).float()
        self._net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        mean = torch.tensor(spec.mean, dtype=torch.float64).view(1, 3, 1, 1)
        std = torch.tensor(spec.std, dtype=torch.float64).view(1, 3, 1, 1)
        self._scale = (1 / (255 * std)).float().to(device)
        self._shift = (-mean / std).float().to(device)
        self.channels: dict[str, int] = self._probe()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps of a batch.

        They are inference tensors: `clone()` one before training against it.

        Args:
            images: (B, 3, H, W) uint8, RGB, on any device; left as they are.

        Returns:
            By layer, in the order of `spec.layers`: (B, C, h, w) float32 on `device`.

        Raises:
            ShapeError: `images` are of another shape or type.
        """
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != 3 or images.dtype != torch.uint8:
            raise ShapeError(f"images must be (B, 3, H, W) uint8, not {shape} {images.dtype}")
        x = images.to(self.device, non_blocking=True).to(torch.float32, memory_format=torch.channels_last)
        maps = self._net(x.mul_(self._scale).add_(self._shift))
        return {layer: maps[layer].float() for layer in self.spec.layers}

    def _probe(self) -> dict[str, int]:
        blank = torch.zeros(1, 3, _PROBE_SIZE_PX, _PROBE_SIZE_PX, dtype=torch.uint8)
        with torch.inference_mode():
            maps = self._net(blank.to(self.device).float().mul_(self._scale).add_(self._shift))
        if not isinstance(maps, Mapping):
            raise ConfigError(f"backbone {self.spec.name} returns {type(maps).__name__}, not dict[layer, Tensor]")
        check_layers(self.spec.name, self.spec.layers, list(maps))
        for layer in self.spec.layers:
            if not isinstance(maps[layer], Tensor) or maps[layer].dim() != 4:
                seen = tuple(getattr(maps[layer], "shape", ())) or type(maps[layer]).__name__
                raise ConfigError(f"layer {layer} of {self.spec.name} is {seen}, not a map (B, C, h, w)")
        return {layer: int(maps[layer].shape[1]) for layer in self.spec.layers}


def resolve(
    name: str,
    layers: Collection[str],
    *,
    weights: Path | None,
    factories: Collection[str],
    device: str = "cpu",
    seed: int = 0,
    expected_sha256: str | None = None,
) -> Backbone:
    """The backbone of that name, with these weights, on this device.

    Args:
        name: torchvision classification model, or `module:factory`.
        layers: feature maps to take, each once.
        weights: a safetensors file; without one goldline-s has the weights that it ships with, and any other
            network random ones, the same for the same seed.
        factories: the `module:factory` names that may be imported and called.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        seed: of random weights.
        expected_sha256: digest that the weights must have, from an artifact.

    Raises:
        ConfigError: a name, layer, file or device does not exist or is not permitted.
        ArtifactError: the weights are not those an artifact was fitted with, or it names a forbidden factory.
    """
    wanted = tuple(layers)
    if not wanted or len(set(wanted)) < len(wanted):
        raise ConfigError(f"backbone {name} needs one or more layers, each once, not {list(wanted)}")
    place = resolve_device(device)
    if weights is not None:
        check_weights_file(weights)
    if ":" in name:
        if name not in factories:
            forbidden = ConfigError if expected_sha256 is None else ArtifactError
            raise forbidden(
                f"backbone {name!r} is a factory that nobody permitted: name it on the command line, "
                f'or in line.toml as [backbones."{name}"]'
            )
        net = from_factory(name, weights, seed)
        digest = state_sha256(net.state_dict())
    elif name == own.NAME:
        weights = weights or own.SHIPPED
        net = goldline_s(wanted, weights)
        digest = state_sha256(net.state_dict())
        net = fuse(net)
    else:
        net = from_torchvision(name, wanted, weights, seed)
        digest = state_sha256(net.state_dict())
        net = fuse(net, inplace=True, no_trace=True)  # batch norms into the convolutions before them
    if expected_sha256 is not None and digest != expected_sha256:
        source = "random weights" if weights is None else weights.name
        raise ArtifactError(f"the model needs {name} with weights {expected_sha256}, but {source} has {digest}")
    if weights == own.SHIPPED:
        provenance = f"{SHIPPED}{name}"
    else:
        provenance = f"random:seed={seed}" if weights is None else f"file:{weights.name}"
    spec = BackboneSpec(name=name, layers=wanted, weights_sha256=digest, weights=provenance)
    return Backbone(net, spec, place)


def default_layers(name: str) -> tuple[str, ...]:
    """The layers that patch methods take where nobody chose any.

    Raises:
        ConfigError: there is no usual choice for this backbone.
    """
    if name == own.NAME:
        return own.LAYERS
    if re.match(r"(wide_)?resnet\d", name) and ":" not in name:
        return ("layer2", "layer3")
    raise ConfigError(f"backbone {name} has no default layers: choose some, as in `--layers a,b`")


def resolve_device(device: str) -> torch.device:
    """The device of that name; `auto` takes CUDA where there is one.

    Raises:
        ConfigError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise ConfigError(f"device {device!r}: choose auto, cpu, cuda or cuda:N")
    place = torch.device(device)
    if place.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"device {device}: this machine or this build of torch has no CUDA; choose cpu or auto")
        if (place.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device {device}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0")
    return place
