"""What a plant takes, and how its frames fare."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.errors import ConfigError
from workers.cli import cli
from workers.queueing import Service
from workers.sizing import Hardware, Plant, plan
from workers.sizing_simulation import by_load, one_lost

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "sizing.md"
SERVICE = Service(per_frame_s=0.004, per_batch_s=0.0)
PLANT = Plant(stations=1000, per_line=10, rate=30.0, frame_bytes=200_000)


def planned(plant=PLANT, **hardware):
    return plan(plant, Hardware(service=SERVICE, **hardware))


def test_a_plant_by_hand():
    found = planned(replace(PLANT, trigger=True))
    assert (found.frames, found.lines, found.partitions_per_line) == (30_000, 100, 10)
    assert found.partitions == 100 * (10 + 10 + 10 + 4), "frames, results, heatmaps, and four topics of one partition"
    # 250 frames a second, six tenths of them: five stations of 30. Two workers for ten stations, 16 on a machine.
    assert (found.stations_per_worker, found.workers_per_line, found.workers, found.machines) == (5, 2, 200, 13)
    assert found.load == pytest.approx(0.6)
    assert found.in_bytes == found.written_bytes == 3 * 30_000 * 201_000
    assert found.gate_in_bytes == 300 * 1000
    assert found.out_bytes == 2 * 30_000 * 201_000 + 30_000 * 200_000 + 100 * 300 * 1000
    assert found.brokers_by == {"network": 12, "disk": 37, "partitions": 3, "copies": 3}
    assert found.brokers == 38
    assert found.kept_bytes["frames"] == 1000 * 3 * 2 * 2**30, "2 GiB a station come before an hour"
    assert found.kept_bytes["results"] == 1000 * 3 * 30 * 1000 * 7 * 86_400


def test_a_gate_without_a_trigger_reads_the_frames_too():
    found = planned()
    assert found.gate_in_bytes == 300 * 201_000
    assert found.out_bytes - planned(replace(PLANT, trigger=True)).out_bytes == 30_000 * 200_000


def test_slow_stations_keep_their_frames_for_an_hour():
    found = planned(replace(PLANT, rate=1.0))
    assert found.kept_bytes["frames"] == 1000 * 3 * 3600 * 200_000


def test_workers_share_stations_out_evenly_within_the_planned_load():
    found = planned(replace(PLANT, per_line=11))
    assert (found.lines, found.workers_per_line, found.stations_per_worker) == (91, 3, 4), "not five, five and one"


@pytest.mark.parametrize(
    ("plant", "hardware", "told"),
    [(replace(PLANT, rate=251.0), {}, "more than one worker decides"), (PLANT, {"threads": 32}, "does not fit")],
)
def test_what_cannot_be_is_refused(plant, hardware, told):
    with pytest.raises(ConfigError, match=told):
        planned(plant, **hardware)


def test_more_stations_on_a_worker_wait_longer_until_they_are_not_decided_in_time():
    found = by_load(PLANT, SERVICE, seed=0)
    below = [each for each in found if each.load < 0.95]
    assert len(below) >= 4
    assert all(each.in_time == 1.0 for each in below)
    assert [each.p99_ms for each in below] == sorted(each.p99_ms for each in below)
    assert found[-1].load > 1.05
    assert found[-1].in_time == pytest.approx(1 / found[-1].load, abs=0.03), "as many as can be"
    assert found == by_load(PLANT, SERVICE, seed=0), "seeded"


def test_triggers_at_once_cost_more_than_triggers_apart():
    apart, together = (by_load(replace(PLANT, together=which), SERVICE, seed=0) for which in (False, True))
    assert all(a.p99_ms < t.p99_ms for a, t in zip(apart, together, strict=True) if 0.4 < a.load < 0.95)


def lost(gap_s, plant=PLANT, pause_s=0.0, **hardware):
    return one_lost(plant, planned(plant, **hardware), SERVICE, gap_s=gap_s, pause_s=pause_s, seed=0)


def test_a_worker_that_is_replaced_at_once_loses_nothing():
    found = lost(0.0, load=0.4)
    assert (found.frames, found.seconds, found.in_time_minute) == (0.0, 0.0, 1.0)


def test_a_worker_that_is_missed_late_loses_its_stations_frames_of_that_time():
    found = lost(10.0, load=0.4)
    stations = 3  # of ten, on four workers
    assert found.frames == pytest.approx(stations * 30 * 10.0, rel=0.05)
    assert found.seconds == pytest.approx(10.0, abs=0.5)
    assert found.load_after == pytest.approx(4 * 30 / 250)
    assert found.in_time_after == 1.0


def test_while_the_group_pauses_everybody_waits():
    still = lost(10.0, load=0.4, pause_s=2.0).frames - lost(10.0, load=0.4).frames
    assert still == pytest.approx(10 * 30 * 2.0, rel=0.15)


def test_a_line_s_only_worker_has_to_come_back():
    found = lost(5.0, replace(PLANT, per_line=4), load=0.6)
    assert found.frames == pytest.approx(4 * 30 * 5.0, rel=0.08)
    assert found.load_after == pytest.approx(4 * 30 / 250)


def test_two_workers_cannot_do_the_work_of_one_more():
    found = lost(10.0, load=0.9)
    assert found.load_after > 1.1
    assert found.seconds is None
    assert found.in_time_after < 0.95


def test_the_figures_in_the_document_are_what_its_command_prints():
    ((asked, printed),) = re.findall(
        r"^```sh run\n(goldline sizing .*)\n```\n\n```text\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL
    )
    ran = CliRunner().invoke(cli, shlex.split(asked)[1:])
    assert ran.exit_code == 0, ran.output
    assert ran.output == printed


def test_as_json_it_says_what_was_asked_and_what_was_found():
    ran = CliRunner().invoke(cli, ["sizing", "--stations", "3", "--rate", "5", "--ms-per-frame", "20", "--json"])
    told = json.loads(ran.output)
    assert told["plant"]["per_line"] == told["plant"]["stations"] == 3
    assert told["hardware"]["service"]["per_frame_s"] == 0.02
    assert told["plan"]["workers"] == 1
    assert {"plan", "by_load", "one_worker_lost"} <= told.keys()
