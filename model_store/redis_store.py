"""Models in Redis: stored there, kept on each line server's disk once seen, searched in the worker.

Keys, all under a prefix (`goldline`)::

    PREFIX:models.v1                        marker: tells "no models yet" from "flushed" or "another server"
    PREFIX:object:VERSION                   manifest: size, sha256 of each chunk
    PREFIX:object:VERSION:N                 chunk N, 8 MiB
    PREFIX:versions:STATION:RECIPE          hash, version -> size and lineage
    PREFIX:used:STATION:RECIPE              hash, version -> Unix time of its last use, within a day
    PREFIX:promotions:STATION:RECIPE        list, only ever appended to; its last entry's version is current
    PREFIX:marks:STATION:RECIPE             list, only ever appended to; its last entry's marks hold
    PREFIX:keys                             set of "STATION RECIPE"
    PREFIX:puts                             hash, puts in progress, or that died -> Unix time

A version's chunks come before its manifest, and that before its entry: who finds an entry finds a whole model. Whatever
depends on what was read (a promotion, marks, the entry of a put, a deletion) is a transaction that watches it: of
several one wins, the others look again. Redis should have `maxmemory-policy noeviction`: an evicted chunk is damage.
"""

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import redis

from model_store.base import marks_conflict, promotion_conflict, read_whole
from model_store.cache import Cache
from model_store.codec import Encoded, decode
from model_store.entries import new_entry, new_line, now, read_entry, read_line
from model_store.lifecycle import kept_because
from model_store.records import Marking, Marks, ModelInfo, ModelKey, Promotion, Swept, Version, is_version, short
from model_store.redis_client import answering
from model_store.redis_objects import Objects
from pipeline.data import JSON, Artifact
from pipeline.errors import ConfigError, ModelNotFound, StoreUnavailable

_TOUCH_AFTER_S = 24 * 3600.0
_PUT_TRIES = 5


