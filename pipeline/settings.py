"""One typed model of `line.toml`: what may be set, its default, its range.

`read(path)` gives `Settings` or a `ConfigError` that lists every wrong value with its path. Environment variables
override the file: `GOLDLINE_WORKER__DEVICE=cpu` is `[worker] device = "cpu"`. Secrets are in files of their own.
"""

import copy
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pipeline.errors import ConfigError
from pipeline.refit_settings import Refit
from pipeline.settings_check import Section, problems_of
from pipeline.settings_overrides import overrides

Positive = Annotated[int, Meta(ge=1)]
Milliseconds = Annotated[int, Meta(ge=1, le=3_600_000)]
Rate = Annotated[float, Meta(gt=0.0, lt=0.5)]
_BARE = re.compile(r"^\s*\[\s*stations\.[^\"'\]\n]*/", re.MULTILINE)  # a station without quotes
Default = Literal["reject", "pass"]
Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9._-]{1,100}$")]
RECIPE_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,99}$"
Recipe = Annotated[str, Meta(pattern=RECIPE_PATTERN)]
STATION_PATTERN = r"^[a-z0-9-]{1,60}/[a-z0-9-]{1,60}$"
StationName = Annotated[str, Meta(pattern=STATION_PATTERN)]
Root = Annotated[str, Meta(pattern=r"^(file:///|rediss?://).+")]
ENVIRONMENT_PREFIX = "GOLDLINE_"


class Tls(Section, frozen=True):
    """TLS to the brokers. Files are PEM."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


class Sasl(Section, frozen=True):
    """SASL to the brokers. The password comes from a file, never from here."""

    username: str
    password_file: str
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"


class Kafka(Section, frozen=True):
    """Where the brokers are and what our topics and group are called."""

    brokers: tuple[str, ...] = ("127.0.0.1:9092",)
    prefix: Name = "goldline"
    group: Name = "goldline"
    tls: Tls | None = None
    sasl: Sasl | None = None


class Store(Section, frozen=True):
    """Where models are kept."""

    url: str = "file:///srv/goldline/models"
    poll_s: Annotated[float, Meta(gt=0.0, le=3600.0)] = 2.0


class Worker(Section, frozen=True):
    """How a worker batches and when it gives up."""

    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")] = "auto"
    batch_max: Annotated[int, Meta(ge=1, le=1024)] = 16
    wait_ms: Annotated[float, Meta(ge=0.0, le=1000.0)] = 5.0
    threads: Annotated[int, Meta(ge=0)] = 0
    at_once: Annotated[int, Meta(ge=0, le=64)] = 0
    window: Annotated[int, Meta(ge=0)] = 0
    models_max_mb: Positive = 4096
    heatmaps: Literal["all", "reject", "none"] = "reject"
    drain_s: Annotated[float, Meta(gt=0.0, le=60.0)] = 8.0
    stuck_s: Annotated[float, Meta(ge=5.0)] = 60.0
    remember: Annotated[int, Meta(ge=1000)] = 100_000


class Frames(Section, frozen=True):
    """What a frame may be at most, and where large ones lie."""

    inline_max_bytes: Annotated[int, Meta(ge=1024)] = 900_000
    max_bytes: Annotated[int, Meta(ge=1024, le=512_000_000)] = 64_000_000
    roots: tuple[Root, ...] = ("file:///srv/goldline/frames",)
    keep_s: Annotated[int, Meta(ge=60)] = 3600
    max_pixels: Positive = 50_000_000
    formats: tuple[Literal["JPEG", "PNG", "BMP", "TIFF", "WEBP"], ...] = (
        "JPEG",
        "PNG",
        "BMP",
        "TIFF",
        "WEBP",
    )
    deadline_max_ms: Milliseconds = 60_000


class Pool(Section, frozen=True):
    """Where recently accepted frames are kept for the next refit, which, and how many."""

    url: Annotated[str, Meta(pattern=r"^file:///.+")] | None = None
    keep: Positive = 2000
    max_bytes: Annotated[int, Meta(ge=100_000)] = 1_000_000_000
    keep_days: Annotated[int, Meta(ge=1, le=60)] = 14
    p_min: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.1
    quarantine_h: Annotated[float, Meta(ge=0.0)] = 24.0


class Gate(Section, frozen=True):
    """What the reject gate does. Commands are argv lists and never pass through a shell; hooks get JSON."""

    on_pass: tuple[str, ...] = ()
    on_reject: tuple[str, ...] = ()
    pass_url: str | None = None
    reject_url: str | None = None
    hook_timeout_s: Annotated[float, Meta(gt=0.0, le=60.0)] = 2.0
    stop_after: Annotated[int, Meta(ge=0)] = 0
    on_stop: tuple[str, ...] = ()
    silence_s: Annotated[float, Meta(gt=0.0)] = 10.0
    fuse: Literal["none", "any-reject", "weighted"] = "none"
    reject_at: Annotated[float, Meta(gt=0.0)] = 1.0
    part_deadline_ms: Milliseconds | None = None


class Weights(Section, frozen=True):
    """Where weights of backbones lie. GOLDLINE_WEIGHTS names the folder, too."""

    folder: str = "~/.cache/goldline/weights"
    download: bool = False


class Known(Section, frozen=True):
    """A backbone that models may name: an artifact never causes an import that is not permitted here."""

    weights: str | None = None


class Drift(Section, frozen=True):
    """How watching for drift goes about it."""

    delta: Rate = 0.01
    folder: str = "~/.local/state/goldline/drift"


class Metrics(Section, frozen=True):
    """Where each process answers /metrics and /health."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_000)] = 9790


