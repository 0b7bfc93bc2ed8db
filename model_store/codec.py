"""A model as one file: safetensors, whose header carries the method and its meta as canonical JSON.

Encoding is deterministic, so a model's version is simply the sha256 of its file: whoever holds the bytes can
check the name, with `sha256sum` if need be. Who made it and when is lineage, kept beside it: otherwise the
same model fitted twice would be two versions.

Decoding trusts nothing: first the checksum, then the header's length, then every entry of it, and only then
the tensors. Nothing is ever unpickled, and nothing read here causes an import.
"""

import ctypes
import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load, load_file

from model_store.records import Version, is_version, short
from pipeline.data import Artifact
from pipeline.errors import ArtifactError

FORMAT = 1
MAX_HEADER_BYTES = 16 * 2**20

_METADATA = "__metadata__"  # safetensors' name for the part of its header that is free
_OURS = "goldline"  # the only key in it: with several, safetensors writes them in random order
_ALIGNED_BYTES = 8
_TRIES = 3
# torch's name -> safetensors', in the order in which tensors lie in a file: the widest first, so that each is aligned.
_DTYPES = {
    "torch.int64": "I64",
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.int32": "I32",
    "torch.bfloat16": "BF16",
    "torch.float16": "F16",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
_ORDER = {name: place for place, name in enumerate(_DTYPES)}
_BAD_TENSORS = (SafetensorError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError)


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor in the header. Whether offsets and sizes fit together, safetensors checks."""

    dtype: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
    shape: list[Annotated[int, msgspec.Meta(ge=0, lt=2**40)]]
    data_offsets: tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0)]]


class _Ours(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What Goldline writes beside the tensors."""

    format: Literal[1]
    method: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    meta: dict[str, Any]


def canonical(value: object) -> str:
    """JSON with sorted keys, no spaces, ASCII only: equal values give equal text.

    Raises:
        ArtifactError: not JSON; that includes NaN, infinities and keys that are not strings.
    """
    try:
        return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"not JSON: {error}") from error


class Encoded:
    """A model's file, piece by piece, out of the tensors' own memory: a bank is large, and copies of it are dear.

    The same content gives the same bytes, whatever the order of its mappings, and they are the ones that safetensors
    writes.

    Args:
        artifact: what to encode; its tensors may not change meanwhile.

    Raises:
        ArtifactError: a meta that is not JSON, or a tensor that is sparse or of a dtype not stored.
    """

    def __init__(self, artifact: Artifact) -> None:
        ours = {"format": FORMAT, "method": artifact.method, "meta": artifact.meta}
        entries: dict[str, Any] = {_METADATA: {_OURS: canonical(ours)}}
        self._tensors: list[Any] = []
        at = 0
        try:
            for name, tensor in sorted(_storable(artifact.tensors), key=_place):
                end = at + tensor.nbytes
                dtype = _DTYPES[str(tensor.dtype)]
                entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
                self._tensors.append(tensor)
                at = end
            header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        except _BAD_TENSORS as error:
            raise ArtifactError(f"{artifact.method}: these tensors cannot be stored: {error}") from error
        header += b" " * (-len(header) % _ALIGNED_BYTES)
        self._head = struct.pack("<Q", len(header)) + header
        self.size_bytes = len(self._head) + at
        _check_header(BytesIO(self._head), self.size_bytes)  # what cannot be read back must not be written

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The file from its beginning, each time anew."""
        yield self._head
        for tensor in self._tensors:
            yield _bytes_of(tensor)

    @cached_property
    def version(self) -> Version:
        """The model's name: sha256 of its file, 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece)
        return Version(digest.hexdigest())


def encode(artifact: Artifact) -> bytes:
    """The model's file in one; see `Encoded`."""
    return b"".join(Encoded(artifact).pieces())


def version_of(artifact: Artifact) -> Version:
    """The model's name: sha256 of its file, 64 hexadecimal digits."""
    return Encoded(artifact).version