class RedisStore:
    """A ModelStore in Redis. Safe to use from threads and processes, on one machine or many.

    Args:
        client: of a Redis server; binary answers.
        cache: where this machine keeps the models that it has seen.
        prefix: of all keys.
    """

    def __init__(self, client: "redis.Redis[bytes]", cache: Cache, prefix: str = "goldline") -> None:
        if not re.fullmatch(r"[\w.-]{1,100}", prefix):
            raise ConfigError(f"a prefix is letters, digits, '.', '_' and '-', not {prefix[:60]!r}")
        self._redis = client
        self._cache = cache
        self._prefix = prefix
        self._objects = Objects(client, prefix)

    def put(self, key: ModelKey, artifact: Artifact, *, lineage: Mapping[str, JSON] | None = None) -> Version:
        """Store a model, or mend it where the stored copy is damaged; see `ModelStore.put`."""
        model = Encoded(artifact)
        entry = new_entry(model.size_bytes, lineage)
        names, announced = self._objects.names(model), f"{model.version}:{secrets.token_hex(8)}"

        def enter(pipe: Any) -> bool:
            """The entry, if the model that it is to name is still whole."""
            if pipe.exists(*names) < len(names):
                return False
            pipe.multi()
            pipe.hsetnx(self._of("versions", key), model.version, entry)
            pipe.hset(self._of("used", key), model.version, now().timestamp())
            pipe.sadd(self._key("keys"), f"{key.station} {key.recipe}")
            self._objects.arrived(announced, pipe)
            return True

        with answering():
            self._redis.setnx(self._key("models.v1"), b"1")
            for _ in range(_PUT_TRIES):
                self._objects.announce(announced)
                self._objects.write(model)
                if self._redis.transaction(enter, *names, value_from_callable=True):
                    return model.version
        raise StoreUnavailable(f"model {short(model.version)} was deleted {_PUT_TRIES} times while it was put")

    def get(self, key: ModelKey, version: Version) -> Artifact:
        """The model, from this machine's disk where it has been seen, else fetched; see `ModelStore.get`."""
        try:
            self._require(key, version)
        except StoreUnavailable:
            seen = self._cache.find(version) if is_version(version) else None
            if seen is None:
                raise
            return decode(seen, version)
        self._touch(key, version)

        def load() -> Artifact:
            found = self._cache.find(version) or self._cache.keep(version, self._objects.read(version))
            return decode(found, version)

        return read_whole(load, lambda: self._require(key, version))

    def current(self, key: ModelKey) -> Version | None:
        """The version of the last promotion."""
        with self._mounted():
            last = self._redis.lindex(self._of("promotions", key), -1)
        version = self._line(key, last, Promotion).version if last is not None else None
        self._cache.remember(key, version)
        return version

    def remembered(self, key: ModelKey) -> Version | None:
        """What was current when this machine last asked; see `ModelStore.remembered`."""
        return self._cache.remembered(key)

    def promote(self, key: ModelKey, version: Version, *, expected: Version | None, who: str, why: str = "") -> None:
        """Append a promotion if `expected` is current; see `ModelStore.promote`."""
        found = self.current(key)
        if found != expected:
            raise promotion_conflict(key, found, expected)
        self._require(key, version)
        # A damaged candidate never becomes current.
        read_whole(lambda: self._objects.verify(version), lambda: self._require(key, version))
        line = new_line(Promotion(version=version, previous=expected, at=now(), who=who, why=why))
        log, versions = self._of("promotions", key), self._of("versions", key)

        def append(pipe: Any) -> None:
            last = pipe.lindex(log, -1)
            found = self._line(key, last, Promotion).version if last is not None else None
            if found != expected:
                raise promotion_conflict(key, found, expected)
            self._known(key, [version], pipe)
            pipe.multi()
            if version != found:
                pipe.rpush(log, line)

        self._change(append, log, versions)

    def history(self, key: ModelKey) -> list[Promotion]:
        """All promotions, oldest first."""
        with self._mounted():
            entries = self._redis.lrange(self._of("promotions", key), 0, -1)
        return [self._line(key, entry, Promotion) for entry in entries]

    def marks(self, key: ModelKey) -> Marks:
        """Those of the last line."""
        with self._mounted():
            return self._marks(key, self._redis)

    def mark(self, key: ModelKey, marks: Marks, *, expected: Marks, who: str, why: str = "") -> None:
        """Append a line if the marks are as `expected`; see `ModelStore.mark`."""
        line = new_line(Marking(marks=marks, at=now(), who=who, why=why))
        log, versions = self._of("marks", key), self._of("versions", key)

        def append(pipe: Any) -> None:
            found = self._marks(key, pipe)
            if found != expected:
                raise marks_conflict(key)
            self._known(key, marks.named - found.named, pipe)
            pipe.multi()
            if marks != found:
                pipe.rpush(log, line)

        self._change(append, log, versions)

    def markings(self, key: ModelKey) -> list[Marking]:
        """All changes of the marks, oldest first."""
        with self._mounted():
            entries = self._redis.lrange(self._of("marks", key), 0, -1)
        return [self._line(key, entry, Marking) for entry in entries]

    def versions(self, key: ModelKey) -> list[ModelInfo]:
        """All stored versions, oldest first by lineage."""
        current = self.current(key)
        with self._mounted():
            entries = self._redis.hgetall(self._of("versions", key))
            used = self._redis.hgetall(self._of("used", key))
        found = []
        for name, text in entries.items():
            version = Version(name.decode("ascii", "replace"))
            if is_version(version):
                used_at = _time(used.get(name))
                where = f"{key}: the entry of {short(version)}"
                found.append(read_entry(text, version, current=version == current, used_at=used_at, where=where))
        return sorted(found, key=lambda info: (info.lineage.created_at, info.version))

    def keys(self) -> list[ModelKey]:
        """Every key that has a version."""
        with self._mounted():
            return sorted(key for key in self._all_keys() if self._redis.exists(self._of("versions", key)))

    def delete(self, key: ModelKey, version: Version, *, unused_since: datetime) -> str:
        """Remove a version's entry, if nothing of what could keep it changes meanwhile; see `ModelStore.delete`."""
        watched = [self._of(kind, key) for kind in ("versions", "used", "promotions", "marks")]
        versions, used, promotions, _ = watched

        def remove(pipe: Any) -> str:
            self._known(key, [version], pipe)
            kept = kept_because(
                version,
                used_at=_time(pipe.hget(used, version)),
                history=[self._line(key, line, Promotion) for line in pipe.lrange(promotions, 0, -1)],
                marks=self._marks(key, pipe),
                unused_since=unused_since,
            )
            pipe.multi()
            if not kept:
                pipe.hdel(versions, version)
                pipe.hdel(used, version)
            return kept

        return str(self._change(remove, *watched))

    def sweep(self, *, unused_since: datetime, dry_run: bool = False) -> list[Swept]:
        """Delete models that no key names, and this machine's old copies; see `ModelStore.sweep`."""
        with self._mounted():
            swept = self._objects.sweep(self._key("keys"), self._entries, dry_run=dry_run)
        return swept + self._cache.sweep(unused_since=unused_since, dry_run=dry_run)

    def _change(self, change: Callable[[Any], object], *watched: str) -> object:
        """Do it in a transaction, again and again until nobody changes meanwhile what it has read."""
        with self._mounted():
            return self._redis.transaction(change, *watched, value_from_callable=True)

    def _entries(self) -> list[str]:
        """Where versions have their entries."""
        return [self._of("versions", key) for key in self._all_keys()]

    def _all_keys(self) -> list[ModelKey]:
        """Every key there ever was."""
        names = (name.decode("utf-8", "replace").partition(" ") for name in self._redis.smembers(self._key("keys")))
        return [ModelKey(station, recipe) for station, _, recipe in names]

    def _touch(self, key: ModelKey, version: Version) -> None:
        """Record that a version is used, once a day; whoever may not write here is not recorded."""
        versions, used = self._of("versions", key), self._of("used", key)

        def touch(pipe: Any) -> None:
            there = pipe.hexists(versions, version)
            pipe.multi()
            if there:
                pipe.hset(used, version, now().timestamp())

        with suppress(redis.RedisError):
            last = self._redis.hget(used, version)
            if last is None or (now() - _time(last)).total_seconds() > _TOUCH_AFTER_S:
                self._redis.transaction(touch, versions)

    def _require(self, key: ModelKey, version: Version) -> None:
        with self._mounted():
            self._known(key, [version], self._redis)

    def _known(self, key: ModelKey, versions: Any, client: Any) -> None:
        for version in versions:
            if not is_version(version) or not client.hexists(self._of("versions", key), version):
                raise ModelNotFound(f"{key} has no version {short(version)!r}")

    def _marks(self, key: ModelKey, client: Any) -> Marks:
        last = client.lindex(self._of("marks", key), -1)
        return self._line(key, last, Marking).marks if last is not None else Marks()

    def _line(self, key: ModelKey, text: bytes, kind: Any) -> Any:
        return read_line(text, kind, f"{key}: a line of a log")

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    def _of(self, kind: str, key: ModelKey) -> str:
        return self._key(kind, key.station, key.recipe)

    @contextmanager
    def _mounted(self) -> Iterator[None]:
        """Reading: there must be a store, and the client's errors are ours."""
        with answering():
            if not self._redis.exists(self._key("models.v1")):
                raise StoreUnavailable(
                    f"this Redis holds no models under {self._prefix!r}: was it flushed? Put them "
                    "back with `goldline models import FILE --promote`, or by fitting anew"
                )
            yield


def _time(seconds: bytes | None) -> datetime:
    """When a version was last used; now, where it was put before uses were recorded."""
    return now() if seconds is None else datetime.fromtimestamp(float(seconds), UTC)
