"""What becomes of versions, in every kind of store: marks and their log, states, collection, and races with these."""

import errno
import fcntl
import os
import signal
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from model_store import (
    ITSELF,
    Marks,
    State,
    Version,
    open_store,
    promote,
    rollback,
    state_of,
    version_of,
    withdraw,
    withdrawal,
)
from model_store.cache import Cache
from model_store.lifecycle import collect
from pipeline.errors import (
    ConfigError,
    MarksConflict,
    ModelNotFound,
    PromotionConflict,
    StoreUnavailable,
)
from tests.model_store.backends import FORKS, KEY, OTHER, finish, in_redis, model, put_current, run_together

RACERS = 6
ROUNDS = 5
PUTS = 60


def ago(days):
    return datetime.now(UTC) - timedelta(days=days)


@pytest.fixture
def aged(store, backend, tmp_path):
    """Puts a model as it was put so many days ago."""

    def put(n, days, key=KEY):
        version = store.put(key, model(n))
        backend.age(tmp_path, key, version, days)
        return version

    return put


def mark(store, who="ana", why="", **changes):
    before = store.marks(KEY)
    store.mark(KEY, replace(before, **changes), expected=before, who=who, why=why)


def kept(collected, key=KEY):
    return {fate.version: fate.kept for fate in collected.fates if fate.key == key}


# Marks


def test_a_shadow_that_is_promoted_is_one_no_more_and_a_rollback_brings_no_canary_back(store):
    first = put_current(store, 1)
    second = store.put(KEY, model(2))
    mark(store, shadow=second, canary_share=0.5, pins=frozenset({first}))
    promote(store, KEY, second, expected=first, who="ana")
    assert store.marks(KEY) == Marks(pins=frozenset({first}))
    rollback(store, KEY, "ana")
    assert store.current(KEY) == first
    assert store.marks(KEY).shadow is None


def test_nothing_is_marked_where_nobody_said_so(store):
    store.put(KEY, model())
    assert store.marks(KEY) == Marks()
    assert store.markings(KEY) == []


def test_marks_are_the_last_line_of_a_log_that_only_grows(store, backend, tmp_path):
    a, b = (store.put(KEY, model(n)) for n in (1, 2))
    mark(store, who="ana", why="the golden one", pins=frozenset({a}))
    mark(store, who="ben", shadow=b, canary_share=0.05)
    first = store.markings(KEY)
    mark(store, who="cyd", why="enough", shadow=None, canary_share=0.0)
    again = open_store(backend.url(tmp_path))
    assert again.markings(KEY)[:2] == first
    assert [(m.who, m.why) for m in again.markings(KEY)] == [("ana", "the golden one"), ("ben", ""), ("cyd", "enough")]
    assert [m.marks.canary_share for m in again.markings(KEY)] == [0.0, 0.05, 0.0]
    assert first[1].marks == Marks(pins=frozenset({a}), shadow=b, canary_share=0.05)
    assert again.marks(KEY) == Marks(pins=frozenset({a}))
    assert all(m.at.utcoffset() == timedelta(0) for m in first)
    assert store.marks(OTHER) == Marks()


def test_the_same_marks_record_nothing(store):
    a = store.put(KEY, model())
    mark(store, pins=frozenset({a}))
    mark(store, pins=frozenset({a}))
    assert len(store.markings(KEY)) == 1


def test_marks_that_are_not_as_expected_are_a_conflict(store):
    a, b = (store.put(KEY, model(n)) for n in (1, 2))
    seen = store.marks(KEY)
    mark(store, pins=frozenset({a}))
    with pytest.raises(MarksConflict, match="meanwhile"):
        store.mark(KEY, Marks(pins=frozenset({b})), expected=seen, who="ben")
    assert store.marks(KEY).pins == {a}


def test_what_is_not_stored_cannot_be_marked(store):
    store.put(KEY, model())
    for missing in (Version("0" * 64), Version("../../etc"), store.put(OTHER, model(5))):
        for marks in (Marks(pins=frozenset({missing})), Marks(shadow=missing)):
            with pytest.raises(ModelNotFound):
                store.mark(KEY, marks, expected=Marks(), who="ana")
    assert store.markings(KEY) == []


