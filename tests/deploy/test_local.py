"""`make line`: what it writes is valid, what it starts it ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from deploy.local import check
from deploy.local.prometheus import RULES, prepare, queries
from deploy.local.stack import STATIONS, Line, Order, alive, free_port, schedule, tree
from pipeline import settings
from pipeline.errors import ConfigError
from pipeline.guarantee import needed
from pipeline.refit_settings import next_run
from pipeline.settings import Settings
from tests.conftest import missing
from tests.deployed import DEPLOY, ROOT, ran
from workers.health import PORTS
from workers.rig import Process, to_toml

REDIS = "redis://127.0.0.1:6379"


@pytest.fixture
def programs():
    for program in ("redis-server", "prometheus"):
        if shutil.which(program) is None:
            missing(f"no {program} here: install it (Debian: apt-get install {program})")


@pytest.mark.parametrize("minute", range(0, 60, 7))
def test_the_first_refit_is_soon_and_the_next_half_an_hour_later(minute):
    now = datetime(2026, 3, 2, 23, minute, 30, tzinfo=UTC)
    first = next_run(schedule(now), now)
    assert timedelta(minutes=2) < first - now <= timedelta(minutes=3)
    assert next_run(schedule(now), first) - first == timedelta(minutes=30)


def test_its_settings_are_a_line_s(tmp_path):
    file = tmp_path / "line.toml"
    file.write_text(to_toml(tree(Order(folder=tmp_path), REDIS)))
    read = settings.read(file, {})
    assert read.partitions() == {name: i for i, name in enumerate(STATIONS)}
    assert read.frames.roots == (f"{REDIS}/1",)
    assert read.metrics.port not in range(Settings().metrics.port, Settings().metrics.port + PORTS)


def test_refits_have_the_verified_goods_that_the_promise_needs(tmp_path):
    order = Order(folder=tmp_path)
    assert order.tests >= needed(settings.build(tree(order, REDIS)).defaults.false_reject_rate)
    assert f"test_goods={order.tests}, defects_each=5, seed=seed + 10" in (DEPLOY / "compose.yaml").read_text()


def test_prometheus_gets_the_rules_and_every_target(tmp_path):
    prepare(tmp_path, {"worker-1": "http://127.0.0.1:9790", "gate": "http://127.0.0.1:9791"})
    assert (tmp_path / "rules.yaml").read_text() == RULES.read_text()
    (job,) = yaml.safe_load((tmp_path / "prometheus.yaml").read_text())["scrape_configs"]
    (pattern,) = job["file_sd_configs"][0]["files"]
    (targets,) = tmp_path.glob(pattern)
    assert yaml.safe_load(targets.read_text()) == [
        {"targets": ["127.0.0.1:9790"], "labels": {"process": "worker"}},
        {"targets": ["127.0.0.1:9791"], "labels": {"process": "gate"}},
    ]
    if shutil.which("promtool") is None:
        missing("no promtool here: install prometheus (Debian: apt-get install prometheus)")
    told = ran("promtool", "check", "config", str(tmp_path / "prometheus.yaml"))
    assert told.returncode == 0, told.stdout + told.stderr


def test_queries_are_as_grafana_would_send_them():
    asked = list(queries())
    assert {query.dashboard for query in asked} == {"line", "models", "station", "workers"}
    assert not [query.expr for query in asked if "$" in query.expr]


def test_a_port_that_is_taken_is_not_taken_again():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert free_port(port) != port
    assert free_port(port) == port


def test_a_failure_ends_what_was_started(programs, tmp_path, monkeypatch):
    monkeypatch.setattr(Line, "_fit", lambda _: (_ for _ in ()).throw(ConfigError("no good parts")))
    line = Line(Order(folder=tmp_path / "line"))
    with pytest.raises(ConfigError, match="no good parts"), line:
        pass
    (redis,) = line.rig.processes
    assert redis.name == "redis"
    assert not alive(redis.popen.pid)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    monkeypatch.setattr(Line, "_start", lambda self: self._clear(tmp_path / "line"))
    with Line(Order(folder=tmp_path / "line")):
        pass


def test_two_lines_do_not_share_a_folder(programs, tmp_path, monkeypatch):
    monkeypatch.setattr(Line, "_start", lambda self: self._clear(tmp_path / "line"))
    with Line(Order(folder=tmp_path / "line")):
        (tmp_path / "line" / "kept").touch()
        with pytest.raises(ConfigError, match="already: end that one first"), Line(Order(folder=tmp_path / "line")):
            pass
        assert (tmp_path / "line" / "kept").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_takes_all_of_it_down(programs, tmp_path, number):
    """While parts are drawn: Redis runs by then, in a session of its own."""
    argv = [sys.executable, "-m", "deploy.local.line"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, cwd=tmp_path, text=True, stdout=subprocess.PIPE, env=environment) as line:
        assert line.stdout
        for told in line.stdout:
            if "drawing parts" in told:
                break
        (redis,) = children(line.pid)
        line.send_signal(number)
        rest = line.stdout.read()
    assert line.returncode == 0
    assert "it is all down" in rest
    assert not alive(redis)


INTERRUPTED = """
import signal, sys
from contextlib import suppress
from pathlib import Path
from deploy.local.stack import Line, Order

def start(self):
    self._tell("first")
    RAISED
    self._tell("second")

Line._start = start
try:
    with Line(Order(folder=Path(sys.argv[1]))):
        print("went on")
except KeyboardInterrupt:
    print("interrupted")
"""
RAISED = {
    "swallowed, as in a destructor": "with suppress(BaseException): signal.raise_signal(signal.SIGTERM)",
    "while code is made, as a dataclass's": "exec('signal.raise_signal(signal.SIGHUP)')",
}


@pytest.mark.parametrize("raised", RAISED.values(), ids=RAISED)
def test_a_signal_is_neither_lost_nor_kept_wherever_it_comes(tmp_path, raised):
    """In a process of its own: a collected event loop of another test may give SIGTERM its default back."""
    told = ran(sys.executable, "-c", INTERRUPTED.replace("RAISED", raised), str(tmp_path / "line"))
    assert (told.returncode, told.stdout.split()) == (0, ["first", "interrupted"]), told.stderr


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_counts_are_held_against_two_looks():
    low, high = Counter(a=3, b=1), Counter(a=5, b=1, c=1)
    assert check.outside(low, Counter(a=4, b=1), high) == []
    assert check.outside(low, Counter(a=6, b=1), high) == ["a"]
    assert check.outside(low, Counter(a=2, c=2), high) == ["a", "b", "c"]
    assert check.outside(low, Counter(a=5, b=1, d=1), high) == ["d"]


def test_a_finding_that_fails_is_told_and_remembered(capsys):
    report = check.Report()
    report.tell("every alert is quiet", True, "17 rules")
    report.tell("every process is scraped", False, "5 of 6")
    assert capsys.readouterr().out == "pass  every alert is quiet: 17 rules\nFAIL  every process is scraped: 5 of 6\n"
    assert report.failed == ["every process is scraped"]


def test_a_camera_s_last_words_are_read(tmp_path):
    (tmp_path / "camera-top.out").write_text(json.dumps({"sent": 7, "accepted": 6}) + "\n")
    with subprocess.Popen(["true"], text=True) as popen:
        assert check.accepted(Process("camera-top", popen, tmp_path / "camera-top.log")) == 6
