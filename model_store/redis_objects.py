"""Models in Redis: each in chunks with their checksums, and a manifest that lists them."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import redis

from model_store.codec import Encoded
from model_store.records import Swept, Version, is_version, short
from model_store.redis_client import answering
from pipeline.errors import ArtifactError

CHUNK_BYTES = 8 << 20
MOST_BYTES = 64 << 30
_NAMES_AT_ONCE = 1000
_DEAD_AFTER_S = 24 * 3600.0  # a put that has not arrived by then never will


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
        self._puts = f"{prefix}:puts"

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

    def announce(self, name: str) -> None:
        """Say that a model is being put, by a name that begins with its version: no sweep takes it until it arrived."""
        self._redis.hset(self._puts, name, time.time())

    def arrived(self, name: str, pipe: Any) -> None:
        """Take the announcement back, with whatever else happens in this transaction."""
        pipe.hdel(self._puts, name)

    def sweep(self, index: str, entries: Callable[[], list[str]], *, dry_run: bool) -> list[Swept]:
        """Delete models that no entry names and nobody is putting.

        Args:
            index: the key that changes when a hash of entries is added.
            entries: the hashes of entries that there are, each by version.
            dry_run: only say which.
        """
        swept = []
        for version, names in sorted(self._stored().items()):

            def drop(pipe: Any, version: Version = version, names: list[str] = names) -> bool:
                hashes = entries()
                if hashes:
                    pipe.watch(*hashes)
                puts = {name: float(at) for name, at in pipe.hgetall(self._puts).items()}
                mine = [name for name in puts if name.decode("ascii", "replace").startswith(version)]
                in_progress = any(puts[name] > time.time() - _DEAD_AFTER_S for name in mine)
                if in_progress or any(pipe.hexists(each, version) for each in hashes):
                    return False
                pipe.multi()
                if not dry_run:
                    pipe.unlink(*names)
                    for name in mine:
                        pipe.hdel(self._puts, name)
                return True

            size_bytes = self._size_bytes(names)
            if self._redis.transaction(drop, index, self._puts, value_from_callable=True):
                swept.append(Swept(where="store", version=version, size_bytes=size_bytes))
        return swept

    def _stored(self) -> dict[Version, list[str]]:
        """Every model of which there is anything, with the keys that it takes."""
        found: dict[Version, list[str]] = {}
        for raw in self._redis.scan_iter(match=f"{self._prefix}*", count=_NAMES_AT_ONCE):
            name = raw.decode("utf-8", "replace")
            version = name.removeprefix(self._prefix).partition(":")[0]
            if is_version(version):
                found.setdefault(Version(version), []).append(name)
        return found

    def _size_bytes(self, names: Iterable[str]) -> int:
        """What the chunks among these keys hold: for a whole model its size."""
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                if ":" in name.removeprefix(self._prefix):
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