@pytest.mark.parametrize("who", ["", "  ", "\ud800"])
def test_marks_need_a_name(store, who):
    a = store.put(KEY, model())
    with pytest.raises(ConfigError, match="who"):
        mark(store, who=who, pins=frozenset({a}))
    assert store.markings(KEY) == []


@pytest.mark.parametrize(
    ("shadow", "share"), [(None, 0.1), ("0" * 64, -0.1), ("0" * 64, 1.1), ("0" * 64, float("nan"))]
)
def test_a_share_is_between_nothing_and_all_and_of_a_version(shadow, share):
    with pytest.raises(ConfigError, match="canary"):
        Marks(shadow=shadow, canary_share=share)


def test_states_follow_from_history_and_marks(store):
    candidate, shadow = (store.put(KEY, model(n)) for n in (1, 2))
    retired, active = put_current(store, 3), put_current(store, 4)
    mark(store, shadow=shadow)
    states = {v: state_of(v, store.history(KEY), store.marks(KEY)) for v in (candidate, shadow, retired, active)}
    assert states == {
        candidate: State.CANDIDATE,
        shadow: State.SHADOW,
        retired: State.RETIRED,
        active: State.ACTIVE,
    }
    store.promote(KEY, shadow, expected=active, who="ana")
    assert state_of(shadow, store.history(KEY), store.marks(KEY)) == State.ACTIVE


# Collection


def test_what_keeps_a_version(store, backend, tmp_path, aged):
    old, pinned, shadow, previous, current = (aged(n, 90) for n in range(5))
    fresh = aged(5, 1)
    put_current(store, 3)
    put_current(store, 4)
    mark(store, pins=frozenset({pinned}), shadow=shadow)
    for version in (old, pinned, shadow, previous, current):
        backend.age(tmp_path, KEY, version, 90)
    collected = collect(store, unused_since=ago(30))
    assert kept(collected) == {
        old: "",
        pinned: "pinned",
        shadow: "shadow",
        previous: "previous: a rollback returns to it",
        current: "current",
        fresh: f"used {ago(1):%Y-%m-%d}",
    }
    assert {info.version for info in store.versions(KEY)} == {pinned, shadow, previous, current, fresh}
    assert backend.objects(tmp_path) == {pinned, shadow, previous, current, fresh}
    with pytest.raises(ModelNotFound):
        store.get(KEY, old)
    for version in (pinned, shadow, previous, current, fresh):
        store.get(KEY, version)
    assert collected.freed_bytes > 40 * 6 * 4
    assert rollback(store, KEY, "ana") == previous


def test_what_a_person_approved_last_is_kept_as_refits_are_held_beside_it(store, backend, tmp_path, aged):
    older, approved, *refits = (aged(n, 90) for n in range(6))
    put_current(store, 0)
    put_current(store, 1)
    before = approved
    for version in refits:
        promote(store, KEY, version, expected=before, who=ITSELF)
        before = version
    for version in (older, approved, *refits):
        backend.age(tmp_path, KEY, version, 90)
    found = kept(collect(store, unused_since=datetime.now(UTC) + timedelta(days=1)))
    assert found[approved] == "approved last by a person: refits are held beside it"
    assert [found[version] for version in (older, *refits[:-2])] == ["", "", ""]
    assert store.get(KEY, approved)


def test_a_canary_is_kept_as_one(store, aged):
    version = aged(1, 90)
    mark(store, shadow=version, canary_share=0.05)
    assert kept(collect(store, unused_since=ago(30))) == {version: "canary for 0.05 of the parts"}


def test_a_dry_run_says_the_same_and_deletes_nothing(store, backend, tmp_path, aged):
    gone, _ = aged(1, 90), put_current(store, 2)
    before = backend.objects(tmp_path)
    said = collect(store, unused_since=ago(30), dry_run=True)
    assert backend.objects(tmp_path) == before
    assert store.get(KEY, gone).meta["n"] == 1
    backend.age(tmp_path, KEY, gone, 90)
    assert collect(store, unused_since=ago(30)) == said
    assert said.freed_bytes == said.swept[0].size_bytes > 0


