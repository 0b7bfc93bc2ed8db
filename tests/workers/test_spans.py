"""Spans of a frame: whose children they are, what they say, and that nothing ever waits for them."""

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from pipeline.data import Decision, Failure, Frame, Reason, Verdict
from pipeline.errors import ConfigError
from pipeline.settings import Settings, build
from tests.gate_messages import TOP, Clock, frame, result
from tests.otlp import Collector
from workers import spans, wire
from workers.gate import Gate
from workers.gate_loop import Traces
from workers.messages import ModelBody, TimingsBody
from workers.outages import Outages
from workers.outcomes import Outcome
from workers.spans import Exporter, Spans

TRACE, SENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SENT}-01", f"00-{TRACE}-{SENT}-00"
DECIDED = datetime(2025, 6, 15, 12, 0, 0, tzinfo=UTC)
VERSION = "c" * 64


@pytest.fixture
def memory():
    """The SDK's own exporter for tests, told of each span at once."""
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    inside = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    return Spans(export.SimpleSpanProcessor(inside), process="worker"), inside.get_finished_spans


def outcome(answer=None, *, traceparent=SAMPLED, part_id="p", timings=None):
    at = Frame(
        frame_id="f",
        image=b"",
        station=TOP,
        recipe="blue",
        part_id=part_id,
        captured_at=DECIDED - timedelta(seconds=0.2),
        deadline_at=DECIDED + timedelta(seconds=0.1),
    )
    record = wire.Record(topic="t", partition=0, offset=0, timestamp_ms=0, key=b"k", value=b"v", headers=[])
    return Outcome(
        arrival=wire.Arrival(frame=at, record=record, traceparent=traceparent),
        answer=answer or Verdict(frame_id="f", decision=Decision.REJECT, score=3.0, threshold=2.0, p_value=0.01),
        decided_at=DECIDED,
        model=None if answer else ModelBody(method="patchcore", version=VERSION),
        timings=timings or TimingsBody(queue=10, decode=5, embed=20, score=4, total=40),
    )


def seconds(span):
    """Begin and end, in milliseconds from when the frame was decided."""
    zero = DECIDED.timestamp() * 1e9
    return round((span.start_time - zero) / 1e6), round((span.end_time - zero) / 1e6)


def test_a_worker_tells_of_a_frame_below_the_span_of_its_camera(memory):
    told, finished = memory
    told.inspected(outcome())
    inspect, *stages = finished()
    assert inspect.name == "inspect"
    assert (inspect.context.trace_id, inspect.parent.span_id) == (int(TRACE, 16), int(SENT, 16))
    assert inspect.parent.is_remote
    assert dict(inspect.attributes) == {
        "goldline.station": TOP,
        "goldline.recipe": "blue",
        "goldline.frame_id": "f",
        "goldline.part_id": "p",
        "goldline.verdict": "reject",
        "goldline.score": 3.0,
        "goldline.threshold": 2.0,
        "goldline.model.method": "patchcore",
        "goldline.model.version": VERSION,
        "goldline.late": False,
    }
    assert inspect.status.is_unset
    assert {span.parent.span_id for span in stages} == {inspect.context.span_id}
    assert {span.context.trace_id for span in stages} == {inspect.context.trace_id}
    assert len({span.context.span_id for span in (inspect, *stages)}) == 6
    assert [(span.name, seconds(span)) for span in stages[:4]] == [
        ("queue", (-40, -30)),
        ("decode", (-30, -25)),
        ("embed", (-25, -5)),
        ("score", (-5, -1)),
    ]
    assert stages[4].name == "publish"
    assert seconds(stages[4])[0] == 0
    assert (seconds(inspect)[0], inspect.end_time) == (-40, stages[4].end_time)


def test_stages_never_lie_outside_their_frame(memory):
    told, finished = memory
    told.inspected(outcome(timings=TimingsBody(queue=30, decode=5, embed=50, score=4, total=40)))
    assert [seconds(span) for span in finished()[1:4]] == [(-40, -10), (-10, -5), (-5, 0)]


def test_a_frame_without_a_verdict_is_an_error_with_its_reason(memory):
    told, finished = memory
    told.inspected(outcome(Failure(frame_id="f", reason=Reason.SHED, detail="no time"), timings=TimingsBody(total=3)))
    inspect, publish = finished()
    assert (inspect.status.is_ok, inspect.status.description) == (False, "shed")
    assert (inspect.attributes["goldline.verdict"], inspect.attributes["goldline.reason"]) == ("no_decision", "shed")
    assert "goldline.model.version" not in inspect.attributes
    assert publish.name == "publish"


def test_a_camera_s_span_is_the_one_that_the_frame_names(memory):
    told, finished = memory
    told.sent(SAMPLED, began=DECIDED.timestamp(), about={"station": TOP, "part_id": "p"})
    told.sent(SAMPLED, began=DECIDED.timestamp(), about={}, error=TimeoutError("away"))
    taken, lost = finished()
    assert (taken.name, taken.context.trace_id, taken.context.span_id) == ("send", int(TRACE, 16), int(SENT, 16))
    assert taken.parent is None
    assert dict(taken.attributes) == {"goldline.station": TOP, "goldline.part_id": "p"}
    assert (taken.status.is_unset, lost.status.description) == (True, "TimeoutError")


