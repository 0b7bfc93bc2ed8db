"""One suite over every root where large pictures lie; what is hostile, old, altered or away."""

import errno
import hashlib
import itertools
import os
import socket
import threading
import time
from dataclasses import dataclass, replace

import pytest
import redis

from model_store import frames_disk
from model_store.frames import Reference, Roots, describe, open_roots
from pipeline.errors import BlobError, ConfigError, StoreUnavailable
from tests.redis_server import RedisServer

KEEP_S = 3600
PICTURE = os.urandom(300_000)


@dataclass
class Root:
    """One root, and how to reach behind it."""

    url: str
    keep_s: int = KEEP_S

    @property
    def roots(self):
        return open_roots([self.url], keep_s=self.keep_s)

    @property
    def store(self):
        return self.roots.stores[0]

    def get(self, reference):
        return self.roots.find(reference.url).get(reference)


class Folder(Root):
    def made(self):
        self.store.create()
        return self

    def path(self, reference):
        return frames_disk.Path(reference.url.removeprefix("file://"))

    def overwrite(self, reference, data):
        self.path(reference).chmod(0o600)
        self.path(reference).write_bytes(data)

    def forget(self, reference):
        self.path(reference).unlink()


class Server(Root):
    def client(self):
        host, _, port = self.url.removeprefix("redis://").partition("/")[0].partition(":")
        return redis.Redis(host=host, port=int(port))

    def overwrite(self, reference, data):
        with self.client() as client:
            client.set(reference.url.rpartition("/")[2], data)

    def forget(self, reference):
        with self.client() as client:
            client.delete(reference.url.rpartition("/")[2])


@pytest.fixture
def folder(tmp_path):
    return Folder((tmp_path / "frames").as_uri()).made()


@pytest.fixture(params=["file", "redis"])
def root(request):
    if request.param == "file":
        return request.getfixturevalue("folder")
    return Server(f"redis://{request.getfixturevalue('redis_server')}/0")


def test_what_was_put_is_what_is_got(root):
    reference = root.roots.put(PICTURE)
    assert reference == Reference(
        url=reference.url, sha256=hashlib.sha256(PICTURE).hexdigest(), size_bytes=len(PICTURE)
    )
    assert root.get(reference) == PICTURE
    assert root.roots.put(PICTURE).url != reference.url, "each frame has a picture of its own"


def test_a_picture_of_the_largest_size_by_default_travels(root):
    picture = os.urandom(64_000_000)
    assert root.get(root.roots.put(picture)) == picture


@pytest.mark.parametrize("size", [0, 1, len(PICTURE) - 1, len(PICTURE) + 1])
def test_another_size_than_the_reference_says_is_refused(root, size):
    reference = root.roots.put(PICTURE)
    root.overwrite(reference, (PICTURE + b"x")[:size])
    with pytest.raises(BlobError, match=r"bytes|missing"):
        root.get(reference)


def test_an_altered_picture_is_refused(root):
    reference = root.roots.put(PICTURE)
    root.overwrite(reference, PICTURE[:-1] + bytes([PICTURE[-1] ^ 1]))
    with pytest.raises(BlobError, match="altered"):
        root.get(reference)


def test_a_missing_picture_is_no_reason_to_ask_again(root):
    reference = root.roots.put(PICTURE)
    root.forget(reference)
    with pytest.raises(BlobError, match="missing"):
        root.get(reference)


def test_threads_may_share_a_root(root):
    roots, got = root.roots, {}

    def work(i):
        data = bytes([i]) * 100_000
        got[i] = roots.stores[0].get(roots.put(data)) == data

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == dict.fromkeys(range(16), True)


def test_the_picture_is_read_from_whichever_root_it_is_in(folder, redis_server, tmp_path):
    other = (tmp_path / "other").as_uri()
    roots = open_roots([folder.url, f"redis://{redis_server}/0", other], keep_s=KEEP_S)
    for i, url in enumerate([folder.url, f"redis://{redis_server}/0", other]):
        here = open_roots([url], keep_s=KEEP_S)
        here.stores[0].create()
        reference = here.put(PICTURE)
        assert roots.find(reference.url) is roots.stores[i]
        assert roots.find(reference.url).get(reference) == PICTURE


