"""Leases in Redis: `PREFIX:lease:NAME`, a key with a time to live that its holder renews while it works."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import redis

from model_store.entries import now
from model_store.leases import Holder, Lease, check, taken
from model_store.redis_client import answering
from pipeline.errors import StoreUnavailable

_TTL_S = 60.0


class RedisLeases:
    """Leases in Redis.

    Args:
        client: of a Redis server; binary answers.
        prefix: of all keys.
        ttl_s: how long a lease outlives a holder that died.
    """

    def __init__(self, client: "redis.Redis[bytes]", prefix: str, *, ttl_s: float = _TTL_S) -> None:
        self._redis = client
        self._prefix = prefix
        self._ttl_ms = int(ttl_s * 1000)

    @contextmanager
    def hold(self, name: str, *, who: str) -> Iterator[Lease]:
        """Set the key if there is none, and renew it in a thread of its own; see `Leases.hold`."""
        check(name)
        key = f"{self._prefix}:lease:{name}"
        mine = msgspec.json.encode(Holder(who=who[:200], since=now(), token=secrets.token_hex(16)))
        with answering():
            # A client whose answer was lost asks again by itself, and then finds what it has set.
            if not self._redis.set(key, mine, nx=True, px=self._ttl_ms) and (there := self._redis.get(key)) != mine:
                raise taken(name, there)
        renewed = _Renewed(name, self._ttl_ms / 1000, lambda: self._if_mine(key, mine, self._renew))
        try:
            yield renewed
        finally:
            renewed.stop()
            with suppress(StoreUnavailable):  # it ends by itself
                self._if_mine(key, mine, lambda pipe, key: pipe.delete(key))

    def _renew(self, pipe: Any, key: str) -> None:
        pipe.pexpire(key, self._ttl_ms)

    def _if_mine(self, key: str, mine: bytes, act: Callable[[Any, str], object]) -> bool:
        """Do it, unless another has the lease at that very moment."""

        def change(pipe: Any) -> bool:
            held = bool(pipe.get(key) == mine)
            pipe.multi()
            if held:
                act(pipe, key)
            return held

        with answering():
            return bool(self._redis.transaction(change, key, value_from_callable=True))


class _Renewed:
    """A lease that a thread renews, three times in its time to live."""

    def __init__(self, name: str, ttl_s: float, renew: Callable[[], bool]) -> None:
        self._name = name
        self._ttl_s = ttl_s
        self._renew = renew
        self._lost = False
        self._until = time.monotonic() + ttl_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Whether it is held; see `Lease.require`."""
        if self._lost or time.monotonic() >= self._until:
            raise taken(self._name, None)

    def stop(self) -> None:
        """Renew it no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._ttl_s / 3) and not self._lost:
            asked = time.monotonic()
            with suppress(StoreUnavailable):  # asked again before it ends
                self._lost = not self._renew()
                self._until = asked + self._ttl_s
