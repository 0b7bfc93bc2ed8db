"""Models in Redis: each in chunks with their checksums, and a manifest that lists them."""

import hashlib
from collections.abc import Iterable, Iterator

import msgspec
import redis

from model_store.codec import Encoded
from model_store.records import Version, is_version, short
from model_store.redis_client import answering
from pipeline.errors import ArtifactError

CHUNK_BYTES = 8 << 20
MOST_BYTES = 64 << 30
_NAMES_AT_ONCE = 1000


class _Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model's chunks are."""

    size_bytes: int
    chunk_bytes: int
    sha256: list[str]


class Objects:
    """The models under a prefix, by version alone: whose they are, the store knows."""

    def __init__(self, client: "redis.Redis[bytes]", prefix: str) -> None:
        self._redis = client
        self._prefix = f"{prefix}:object:"

    def write(self, model: Encoded) -> None:
        """Write what is missing or damaged: chunk by chunk, the manifest last."""
        sums = [hashlib.sha256(chunk).hexdigest() for chunk in _chunks(model, CHUNK_BYTES)]
        for place, chunk in enumerate(_chunks(model, CHUNK_BYTES)):
            name = self._chunk(model.version, place)
            stored = self._redis.get(name)
            if stored is None or hashlib.sha256(stored).hexdigest() != sums[place]:
                self._redis.set(name, chunk)
        manifest = _Manifest(model.size_bytes, CHUNK_BYTES, sums)
        self._redis.set(self._prefix + model.version, msgspec.json.encode(manifest))

    def names(self, model: Encoded) -> list[str]:
        """Every key that this model takes."""
        count = -(-model.size_bytes // CHUNK_BYTES)
        return [self._prefix + model.version, *(self._chunk(model.version, place) for place in range(count))]

    def read(self, version: Version) -> Iterator[bytes]:
        """The model, piece by piece, each checked.

        Raises:
            ArtifactError: a piece is gone or damaged.
            StoreUnavailable: Redis does not answer.
        """
        with answering():
            text = self._redis.get(self._prefix + version)
        if text is None:
            raise ArtifactError(f"model {short(version)}: its manifest is gone")
        try:
            manifest = msgspec.json.decode(text, type=_Manifest)
        except ValueError as error:
            raise ArtifactError(f"model {short(version)} has no readable manifest: {error}") from error
        if not 0 < manifest.size_bytes <= MOST_BYTES:
            raise ArtifactError(f"model {short(version)} claims {manifest.size_bytes} bytes; at most {MOST_BYTES}")
        for place, wanted in enumerate(manifest.sha256):
            with answering():
                chunk = self._redis.get(self._chunk(version, place))
            if chunk is None:
                raise ArtifactError(f"model {short(version)}: chunk {place} is gone; was it evicted?")
            if (found := hashlib.sha256(chunk).hexdigest()) != wanted:
                raise ArtifactError(f"model {short(version)}: chunk {place} is damaged, its content is {found[:12]}")
            yield chunk

    def verify(self, version: Version) -> None:
        """What Redis holds is whole.

        Raises:
            ArtifactError: it is not.
        """
        digest = hashlib.sha256()
        for chunk in self.read(version):
            digest.update(chunk)
        if digest.hexdigest() != version:
            raise ArtifactError(f"model {short(version)} is damaged: its content is {digest.hexdigest()[:12]}")

    def stored(self) -> dict[Version, list[str]]:
        """Every model of which there is anything, with the keys that it takes."""
        found: dict[Version, list[str]] = {}
        for raw in self._redis.scan_iter(match=f"{self._prefix}*", count=_NAMES_AT_ONCE):
            name = raw.decode("utf-8", "replace")
            version = name.removeprefix(self._prefix).partition(":")[0]
            if is_version(version):
                found.setdefault(Version(version), []).append(name)
        return found

    def size_bytes(self, names: Iterable[str]) -> int:
        """What these keys hold."""
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.strlen(name)
            return sum(pipe.execute())

    def _chunk(self, version: Version, place: int) -> str:
        return f"{self._prefix}{version}:{place}"


def _chunks(model: Encoded, size_bytes: int) -> Iterator[bytes]:
    """The model's file in pieces of one size, the last one shorter."""
    chunk = bytearray()
    for piece in model.pieces():
        view = memoryview(piece)
        while view:
            taken = view[: size_bytes - len(chunk)]
            chunk += taken
            view = view[len(taken) :]
            if len(chunk) == size_bytes:
                yield bytes(chunk)
                chunk.clear()
    if chunk:
        yield bytes(chunk)
