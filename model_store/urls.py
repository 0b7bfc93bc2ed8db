"""A store by its URL."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from model_store.base import ModelStore
from pipeline.errors import ConfigError


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


def folder_of(url: str, what: str) -> Path:
    """The folder that `file:///folder` names.

    Args:
        url: of it.
        what: the setting that it comes from, for the message.

    Raises:
        ConfigError: it names none, or it is the root of all.
    """
    parts = urlsplit(url)
    folder = Path(unquote(parts.path))
    unclear = parts.netloc not in {"", "localhost"} or parts.query or parts.fragment or "\0" in parts.path
    if parts.scheme != "file" or unclear or not folder.is_absolute() or ".." in folder.parts or folder == Path("/"):
        raise ConfigError(f"{what}: {url[:100]!r} is not file:///folder")
    return folder


def _on_disk(path: str) -> ModelStore:
    from model_store.disk import DiskStore  # noqa: PLC0415 - a store is loaded only where it is used

    if not path or "\0" in path:
        raise ConfigError(f"{path!r} names no folder for the model store; use file:///folder")
    return DiskStore(Path(path).expanduser())


def _in_redis(url: str) -> ModelStore:
    from model_store import redis_client, redis_store  # noqa: PLC0415 - likewise
    from model_store.cache import Cache  # noqa: PLC0415

    server = redis_client.parse(url, options=frozenset({"cache"}))
    folder = Path(server.options.get("cache") or "~/.cache/goldline/models")
    return redis_store.RedisStore(server.connect(), Cache(folder), server.prefix)