def decode(source: bytes | Path, expected: Version) -> Artifact:
    """The model in a file, if it is the one expected.

    From a path the tensors are memory-mapped: processes share them, and nobody may edit the file in place.

    Args:
        source: the file's bytes, or where it lies.
        expected: the version, which is the sha256 that the bytes must have.

    Raises:
        ArtifactError: another checksum, or not a model of ours; nothing of it was used.
        OSError: the path cannot be read.
    """
    if not is_version(expected):
        raise ArtifactError(f"a version is 64 hexadecimal digits, not {short(expected)!r}")
    try:
        if isinstance(source, bytes):
            _check_sum(BytesIO(source), expected)
            ours, names = _check_header(BytesIO(source), len(source))
            tensors = load(source)
        else:
            ours, names, tensors = _mapped(source, expected)
    except ArtifactError as error:
        raise ArtifactError(f"model {short(expected)}: {error}") from error
    except _BAD_TENSORS as error:
        raise ArtifactError(f"model {short(expected)}: its tensors cannot be read: {error}") from error
    return Artifact(method=ours.method, tensors={name: tensors[name] for name in names}, meta=ours.meta)


def verify(path: Path, expected: Version) -> None:
    """Check a file's bytes against its name, without loading it.

    Raises:
        ArtifactError: another checksum.
        OSError: the path cannot be read.
    """
    with path.open("rb") as file:
        _check_sum(file, expected)


def _mapped(path: Path, expected: Version) -> tuple[_Ours, list[str], dict[str, Any]]:
    """The checked header and the mapped tensors. safetensors opens the path anew: both must be one file.

    Another process may put the same model there meanwhile, so it is tried again before it is an error.
    """
    for _ in range(_TRIES):
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            _check_sum(file, expected)
            file.seek(0)
            ours, names = _check_header(file, before.st_size)
            tensors: dict[str, Any] = load_file(path)
        if _identity(before) == _identity(path.stat()):
            return ours, names, tensors
    raise ArtifactError(f"{path} changed while it was read")


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    # Not the time of its last change: a put or a reader of the same model sets it.
    return stat.st_dev, stat.st_ino, stat.st_size


def _check_sum(file: BinaryIO, expected: Version) -> None:
    seen = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if seen != expected:
        raise ArtifactError(f"damaged: its bytes have sha256 {short(seen)}, not {short(expected)}")


def _check_header(file: BinaryIO, size_bytes: int) -> tuple[_Ours, list[str]]:
    """What the header says of the model, and the tensors' names in order.

    Raises:
        ArtifactError: what is wrong, without the version.
    """
    prefix = file.read(8)
    if len(prefix) < 8:
        raise ArtifactError(f"not a model: {size_bytes} bytes, too few for a header")
    (length,) = struct.unpack("<Q", prefix)
    limit = min(MAX_HEADER_BYTES, size_bytes - 8)
    if length > limit:
        raise ArtifactError(f"not a model: a header of {length} bytes, at most {limit} are possible")
    try:
        entries = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(entries.pop(_METADATA, b"{}"), type=dict[str, str])
        for entry in entries.values():
            msgspec.json.decode(entry, type=_Entry)
        text = metadata.pop(_OURS, None)
        if text is None or metadata:
            raise ArtifactError(f"not a model: its metadata must hold {_OURS!r} and no more")
        found = json.loads(text, parse_constant=_refuse_constant)
        ours = msgspec.convert(found, type=_Ours)
    except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
        raise ArtifactError(f"not a model this Goldline reads: {error}") from error
    if canonical(found) != text:
        raise ArtifactError("not a model: its meta is not canonical JSON")
    return ours, sorted(entries)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _storable(tensors: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Tensors as they are stored: on the CPU, contiguous."""
    for name, tensor in tensors.items():
        dtype = str(getattr(tensor, "dtype", type(tensor).__name__))
        if dtype not in _DTYPES:
            raise TypeError(f"{name!r} is {dtype}, stored are {', '.join(sorted(_DTYPES))}")
        if str(tensor.layout) != "torch.strided":
            raise TypeError(f"{name!r} is {tensor.layout}, not a dense tensor")
        if name == _METADATA:
            raise ValueError(f"{name!r} cannot name a tensor")
        yield name, tensor.detach().cpu().contiguous().resolve_neg()


def _place(named: tuple[str, Any]) -> tuple[int, bytes]:
    name, tensor = named
    return _ORDER[str(tensor.dtype)], name.encode()


def _bytes_of(tensor: Any) -> memoryview:
    """The memory that a contiguous tensor stands on."""
    if not tensor.nbytes:
        return memoryview(b"")
    memory = (ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())
    memory.tensor = tensor  # which must not go before its memory
    return memoryview(memory).cast("B")


def _plain(value: Any) -> Any:
    """The same JSON with any Mapping as a dict. A key such as 1 would silently become text: refused."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"keys are str, not {sorted({type(key).__name__ for key in value})}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
