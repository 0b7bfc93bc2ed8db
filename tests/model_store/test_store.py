"""What every model store promises. A new store joins BACKENDS and passes the same suite."""

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import torch

from model_store import (
    Lineage,
    ModelKey,
    ModelStore,
    Promotion,
    Version,
    open_store,
    resolve_version,
    rollback,
    version_of,
)
from model_store.disk import LEFTOVER_AFTER_S, LOCK, MARKER
from model_store.files import Log
from pipeline.errors import (
    ArtifactError,
    ConfigError,
    ModelNotFound,
    PromotionConflict,
    StoreError,
    StoreUnavailable,
)
from tests.model_store.backends import FORKS, KEY, OTHER, finish, model, put_current, run_together

RACERS = 8
ROUNDS = 6


# Put and get


def test_what_is_put_can_be_got(store):
    artifact = model(1.5)
    found = store.get(KEY, store.put(KEY, artifact))
    assert (found.method, found.meta) == (artifact.method, artifact.meta)
    assert set(found.tensors) == set(artifact.tensors)
    for name, tensor in artifact.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_the_same_content_is_the_same_version_and_its_first_lineage_stands(store):
    first = store.put(KEY, model(), lineage={"created_by": "ana"})
    assert store.put(KEY, model(), lineage={"created_by": "ben"}) == first == version_of(model())
    (info,) = store.versions(KEY)
    assert info.lineage.created_by == "ana"
    assert not info.current


def test_a_version_belongs_to_the_key_it_was_put_under(store):
    version = store.put(KEY, model())
    with pytest.raises(ModelNotFound, match=version[:12]):
        store.get(OTHER, version)
    assert store.put(OTHER, model(), lineage={"created_by": "ben"}) == version
    assert [info.lineage.created_by for info in store.versions(OTHER)] == ["ben"]
    assert store.keys() == sorted([KEY, OTHER])


def test_lineage_comes_back_with_what_it_does_not_know(store):
    before = datetime.now(UTC)
    given = {"created_by": "ana", "frames": {"fit": 200, "tune": 50}, "shift": "night", "limits": [0.5, None]}
    store.put(KEY, model(), lineage=given)
    (info,) = store.versions(KEY)
    assert info.lineage.frames == {"fit": 200, "tune": 50}
    assert info.lineage.extra == {"shift": "night", "limits": [0.5, None]}
    assert before <= datetime.fromisoformat(info.lineage.created_at) <= datetime.now(UTC)
    assert Lineage.from_json(info.lineage.to_json()) == info.lineage
    assert info.size_bytes > 40 * 6 * 4


@pytest.mark.parametrize("lineage", [{"frames": 3}, {"created_by": 5}, {"x": float("nan")}, {"x": b"no"}])
def test_lineage_that_is_not_json_is_refused_and_nothing_is_stored(store, lineage):
    store.put(OTHER, model(1))
    with pytest.raises(ArtifactError):
        store.put(KEY, model(), lineage=lineage)
    assert store.keys() == [OTHER]


def test_nothing_there_yet(store):
    store.put(OTHER, model())
    assert store.current(KEY) is None
    assert store.history(KEY) == []
    assert store.versions(KEY) == []
    assert store.keys() == [OTHER]


def test_a_store_opened_anew_has_it_all(store, backend, tmp_path):
    version = put_current(store, 1)
    again = open_store(backend.url(tmp_path))
    assert again.current(KEY) == version
    assert again.get(KEY, version).meta["n"] == 1
    assert again.history(KEY) == store.history(KEY)


# Damage


def flipped(position: float) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        at = int(position * (len(data) - 1))
        return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]

    return damage


