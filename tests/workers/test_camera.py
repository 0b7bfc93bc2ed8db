"""What a camera puts on a real topic: a picture in its message, or a reference to where it lies."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from kafka.future import Future

from model_store.frames import open_roots
from pipeline.errors import ConfigError, StoreUnavailable
from tests.redis_server import RedisServer
from workers import camera as cameras
from workers import clients, logs, topics, wire
from workers.camera import Camera, PartIds, Shot, shots
from workers.cli import cli
from workers.rig import Rig

pytestmark = pytest.mark.kafka

STATION = "line-1/top"
INLINE = 4096


@pytest.fixture
def make_rig(tmp_path: Path, broker: str) -> Iterator[Callable[..., Rig]]:
    """Makes topics and settings, without a worker."""
    opened: list[Rig] = []

    def make(**frames: Any) -> Rig:
        tree = {"stations": {STATION: {}}, "frames": {"inline_max_bytes": INLINE, **frames}}
        rig = Rig(tmp_path / f"line-{len(opened)}", tree, address=broker)
        opened.append(rig)
        for root in open_roots(frames.get("roots", []), keep_s=60).stores:
            with suppress(ConfigError, StoreUnavailable):  # some tests want one that is unfit
                root.create()
        return rig.__enter__()

    yield make
    for rig in opened:
        rig.close()


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """The log's lines since, set up as the camera's process does: another test of this process may have done it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.set_up()
    yield lambda: capsys.readouterr().err
    root.handlers[:] = handlers
    root.setLevel(level)


def shot(size: int) -> Shot:
    return Shot(name=f"{size} bytes", image=os.urandom(size), content_type="image/png")


def sent_by(rig: Rig, *shots: Shot, **how: Any) -> tuple[cameras.Sent, list[wire.Arrival]]:
    """What the camera counted, and what is on the topic then."""
    camera = Camera(rig.settings, STATION)
    for one in shots:
        camera.send(one, **how)
    counted = camera.close()
    client = clients.tail(rig.settings.kafka, topics.name(rig.prefix, "frames"), from_start=True)
    records = []
    while len(records) < counted.accepted:
        records += list(clients.records(client))
    client.close()
    return counted, [wire.read_frame(record, rig.settings) for record in records]


@pytest.mark.parametrize("kind", ["file", "redis"])
def test_the_size_decides_how_a_picture_travels(make_rig: Callable[..., Rig], tmp_path: Path, request, kind) -> None:
    url = (tmp_path / "frames").as_uri()
    if kind == "redis":
        url = f"redis://{request.getfixturevalue('redis_server')}/0"
    rig = make_rig(roots=[url])
    shots = [shot(INLINE), shot(INLINE + 1), shot(2_000_000)]
    counted, arrivals = sent_by(rig, *shots)
    assert (counted.sent, counted.accepted, counted.failed, counted.too_large) == (3, 3, 0, 0)
    inline, *referred = arrivals
    assert (inline.frame.image, inline.reference) == (shots[0].image, None)
    roots = open_roots([url], keep_s=60)
    for one, arrival in zip(shots[1:], referred, strict=True):
        assert arrival.record.value == b""
        assert arrival.problem is None
        assert arrival.reference is not None
        assert roots.find(arrival.reference.url).get(arrival.reference) == one.image
        assert wire.header(arrival.record.headers, "content-type") == "image/png", "that of the picture"


def test_help_says_how_pictures_travel() -> None:
    told = CliRunner().invoke(cli, ["camera", "--help"]).output
    assert "[frames] inline_max_bytes" in told
    assert "[frames] roots" in " ".join(told.split())


def test_without_a_root_a_large_picture_is_not_sent_and_it_is_said_why(
    make_rig: Callable[..., Rig], logged: Callable[[], str]
) -> None:
    rig = make_rig(roots=[])
    counted, arrivals = sent_by(rig, shot(INLINE + 1), shot(100))
    assert (counted.accepted, counted.too_large) == (1, 1)
    assert len(arrivals) == 1
    assert "[frames] roots is empty" in logged()


def test_what_waits_for_a_broker_is_bounded(make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cameras, "_ON_THEIR_WAY_BYTES", 5000)
    camera = Camera(make_rig(roots=[]).settings, STATION)
    handed: list[Future] = []

    def send(*_: Any, **__: Any) -> Future:
        handed.append(Future())
        return handed[-1]

    monkeypatch.setattr(camera._producer, "send", send)  # a broker that takes its time
    camera.send(shot(3000))
    second = threading.Thread(target=camera.send, args=(shot(3000),))
    second.start()
    second.join(0.3)
    assert len(handed) == 1, "there is no room for a second"
    handed[0].success(None)
    second.join(10)
    assert len(handed) == 2
    handed[1].failure(ConnectionError("gone"))
    camera.send(shot(4000), stopped=lambda: False)
    assert len(handed) == 3, "what failed makes room, too"
    camera.send(shot(4000), stopped=lambda: True)
    assert len(handed) == 4, "whoever stops is not held"
    assert (camera.sent.accepted, camera.sent.failed) == (1, 1)


