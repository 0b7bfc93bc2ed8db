"""A store by its URL."""

import os
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from model_store.base import ModelStore
from pipeline.errors import ConfigError

_TLS_FILES = ("ca_file", "cert_file", "key_file")


def open_store(url: str) -> ModelStore:
    """The store at `file:///folder`, at a plain path, or at `redis://USER@HOST:PORT/DATABASE`.

    Nothing is created until the first `put`. `rediss://` is Redis with TLS. Its password comes from the file that
    `?password_file=` names or from GOLDLINE_REDIS_PASSWORD; further options are `ca_file=`, `cert_file=` and
    `key_file=` (for a server that wants a certificate of its clients), `cache=` (a folder of this machine's, by
    default `~/.cache/goldline/models`) and `prefix=` (of all keys, by default `goldline`).

    Raises:
        ConfigError: a URL that names no store we have. It is not repeated whole: it may hold a password.
    """
    scheme, found, _ = url.partition("://")
    if not found:
        return _on_disk(url)
    if scheme in {"redis", "rediss"}:
        return _in_redis(url)
    if scheme != "file":
        raise ConfigError(f"no model store speaks {scheme[:20]!r}; use file:///folder or redis://host:port/0")
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"} or parts.query or parts.fragment:
        raise ConfigError(f"{url!r} is not file:///folder: three slashes, and no '?' or '#'")
    return _on_disk(unquote(parts.path))


def _on_disk(path: str) -> ModelStore:
    from model_store.disk import DiskStore  # noqa: PLC0415 - a store is loaded only where it is used

    if not path or "\0" in path:
        raise ConfigError(f"{path!r} names no folder for the model store; use file:///folder")
    return DiskStore(Path(path).expanduser())


def _in_redis(url: str) -> ModelStore:
    from model_store.cache import Cache  # noqa: PLC0415 - likewise
    from model_store.redis_client import connect  # noqa: PLC0415
    from model_store.redis_store import RedisStore  # noqa: PLC0415

    parts = urlsplit(url)
    if parts.password is not None:
        raise ConfigError(
            "a password in the store's URL would show in logs and lists of processes: use ?password_file=/path or the "
            "environment's GOLDLINE_REDIS_PASSWORD"
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := options.keys() - {"password_file", *_TLS_FILES, "cache", "prefix"}:
        raise ConfigError(f"the store's URL has unknown options: {', '.join(sorted(unknown))}")
    database = parts.path.strip("/") or "0"
    try:
        host, port = parts.hostname, parts.port or 6379
    except ValueError as error:
        raise ConfigError(f"the store's URL has no such port: {error}") from error
    if not host or not database.isdecimal() or parts.fragment:
        raise ConfigError("a Redis store is redis://USER@HOST:PORT/DATABASE, USER@ and /DATABASE where needed")
    client = connect(
        host,
        port,
        database=int(database),
        user=unquote(parts.username) if parts.username else None,
        password=_password(options.get("password_file")),
        tls=parts.scheme == "rediss",
        **{name: Path(options[name]) for name in _TLS_FILES if name in options},
    )
    folder = Path(options.get("cache") or "~/.cache/goldline/models")
    return RedisStore(client, Cache(folder), options.get("prefix", "goldline"))


def _password(file: str | None) -> str | None:
    if file is None:
        return os.environ.get("GOLDLINE_REDIS_PASSWORD")
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the store's password_file: {error}") from error
