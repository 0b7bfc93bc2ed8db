"""The same picture by every way (in its message, by a shared folder, by Redis), and what goes wrong on the way."""

import io
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from model_store.frames import Reference, open_roots
from pipeline.settings import Settings
from tests.line import STATIONS, assert_one_verdict_each, results, start_worker
from tests.redis_server import RedisServer
from workers import clients, dead_letter, messages, topics, wire
from workers.camera import Camera
from workers.cli import cli
from workers.rig import Rig
from workers.shots import Shot, shots

pytestmark = pytest.mark.kafka

SMALL = 1024  # an inline limit that every picture of the tests is above


def test_a_picture_has_one_verdict_by_whichever_way_it_came(
    make_line: Callable[..., Rig], pictures: Path, tmp_path: Path, redis_server: str
) -> None:
    folder, redis = (tmp_path / "frames").as_uri(), f"redis://{redis_server}/0"
    rig = make_line(frames={"roots": [folder, redis]})
    start_worker(rig)
    actions = rig.directory / "actions.jsonl"
    gate = rig.run("gate", "gate", "--config", str(rig.config), "--output", str(actions))
    rig.wait_for(gate, "gate started")
    ways = {
        "inline": {},
        "file": {"inline_max_bytes": SMALL, "roots": (folder,)},
        "redis": {"inline_max_bytes": SMALL, "roots": (redis,)},
    }
    cameras = {way: Camera(_with_frames(rig.settings, **limits), STATIONS[0]) for way, limits in ways.items()}
    sent: dict[str, tuple[str, str]] = {}
    for shot in shots(str(pictures)):
        for way, camera in cameras.items():
            sent[camera.send(shot) or ""] = (shot.name, way)
    assert [camera.close().accepted for camera in cameras.values()] == [40, 40, 40]
    log = _records(rig, "frames", 120)
    ids = [wire.header(record.headers, "ce_id") for record in log]
    for record, frame_id in zip(log, ids, strict=True):
        assert bool(record.value) == (sent[frame_id or ""][1] == "inline")
    read = results(rig, 120)
    assert_one_verdict_each(read, set(sent))
    assert [r.frame_id for r in read] == ids, "results come in the order of frames, whichever took longer to fetch"
    assert {r.verdict for r in read} == {"pass", "reject"}
    by_name: dict[str, list[messages.Result]] = {}
    for result in read:
        by_name.setdefault(sent[result.frame_id][0], []).append(result)
    for one, *others in by_name.values():
        assert len(others) == 2
        for other in others:
            assert other.verdict == one.verdict
            assert other.score == pytest.approx(one.score, rel=1e-4)  # batches of other sizes
    assert gate.end() == 0
    acted = {a["frame_id"]: a["action"] for a in map(json.loads, actions.read_text().splitlines())}
    assert acted == {r.frame_id: r.verdict for r in read}, "the gate needs no picture"


def test_a_picture_of_twelve_megapixels_goes_through_by_the_defaults(
    make_line: Callable[..., Rig], tmp_path: Path
) -> None:
    rig = make_line(frames={"roots": [(tmp_path / "frames").as_uri()]})
    start_worker(rig)
    noise = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    camera = Camera(rig.settings, STATIONS[0])
    sizes = []
    for kind in ("JPEG", "PNG"):
        out = io.BytesIO()
        Image.fromarray(noise).save(out, kind, **({"quality": 95} if kind == "JPEG" else {"compress_level": 1}))
        sizes.append(len(out.getvalue()))
        camera.send(Shot(name=kind, image=out.getvalue(), content_type=f"image/{kind.lower()}"))
    assert camera.close().accepted == 2
    assert min(sizes) > rig.settings.frames.inline_max_bytes
    read = results(rig, 2)
    assert [r.reason for r in read] == [None, None]
    assert all(0 <= x1 <= 4000 and 0 <= y1 <= 3000 for r in read for _, _, x1, y1 in (g.box for g in r.regions))


