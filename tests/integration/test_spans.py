"""A frame's trace, from the camera by the worker to the gate, as a collector gets it from real processes."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.line import STATIONS, results, start_worker
from tests.otlp import Collector
from workers.rig import Rig, to_toml

pytestmark = pytest.mark.kafka


def test_a_frame_is_one_trace_from_camera_to_gate(make_line: Callable[..., Rig], pictures: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with Collector() as collector:
        rig = make_line()
        with rig.config.open("a") as file:
            file.write(to_toml({"tracing": {"endpoint": collector.endpoint}}))
        gate = rig.run("gate", "gate", "--config", str(rig.config))
        rig.wait_for(gate, "gate started")
        worker = start_worker(rig)
        asked = ("--station", STATIONS[0], "--count", "8", "--rate", "20")
        camera = rig.run("camera", "camera", str(pictures), "--config", str(rig.config), *asked)
        assert camera.popen.wait(60) == 0, camera.last_words()
        read = {result.frame_id: result for result in results(rig, 8)}
        until = time.monotonic() + 30
        while len(collector.of("decide")) < 8 and time.monotonic() < until:
            time.sleep(0.1)
        worker.end()
        gate.end()
    sent = {span.trace: span for span in collector.of("send")}
    assert len(sent) == len(read) == 8
    assert {span.parent for span in sent.values()} == {""}
    for name in ("inspect", "decide"):
        spans = collector.of(name)
        assert {span.trace for span in spans} == sent.keys()
        assert all(span.parent == sent[span.trace].span for span in spans)
        assert all(span.about["goldline.frame_id"] == sent[span.trace].about["goldline.frame_id"] for span in spans)
    for span in collector.of("inspect"):
        result = read[str(span.about["goldline.frame_id"])]
        assert result.model is not None
        assert span.about["goldline.verdict"] == result.verdict
        assert span.about["goldline.model.version"] == result.model.version
        (embed,) = (each for each in collector.of("embed") if each.parent == span.span)
        assert (embed.end - embed.start) / 1e6 == pytest.approx(result.timings_ms.embed, abs=0.01)
    assert {span.service for span in collector.spans} == {"goldline-camera", "goldline-worker", "goldline-gate"}
