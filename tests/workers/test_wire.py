"""Nothing in a message is believed, and whatever it says, an `Arrival` comes of it."""

import json
import random
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from model_store.frames import Reference
from pipeline import settings as line
from pipeline.data import Decision, Failure, Reason, Region, Verdict
from pipeline.settings import STATION_PATTERN
from workers import messages, wire
from workers.messages import decode_result, encode_result, result_id
from workers.wire import Record, read_frame, rfc3339

SCHEMA = Path(wire.__file__).parent / "schemas" / "result.v1.json"
SETTINGS = line.build(
    {
        "stations": {"line-1/top": {}, "line-1/side": {"deadline_ms": 150, "partition": 7}},
        "frames": {"deadline_max_ms": 5000},
    }
)
APPENDED_MS = 1_750_000_000_123
APPENDED = datetime.fromtimestamp(APPENDED_MS / 1000, UTC)
CAPTURED = APPENDED - timedelta(milliseconds=40)
ORIGIN = "goldline.frames/3/1234"


def record(headers=(), *, key=b"line-1/top", value=b"a picture", timestamp_ms=APPENDED_MS):
    return Record(
        topic="goldline.frames",
        partition=3,
        offset=1234,
        timestamp_ms=timestamp_ms,
        key=key,
        value=value,
        headers=list(headers.items()) if isinstance(headers, dict) else list(headers),
    )


def read(headers=(), **changes):
    return read_frame(record(headers, **changes), SETTINGS)


def test_a_camera_of_ours_is_understood():
    headers = wire.frame_headers(
        frame_id="f-1",
        part_id="p-1",
        source="camera/line-1/top",
        captured_at=CAPTURED,
        content_type="image/jpeg",
        recipe="cap.blue-2",
        deadline_ms=250,
    )
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    arrival = read([*headers, ("traceparent", trace.encode())])
    frame = arrival.frame
    assert (frame.frame_id, frame.part_id, frame.station, frame.recipe) == ("f-1", "p-1", "line-1/top", "cap.blue-2")
    assert frame.image == b"a picture"
    assert frame.captured_at == CAPTURED
    assert frame.deadline_at == CAPTURED + timedelta(milliseconds=250)
    assert arrival.traceparent == trace
    assert arrival.problem is None
    assert not arrival.unreadable


def test_every_extension_of_a_frame_carries_ce():
    headers = wire.frame_headers(
        frame_id="f", part_id="p", source="s", captured_at=CAPTURED, content_type="image/png", deadline_ms=1
    )
    assert all(name.startswith("ce_") for name, _ in headers if name != "content-type")
    assert dict(headers)["ce_specversion"] == b"1.0"
    assert dict(headers)["ce_type"] == b"goldline.frame.v1"


@pytest.mark.parametrize(
    "key",
    [
        None,
        b"",
        b"line-1",
        b"line-1/top/left",
        b"Line-1/top",
        b"line-1/top\n",
        b" line-1/top",
        b"../../etc",
        b"line_1/top",
        b"/",
        b"\xff\xfe/top",
        "línea/top".encode(),
        b"a" * 61 + b"/top",
        b"x" * 100_000,
        b"<script>/top",
    ],
)
def test_a_key_that_is_no_station_is_a_bad_frame(key):
    arrival = read({"ce_id": b"f-1"}, key=key)
    assert arrival.frame.station == ""
    assert arrival.problem.reason is Reason.BAD_FRAME
    assert "key is not a station" in arrival.problem.detail
    assert arrival.unreadable


def test_a_station_that_nobody_named_has_no_model_and_is_no_dead_letter():
    arrival = read({"ce_id": b"f-1"}, key=b"line-9/top")
    assert arrival.problem == Failure(
        frame_id="f-1", reason=Reason.NO_MODEL, detail="station line-9/top is not in the settings"
    )
    assert not arrival.unreadable


@pytest.mark.parametrize(
    "given",
    [
        None,
        b"",
        b" ",
        b"\t",
        b"x" * 201,
        b"x" * 100_000,
        b"a\nb",
        b"a\x00b",
        b"\x1b[31mred",
        b"\x7f",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        "a\u202eb".encode(),
        "a\u2028b".encode(),
        "\ufeff".encode(),
    ],
)
def test_an_id_that_cannot_be_used_becomes_the_place_of_the_message(given):
    arrival = read({"ce_id": given, "ce_partid": given})
    assert arrival.frame.frame_id == ORIGIN
    assert arrival.frame.part_id is None
    assert arrival.problem is None, "a frame without an id is inspected all the same"