def test_without_a_root_the_error_says_what_to_set():
    with pytest.raises(ConfigError, match=r"\[frames\] roots"):
        open_roots([], keep_s=KEEP_S).put(PICTURE)
    with pytest.raises(BlobError):
        Roots(()).find("file:///etc/passwd")


HOSTILE_FILES = {
    "traversal": "/../secret",
    "traversal further in": "/20250101T000000/../../secret",
    "traversal, escaped": "/%2e%2e/secret",
    "traversal, escaped twice": "/%252e%252e/secret",
    "escaped slash": "/..%2fsecret",
    "an escape in a plain name": "/%70icture",
    "NUL": "/picture\0.jpg",
    "NUL, escaped": "/picture%00",
    "the root itself": "",
    "the root with a slash": "/",
    "empty name": "//picture",
    "dot": "/./picture",
    "backslash": "/..\\secret",
    "query": "/picture?x=1",
    "fragment": "/picture#x",
    "line break": "/picture\n",
    "not ASCII": "/pictüre",
    "full-width dots": "/．．/secret",  # noqa: RUF001 - that they look alike is the point
    "hidden": "/.picture",
    "a folder": "/folder",
    "a symbolic link out": "/link-out",
    "a symbolic link in": "/link-in",
    "through a linked folder": "/linked/secret",
    "through a file": "/picture/more",
    "a FIFO": "/fifo",
    "a socket": "/socket",
    "too long a name": "/" + "a" * 5000,
    "too deep": "/a" * 500,
}


@pytest.mark.parametrize("rest", HOSTILE_FILES.values(), ids=HOSTILE_FILES)
def test_what_is_not_plainly_a_file_below_the_root_is_refused(folder, tmp_path, rest):
    below = tmp_path / "frames"
    folder.roots.put(b"makes the root")
    (tmp_path / "secret").write_bytes(PICTURE)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(PICTURE)
    (below / "picture").write_bytes(PICTURE)
    (below / ".picture").write_bytes(PICTURE)
    (below / "folder").mkdir()
    (below / "link-out").symlink_to(tmp_path / "secret")
    (below / "link-in").symlink_to(below / "picture")
    (below / "linked").symlink_to(tmp_path / "outside")
    os.mkfifo(below / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.open(below, os.O_RDONLY)
        listening.bind(f"/proc/self/fd/{here}/socket")  # a socket's path has at most 108 bytes
        os.close(here)
        reference = describe(folder.url + rest, PICTURE)
        with pytest.raises(BlobError):
            folder.get(reference)
        with pytest.raises(BlobError):
            folder.store.get(reference)
    assert folder.get(describe(folder.url + "/picture", PICTURE)) == PICTURE, "and what is plain is read"


@pytest.mark.parametrize(
    "url",
    [
        "{folder}2/picture",
        "{folder_up}/secret",
        "file://elsewhere{path}/picture",
        "file://user:word@localhost{path}/picture",
        "FILE://{path}/picture",
        "{path}/picture",
        "http://127.0.0.1/picture",
        "ftp://{path}/picture",
        "/etc/passwd",
        "file:///etc/passwd",
        "file:///dev/zero",
        "file:///proc/self/environ",
        "redis://{redis}/1/goldline:frame:a",
        "redis://{redis}/00/goldline:frame:a",
        "redis://{redis}/goldline:frame:a",
        "redis://{redis}/0/goldline:object:a",
        "redis://{redis}/0/other:frame:a",
        "redis://{redis}/0/goldline:frame:",
        "redis://{redis}/0/goldline:frame:a?db=1",
        "redis://{redis}/0/goldline:frame:a/../../1/goldline:frame:a",
        "redis://{redis}/0/goldline:frame:%61",
        "redis://user:word@{redis}/0/goldline:frame:a",
        "redis://127.0.0.1:1/0/goldline:frame:a",
        "redis://[::1]/0/goldline:frame:a",
        "redis://[/0",
        "rediss://{redis}/0/goldline:frame:a",
        "unix:///run/redis.sock",
        "",
    ],
)
def test_another_place_than_the_roots_is_refused(folder, redis_server, tmp_path, url):
    folder.roots.put(b"makes the root")
    (tmp_path / "frames" / "picture").write_bytes(PICTURE)
    (tmp_path / "frames2").mkdir()
    (tmp_path / "frames2" / "picture").write_bytes(PICTURE)
    (tmp_path / "secret").write_bytes(PICTURE)
    host, _, port = redis_server.partition(":")
    for database in (0, 1):
        with redis.Redis(host=host, port=int(port), db=database) as client:
            for key in ("goldline:frame:a", "goldline:object:a", "other:frame:a"):
                client.set(key, PICTURE, ex=60)
    filled = url.format(folder=folder.url, folder_up=tmp_path.as_uri(), path=tmp_path / "frames", redis=redis_server)
    roots = open_roots([folder.url, f"redis://{redis_server}/0"], keep_s=KEEP_S)
    with pytest.raises(BlobError, match="outside"):
        roots.find(filled)
    with pytest.raises(BlobError):
        roots.stores[0].get(describe(filled, PICTURE))
    with pytest.raises(BlobError):
        roots.stores[1].get(describe(filled, PICTURE))
    good = f"redis://{redis_server}/0/goldline:frame:a"
    assert roots.find(good).get(describe(good, PICTURE)) == PICTURE


@pytest.mark.parametrize(
    "url",
    [
        "file://server/share",
        "file:///",
        "file:///frames/../etc",
        "file:///frames?x=1",
        "frames",
        "/srv/frames",
        "s3://bucket/frames",
        "redis://",
        "redis://host/frames",
        "redis://:s3cret@host:6379/0",
        "redis://host/0?cache=/tmp",
    ],
)
def test_roots_that_are_none_are_refused_without_showing_a_password(url):
    with pytest.raises(ConfigError) as caught:
        open_roots([url], keep_s=KEEP_S)
    assert "s3cret" not in str(caught.value)


def test_a_picture_is_whole_or_absent_and_nobody_changes_it(folder, monkeypatch):
    kept = folder.roots.put(PICTURE)
    assert folder.path(kept).stat().st_mode & 0o777 == 0o444

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sorted((folder.path(kept).parents[1]).rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreUnavailable, match="No space left"):
            folder.roots.put(PICTURE)
    assert sorted(folder.path(kept).parents[1].rglob("*")) == before
    assert folder.get(kept) == PICTURE


@pytest.mark.parametrize("act", [lambda store: store.create(), lambda store: store.put(PICTURE)], ids=["create", "put"])
def test_a_folder_that_can_never_be_written_is_told_as_such(tmp_path, act):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"\[frames\] roots"):
        act(Folder((tmp_path / "file" / "frames").as_uri()).store)


