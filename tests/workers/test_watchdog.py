"""Stuck is: frames wait, the broker answers, and nothing is committed for a while."""

import pytest

from workers.watchdog import Stall


class Clock:
    at = 0.0

    def __call__(self):
        return self.at


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def stall(clock):
    return Stall(60.0, clock)


def test_frames_that_wait_without_progress_are_stuck_after_a_while(stall, clock):
    for clock.at in (0.0, 30.0, 60.0):
        assert stall.look({0: 5}, {0: 9}) == []
    clock.at = 60.1
    assert stall.look({0: 5}, {0: 9}) == [0]


def test_any_progress_is_progress(stall, clock):
    for step in range(20):
        clock.at = step * 50.0
        assert stall.look({0: step}, {0: 1000}) == []


def test_nothing_to_do_is_not_stuck(stall, clock):
    for clock.at in (0.0, 1e6, 2e6):
        assert stall.look({0: 5, 1: 0}, {0: 5}) == []


def test_the_time_counts_from_when_frames_began_to_wait(stall, clock):
    stall.look({0: 5}, {0: 5})
    clock.at = 1000.0
    assert stall.look({0: 5}, {0: 5}) == []
    clock.at = 1059.0
    assert stall.look({0: 5}, {0: 6}) == []
    clock.at = 1061.0
    assert stall.look({0: 5}, {0: 6}) == [0]


def test_only_the_partitions_that_are_stuck_are_named(stall, clock):
    stall.look({0: 5, 1: 5, 2: 5}, {0: 9, 1: 9, 2: 5})
    clock.at = 61.0
    assert stall.look({0: 5, 1: 6, 2: 5}, {0: 9, 1: 9, 2: 5}) == [0]


def test_a_group_set_back_moved(stall, clock):
    stall.look({0: 500}, {0: 900})
    clock.at = 61.0
    assert stall.look({0: 100}, {0: 900}) == []


def test_a_partition_that_comes_back_has_its_time_again(stall, clock):
    """After a rebalance the new holder of a partition is given the whole time, whoever held it before."""
    stall.look({0: 5, 1: 5}, {0: 5, 1: 9})
    clock.at = 20.0
    stall.look({0: 5}, {0: 5})
    clock.at = 100.0
    assert stall.look({0: 5, 1: 5}, {0: 5, 1: 9}) == []
    clock.at = 161.0
    assert stall.look({0: 5, 1: 5}, {0: 5, 1: 9}) == [1]


def test_a_partition_that_stays_keeps_its_time_when_others_come_and_go(stall, clock):
    stall.look({0: 5}, {0: 9})
    clock.at = 40.0
    stall.look({0: 5, 1: 1}, {0: 9, 1: 9})
    clock.at = 61.0
    assert stall.look({0: 5}, {0: 9}) == [0]