def test_without_any_header_the_id_is_the_place_of_the_message():
    assert read().frame.frame_id == ORIGIN


@pytest.mark.parametrize("given", ["x" * 200, "Teil 7/ß-λ", "'; drop table frames; --", "é" * 200])
def test_a_printable_id_is_kept_as_it_is(given):
    assert read({"ce_id": given.encode()}).frame.frame_id == given


def test_the_first_header_of_a_name_counts():
    assert read([("ce_id", b"first"), ("ce_id", b"second")]).frame.frame_id == "first"


@pytest.mark.parametrize("first", [None, b"", b"\xff", b"a\nb", b"x" * 1001])
def test_a_later_header_never_stands_in_for_an_unreadable_first(first):
    assert read([("ce_id", first), ("ce_id", b"forged")]).frame.frame_id == ORIGIN
    assert wire.header([("goldline_detail", first), ("goldline_detail", b"forged")], "goldline_detail") is None


@pytest.mark.parametrize(
    "given",
    [None, b"", b"yesterday", b"1750000000", b"2025-13-45T99:99:99Z", b"2025-06-15", b"\xff", b"0000-00-00T00:00:00Z"],
)
def test_a_capture_time_that_is_none_is_the_append_time(given):
    assert read({"ce_time": given}).frame.captured_at == APPENDED


def test_a_capture_time_without_a_zone_is_the_append_time():
    naive = CAPTURED.replace(tzinfo=None).isoformat().encode()
    assert read({"ce_time": naive}).frame.captured_at == APPENDED


@pytest.mark.parametrize("given", [b"2999-01-01T00:00:00Z", b"9999-12-31T23:59:59-23:59"])
def test_a_capture_time_in_the_future_cannot_put_off_a_deadline(given):
    frame = read({"ce_time": given, "ce_deadlinems": b"200"}).frame
    assert frame.captured_at == APPENDED
    assert frame.deadline_at == APPENDED + timedelta(milliseconds=200)


@pytest.mark.parametrize("given", ["2025-06-15T17:06:40+02:00", "2025-06-15T15:06:40Z", "2025-06-15T15:06:40.000000Z"])
def test_zones_of_capture_times_are_understood(given):
    assert read({"ce_time": given.encode()}).frame.captured_at == datetime(2025, 6, 15, 15, 6, 40, tzinfo=UTC)


def test_a_capture_time_long_ago_is_believed_so_that_the_frame_is_late():
    frame = read({"ce_time": b"0001-01-01T00:00:00Z"}).frame
    assert frame.deadline_at < APPENDED
    assert read({"ce_time": b"0001-01-01T00:00:00+14:00"}).frame.captured_at == APPENDED  # before the year 1


@pytest.mark.parametrize("timestamp_ms", [-1, 0, 253_402_300_800_000, 2**62, 2**63 - 1])
def test_an_append_time_that_no_calendar_has_harms_nobody(timestamp_ms):
    frame = read({"ce_id": b"f-1"}, timestamp_ms=timestamp_ms).frame
    assert frame.deadline_at > frame.captured_at


@pytest.mark.parametrize(
    ("given", "expected_ms"),
    [
        (b"250", 250),
        (b"1", 1),
        (b"0", 1),
        (b"5000", 5000),
        (b"5001", 5000),
        (b"999999999", 5000),
        (None, 300),
        (b"", 300),
        (b"-1", 300),
        (b"+5", 300),
        (b"1e3", 300),
        (b"12.5", 300),
        (b" 12", 300),
        (b"9" * 900, 300),
        ("٣٠".encode(), 300),
        (b"soon", 300),
    ],
)
def test_a_deadline_is_bounded_by_the_settings(given, expected_ms):
    frame = read({"ce_time": rfc3339(CAPTURED).encode(), "ce_deadlinems": given}).frame
    assert frame.deadline_at - frame.captured_at == timedelta(milliseconds=expected_ms)


def test_a_station_has_its_own_deadline():
    frame = read(key=b"line-1/side").frame
    assert frame.deadline_at - frame.captured_at == timedelta(milliseconds=150)


