"""Parts for a person to look at: drawn by a hash, whatever became of them."""

import json
import subprocess
import sys

import msgspec
import pytest
from scipy import stats

from model_store.frames import open_roots
from pipeline import selection, synthetic
from pipeline import settings as line
from workers import wire
from workers.auditing import draw
from workers.camera import Camera
from workers.rig import Rig
from workers.shelf import Trial
from workers.shots import Shot
from workers.wire import Record, read_frame

STATION = "line-1/top"
SETTINGS = line.build({"stations": {STATION: {}}})


def arrival(number, part=None):
    headers = wire.frame_headers(
        frame_id=f"frame-{number}",
        part_id=part or f"part-{number}",
        source="tests",
        captured_at=wire.now(),
        content_type="image/jpeg",
    )
    record = Record(
        topic="f", partition=0, offset=number, timestamp_ms=10**12, key=STATION.encode(), value=b"x", headers=headers
    )
    return read_frame(record, SETTINGS)


def numbers(drawn):
    return [int(each.frame.frame_id.partition("-")[2]) for each in drawn]


def test_the_same_parts_are_drawn_again_in_whatever_order_they_come():
    arrivals = [arrival(i) for i in range(500)]
    drawn, of = draw(arrivals, 20)
    assert (len(drawn), of) == (20, 500)
    assert numbers(draw(reversed(arrivals), 20)[0]) == numbers(drawn)
    assert numbers(draw(arrivals, 21)[0])[:20] == numbers(drawn), "a larger draw has the smaller one in it"


def test_a_part_is_drawn_once_by_its_first_frame():
    arrivals = [arrival(i, part=f"part-{i % 10}") for i in range(50)]
    drawn, of = draw(arrivals, 100)
    assert of == 10
    assert sorted(numbers(drawn)) == list(range(10))


def test_every_part_is_as_likely_as_another_canary_or_not():
    arrivals = [arrival(i) for i in range(20_000)]
    drawn, _ = draw(arrivals, 2_000)
    tenths = [sum(2_000 * t <= i < 2_000 * (t + 1) for i in numbers(drawn)) for t in range(10)]
    assert stats.chisquare(tenths).pvalue > 0.001
    # By the hash that chooses a canary's parts, these alone would be drawn.
    canary = Trial(live=None, canary_share=0.05)
    decided = sum(canary.decides(each.frame) for each in drawn)
    assert stats.binomtest(decided, 2_000, 0.05).pvalue > 0.001


@pytest.mark.kafka
def test_parts_are_marked_on_the_line_with_their_pictures_and_no_verdict(broker, tmp_path):
    """Small pictures in their messages, large ones by reference; two that cannot be had."""
    roots = tmp_path / "frames"
    roots.mkdir()
    tree = {
        "stations": {STATION: {}, "line-2/top": {}},
        "frames": {"roots": [f"file://{roots}"], "inline_max_bytes": 9_000},
    }
    small = synthetic.encode(synthetic.draw("cap", seed=0, size=(48, 48)).image)
    large = synthetic.encode(synthetic.draw("cap", seed=1, size=(96, 96)).image, format="PNG")
    assert len(small) < 9_000 < len(large)
    with Rig(tmp_path / "line", tree, address=broker) as rig:
        for root in open_roots([f"file://{roots}"], keep_s=3600).stores:
            root.create()
        for station, shots in ((STATION, [small, large] * 15 + [b"no picture"]), ("line-2/top", [small] * 5)):
            camera = Camera(rig.settings, station)
            for i, image in enumerate(shots):
                assert camera.send(Shot(name=str(i), image=image, content_type="image/jpeg"))
            camera.close()
        next(path for path in roots.rglob("*") if path.is_file() and path.stat().st_size == len(large)).unlink()
        command = [
            sys.executable,
            "-m",
            "workers",
            "audit",
            "sample",
            "--station",
            STATION,
            "--config",
            str(rig.config),
        ]

        def sample(*more):
            return subprocess.run([*command, *map(str, more)], capture_output=True, text=True, timeout=60, check=False)

        out = tmp_path / "audit"
        done = sample("--n", 31, "--out", out, "--json")
        assert done.returncode == 0, done.stderr
        said = selection.read(out)
        assert json.loads(done.stdout) == json.loads(msgspec.json.encode(said))
        assert (said.chosen_by, said.station, said.of, len(said.parts)) == ("part-id", STATION, 31, 31)
        assert sum(part.picture is None for part in said.parts) == 2, "one is no picture, one is gone"
        pictures = {path.name: path.read_bytes() for path in out.iterdir() if path.name != selection.FILE}
        assert sorted(pictures.values()) == sorted([small, large] * 14 + [small])
        assert {p.picture for p in said.parts if p.picture} == set(pictures)
        assert b"verdict" not in (out / selection.FILE).read_bytes()
        assert "is not empty" in sample("--out", out).stderr

        fewer = tmp_path / "fewer"
        shown = sample("--n", 7, "--out", fewer)
        assert "marked 7 of 31 parts" in shown.stdout
        assert [p.part_id for p in selection.read(fewer).parts] == [p.part_id for p in said.parts[:7]]
        assert "no frame of line-1/top (blue)" in sample("--recipe", "blue", "--out", tmp_path / "none").stderr
        assert "no station line-9/top" in sample("--station", "line-9/top", "--out", tmp_path / "none").stderr
