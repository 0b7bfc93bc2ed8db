"""What a line takes of processors: counted by the kernel, fitted, and predicted where it was not seen."""

import json
import os
import time

import pytest
from click.testing import CliRunner

from pipeline.errors import ConfigError
from workers import bench_busy, bench_load, bench_rate
from workers.bench_busy import Busy
from workers.bench_load import Point
from workers.commands import bench

SHORT = bench_rate.Driven(size_bytes=1000, seconds=1.0)
COST = {"frame": 0.03, "line": 0.12, "station": 0.004, "worker": 0.05}  # cores


def driven(line, *, stations, rate, workers, **_):
    """Stands in for a line of a known cost: the fit is what is tested. A real one runs in tests/integration."""
    cores = COST["frame"] * rate + COST["line"] + COST["station"] * stations + COST["worker"] * workers
    spent = 1000 * cores / rate
    tried = {
        "kept_up": rate < 50,
        "said": {"pass": 9},
        "achieved_per_s": rate,
        "cpu_ms": {"workers": 0.7 * spent, "broker": 0.3 * spent},
        "stolen": 0.0,
    }
    return {"engine": f"{line.method} {line.engine}", "tried": [tried]}


@pytest.fixture
def report(monkeypatch):
    monkeypatch.setattr(bench_rate, "run", driven)
    return bench_load.run(SHORT)


def test_the_command_line_says_what_is_driven(monkeypatch, tmp_path):
    lines = []
    monkeypatch.setattr(bench_rate, "run", lambda line, **more: lines.append(line) or driven(line, **more))
    asked = ["load", "--fixtured", "--set", "dim=7", "--engine", "torch", "--size", "1000", "--seconds", "2"]
    ran = CliRunner().invoke(bench.command, [*asked, "--json", str(tmp_path / "load.json")])
    assert ran.exit_code == 0, ran.output
    settings = {"dim": "7", "embedding": "principal", "locally_aware": "true", "shrinkage": "0.2", "ridge": "1e-05"}
    expected = bench_rate.Driven(size_bytes=1000, seconds=2.0, method="padim", settings=settings, engine="torch")
    assert set(map(repr, lines)) == {repr(expected)}
    assert json.loads((tmp_path / "load.json").read_text())["settings"] == settings
    refused = CliRunner().invoke(bench.command, ["line", "--set", "corset=7"])
    assert isinstance(refused.exception, ConfigError), "before any server is started"


def test_what_each_term_costs_is_found_and_unseen_lines_are_predicted(report):
    assert report["milliseconds"] == pytest.approx(
        {"frame": 30.0, "line": 120.0, "station": 4.0, "worker": 50.0}, rel=0.01
    )
    assert len(report["rows"]) == len(bench_load.FITTED) + len(bench_load.UNSEEN)
    assert [row["unseen"] for row in report["rows"][-2:]] == [True, True]
    assert report["largest_error_unseen"] < 0.01
    assert report["rows"][0]["engine"] == "patchcore auto"


def test_people_see_every_line_and_which_were_not_fitted(report):
    lines = bench_load.table(report).splitlines()
    assert lines[0].startswith("a frame takes 30.0 ms of a core")
    assert sum("(unseen)" in line for line in lines) == 2
    assert len(lines) == 2 + len(report["rows"])


def test_lines_that_cannot_tell_the_terms_apart_are_refused(monkeypatch):
    monkeypatch.setattr(bench_rate, "run", driven)
    with pytest.raises(ConfigError, match="let each of them differ alone"):
        bench_load.run(SHORT, fitted=[Point(1, 1, 10), Point(2, 2, 10), Point(3, 3, 10)])


def test_a_line_that_is_not_kept_up_with_is_no_measurement(monkeypatch):
    monkeypatch.setattr(bench_rate, "run", driven)
    with pytest.raises(ConfigError, match=r"rate=60.*more than this machine keeps up with"):
        bench_load.run(SHORT, fitted=[*bench_load.FITTED, Point(1, 1, 60)])


def test_processors_time_is_counted_from_one_question_to_the_next():
    busy = Busy({"us": [os.getpid()], "both": [os.getpid(), os.getpid()]})
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    taken = busy.seconds()
    assert taken["us"] >= 0.25
    assert taken["both"] == pytest.approx(2 * taken["us"], abs=0.1)
    assert busy.seconds()["us"] < taken["us"]


def test_a_process_that_is_gone_is_no_error():
    assert Busy({"gone": [2**22 + 1]}).seconds() == {}


def test_a_name_with_brackets_hides_no_time():
    stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 1 0 0 0 250 50 0 0 20 0 1 0 5 6 7"
    assert bench_busy.seconds_of(stat) == 300 / os.sysconf("SC_CLK_TCK")
