"""Opens the backbones that models name, where settings or the command line permit it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.backbone import SHIPPED, Backbone, BackboneSpec, resolve
from pipeline.errors import ArtifactError

_RANDOM = re.compile(r"random:seed=(\d{1,9})")


def opener(known: Mapping[str, Path | None], device: str) -> Callable[[BackboneSpec], Backbone]:
    """A function from what an artifact says to a backbone.

    Args:
        known: permitted names, each with its weights file where it needs one.
        device: as in settings.
    """

    def open_backbone(spec: BackboneSpec) -> Backbone:
        weights = known.get(spec.name)
        seeded = _RANDOM.fullmatch(spec.weights)
        if weights is None and not seeded and not spec.weights.startswith(SHIPPED):
            raise ArtifactError(
                f"the model stands on {spec.name} with weights {spec.weights}; name the file: --weights FILE, "
                f'or in line.toml [backbones."{spec.name}"] weights = "FILE"'
            )
        return resolve(
            spec.name,
            spec.layers,
            weights=None if seeded else weights,
            factories=known.keys(),
            device=device,
            seed=int(seeded.group(1)) if seeded else 0,
            expected_sha256=spec.weights_sha256,
        )

    return open_backbone
