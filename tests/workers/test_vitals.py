"""A worker's health: alive while it decides, ready once it inspects the frames of its stations."""

import asyncio

import pytest

from model_store import ModelKey
from pipeline.settings import build
from workers.inspect import Lanes
from workers.live import State
from workers.vitals import Vitals

SETTINGS = build({"worker": {"stuck_s": 60.0}, "stations": {"line-1/top": {}, "line-2/top": {}}})


class Lane:
    recovered = True
    undecided_s = 0.0

    def reassigned(self):
        pass


class Models:
    def __init__(self, **ok):
        self._ok = ok

    def states(self):
        return [State(ModelKey(f"line-{n}/top"), self._ok.get(f"line_{n}", True), "told") for n in (1, 2)]


@pytest.fixture
def worker():
    """Vitals of a worker that has joined its group, and its one lane."""

    async def make():
        lane = Lane()
        lanes = Lanes(lambda _: lane)
        lanes.assigned({0})
        return lane, lanes

    lane, lanes = asyncio.run(make())

    def start(assigned=frozenset({0}), **ok):
        vitals = Vitals(SETTINGS, Models(**ok))
        vitals.watch(lanes, lambda: set(assigned))
        return vitals, lane

    return start


def failing(checks):
    return [check.name for check in checks if not check.ok]


def test_a_worker_that_loads_its_models_is_alive_and_not_ready():
    vitals = Vitals(SETTINGS, Models())
    assert failing(vitals.live()) == []
    assert failing(vitals.ready()) == ["start"]


def test_a_worker_without_its_place_in_the_group_is_not_ready():
    vitals = Vitals(SETTINGS, Models())

    async def make():
        return Lanes(lambda _: Lane())

    vitals.watch(asyncio.run(make()), set)
    assert failing(vitals.ready()) == ["group"]


def test_a_member_of_the_group_with_nothing_to_do_is_ready(worker):
    assert failing(worker(assigned=())[0].ready()) == []


def test_only_models_of_stations_that_are_here_count(worker):
    assert failing(worker(line_1=False)[0].ready()) == ["model line-1/top (default)"]
    assert failing(worker(line_2=False)[0].ready()) == []


def test_what_was_answered_before_has_to_be_known(worker):
    vitals, lane = worker()
    lane.recovered = False
    assert failing(vitals.ready()) == ["recovery"]


def test_a_frame_that_is_waited_for_too_long_ends_the_worker(worker):
    vitals, lane = worker()
    lane.undecided_s = 59.0
    assert failing(vitals.live()) == []
    lane.undecided_s = 61.0
    assert failing(vitals.live()) == ["next_frame"]