@pytest.mark.parametrize("exists", [True, False], ids=["an empty folder", "no folder"])
def test_a_picture_is_not_put_where_the_disk_is_not_mounted(tmp_path, exists):
    if exists:
        (tmp_path / "frames").mkdir()
    folder = Folder((tmp_path / "frames").as_uri())
    with pytest.raises(StoreUnavailable, match=r"is it mounted\?.*goldline frames create"):
        folder.roots.put(PICTURE)
    assert not any(tmp_path.rglob("*/*")), "nothing was written where a mount would hide it"
    assert folder.store.create()
    assert not folder.store.create(), "there already"
    assert folder.get(folder.roots.put(PICTURE)) == PICTURE


def test_a_disk_that_is_away_is_not_a_missing_picture(folder, tmp_path):
    reference = folder.roots.put(PICTURE)
    (tmp_path / "frames").rename(tmp_path / "away")
    with pytest.raises(StoreUnavailable):
        folder.get(reference)
    (tmp_path / "frames").mkdir()  # as an unmounted share is: an empty folder
    with pytest.raises(StoreUnavailable):
        folder.get(reference)
    (tmp_path / "frames").rmdir()
    (tmp_path / "away").rename(tmp_path / "frames")
    assert folder.get(reference) == PICTURE


def test_pictures_on_disk_go_a_few_at_a_time_when_they_are_too_old(tmp_path, monkeypatch):
    folder = Folder((tmp_path / "frames").as_uri(), keep_s=60).made()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 1_000_000_000.0)
        old = [folder.roots.put(bytes([i])) for i in range(20)]
    theirs = tmp_path / "frames" / "theirs"
    theirs.write_bytes(PICTURE)
    (stamp,) = {folder.path(reference).parent for reference in old}
    _age(stamp, by_s=61)
    new = folder.roots.put(PICTURE)
    for reference in old:
        with pytest.raises(BlobError, match="missing"):
            folder.get(reference)
    left = [20]
    while left[-1]:
        folder.roots.put(PICTURE)
        left.append(len(list((tmp_path / "frames").glob("*.expired/*"))))
    assert all(before - after <= 8 for before, after in itertools.pairwise(left))
    assert not list((tmp_path / "frames").glob("*.expired"))
    assert folder.get(new) == PICTURE
    assert theirs.exists(), "what is not ours is left alone"