def test_what_was_in_service_was_used_until_it_was_replaced(store, backend, tmp_path, aged):
    """A worker that may not write to the store records no use; the history does."""
    first = aged(1, 400)
    put_current(store, 1)
    for n in (2, 3):
        put_current(store, n)
    backend.age(tmp_path, KEY, first, 400)
    assert kept(collect(store, unused_since=ago(30)))[first].startswith("used ")
    assert kept(collect(store, unused_since=ago(0)))[first] == ""


def test_loading_and_putting_again_are_uses(store, aged):
    loaded, put_again, idle = (aged(n, 90) for n in (1, 2, 3))
    store.get(KEY, loaded)
    store.put(KEY, model(2))
    collected = kept(collect(store, unused_since=ago(30)))
    assert {version for version, why in collected.items() if why.startswith("used")} == {loaded, put_again}
    assert collected[idle] == ""


def test_a_use_is_recorded_once_a_day(store, backend, tmp_path, aged):
    version = aged(1, 0.5)
    (before,) = store.versions(KEY)
    store.get(KEY, version)
    assert store.versions(KEY) == [before]
    backend.age(tmp_path, KEY, version, 1.5)
    store.get(KEY, version)
    assert store.versions(KEY)[0].used_at > before.used_at


def test_a_model_stays_while_any_key_has_it(store, backend, tmp_path, aged):
    version = aged(1, 90)
    assert aged(1, 90, OTHER) == version
    before = store.marks(OTHER)
    store.mark(OTHER, Marks(pins=frozenset({version})), expected=before, who="ana")
    collected = collect(store, unused_since=ago(30))
    assert (kept(collected), kept(collected, OTHER)) == ({version: ""}, {version: "pinned"})
    assert (collected.swept, collected.freed_bytes) == ((), 0)
    assert store.keys() == [OTHER]
    assert store.get(OTHER, version).meta["n"] == 1
    store.mark(OTHER, Marks(), expected=store.marks(OTHER), who="ana")
    backend.age(tmp_path, OTHER, version, 90)
    assert [swept.version for swept in collect(store, unused_since=ago(30)).swept] == [version]
    assert backend.objects(tmp_path) == set()


def test_deleting_asks_again_at_the_moment_of_deletion(store, aged):
    """Between the plan and the deletion somebody promotes, pins, or loads."""
    promoted, pinned, loaded = (aged(n, 90) for n in (1, 2, 3))
    store.promote(KEY, promoted, expected=None, who="ana")
    mark(store, pins=frozenset({pinned}))
    store.get(KEY, loaded)
    assert store.delete(KEY, promoted, unused_since=ago(0)) == "current"
    assert store.delete(KEY, pinned, unused_since=ago(0)) == "pinned"
    assert store.delete(KEY, loaded, unused_since=ago(30)).startswith("used ")
    assert len(store.versions(KEY)) == 3


def test_what_was_deleted_can_be_put_again(store, aged):
    version = aged(1, 90)
    collect(store, unused_since=ago(30))
    with pytest.raises(ModelNotFound):
        store.delete(KEY, version, unused_since=ago(30))
    with pytest.raises(ModelNotFound):
        store.promote(KEY, version, expected=None, who="ana")
    assert store.put(KEY, model(1)) == version
    assert store.get(KEY, version).meta["n"] == 1


def test_the_log_outlives_the_versions_that_it_names(store, backend, tmp_path, aged):
    versions = [put_current(store, n) for n in range(4)]
    backend.age(tmp_path, KEY, versions[0], 90)
    mark(store, pins=frozenset({versions[0]}))
    mark(store, pins=frozenset())
    history, markings = store.history(KEY), store.markings(KEY)
    collect(store, unused_since=datetime.now(UTC))
    assert {info.version for info in store.versions(KEY)} == set(versions[2:])
    assert (store.history(KEY), store.markings(KEY)) == (history, markings)


