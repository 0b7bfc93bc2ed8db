"""The methods there are, by name. Adding one is a file beside this and a line in METHODS."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from pipeline.backbone import Backbone
from pipeline.data import Artifact, Images, Size
from pipeline.errors import ArtifactError, ConfigError
from pipeline.methods import deep_svdd, efficientad, fyd, padim, students
from pipeline.methods.base import Detector, Foreseeable, Grown, Method, Refittable
from pipeline.methods.deep_svdd import DeepSvdd, DeepSvddConfig
from pipeline.methods.efficientad import EfficientAd, EfficientAdConfig
from pipeline.methods.fyd import Fyd, FydConfig
from pipeline.methods.mkd import Mkd, MkdConfig
from pipeline.methods.padim import Padim, PadimConfig
from pipeline.methods.patchcore import PatchCore, PatchCoreConfig
from pipeline.methods.spade import Spade, SpadeConfig
from pipeline.methods.students import Students, StudentsConfig
from pipeline.progress import Progress, silent

__all__ = [
    "METHODS",
    "MethodEntry",
    "can_grow",
    "fit",
    "fit_bytes",
    "grow",
    "load",
    "make_config",
    "make_configs",
    "presets",
    "settings_for",
]


@dataclass(frozen=True, kw_only=True)
class MethodEntry:
    """A method and the class of its settings.

    Attributes:
        by_position: it keeps statistics of each position, so that pictures of different places cannot share a model.
        one_pass: scoring runs the backbone once, on the pictures as they are, so that models may share the run.
        quick: settings for a short training, of those whose defaults take hours; see `make_config`.
        fixtured: settings for parts that lie alike in every picture, of those that gain by it; see `make_config`.
    """

    method: Method[Any]
    config: type[Any]
    by_position: bool = False
    one_pass: bool = False
    quick: Mapping[str, Any] = field(default_factory=dict)
    fixtured: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, MethodEntry] = {
    fyd.NAME: MethodEntry(method=Fyd(), config=FydConfig, by_position=True, quick=fyd.QUICK),
    "mkd": MethodEntry(method=Mkd(), config=MkdConfig, quick={"epochs": 100, "batch": 16}),
    "padim": MethodEntry(method=Padim(), config=PadimConfig, by_position=True, one_pass=True, fixtured=padim.FIXTURED),
    "patchcore": MethodEntry(method=PatchCore(), config=PatchCoreConfig, one_pass=True),
    "spade": MethodEntry(method=Spade(), config=SpadeConfig, one_pass=True),
    deep_svdd.NAME: MethodEntry(method=DeepSvdd(), config=DeepSvddConfig, quick=deep_svdd.QUICK),
    efficientad.NAME: MethodEntry(method=EfficientAd(), config=EfficientAdConfig, quick=efficientad.QUICK),
    students.NAME: MethodEntry(method=Students(), config=StudentsConfig, quick=students.QUICK),
}


def fit(
    method_name: str,
    images: Images,
    config: object,
    *,
    backbone: Backbone,
    seed: int,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> Detector:
    """A detector of that method that knows what these good pictures look like.

    Args:
        method_name: a key of METHODS.
        images: good pictures, (N, 3, H, W).
        config: of the method's class of settings, see `make_config`.
        backbone: what sees the pictures.
        seed: the same seed gives the same detector.
        scratch: a folder for the checkpoints of a long training; the same call goes on from them.
        progress: called as `progress(stage, done, total)`.

    Raises:
        ConfigError: no such method, or the settings are another method's.
        FitError: the pictures are too few or unfit.
    """
    entry = _entry(method_name)
    if not isinstance(config, entry.config):
        raise ConfigError(f"{method_name} needs a {entry.config.__name__}, not {type(config).__name__}")
    return entry.method.fit(images, config, backbone=backbone, seed=seed, scratch=scratch, progress=progress)


def fit_bytes(method_name: str, count: int, config: object, *, backbone: Backbone, size: Size) -> int | None:
    """The most memory that a fit takes beside pictures and backbone; None where the method does not say."""
    method = _entry(method_name).method
    if not isinstance(method, Foreseeable):
        return None
    return method.fit_bytes(count, config, backbone=backbone, size=size)


def load(artifact: Artifact, *, backbone: Backbone) -> Detector:
    """The detector that an artifact describes.

    Raises:
        ArtifactError: an unknown method, or the artifact is damaged or was made with another backbone.
    """
    if artifact.method not in METHODS:
        raise ArtifactError(f"the model's method is {artifact.method!r}; known are {', '.join(METHODS)}")
    return METHODS[artifact.method].method.load(artifact, backbone=backbone)


def can_grow(method_name: str, detector: Detector) -> bool:
    """Whether `grow` can go on from this detector; one with tiles, for one, has to be fitted anew."""
    method = _entry(method_name).method
    return isinstance(method, Refittable) and method.can_refit(detector)


def grow(
    method_name: str,
    parent: Detector,
    images: Images,
    *,
    new_share_max: float,
    seed: int,
    progress: Progress = silent,
) -> Grown:
    """A detector that has learnt further pictures, without those that its parent was fitted on.

    Raises:
        ConfigError: this method or this detector cannot; see `can_grow`.
        FitError: the pictures are unfit.
    """
    method = _entry(method_name).method
    if not isinstance(method, Refittable) or not method.can_refit(parent):
        raise ConfigError(f"this detector of {method_name} has to be fitted anew")
    return method.refit(parent, images, new_share_max=new_share_max, seed=seed, progress=progress)


def make_config(method_name: str, settings: Mapping[str, Any], *, quick: bool = False, fixtured: bool = False) -> Any:
    """The method's settings; texts, as from `--set key=value`, are read as the field's type.

    Args:
        method_name: a key of METHODS.
        settings: by field; what is absent has the paper's value.
        quick: what is absent has the value of the method's short training, where it has one.
        fixtured: what is absent has the value for parts that lie alike.

    Raises:
        ConfigError: an unknown method or setting (the nearest known one is named), an unfit value, or `fixtured` for a
            method that has no such values.
    """
    config = _entry(method_name).config
    if fixtured and not presets(method_name, fixtured=True):
        raise ConfigError(f"{method_name} has no settings for parts that lie alike. {_with_fixtured()}")
    known = [each.name for each in fields(config)]
    for key in settings:
        if key not in known:
            raise ConfigError(f"{method_name} has no setting {_unknown(key, known)}. It has: {', '.join(known)}")
    try:
        given = {**presets(method_name, quick=quick, fixtured=fixtured), **settings}
        return msgspec.convert(given, config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{method_name}: {_unfit(error, config, settings)}") from error


def make_configs(
    method_names: Sequence[str], settings: Mapping[str, Any], *, quick: bool = False, fixtured: bool = False
) -> dict[str, Any]:
    """The settings of each method, from one list: a method takes those that it has, and so with `fixtured`.

    Raises:
        ConfigError: no method or an unknown one, a setting that none of them has, an unfit value, or `fixtured` and
            none of them has such values.
    """
    if not method_names:
        raise ConfigError(f"name a method: {', '.join(sorted(METHODS))}")
    with_fixtured = [name for name in method_names if fixtured and _entry(name).fixtured]
    if fixtured and not with_fixtured:
        raise ConfigError(
            f"none of {', '.join(method_names)} has settings for parts that lie alike. {_with_fixtured()}"
        )
    configs = {
        name: make_config(name, settings_for(name, settings), quick=quick, fixtured=name in with_fixtured)
        for name in method_names
    }
    known = sorted({entry.name for config in configs.values() for entry in fields(config)})
    for key in settings:
        if key not in known:
            none = f"none of {', '.join(method_names)} has the setting {_unknown(key, known)}"
            raise ConfigError(f"{none}. There are: {', '.join(known)}")
    return configs


def presets(method_name: str, *, quick: bool = False, fixtured: bool = False) -> dict[str, Any]:
    """What the method's short training sets, and its settings for parts that lie alike, where it has such.

    Raises:
        ConfigError: an unknown method.
    """
    entry = _entry(method_name)
    return {**(entry.quick if quick else {}), **(entry.fixtured if fixtured else {})}


def settings_for(method_name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that the method has: for one list that serves several methods.

    Raises:
        ConfigError: an unknown method.
    """
    known = {entry.name for entry in fields(_entry(method_name).config)}
    return {key: value for key, value in settings.items() if key in known}


