"""Drift on a real line: seen, told once, kept over a restart, and begun anew by a person."""

import io
import json
import subprocess
import sys
import time

import pytest
from PIL import Image, ImageEnhance

from model_store import ModelKey, open_store
from tests.line import start_worker
from workers import baselines, bench_rig, clients, drift_events, topics
from workers.bench_rig import Reader, pictures, play
from workers.camera import Camera
from workers.rig import Rig

STATION = "line-1/top"
ALARM = "drift: a station is not as it was"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    store = open_store(f"file://{tmp_path_factory.mktemp('made')}/models")
    return bench_rig.fit(store, bench_rig.backbone(), (0,))[0]


def darker(image):
    out = io.BytesIO()
    ImageEnhance.Brightness(Image.open(io.BytesIO(image))).enhance(0.8).save(out, "JPEG", quality=92)
    return out.getvalue()


def send(rig, images, count):
    with Reader(rig) as reader:
        camera = Camera(rig.settings, STATION, deadline_ms=60_000)
        sent = {frame_id for frame_id, _ in play([camera], images, rate=40.0, count=count)}
        camera.close()
        reader.wait_for(sent)
        assert sent <= reader.results.keys()
    return sent


def goldline(rig, *arguments):
    command = [sys.executable, "-m", "workers", *arguments, "--config", str(rig.config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def shown(rig):
    return goldline(rig, "drift", STATION)["recipes"]["default"]["monitors"]


def events(rig, *, wanted):
    client = clients.tail(rig.settings.kafka, topics.name(rig.prefix, "drift"), from_start=True)
    found, until = [], time.monotonic() + 15
    while len(found) < wanted and time.monotonic() < until:
        found += [drift_events.decode(record.value) for record in clients.records(client)]
    client.close()
    return found


def test_a_lamp_that_dims_is_told_once_over_a_restart_and_until_it_is_accepted(broker, tmp_path, model):
    good = pictures()
    dark = [darker(image) for image in good]
    with Rig(tmp_path / "line", {"stations": {STATION: {}}}, address=broker) as rig:
        bench_rig.put(open_store(rig.store_url), ModelKey(STATION), model)
        first = start_worker(rig, assigned=1)
        send(rig, good, 120)
        assert first.end() == 0
        assert ALARM not in first.log.read_text()
        before = shown(rig)
        # What a busy machine left out is few.
        assert 100 <= before["exposure"]["frames"] <= 120
        assert all(each["alarm"] is None for each in before.values())

        second = start_worker(rig, "second", assigned=1)
        sent = send(rig, dark, 60)
        assert second.end() == 0
        after = shown(rig)
        alarm = after["exposure"]["alarm"]
        assert alarm["direction"] == "lower"
        assert alarm["frame_id"] in sent
        assert before["exposure"]["frames"] < after["exposure"]["frames"] == alarm["seen"]
        raised = {name for name, each in after.items() if each["alarm"]}
        told = [json.loads(line) for line in second.log.read_text().splitlines() if ALARM in line]
        assert sorted(each["monitor"] for each in told) == sorted(raised)
        published = events(rig, wanted=len(raised))
        assert {(each.station, each.recipe) for each in published} == {(STATION, "default")}
        assert sorted(each.monitor for each in published) == sorted(raised)
        (dimmed,) = (each for each in published if each.monitor == "exposure")
        assert (dimmed.frame_id, dimmed.direction) == (alarm["frame_id"], "lower")
        assert dimmed.log_martingale >= dimmed.log_limit

        third = start_worker(rig, "third", assigned=1)
        send(rig, dark, 24)
        assert shown(rig)["exposure"]["alarm"] == alarm
        goldline(rig, "baseline", "accept", STATION, "--by", "ana", "--why", "new lamp")
        rig.wait_for(third, "drift: a new baseline begins", within_s=30)
        send(rig, dark, 60)
        assert third.end() == 0
        anew = shown(rig)
        assert all(each["alarm"] is None for each in anew.values())
        assert 40 <= anew["exposure"]["frames"] <= 60
        assert ALARM not in third.log.read_text()

        # A state from before, as another server may have it, gives way to what was accepted meanwhile.
        path = baselines.place(rig.settings, STATION, "default")
        old = baselines.read(path)
        old.accepted_ms = 0
        baselines.write(path, old)
        fourth = start_worker(rig, "fourth", assigned=1)
        send(rig, dark, 24)
        assert fourth.end() == 0
        assert 10 <= shown(rig)["exposure"]["frames"] <= 24


def test_what_is_accepted_is_a_station_of_the_line_by_somebody(broker, tmp_path):
    with Rig(tmp_path / "line", {"stations": {STATION: {}}}, address=broker) as rig:
        for arguments, words in (
            (("baseline", "accept", "line-9/top", "--by", "ana", "--why", "so"), "no station line-9/top"),
            (("baseline", "accept", STATION, "--recipe", "x", "--by", "ana", "--why", "so"), "recipe x"),
            (("baseline", "accept", STATION, "--why", "so"), "--by"),
            (("drift", "line-9/top"), "no station line-9/top"),
            (("drift", STATION), "nothing is kept"),
        ):
            command = [sys.executable, "-m", "workers", *arguments, "--config", str(rig.config)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            assert done.returncode == 2
            assert words in done.stderr
        assert not events_now(rig)


def events_now(rig):
    client = clients.tail(rig.settings.kafka, topics.name(rig.prefix, "drift"), from_start=True)
    ends = client.end_offsets(client.assignment())
    client.close()
    return sum(ends.values())
