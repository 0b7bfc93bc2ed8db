"""One model in one file, to carry to a plant without a network.

The file is a line of JSON (what it is, where it comes from, the model's size and sha256), then the model's own file. It
holds no paths and no links, and nothing in it is believed before its checksum is.
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from model_store.base import ModelStore
from model_store.codec import Encoded, decode
from model_store.records import ModelKey, Version, is_version, short
from pipeline.data import JSON
from pipeline.errors import ArtifactError

_FORMAT = "goldline-model-1"
_MOST_HEADER_BYTES = 1 << 20


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line; `sha256` is of the line's other fields, in canonical order, and so guards them too."""

    format: str
    station: str
    recipe: str
    version: str
    size_bytes: int
    lineage: dict[str, Any]
    sha256: str = ""


def export(store: ModelStore, key: ModelKey, version: Version, out: Path) -> None:
    """Write a version to a file, whole or not at all.

    Raises:
        ModelNotFound: no such version under this key.
        ArtifactError: it is damaged.
        OSError: the file cannot be written.
    """
    model = Encoded(store.get(key, version))
    if model.version != version:
        raise ArtifactError(f"model {short(version)} was written by another release: it cannot be repeated exactly")
    lineage = next(info.lineage.to_json() for info in store.versions(key) if info.version == version)
    bare = _Header(_FORMAT, key.station, key.recipe, version, model.size_bytes, dict(lineage))
    part = out.with_name(f".{out.name}.part")
    try:
        with part.open("wb") as file:
            file.write(msgspec.json.encode(msgspec.structs.replace(bare, sha256=_digest(bare))) + b"\n")
            for piece in model.pieces():
                file.write(piece)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def import_(
    store: ModelStore, file: Path, *, key: ModelKey | None = None, lineage: Mapping[str, JSON] | None = None
) -> tuple[ModelKey, Version]:
    """Put a carried model into a store; it is not promoted.

    Args:
        store: where to.
        file: from `export`.
        key: another station or recipe than the file names.
        lineage: added to what the file says.

    Raises:
        ArtifactError: no such file of ours, or it is damaged.
        ConfigError: it names a station that cannot be.
    """
    with file.open("rb") as opened:
        line = opened.readline(_MOST_HEADER_BYTES + 1)
        try:
            header = msgspec.json.decode(line, type=_Header)
        except ValueError as error:
            raise ArtifactError(f"{file.name} is no exported model: {error}") from error
        if header.format != _FORMAT or not is_version(header.version):
            raise ArtifactError(f"{file.name} is no exported model that this release reads")
        if header.sha256 != _digest(msgspec.structs.replace(header, sha256="")):
            raise ArtifactError(f"{file.name} is damaged: its first line has another checksum")
        left = file.stat().st_size - len(line)
        if left != header.size_bytes:
            raise ArtifactError(f"{file.name} is damaged: {left} bytes follow, {header.size_bytes} should")
        target = key or ModelKey(header.station, header.recipe)
        with TemporaryDirectory(prefix="goldline-") as folder:
            model = Path(folder, header.version)  # on disk a model is mapped: in memory it would be there twice
            with model.open("wb") as copy:
                shutil.copyfileobj(opened, copy)
            artifact = decode(model, Version(header.version))
            version = store.put(target, artifact, lineage={**header.lineage, **(lineage or {})})
    return target, version


def _digest(header: _Header) -> str:
    return hashlib.sha256(msgspec.json.encode(header, order="deterministic")).hexdigest()
