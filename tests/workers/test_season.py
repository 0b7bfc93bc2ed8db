"""A season: the same parts for every strategy, and figures only where there are numbers."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline.errors import ConfigError
from pipeline.refit_settings import Rules
from workers.cli import cli
from workers.season import ledger, page, run
from workers.season.ledger import Costs, DayOf
from workers.season.strategies import Night
from workers.season.world import Course, World

SMALL = Course(days=4, size=(64, 64), parts_per_day=40, defect_rate=0.1, probe_goods=30, probe_defects=30)
NAMES = ["never refit", "naive nightly", "goldline"]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    line = run.Line(goods=120, rate=0.1)
    return run.simulate(SMALL, line, Costs(), Rules(frames_min=20, frames_max=60, goods_min=30))


def day(goods: list[float], defects: list[float], outcome: str = "nothing") -> DayOf:
    line = {"parts": 10, "defective": 1, "missed": 0, "falsely_rejected": 2}
    return DayOf(goods=np.array(goods), defects=np.array(defects), line=line, night=Night(outcome=outcome))


def test_a_seed_is_one_season_and_another_seed_another() -> None:
    one, same, other = (World(Course(days=3, seed=seed, size=(64, 64))).day(2) for seed in (4, 4, 5))
    assert one == same
    assert one.parts[0].frame.image != other.parts[0].frame.image


def test_no_picture_serves_two_purposes() -> None:
    world = World(SMALL)
    pictures = [frame.image for frame in (*world.commissioning(50), *world.challenges()[:30])]
    for number in range(2):
        made = world.day(number)
        pictures += [part.frame.image for part in made.parts]
        pictures += [frame.image for frame in (*made.probe_goods, *made.probe_defects)]
    assert len(set(pictures)) == len(pictures)


def test_a_station_ages_and_a_new_lamp_is_as_bright_as_the_first() -> None:
    world = World(Course(days=70, lamp_days=60, parts_per_day=10))
    lamps = [world.day(number).change.lamp for number in (0, 59, 60)]
    assert lamps[1] < 0.9 < lamps[0] == lamps[2]


def test_changes_are_as_large_as_asked_for_and_of_the_same_season() -> None:
    usual, large, none = (World(Course(days=70, parts_per_day=10, changes=times)) for times in (1.0, 3.0, 0.0))
    for number in (0, 20, 59):
        a, b = usual.day(number), large.day(number)
        assert a.lot == b.lot
        assert b.warmer_c == pytest.approx(3 * a.warmer_c)
        assert np.array(b.change.lot) - 1 == pytest.approx(3 * (np.array(a.change.lot) - 1))
        still = none.day(number).change
        assert (still.lamp, still.lot, still.blur_px, still.scale) == (1.0, (1.0, 1.0, 1.0), 0.0, 1.0)
    assert large.day(59).change.lamp < usual.day(59).change.lamp < 0.9
    with pytest.raises(ConfigError, match="changes of a season must be 0 to 10"):
        Course(changes=-1)


def test_misses_are_found_late_or_never() -> None:
    parts = [p for n in range(3) for p in World(Course(days=3, size=(64, 64), defect_rate=0.5)).day(n).parts]
    bad = [part for part in parts if part.defect is not None]
    found = [part.found_at - part.captured_at for part in bad if part.found_at is not None]
    assert 0.5 < len(found) / len(bad) < 0.9
    assert max(found) > timedelta(hours=24) > min(found)
    assert all(part.found_at is None for part in parts if part.defect is None)


def test_every_strategy_begins_with_the_same_model_and_sees_the_same_parts(report: dict[str, Any]) -> None:
    assert list(report["strategies"]) == NAMES
    first = report["days"][0]["strategies"]
    for name in NAMES[1:]:
        for count in ("false_rejects", "misses", "line"):
            assert first[name][count] == first[NAMES[0]][count]
    assert len({found["line"]["defective"] for found in report["strategies"].values()}) == 1


def test_what_each_strategy_does_at_night(report: dict[str, Any]) -> None:
    nights = {name: [d["strategies"][name]["night"] for d in report["days"]] for name in NAMES}
    assert nights["never refit"] == ["nothing"] * 4
    assert nights["naive nightly"] == ["live"] * 4
    assert [night != "nothing" for night in nights["goldline"]] == [False, False, True, False], "every third night"
    assert nights["goldline"][2] in {"live", "refused"}, "its review decides, and a seed is not the same on every CPU"
    learnt = {name: found["defective_parts_learnt"] for name, found in report["strategies"].items()}
    assert learnt["never refit"] == 0
    assert learnt["goldline"] <= learnt["naive nightly"]


def test_a_rate_needs_a_hundred_parts(report: dict[str, Any]) -> None:
    weeks = [d["strategies"]["goldline"]["week"] for d in report["days"]]
    assert weeks[0] == {"false_reject_rate": None, "miss_rate": None}
    assert weeks[3]["false_reject_rate"] is not None


def test_a_cost_is_of_the_lines_own_share_of_defects() -> None:
    cost = Costs(miss=50, false_reject=1).of(miss_rate=0.1, false_reject_rate=0.02, defect_rate=0.005)
    assert cost == pytest.approx(1000 * (0.005 * 0.1 * 50 + 0.995 * 0.02))


def test_strategies_are_compared_at_equal_false_rejects() -> None:
    days = [day([0.5, 0.9, 1.1, 1.2], [0.8, 1.05, 1.3, 2.0])]
    assert ledger.misses_at(days, 0.5) == 0.25  # a line at 0.9: two goods above it, one defect below
    assert ledger.misses_at(days, 0.0) == 0.5
    assert ledger.false_rejects_at(days, 0.25) == 0.5  # a line just below 1.05: one defect below it, two goods above
    assert ledger.false_rejects_at(days, 0.0) == 0.75
    assert ledger.false_rejects_at(days, 1.0) == 0.0
    found = ledger.rates([day([0.5, 1.1] * 50, [0.5, 2.0, 2.0, 2.0] * 25)])
    assert found == {"false_reject_rate": 0.5, "miss_rate": 0.25}


def test_the_page_stands_alone_and_escapes(report: dict[str, Any]) -> None:
    shown = page.render({**report, "course": {**report["course"], "part": "<script>"}})
    assert shown.count("<polyline") == 3 + 3 + 2
    assert "<script" not in shown
    assert "://" not in shown
    assert all(name in shown for name in NAMES)


def test_a_season_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="no part"):
        Course(part="wheel")
    with pytest.raises(ConfigError, match="defect rate"):
        Course(defect_rate=1.5)
    with pytest.raises(ConfigError, match="audited"):
        Course(parts_per_day=5)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


def test_the_command_writes_numbers_and_a_page(tmp_path: Any, one_thread: None) -> None:
    numbers, shown = tmp_path / "season.json", tmp_path / "season.html"
    arguments = ["simulate", "season", "--days", "1", "--parts-per-day", "12", "--json", str(numbers)]
    told = CliRunner().invoke(cli, [*arguments, "--html", str(shown)], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    assert all(name in told.output for name in NAMES)
    assert json.loads(numbers.read_text())["course"]["parts_per_day"] == 12
    assert shown.read_text().startswith("<!doctype html>")
