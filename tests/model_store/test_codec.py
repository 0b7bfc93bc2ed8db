import contextlib
import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from model_store import Version, decode, encode, version_of
from model_store.codec import FORMAT, MAX_HEADER_BYTES, Encoded, canonical
from pipeline.data import Artifact
from pipeline.errors import ArtifactError

STORED = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool"
DTYPES = [getattr(torch, name) for name in STORED.split()]
META = {"threshold": 0.1 + 0.2, "layers": ["layer2", "layer3"], "n": 7, "name": "Prüfling", "none": None}


def an_artifact() -> Artifact:
    torch.manual_seed(0)
    tensors = {str(dtype): (torch.rand(3, 5) * 9).to(dtype) for dtype in DTYPES}
    tensors |= {"empty": torch.empty(0, 4), "scalar": torch.tensor(1.5)}
    return Artifact(method="padim", tensors=tensors, meta=META)


def sha(data: bytes) -> Version:
    return Version(hashlib.sha256(data).hexdigest())


def assert_equal(a: Artifact, b: Artifact) -> None:
    assert a.method == b.method
    assert a.meta == b.meta
    assert set(a.tensors) == set(b.tensors)
    for name, tensor in a.tensors.items():
        assert tensor.dtype == b.tensors[name].dtype
        assert torch.equal(tensor, b.tensors[name])


@pytest.fixture(params=["bytes", "path"])
def source(request, tmp_path):
    def as_source(data: bytes) -> bytes | Path:
        if request.param == "bytes":
            return data
        path = tmp_path / "model"
        path.write_bytes(data)
        return path

    return as_source


def test_round_trip(source):
    data = encode(an_artifact())
    assert_equal(decode(source(data), sha(data)), an_artifact())


def test_no_tensors_and_no_meta(source):
    data = encode(Artifact(method="m", tensors={}))
    assert decode(source(data), sha(data)) == Artifact(method="m", tensors={}, meta={})


def test_version_is_the_sha256_of_the_file():
    assert version_of(an_artifact()) == sha(encode(an_artifact()))


def test_order_does_not_matter():
    a = an_artifact()
    b = Artifact(
        method=a.method,
        tensors=dict(reversed(a.tensors.items())),
        meta=dict(reversed(a.meta.items())) | {"layers": ("layer2", "layer3")},
    )
    assert encode(a) == encode(b)


def test_encoding_is_the_same_in_years_to_come():
    """A change here would give every stored model a new version: raise FORMAT and say so in the changelog."""
    artifact = Artifact(method="padim", tensors={"b": torch.arange(3), "a": torch.ones(2)}, meta={"z": 1, "a": 0.1})
    assert version_of(artifact)[:12] == "07572f12c812"


@pytest.mark.parametrize(
    "other",
    [
        {"method": "spade"},
        {"meta": META | {"n": 8}},
        {"meta": META | {"n": 7.0}},
        {"tensors": {"a": torch.zeros(2)}},
    ],
)
def test_other_content_is_another_version(other):
    a = an_artifact()
    b = Artifact(**({"method": a.method, "tensors": a.tensors, "meta": a.meta} | other))
    assert version_of(a) != version_of(b)


def test_shape_and_dtype_are_content():
    versions = {
        version_of(Artifact(method="m", tensors={"a": tensor}))
        for tensor in (
            torch.zeros(4),
            torch.zeros(2, 2),
            torch.zeros(4, dtype=torch.int32),
            torch.zeros(4, 1),
        )
    }
    assert len(versions) == 4


def test_views_gradients_and_shared_memory_are_stored_as_their_values():
    base = torch.arange(12.0).reshape(3, 4).requires_grad_()
    artifact = Artifact(
        method="m",
        tensors={"whole": base, "turned": base.T, "row": base[1], "column": base[:, 2], "again": base},
    )
    data = encode(artifact)
    assert_equal(decode(data, sha(data)), artifact)
    assert not decode(data, sha(data)).tensors["whole"].requires_grad


def test_writing_to_a_mapped_tensor_does_not_reach_the_file(tmp_path):
    data = encode(an_artifact())
    path = tmp_path / "model"
    path.write_bytes(data)
    decode(path, sha(data)).tensors["torch.float32"].add_(1)
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    "meta",
    [
        {"a": float("nan")},
        {"a": [float("inf")]},
        {"a": {1: 2}},
        {1: 2},
        {"a": b"bytes"},
        {"a": {"b": torch.ones(1)}},
        {"a": {1, 2}},
    ],
)
def test_meta_that_is_not_json_is_refused(meta):
    with pytest.raises(ArtifactError, match="not JSON"):
        encode(Artifact(method="m", tensors={}, meta=meta))


