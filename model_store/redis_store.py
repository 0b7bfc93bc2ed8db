"""Models in Redis: stored there, kept on each line server's disk once seen, searched in the worker.

Keys, all under a prefix (`goldline`)::

    PREFIX:models.v1                        marker: tells "no models yet" from "flushed" or "another server"
    PREFIX:object:VERSION                   manifest: size, sha256 of each chunk
    PREFIX:object:VERSION:N                 chunk N, 8 MiB
    PREFIX:versions:STATION:RECIPE          hash, version -> size and lineage
    PREFIX:promotions:STATION:RECIPE        list, only ever appended to; its last entry's version is current
    PREFIX:keys                             set of "STATION RECIPE"

A version's chunks come before its manifest, and that before its entry: who finds an entry finds a whole model. A
promotion is one script that compares what is current and appends, so that of several at once one wins. Redis should
have `maxmemory-policy noeviction`: an evicted chunk is a damaged model.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import redis

from model_store.base import Lineage, ModelInfo, ModelKey, Promotion, Version, is_version, short
from model_store.cache import Cache
from model_store.codec import canonical, decode, encode, version_of_bytes
from pipeline.data import JSON, Artifact
from pipeline.errors import ArtifactError, ConfigError, ModelNotFound, PromotionConflict, StoreUnavailable

CHUNK_BYTES = 8 << 20
MOST_BYTES = 64 << 30

# KEYS: promotions. ARGV: what must be current ("" for nothing), the new entry. Returns the version that is current.
_APPEND = """
local last = redis.call('LINDEX', KEYS[1], -1)
local found = last and cjson.decode(last)['version'] or ''
if found ~= ARGV[1] then return found end
redis.call('RPUSH', KEYS[1], ARGV[2])
return cjson.decode(ARGV[2])['version']
"""


class _Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model's chunks are."""

    size_bytes: int
    chunk_bytes: int
    sha256: list[str]


class _Entry(msgspec.Struct, frozen=True):
    """A version under a key, known without reading the model."""

    size_bytes: int
    lineage: dict[str, Any]