class Tracing(Section, frozen=True):
    """Where spans go, and of how many frames."""

    endpoint: Annotated[str, Meta(pattern=r"^https?://.+")] | None = None
    share: Annotated[float, Meta(ge=0.0, le=1.0)] = 1.0


class Defaults(Section, frozen=True):
    """What a station without a value of its own takes."""

    deadline_ms: Milliseconds = 300
    on_no_decision: Default = "reject"
    false_reject_rate: Rate = 0.005


class Station(Section, frozen=True):
    """One camera viewpoint on one line."""

    recipes: tuple[Recipe, ...] = ("default",)
    partition: Annotated[int, Meta(ge=0, le=9999)] | None = None
    deadline_ms: Milliseconds | None = None
    on_no_decision: Default | None = None
    false_reject_rate: Rate | None = None
    weight: Annotated[float, Meta(ge=0.0)] = 1.0
    frames_per_part: Annotated[int, Meta(ge=1, le=100)] = 1
    optional: bool = False


class Settings(Section, frozen=True):
    """All of line.toml."""

    kafka: Kafka = Kafka()
    store: Store = Store()
    worker: Worker = Worker()
    frames: Frames = Frames()
    pool: Pool = Pool()
    gate: Gate = Gate()
    weights: Weights = Weights()
    drift: Drift = Drift()
    refit: Refit = Refit()
    metrics: Metrics = Metrics()
    tracing: Tracing = Tracing()
    backbones: dict[str, Known] = msgspec.field(default_factory=dict)
    defaults: Defaults = Defaults()
    stations: dict[StationName, Station] = msgspec.field(default_factory=dict)

    def partitions(self) -> dict[str, int]:
        """Partition of each station: its own, else the lowest that is free, in the order of the file."""
        chosen = {name: s.partition for name, s in self.stations.items() if s.partition is not None}
        free = (p for p in range(10_000) if p not in set(chosen.values()))
        return {name: chosen[name] if name in chosen else next(free) for name in self.stations}

    def partition_count(self) -> int:
        """How many partitions the topics of frames and results need."""
        return max(self.partitions().values(), default=0) + 1

    def deadline_ms(self, station: str) -> int:
        """Milliseconds from capture to the gate at this station."""
        own = self.stations[station].deadline_ms if station in self.stations else None
        return own or self.defaults.deadline_ms

    def on_no_decision(self, station: str) -> Default:
        """What the gate does with a part of this station when there is no verdict in time."""
        own = self.stations[station].on_no_decision if station in self.stations else None
        return own or self.defaults.on_no_decision

    def false_reject_rate(self, station: str) -> float:
        """The share of good parts that this station may reject."""
        own = self.stations[station].false_reject_rate if station in self.stations else None
        return own or self.defaults.false_reject_rate

    def weights_files(self) -> dict[str, Path | None]:
        """Permitted backbones and their weights files."""
        return {name: Path(known.weights) if known.weights else None for name, known in self.backbones.items()}


def secret_file(named: str) -> Path:
    """Where a secret lies: a name without a folder is a credential that systemd passed on (LoadCredential=)."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(folder, named) if folder and "/" not in named else Path(named)


def read(path: Path, environment: Mapping[str, str] | None = None) -> Settings:
    """Read and check a `line.toml`.

    Args:
        path: the file.
        environment: where overrides are looked for; the process's own by default.

    Raises:
        ConfigError: the file cannot be read, or a value is wrong; every wrong value is listed with its path.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read settings {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        bare = isinstance(error, tomllib.TOMLDecodeError) and _BARE.search(path.read_text(encoding="utf-8"))
        hint = '; names with a slash want quotes: [stations."line-1/top"]' if bare else ""
        raise ConfigError(f"{path} is not TOML: {error}{hint}") from error
    return build(tree, source=str(path), environment=os.environ if environment is None else environment)


def build(tree: dict[str, Any], *, source: str = "settings", environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from a parsed tree plus overrides.

    Raises:
        ConfigError: as `read`.
    """
    tree = copy.deepcopy(tree)
    problems = list(overrides(tree, Settings, environment or {}, prefix=ENVIRONMENT_PREFIX))
    problems += problems_of(tree, Settings, "")
    if not problems:
        settings = msgspec.convert(tree, Settings, strict=True)
        problems += _contradictions(settings)
    if problems:
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in problems))
    return settings


def _contradictions(settings: Settings) -> Iterator[str]:
    """What is wrong between values that are right alone."""
    seen: dict[int, str] = {}
    for name, station in settings.stations.items():
        if station.partition is None:
            continue
        if station.partition in seen:
            yield f"stations.{name}.partition: {station.partition} is {seen[station.partition]}'s already"
        seen[station.partition] = name
    longest = settings.frames.deadline_max_ms
    for name in settings.stations:
        if settings.deadline_ms(name) > longest:
            yield f"stations.{name}: deadline_ms {settings.deadline_ms(name)} is above frames.deadline_max_ms {longest}"
    if settings.frames.keep_s * 1000 < longest:
        yield f"frames.keep_s: {settings.frames.keep_s} s is shorter than frames.deadline_max_ms {longest}"
    if settings.pool.quarantine_h >= 24 * settings.pool.keep_days:
        yield f"pool.quarantine_h: {settings.pool.quarantine_h} h outlasts pool.keep_days {settings.pool.keep_days}"
    yield from settings.refit.contradictions()
    if settings.kafka.tls and bool(settings.kafka.tls.cert_file) != bool(settings.kafka.tls.key_file):
        yield "kafka.tls: cert_file and key_file go together"
