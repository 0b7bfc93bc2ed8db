"""Every claim of the demo's report is a count of results, checked by hand here."""

import itertools
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from workers import messages, wire
from workers.demo.tally import STAGES, Tally, Truth, quantiles, read_manifest

START = datetime(2025, 6, 15, 12, tzinfo=UTC)
FIELDS = {"queue": 1.0, "decode": 2.0, "embed": 3.0, "score": 4.0, "total": 20.0}


def result(frame_id, verdict="pass", *, reason=None, score=None, version="a" * 64, decided_ms=30.0):
    return messages.Result(
        result_id=messages.result_id(frame_id, version),
        frame_id=frame_id,
        part_id=None,
        station="line-1/top",
        recipe="default",
        verdict=verdict,
        reason=reason,
        score=None if reason else score if score is not None else 1.0,
        threshold=None if reason else 2.0,
        model=None if reason else messages.ModelBody(method="patchcore", version=version),
        timings_ms=messages.TimingsBody(**FIELDS),
        captured_at=START,
        deadline_at=START + timedelta(milliseconds=300),
        decided_at=START + timedelta(milliseconds=decided_ms),
    )


_offsets = itertools.count()


def record(body, *, appended_ms=35.0):
    return wire.Record(
        topic="goldline.results",
        partition=0,
        offset=next(_offsets),
        timestamp_ms=round(START.timestamp() * 1000 + appended_ms),
        key=b"line-1/top",
        value=body if isinstance(body, bytes) else messages.encode_result(body),
        headers=[],
    )


def truth(**defects):
    return {i: Truth(path=Path(f"{i}.jpg"), station="line-1/top", defect=d) for i, d in defects.items()}


def tally(*results, **defects):
    made = Tally()
    made.truth |= truth(**defects)
    for each in results:
        made.see(record(each))
    return made


def test_a_report_of_nothing_claims_nothing():
    summary = Tally().summary()
    assert summary["frames"] == summary["results"] == summary["lost"] == summary["missed_defects"] == 0
    assert summary["image_auroc"] is None
    assert summary["latency_ms"]["p50"] is None
    assert set(summary["latency_ms"]["by_stage"]) == set(STAGES)


def test_the_first_result_of_a_frame_stands():
    made = tally(
        result("a", "pass"),
        result("a", "pass"),
        result("a", "reject"),
        result("a", "no_decision", reason="late"),
        a=None,
    )
    summary = made.summary()
    assert made.results["a"].verdict == "pass"
    assert (summary["results"], summary["duplicates"], summary["contradictory"]) == (1, 3, 2)
    assert summary["verdicts"] == {"pass": 1, "reject": 0, "no_decision": 0}


def test_the_same_verdict_for_another_reason_contradicts():
    made = tally(result("a", "no_decision", reason="late"), result("a", "no_decision", reason="error"), a=None)
    assert made.contradictory == 1


def test_see_tells_first_results_alone():
    made = Tally()
    assert made.see(record(result("a"))).frame_id == "a"
    assert made.see(record(result("a"))) is None
    assert made.see(record(b"none of ours")) is None
    assert (made.duplicates, len(made.results)) == (1, 1)


def test_frames_without_a_result_are_lost():
    summary = tally(result("a"), result("b"), a=None, b=None, c=None, d="scratch").summary()
    assert (summary["frames"], summary["results"], summary["lost"]) == (4, 2, 2)


def test_results_of_frames_that_nobody_sent_hide_no_loss():
    summary = tally(result("a"), result("stranger"), result("other", "reject"), a=None, b=None).summary()
    assert (summary["frames"], summary["results"], summary["lost"]) == (2, 1, 1)
    assert summary["verdicts"] == {"pass": 1, "reject": 0, "no_decision": 0}


def test_defects_are_found_missed_or_undecided():
    summary = tally(
        result("s1", "reject"),
        result("s2", "pass"),
        result("s3", "no_decision", reason="late"),
        result("d1", "reject"),
        s1="scratch",
        s2="scratch",
        s3="scratch",
        s4="scratch",
        d1="dent",
    ).summary()
    assert summary["by_defect"] == {
        "dent": {"frames": 1, "found": 1, "missed": 0, "undecided": 0},
        "scratch": {"frames": 4, "found": 1, "missed": 1, "undecided": 2},
    }
    assert list(summary["by_defect"]) == ["dent", "scratch"]
    assert (summary["defects"], summary["missed_defects"], summary["goods"]) == (5, 1, 0)
    assert summary["no_decision_reasons"] == {"late": 1}