def test_clearing_away_follows_no_link(tmp_path):
    folder = Folder((tmp_path / "frames").as_uri(), keep_s=60).made()
    old = folder.path(folder.roots.put(PICTURE))
    old.parent.rename(tmp_path / "frames" / "20200101T000200.expired")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_bytes(b"1")
    _age(elsewhere, by_s=1000)
    (tmp_path / "frames" / "20200101T000000").symlink_to(elsewhere)
    (tmp_path / "frames" / "20200101T000100.expired").symlink_to(elsewhere)
    for _ in range(5):
        folder.roots.put(PICTURE)
    assert (elsewhere / "precious").exists()
    assert not (tmp_path / "frames" / "20200101T000200.expired").exists(), "and odd things stop nothing"


def test_a_writer_whose_clock_is_wrong_clears_away_nothing_of_others(tmp_path, monkeypatch):
    folder = Folder((tmp_path / "frames").as_uri(), keep_s=60).made()
    kept = folder.roots.put(PICTURE)
    for clock in (0.0, 4e9):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda clock=clock: clock)
            theirs = folder.roots.put(b"of a camera with a clock of its own")
        assert folder.get(kept) == PICTURE
        assert folder.get(theirs) == b"of a camera with a clock of its own"


def test_pictures_in_redis_live_as_long_as_is_set(redis_server):
    server = Server(f"redis://{redis_server}/0", keep_s=60)
    reference = server.roots.put(PICTURE)
    key = reference.url.rpartition("/")[2]
    with server.client() as client:
        assert 0 < client.ttl(key) <= 60
        client.pexpire(key, 1)
        while client.exists(key):
            time.sleep(0.01)
    with pytest.raises(BlobError, match="expired"):
        server.get(reference)


def test_a_key_of_another_kind_is_refused(redis_server):
    server = Server(f"redis://{redis_server}/0")
    with server.client() as client:
        client.rpush("goldline:frame:list", "x")
        client.expire("goldline:frame:list", 60)
    with pytest.raises(BlobError, match="another kind"):
        server.get(describe(f"redis://{redis_server}/0/goldline:frame:list", PICTURE))


def test_redis_that_died_is_unavailable_and_then_has_what_it_had(redis_server, tmp_path):
    with RedisServer(tmp_path) as own:
        server = Server(f"redis://{own.address}/0")
        roots = server.roots
        reference = roots.put(PICTURE)
        own.kill()
        with pytest.raises(StoreUnavailable):
            roots.find(reference.url).get(reference)
        with pytest.raises(StoreUnavailable):
            roots.put(PICTURE)
        own.start()
        assert roots.find(reference.url).get(reference) == PICTURE


def test_the_password_is_the_models_way(redis_server, tmp_path, monkeypatch):
    (tmp_path / "word").write_text("s3cret\n")
    with RedisServer(tmp_path, "--requirepass", "s3cret") as own:
        with pytest.raises(StoreUnavailable):
            Server(f"redis://{own.address}/0").roots.put(PICTURE)
        server = Server(f"redis://{own.address}/0?password_file={tmp_path}/word")
        reference = server.roots.put(PICTURE)
        assert "word" not in reference.url
        monkeypatch.setenv("GOLDLINE_REDIS_PASSWORD", "s3cret")
        assert Server(f"redis://{own.address}/0").get(reference) == PICTURE


def test_a_full_redis_is_unavailable(redis_server, tmp_path):
    with RedisServer(tmp_path, "--maxmemory", "3mb") as own:
        roots = Server(f"redis://{own.address}/0").roots
        with pytest.raises(StoreUnavailable, match=r"(?i)memory"):
            [roots.put(PICTURE) for _ in range(20)]


def test_what_grows_while_it_is_read_is_read_no_further_than_said(folder):
    reference = folder.roots.put(PICTURE)
    with pytest.raises(BlobError, match="not of 5 bytes"):
        folder.get(replace(reference, size_bytes=5))


def _age(folder, *, by_s):
    then = time.time() - by_s
    os.utime(folder, (then, then))
