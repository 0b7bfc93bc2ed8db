"""A Redis server by its URL, `redis://USER@HOST:PORT/DATABASE`: one spelling and one client for models and frames."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from pipeline.errors import ConfigError, StoreUnavailable
from pipeline.settings import secret_file

_TLS_FILES = {"ca_file": "ssl_ca_certs", "cert_file": "ssl_certfile", "key_file": "ssl_keyfile"}
_OURS = frozenset({"password_file", "prefix", *_TLS_FILES})


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """What a URL says, but for the password.

    Attributes:
        prefix: of all keys.
        options: what else came after the `?`.
    """

    scheme: str
    host: str
    port: int
    database: int
    user: str | None
    prefix: str = "goldline"
    options: Mapping[str, str] = field(default_factory=dict)

    def connect(self, *, timeout_s: float = 10.0, retries: int = 2) -> "redis.Redis[bytes]":
        """A client that gives up within seconds, so that a worker keeps what it has.

        Args:
            timeout_s: for sending a command, and for each piece of its answer; a quarter of it to connect.
            retries: of each command.

        Raises:
            ConfigError: the password's file cannot be read.
        """
        given = {ours: file for ours, file in self.options.items() if ours in _TLS_FILES}
        files = {_TLS_FILES[ours]: str(secret_file(file)) for ours, file in given.items()}
        secured = {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True, **files}
        return redis.Redis(
            host=self.host,
            port=self.port,
            db=self.database,
            username=self.user,
            password=_password(self.options.get("password_file")),
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s / 4,
            retry=Retry(ExponentialBackoff(cap=1.0, base=0.1), retries),
            retry_on_error=[redis.ConnectionError, redis.TimeoutError],
            **(secured if self.scheme == "rediss" else {}),
        )


def parse(url: str, *, options: frozenset[str] = frozenset()) -> RedisAddress:
    """The server that a URL names; `rediss://` is Redis with TLS.

    Args:
        url: with the options `password_file=` and `prefix=` where needed, and with TLS `ca_file=` (who may have signed
            the server's certificate, by default whom this machine trusts), `cert_file=` and `key_file=` (this client's
            own, where the server asks for them).
        options: further ones that are allowed.

    Raises:
        ConfigError: it names none. It is not repeated whole: it may hold a password.
    """
    parts = urlsplit(url)
    if parts.password is not None:
        raise ConfigError(
            "a password in the store's URL would show in logs and lists of processes: use ?password_file=/path or the "
            "environment's GOLDLINE_REDIS_PASSWORD"
        )
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := given.keys() - _OURS - options:
        raise ConfigError(f"the store's URL has unknown options: {', '.join(sorted(unknown))}")
    database = parts.path.strip("/") or "0"
    try:
        host, port = parts.hostname, parts.port or 6379
    except ValueError as error:
        raise ConfigError(f"the store's URL has no such port: {error}") from error
    if not host or not database.isdecimal() or parts.fragment:
        raise ConfigError("a Redis store is redis://USER@HOST:PORT/DATABASE, USER@ and /DATABASE where needed")
    user = unquote(parts.username) if parts.username else None
    prefix = given.get("prefix", "goldline")
    if not re.fullmatch(r"[\w.-]{1,100}", prefix):
        raise ConfigError(f"a prefix is letters, digits, '.', '_' and '-', not {prefix[:60]!r}")
    return RedisAddress(
        scheme=parts.scheme,
        host=host,
        port=port,
        database=int(database),
        user=user,
        prefix=prefix,
        options=given,
    )


@contextmanager
def answering() -> Iterator[None]:
    """The client's errors as ours."""
    try:
        yield
    except redis.RedisError as error:
        # The client's words hold host and port, never the password.
        raise StoreUnavailable(f"model store in Redis: {error}") from error


def _password(file: str | None) -> str | None:
    if file is None:
        return os.environ.get("GOLDLINE_REDIS_PASSWORD")
    try:
        return secret_file(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the store's password_file: {error}") from error
