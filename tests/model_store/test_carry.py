import json

import pytest
import torch

from model_store import ModelKey, carry, open_store
from pipeline.data import Artifact
from pipeline.errors import ArtifactError, ModelNotFound

KEY = ModelKey("line-1/top")


@pytest.fixture
def carried(tmp_path):
    """A store, a version in it, and the file that carries it."""
    store = open_store(str(tmp_path / "from"))
    artifact = Artifact(method="padim", tensors={"bank": torch.arange(12.0)}, meta={"n": 1})
    version = store.put(KEY, artifact, lineage={"created_by": "ana", "frames": {"fit": 5}})
    carry.export(store, KEY, version, tmp_path / "model.goldline")
    return store, version, tmp_path / "model.goldline"


def test_it_arrives_whole_with_its_lineage_and_is_not_promoted(carried, tmp_path):
    _, version, file = carried
    there = open_store(str(tmp_path / "to"))
    assert carry.import_(there, file, lineage={"imported_by": "ben"}) == (KEY, version)
    assert torch.equal(there.get(KEY, version).tensors["bank"], torch.arange(12.0))
    (info,) = there.versions(KEY)
    assert (info.lineage.created_by, info.lineage.extra) == ("ana", {"imported_by": "ben"})
    assert there.current(KEY) is None


def test_another_station_may_take_it(carried, tmp_path):
    _, version, file = carried
    there = open_store(str(tmp_path / "to"))
    other = ModelKey("line-2/side", "blue")
    assert carry.import_(there, file, key=other) == (other, version)
    assert there.keys() == [other]


def test_any_damage_is_noticed_and_nothing_is_stored(carried, tmp_path):
    _, _, file = carried
    there = open_store(str(tmp_path / "to"))
    data = file.read_bytes()
    places = [0, 5, 40, data.index(b"ana"), data.index(b"\n"), data.index(b"\n") + 3, len(data) - 1]
    damaged = [data[:p] + bytes([data[p] ^ 1]) + data[p + 1 :] for p in places]
    for wrong in (*damaged, data[:-1], data + b"x", b"", b"{}\n", data[data.index(b"\n") :], b"x" * 3_000_000):
        file.write_bytes(wrong)
        with pytest.raises(ArtifactError):
            carry.import_(there, file)
    assert not (tmp_path / "to").exists()


def test_a_header_that_is_honest_about_a_lie_is_refused(carried, tmp_path):
    """Somebody who can compute checksums still cannot name a path, or another model's version."""
    _, _, file = carried
    line, _, body = file.read_bytes().partition(b"\n")
    for change in ({"version": "../../etc"}, {"version": "0" * 64}, {"format": "zip"}):
        header = {**json.loads(line), **change}
        bare = carry._Header(**{**header, "sha256": ""})
        header["sha256"] = carry._digest(bare)
        file.write_bytes(json.dumps(header).encode() + b"\n" + body)
        with pytest.raises(ArtifactError):
            carry.import_(open_store(str(tmp_path / "to")), file)


def test_what_is_not_there_is_not_exported(carried, tmp_path):
    store, _, _ = carried
    with pytest.raises(ModelNotFound):
        carry.export(store, ModelKey("line-9/top"), "0" * 64, tmp_path / "x")
    assert not (tmp_path / "x").exists()