@pytest.mark.parametrize("given", [b"../../x", b"A", b"a b", b"-a", b"a" * 101, b"a/b"])
def test_a_recipe_that_is_none_is_a_bad_frame(given):
    arrival = read({"ce_recipe": given})
    assert arrival.frame.recipe == "default"
    assert arrival.problem.reason is Reason.BAD_FRAME
    assert "ce_recipe" in arrival.problem.detail
    assert arrival.unreadable


def test_without_a_recipe_it_is_the_default_one():
    assert read().frame.recipe == "default"


@pytest.mark.parametrize("value", [None, b""])
def test_a_message_without_a_picture_is_a_bad_frame(value):
    arrival = read({"ce_id": b"f-1"}, value=value)
    assert arrival.frame.image == b""
    assert arrival.problem.reason is Reason.BAD_FRAME
    assert "0 bytes" in arrival.problem.detail
    assert arrival.unreadable


URL, SHA256 = "file:///srv/goldline/frames/a", "0123456789abcdef" * 4
REFERENCE = Reference(url=URL, sha256=SHA256, size_bytes=36_000_000)


def referred(**changes):
    """A message without a picture whose headers refer to one; None leaves a header out."""
    said = {"ce_dataref": URL.encode(), "ce_datasha256": SHA256.encode(), "ce_datasize": b"36000000", **changes}
    return read({name: value for name, value in said.items() if value is not None}, value=b"")


def test_a_reference_of_a_camera_of_ours_is_understood():
    headers = wire.frame_headers(
        frame_id="f", part_id="p", source="s", captured_at=CAPTURED, content_type="image/png", reference=REFERENCE
    )
    assert all(re.fullmatch(r"ce_[a-z0-9]+|content-type", name) for name, _ in headers)
    arrival = read(headers, value=b"")
    assert (arrival.reference, arrival.problem, arrival.unreadable) == (REFERENCE, None, False)
    assert arrival.frame.image == b""


def test_a_picture_that_came_along_goes_before_a_reference():
    arrival = read({"ce_dataref": URL.encode(), "ce_datasha256": SHA256.encode(), "ce_datasize": b"1"})
    assert (arrival.reference, arrival.frame.image) == (None, b"a picture")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("ce_datasha256", v) for v in (None, b"", SHA256[:-1].encode(), SHA256.upper().encode(), b"g" * 64)),
        *(("ce_datasize", v) for v in (None, b"", b"0", b"-1", b"+5", b"1.5", b"1e3", b" 5", b"5\n", "５".encode())),  # noqa: RUF001
        *(("ce_datasize", v) for v in (b"64000001", b"9" * 12, b"9" * 900, b"0x10", b"1_000")),
        *(("ce_dataref", v) for v in (None, b"", b"file:///a\0b", b"file:///a\n", b"\xff\xfe", b"a" * 1001)),
    ],
)
def test_a_reference_that_is_not_whole_or_too_large_is_a_bad_frame(name, value):
    arrival = referred(**{name: value})
    assert arrival.reference is None
    assert arrival.problem.reason is Reason.BAD_FRAME
    assert arrival.unreadable


def test_a_reference_of_a_station_that_nobody_named_is_not_looked_at():
    arrival = read(
        {"ce_dataref": URL.encode(), "ce_datasha256": SHA256.encode(), "ce_datasize": b"5"}, value=b"", key=b"line-9/x"
    )
    assert arrival.problem.reason is Reason.NO_MODEL


def test_hundreds_of_headers_cost_nothing():
    noise = [(f"x-{i}", b"y" * 100) for i in range(900)]
    assert read([("ce_id", b"f-1"), *noise]).frame.frame_id == "f-1"
    assert read([*noise, ("ce_id", b"too late")]).frame.frame_id == ORIGIN