def test_hostile_references_harm_nobody_and_are_replayed_once_mended(
    make_line: Callable[..., Rig], pictures: Path, tmp_path: Path, redis_server: str
) -> None:
    frames = tmp_path / "frames"
    rig = make_line(frames={"roots": [frames.as_uri(), f"redis://{redis_server}/0"]})
    worker = start_worker(rig)
    picture = min(pictures.iterdir()).read_bytes()
    good = _headers(open_roots([frames.as_uri()], keep_s=3600).put(picture))
    hostile = {name: {**good, **changes} for name, changes in _hostile(frames, picture, redis_server).items()}
    hostile["no hash"].pop("ce_datasha256")
    hostile["no size"].pop("ce_datasize")
    mixed = itertools.chain.from_iterable((("", good), (name, said)) for name, said in hostile.items())
    ids = _send(rig, [{**said, "ce_id": f"{name or 'good'} {i}".encode()} for i, (name, said) in enumerate(mixed)])
    read = results(rig, len(ids))
    assert worker.popen.poll() is None, worker.last_words()
    assert_one_verdict_each(read, set(ids))
    for result in read:
        wanted = None if result.frame_id.startswith("good ") else "bad_frame"
        assert result.reason == wanted, result
        assert result.detail is None or "s3cret" not in result.detail
    letters = {letter.frame_id: letter for letter in dead_letter.letters(rig.settings)}
    assert letters.keys() == {r.frame_id for r in read if r.reason}
    for letter in letters.values():
        said = {n: v for n, v in letter.record.headers if n.startswith("ce_data")}
        name = letter.frame_id.rpartition(" ")[0]
        assert said == {n: v for n, v in hostile[name].items() if n.startswith("ce_data")}, "the original message"
    # A picture that was missing is put back, and its dead letter replayed: the reference goes along.
    late = letters[next(i for i in letters if i.startswith("missing "))]
    (frames / "not-yet-there").write_bytes(picture)
    run = CliRunner().invoke(cli, ["dead-letters", "replay", late.number, "--config", str(rig.config)])
    assert run.exit_code == 0, run.output
    again = results(rig, len(ids) + 1)[-1]
    assert again.frame_id.startswith("replay-")
    assert again.reason is None
    assert worker.end() == 0, worker.last_words()


@pytest.mark.timeout(240)
def test_redis_gone_for_a_while_loses_no_frame(
    make_line: Callable[..., Rig], pictures: Path, tmp_path: Path, redis_server: str
) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as own:
        rig = make_line(frames={"roots": [f"redis://{own.address}/0"], "inline_max_bytes": SMALL})
        worker = start_worker(rig)
        manifest = rig.directory / "manifest.jsonl"
        camera = rig.run(
            "camera",
            "camera",
            *(str(pictures), "--config", str(rig.config), "--station", STATIONS[0], "--manifest", str(manifest)),
            *("--rate", "20", "--count", "200", "--loop", "--json"),
        )
        for _ in range(2):
            time.sleep(3)
            own.kill()
            time.sleep(2)
            own.start()
        assert camera.popen.wait(120) == 0, camera.last_words()
        sent = {json.loads(text)["frame_id"] for text in manifest.read_text().splitlines()}
        assert len(sent) == 200
        read = results(rig, 200)
        assert_one_verdict_each(read, sent)
        assert {r.verdict for r in read} == {"pass", "reject"}, "and none without its picture"
        assert [r.frame_id for r in read] == sorted(sent)
        # A frame that comes to the worker while Redis is away waits there.
        reference = open_roots(rig.settings.frames.roots, keep_s=60).put(min(pictures.iterdir()).read_bytes())
        logged = worker.log.read_text().count("pictures cannot be fetched")
        own.kill()
        (frame_id,) = _send(rig, [{**_headers(reference), "ce_id": b"waits"}])
        until = time.monotonic() + 30
        while worker.log.read_text().count("pictures cannot be fetched") <= logged and time.monotonic() < until:
            time.sleep(0.1)
        own.start()
        assert {r.frame_id: r.verdict for r in results(rig, 201)}[frame_id] in {"pass", "reject"}
        assert worker.popen.poll() is None, worker.last_words()