def test_false_rejects_are_rejected_goods_and_not_undecided_ones():
    summary = tally(
        result("a", "reject"),
        result("b", "pass"),
        result("c", "no_decision", reason="shed"),
        result("d", "reject"),
        a=None,
        b=None,
        c=None,
        d="dent",
        e=None,
    ).summary()
    assert (summary["goods"], summary["false_rejects"]) == (4, 1)


def test_auroc_ranks_the_frames_of_one_model():
    scores = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    made = tally(*(result(i, score=s) for i, s in scores.items()), a=None, b="dent", c=None, d="dent")
    # pairs (good, defect): a<b, a<d, c<d in order, c>b not: 3 of 4.
    assert made.image_auroc() == 0.75


def test_scores_of_two_models_are_never_compared():
    """One ranks perfectly at scores around 100, the other perfectly around 1: together they must not look mixed."""
    made = tally(
        result("a", score=100.0),
        result("b", score=101.0),
        result("c", score=1.0, version="b" * 64),
        result("d", score=2.0, version="b" * 64),
        a=None,
        b="dent",
        c=None,
        d="dent",
    )
    assert made.image_auroc() == 1.0


def test_auroc_of_models_is_weighted_by_their_frames():
    right = [result(f"r{i}", score=float(i), version="a" * 64) for i in range(6)]
    wrong = [result("w0", score=5.0, version="b" * 64), result("w1", score=1.0, version="b" * 64)]
    defects = {f"r{i}": "dent" if i >= 3 else None for i in range(6)} | {"w0": None, "w1": "dent"}
    assert tally(*right, *wrong, **defects).image_auroc() == (1.0 * 6 + 0.0 * 2) / 8


def test_a_model_that_saw_goods_alone_does_not_count():
    made = tally(
        result("a", score=1.0), result("b", score=2.0), result("c", version="b" * 64), a=None, b="dent", c=None
    )
    assert made.image_auroc() == 1.0
    assert tally(result("a"), a=None).image_auroc() is None


def test_undecided_frames_are_not_ranked():
    made = tally(
        result("a", score=1.0),
        result("b", score=2.0),
        result("c", "no_decision", reason="late"),
        a=None,
        b="dent",
        c="dent",
    )
    assert made.image_auroc() == 1.0


def test_latency_is_from_capture_to_the_broker():
    made = Tally()
    for i in range(100):
        made.see(record(result(str(i), decided_ms=30.0), appended_ms=31.0 + i))
    latency = made.summary()["latency_ms"]
    assert latency["p50"] == 80.5
    assert latency["p99"] == pytest.approx(129.01)
    assert latency["max"] == 130.0
    by_stage = latency["by_stage"]
    assert {stage: by_stage[stage]["p50"] for stage in ("queue", "decode", "embed", "score")} == {
        stage: FIELDS[stage] for stage in ("queue", "decode", "embed", "score")
    }
    assert by_stage["to_worker"]["p50"] == 10.0  # decided 30 ms after capture, 20 of them in the worker
    assert by_stage["publish"]["max"] == 100.0


def test_the_stages_of_frames_without_a_verdict_do_not_count():
    made = Tally()
    made.see(record(result("a", "no_decision", reason="no_model")))
    spent = made.latencies_ms()
    assert "queue" not in spent
    assert spent["total"] == pytest.approx([35.0], abs=0.001)


def test_rounding_of_the_brokers_clock_is_never_a_negative_time():
    made = Tally()
    made.see(record(result("a", decided_ms=30.9), appended_ms=30.0))
    assert made.latencies_ms()["publish"] == [0.0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], {"p50": None, "p99": None, "max": None}),
        ([3.0], {"p50": 3.0, "p99": 3.0, "max": 3.0}),
        ([1.0, 2.0], {"p50": 1.5, "p99": 1.99, "max": 2.0}),
        ([float(i) for i in range(101)], {"p50": 50.0, "p99": 99.0, "max": 100.0}),
    ],
)
def test_quantiles(values, expected):
    assert quantiles(values) == expected


def test_a_report_is_json():
    summary = tally(result("a", "reject", score=3.0), result("b"), a="dent", b=None).summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_a_manifest_is_read_but_for_a_torn_last_line_and_frames_not_sent(tmp_path):
    path = tmp_path / "m.jsonl"
    lines = [{"frame_id": "f-0", "path": "a.jpg"}, {"frame_id": None, "path": "b.jpg"}]
    lines.append({"frame_id": "f-1", "path": "b.jpg"})
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"frame_id": "f-2", "pa')
    found = read_manifest(path, "line-1/top", {"a.jpg": None, "b.jpg": "dent"})
    assert {i: t.defect for i, t in found.items()} == {"f-0": None, "f-1": "dent"}
    assert found["f-0"].station == "line-1/top"
    assert read_manifest(tmp_path / "missing", "line-1/top", {}) == {}
