"""The pool: an even sample over time, bounded, shared by processes, closed to defective parts."""

import os
import random
import resource
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from model_store import ModelKey
from model_store.pool import MARKER, PART_MAX, DiskPool, open_pool
from model_store.pool_records import Answer, Candidate, Feedback, Quality, checked
from model_store.pool_reports import KEPT_S
from model_store.reservoir import Place, Sample, bucket_of, digest
from pipeline.data import Decision
from pipeline.errors import BlobError, ConfigError, StoreUnavailable
from pipeline.settings import Pool
from tests.model_store.backends import KEY, OTHER, finish, run_together

NOW = datetime(2025, 6, 15, 13, 30, tzinfo=UTC)
H = timedelta(hours=1)


def opened(folder, **settings) -> DiskPool:
    return open_pool(Pool(url=f"file://{folder}/pool", **settings))


@pytest.fixture
def pool(tmp_path) -> DiskPool:
    made = opened(tmp_path)
    made.create()
    return made


def candidate(i, **changes) -> Candidate:
    known = {
        "key": KEY,
        "frame_id": f"frame-{i}",
        "part_id": f"part-{i}",
        "captured_at": NOW - H,
        "image": f"picture\n{i}\n".encode() * 20,
        "decision": Decision.PASS,
        "score": 1.5,
        "p_value": 0.4,
        "model": "a" * 64,
    }
    return Candidate(**{**known, **changes})


def feedback(i, verdict="defect", **changes) -> Feedback:
    return Feedback(part_id=f"part-{i}", verdict=verdict, by="ana", at=NOW, **changes)


def ids(frames):
    return {pooled.entry.frame_id for pooled in frames}


def files(pool):
    return [path for path in pool.root.rglob("*") if path.is_file() and path.name != MARKER]


# Admission


def test_an_accepted_frame_is_copied_with_all_that_is_known_of_it(pool):
    one = candidate(1)
    assert pool.admit(one, at=NOW) is Answer.ADMITTED
    (pooled,) = pool.frames()
    assert pool.read(pooled) == one.image
    assert pooled.key == KEY
    entry = pooled.entry
    assert (entry.frame_id, entry.part_id, entry.captured_at) == ("frame-1", "part-1", one.captured_at)
    assert (entry.score, entry.p_value, entry.model) == (1.5, 0.4, "a" * 64)
    assert (entry.size_bytes, entry.admitted_at) == (len(one.image), NOW)
    assert not pooled.verified


@pytest.mark.parametrize(
    "changes",
    [
        {"decision": Decision.REJECT},
        {"p_value": 0.09},
        {"p_value": float("nan")},
        {"sharpness": 9.0},
        {"exposure": 0.04},
        {"exposure": 0.97},
        {"image": b""},
        {"image": b"x" * 100_001},
        {"captured_at": NOW - 15 * 24 * H},
        {"captured_at": NOW + 25 * H},
    ],
    ids=lambda changes: "-".join(map(str, changes)),
)
def test_what_is_not_clearly_good_stays_out(tmp_path, changes):
    quality = Quality(sharpness_min=10.0, exposure_min=0.05, exposure_max=0.95)
    pool = DiskPool(tmp_path / "pool", Pool(max_bytes=100_000), quality=quality)
    pool.create()
    assert pool.admit(candidate(1, **changes), at=NOW) is Answer.UNFIT
    assert not files(pool)


def test_what_was_measured_and_is_well_comes_in_and_so_does_what_was_not_measured(tmp_path):
    pool = DiskPool(tmp_path / "pool", Pool(), quality=Quality(sharpness_min=10.0, exposure_min=0.05))
    pool.create()
    assert pool.admit(candidate(1, sharpness=10.0, exposure=0.5, p_value=0.1), at=NOW) is Answer.ADMITTED
    assert pool.admit(candidate(2), at=NOW) is Answer.ADMITTED


def test_the_same_frame_twice_is_one_also_after_a_restart(tmp_path, pool):
    assert pool.admit(candidate(1), at=NOW) is Answer.ADMITTED
    assert pool.admit(candidate(1), at=NOW) is Answer.LEFT_OUT
    again = opened(tmp_path)
    assert again.admit(candidate(1), at=NOW) is Answer.LEFT_OUT
    assert again.admit(candidate(1, image=b"another picture under the same id"), at=NOW) is Answer.LEFT_OUT
    assert len(again.frames()) == 1
    assert again.read(again.frames()[0]) == candidate(1).image


