"""What is counted, under which labels: never a message's own words."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from pipeline import drift
from pipeline.data import Decision, Failure, Frame, Reason, Verdict
from pipeline.settings import build
from tests.gate_messages import TOP, Clock, frame, result
from workers import wire
from workers.camera import Sent
from workers.flow import Flow
from workers.gate import Gate
from workers.gate_loop import Traces
from workers.hooks import Hooks
from workers.messages import TimingsBody
from workers.metrics import MONITORS, CameraMetrics, GateMetrics, RefitMetrics, WorkerMetrics
from workers.outcomes import Outcome
from workers.scrape import Scrape

SETTINGS = build({"stations": {TOP: {"recipes": ["blue", "red"]}, "line-1/side": {}}})
HOSTILE = 'x"} 1\ngoldline_results_total{station="line-1/top'
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def _gate(clock):
    return Gate(build({"stations": {TOP: {}}}), frozenset({TOP}), clock=clock)


def told(metrics):
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return Scrape(tuple((s.name, dict(s.labels), s.value) for family in families for s in family.samples))


def outcome(answer=None, *, station=TOP, recipe="blue", deadline_s=60.0, unreadable=False, traceparent=None):
    now = datetime.now(UTC)
    at = Frame(
        frame_id="f",
        image=b"",
        station=station,
        recipe=recipe,
        captured_at=now - timedelta(seconds=0.25),
        deadline_at=now + timedelta(seconds=deadline_s),
    )
    record = wire.Record(topic="t", partition=0, offset=0, timestamp_ms=0, key=b"k", value=b"v", headers=[])
    arrival = wire.Arrival(frame=at, record=record, unreadable=unreadable, traceparent=traceparent)
    answer = answer or Verdict(frame_id="f", decision=Decision.PASS, score=1.0, threshold=2.0, p_value=0.5)
    return Outcome(arrival=arrival, answer=answer, decided_at=now, timings=TimingsBody(queue=7.0, decode=8.0, total=40))


def failure(reason):
    return Failure(frame_id="f", reason=reason, detail="told")


def test_what_the_settings_do_not_have_is_other():
    metrics = WorkerMetrics(SETTINGS)
    before = told(metrics).samples
    for station, recipe in [("line-9/top", "blue"), (HOSTILE, "red"), ("", "default"), (TOP, HOSTILE)]:
        metrics.received(Frame(frame_id="f", image=b"", station=station, recipe=recipe))
        metrics.published(outcome(failure(Reason.NO_MODEL), station=station, recipe=recipe))
    after = told(metrics)
    assert {(name, *labels.items()) for name, labels, _ in after.samples} == {
        (name, *labels.items()) for name, labels, _ in before
    }, "no message makes a series"
    assert after.by("station", "goldline_results_total", recipe="other") == {"other": 3, TOP: 1}


def test_what_did_not_happen_is_0():
    metrics = told(WorkerMetrics(SETTINGS))
    rows = [labels for name, labels, value in metrics.samples if name == "goldline_results_total" and value == 0]
    assert {"station": TOP, "recipe": "red", "verdict": "no_decision", "reason": "shed"} in rows
    assert len(rows) == (3 + 3) * 7, "each place of the settings, each station's others, and all others"


@pytest.mark.parametrize(
    ("answer", "deadline_s", "in_time", "late"),
    [
        (None, 60.0, 1, 0),
        (None, -0.1, 0, 1),
        (failure(Reason.BAD_FRAME), 60.0, 1, 0),
        *((failure(reason), 60.0, 0, 0) for reason in Reason if reason is not Reason.BAD_FRAME),
    ],
)
def test_decided_in_time_is_an_answer_that_helps_by_the_deadline(answer, deadline_s, in_time, late):
    metrics = WorkerMetrics(SETTINGS)
    metrics.published(outcome(answer, deadline_s=deadline_s))
    found = told(metrics)
    assert found.by("station", "goldline_results_in_time_total") == ({TOP: 1} if in_time else {})
    assert found.sum("goldline_results_late_total") == late
    assert found.sum("goldline_deadline_slack_seconds_bucket", le="0.0") == (deadline_s < 0)
    assert found.sum("goldline_decision_latency_seconds_bucket", station=TOP, le="0.2") == 0
    assert found.sum("goldline_decision_latency_seconds_bucket", station=TOP, le="5.0") == 1


def test_a_scored_frame_has_its_stages_in_seconds_and_its_score_against_the_threshold():
    metrics = WorkerMetrics(SETTINGS)
    metrics.published(outcome())
    metrics.published(outcome(failure(Reason.SHED)))
    found = told(metrics)
    assert found.sum("goldline_stage_duration_seconds_sum", station=TOP, stage="queue") == pytest.approx(0.007)
    assert found.sum("goldline_stage_duration_seconds_sum", stage="total") == pytest.approx(0.08)
    counts = found.by("stage", "goldline_stage_duration_seconds_count")
    assert counts == {"queue": 1, "decode": 1, "embed": 1, "score": 1, "publish": 2, "total": 2}
    assert found.sum("goldline_anomaly_score_ratio_sum") == 0.5


def test_a_dead_letter_is_counted_where_there_is_one():
    metrics = WorkerMetrics(SETTINGS)
    metrics.published(outcome(failure(Reason.BAD_FRAME), unreadable=True))
    metrics.published(outcome(failure(Reason.ERROR)))
    assert told(metrics).by("reason", "goldline_dead_letters_total", station=TOP) == {"bad_frame": 1}


def test_an_exemplar_leads_from_a_latency_to_its_trace():
    metrics = WorkerMetrics(SETTINGS)
    metrics.published(outcome(traceparent=TRACE))
    text = generate_openmetrics(metrics.registry).decode()
    assert '# {trace_id="0af7651916cd43dd8448eb211c80319c"}' in text
    assert "trace_id" not in generate_latest(metrics.registry).decode()


def test_received_is_results_and_in_flight_whenever_somebody_looks():
    flow, place = Flow([(TOP, "blue")]), (TOP, "blue")
    going = threading.Event()

    def work():
        while not going.is_set():
            flow.receive(place)
            flow.answer(place, Decision.PASS, "none")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    looks = []
    for _ in range(200):
        came, _, waiting, out = (sum(sample.value for sample in family.samples) for family in flow.collect())
        looks.append((came, out + waiting))
        assert 0 <= waiting <= 3
    going.set()
    for thread in threads:
        thread.join()
    assert [a - b for a, b in looks] == [0] * 200
    totals = flow.totals()
    assert totals["received"] == totals["published"] > 0
    assert totals["in_flight"] == 0


def test_lag_and_progress_are_of_the_partitions_that_are_here():
    metrics = WorkerMetrics(SETTINGS)
    metrics.looked({0: 5, 1: 9}, {0: 25, 1: 9})
    found = told(metrics)
    assert found.by("station", "goldline_consumer_lag_records") == {TOP: 20}
    progress = found.by("partition", "goldline_last_progress_timestamp_seconds")
    metrics.looked({0: 5}, {0: 30})
    later = told(metrics)
    assert later.by("partition", "goldline_last_progress_timestamp_seconds") == {"0": progress["0"]}, "it stands still"
    metrics.looked({0: 6}, {0: 30})
    assert told(metrics).sum("goldline_last_progress_timestamp_seconds") > progress["0"]


def test_the_monitors_are_those_of_drift():
    assert MONITORS == drift.MONITORS


def test_a_gate_counts_actions_and_stragglers():
    clock = Clock()
    metrics, gate = GateMetrics(build({"stations": {TOP: {}}})), _gate(clock)
    metrics.watch(gate)
    gate.see_frame(frame("a"))
    gate.see_frame(frame("b"))
    assert told(metrics).sum("goldline_gate_parts_waiting") == 2
    metrics.acted(gate.see_result(result("a")))
    clock.at += 1.0
    for action in gate.expire():
        metrics.acted(action)
    gate.see_result(result("b"))
    gate.see_result(result("b"))
    found = told(metrics)
    assert found.by("why", "goldline_gate_actions_total", action="pass") == {"verdict": 1}
    assert found.by("why", "goldline_gate_actions_total", action="reject") == {"no_verdict_in_time": 1}
    assert found.by("kind", "goldline_gate_stragglers_total") == {"late": 1, "repeated": 1}
    assert found.sum("goldline_gate_in_a_row") == 1


def test_hooks_are_counted_by_what_came_of_them():
    metrics, gate = GateMetrics(SETTINGS), _gate(Clock())
    hooks = Hooks(
        build({"gate": {"on_pass": ["true"], "on_reject": ["false"], "on_stop": ["true"], "stop_after": 1}}).gate,
        metrics,
    )
    for frame_id, verdict in (("a", "pass"), ("b", "reject")):
        gate.see_frame(frame(frame_id))
        hooks.call(gate.see_result(result(frame_id, verdict)))
    hooks.close()
    found = told(metrics)
    assert found.by("hook", "goldline_gate_hooks_total", outcome="done") == {"pass_command": 1, "stop_command": 1}
    assert found.by("hook", "goldline_gate_hooks_total", outcome="failed") == {"reject_command": 1}
    assert found.sum("goldline_gate_stops_total") == 1


def test_evidence_of_drift_is_told_until_another_worker_watches():
    metrics, watched = WorkerMetrics(SETTINGS), drift.Drift(0.01)
    watched.baseline.monitors["sharpness"].log_betting = 3.0
    metrics.drift((TOP, "blue"), watched)
    found = told(metrics)
    evidence = found.by("monitor", "goldline_drift_log_martingale", station=TOP, recipe="blue")
    assert evidence["sharpness"] == watched.baseline.monitors["sharpness"].log_value > 3.0
    assert found.sum("goldline_drift_log_limit") == pytest.approx(watched.limit)
    metrics.drift_elsewhere((TOP, "blue"))
    assert told(metrics).by("monitor", "goldline_drift_log_martingale") == {}


def test_an_action_leads_to_the_trace_of_the_frame_that_decided():
    gate, traces = _gate(Clock()), Traces(frozenset({TOP}))
    traces.note(TOP, "a", TRACE)
    traces.note("line-9/top", "b", TRACE)
    for frame_id, expected in (("a", TRACE), ("b", None)):
        gate.see_frame(frame(frame_id))
        action = traces.mark(gate.see_result(result(frame_id)))
        assert action.body()["traceparent"] == expected


def test_a_camera_tells_what_became_of_its_frames():
    sent = Sent()
    metrics = CameraMetrics(SETTINGS, TOP, sent)
    sent.sent, sent.accepted, sent.failed = 9, 7, 2
    assert told(metrics).by("outcome", "goldline_camera_frames_total", station=TOP) == {
        "sent": 9,
        "accepted": 7,
        "failed": 2,
    }


def test_refits_are_counted_by_what_came_of_them():
    metrics = RefitMetrics(SETTINGS)
    metrics.refit(TOP, "blue", "failed")
    metrics.refit(TOP, "blue", "refused", seconds=90.0)
    found = told(metrics)
    assert found.by("outcome", "goldline_refits_total", station=TOP, recipe="blue") == {"failed": 1, "refused": 1}
    assert found.sum("goldline_refit_duration_seconds_sum") == 90.0


def test_a_new_trace_is_one_that_we_would_take():
    first, second = wire.new_traceparent(), wire.new_traceparent()
    assert wire.traceparent_of(first) == first != second
    assert wire.traceparent_of("ff" + TRACE[2:]) is None
    assert wire.traceparent_of(TRACE[:36] + "0" * 16 + "-01") is None
