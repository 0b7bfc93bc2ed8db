"""Opens backbones: the one that a command names, and those that models name where settings or the command permit it."""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec

from pipeline.backbone import SHIPPED, Backbone, default_layers, resolve
from pipeline.backbone_spec import BackboneSpec, Preprocessing
from pipeline.data import Artifact, Size
from pipeline.decode import Limits
from pipeline.devices import resolve_device
from pipeline.engines import AUTO, cpu_only
from pipeline.errors import ArtifactError, ConfigError
from pipeline.fastest import on_fastest_engine
from pipeline.inspection import Inspector
from pipeline.settings import Known, Settings
from pipeline.weight_files import Sources, preprocessing_of

DEFAULT = "goldline-s"
_RANDOM = re.compile(r"random:seed=(\d{1,9})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A backbone as a person names it on the command line."""

    name: str = DEFAULT
    layers: Sequence[str] = ()
    weights: Path | None = None
    random_weights: bool = False
    engine: str = AUTO
    device: str = "auto"
    seed: int = 0


def sources(settings: Settings) -> Sources:
    """Where these settings look for weights."""
    return Sources(
        named=settings.weights_files(),
        folder=Path(settings.weights.folder).expanduser(),
        download=settings.weights.download,
    )


def choose(choice: Choice, settings: Settings, size: Size) -> Backbone:
    """The backbone to fit with, on the engine that is asked for or, with `auto`, the fastest for pictures of (H, W).

    Raises:
        ConfigError: as `resolve`.
    """
    if choice.random_weights and choice.weights:
        raise ConfigError(f"--random-weights and --weights {choice.weights} exclude each other")
    weights = None if choice.random_weights else sources(settings).find(choice.name, choice.weights)
    backbone = resolve(
        choice.name,
        tuple(choice.layers) or default_layers(choice.name),
        weights=weights,
        random_weights=choice.random_weights,
        factories=[choice.name],
        preprocessing=preprocessing_of(weights) if weights else Preprocessing(),
        engine="torch" if choice.engine == AUTO else choice.engine,
        device=choice.device,
        seed=choice.seed,
    )
    return on_fastest_engine(backbone, size) if choice.engine == AUTO else backbone


def with_backbone(settings: Settings, name: str, weights: Path | None) -> Settings:
    """The same settings, in which this backbone is permitted, with this file where there is one."""
    known = Known(weights=str(weights)) if weights else settings.backbones.get(name, Known())
    return msgspec.structs.replace(settings, backbones={**settings.backbones, name: known})


def open_inspector(
    artifact: Artifact, settings: Settings, *, backbone: str | None, weights: Path | None, device: str
) -> Inspector:
    """A stored model on its own backbone, which the command line may permit (`backbone`) and find (`weights`).

    Raises:
        ArtifactError: it is damaged, or stands on a backbone that is not permitted here.
    """
    named = str(artifact.meta.get("backbone", {}).get("name", ""))
    if weights is not None or backbone is not None:
        settings = with_backbone(settings, backbone or (named if ":" not in named else ""), weights)
    return Inspector.load(artifact, open_backbone=opener(settings, device), limits=Limits())


def opener(settings: Settings, device: str) -> Callable[[BackboneSpec], Backbone]:
    """A function from what an artifact says to a backbone, the same one for the same words.

    Networks are kept, on each device once, whatever runs them, and so are engines; but for those in 8 bits, which are
    compiled for the models of one fit and leave memory with the last of them.

    Args:
        settings: whose `backbones` are permitted, and where weights are looked for.
        device: as in settings. A model that was fitted for OpenVINO runs on the CPU where that is `auto`.
    """
    looked_at = sources(settings)
    kept: dict[BackboneSpec, Backbone] = {}
    rounded: WeakValueDictionary[BackboneSpec, Backbone] = WeakValueDictionary()

    @functools.cache
    def network(spec: BackboneSpec, place: str) -> Backbone:
        seeded = _RANDOM.fullmatch(spec.weights)
        weights = None if seeded or spec.weights.startswith(SHIPPED) else looked_at.find(spec.name)
        if weights is None and spec.weights.startswith("file:"):
            raise ArtifactError(
                f"the model stands on {spec.name} with weights {spec.weights}; name the file: --weights FILE, "
                f'or in the settings [backbones."{spec.name}"] weights = "FILE", or import it: goldline weights import'
            )
        return resolve(
            spec.name,
            spec.layers,
            weights=weights,
            random_weights=bool(seeded),
            factories=settings.backbones.keys(),
            preprocessing=Preprocessing(mean=spec.mean, std=spec.std, order=spec.order),
            device=place,
            seed=int(seeded.group(1)) if seeded else 0,
            expected_sha256=spec.weights_sha256,
        )

    def open_backbone(spec: BackboneSpec) -> Backbone:
        opened = rounded if spec.cuts else kept
        known = opened.get(spec)
        if known is None:
            place = "cpu" if device == AUTO and cpu_only(spec.engine) else str(resolve_device(device))
            known = network(replace(spec, engine="torch", cuts=()), place).on(spec.engine, spec.cuts)
            opened[spec] = known
        return known

    return open_backbone