def test_a_gate_decides_below_the_camera_s_span_from_when_it_first_heard_of_the_frame(memory):
    told, finished = memory
    gate, traces = Gate(build({"stations": {TOP: {}}}), frozenset({TOP}), clock=Clock()), Traces(frozenset({TOP}))
    gate.see_frame(frame("a"))
    traces.note(TOP, "a", SAMPLED)
    heard = traces.heard("a")
    traces.note(TOP, "a", SAMPLED)  # the result has it too
    action = traces.mark(gate.see_result(result("a", "reject")))
    told.decided(action, heard=traces.heard(action.frame_id))
    (decide,) = finished()
    assert (decide.context.trace_id, decide.parent.span_id) == (int(TRACE, 16), int(SENT, 16))
    assert decide.start_time == round(heard * 1e9) <= decide.end_time
    assert (decide.attributes["goldline.action"], decide.attributes["goldline.why"]) == ("reject", "verdict")
    assert decide.status.is_unset


def test_a_part_without_a_frame_is_a_trace_of_its_own_and_an_error(memory):
    told, finished = memory
    gate = Gate(build({"stations": {TOP: {}}}), frozenset({TOP}), by_part=True, clock=(clock := Clock()))
    gate.see_trigger("p" * 1000, TOP, clock.at)
    clock.at += 1
    (action,) = gate.expire()
    told.decided(action, heard=None)
    (decide,) = finished()
    assert decide.parent is None
    assert decide.status.description == "no_verdict_in_time"
    assert decide.attributes["goldline.part_id"] == "p" * 200, "a trigger's word is bounded"


def test_what_is_not_sampled_is_not_told(memory):
    told, finished = memory
    told.sent(UNSAMPLED, began=0.0, about={})
    told.inspected(outcome(traceparent=UNSAMPLED))
    assert finished() == ()


def test_the_share_of_traces_that_begin_here():
    flags = [wire.new_traceparent(0.25)[-2:] for _ in range(2000)]
    assert set(flags) == {"00", "01"}
    assert 400 < flags.count("01") < 600
    assert {wire.new_traceparent(share)[-2:] for share in [0.0] * 99} == {"00"}
    assert all(wire.is_sampled(wire.new_traceparent()) for _ in range(99))
    assert wire.traceparent_of(wire.new_traceparent(0.0))


def test_a_collector_gets_them_over_http():
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with Collector() as collector:
        told = spans.opened(build({"tracing": {"endpoint": collector.endpoint}}), "worker")
        told.inspected(outcome())
        told.inspected(outcome(traceparent=UNSAMPLED))
        told.close()
        (inspect,) = collector.of("inspect")
        assert (inspect.service, inspect.trace, inspect.parent) == ("goldline-worker", TRACE, SENT)
        assert inspect.about["goldline.score"] == 3.0
        assert {span.parent for span in collector.spans if span is not inspect} == {inspect.span}
        assert len(collector.spans) == 6


def test_nothing_waits_for_a_collector_that_does_not_answer():
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with Collector() as collector:
        collector.open.clear()  # it takes requests, and answers none until the end
        told = spans.opened(build({"tracing": {"endpoint": collector.endpoint}}), "worker")
        for _ in range(spans._QUEUED // 4):  # six spans each: more than the queue holds
            told.inspected(outcome())
        assert not collector.spans
        with capture_logs() as logged:
            told.close()
        assert [line["event"] for line in logged if "last ones" in line["event"]] == ["spans: the last ones are lost"]


class Refusing:
    """An exporter as the SDK has them, whose collector is away or refuses until `takes`."""

    def __init__(self):
        self.takes = False
        self.raises = True

    def export(self, _):
        from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415

        if self.takes:
            return SpanExportResult.SUCCESS
        self.raises = not self.raises
        if self.raises:
            raise ConnectionError("refused")
        return SpanExportResult.FAILURE


def test_a_collector_that_takes_nothing_is_told_of_once_a_minute():
    pytest.importorskip("opentelemetry.sdk")
    clock, refusing = Clock(), Refusing()
    exporter = Exporter(refusing, "http://collector", outages=Outages(clock))
    with capture_logs() as logged:
        for _ in range(75):
            exporter.export(["a span", "another"])
            clock.at += 2
        refusing.takes = True
        exporter.export(["a span"])
    events = [line["event"].removeprefix("spans: the collector ") for line in logged]
    assert events == ["does not take them"] * 3 + ["takes them again"]
    assert [line["lost"] for line in logged] == [2, 62, 122, 150]


def test_what_cannot_be_made_is_told_once_and_harms_nothing(memory):
    told, finished = memory
    broken = replace(outcome(), timings=None)
    with capture_logs() as logged:
        for _ in range(5):
            told.inspected(broken)
    assert [line["event"] for line in logged] == ["spans: one could not be made"]
    assert finished() == ()


def test_without_an_endpoint_nothing_is_imported():
    script = """
import sys
from pipeline.settings import Settings
from workers import spans
off = spans.opened(Settings(), "camera")
off.sent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", began=0.0, about={})
off.close()
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_an_endpoint_without_the_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'goldline\[otel\]'"):
        spans.opened(build({"tracing": {"endpoint": "http://127.0.0.1:4318/v1/traces"}}), "worker")


@pytest.mark.parametrize("wrong", [{"endpoint": "127.0.0.1:4318"}, {"share": 1.5}, {"share": -0.1}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match="tracing"):
        build({"tracing": wrong})
    assert Settings().tracing.endpoint is None