class RedisStore:
    """A ModelStore in Redis. Safe to use from threads and processes, on one machine or many.

    Args:
        client: of a Redis server; binary answers.
        cache: where this machine keeps the models that it has seen.
        prefix: of all keys.
    """

    def __init__(self, client: "redis.Redis[bytes]", cache: Cache, prefix: str = "goldline") -> None:
        self._redis = client
        self._cache = cache
        self._prefix = prefix
        self._append = client.register_script(_APPEND)

    def put(self, key: ModelKey, artifact: Artifact, *, lineage: Mapping[str, JSON] | None = None) -> Version:
        """Store a model, or mend it where the stored copy is damaged; see `ModelStore.put`.

        Memory: one more copy of the model, as it is encoded.
        """
        data = encode(artifact)
        version = version_of_bytes(data)
        known = {"created_at": _now().isoformat(), **(lineage or {})}
        entry = {"size_bytes": len(data), "lineage": Lineage.from_json(known).to_json()}
        chunks = [memoryview(data)[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
        manifest = _Manifest(len(data), CHUNK_BYTES, [hashlib.sha256(chunk).hexdigest() for chunk in chunks])
        with self._server():
            self._redis.setnx(self._key("models.v1"), b"1")
            for place, chunk in enumerate(chunks):
                name = self._key("object", version, str(place))
                stored = self._redis.get(name)
                if stored is None or hashlib.sha256(stored).hexdigest() != manifest.sha256[place]:
                    self._redis.set(name, bytes(chunk))
            self._redis.set(self._key("object", version), msgspec.json.encode(manifest))
            self._redis.hsetnx(self._of("versions", key), version, canonical(entry))
            self._redis.sadd(self._key("keys"), f"{key.station} {key.recipe}")
        return version

    def get(self, key: ModelKey, version: Version) -> Artifact:
        """The model, from this machine's disk where it has been seen, else fetched; see `ModelStore.get`."""
        try:
            self._require(key, version)
        except StoreUnavailable:
            seen = self._cache.find(version) if is_version(version) else None
            if seen is None:
                raise
            return decode(seen, version)
        return decode(self._cache.find(version) or self._cache.keep(version, self._chunks(version)), version)

    def current(self, key: ModelKey) -> Version | None:
        """The version of the last promotion."""
        with self._mounted():
            last = self._redis.lindex(self._of("promotions", key), -1)
        version = self._promotion(key, last).version if last is not None else None
        self._cache.remember(key, version)
        return version

    def remembered(self, key: ModelKey) -> Version | None:
        """What was current when this machine last asked; see `ModelStore.remembered`."""
        return self._cache.remembered(key)

    def promote(self, key: ModelKey, version: Version, *, expected: Version | None, who: str, why: str = "") -> None:
        """Append a promotion if `expected` is current; see `ModelStore.promote`."""
        if not who.strip():
            raise ConfigError("a promotion needs a name: who promotes?")
        found = self.current(key)
        if found != expected:
            raise _conflict(key, found, expected)
        self._verify(key, version)  # a damaged candidate never becomes current
        if version == found:
            return
        promotion = Promotion(version=version, previous=found, at=_now(), who=who, why=why)
        try:
            record = msgspec.json.encode(promotion)
        except UnicodeEncodeError as error:
            raise ConfigError(f"who and why must be text: {error}") from error
        with self._mounted():
            answer = self._append(keys=[self._of("promotions", key)], args=[expected or "", record])
        if answer.decode() != version:
            raise _conflict(key, Version(answer.decode()), expected)

    def history(self, key: ModelKey) -> list[Promotion]:
        """All promotions, oldest first."""
        with self._mounted():
            entries = self._redis.lrange(self._of("promotions", key), 0, -1)
        return [self._promotion(key, entry) for entry in entries]

    def versions(self, key: ModelKey) -> list[ModelInfo]:
        """All stored versions, oldest first by lineage."""
        current = self.current(key)
        with self._mounted():
            entries = self._redis.hgetall(self._of("versions", key))
        found = []
        for name, text in entries.items():
            version = Version(name.decode("ascii", "replace"))
            if is_version(version):
                try:
                    entry = msgspec.json.decode(text, type=_Entry)
                    lineage = Lineage.from_json(entry.lineage)
                except (ValueError, ArtifactError) as error:
                    raise ArtifactError(f"{key}: {short(version)} has no readable entry: {error}") from error
                found.append(
                    ModelInfo(version=version, size_bytes=entry.size_bytes, lineage=lineage, current=version == current)
                )
        return sorted(found, key=lambda info: (info.lineage.created_at, info.version))

    def keys(self) -> list[ModelKey]:
        """Every key that has a version."""
        with self._mounted():
            names = self._redis.smembers(self._key("keys"))
        found = []
        for name in names:
            station, _, recipe = name.decode("utf-8", "replace").partition(" ")
            found.append(ModelKey(station, recipe))
        return sorted(found)

    def _verify(self, key: ModelKey, version: Version) -> None:
        """What Redis holds is whole, whatever this machine's disk holds."""
        self._require(key, version)
        digest = hashlib.sha256()
        for chunk in self._chunks(version):
            digest.update(chunk)
        if digest.hexdigest() != version:
            raise ArtifactError(f"model {short(version)} is damaged: its content is {digest.hexdigest()[:12]}")

    def _require(self, key: ModelKey, version: Version) -> None:
        with self._mounted():
            known = is_version(version) and self._redis.hexists(self._of("versions", key), version)
        if not known:
            raise ModelNotFound(f"{key} has no version {short(version)!r}")

    def _chunks(self, version: Version) -> Iterator[bytes]:
        """The model, piece by piece, each checked.

        Raises:
            ArtifactError: a piece is gone or damaged.
        """
        with self._mounted():
            text = self._redis.get(self._key("object", version))
        if text is None:
            raise ArtifactError(f"model {short(version)}: its manifest is gone")
        try:
            manifest = msgspec.json.decode(text, type=_Manifest)
        except ValueError as error:
            raise ArtifactError(f"model {short(version)} has no readable manifest: {error}") from error
        if not 0 < manifest.size_bytes <= MOST_BYTES:
            raise ArtifactError(f"model {short(version)} claims {manifest.size_bytes} bytes; at most {MOST_BYTES}")
        for place, wanted in enumerate(manifest.sha256):
            with self._mounted():
                chunk = self._redis.get(self._key("object", version, str(place)))
            if chunk is None:
                raise ArtifactError(f"model {short(version)}: chunk {place} is gone; was it evicted?")
            if (found := hashlib.sha256(chunk).hexdigest()) != wanted:
                raise ArtifactError(f"model {short(version)}: chunk {place} is damaged, its content is {found[:12]}")
            yield chunk

    def _promotion(self, key: ModelKey, text: bytes) -> Promotion:
        try:
            return msgspec.json.decode(text, type=Promotion)
        except ValueError as error:
            raise ArtifactError(f"{key}: an entry of the promotions is none: {error}") from error

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    def _of(self, kind: str, key: ModelKey) -> str:
        return self._key(kind, key.station, key.recipe)

    @contextmanager
    def _mounted(self) -> Iterator[None]:
        """Reading: there must be a store, and the client's errors are ours."""
        with self._server():
            if not self._redis.exists(self._key("models.v1")):
                raise StoreUnavailable(
                    f"this Redis holds no models under {self._prefix!r}: was it flushed? Put them "
                    "back with `goldline models import`, or by fitting anew"
                )
            yield

    @contextmanager
    def _server(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            # The client's words hold host and port, never the password.
            raise StoreUnavailable(f"model store in Redis: {error}") from error


def _now() -> datetime:
    return datetime.now(UTC)


def _conflict(key: ModelKey, found: Version | None, expected: Version | None) -> PromotionConflict:
    was, wanted = (short(version) if version else "nothing" for version in (found, expected))
    return PromotionConflict(f"{key}: {was} is current, not {wanted}; look at it, then promote again")