def test_above_max_bytes_a_picture_is_not_sent(
    make_rig: Callable[..., Rig], tmp_path: Path, logged: Callable[[], str]
) -> None:
    rig = make_rig(roots=[(tmp_path / "frames").as_uri()], max_bytes=10_000)
    counted, _ = sent_by(rig, shot(10_000), shot(10_001))
    assert (counted.accepted, counted.too_large) == (1, 1)
    assert "[frames] max_bytes" in logged()


def test_a_root_that_cannot_be_written_fails_the_frame_and_not_the_camera(
    make_rig: Callable[..., Rig], tmp_path: Path, logged: Callable[[], str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    rig = make_rig(roots=[(tmp_path / "file" / "frames").as_uri()])
    counted, arrivals = sent_by(rig, shot(INLINE + 1), shot(100))
    assert (counted.sent, counted.accepted, counted.failed) == (2, 1, 1)
    assert len(arrivals) == 1
    assert "[frames] roots" in logged()


def test_a_camera_that_is_stopped_waits_for_no_root(
    make_rig: Callable[..., Rig], redis_server: str, tmp_path: Path
) -> None:
    with RedisServer(tmp_path) as own:
        rig = make_rig(roots=[f"redis://{own.address}/0"])
        own.kill()
        counted, arrivals = sent_by(rig, shot(INLINE + 1), stopped=lambda: True)
        assert (counted.sent, counted.accepted, counted.failed, arrivals) == (1, 0, 1, [])


def test_a_topic_that_is_missing_or_too_narrow_is_one_clear_line_at_the_start(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    more = rig.settings.stations | {"line-1/side": rig.settings.stations[STATION]}
    wider = msgspec.structs.replace(rig.settings, stations=more)
    with pytest.raises(ConfigError, match=r"has no partition 1: it was made for fewer stations"):
        Camera(wider, "line-1/side")
    elsewhere = msgspec.structs.replace(rig.settings.kafka, prefix="nobody-made-this")
    with pytest.raises(ConfigError, match=r"there is no topic nobody-made-this\.frames"):
        Camera(msgspec.structs.replace(rig.settings, kafka=elsewhere), STATION)


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        (PartIds(prefix="lot7"), ["lot7-000000", "lot7-000001"]),
        (PartIds(by="filename"), ["part-17", "part-18"]),
        (PartIds(by="filename", prefix="lot7"), ["lot7-part-17", "lot7-part-18"]),
    ],
)
def test_two_cameras_call_the_same_parts_the_same(
    make_rig: Callable[..., Rig], tmp_path: Path, how: PartIds, wanted: list[str]
) -> None:
    rig = make_rig()
    seen = []
    for view in ("top", "side"):
        (tmp_path / view).mkdir()
        for name in ("part-17", "part-18"):
            (tmp_path / view / f"{name}.{view}.png").write_bytes(os.urandom(100))
        camera = Camera(rig.settings, STATION, part_ids=how)
        seen += [camera.send(shot) for shot in shots(str(tmp_path / view))]
        assert camera.close().accepted == 2
    client = clients.tail(rig.settings.kafka, topics.name(rig.prefix, "frames"), from_start=True)
    records: list[wire.Record] = []
    while len(records) < 4:
        records += list(clients.records(client))
    client.close()
    frames = [wire.read_frame(record, rig.settings).frame for record in records]
    assert [frame.part_id for frame in frames] == wanted * 2
    assert [frame.frame_id for frame in frames] == seen
    assert len(set(seen)) == 4, "a frame's own id is never another's"


def test_without_options_two_runs_never_share_a_part(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    parts = {a.frame.part_id for _ in range(2) for a in sent_by(rig, shot(100), shot(100))[1]}
    assert len(parts) == 4


@pytest.mark.parametrize("prefix", ["", "a b", "\x1b[31m", "x" * 101])
def test_a_prefix_is_plain(prefix: str) -> None:
    with pytest.raises(ConfigError, match="a prefix of part ids is letters"):
        PartIds(prefix=prefix)


def test_a_picture_without_a_file_of_its_own_names_no_part(make_rig: Callable[..., Rig]) -> None:
    camera = Camera(make_rig().settings, STATION, part_ids=PartIds(by="filename"))
    with pytest.raises(ConfigError, match="leave out --part-ids filename"):
        camera.send(shot(100))
    camera.close()


def test_a_file_name_that_no_worker_takes_for_a_part_is_refused():
    ids = PartIds(by="filename", prefix="p" * 100)
    shot = Shot(name="x.png", image=b"", content_type="image/png", stem="s" * 99)
    assert len(ids.of(shot, 0, "run")) == 200
    with pytest.raises(ConfigError, match="200 bytes at most"):
        ids.of(Shot(name="x.png", image=b"", content_type="image/png", stem="s" * 100), 0, "run")