DAMAGES = {f"flip at {p}": flipped(p) for p in (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)} | {
    "cut": lambda data: data[: len(data) // 2],
    "last byte gone": lambda data: data[:-1],
    "byte more": lambda data: data + b"\0",
    "empty": lambda data: b"",
    "gone": lambda data: None,
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_never_loaded_nor_promoted_and_can_be_mended(store, backend, tmp_path, damage):
    good = put_current(store, 1)
    bad = store.put(KEY, model(2))
    backend.write(tmp_path, bad, DAMAGES[damage](backend.read(tmp_path, bad)))
    with pytest.raises(ArtifactError, match=bad[:12]):
        store.get(KEY, bad)
    with pytest.raises(ArtifactError, match=bad[:12]):
        store.promote(KEY, bad, expected=good, who="ana")
    assert store.current(KEY) == good
    assert len(store.history(KEY)) == 1
    assert store.put(KEY, model(2)) == bad
    assert store.get(KEY, bad).meta["n"] == 2


def test_a_swapped_model_is_noticed(store, backend, tmp_path):
    a, b = (store.put(KEY, model(n)) for n in (1, 2))
    backend.write(tmp_path, a, backend.read(tmp_path, b))
    with pytest.raises(ArtifactError, match=f"{a[:12]}.*{b[:12]}"):
        store.get(KEY, a)


# Promotion


def test_promotions_are_the_history(store):
    a, b = (store.put(KEY, model(n)) for n in (1, 2))
    store.promote(KEY, a, expected=None, who="ana", why="first")
    store.promote(KEY, b, expected=a, who="ben")
    assert store.current(KEY) == b
    first, second = store.history(KEY)
    assert first == Promotion(version=a, previous=None, at=first.at, who="ana", why="first")
    assert (second.version, second.previous, second.who, second.why) == (b, a, "ben", "")
    assert timedelta(0) <= second.at - first.at < timedelta(minutes=1)
    assert second.at.utcoffset() == timedelta(0)
    assert [info.version for info in store.versions(KEY) if info.current] == [b]
    assert store.current(OTHER) is None


def test_whoever_expects_something_else_gets_a_conflict_naming_what_is_there(store):
    a, b, c = (store.put(KEY, model(n)) for n in (1, 2, 3))
    with pytest.raises(PromotionConflict, match="nothing is current"):
        store.promote(KEY, a, expected=b, who="ana")
    store.promote(KEY, a, expected=None, who="ana")
    for expected in (None, b, c):
        with pytest.raises(PromotionConflict, match=a[:12]):
            store.promote(KEY, b, expected=expected, who="ana")
    assert [p.version for p in store.history(KEY)] == [a]


def test_promoting_what_is_current_records_nothing(store):
    version = put_current(store, 1)
    store.promote(KEY, version, expected=version, who="ana")
    assert len(store.history(KEY)) == 1


def test_what_is_not_stored_cannot_be_promoted(store):
    a = put_current(store, 1)
    for missing in (Version("0" * 64), store.put(OTHER, model(5))):
        with pytest.raises(ModelNotFound, match=missing[:12]):
            store.promote(KEY, missing, expected=a, who="ana")
    assert store.current(KEY) == a


@pytest.mark.parametrize("who", ["", "  ", "\ud800"])
def test_a_promotion_needs_a_name(store, who):
    version = store.put(KEY, model())
    with pytest.raises(ConfigError, match="who"):
        store.promote(KEY, version, expected=None, who=who)
    assert store.history(KEY) == []


def test_words_of_people_come_back_as_they_were(store):
    version = store.put(KEY, model())
    words = 'ŭ "quoted" <b>\n\x00\x1b[31m' + "x" * 5000
    store.promote(KEY, version, expected=None, who=words, why=words)
    assert (store.history(KEY)[0].who, store.history(KEY)[0].why) == (words, words)


def test_rollback_promotes_what_was_before(store):
    a, b = put_current(store, 1), put_current(store, 2)
    before = store.history(KEY)
    assert rollback(store, KEY, "ana", "too many rejects") == a
    assert store.current(KEY) == a
    assert store.history(KEY)[:2] == before
    last = store.history(KEY)[2]
    assert (last.version, last.previous, last.who, last.why) == (a, b, "ana", "too many rejects")
    assert rollback(store, KEY, "ana") == b


def test_rollback_needs_something_to_go_back_to(store):
    store.put(KEY, model())
    for promotions in (0, 1):
        with pytest.raises(ModelNotFound, match=f"{promotions} promotion"):
            rollback(store, KEY, "ana")
        put_current(store, 1)


# Races, with real processes


def race(url, me, mine, barrier, results):
    store = open_store(url)
    for turn in range(ROUNDS):
        expected = store.current(KEY)
        barrier.wait(60)
        try:
            store.promote(KEY, mine[turn % 2], expected=expected, who=f"{me}")
            results.put((turn, me, "won"))
        except PromotionConflict as error:
            results.put((turn, me, str(error)))
        barrier.wait(60)


def put_together(url, barrier, results):
    barrier.wait(60)
    results.put(open_store(url).put(KEY, model(7)))


def test_of_many_promoting_at_once_exactly_one_wins(store, backend, tmp_path):
    versions = [[store.put(KEY, model(10 * i + j)) for j in range(2)] for i in range(RACERS)]
    barrier, results = FORKS.Barrier(RACERS), FORKS.Queue()
    url = backend.url(tmp_path)
    processes = run_together(race, [(url, i, versions[i], barrier, results) for i in range(RACERS)])
    outcomes = [results.get(timeout=60) for _ in range(RACERS * ROUNDS)]
    finish(processes)
    history = store.history(KEY)
    assert len(history) == ROUNDS
    for turn, promotion in enumerate(history):
        winners = [me for t, me, outcome in outcomes if t == turn and outcome == "won"]
        assert winners == [int(promotion.who)]
        assert promotion.version == versions[winners[0]][turn % 2]
        assert promotion.previous == (history[turn - 1].version if turn else None)
        messages = [outcome for t, _, outcome in outcomes if t == turn and outcome != "won"]
        assert all(f"{promotion.version[:12]} is current" in message for message in messages)


def test_many_putting_the_same_model_at_once(store, backend, tmp_path):
    barrier, results = FORKS.Barrier(4), FORKS.Queue()
    processes = run_together(put_together, [(backend.url(tmp_path), barrier, results)] * 4)
    assert {results.get(timeout=60) for _ in range(4)} == {version_of(model(7))}
    finish(processes)
    assert store.get(KEY, version_of(model(7))).meta["n"] == 7
    assert len(store.versions(KEY)) == 1


# Names nobody should be able to use

HOSTILE = [
    "",
    ".",
    "..",
    "../..",
    "/etc",
    "a\0b",
    "a\n",
    "ä",
    "a/../b",
    "a b",
    "a\\b",
    "%2e%2e",
    "A",
    "a" * 200,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_keys_are_refused(text):
    for station in (text, f"{text}/top", f"line-1/{text}", f"line-1/top/{text}"):
        with pytest.raises(ConfigError, match="station"):
            ModelKey(station)
    with pytest.raises(ConfigError, match="recipe"):
        ModelKey("line-1/top", text)


@pytest.mark.parametrize("text", [*HOSTILE, "current", "0" * 63, "0" * 64 + "/..", "0" * 64 + "\n", "F" * 64])
def test_hostile_versions_are_not_found(store, text):
    good = put_current(store, 1)
    with pytest.raises(ModelNotFound):
        store.get(KEY, Version(text))
    with pytest.raises(ModelNotFound):
        store.promote(KEY, Version(text), expected=good, who="eve")
    if text != "current":
        with pytest.raises(ModelNotFound):
            resolve_version(store, KEY, text)
    assert store.current(KEY) == good


def test_a_person_may_name_a_version_by_its_first_digits(store):
    a = put_current(store, 1)
    assert resolve_version(store, KEY, a) == a
    assert resolve_version(store, KEY, a[:6].upper()) == a
    assert resolve_version(store, KEY, "current") == a
    with pytest.raises(ModelNotFound, match=f"too short.*{a[:12]}"):
        resolve_version(store, KEY, a[:5])
    with pytest.raises(ModelNotFound, match=f"no version.*{a[:12]}"):
        resolve_version(store, KEY, "0" * 6)
    with pytest.raises(ModelNotFound, match="nothing is stored"):
        resolve_version(store, OTHER, "current")


def test_digits_that_fit_two_versions_name_both(store, monkeypatch):
    put_current(store, 1)
    (info,) = store.versions(KEY)
    twins = [Version("abcdef" + digit * 58) for digit in "01"]
    infos = [replace(info, version=version) for version in twins]
    monkeypatch.setattr(type(store), "versions", lambda self, key: infos)
    with pytest.raises(ModelNotFound, match=r"not unique.*abcdef111111.*abcdef000000"):
        resolve_version(store, KEY, "abcdef")


# URLs


@pytest.mark.parametrize(
    "url",
    ["", "s3://key:secret@bucket", "file://srv/models", "file://", "file:///a?b", "file:///a#b", "a\0b"],
)
def test_other_urls_are_refused(url):
    with pytest.raises(ConfigError, match="file:///folder") as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_a_url_or_a_path_is_the_same_store(tmp_path, monkeypatch):
    folder = tmp_path / "my store"
    version = open_store(f"file://{tmp_path}/my%20store").put(KEY, model())
    assert open_store(str(folder)).get(KEY, version).meta["n"] == 0
    monkeypatch.chdir(tmp_path)
    relative = open_store("my store")
    monkeypatch.chdir("/")
    assert relative.keys() == [KEY]


# What only a disk can do


def everything(store: ModelStore) -> list[Callable[[], object]]:
    version = Version("0" * 64)
    return [
        lambda: store.current(KEY),
        lambda: store.get(KEY, version),
        lambda: store.history(KEY),
        lambda: store.versions(KEY),
        store.keys,
        lambda: store.promote(KEY, version, expected=None, who="ana"),
        lambda: resolve_version(store, KEY, "current"),
    ]


def test_a_disk_that_is_not_mounted_is_not_an_empty_store(tmp_path):
    root = tmp_path / "store"
    for make in (lambda: None, root.mkdir, lambda: (root.rmdir(), root.write_text("a file"))):
        make()
        for call in everything(open_store(str(root))):
            with pytest.raises(StoreUnavailable, match=str(root)):
                call()
    with pytest.raises(StoreUnavailable, match=str(root)):
        open_store(str(root)).put(KEY, model())


def test_a_disk_that_goes_away_keeps_nobody_from_coming_back(tmp_path):
    store = open_store(str(tmp_path / "store"))
    version = put_current(store, 1)
    (tmp_path / "store").rename(tmp_path / "away")
    with pytest.raises(StoreUnavailable):
        store.current(KEY)
    (tmp_path / "away").rename(tmp_path / "store")
    assert store.current(KEY) == version


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS, errno.ESTALE])
def test_errors_of_the_system_are_store_unavailable_and_leave_nothing_behind(tmp_path, monkeypatch, code):
    store = open_store(str(tmp_path / "store"))
    good, next_one = put_current(store, 1), store.put(KEY, model(2))

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    before = sorted(tmp_path.rglob("*.*"))
    for name in ("fsync", "link"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(StoreUnavailable, match=os.strerror(code)):
                store.put(KEY, model(3))
            with pytest.raises(StoreUnavailable, match=os.strerror(code)):
                store.promote(KEY, next_one, expected=good, who="ana")
    assert store.current(KEY) == good
    assert sorted(tmp_path.rglob("*.*")) == before


def test_a_lost_answer_to_a_link_that_succeeded_is_a_success(tmp_path, monkeypatch):
    """NFS repeats a call whose answer was lost, and then sees its own file."""
    store = open_store(str(tmp_path / "store"))
    version = store.put(KEY, model())
    link = os.link

    def link_and_lose_the_answer(*args):
        link(*args)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", link_and_lose_the_answer)
    store.promote(KEY, version, expected=None, who="ana")
    assert store.current(KEY) == version


def test_an_old_folder_listing_is_a_conflict(tmp_path, monkeypatch):
    """NFS caches folder listings; the number proposed from one is then taken."""
    store = open_store(str(tmp_path / "store"))
    a, b, c = put_current(store, 1), store.put(KEY, model(2)), store.put(KEY, model(3))
    store.promote(KEY, b, expected=a, who="ana")
    listings, numbers = iter([[1]]), Log.numbers
    monkeypatch.setattr(Log, "numbers", lambda self: next(listings, None) or numbers(self))
    with pytest.raises(PromotionConflict, match=b[:12]):
        store.promote(KEY, c, expected=a, who="ben")
    assert [p.version for p in store.history(KEY)] == [a, b]


def die_at(name, calls_before, url, n):
    """Put and promote, and be killed instead of making that call."""
    store = open_store(url)
    call = getattr(os, name)
    left = [calls_before]

    def maybe_die(*args, **kwargs):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return call(*args, **kwargs)

    setattr(os, name, maybe_die)
    store.promote(KEY, store.put(KEY, model(n)), expected=store.current(KEY), who="dying")


@pytest.mark.parametrize("name", ["fsync", "link"])
def test_killed_at_any_write_the_store_is_whole(tmp_path, name):
    url = f"file://{tmp_path}/store"
    store = open_store(url)
    good = put_current(store, 1)
    deaths = 0
    for calls_before in range(20):
        process = FORKS.Process(target=die_at, args=(name, calls_before, url, 100 + calls_before))
        process.start()
        process.join(60)
        deaths += process.exitcode == -signal.SIGKILL
        for info in store.versions(KEY):
            store.get(KEY, info.version)
        assert store.get(KEY, store.current(KEY)).method == "padim"
        if process.exitcode == 0:
            break
        assert store.history(KEY)[0].version == good
    assert process.exitcode == 0
    assert deaths >= 3
    assert store.current(KEY) == version_of(model(100 + calls_before))
    leftovers = list(tmp_path.rglob(".*.tmp"))
    assert leftovers
    blobs = [path for path in leftovers if "objects" in path.parts]
    for path in blobs:
        os.utime(path, (time.time() - LEFTOVER_AFTER_S - 60,) * 2)
    put_current(store, 2)
    assert not any(path.exists() for path in blobs)


def test_files_are_read_only_and_named_by_their_sum(tmp_path):
    version = put_current(open_store(str(tmp_path / "store")), 1)
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.name != LOCK]
    assert {path.name for path in files} == {MARKER, version, f"{version}.json", "00000001.json"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o444}


def test_what_people_leave_lying_about_is_passed_over(tmp_path):
    store = open_store(str(tmp_path / "store"))
    version = put_current(store, 1)
    folder = tmp_path / "store" / "models" / "line-1" / "top" / "default"
    for stray in ("promotions/notes.txt", "promotions/99999999.json~", "versions/README", "../x.txt"):
        (folder / stray).write_text("stray")
    (tmp_path / "store/models/Line 1/top/default/versions").mkdir(parents=True)
    assert store.keys() == [KEY]
    assert store.current(KEY) == version
    assert [info.version for info in store.versions(KEY)] == [version]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": "../..", "previous": null}'])
def test_a_damaged_promotion_or_entry_is_an_error_that_names_the_file(tmp_path, text):
    store = open_store(str(tmp_path / "store"))
    put_current(store, 1)
    for name, call in (("versions", store.versions), ("promotions", store.current)):
        (path,) = (tmp_path / "store/models/line-1/top/default" / name).iterdir()
        path.chmod(0o644)
        path.write_text(text)
        with pytest.raises(ArtifactError, match=path.name):
            call(KEY)


def test_every_error_of_a_store_says_what_to_do_by_its_class():
    for error in (ModelNotFound, PromotionConflict, StoreUnavailable):
        assert issubclass(error, StoreError)