def test_endless_meta_is_refused():
    meta: dict[str, object] = {}
    meta["self"] = meta
    with pytest.raises(ArtifactError, match="not JSON"):
        encode(Artifact(method="m", tensors={}, meta=meta))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("complex", torch.zeros(2, dtype=torch.complex64)),
        ("sparse", torch.eye(3).to_sparse()),
        ("meta", torch.zeros(2, device="meta")),
        ("list", [1.0, 2.0]),
        ("__metadata__", torch.zeros(2)),
    ],
)
def test_tensors_that_cannot_be_stored_are_refused(name, tensor):
    with pytest.raises(ArtifactError, match="cannot be stored"):
        encode(Artifact(method="m", tensors={name: tensor}))


def test_a_header_too_large_to_read_back_is_not_written():
    with pytest.raises(ArtifactError, match="header of"):
        encode(Artifact(method="m", tensors={}, meta={"a": "x" * MAX_HEADER_BYTES}))


def test_every_flipped_byte_is_noticed():
    data = encode(Artifact(method="m", tensors={"a": torch.ones(3)}, meta={"b": 1}))
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(ArtifactError, match="damaged"):
            decode(bytes(damaged), sha(data))


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, -1])
def test_a_cut_file_is_noticed_even_under_its_own_name(source, length):
    data = encode(an_artifact())
    cut = data[:length]
    with pytest.raises(ArtifactError, match="damaged"):
        decode(source(cut), sha(data))
    with pytest.raises(ArtifactError, match=sha(cut)[:12]):
        decode(source(cut), sha(cut))