def test_a_part_has_so_many_frames_and_no_more_whatever_the_order(tmp_path):
    shown = [candidate(i, part_id="stands still") for i in range(12)]
    kept = []
    for seed in (1, 2):
        pool = opened(tmp_path / str(seed))
        pool.create()
        random.Random(seed).shuffle(shown)
        for each in shown:
            pool.admit(each, at=NOW)
        kept.append(ids(pool.frames()))
        assert len(pool.frames(part_id="stands still")) == PART_MAX
    assert kept[0] == kept[1]


def test_a_part_seen_twice_has_both_frames_and_a_frame_of_no_part_is_its_own(pool):
    for i in range(2):
        assert pool.admit(candidate(i, part_id="p"), at=NOW) is Answer.ADMITTED
    assert pool.admit(candidate(3, part_id="p", key=OTHER), at=NOW) is Answer.ADMITTED
    assert pool.admit(candidate(4, part_id=None), at=NOW) is Answer.ADMITTED
    assert ids(pool.frames(part_id="p")) == {"frame-0", "frame-1", "frame-3"}
    assert ids(pool.frames(part_id="p", key=OTHER)) == {"frame-3"}
    assert ids(pool.frames(part_id="frame-4")) == {"frame-4"}


@pytest.mark.parametrize("hostile", ["../../../etc/passwd", "/etc/passwd", "a\0b", "x" * 200, "..", "\N{SNOWMAN}/.."])
def test_ids_from_messages_never_name_a_file(pool, hostile):
    assert pool.admit(candidate(1, frame_id=hostile, part_id=hostile), at=NOW) is Answer.ADMITTED
    assert len(files(pool)) == 1
    assert all(pool.root in path.parents for path in files(pool))
    assert ids(pool.frames(part_id=hostile)) == {hostile}
    (removed,) = pool.report([replace_part(feedback(1), hostile)])
    assert removed == 1
    assert not pool.frames()


def replace_part(said, part_id):
    return Feedback(part_id=part_id, verdict=said.verdict, by=said.by, at=said.at)


# The sample


def test_every_shift_is_present_however_busy_the_last_one_is(tmp_path):
    pool = opened(tmp_path, keep=40)
    pool.create()
    shifts = [(8, 30), (16, 30), (24, 30), (32, 400)]  # hours from the beginning, frames
    i = 0
    for hours, frames in shifts:
        for _ in range(frames):
            at = NOW - 40 * H + hours * H
            pool.admit(candidate(i, captured_at=at), at=at)
            i += 1
    by_shift = Counter(pooled.place.bucket for pooled in pool.frames())
    assert sorted(by_shift.values()) == [10, 10, 10, 10]


