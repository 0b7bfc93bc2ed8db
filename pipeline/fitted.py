"""What the artifacts of all methods share: settings, backbone and picture size, read back with nothing believed."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor

from pipeline.backbone import Backbone
from pipeline.backbone_spec import BackboneSpec
from pipeline.data import Artifact, Images, Meta, Size
from pipeline.errors import ArtifactError, ConfigError, FitError, ShapeError

C = TypeVar("C")
_SIDE_MAX = 4096  # as of a `View`, whose tiles are models of their own


def to_meta(config: Any, backbone: Backbone, size: Size) -> Meta:
    """A detector's settings (a dataclass), backbone and picture size, as JSON."""
    return {"config": asdict(config), "backbone": backbone.spec.to_meta(), "image_size": list(size)}


def from_meta(artifact: Artifact, name: str, config: type[C], backbone: Backbone) -> tuple[C, Size]:
    """What `to_meta` wrote.

    Args:
        artifact: of the method `name`.
        name: the method's.
        config: class of its settings.
        backbone: the one to run on; must give the features that the model was fitted on.

    Raises:
        ArtifactError: another method's model, another backbone, or values that cannot be.
    """
    if artifact.method != name:
        raise ArtifactError(f"this is a model of {artifact.method!r}, not of {name}")
    read, size = _config(artifact.meta, name, config)
    spec = BackboneSpec.from_meta(artifact.meta.get("backbone"))
    if not spec.same_features(backbone.spec):
        raise ArtifactError(f"the model was fitted on {spec}, and cannot run on {backbone.spec}")
    return read, size


def tensors(artifact: Artifact, names: Collection[str]) -> list[Tensor]:
    """Exactly these tensors, finite, in this order.

    Raises:
        ArtifactError: one is missing, foreign, or holds a value that is not finite.
    """
    if set(artifact.tensors) != set(names):
        raise ArtifactError(f"{artifact.method} needs the tensors {sorted(names)}, not {sorted(artifact.tensors)}")
    for name in names:
        if not bool(artifact.tensors[name].isfinite().all()):
            raise ArtifactError(f"{name} holds values that are not finite")
    return [artifact.tensors[name] for name in names]


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Refuse a tensor of another shape or type.

    Raises:
        ArtifactError: it is.
    """
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ArtifactError(f"{name} must be {shape} {dtype}, not {tuple(tensor.shape)} {tensor.dtype}")


def check_pixels(images: Tensor, size: Size) -> None:
    """Refuse pictures of another size or type, or that are not RGB.

    Raises:
        ShapeError: they are.
    """
    if images.dtype != torch.uint8:
        raise ShapeError(f"images are {images.dtype}; the model needs uint8, 0 to 255")
    if images.dim() != 4 or tuple(images.shape[1:]) != (3, *size):
        raise ShapeError(f"images are {tuple(images.shape)}; the model needs (B, 3, {size[0]}, {size[1]})")


def check_enough(name: str, images: Images, fewest: int) -> None:
    """Refuse to fit on too little.

    Raises:
        FitError: fewer pictures than `fewest`; the message says both.
    """
    if len(images) < fewest:
        raise FitError(f"{name} needs at least {fewest} good pictures, not {len(images)}")


def _config(meta: Mapping[str, Any], name: str, kind: type[C]) -> tuple[C, Size]:
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    config, size = meta.get("config"), meta.get("image_size")
    if not isinstance(config, Mapping) or set(config) != known:
        raise ArtifactError(f"config needs exactly {', '.join(sorted(known))}, not {config!r:.200}")
    try:
        read = msgspec.convert(dict(config), kind)
        height, width = msgspec.convert(size, Size)
    except (msgspec.ValidationError, ConfigError) as error:
        raise ArtifactError(f"{name}: {error}") from error
    if not 1 <= min(height, width) <= max(height, width) <= _SIDE_MAX:
        raise ArtifactError(f"image_size must be 1 to {_SIDE_MAX} pixels a side, not {size}")
    return read, (height, width)
