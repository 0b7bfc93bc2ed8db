"""What only Redis can do: die, forget, ask for a password."""

import hashlib

import pytest
import redis
import torch

from model_store import ModelKey, open_store, redis_objects
from model_store.cache import Cache
from pipeline.data import Artifact
from pipeline.errors import ArtifactError, ConfigError, StoreUnavailable
from tests.redis_server import RedisServer

KEY = ModelKey("line-1/top")


def model(n=0.0, rows=40):
    return Artifact(method="padim", tensors={"bank": torch.full((rows, 6), float(n))}, meta={"n": n})


def store_of(server, tmp_path, **options):
    more = "".join(f"&{name}={value}" for name, value in options.items())
    return open_store(f"redis://{server.address}/0?cache={tmp_path}/cache{more}")


def test_with_redis_down_a_model_that_was_seen_is_still_there(server, tmp_path):
    store = store_of(server, tmp_path)
    version = store.put(KEY, model(3))
    store.promote(KEY, version, expected=None, who="ana")
    unseen = store.put(KEY, model(4))
    assert store.current(KEY) == version
    store.get(KEY, version)
    server.kill()
    again = store_of(server, tmp_path)
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"):
        again.current(KEY)
    assert again.remembered(KEY) == version
    assert again.get(KEY, version).meta["n"] == 3
    with pytest.raises(StoreUnavailable):
        again.get(KEY, unseen)
    with pytest.raises(StoreUnavailable):
        again.promote(KEY, unseen, expected=version, who="ana")
    server.start()
    assert again.current(KEY) == version
    assert again.get(KEY, unseen).meta["n"] == 4


def test_a_damaged_copy_on_this_machine_is_fetched_anew(server, tmp_path):
    store = store_of(server, tmp_path)
    version = store.put(KEY, model(3))
    store.get(KEY, version)
    (copy,) = (tmp_path / "cache" / "objects").iterdir()
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    assert store.get(KEY, version).meta["n"] == 3
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == version


def test_flushed_is_loud_and_not_an_empty_store(server, tmp_path):
    store = store_of(server, tmp_path)
    version = store.put(KEY, model())
    store.promote(KEY, version, expected=None, who="ana")
    store.current(KEY)
    store.get(KEY, version)
    with redis.Redis(port=server.port) as client:
        client.flushall()
    for call in (lambda: store.current(KEY), store.keys, lambda: store.history(KEY), lambda: store.versions(KEY)):
        with pytest.raises(StoreUnavailable, match="was it flushed"):
            call()
    assert store.get(KEY, version).meta["n"] == 0, "from this machine's copy"


def test_a_large_model_goes_in_chunks(server, tmp_path, monkeypatch):
    monkeypatch.setattr(redis_objects, "CHUNK_BYTES", 1 << 16)
    store = store_of(server, tmp_path)
    version = store.put(KEY, model(2, rows=50_000))
    with redis.Redis(port=server.port) as client:
        chunks = [k for k in client.scan_iter() if k.decode().startswith(f"goldline:object:{version}:")]
        assert len(chunks) == -(-store.versions(KEY)[0].size_bytes // (1 << 16))
        middle = f"goldline:object:{version}:7"
        kept = client.get(middle)
        client.delete(middle)
        with pytest.raises(ArtifactError, match="chunk 7 is gone"):
            store.get(KEY, version)
        client.set(middle, kept[::-1])
        with pytest.raises(ArtifactError, match="chunk 7 is damaged"):
            store.get(KEY, version)
    assert store.put(KEY, model(2, rows=50_000)) == version
    assert torch.equal(store.get(KEY, version).tensors["bank"], model(2, rows=50_000).tensors["bank"])


def test_a_size_that_a_manifest_claims_is_not_believed(server, tmp_path):
    store = store_of(server, tmp_path)
    version = store.put(KEY, model())
    with redis.Redis(port=server.port) as client:
        for manifest in (
            b"{}",
            b"no json",
            b'{"size_bytes":99999999999999,"chunk_bytes":1,"sha256":[]}',
            b'{"size_bytes":5,"chunk_bytes":1,"sha256":[]}',
        ):
            client.set(f"goldline:object:{version}", manifest)
            with pytest.raises(ArtifactError, match=version[:12]):
                store.get(KEY, version)


def test_a_password_comes_from_a_file_or_the_environment_and_is_never_shown(tmp_path, redis_server, monkeypatch):
    assert redis_server
    folder = tmp_path / "redis"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_text("s3cret-word\n")
    with RedisServer(folder, "--requirepass", "s3cret-word") as server:
        with pytest.raises(StoreUnavailable) as caught:
            store_of(server, tmp_path).put(KEY, model())
        assert "s3cret" not in str(caught.value)
        version = store_of(server, tmp_path, password_file=secret).put(KEY, model())
        monkeypatch.setenv("GOLDLINE_REDIS_PASSWORD", "s3cret-word")
        assert store_of(server, tmp_path).get(KEY, version).meta["n"] == 0
        monkeypatch.setenv("GOLDLINE_REDIS_PASSWORD", "wr0ng-word")
        with pytest.raises(StoreUnavailable) as caught:
            store_of(server, tmp_path).keys()
        assert "wr0ng" not in str(caught.value)
        assert "s3cret" not in repr(store_of(server, tmp_path))


def test_only_a_user_with_the_right_to_it_gets_in(tmp_path, redis_server):
    assert redis_server
    folder = tmp_path / "redis"
    folder.mkdir()
    (tmp_path / "word").write_text("plant")
    with RedisServer(folder) as server:
        with redis.Redis(port=server.port) as client:
            client.acl_setuser("worker", enabled=True, passwords=["+plant"], keys=["goldline:*"], commands=["+@all"])
        url = f"redis://worker@{server.address}/0?cache={tmp_path}/cache&password_file={tmp_path}/word"
        version = open_store(url).put(KEY, model())
        assert open_store(url).get(KEY, version).meta["n"] == 0
        with pytest.raises(StoreUnavailable, match=r"(?i)permission"):
            open_store(url + "&prefix=other").put(KEY, model())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://:s3cret@host:6379/0", "password_file"),
        ("rediss://user:s3cret@host", "GOLDLINE_REDIS_PASSWORD"),
        ("redis://", "redis://USER@HOST"),
        ("redis://host/models", "redis://USER@HOST"),
        ("redis://host:99999/0", "no such port"),
        ("redis://host/0?pasword_file=x", "unknown options: pasword_file"),
        ("redis://host/0?password_file=/no/such/file", "password_file"),
        ("redis://host/0?prefix=a:b", "prefix"),
    ],
)
def test_urls_that_are_none_are_refused_without_showing_a_password(url, said):
    with pytest.raises(ConfigError, match=said) as caught:
        open_store(url)
    assert "s3cret" not in str(caught.value)


def test_what_is_cut_short_never_enters_the_cache(tmp_path):
    cache = Cache(tmp_path)
    with pytest.raises(ArtifactError, match="damaged"):
        cache.keep("0" * 64, [b"no model"])
    assert list((tmp_path / "objects").iterdir()) == []
    with pytest.raises(ArtifactError):
        cache.find("../../etc/passwd")