def test_the_sample_of_a_shift_is_of_all_of_it_not_of_its_beginning_or_end(tmp_path):
    pool = opened(tmp_path, keep=50)
    pool.create()
    for i in range(500):
        pool.admit(candidate(i), at=NOW)
    kept = sorted(int(pooled.entry.frame_id.removeprefix("frame-")) for pooled in pool.frames())
    assert len(kept) == 50
    tenths = Counter(i // 50 for i in kept)
    assert len(tenths) >= 8  # of 10; ids are fixed, and so is the draw


def test_bytes_are_bounded_as_well_as_frames(tmp_path):
    pool = opened(tmp_path, max_bytes=100_000)
    pool.create()
    for i in range(30):
        pool.admit(candidate(i, image=bytes([i]) * 9_000), at=NOW)
    assert len(pool.frames()) == 11
    assert sum(path.stat().st_size for path in files(pool)) < 100_000 + 11 * 1000


def test_each_station_and_recipe_has_a_sample_of_its_own(tmp_path):
    pool = opened(tmp_path, keep=5)
    pool.create()
    for i in range(20):
        for key in (KEY, OTHER, ModelKey(KEY.station, "sku-2")):
            pool.admit(candidate(f"{i}-{key}", key=key), at=NOW)
    assert Counter(pooled.key for pooled in pool.frames()) == {
        KEY: 5,
        OTHER: 5,
        ModelKey(KEY.station, "sku-2"): 5,
    }
    assert pool.keys() == sorted({KEY, OTHER, ModelKey(KEY.station, "sku-2")})


def test_what_is_older_than_is_kept_goes_with_the_next_frame(tmp_path):
    pool = opened(tmp_path, keep_days=2)
    pool.create()
    pool.admit(candidate(1), at=NOW)
    pool.report([feedback(1, "good")])
    later = NOW + 60 * H
    assert ids(pool.usable(KEY, at=later)) == set()
    pool.admit(candidate(2, captured_at=later), at=later)
    assert ids(pool.frames()) == {"frame-2"}
    assert len(files(pool)) == 1


def place(i, bucket="20250615T12", part=None, size=1000):
    return Place(frame=digest(str(i)), bucket=bucket, part=digest(part or f"p{i}"), size_bytes=size)


def test_what_is_refused_at_once_is_what_would_have_to_go():
    lot = random.Random(3)
    for _ in range(300):
        buckets = [f"2025061{lot.randrange(3)}T0{4 * lot.randrange(3)}" for _ in range(40)]
        places = [
            place(lot.random(), bucket, f"part {lot.randrange(15)}", lot.randrange(1, 2000)) for bucket in buckets
        ]
        limits = {"keep": lot.randrange(5, 40), "max_bytes": lot.randrange(10_000, 40_000), "part_max": 3}
        full = Sample(places, **limits)
        stay = [each for each in places if each not in full.excess()]
        offered = place(lot.random(), buckets[0], f"part {lot.randrange(15)}", lot.randrange(1, 2000))
        before, after = Sample(stay, **limits), Sample([*stay, offered], **limits)
        assert not before.excess()
        if before.refuses(offered):
            assert offered in after.excess()
        left = [each for each in [*stay, offered] if each not in after.excess()]
        assert len(left) <= limits["keep"]
        assert sum(each.size_bytes for each in left) <= limits["max_bytes"]


def test_a_place_is_read_back_from_its_name_and_nothing_else_is_one():
    one = place(1)
    assert Place.read(one.bucket, one.name) == one
    assert Place.read("20250615", one.name) is None
    for name in (f".{one.name}.ab12.tmp", "x.frame", one.name.upper(), one.name.replace(".frame", ".verified")):
        assert Place.read(one.bucket, name) is None


def test_buckets_are_of_equal_length_in_utc():
    local = datetime.fromisoformat("2025-06-15T01:30:00+02:00")
    assert bucket_of(local) == "20250614T20"
    assert [bucket_of(NOW + i * H) for i in range(4)] == ["20250615T12"] * 3 + ["20250615T16"]


# Quarantine


def test_a_frame_is_usable_only_after_quarantine(tmp_path):
    pool = opened(tmp_path, quarantine_h=24.0)
    pool.create()
    pool.admit(candidate(1), at=NOW)
    assert pool.usable(KEY, at=NOW + 23.9 * H) == []
    assert ids(pool.usable(KEY, at=NOW + 24 * H)) == {"frame-1"}
    assert pool.usable(OTHER, at=NOW + 24 * H) == []


def test_late_feedback_still_removes_it(pool):
    pool.admit(candidate(1), at=NOW)
    pool.report([feedback(1)], at=NOW + 23 * H)
    assert pool.usable(KEY, at=NOW + 24 * H) == []


# Feedback


def test_a_defect_removes_a_part_everywhere_and_it_never_comes_back(tmp_path, pool):
    pool.admit(candidate(1), at=NOW)
    pool.admit(candidate(2, part_id="part-1", key=OTHER), at=NOW)
    pool.admit(candidate(3), at=NOW)
    assert pool.report([feedback(1, note="a crack")], at=NOW) == [2]
    assert ids(pool.frames()) == {"frame-3"}
    for again in (pool, opened(tmp_path)):
        assert again.admit(candidate(1), at=NOW) is Answer.FLAGGED
        assert again.admit(candidate(9, part_id="part-1"), at=NOW) is Answer.FLAGGED
    assert ids(pool.frames()) == {"frame-3"}


def test_a_defect_reported_before_its_frame_is_offered_keeps_it_out(pool):
    assert pool.report([feedback(1)], at=NOW) == [0]
    assert pool.admit(candidate(1), at=NOW) is Answer.FLAGGED
    assert pool.frames() == []


def test_feedback_about_one_station_or_recipe_leaves_the_others_alone(pool):
    for i, key in enumerate((KEY, OTHER, ModelKey(KEY.station, OTHER.recipe))):
        pool.admit(candidate(i, part_id="part-1", key=key), at=NOW)
    assert pool.report([feedback(1, station=KEY.station, recipe=KEY.recipe)], at=NOW) == [1]
    assert ids(pool.frames()) == {"frame-1", "frame-2"}
    assert pool.admit(candidate(0, part_id="part-1"), at=NOW) is Answer.FLAGGED
    assert pool.admit(candidate(7, part_id="part-1", key=OTHER), at=NOW) is Answer.ADMITTED
    assert pool.report([feedback(1, recipe=OTHER.recipe)], at=NOW) == [3]
    assert len(pool.reports("part-1")) == 2
    assert len(pool.reports("part-1", KEY)) == 1


def test_a_good_verifies_what_is_there_and_a_defect_outweighs_it_in_any_order(pool):
    for i in (1, 2, 3):
        pool.admit(candidate(i), at=NOW)
    assert pool.report([feedback(1, "good"), feedback(2), feedback(2, "good")], at=NOW) == [1, 1, 1]
    assert {p.entry.frame_id: p.verified for p in pool.frames()} == {"frame-1": True, "frame-3": False}
    pool.report([feedback(1)], at=NOW)
    assert pool.report([feedback(1, "good")], at=NOW) == [0]
    assert pool.admit(candidate(1), at=NOW) is Answer.FLAGGED
    assert ids(pool.frames()) == {"frame-3"}
    assert not list(pool.root.rglob("*.verified"))


def test_the_same_feedback_again_changes_nothing(tmp_path, pool):
    pool.admit(candidate(1), at=NOW)
    pool.admit(candidate(2), at=NOW)
    said = [feedback(1, note="a crack"), feedback(2, "good")]
    pool.report(said, at=NOW)
    before = {path: path.read_bytes() for path in files(pool)}
    opened(tmp_path).report(said, at=NOW + H)
    assert {path: path.read_bytes() for path in files(pool)} == before


def test_the_log_says_who_removed_what_and_why_and_only_grows(pool):
    pool.admit(candidate(1), at=NOW)
    pool.report([feedback(1, note="a crack")], at=NOW + H)
    pool.report([feedback(2)], at=NOW + 2 * H)
    first, second = pool.removals()
    assert (first.feedback.by, first.feedback.note, first.at) == ("ana", "a crack", NOW + H)
    (frame,) = first.frames
    assert (frame.frame_id, frame.station, frame.recipe) == ("frame-1", KEY.station, KEY.recipe)
    assert (second.feedback.part_id, second.frames) == ("part-2", ())


def test_a_frame_of_a_defective_part_that_slipped_in_is_not_learnt_from(tmp_path, pool):
    pool.admit(candidate(1), at=NOW)
    (frame,) = [path for path in files(pool) if path.suffix == ".frame"]
    data = frame.read_bytes()
    pool.report([feedback(1)], at=NOW)
    frame.write_bytes(data)  # as if another machine had seen an old listing of the folder
    assert ids(pool.frames()) == {"frame-1"}
    assert pool.usable(KEY, at=NOW + 30 * H) == []
    assert pool.report([feedback(1)], at=NOW) == [1]
    assert pool.frames() == []


def test_reports_older_than_any_frame_go_so_that_they_do_not_pile_up(pool):
    pool.report([feedback(1)], at=NOW)
    (path,) = (pool.root / "defects").glob("*/*.json")
    other = path.with_name("ab" * 16 + ".json")
    other.write_bytes(path.read_bytes())
    assert pool.defects() == 2
    long_ago = time.time() - KEPT_S - 60
    os.utime(other, (long_ago, long_ago))
    pool.report([feedback(1)], at=NOW)
    assert list((pool.root / "defects").glob("*/*.json")) == [path]
    assert len(pool.removals()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"part_id": ""},
        {"part_id": "x" * 201},
        {"part_id": "a\nb"},
        {"by": ""},
        {"station": "Line 1"},
        {"note": "x" * 1001},
    ],
    ids="-".join,
)
def test_feedback_that_no_message_may_hold_is_refused(changes):
    with pytest.raises(ConfigError, match="feedback"):
        checked(Feedback(**{"part_id": "p", "verdict": "good", "by": "ana", "at": NOW, **changes}))