@pytest.mark.parametrize("expected", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_the_expected_version_is_checked_too(expected):
    with pytest.raises(ArtifactError, match="64 hexadecimal digits"):
        decode(encode(an_artifact()), Version(expected))


def packed(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def ours(text: str | None = None, **more: object) -> dict[str, object]:
    usual = canonical({"format": 1, "method": "m", "meta": {}})
    return {"__metadata__": {"goldline": usual if text is None else text}, **more}


def a_tensor(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def test_the_forger_below_could_make_a_good_file(source):
    data = packed(ours(a=a_tensor()), bytes(8))
    assert decode(source(data), sha(data)).tensors["a"].tolist() == [0, 0]


HOSTILE = {
    "giant header length": packed(b"{}", length=2**64 - 1),
    "header length past the end": packed(ours(), length=10_000),
    "header length of all memory": packed(b"{}", length=2**40),
    "header too long though there": packed(b" " * (MAX_HEADER_BYTES + 8)),
    "empty header": packed(b""),
    "header is not JSON": packed(b"not json"),
    "header is not UTF-8": packed(b'{"\xff\xfe": 1}'),
    "header is a list": packed([1]),
    "header is nested without end": packed(b'{"a":' + b"[" * 200_000),
    "no metadata": packed({"a": a_tensor()}, bytes(8)),
    "metadata of somebody else": packed({"__metadata__": {"format": "pt"}}),
    "more metadata": packed({"__metadata__": {**ours()["__metadata__"], "x": "y"}}),
    "metadata is a list": packed({"__metadata__": []}),
    "metadata is not text": packed({"__metadata__": {"goldline": {}}}),
    "meta is not JSON": packed(ours("{")),
    "meta is a list": packed(ours(canonical({"format": 1, "method": "m", "meta": []}))),
    "meta has NaN": packed(ours('{"format":1,"meta":{"a":NaN},"method":"m"}')),
    "meta has Infinity": packed(ours('{"format":1,"meta":{"a":-Infinity},"method":"m"}')),
    "meta overflows": packed(ours('{"format":1,"meta":{"a":1e999},"method":"m"}')),
    "meta has an endless number": packed(ours(f'{{"format":1,"meta":{{"a":{"9" * 5000}}},"method":"m"}}')),
    "meta is nested without end": packed(ours('{"format":1,"meta":{"a":' + "[" * 100_000)),
    "meta says a key twice": packed(ours('{"format":1,"meta":{"a":1,"a":2},"method":"m"}')),
    "meta has spaces": packed(ours('{"format": 1, "meta": {}, "method": "m"}')),
    "method is a number": packed(ours(canonical({"format": 1, "method": 5, "meta": {}}))),
    "method is empty": packed(ours(canonical({"format": 1, "method": "", "meta": {}}))),
    "method is missing": packed(ours(canonical({"format": 1, "meta": {}}))),
    "a later format": packed(ours(canonical({"format": 2, "method": "m", "meta": {}}))),
    "something unknown": packed(ours(canonical({"format": 1, "method": "m", "meta": {}, "import": "os"}))),
    "unknown dtype": packed(ours(a=a_tensor("F31")), bytes(8)),
    "dtype not stored": packed(ours(a=a_tensor("F8_E4M3", (8,))), bytes(8)),
    "overlapping tensors": packed(ours(a=a_tensor(), b=a_tensor(offsets=(4, 12))), bytes(12)),
    "one tensor twice": packed(ours(a=a_tensor(), b=a_tensor()), bytes(8)),
    "a hole between tensors": packed(ours(a=a_tensor(), b=a_tensor(offsets=(16, 24))), bytes(24)),
    "offsets past the end": packed(ours(a=a_tensor(offsets=(0, 2**40), shape=(2**38,))), bytes(8)),
    "offsets backwards": packed(ours(a=a_tensor(offsets=(8, 0))), bytes(8)),
    "negative offsets": packed(ours(a=a_tensor(offsets=(-8, 0))), bytes(8)),
    "offsets are huge": packed(ours(a=a_tensor(offsets=(0, 2**70))), bytes(8)),
    "shape is larger than the data": packed(ours(a=a_tensor(shape=(3,))), bytes(8)),
    "shape is negative": packed(ours(a=a_tensor(shape=(-2,))), bytes(8)),
    "shape overflows": packed(ours(a=a_tensor(shape=(2**39, 2**39, 2**39))), bytes(8)),
    "shape overflows to nothing": packed(ours(a=a_tensor(shape=(2**39, 2**39, 0), offsets=(0, 0)))),
    "shape is a fraction": packed(ours(a=a_tensor(shape=(2.5,))), bytes(8)),
    "a tensor says more": packed(ours(a=a_tensor(code="os.system")), bytes(8)),
    "bytes after the tensors": packed(ours(a=a_tensor()), bytes(9)),
    "a pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_with_the_right_checksum_is_refused(source, name):
    data = HOSTILE[name]
    with pytest.raises(ArtifactError, match=f"model {sha(data)[:12]}: "):
        decode(source(data), sha(data))


def test_tensors_at_odd_offsets_are_read_or_refused(source):
    data = packed(ours(a=a_tensor("U8", (1,), (0, 1)), b=a_tensor(offsets=(1, 9))), bytes(9))
    with contextlib.suppress(ArtifactError):
        assert decode(source(data), sha(data)).tensors["b"].tolist() == [0, 0]


def test_random_damage_under_the_right_checksum_never_escapes_as_another_error():
    """A worker keeps its model on ArtifactError; anything else would kill it."""
    data = encode(an_artifact())
    (length,) = struct.unpack("<Q", data[:8])
    generator = torch.Generator().manual_seed(1)
    for _ in range(600):
        damaged = bytearray(data)
        for position in torch.randint(0, 8 + length, (2,), generator=generator).tolist():
            damaged[position] = int(torch.randint(0, 256, (1,), generator=generator))
        with contextlib.suppress(ArtifactError):
            decode(bytes(damaged), sha(damaged))


def test_a_file_that_is_not_there_is_not_an_artifact_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "none", Version("0" * 64))


def test_the_bytes_are_the_ones_that_safetensors_writes():
    turned = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)
    tensors = {**an_artifact().tensors, "turned": turned, 'Prüfling "1"\n\x01\x7f': torch.ones(3), "é": torch.zeros(1)}
    model = Artifact(method="padim", tensors=tensors, meta=META)
    meta = {"goldline": canonical({"format": FORMAT, "method": "padim", "meta": META})}
    assert encode(model) == save({name: tensor.contiguous() for name, tensor in tensors.items()}, meta)


def test_pieces_outlive_what_made_them():
    data = [bytes(piece) for piece in list(Encoded(an_artifact()).pieces())]
    assert b"".join(data) == encode(an_artifact())


def test_what_is_negative_by_a_flag_alone_is_stored_with_its_sign():
    tensor = torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    assert tensor.is_neg()
    data = encode(Artifact(method="m", tensors={"a": tensor}))
    assert decode(data, sha(data)).tensors["a"].tolist() == [-2.0, 4.0]
