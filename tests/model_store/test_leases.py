"""One process has a lease; the others learn who. The same rules on a disk and in Redis."""

import os
import signal
import time

import pytest

from model_store import ModelKey, open_store
from model_store.leases import Leases, open_leases
from model_store.leases_redis import RedisLeases
from pipeline.errors import ConfigError, LeaseTaken, StoreUnavailable
from tests.model_store.backends import FORKS, KEY, in_redis, model

NAME = "refit/line-1/top/default"
TTL_S = 1.0


def opened(url: str) -> Leases:
    """The leases at a URL, those in Redis with a short life."""
    leases = open_leases(url)
    if isinstance(leases, RedisLeases):
        return RedisLeases(leases._redis, leases._prefix, ttl_s=TTL_S)
    return leases


@pytest.fixture
def url(backend, tmp_path):
    url = backend.url(tmp_path)
    open_store(url).put(KEY, model())
    return url


@pytest.fixture
def leases(url):
    return opened(url)


def hold_and_wait(url, line):
    with opened(url).hold(NAME, who="the other process"):
        line.send("holding")
        line.recv()


@pytest.fixture
def other(url):
    """Another process that has the lease; `end` tells it to end."""
    here, there = FORKS.Pipe()
    process = FORKS.Process(target=hold_and_wait, args=(url, there))
    process.start()
    assert here.poll(60)
    assert here.recv() == "holding"
    process.end = lambda: here.send("end")
    yield process
    if process.is_alive():
        process.end()
    process.join(60)


def test_the_second_is_told_who_has_it(leases):
    told = pytest.raises(LeaseTaken, match=f"{NAME}: ana@server-3 is at it since")
    with leases.hold(NAME, who="ana@server-3"), told, leases.hold(NAME, who="bob"):
        pass


def test_it_is_free_after_the_block_however_that_ends(leases):
    with pytest.raises(ZeroDivisionError), leases.hold(NAME, who="ana"):
        _ = 1 / 0
    with leases.hold(NAME, who="bob") as lease:
        lease.require()


def test_leases_of_other_names_are_others(leases):
    with leases.hold(NAME, who="ana"), leases.hold(f"{NAME}-2", who="bob") as lease:
        lease.require()


def test_another_process_is_kept_out_and_let_in_after_it(leases, other):
    with pytest.raises(LeaseTaken, match="the other process"), leases.hold(NAME, who="ana"):
        pass
    other.end()
    other.join(60)
    with leases.hold(NAME, who="ana") as lease:
        lease.require()


def test_a_holder_that_dies_holds_nothing_for_long(leases, other):
    os.kill(other.pid, signal.SIGKILL)
    other.join(60)
    for _ in range(200):
        try:
            with leases.hold(NAME, who="ana") as lease:
                lease.require()
            return
        except LeaseTaken:
            time.sleep(TTL_S / 20)
    pytest.fail("it is held for ever")


def test_it_outlives_its_time_to_live_while_it_is_worked_on(leases, other):
    time.sleep(2.5 * TTL_S)
    with pytest.raises(LeaseTaken, match="the other process"), leases.hold(NAME, who="ana"):
        pass


def test_one_of_many_at_once_has_it(url):
    results = FORKS.Queue()
    barrier = FORKS.Barrier(6)
    processes = [FORKS.Process(target=try_to_hold, args=(url, barrier, results)) for _ in range(6)]
    for process in processes:
        process.start()
    got = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sorted(got) == ["had it", *["told"] * 5]


def try_to_hold(url, barrier, results):
    leases = opened(url)
    barrier.wait(60)
    try:
        with leases.hold(NAME, who="one of many"):
            results.put("had it")
            barrier.wait(60)
    except LeaseTaken:
        results.put("told")
        barrier.wait(60)


@pytest.mark.parametrize("name", ["", "../up", "a/../b", "a//b", "/a", "A", "a\n", "a/" * 200])
def test_a_name_that_leads_elsewhere_is_refused(leases, name):
    with pytest.raises(ConfigError, match="a lease is named"), leases.hold(name, who="ana"):
        pass


@pytest.mark.parametrize("recipe", ["default", "sku-7.b", "a_b"])
def test_every_station_and_recipe_can_name_one(leases, recipe):
    key = ModelKey("line-1/top", recipe)
    with leases.hold(f"refit/{key.station}/{key.recipe}", who="ana") as lease:
        lease.require()


def test_a_disk_that_is_not_mounted_is_no_free_lease(tmp_path):
    with pytest.raises(StoreUnavailable, match="mounted"), open_leases(f"file://{tmp_path}").hold(NAME, who="ana"):
        pass


def test_a_lease_in_redis_that_another_took_over_is_lost_and_not_theirs_to_end(redis_server, tmp_path, monkeypatch):
    monkeypatch.setenv("GOLDLINE_TEST_REDIS", redis_server)
    client = in_redis(tmp_path)
    leases = RedisLeases(client, tmp_path.name, ttl_s=TTL_S)
    key = f"{tmp_path.name}:lease:{NAME}"
    with leases.hold(NAME, who="ana") as lease:
        client.set(key, b'{"who":"bob","since":"2026-01-01T00:00:00Z"}')
        for _ in range(100):
            try:
                lease.require()
            except LeaseTaken:
                break
            time.sleep(TTL_S / 20)
        else:
            pytest.fail("it believes that it has the lease")
    assert b"bob" in client.get(key), "it is the other's, and stays"


def test_a_set_that_the_client_repeats_as_its_answer_was_lost_is_no_other_holder(redis_server, tmp_path, monkeypatch):
    monkeypatch.setenv("GOLDLINE_TEST_REDIS", redis_server)
    client = in_redis(tmp_path)
    once = client.set

    def repeated(*arguments, **options):
        once(*arguments, **options)
        return once(*arguments, **options)

    monkeypatch.setattr(client, "set", repeated)
    with RedisLeases(client, tmp_path.name, ttl_s=TTL_S).hold(NAME, who="ana") as lease:
        lease.require()
        told = pytest.raises(LeaseTaken, match="ana is at it")
        with told, RedisLeases(in_redis(tmp_path), tmp_path.name, ttl_s=TTL_S).hold(NAME, who="bob"):
            pass
    assert client.get(f"{tmp_path.name}:lease:{NAME}") is None, "it was given back"


def test_a_redis_that_is_away_is_no_free_lease(server):
    leases = open_leases(f"redis://{server.address}/0")
    server.kill()
    with pytest.raises(StoreUnavailable), leases.hold(NAME, who="ana"):
        pass