def test_what_a_collection_left_half_done_the_next_one_finishes(store, backend, tmp_path, aged):
    """It died after the entry, before the model."""
    version = aged(1, 90)
    store.delete(KEY, version, unused_since=ago(30))
    assert backend.objects(tmp_path) == {version}
    assert collect(store, unused_since=ago(30), dry_run=True).freed_bytes > 0
    assert [swept.version for swept in collect(store, unused_since=ago(30)).swept] == [version]
    assert backend.objects(tmp_path) == set()


def test_what_a_worker_holds_in_memory_outlives_its_deletion(store, aged):
    version = put_current(store, 1)
    held = store.get(KEY, version)
    put_current(store, 2)
    put_current(store, 3)
    collect(store, unused_since=datetime.now(UTC))
    assert held.tensors["bank"].sum() == 40 * 6
    with pytest.raises(ModelNotFound):
        store.get(KEY, version)


# This machine's copies


def test_old_copies_go_but_for_what_is_in_service(tmp_path):
    cache = Cache(tmp_path)
    service, old, fresh = (version_of(model(n)) for n in (1, 2, 3))
    for path, days in [(f"objects/{service}", 90), (f"objects/{old}", 90), (f"objects/{fresh}", 1)]:
        (tmp_path / "objects").mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"model")
        os.utime(tmp_path / path, (ago(days).timestamp(),) * 2)
    for name, days in [(f".{old}.0123.tmp", 90), (f".{fresh}.0123.tmp", 0), ("notes.txt", 90)]:
        (tmp_path / "objects" / name).write_bytes(b"mod")
        os.utime(tmp_path / "objects" / name, (ago(days).timestamp(),) * 2)
    cache.remember(KEY, service)
    dry = cache.sweep(unused_since=ago(30), dry_run=True)
    assert len(list((tmp_path / "objects").iterdir())) == 6
    assert cache.sweep(unused_since=ago(30)) == dry
    assert [(swept.where, swept.size_bytes) for swept in dry] == [("cache", 3), ("cache", 5)]
    assert {path.name for path in (tmp_path / "objects").iterdir()} == {
        service,
        fresh,
        f".{fresh}.0123.tmp",
        "notes.txt",
    }


# Races, with real processes


def mark_race(url, me, mine, barrier, results):
    store = open_store(url)
    for turn in range(ROUNDS):
        before = store.marks(KEY)
        barrier.wait(60)
        try:
            store.mark(KEY, Marks(pins=before.pins | {mine[turn]}), expected=before, who=f"{me}")
            results.put((turn, me, "won"))
        except MarksConflict:
            results.put((turn, me, "told"))
        barrier.wait(60)


def test_of_many_marking_at_once_exactly_one_wins_and_the_others_are_told(store, backend, tmp_path):
    versions = [[store.put(KEY, model(10 * i + j)) for j in range(ROUNDS)] for i in range(RACERS)]
    barrier, results = FORKS.Barrier(RACERS), FORKS.Queue()
    url = backend.url(tmp_path)
    processes = run_together(mark_race, [(url, i, versions[i], barrier, results) for i in range(RACERS)])
    outcomes = [results.get(timeout=60) for _ in range(RACERS * ROUNDS)]
    finish(processes)
    markings = store.markings(KEY)
    assert len(markings) == ROUNDS
    for turn, marking in enumerate(markings):
        (winner,) = [me for t, me, outcome in outcomes if t == turn and outcome == "won"]
        assert marking.who == f"{winner}"
        assert versions[winner][turn] in marking.marks.pins
        assert len(marking.marks.pins) == turn + 1
    assert sum(outcome == "told" for *_, outcome in outcomes) == (RACERS - 1) * ROUNDS


def collect_until(url, stop, results):
    """Delete whatever nothing keeps, without a pause."""
    store, deleted = open_store(url), 0
    while not stop.is_set():
        deleted += sum(not fate.kept for fate in collect(store, unused_since=datetime.now(UTC)).fates)
    results.put(deleted)