def _with_frames(settings: Settings, **limits: Any) -> Settings:
    return msgspec.structs.replace(settings, frames=msgspec.structs.replace(settings.frames, **limits))


def _records(rig: Rig, kind: str, wanted: int) -> list[wire.Record]:
    client = clients.tail(rig.settings.kafka, topics.name(rig.prefix, kind), from_start=True)
    read: list[wire.Record] = []
    while len(read) < wanted:
        read += clients.records(client)
    client.close()
    return read


def _headers(reference: Reference) -> dict[str, bytes]:
    return {
        "ce_dataref": reference.url.encode(),
        "ce_datasha256": reference.sha256.encode(),
        "ce_datasize": str(reference.size_bytes).encode(),
    }


def _send(rig: Rig, headers: list[dict[str, bytes]]) -> list[str]:
    """Send messages without a picture to the first station; their frame ids."""
    producer = clients.producer(rig.settings.kafka)
    topic = topics.name(rig.prefix, "frames")
    key = STATIONS[0].encode()
    futures = [producer.send(topic, value=b"", key=key, headers=list(h.items()), partition=0) for h in headers]
    for future in futures:
        future.get(timeout=30)
    producer.close()
    return [h["ce_id"].decode() for h in headers]


def _hostile(frames: Path, picture: bytes, redis_server: str) -> dict[str, dict[str, bytes]]:
    """What each changes of a good reference's headers; the root is there, with odd things in it."""
    (frames.parent / "secret").write_bytes(picture)
    (frames / "link").symlink_to(frames.parent / "secret")
    (frames / "folder").mkdir()
    (frames / "empty").write_bytes(b"")
    (frames / "zeros").symlink_to("/dev/zero")
    os.mkfifo(frames / "fifo")
    here, redis = frames.as_uri(), f"redis://{redis_server}"
    places = {
        "traversal": f"{here}/../secret",
        "traversal, escaped": f"{here}/%2e%2e/secret",
        "traversal, escaped twice": f"{here}/%252e%252e/secret",
        "slash, escaped": f"{here}%2f..%2fsecret",
        "NUL, escaped": f"{here}/a%00b",
        "NUL": f"{here}/a\0b",
        "symbolic link": f"{here}/link",
        "device": f"{here}/zeros",
        "FIFO": f"{here}/fifo",
        "folder": f"{here}/folder",
        "the root": here,
        "a neighbour of the root": f"{here}2/secret",
        "missing": f"{here}/not-yet-there",
        "empty": f"{here}/empty",
        "another file": "file:///etc/passwd",
        "another host": f"file://elsewhere{frames}/link",
        "another scheme": "http://169.254.169.254/latest/meta-data",
        "no scheme": f"{frames}/link",
        "very long": f"{here}/{'a' * 900}",
        "longer than a header may be": f"{here}/{'a' * 5000}",
        "another Redis": "redis://127.0.0.1:1/0/goldline:frame:a",
        "another database": f"{redis}/1/goldline:frame:a",
        "another key": f"{redis}/0/goldline:models.v1",
        "credentials": f"redis://user:s3cret@{redis_server}/0/goldline:frame:a",
        "expired in Redis": f"{redis}/0/goldline:frame:long-gone",
    }
    changes = {name: {"ce_dataref": url.encode()} for name, url in places.items()}
    return {
        **changes,
        "wrong hash": {"ce_datasha256": b"0" * 64},
        "no hash": {},
        "wrong size": {"ce_datasize": str(len(picture) - 1).encode()},
        "huge size": {"ce_datasize": b"999999999999"},
        "negative size": {"ce_datasize": b"-1"},
        "no size": {},
        "zero size": {"ce_datasize": b"0"},
        "not a picture": _headers(open_roots([here], keep_s=3600).put(b"GIF89a")),
    }
