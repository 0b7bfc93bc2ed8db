"""Options that several commands share, and what they mean."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from pipeline import settings
from pipeline.errors import ConfigError
from pipeline.settings import Settings
from workers import settings_file

F = TypeVar("F", bound=Callable[..., Any])

_STORE = settings.Store().url


def config(command: F) -> F:
    """`--config line.toml`, read and checked."""
    return click.option(
        "--config",
        "settings",
        default="line.toml",
        show_default=True,
        callback=lambda _ctx, _param, value: read_settings(Path(value)),
        help="Settings of the line.",
    )(command)


def store(command: Callable[..., None]) -> Callable[..., None]:
    """`--store URL`, of a command that has a `--config`: without, where the line's settings say."""

    @wraps(command)
    def with_store(*, store_url: str | None, config: Path | None, **others: Any) -> None:
        here = Path(settings_file.DEFAULT) if os.path.isfile(settings_file.DEFAULT) else None  # noqa: PTH113 - never raises
        command(store_url=store_url or optional_settings(config or here).store.url, config=config, **others)

    return click.option(
        "--store",
        "store_url",
        envvar="GOLDLINE_STORE__URL",
        help="Where models are kept: file:///folder, or redis://USER@HOST:PORT/0.  [as [store] url of --config, or of "
        f"a {settings_file.DEFAULT} here; else {_STORE}]",
    )(with_store)


def line_store(command: Callable[..., None]) -> Callable[..., None]:
    """`--store URL` and a `--config` that says no more than where models are kept."""

    @wraps(command)
    def without_config(*, config: Path | None, **others: Any) -> None:  # noqa: ARG001 - `store` has read it
        command(**others)

    return click.option(
        "--config",
        type=click.Path(path_type=Path, exists=True),
        help="Settings of the line, for where models are kept.",
    )(store(without_config))


def backbone(command: F) -> F:
    """`--backbone`, `--layers`, `--weights`, `--random-weights`, `--engine`, `--device`."""
    for option in (
        click.option(
            "--engine",
            default="auto",
            show_default=True,
            help="What runs the backbone: torch, torch-bf16, openvino-fp32, openvino-bf16, openvino-int8; auto takes "
            "the fastest that agrees with torch, 8 bits where good pictures lie as far apart with them.",
        ),
        click.option("--random-weights", is_flag=True, help="Random weights on purpose; the results say so."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
        click.option(
            "--weights",
            type=click.Path(path_type=Path, dir_okay=False),
            help="The backbone's weights, a safetensors file. Without: where `goldline weights where NAME` says.",
        ),
        click.option("--layers", help="Feature maps to use, as in layer2,layer3; an unknown one lists all."),
        click.option(
            "--backbone",
            help="goldline-s, a torchvision model, timm:MODEL, or module:factory of your own (on PYTHONPATH).",
        ),
    ):
        command = option(command)
    return command


def model_backbone(command: F) -> F:
    """`--weights`, `--backbone`, `--config`, `--device`: for a stored model's own; see `open_inspector`."""
    for option in (
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            help="Settings of the line: where models are kept, backbones, weights.",
        ),
        click.option("--backbone", help="Permits this module:factory backbone, if the model names it."),
        click.option(
            "--weights",
            type=click.Path(path_type=Path, dir_okay=False),
            help="The weights file of the model's backbone, where it has one.",
        ),
    ):
        command = option(command)
    return command


def setting(of: str = "the method") -> Callable[[F], F]:
    """`--set`, read by `pairs`."""
    told = f"A setting of {of}; may be repeated, and an unknown one lists all."
    return click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help=told)


def file_to_write(name: str, *variable: str, says: str) -> Callable[[F], F]:
    """An option that names a file to be written after long work: its folder must be there before."""

    def there(_ctx: click.Context, _param: click.Parameter, value: Path | None) -> Path | None:
        if value and not value.absolute().parent.is_dir():
            raise ConfigError(f"--{name} {value}: there is no folder {value.parent}")
        return value

    return click.option(
        f"--{name}", *variable, type=click.Path(path_type=Path, dir_okay=False), callback=there, help=says
    )


def without(command: F) -> F:
    """`--without FILE`, read: names of good pictures to leave out."""
    return click.option(
        "--without",
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        callback=lambda _ctx, _param, value: _names(value) if value else (),
        help="Leave out the good pictures named there, a line each (`# ` begins a comment); see goldline screen.",
    )(command)


def recipe(command: F) -> F:
    """`--recipe NAME`."""
    return click.option("--recipe", default="default", show_default=True, help="The product.")(command)


def metrics_port(command: F) -> F:
    """`--metrics-port N`."""
    return click.option(
        "--metrics-port",
        type=click.IntRange(0, 65_535),
        help="Answer /metrics and /health there; 0 nowhere. Without: the first free one from [metrics] port on.",
    )(command)


def why(command: F) -> F:
    """`--why TEXT`."""
    return click.option("--why", default="", help="For the history.")(command)


def presets(command: F) -> F:
    """`--fixtured` and `--quick`."""
    for name, says in (
        ("--quick", "Train for minutes where the paper trains for hours. No matter without training."),
        (
            "--fixtured",
            "PaDiM's settings for parts that lie alike in every picture, held by a fixture; --set overrides.",
        ),
    ):
        command = click.option(name, is_flag=True, help=says)(command)
    return command


def method(*names: str, says: str = "The method to fit.") -> Callable[[F], F]:
    """`--method`, or what it is named; absent, it is None for `method_or_default`."""
    return click.option(*(names or ("--method",)), help=f"{says}  [patchcore; with --fixtured padim]")


def method_or_default(given: str | None, *, fixtured: bool) -> str:
    """The method asked for, or the default."""
    if given is None:
        return "padim" if fixtured else "patchcore"
    return given


def scratch(command: F) -> F:
    """`--scratch DIR`."""
    return click.option(
        "--scratch",
        type=click.Path(path_type=Path, file_okay=False),
        help="Keep checkpoints of a long training there: the same command goes on from them.",
    )(command)


def as_json(command: F) -> F:
    """`--json`: for machines, on standard output."""
    return click.option("--json", "as_json", is_flag=True, help="JSON on standard output, for machines.")(command)


def pairs(texts: tuple[str, ...]) -> dict[str, str]:
    """`key=value` texts as a mapping.

    Raises:
        ConfigError: one has no `=`, or a key comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set takes key=value, not {text!r}")
        if key in found:
            raise ConfigError(f"--set {key} is given twice, as {found[key]} and as {value}")
        found[key] = value
    return found


def _names(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ConfigError(f"--without {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--without {path}: it is no text in UTF-8") from error
    names = [line.rstrip() for line in lines if line.strip() and not f"{line.strip()} ".startswith("# ")]
    if not names:
        raise ConfigError(f"--without {path}: it names no picture")
    return tuple(names)


def read_settings(path: Path) -> Settings:
    """The settings of a file, which later messages name.

    Raises:
        ConfigError: it cannot be read, or a value is wrong.
    """
    settings_file.remember(path)
    return settings.read(path)


def optional_settings(path: Path | None) -> Settings:
    """The settings of a file, or all defaults; the environment overrides either."""
    return read_settings(path) if path else settings.build({}, environment=os.environ)
