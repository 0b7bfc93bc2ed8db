"""Two hundred hostile messages on the topic of frames: the worker lives, each has its verdict or dead letter."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline import synthetic
from tests.line import STATIONS, results, start_worker
from workers import clients, dead_letter, topics
from workers.cli import cli
from workers.rig import Rig

pytestmark = pytest.mark.kafka

HOSTILE = 200


def test_hostile_messages_harm_nobody(make_line: Callable[..., Rig]) -> None:
    rig = make_line()
    worker = start_worker(rig)
    _send(rig, [(STATIONS[0].encode(), _jpeg(i), [("ce_id", f"warm-{i}".encode())]) for i in range(30)])
    results(rig, 30)
    before_kb = _resident_kb(worker.popen.pid)
    messages = list(_hostile(random.Random(7), HOSTILE))
    offsets = _send(rig, messages)
    read = results(rig, 30 + HOSTILE, within_s=120)
    assert worker.popen.poll() is None, worker.last_words()
    answered = {r.frame_id for r in read}
    for (_, _, headers), offset in zip(messages, offsets, strict=True):
        said = dict(headers).get("ce_id", b"").decode("utf-8", "replace")
        assert offset in answered or said in answered, (offset, headers)
    assert len(read) == 30 + HOSTILE
    assert {r.verdict for r in read if not r.frame_id.startswith("warm")} <= {"pass", "reject", "no_decision"}
    letters = list(dead_letter.letters(rig.settings))
    bad = {r.frame_id for r in read if r.reason == "bad_frame"}
    assert bad == {letter.frame_id for letter in letters}
    assert all(letter.detail and letter.origin.startswith(f"{rig.prefix}.frames/") for letter in letters)
    # Memory: what the largest permitted picture takes for a moment is given back.
    assert _resident_kb(worker.popen.pid) - before_kb < 300_000
    _send(rig, messages)
    results(rig, 30 + 2 * HOSTILE - _with_ids(messages), within_s=120)
    again_kb = _resident_kb(worker.popen.pid)
    assert again_kb - before_kb < 330_000, "a second round takes no more"
    assert worker.end() == 0, worker.last_words()


def test_dead_letters_are_listed_shown_and_replayed(make_line: Callable[..., Rig], tmp_path: Path) -> None:
    rig = make_line()
    start_worker(rig)
    good = _jpeg(1)
    _send(rig, [(STATIONS[0].encode(), good[:200], [("ce_id", b"cut"), ("goldline_reason", b"forged")])])
    results(rig, 1)
    run = CliRunner().invoke(cli, ["dead-letters", "list", "--config", str(rig.config), "--json"])
    assert run.exit_code == 0, run.output
    assert '"reason": "bad_frame"' in run.output
    assert '"frame_id": "cut"' in run.output
    out = tmp_path / "bytes"
    run = CliRunner().invoke(cli, ["dead-letters", "show", "cut", "--config", str(rig.config), "--output", str(out)])
    assert run.exit_code == 0, run.output
    assert out.read_bytes() == good[:200]
    run = CliRunner().invoke(cli, ["dead-letters", "replay", "cut", "--config", str(rig.config)])
    assert run.exit_code == 0, run.output
    read = results(rig, 2)
    assert len({r.frame_id for r in read}) == 2, "a replay is a new frame"
    assert [r.reason for r in read] == ["bad_frame", "bad_frame"]


def _hostile(order: random.Random, count: int) -> list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]]:
    """Fuzzed keys, headers, values and pictures."""
    station = STATIONS[0].encode()
    kinds: list[Callable[[int], tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]]] = [
        lambda i: (station, _jpeg(i)[: order.randrange(1, 2000)], [("ce_id", f"cut-{i}".encode())]),
        lambda i: (station, b"", []),
        lambda i: (station, None, [("ce_dataref", b"file:///etc/passwd")]),
        lambda i: (station, _bomb(), [("ce_id", f"bomb-{i}".encode())]),
        lambda i: (station, _animated(), []),
        lambda i: (station, _picture("I;16"), []),
        lambda i: (station, _picture("L"), []),
        lambda i: (station, _picture("CMYK"), []),
        lambda i: (station, _picture("RGBA"), []),
        lambda i: (station, _turned(1 + i % 8), []),
        lambda i: (b"line-9/nobody", _jpeg(i), []),
        lambda i: (None, _jpeg(i), []),
        lambda i: (order.randbytes(order.randrange(300)), _jpeg(i), []),
        lambda i: (b"../../etc", _jpeg(i), [("ce_recipe", b"../../../etc/passwd")]),
        lambda i: (station, _jpeg(i), [("ce_recipe", b"no-such-recipe")]),
        lambda i: (station, _jpeg(i), [("ce_time", b"1999-01-01T00:00:00Z"), ("ce_deadlinems", b"1")]),
        lambda i: (station, _jpeg(i), [("ce_time", b"9999-99-99"), ("ce_deadlinems", b"99999999999999999999")]),
        lambda i: (station, _jpeg(i), [(f"h{j}", order.randbytes(50)) for j in range(300)]),
        lambda i: (station, _jpeg(i), [("ce_id", order.randbytes(5000)), ("ce_partid", b"<script>alert(1)</script>")]),
        lambda i: (station, _flipped(_jpeg(i), order), [("ce_id", f"flip-{i}".encode())]),
        lambda i: (station, order.randbytes(50_000), []),
        lambda i: (station, b"<svg/>" * 100, [("ce_id", b"\x00\xff")]),
    ]
    return [kinds[i % len(kinds)](i) for i in range(count)]


def _send(rig: Rig, messages: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]]) -> list[str]:
    producer = clients.producer(rig.settings.kafka)
    topic = topics.name(rig.prefix, "frames")
    futures = [producer.send(topic, value=v, key=k, headers=h, partition=0) for k, v, h in messages]
    done = [future.get(timeout=30) for future in futures]
    producer.close()
    return [f"{m.topic}/{m.partition}/{m.offset}" for m in done]


class _Name(str):
    """A header's name that no text can be."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe" + super().encode()