# Disks


def test_a_pool_that_is_not_there_is_a_disk_that_is_away(tmp_path):
    pool = opened(tmp_path)
    for act in (lambda: pool.admit(candidate(1), at=NOW), lambda: pool.report([feedback(1)]), pool.frames, pool.keys):
        with pytest.raises(StoreUnavailable, match="is it mounted"):
            act()
    assert not pool.root.exists()


def test_a_file_in_the_way_is_a_store_that_does_not_answer(tmp_path):
    (tmp_path / "pool").write_text("in the way")
    with pytest.raises(StoreUnavailable, match="pool"):
        opened(tmp_path).create()


def test_a_disk_that_takes_no_more_leaves_no_half_of_a_frame(pool):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StoreUnavailable, match="pool at"):
            pool.admit(candidate(1, image=b"x" * 50_000), at=NOW)
        assert pool.admit(candidate(2), at=NOW) is Answer.ADMITTED
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert ids(pool.frames()) == {"frame-2"}
    assert len(files(pool)) == 1
    assert pool.admit(candidate(1, image=b"x" * 50_000), at=NOW) is Answer.ADMITTED


def fill(pool):
    for i in range(100):
        pool.admit(candidate(i, image=os.urandom(20_000)), at=NOW)


def test_a_full_disk_takes_reports_again_once_there_is_room(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root may mount a disk of its own to fill")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a disk of its own cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        pool = opened(disk)
        pool.create()
        with pytest.raises(StoreUnavailable, match="No space left"):
            fill(pool)
        kept = pool.frames()
        assert 0 < len(kept) < 100
        assert all(pool.read(pooled) for pooled in kept)
        assert not list(disk.rglob("*.tmp"))
        (disk / "pool" / "frames").rename(disk / "moved")
        subprocess.run(["rm", "-r", disk / "moved"], check=True)
        assert pool.admit(candidate(200), at=NOW) is Answer.ADMITTED
        assert pool.report([feedback(200)], at=NOW) == [1]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_altered_or_missing_picture_is_not_learnt_from(pool):
    pool.admit(candidate(1), at=NOW)
    (pooled,) = pool.frames()
    (path,) = files(pool)
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(BlobError, match="no more"):
        pool.read(pooled)
    path.write_bytes(data[:-1])
    with pytest.raises(BlobError, match="altered"):
        pool.read(pooled)
    path.write_bytes(b"not an entry\n")
    assert pool.frames() == []


@pytest.mark.parametrize("url", ["file:///", "file://host/x", "file:///a/../b", "file:///a?b", "redis://h/0", "/srv/x"])
def test_only_a_folder_can_be_a_pool(url):
    with pytest.raises(ConfigError, match=r"\[pool\] url"):
        open_pool(Pool(url=url))


def test_without_a_url_there_is_no_pool():
    with pytest.raises(ConfigError, match="there is no pool"):
        open_pool(Pool())


# Several processes


def admit_many(folder, first, count):
    pool = opened(folder, keep=30)
    pool.create()
    for i in range(first, first + count):
        pool.admit(candidate(i, captured_at=NOW - (i % 3) * 5 * H), at=NOW)


def report_many(folder, parts):
    pool = opened(folder, keep=30)
    pool.create()
    for i in parts:
        pool.report([feedback(i)], at=NOW)


def test_processes_that_write_at_once_agree_on_what_stays(tmp_path):
    finish(run_together(admit_many, [(tmp_path, 0, 80), (tmp_path, 40, 80), (tmp_path, 80, 80)]))
    together = opened(tmp_path, keep=30)
    assert len(together.frames()) == 30
    assert not list(together.root.rglob("*.tmp"))
    assert Counter(Counter(p.place.bucket for p in together.frames()).values()) == {10: 3}
    for pooled in together.frames():
        assert together.read(pooled) == candidate(int(pooled.entry.frame_id.removeprefix("frame-"))).image
    alone = opened(tmp_path / "alone", keep=30)
    alone.create()
    admit_many(tmp_path / "alone", 0, 160)
    assert ids(together.frames()) == ids(alone.frames())


def test_frames_and_reports_that_cross_leave_no_defective_part(tmp_path):
    defective = list(range(0, 60, 2))
    finish(
        run_together(admit_many, [(tmp_path, 0, 30), (tmp_path, 30, 30)])
        + run_together(report_many, [(tmp_path, defective)])
    )
    pool = opened(tmp_path, keep=30)
    assert not ids(pool.frames()) & {f"frame-{i}" for i in defective}
    assert sorted(removal.feedback.part_id for removal in pool.removals()) == sorted(f"part-{i}" for i in defective)


def test_two_that_write_to_the_log_at_once_lose_no_line(tmp_path):
    finish(run_together(report_many, [(tmp_path, range(25)), (tmp_path, range(25, 50))]))
    parts = [removal.feedback.part_id for removal in opened(tmp_path).removals()]
    assert sorted(parts) == sorted(f"part-{i}" for i in range(50))


def test_a_writer_killed_in_between_leaves_whole_frames_alone(tmp_path):
    (writer,) = run_together(admit_many, [(tmp_path, 0, 100_000)])
    pool = opened(tmp_path, keep=30)
    end = time.monotonic() + 60
    while not (pool.root / MARKER).exists() or len(pool.frames()) < 10:
        assert time.monotonic() < end
        time.sleep(0.01)
    writer.kill()
    writer.join()
    frames = pool.frames()
    assert len(frames) >= 10
    assert all(pool.read(pooled) for pooled in frames)
    pool.admit(replace(candidate("after"), captured_at=NOW - 20 * H), at=NOW)
    assert len(pool.frames()) <= 31
