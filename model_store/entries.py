"""What a store writes beside the models, the same in every store: a version's entry, the lines of its logs."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from model_store.codec import canonical
from model_store.records import Lineage, Marking, ModelInfo, Promotion, Version
from pipeline.data import JSON
from pipeline.errors import ArtifactError, ConfigError

Line = TypeVar("Line", Promotion, Marking)


class _Entry(msgspec.Struct, frozen=True):
    """What is known of a version without reading the model."""

    size_bytes: int
    lineage: dict[str, Any]


def now() -> datetime:
    """By this machine's clock, in UTC."""
    return datetime.now(UTC)


def new_entry(size_bytes: int, lineage: Mapping[str, JSON] | None) -> bytes:
    """The entry of a version that is put now.

    Raises:
        ArtifactError: the lineage is not JSON, or a field has another type than it should.
    """
    known = Lineage.from_json({"created_at": now().isoformat(), **(lineage or {})})
    return canonical({"size_bytes": size_bytes, "lineage": known.to_json()}).encode()


def read_entry(text: bytes, version: Version, *, current: bool, used_at: datetime, where: str) -> ModelInfo:
    """A version as its entry describes it.

    Raises:
        ArtifactError: it is no entry; the message says `where` it lies.
    """
    try:
        entry = msgspec.json.decode(text, type=_Entry)
        lineage = Lineage.from_json(entry.lineage)
    except (ValueError, ArtifactError) as error:
        raise ArtifactError(f"{where} does not describe a model: {error}") from error
    return ModelInfo(version=version, size_bytes=entry.size_bytes, lineage=lineage, current=current, used_at=used_at)


def new_line(line: Promotion | Marking) -> bytes:
    """A line of a log as it is kept.

    Raises:
        ConfigError: nobody signs it, or what people wrote is no text.
    """
    if not line.who.strip():
        raise ConfigError("a change needs a name: who makes it?")
    try:
        return msgspec.json.encode(line, order="deterministic")
    except UnicodeEncodeError as error:
        raise ConfigError(f"who and why must be text: {error}") from error


def read_line(text: bytes, kind: type[Line], where: str) -> Line:
    """A line of a log.

    Raises:
        ArtifactError: it is none; the message says `where` it lies.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (ValueError, ConfigError) as error:
        raise ArtifactError(f"{where} is no {kind.__name__.lower()}: {error}") from error