@pytest.mark.parametrize("trace", [b"", b"00-zz", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01\n", b"\xff"])
def test_a_trace_that_is_none_is_left_out(trace):
    assert read({"traceparent": trace}).traceparent is None


def hostile(chance):
    """A record that somebody made up."""
    pieces = [
        b"",
        b"\x00",
        b"\xff\xfe",
        b"\n",
        b"..",
        b"/",
        b"line-1/top",
        b"9" * 20,
        b"-1",
        b"NaN",
        "☃\u202e".encode(),
    ]
    pieces += [b"2999-01-01T00:00:00Z", b"default", b"<b>", b"%s%n", b"{}", b"x" * 300, b"2025-06-15T15:06:40+99:99"]

    def blob():
        if chance.random() < 0.1:
            return None
        made = b"".join(chance.choices(pieces, k=chance.randint(0, 4)))
        return made + chance.randbytes(chance.choice([0, 0, 3, 40, 2000]))

    names = [
        "ce_id",
        "ce_time",
        "ce_recipe",
        "ce_partid",
        "ce_deadlinems",
        "ce_dataref",
        "ce_datasha256",
        "ce_datasize",
        "traceparent",
        "",
        "\x00",
        "é",
    ]
    names += ["goldline_reason", "CE_ID", "content-type"]
    headers = [(chance.choice(names), blob()) for _ in range(chance.choice([0, 1, 5, 12, 300]))]
    return Record(
        topic="goldline.frames",
        partition=chance.randint(0, 9999),
        offset=chance.randint(0, 2**63 - 1),
        timestamp_ms=chance.choice([-1, 0, APPENDED_MS, chance.randint(-(2**63), 2**63 - 1)]),
        key=chance.choice([b"line-1/top", b"line-9/top", blob()]),
        value=blob(),
        headers=headers,
    )


def test_whatever_comes_is_an_arrival_that_can_be_answered():
    chance = random.Random(20250615)
    reasons = set()
    for _ in range(500):
        came = hostile(chance)
        arrival = read_frame(came, SETTINGS)
        frame = arrival.frame
        assert frame.frame_id.isprintable()
        assert 0 < len(frame.frame_id.strip()) <= 200
        assert frame.part_id is None or (frame.part_id.isprintable() and 0 < len(frame.part_id) <= 200)
        assert frame.station == "" or re.fullmatch(STATION_PATTERN, frame.station)
        assert timedelta(0) < frame.deadline_at - frame.captured_at <= timedelta(milliseconds=5000)
        assert arrival.record is came
        answer = arrival.problem or Failure(frame_id=frame.frame_id, reason=Reason.ERROR, detail="x")
        assert answer.frame_id == frame.frame_id
        reasons.add(answer.reason)
        body = messages.result_of(
            arrival, answer, model=None, timings=messages.TimingsBody(), heatmap=None, decided_at=APPENDED
        )
        assert decode_result(encode_result(body)) == body
        assert len(encode_result(body)) < 5000
    assert reasons == {Reason.BAD_FRAME, Reason.NO_MODEL, Reason.ERROR}


# Results


def example(**changes):
    arrival = read({"ce_id": b'Teil "7"', "ce_partid": b"p-7", "ce_time": rfc3339(CAPTURED).encode()})
    verdict = Verdict(
        frame_id=arrival.frame.frame_id,
        decision=Decision.REJECT,
        score=3.25,
        threshold=2.5,
        p_value=0.01,
        regions=(Region(box=(1, 2, 30, 40), peak=(5, 6), area_px=77),),
    )
    given = {
        "model": messages.ModelBody(method="patchcore", version="ab" * 32),
        "timings": messages.TimingsBody(queue=1.0, decode=2.0, embed=3.0, score=4.0, total=10.5),
        "heatmap": messages.HeatmapBody(topic="goldline.heatmaps", key=arrival.frame.frame_id),
        "decided_at": CAPTURED + timedelta(milliseconds=90),
    }
    return messages.result_of(arrival, verdict, **{**given, **changes})


def test_a_result_comes_back_as_it_was_sent():
    sent = example()
    assert decode_result(encode_result(sent)) == sent


def test_the_json_of_a_result_is_what_the_documents_say():
    body = json.loads(encode_result(example()))
    assert set(body) == {
        *("result_id", "frame_id", "part_id", "station", "recipe", "verdict", "reason", "detail", "score"),
        *("threshold", "p_value", "regions", "model", "late", "timings_ms", "captured_at", "deadline_at"),
        *("decided_at", "heatmap"),
    }
    assert body["verdict"] == "reject"
    assert body["regions"] == [{"box": [1, 2, 30, 40], "peak": [5, 6], "area_px": 77}]
    assert body["model"] == {"method": "patchcore", "version": "ab" * 32}
    assert set(body["timings_ms"]) == {"queue", "decode", "embed", "score", "total"}
    for at in ("captured_at", "deadline_at", "decided_at"):
        assert body[at].endswith("Z")


def test_readers_ignore_what_they_do_not_know():
    body = json.loads(encode_result(example()))
    body["colour"] = {"of": "tomorrow"}
    body["timings_ms"]["publish"] = 3.0
    body["regions"][0]["kind"] = "scratch"
    assert decode_result(json.dumps(body).encode()) == example()


def test_older_results_without_the_optional_fields_are_read():
    body = json.loads(encode_result(example()))
    for name in ("reason", "detail", "score", "threshold", "p_value", "regions", "model", "late", "heatmap"):
        del body[name]
    assert decode_result(json.dumps(body).encode()).verdict == "reject"


@pytest.mark.parametrize("value", [None, b"", b"null", b"[]", b"{", b"\xff", b'{"frame_id": 1}', b"[" * 5000])
def test_what_is_no_result_is_none(value):
    assert decode_result(value) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("verdict", "maybe"),
        ("reason", "because"),
        ("score", "high"),
        ("frame_id", None),
        ("decided_at", "today"),
        ("deadline_at", "0001-01-01T00:00:00"),  # without a zone it is no moment at all
    ],
)
def test_a_result_with_a_wrong_value_is_none(name, value):
    body = json.loads(encode_result(example())) | {name: value}
    assert decode_result(json.dumps(body).encode()) is None


