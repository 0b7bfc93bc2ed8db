"""Seasons are played in processes of their own, each as `goldline simulate season` plays it."""

from tests.benchmarks import figures, seasons
from workers.season import run
from workers.season.ledger import Costs
from workers.season.world import Course


def test_rows_are_those_of_the_seasons_in_their_order():
    rows = list(seasons.played([(1, 1.0), (0, 3.0)], days=2))
    assert [(row["seed"], row["changes"]) for row in rows] == [(1, 1.0)] * 3 + [(0, 3.0)] * 3
    alone = run.simulate(Course(days=2, seed=1), run.Line(), Costs())["strategies"]
    for row in rows[:3]:
        assert row.items() >= alone[row["strategy"]].items()


def test_a_season_too_short_for_rates_has_a_page():
    rows = list(seasons.played([(1, 1.0)], days=1))
    assert rows[0]["miss_rate"] is None, "too few parts say"
    course = {"days": 1, "part": "cap", "size": [96, 96]}
    _, table = figures._seasons({"course": course, "line": {"method": "padim", "rate": 0.02}, "rows": rows})
    assert table.count("\n") == 4