def test_a_header_name_that_is_no_text_stops_neither_worker_nor_gate(make_line: Callable[..., Rig]) -> None:
    rig = make_line()
    worker = start_worker(rig)
    gate = rig.run("gate", "gate", "--config", str(rig.config), "--output", str(rig.directory / "actions.jsonl"))
    rig.wait_for(gate, "gate started")
    station = STATIONS[0].encode()
    headers = [("ce_id", b"odd"), (_Name("ce_recipe"), b"other")]
    _send(rig, [(station, _jpeg(0), [("ce_id", b"before")]), (station, _jpeg(1), headers)])
    _send(rig, [(station, _jpeg(2), [("ce_id", b"after")])])
    read = results(rig, 3)
    assert {r.frame_id for r in read if r.verdict in {"pass", "reject"}} == {"before", "odd", "after"}
    assert worker.end() == 0, worker.last_words()
    assert gate.end() == 0, gate.last_words()
    assert len((rig.directory / "actions.jsonl").read_text().splitlines()) == 3


def _with_ids(messages: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]]) -> int:
    """How many carry an id of their own: sent again, they have their verdict already."""
    ids = [dict(headers).get("ce_id", b"") for _, _, headers in messages]
    return sum(1 for i in ids if i and len(i) <= 200 and i.decode("utf-8", "replace").isprintable())


def _jpeg(seed: int) -> bytes:
    return synthetic.encode(synthetic.draw("cap", seed=seed % 5, size=(96, 96)).image)


def _picture(mode: str) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (80, 60), 40 if mode in {"L", "I;16"} else None).save(out, "JPEG" if mode == "CMYK" else "PNG")
    return out.getvalue()


def _turned(orientation: int) -> bytes:
    picture = Image.new("RGB", (80, 60), (90, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    picture.save(out, "JPEG", exif=exif)
    return out.getvalue()


def _animated() -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (40, 40), (i * 60, 0, 0)) for i in range(3)]
    frames[0].save(out, "PNG", save_all=True, append_images=frames[1:])
    return out.getvalue()


def _bomb() -> bytes:
    """A PNG that says it is 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def _flipped(data: bytes, order: random.Random) -> bytes:
    spoiled = bytearray(data)
    for _ in range(20):
        spoiled[order.randrange(len(spoiled))] ^= 1 << order.randrange(8)
    return bytes(spoiled)


def _resident_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