def test_a_result_id_follows_from_frame_and_model_version():
    assert result_id("f", "v") == "54c65028a09452cd657f12b8aaf4c628"
    assert len({result_id("f", "v"), result_id("f", "w"), result_id("g", "v"), result_id("f", None)}) == 4
    assert example().result_id == result_id('Teil "7"', "ab" * 32)
    assert example().result_id == example(decided_at=CAPTURED).result_id, "a repeat is seen to be one"


def test_late_is_decided_after_the_deadline():
    assert not example().late
    assert example(decided_at=CAPTURED + timedelta(milliseconds=301)).late


def test_a_failure_has_neither_score_nor_heatmap():
    arrival = read()
    failure = Failure(frame_id=ORIGIN, reason=Reason.SHED, detail="x" * 10_000)
    place = messages.HeatmapBody(topic="t", key="k")
    body = messages.result_of(
        arrival, failure, model=None, timings=messages.TimingsBody(), heatmap=place, decided_at=APPENDED
    )
    assert (body.verdict, body.reason, body.score, body.heatmap) == ("no_decision", "shed", None, None)
    assert len(body.detail) == 500


# The schema


def test_the_schema_in_the_repository_is_the_one_in_force():
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json.loads(json.dumps(messages.result_schema())), (
        "workers/schemas/result.v1.json differs from workers.messages.Result; if it is additive, regenerate: "
        "python -c 'import json; from workers import messages; print(json.dumps(messages.result_schema(), indent=2))' "
        "> workers/schemas/result.v1.json"
    )


def violations(value, schema, root, path="$"):  # noqa: C901 - one branch for each keyword
    """What a JSON value breaks of the parts of JSON Schema that ours uses; an unknown keyword is an error here."""
    known = {"type", "enum", "const", "anyOf", "$ref", "properties", "required", "items", "prefixItems", "format"}
    known |= {"minItems", "maxItems", "default", "title", "description", "$schema", "$defs"}
    known |= {"minLength", "maxLength", "pattern"}
    assert set(schema) <= known, set(schema) - known
    if "$ref" in schema:
        target = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        return violations(value, target, root, path)
    if "anyOf" in schema:
        options = [violations(value, option, root, path) for option in schema["anyOf"]]
        return [] if any(not option for option in options) else options[0]
    types = {
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": (int, float),
        "object": dict,
        "array": list,
        "null": type(None),
    }
    wanted = schema.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    is_flag = isinstance(value, bool)
    if wanted and not any(isinstance(value, types[w]) and (w == "boolean") == is_flag for w in wanted):
        return [f"{path}: {value!r} is not {wanted}"]
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: {value!r} not in {schema['enum']}")
    if schema.get("format") == "date-time" and isinstance(value, str):
        found += [] if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", value) else [path]
    if isinstance(value, str):
        length = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        found += [] if length and re.search(schema.get("pattern", ""), value) else [f"{path}: {value[:20]!r}"]
    if isinstance(value, dict):
        found += [f"{path}: {name} is missing" for name in schema.get("required", []) if name not in value]
        for name, item in value.items():
            if name in schema.get("properties", {}):
                found += violations(item, schema["properties"][name], root, f"{path}.{name}")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{path}: {len(value)} items")
        each = [*schema.get("prefixItems", []), *[schema.get("items") or {}] * len(value)]
        for i, (item, item_schema) in enumerate(zip(value, each, strict=False)):
            found += violations(item, item_schema, root, f"{path}[{i}]")
    return found


