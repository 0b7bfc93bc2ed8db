"""What an operator asks of a line that runs: `goldline status` and `goldline doctor`."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from model_store import ModelKey, open_store, short
from pipeline.data import Artifact
from tests.line import STATIONS, results, start_worker
from workers import clients, drift_events, topics
from workers.camera import Camera
from workers.cli import cli
from workers.drift_events import BaselineAccepted, DriftAlarm
from workers.rig import Rig
from workers.shots import shots
from workers.status import LineReader

pytestmark = pytest.mark.kafka

TOP, SIDE = STATIONS


def goldline(rig: Rig, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--config", str(rig.config)])


def status(rig: Rig, *arguments: str) -> dict:
    ran = goldline(rig, "status", "--json", "--window", "600", *arguments)
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def alarm(monitor: str, **changes: str) -> DriftAlarm:
    at = datetime.now(UTC)
    said = {"station": TOP, "recipe": "default", "monitor": monitor, "direction": "higher", "frame_id": "f", **changes}
    return DriftAlarm(**said, log_martingale=9.0, log_limit=4.6, since=at, at=at, frames=50)  # type: ignore[arg-type]


def test_status_of_a_line_agrees_with_what_was_sent(
    make_line: Callable[..., Rig], pictures: Path, model: Artifact
) -> None:
    rig = make_line()
    camera = Camera(rig.settings, TOP)
    for shot in shots(str(pictures)):
        camera.send(shot)
    assert camera.close().accepted == 40
    before = status(rig)
    assert (before["workers"], before["problems"]) == (0, [])
    assert {s["station"]: (s["lag"], s["results"], s["p99_ms"]) for s in before["stations"]} == {
        TOP: (40, 0, None),
        SIDE: (0, 0, None),
    }

    worker = start_worker(rig)
    read = results(rig, 40)
    kafka, store = rig.settings.kafka, open_store(rig.store_url)
    producer = clients.producer(kafka)
    hostile = alarm("\x1b[2Jscore", station=SIDE)
    accepted = BaselineAccepted(station=TOP, recipe="default", by="ana", why="lamp", at=datetime.now(UTC))
    for event in (alarm("tint"), accepted, alarm("exposure"), alarm("sharpness"), hostile):
        producer.send(topics.name(rig.prefix, "drift"), value=drift_events.encode(event), partition=0).get(timeout=10)
    for value in (b"{", b"\xff", b"[]"):
        producer.send(topics.name(rig.prefix, "drift"), value=value, partition=0).get(timeout=10)
        producer.send(topics.name(rig.prefix, "results"), value=value, partition=0).get(timeout=10)
    producer.close()
    key = ModelKey(SIDE)
    tensors = {**model.tensors, "extra": next(iter(model.tensors.values())).clone()}
    refit = store.put(
        key,
        Artifact(method=model.method, tensors=tensors, meta=model.meta),
        lineage={"pool": "d", "refit": "grown", "why": "w"},
    )
    assert worker.end() == 0, "its last acknowledgements are with the broker"

    found = {s["station"]: s for s in status(rig)["stations"]}
    top, side = found[TOP], found[SIDE]
    assert (top["lag"], top["results"], side["results"]) == (0, 40, 0)
    assert top["rate_hz"] == pytest.approx(40 / 600, abs=1e-3)
    total = sorted(r.timings_ms.total for r in read)
    assert top["p99_ms"] == total[39]
    assert top["shares"] == {
        kind: sum(r.verdict == kind for r in read) / 40 for kind in ("pass", "reject", "no_decision")
    }
    (recipe,) = top["recipes"]
    assert recipe["model"]["version"] == store.current(ModelKey(TOP))
    assert (recipe["model"]["by"], recipe["refit"]) == ("tests", None)
    assert [a["monitor"] for a in recipe["drift"]] == ["exposure", "sharpness"], (
        "what came before the acceptance is over"
    )
    assert side["recipes"][0]["refit"]["version"] == refit

    few = {s["station"]: s for s in status(rig, "--last", "10")["stations"]}[TOP]
    assert few["results"] <= 10, "no more is read than was asked for"
    assert few["rate_hz"] > top["rate_hz"], "and the rate is of the time that these cover"

    table = goldline(rig, "status").stdout
    assert "\x1b" not in table
    for words in (TOP, short(recipe["model"]["version"]), "exposure higher", "\N{REPLACEMENT CHARACTER}[2Jscore"):
        assert words in table


def test_without_store_or_topics_status_says_so_and_shows_the_rest(make_line: Callable[..., Rig]) -> None:
    rig = make_line()
    (rig.directory / "models").rename(rig.directory / "away")
    settings = rig.settings
    more = settings.stations | {"line-3/top": settings.stations[TOP]}
    with LineReader(msgspec.structs.replace(settings, stations=more)) as reader:
        found = reader.look()
        assert [s.lag for s in found.stations] == [0, 0, None]
        assert "is it mounted?" in " ".join(found.problems)
        assert f"topic {rig.prefix}.frames lacks partitions [2]" in " ".join(found.problems)
        (rig.directory / "away").rename(rig.directory / "models")
        again = reader.look()
    assert again.stations[0].recipes[0].model is not None, "a reader recovers"
    assert not [p for p in again.problems if "mounted" in p]


def test_a_line_that_is_fit_passes_and_one_that_is_not_says_what_to_do(make_line: Callable[..., Rig]) -> None:
    rig = make_line()
    ran = goldline(rig, "doctor", "--json")
    told = {f["name"]: f["state"] for f in json.loads(ran.stdout)["findings"]}
    wanted = ("settings", "broker", "topics", "store", "models", "weights", "device")
    assert {name: told[name] for name in wanted} == dict.fromkeys(wanted, "pass")
    assert ran.exit_code == (1 if "fail" in told.values() else 0)
    connected = CliRunner().invoke(cli, ["check", str(rig.config), "--connect"])
    assert connected.exit_code == 0, connected.output
    text = rig.config.read_text()
    rig.config.write_text(text + '\n[stations."line-9/top"]\n')
    ran = goldline(rig, "doctor")
    assert ran.exit_code == 1
    assert f"goldline topics create --config {rig.config}" in ran.stdout
    assert "fail  models: none in service: line-9/top (default)" in ran.stdout
    rig.config.write_text(text)
