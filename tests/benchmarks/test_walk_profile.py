"""A sample of a profile belongs to the innermost code that is known, and a thread's time to its kind."""

from tests.benchmarks.walk_profile import kinds, part_of, shares


def test_a_librarys_time_is_that_of_whoever_called_it():
    stack = ["run (workers/desk.py:1)", "score (pipeline/pruning.py:9)", "matmul (torch/functional.py:3)"]
    assert part_of(stack) == "search"
    assert part_of(["main (somewhere.py:1)"]) == "other"
    assert part_of(["thread (0x7F): asyncio_0", "_worker (concurrent/futures/thread.py:1)"]) == "other"


def test_shares_are_of_all_samples_and_largest_first():
    lines = ["a (asyncio/base_events.py:1) 1", "a (workers/app.py:1);b (pipeline/maps.py:2) 3"]
    assert list(shares(lines).items()) == [("map", 0.75), ("event loop", 0.25)]
    assert shares([]) == {}


def test_a_thread_that_waits_does_nothing():
    lines = ["a (workers/app.py:1);select (selectors.py:468) 90", "a (pipeline/maps.py:2) 1"]
    assert shares(lines) == {"map": 1.0}


def test_threads_are_known_by_their_names_and_the_backbones_by_having_none():
    stacks = ["thread (11): device_0;a (x.py:1) 3", "thread (12): device_1;a (x.py:1) 1", "thread (13): MainThread 2"]
    found = kinds({11: 2.0, 12: 1.0, 13: 0.5, 14: 8.0}, [*stacks, "thread (15): odd;a (x.py:1) 1"])
    assert list(found.values()) == [8.0, 3.0, 0.5]
    assert list(found) == [
        "the backbone, and others that Python does not know",
        "decoding, search, map, verdict",
        "event loop: Faust, messages, publishing",
    ]
    assert kinds({15: 1.0}, ["thread (15): odd;a (x.py:1) 1"]) == {"other threads of Python": 1.0}
