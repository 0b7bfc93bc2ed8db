"""A line under load, as `goldline bench` drives it, in small: what it promises holds whatever the pace."""

import pytest

from workers import bench_line, bench_rate

SHORT = bench_rate.Driven(size_bytes=20_000, seconds=1.0, engine="openvino-int8")
PATIENT_MS = 20_000  # no deadline may pass because a machine is slow

pytestmark = pytest.mark.usefixtures("at_the_broker")


@pytest.fixture
def at_the_broker(broker, monkeypatch):
    monkeypatch.setenv("GOLDLINE_BROKER", broker)


def test_swaps_lose_no_frame_and_every_score_is_that_of_the_version_that_its_result_names():
    report = bench_line.swaps(frames=280, times=6, share=0.4, deadline_ms=PATIENT_MS)
    assert (report["lost"], report["late"], report["mismatched"], report["repeats"]) == (0, 0, 0, 0)
    assert sum(report["said"].values()) == report["frames"] >= 280
    assert report["said"].keys() <= {"pass", "reject"}, "no frame went without a decision"
    assert report["promotions"] == 6
    assert report["swaps_seen"] >= 6, "more where two batches at once are of both versions"
    assert 0 < report["swap_s"]["p50"] <= report["swap_s"]["max"]


def test_many_stations_and_recipes_are_served_by_one_worker_whose_memory_holds_not_all_models():
    report = bench_line.stations(
        count=6, recipes=3, flood=10.0, seconds=6.0, share=0.6, turns=2, deadline_ms=PATIENT_MS, budget_models=8
    )
    for load in (report["even"], report["flooded"]):
        assert (load["others_late"], load["others_loading"]) == (0, 0)
        for group in ("flood", "others"):
            assert load[group].keys() <= {"pass", "reject"}, group
        assert load["decided"]["flood"] == sum(load["flood"].values())
        assert 0 < load["decided"]["worst_other"] <= sum(load["others"].values()) // 5
    assert sum(report["flooded"]["flood"].values()) > 5 * sum(report["even"]["flood"].values())
    assert report["models_loaded"] > 8, "some were loaded when a frame asked for them"


def test_more_frames_than_can_be_decided_are_all_answered():
    report = bench_line.overload(factor=6.0, seconds=3.0, size=8_000, deadline_ms=300, after_s=5.0)
    assert report["lost"] == 0
    assert report["flood"].keys() <= {"pass", "reject", "late", "shed"}
    assert report["flood"].get("late", 0) + report["flood"].get("shed", 0) > 0


def test_a_rate_is_tried_with_every_frame_answered_and_each_stage_told():
    line = bench_rate.Driven(size_bytes=20_000, seconds=5.0, engine="openvino-int8")
    report = bench_rate.run(line, stations=2, rate=4.0, p99_ms=PATIENT_MS)
    assert report["engine"] == "openvino-int8"
    (tried,) = report["tried"]
    assert sum(tried["said"].values()) == tried["frames"] == 20
    assert "lost" not in tried["said"]
    assert tuple(tried["waterfall_ms"]) == bench_rate.STAGES
    assert tried["p50_ms"] <= tried["p99_ms"]
    assert tried["kept_up"] == (report["highest_per_s"] == 4.0)
    assert "4/s" in bench_rate.table(report)
    assert 0 <= tried["stolen"] <= 1
    assert set(tried["cpu_ms"]) - {"broker"} == {"workers", "cameras"}  # a broker may be somebody else's
    assert all(0 < spent < 1000 for spent in tried["cpu_ms"].values())


def test_a_rate_is_too_high_when_it_was_not_kept_up_with_twice(monkeypatch):
    spoilt = iter([True, False, True, False, True, True])
    tried = []

    def attempt(cameras, images, reader, rate, seconds, p99_ms, busy):
        tried.append(rate)
        return {"rate_per_s": rate, "kept_up": not next(spoilt, True)}

    monkeypatch.setattr(bench_rate, "attempt", attempt)
    report = bench_rate.run(SHORT, stations=1, rate=0.0)
    assert tried[:6] == [8.0, 8.0, 16.0, 16.0, 32.0, 32.0]
    assert report["highest_per_s"] == 16.0
    assert len(report["tried"]) == len(tried)


def test_what_cameras_show_is_passed_but_for_one():
    goods = bench_rate.pictures_of(20_000)
    inspector = bench_rate.fitted(SHORT)
    images = bench_rate.shown(inspector, goods, 20_000)
    assert [bench_rate._rejects(inspector, image) for image in images] == [False] * 24 + [True]


def test_the_search_for_a_rate_ends_near_the_highest_that_is_kept_up_with():
    tried = []

    def keeps_up(rate):
        tried.append(rate)
        return rate <= 37.0

    assert 37.0 / 1.1 <= bench_rate._highest(keeps_up) <= 37.0
    assert len(tried) < 10
    assert bench_rate._highest(lambda _: False) is None