def _with_fixtured() -> str:
    return f"With such: {', '.join(name for name, entry in METHODS.items() if entry.fixtured)}"


def _unknown(key: str, known: Sequence[str]) -> str:
    near = get_close_matches(key, known, n=1)
    return f"{key!r}; nearest: {near[0]}" if near else repr(key)


def _unfit(error: msgspec.ValidationError, config: type[Any], settings: Mapping[str, Any]) -> str:
    """What is wrong with a value, and what it may be; range errors of the settings themselves say that already."""
    key = str(error).partition("`$.")[2].rstrip("`")
    if key not in settings:
        return str(error)
    kind = get_type_hints(config)[key]
    said = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    wanted = f"one of {', '.join(get_args(kind))}" if get_origin(kind) is Literal else said.get(kind, str(kind))
    return f"{key} is {wanted}, not {settings[key]!r:.200}"


def _entry(method_name: str) -> MethodEntry:
    if method_name not in METHODS:
        near = get_close_matches(method_name, [*METHODS, "auto"], n=1)
        hint = f"; nearest: {near[0]}" if near else ""
        if method_name == "auto":
            hint = " here"
        known = f"{', '.join(METHODS)}, and auto for `goldline fit` and `goldline evaluate`"
        raise ConfigError(f"no method {method_name!r}{hint}. There are: {known}")
    return METHODS[method_name]
