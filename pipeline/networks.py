"""Networks by name, on the CPU, with weights that are given or random; `backbone.py` freezes and runs them.

Weights are read from safetensors alone; nothing is unpickled. A factory's module is imported: whoever calls
`from_factory` has checked that its name is permitted.
"""

import hashlib
import importlib
import math
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torchvision.models
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from pipeline import goldline_s as own
from pipeline.errors import ConfigError

TIMM = "timm:"
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Digest of names, types, shapes and bytes, in the order of names.

    Batch normalisation's `num_batches_tracked` is left out: it changes no output, and converters drop it.
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        if key.endswith("num_batches_tracked"):
            continue
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_weights_file(path: Path) -> None:
    """Refuse what is not a safetensors file.

    Raises:
        ConfigError: another kind of file, or none.
    """
    if path.suffix != ".safetensors":
        raise ConfigError(f"weights {path.name} must be .safetensors: convert it (a .pth may run code when read)")
    if not path.is_file():
        raise ConfigError(f"weights {path}: no such file")


def from_torchvision(name: str, layers: tuple[str, ...], weights: Path | None, seed: int) -> nn.Module:
    """The part of a torchvision classifier that these layers need; it returns dict[layer, Tensor].

    Raises:
        ConfigError: no such model or layer, or the weights are another network's.
    """
    known: list[str] = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = get_close_matches(name, known, n=3)
        hint = f"nearest: {', '.join(near)}" if near else "a factory of one's own is written module:factory"
        raise ConfigError(f"torchvision has no model {name!r}; {hint}")
    model = _seeded(lambda: torchvision.models.get_model(name, weights=None), seed).eval()
    return _extractor(name, model, layers, weights, channels_last=name.startswith("swin"))


def from_timm(name: str, layers: tuple[str, ...], weights: Path | None, seed: int) -> nn.Module:
    """As `from_torchvision`, for `timm:MODEL`.

    Raises:
        ConfigError: timm is not installed, has no such model or layer, or the weights are another network's.
    """
    try:
        import timm  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise ConfigError(f"{name} needs timm: pip install 'goldline[timm]'") from error
    model_name = name.removeprefix(TIMM)
    if not timm.is_model(model_name):
        near = get_close_matches(model_name, timm.list_models(), n=3)
        raise ConfigError(f"timm has no model {model_name!r}; nearest: {', '.join(near) or 'none'}")
    model = _seeded(lambda: timm.create_model(model_name, pretrained=False), seed).eval()
    return _extractor(name, model, layers, weights, channels_last="swin" in model_name)


def _extractor(
    name: str, model: nn.Module, layers: tuple[str, ...], weights: Path | None, *, channels_last: bool
) -> nn.Module:
    """The part of a classifier that these layers need."""
    nodes: list[str] = get_graph_node_names(model, suppress_diff_warning=True)[1]
    prefixes = {node.rsplit(".", cut)[0] for node in nodes for cut in range(node.count(".") + 1)}
    check_layers(name, layers, sorted(prefixes))
    chosen = {layer: layer for layer in layers}
    net: nn.Module = create_feature_extractor(model, chosen, suppress_diff_warning=True).eval()
    if weights is not None:
        _load(net, model, weights)
    return _Maps(net, channels_last=channels_last) if channels_last or _has_tokens(net) else net


def _has_tokens(net: nn.Module) -> bool:
    with torch.inference_mode():
        return any(each.dim() == 3 for each in net(torch.zeros(1, 3, 224, 224)).values())


class _Maps(nn.Module):
    """A transformer's tokens as maps (B, C, h, w): (B, tokens, C) without those before the grid, or (B, h, w, C)."""

    def __init__(self, net: nn.Module, *, channels_last: bool) -> None:
        super().__init__()
        self.net = net
        self._channels_last = channels_last

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {layer: self._map(each) for layer, each in self.net(x).items()}

    def _map(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            side = math.isqrt(x.shape[1])
            grid = x[:, x.shape[1] - side * side :]
            return grid.reshape(len(x), side, side, x.shape[2]).permute(0, 3, 1, 2)
        return x.permute(0, 3, 1, 2) if self._channels_last else x


def goldline_s(layers: tuple[str, ...], weights: Path | None, seed: int) -> nn.Module:
    """Our own compact network, as wide as the weights are; it returns dict[layer, Tensor].

    Raises:
        ConfigError: no such layer, or the weights cannot be read or are another network's.
    """
    check_layers(own.NAME, layers, list(own.LAYERS))
    if weights is None:
        net: nn.Module = _seeded(own.GoldlineS, seed).eval()
        return net
    widths = own.widths_of({key: tuple(tensor.shape) for key, tensor in _read(weights).items()})
    net = own.GoldlineS(widths).eval()
    _load(net, net, weights)
    return net


def _load(net: nn.Module, whole: nn.Module, weights: Path) -> None:
    """Fill `net`, the part of `whole` that runs; the file may hold all of `whole` or that part."""
    state = _read(weights)
    ours = net.state_dict()
    missing = [key for key in ours if key not in state and not key.endswith("num_batches_tracked")]
    foreign = sorted(state.keys() - whole.state_dict().keys())
    unlike = [key for key in ours if key in state and state[key].shape != ours[key].shape]
    if wrong := missing + foreign + unlike:
        raise ConfigError(
            f"weights {weights.name} are of another network: {len(missing)} tensors missing, {len(foreign)} "
            f"unknown, {len(unlike)} of another shape, such as {', '.join(wrong[:3])}"
        )
    net.load_state_dict({key: state[key] for key in ours if key in state}, strict=False)


def _read(weights: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = load_file(weights)
        return state
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"weights {weights.name} cannot be read: {error}") from error


def from_factory(name: str, weights: Path | None, seed: int) -> nn.Module:
    """What `module:factory` makes of the weights; the caller has checked that it is permitted.

    Raises:
        ConfigError: it cannot be imported or called, or makes no network.
    """
    if not _FACTORY.fullmatch(name):
        raise ConfigError(f"backbone {name!r}: a factory is written module:factory")
    module_name, _, attribute = name.partition(":")
    try:
        factory: Callable[[Path | None], Any] = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise ConfigError(f"backbone {name}: {error}; is the folder of {module_name} on PYTHONPATH?") from error
    except AttributeError as error:
        raise ConfigError(f"backbone {name}: module {module_name} has no {attribute}") from error
    try:
        net = _seeded(lambda: factory(weights), seed)
    except Exception as error:
        raise ConfigError(f"backbone {name}: the factory failed: {type(error).__name__}: {error}") from error
    if not isinstance(net, nn.Module):
        raise ConfigError(f"backbone {name}: the factory returned {type(net).__name__}, not a torch.nn.Module")
    return net.eval()


def _seeded(build: Callable[[], Any], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


def check_layers(name: str, wanted: tuple[str, ...], known: list[str]) -> None:
    """Refuse a layer that is not known, naming the nearest and what there is.

    Raises:
        ConfigError: one of the wanted layers is not known.
    """
    for layer in wanted:
        if layer not in known:
            near = get_close_matches(layer, known, n=1)
            hint = f"; nearest: {near[0]}" if near else ""
            shallow = [each for each in known if each.count(".") < 2] or known
            more = ", ..." if len(shallow) > 40 else ""
            raise ConfigError(f"{name} has no layer {layer!r}{hint}. It has: {', '.join(shallow[:40])}{more}")