def put_and_look(url, key, seed, stop, results):
    """Put the same few models again and again; whoever finds an entry must find a model."""
    store = open_store(url)
    for turn in range(PUTS):
        version = store.put(key, model((seed + turn) % 3))
        look(store, key, version)
        for info in store.versions(key):
            look(store, key, info.version)
    results.put("put")


def promote_and_look(url, key, seed, stop, results):
    """What is current must be there, always."""
    store = open_store(url)
    promoted = 0
    for turn in range(PUTS):
        try:
            store.promote(
                key, store.put(key, model(100 + (seed + turn) % 7)), expected=store.current(key), who=f"{seed}"
            )
            promoted += 1
        except (ModelNotFound, PromotionConflict):
            pass  # deleted, or another was faster: told, not broken
        if store.current(key):
            look_at_current(store, key)
    assert promoted
    results.put("put")


def look(store, key, version):
    with suppress(ModelNotFound):
        store.get(key, version)


def look_at_current(store, key):
    """Loaded as by a worker: two promotions between the two reads may retire and delete it, and then it moved on."""
    for _ in range(50):
        current = store.current(key)
        try:
            store.get(key, current)
            return
        except ModelNotFound:
            assert store.current(key) != current, "what is current was deleted"
    raise AssertionError("never caught up")


@pytest.mark.parametrize("act", [put_and_look, promote_and_look])
def test_nothing_that_races_with_a_collection_ends_without_its_model(store, backend, tmp_path, act):
    store.put(KEY, model(50))
    url, stop, results, counts = backend.url(tmp_path), FORKS.Event(), FORKS.Queue(), FORKS.Queue()
    collectors = run_together(collect_until, [(url, stop, counts)] * 2)
    actors = run_together(act, [(url, key, seed, stop, results) for seed, key in enumerate((KEY, OTHER, KEY))])
    try:
        for process in actors:
            process.join(200)
    finally:
        stop.set()
    deleted = sum(counts.get(timeout=60) for _ in collectors)
    finish([*collectors, *actors])
    assert deleted > 2
    keys = store.keys()
    for key in keys:
        for info in store.versions(key):
            store.get(key, info.version)
        current = store.current(key)
        assert current is None or store.get(key, current)


def die_while_deleting(url, calls_before):
    """Collect, and be killed instead of removing that file."""
    unlink, left = os.unlink, [calls_before]

    def maybe_die(*args, **kwargs):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return unlink(*args, **kwargs)

    os.unlink = maybe_die
    collect(open_store(url), unused_since=datetime.now(UTC))


def test_killed_while_deleting_a_disk_is_whole_and_free_for_others(tmp_path):
    url = f"file://{tmp_path}/store"
    store = open_store(url)
    deaths = 0
    for calls_before in range(12):
        for n in range(3):
            store.put(KEY, model(n))
        process = FORKS.Process(target=die_while_deleting, args=(url, calls_before))
        process.start()
        process.join(60)
        deaths += process.exitcode == -signal.SIGKILL
        for info in store.versions(KEY):
            store.get(KEY, info.version)
        if process.exitcode == 0:
            break
    assert process.exitcode == 0
    assert deaths >= 3
    assert store.versions(KEY) == []
    assert list((tmp_path / "store" / "objects").glob("*/*")) == []


def test_a_sweep_in_the_middle_of_a_put_does_no_harm(redis_server, tmp_path, monkeypatch):
    """Of Redis: the model is written and swept before its entry is there."""
    monkeypatch.setenv("GOLDLINE_TEST_REDIS", redis_server)
    url = f"redis://{redis_server}/0?prefix={tmp_path.name}&cache={tmp_path}/cache"
    store, other = open_store(url), open_store(url)
    store.put(OTHER, model(9))
    write, sweeps = store._objects.write, [0]

    def write_and_be_swept(encoded):
        write(encoded)
        sweeps[0] += 1
        assert other.sweep(unused_since=ago(0)) == []
        if sweeps[0] < 3:  # this put took so long that it passes for dead
            with in_redis(tmp_path) as client:
                for name in client.hkeys(f"{tmp_path.name}:puts"):
                    client.hset(f"{tmp_path.name}:puts", name, 0)
            assert [swept.version for swept in other.sweep(unused_since=ago(0))] == [encoded.version]

    monkeypatch.setattr(store._objects, "write", write_and_be_swept)
    version = store.put(KEY, model(1))
    assert sweeps == [3]
    with in_redis(tmp_path) as client:
        assert not client.exists(f"{tmp_path.name}:puts")
    assert store.get(KEY, version).meta["n"] == 1


