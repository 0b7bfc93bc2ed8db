"""Frozen feature extractors, by name and layer: pictures in, feature maps out.

A name is a torchvision model (`resnet18`), one of timm's (`timm:resnet18`), or a factory of one's own
(`module:factory`), which must be permitted by name before it is imported: an artifact never causes an import. Weights
are read from safetensors alone; nothing is unpickled.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from pipeline import engines
from pipeline import goldline_s as own
from pipeline.backbone_spec import BackboneSpec, Preprocessing
from pipeline.devices import resolve_device
from pipeline.engines import Engine, OpenVinoEngine, Preprocessed
from pipeline.errors import ArtifactError, ConfigError, ShapeError
from pipeline.networks import (
    TIMM,
    check_layers,
    check_weights_file,
    from_factory,
    from_timm,
    from_torchvision,
    goldline_s,
    state_sha256,
)
from pipeline.one_pass import OnePass
from pipeline.remembered import Remembered

SHIPPED = "shipped:"
_PROBE_SIZE_PX = 224  # every torchvision classifier accepts it, vision transformers nothing else


class Backbone:
    """A frozen network, ready to run; safe to call from several threads.

    Attributes:
        spec: what it is.
        device: where its feature maps lie; where it runs, too, unless its engine is OpenVINO.
        channels: C of each layer.
        may_round: whether a fit may run it in 8 bits where that does as well, as nobody named its engine.
    """

    def __init__(
        self,
        whole: Preprocessed,
        channels: dict[str, int],
        spec: BackboneSpec,
        device: torch.device,
        *,
        may_round: bool = False,
        remember_bytes: int = 0,
    ) -> None:
        self.spec = spec
        self.may_round = may_round
        self.device = device
        self.channels = channels
        self._whole, self._net = whole, whole.net
        engine: Engine = engines.make(whole, spec.engine, device, spec.cuts)
        self._engine = Remembered(engine, remember_bytes) if remember_bytes else engine
        self._one_pass = OnePass()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of the network, frozen."""
        return self._net.parameters()

    @property
    def own_bytes(self) -> int:
        """Of memory that it takes for its models alone: in 8 bits, cut off as these want, it is compiled for them."""
        return self._engine.size_bytes if self.spec.cuts and isinstance(self._engine, OpenVinoEngine) else 0

    def on(self, engine: str, cuts: tuple[float, ...] = (), *, may_round: bool = False) -> "Backbone":
        """The same network on another engine, in 8 bits with these cuts; it has its weights in memory once."""
        spec = replace(self.spec, engine=engine, cuts=cuts)
        return Backbone(self._whole, self.channels, spec, self.device, may_round=may_round)

    def rounded(self, goods: Tensor) -> "Backbone":
        """In 8 bits, from what good pictures (B, 3, H, W) uint8 show."""
        return self.on(engines.INT8, engines.cuts_of(self._whole, goods))

    def remembering(self, most_bytes: int) -> "Backbone":
        """The same features, kept for pictures that come again; one thread's."""
        return Backbone(self._whole, self.channels, self.spec, self.device, remember_bytes=most_bytes)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps of a batch.

        They may be inference tensors: `clone()` one before training against it.

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
        return dict(zip(self.spec.layers, self._one_pass.run(self._engine, images), strict=True))

    def one_pass(self, batches: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Inside, on this thread, calls with these very batches (B_i, 3, H, W), all of one size, are run as one."""
        return self._one_pass.of(batches)

    def prepare(self, pixels: Tensor) -> Tensor:
        """What the network sees: channels in its own order, mean taken off, divided by the deviation.

        Args:
            pixels: (B, 3, H, W), RGB, 0 to 255, on `device`; a gradient flows back to float ones.

        Returns:
            (B, 3, H, W) float32.
        """
        return self._whole.prepare(pixels)

    def differentiable(self, prepared: Tensor) -> dict[str, Tensor]:
        """Feature maps through which a gradient flows back to the picture, run by torch whatever the engine is.

        The weights are frozen; ask `torch.autograd.grad` for the picture's gradient, outside inference mode. From
        several threads at once, too. These maps are the engine's within its rounding, not to the last bit.

        Args:
            prepared: (B, 3, H, W) float32 from `prepare`, on `device`.

        Returns:
            By layer, in the order of `spec.layers`: (B, C, h, w) float32, part of the caller's graph.
        """
        maps = self._net(prepared)
        return {layer: maps[layer].float() for layer in self.spec.layers}


def _probe(net: nn.Module, spec: BackboneSpec) -> dict[str, int]:
    """Channels of each layer, from one blank picture; refuses what is no dict of maps."""
    device = next((each.device for each in net.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        maps = net(torch.zeros(1, 3, _PROBE_SIZE_PX, _PROBE_SIZE_PX, device=device))
    if not isinstance(maps, Mapping):
        raise ConfigError(f"backbone {spec.name} returns {type(maps).__name__}, not dict[layer, Tensor]")
    check_layers(spec.name, spec.layers, list(maps))
    for layer in spec.layers:
        if not isinstance(maps[layer], Tensor) or maps[layer].dim() != 4:
            seen = tuple(getattr(maps[layer], "shape", ())) or type(maps[layer]).__name__
            raise ConfigError(f"layer {layer} of {spec.name} is {seen}, not a map (B, C, h, w)")
    return {layer: int(maps[layer].shape[1]) for layer in spec.layers}


def resolve(
    name: str,
    layers: Collection[str],
    *,
    weights: Path | None,
    factories: Collection[str],
    random_weights: bool = False,
    preprocessing: Preprocessing = Preprocessing(),  # noqa: B008 - frozen
    engine: str = "torch",
    cuts: tuple[float, ...] = (),
    device: str = "cpu",
    seed: int = 0,
    expected_sha256: str | None = None,
) -> Backbone:
    """The backbone of that name, with these weights, on this device.

    Args:
        name: torchvision classification model, `timm:` and a name of timm's, or `module:factory`.
        layers: feature maps to take, each once.
        weights: a safetensors file; without one goldline-s has the weights that it ships with, and a factory what it
            makes by itself.
        factories: the `module:factory` names that may be imported and called.
        random_weights: take random ones on purpose, the same for the same seed.
        preprocessing: what the network wants of its pixels.
        engine: what runs it, see `engines`.
        cuts: of an artifact that runs in 8 bits, see `BackboneSpec`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        seed: of random weights.
        expected_sha256: digest that the weights must have, from an artifact.

    Raises:
        ConfigError: a name, layer, file or device does not exist or is not permitted, or there are no weights.
        ArtifactError: the weights are not those an artifact was fitted with, or it names a forbidden factory.
    """
    wanted = tuple(layers)
    if not wanted or len(set(wanted)) < len(wanted):
        raise ConfigError(f"backbone {name} needs one or more layers, each once, not {list(wanted)}")
    if random_weights and weights is not None:
        raise ConfigError(f"random weights and the file {weights.name} exclude each other")
    place = resolve_device(device)
    if name == own.NAME and not random_weights:
        weights = weights or own.SHIPPED
    if weights is not None:
        check_weights_file(weights)
    net = _network(name, wanted, weights, factories, seed, random_weights=random_weights, stored=bool(expected_sha256))
    digest = state_sha256(net.state_dict())
    if expected_sha256 is not None and digest != expected_sha256:
        source = weights.name if weights else "random weights" if random_weights else "the factory"
        raise ArtifactError(f"the model needs {name} with weights {expected_sha256}, but {source} has {digest}")
    spec = BackboneSpec(
        name=name,
        layers=wanted,
        weights_sha256=digest,
        weights=_provenance(name, weights, seed, random_weights=random_weights),
        mean=preprocessing.mean,
        std=preprocessing.std,
        order=preprocessing.order,
        engine=engine,
        cuts=cuts,
    )
    folded = _folded(name, net).eval().requires_grad_(requires_grad=False).float()
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (spec.mean, spec.std))
    scale, shift = (1 / (255 * std)).float(), (-mean / std).float()
    whole = Preprocessed(folded, wanted, scale, shift, bgr=spec.order == "bgr").eval()
    return Backbone(whole, _probe(folded, spec), spec, place)


def _network(
    name: str,
    layers: tuple[str, ...],
    weights: Path | None,
    factories: Collection[str],
    seed: int,
    *,
    random_weights: bool,
    stored: bool,
) -> nn.Module:
    """By its name: ours, timm's, a permitted factory's, or torchvision's."""
    if name == own.NAME:
        return goldline_s(layers, weights, seed)
    build: Callable[[str, tuple[str, ...], Path | None, int], nn.Module] = from_torchvision
    if name.startswith(TIMM):
        build = from_timm
    elif ":" in name:
        if name not in factories:
            forbidden = ArtifactError if stored else ConfigError
            raise forbidden(
                f"backbone {name!r} is a factory that nobody permitted: name it on the command line, "
                f'or in the settings as [backbones."{name}"]'
            )
        net = from_factory(name, weights, seed)
        if weights is None and not random_weights:
            again = from_factory(name, weights, seed + 1)
            if state_sha256(net.state_dict()) != state_sha256(again.state_dict()):
                raise missing_weights(name)
        return net
    if weights is None and not random_weights:
        build(name, layers, None, seed)  # a wrong name or layer is said first
        raise missing_weights(name)
    return build(name, layers, weights, seed)


def missing_weights(name: str) -> ConfigError:
    """One clear error with the ways to mend it."""
    return ConfigError(
        f"there are no weights for backbone {name} on this machine (`goldline weights where {name}` says where it "
        f"looked). Either name a file: --weights FILE.safetensors; or import one: goldline weights import FILE.pth "
        f"--name {name}; or allow downloads: [weights] download = true in the settings. To go on with random ones: "
        "--random-weights"
    )


def _provenance(name: str, weights: Path | None, seed: int, *, random_weights: bool) -> str:
    if random_weights:
        return f"random:seed={seed}"
    if weights == own.SHIPPED:
        return f"{SHIPPED}{name}"
    return f"file:{weights.name}" if weights else "factory"


def _folded(name: str, net: nn.Module) -> nn.Module:
    """Batch norms into the convolutions before them, where torch's tracer can follow the network."""
    if ":" in name:  # a factory's network may branch on its input; its engine folds what it can
        return net
    folded: nn.Module = fuse(net, inplace=True, no_trace=name != own.NAME)
    return folded


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