@pytest.mark.parametrize("changes", [{}, {"model": None, "heatmap": None}])
def test_a_real_result_keeps_to_the_schema(changes):
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert violations(json.loads(encode_result(example(**changes))), schema, schema) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("verdict", "maybe"),
        ("regions", [{"box": [1, 2, 3], "peak": [1, 2], "area_px": 1}]),
        ("late", 1),
        ("captured_at", "yesterday"),
    ],
)
def test_the_schema_refuses_what_is_no_result(name, value):
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    body = json.loads(encode_result(example())) | {name: value}
    assert violations(body, schema, schema)
    del body[name]
    assert bool(violations(body, schema, schema)) == (name not in {"regions", "late"})


def test_the_schema_promises_what_readers_need():
    schema = messages.result_schema()
    required = set(schema["$defs"]["Result"]["required"])
    assert {"result_id", "frame_id", "verdict", "captured_at", "deadline_at", "decided_at"} <= required
    assert "additionalProperties" not in json.dumps(schema), "readers ignore what they do not know"
    assert msgspec.json.encode(schema)


# Feedback

FEEDBACK_SCHEMA = SCHEMA.with_name("feedback.v1.json")


def feedback(**changes):
    said = {"part_id": "p-1", "verdict": "defect", "by": "ana", "at": "2025-06-15T12:00:00Z"}
    return {**said, **changes}


def test_the_schema_of_feedback_is_the_one_in_force():
    assert json.loads(FEEDBACK_SCHEMA.read_text(encoding="utf-8")) == json.loads(json.dumps(messages.feedback_schema()))


@pytest.mark.parametrize(
    "changes", [{}, {"station": "line-1/top", "recipe": "sku-7.b", "note": "a crack"}, {"verdict": "good", "more": 1}]
)
def test_feedback_keeps_to_the_schema_and_comes_back(changes):
    schema = json.loads(FEEDBACK_SCHEMA.read_text(encoding="utf-8"))
    said = feedback(**changes)
    assert violations(said, schema, schema) == []
    read = messages.decode_feedback(json.dumps(said).encode(), b"p-1")
    assert (read.part_id, read.verdict, read.by, read.note) == ("p-1", said["verdict"], "ana", said.get("note", ""))
    assert read.at == datetime(2025, 6, 15, 12, tzinfo=UTC)
    assert messages.decode_feedback(messages.encode_feedback(read), b"p-1") == read


@pytest.mark.parametrize(
    "changes",
    [
        {"verdict": "maybe"},
        {"verdict": 1},
        {"by": ""},
        {"by": None},
        {"at": "yesterday"},
        {"at": "2025-06-15T12:00:00"},
        {"at": 1_750_000_000},
        {"part_id": ""},
        {"part_id": "x" * 201},
        {"part_id": ["p-1"]},
        {"part_id": "p\n1"},
        {"station": "../../etc"},
        {"recipe": "A B"},
        {"note": "x" * 1001},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_feedback_that_is_none_is_refused_by_the_schema_and_by_the_reader(changes):
    schema = json.loads(FEEDBACK_SCHEMA.read_text(encoding="utf-8"))
    said = feedback(**changes)
    assert violations(said, schema, schema)
    assert messages.decode_feedback(json.dumps(said).encode(), str(said["part_id"]).encode()) is None


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (None, b"p-1"),
        (b"", b"p-1"),
        (b"{", b"p-1"),
        (b"[]", b"p-1"),
        (b"\xff" * 100, b"p-1"),
        (b"[" * 10_000, b"p-1"),
        (json.dumps(feedback()).encode() + b" " * 20_000, b"p-1"),
        (json.dumps(feedback()).encode(), b"p-2"),
        (json.dumps(feedback()).encode(), None),
        (b'{"part_id": "\\ud800", "verdict": "good", "by": "a", "at": "2025-06-15T12:00:00Z"}', b"p-1"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_hostile_feedback_is_none(value, key):
    assert messages.decode_feedback(value, key) is None