def test_a_disk_without_locks_takes_puts_and_refuses_to_delete(tmp_path, monkeypatch):
    """Of disks: some network mounts have none. What cannot be done safely is not done."""

    def no_locks(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    store = open_store(f"file://{tmp_path}/store")
    version = put_current(store, 1)
    idle = store.put(KEY, model(2))
    with pytest.raises(StoreUnavailable, match="No locks available"):
        collect(store, unused_since=datetime.now(UTC))
    assert store.get(KEY, version)
    assert store.get(KEY, idle)


def test_a_withdrawn_version_goes_in_service_no_more_and_is_no_shadow(store):
    active, other = put_current(store, 1.0), store.put(KEY, model(2.0))
    store.mark(KEY, Marks(shadow=other, canary_share=0.05), expected=Marks(), who="ana")
    withdraw(store, KEY, other, who="bob", why="a crack was learnt")
    assert state_of(other, store.history(KEY), store.marks(KEY)) == State.WITHDRAWN
    assert (store.marks(KEY).shadow, store.marks(KEY).canary_share) == (None, 0.0)
    with pytest.raises(ConfigError, match=r"was withdrawn by bob, .*: a crack was learnt"):
        promote(store, KEY, other, expected=active, who="ana")
    assert store.current(KEY) == active
    withdraw(store, KEY, other, who="cyd", why="again")
    assert "bob" in withdrawal(store, KEY, other), "who did it first stands"
    assert withdrawal(store, KEY, active) == ""


def test_what_is_in_service_is_not_withdrawn_before_another_is_promoted(store):
    first, second = put_current(store, 1.0), put_current(store, 2.0)
    with pytest.raises(ConfigError, match="is in service: `goldline models rollback`"):
        withdraw(store, KEY, second, who="bob", why="a crack was learnt")
    assert (store.current(KEY), store.marks(KEY)) == (second, Marks())
    assert rollback(store, KEY, "ana") == first
    withdraw(store, KEY, second, who="bob", why="a crack was learnt")
    with pytest.raises(ConfigError, match="withdrawn by bob"):
        rollback(store, KEY, "ana")
    assert store.current(KEY) == first


def test_only_what_is_there_can_be_withdrawn_and_a_collection_takes_it(store, backend, tmp_path):
    put_current(store, 1.0)
    with pytest.raises(ModelNotFound):
        withdraw(store, KEY, Version("a" * 64), who="bob", why="no such")
    other = store.put(KEY, model(2.0))
    withdraw(store, KEY, other, who="bob", why="it is bad")
    backend.age(tmp_path, KEY, other, 40)
    (gone,) = [fate.version for fate in collect(store, unused_since=ago(30)).fates if not fate.kept]
    assert gone == other
    another = store.put(KEY, model(3.0))
    withdraw(store, KEY, another, who="bob", why="what is gone does not stand in the way")
    assert store.marks(KEY).withdrawn == {another}, "what is gone is not carried along"


def withdraw_one(url, n):
    other = open_store(url)
    withdraw(other, KEY, other.put(KEY, model(n)), who=f"process {n}", why="at once")


def test_many_who_withdraw_at_once_all_do(store, backend, tmp_path):
    put_current(store, 0.0)
    finish(run_together(withdraw_one, [(backend.url(tmp_path), float(n)) for n in range(1, 4)]))
    assert len(store.marks(KEY).withdrawn) == 3
