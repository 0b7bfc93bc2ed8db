"""A client of a Redis server, and what its errors mean here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from pipeline.errors import StoreUnavailable

_TIMEOUT_S = 10.0
_RETRIES = 2


def connect(
    host: str,
    port: int,
    *,
    database: int,
    user: str | None,
    password: str | None,
    tls: bool,
    ca_file: Path | None = None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
) -> "redis.Redis[bytes]":
    """A client that gives up within seconds, so that a worker keeps what it has.

    Args:
        host: its name or address; with TLS the server's certificate must be for it.
        port: likewise.
        database: its number.
        user: as the server's access lists know it; None for the default user.
        password: of that user.
        tls: speak TLS; the server's certificate is checked, always.
        ca_file: who may have signed it; None for whom this machine trusts.
        cert_file: this client's own certificate, where the server asks for one.
        key_file: that certificate's key.
    """
    files = {"ssl_ca_certs": ca_file, "ssl_certfile": cert_file, "ssl_keyfile": key_file}
    named = {option: str(file) for option, file in files.items() if file}
    secured = {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True, **named}
    return redis.Redis(
        host=host,
        port=port,
        db=database,
        username=user,
        password=password,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S / 4,
        retry=Retry(ExponentialBackoff(cap=1.0, base=0.1), _RETRIES),
        retry_on_error=[redis.ConnectionError, redis.TimeoutError],
        **(secured if tls else {}),
    )


@contextmanager
def answering() -> Iterator[None]:
    """The client's errors as ours."""
    try:
        yield
    except redis.RedisError as error:
        # The client's words hold host and port, never the password.
        raise StoreUnavailable(f"model store in Redis: {error}") from error
