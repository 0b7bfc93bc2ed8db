"""Weights are looked for in one order, converted without running what is in them, and carry their digest."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from pipeline.backbone import resolve
from pipeline.backbone_spec import Preprocessing
from pipeline.errors import ConfigError
from pipeline.weight_files import Sources, import_file, metadata, preprocessing_of, verify


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(3)
    return {name: tensor.clone() for name, tensor in torchvision.models.resnet18().state_dict().items()}


@pytest.fixture
def empty(tmp_path):
    return Sources(named={}, folder=tmp_path / "folder")


def test_the_order(tmp_path, state, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    given, named = tmp_path / "given.safetensors", tmp_path / "named.safetensors"
    for path in (given, named):
        save_file(state, path)
    folder = tmp_path / "folder"
    bare = Sources(named={}, folder=folder)
    assert bare.find("resnet18") is None
    torch.save(state, cache / "resnet18-f37072fd.pth")
    converted = bare.find("resnet18")
    assert converted == folder / "resnet18.safetensors", "torchvision's cache is converted into the folder"
    assert all(torch.equal(load_file(converted)[k], state[k]) for k in state)
    sources = Sources(named={"resnet18": named}, folder=folder)
    assert sources.find("resnet18") == named
    assert sources.find("resnet18", given) == given
    kinds = [place.kind for place in sources.places("resnet18", given)]
    assert kinds == ["--weights", "settings", "folder", "torchvision's cache", "download"]


def test_the_shipped_ones_are_found(empty):
    assert empty.find("goldline-s") == Path("pipeline/weights/goldline-s.safetensors").resolve()


def test_a_named_file_that_is_missing_is_never_replaced_by_another(tmp_path):
    sources = Sources(named={"goldline-s": tmp_path / "gone.safetensors"}, folder=tmp_path)
    with pytest.raises(ConfigError, match=r"gone.safetensors \(settings\): no such file"):
        sources.find("goldline-s")
    with pytest.raises(ConfigError, match=r"other.safetensors \(--weights\)"):
        sources.find("resnet18", tmp_path / "other.safetensors")


def test_a_download_is_made_only_where_it_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    asked = Sources(named={}, folder=tmp_path, download=True).places("wide_resnet50_2")[-1]
    assert (asked.kind, asked.there) == ("download", True)
    assert asked.note.startswith("https://")
    refused = Sources(named={}, folder=tmp_path).places("wide_resnet50_2")[-1]
    assert (refused.there, "not allowed" in refused.note) == (False, True)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pth_is_converted_with_its_digest_and_origin(tmp_path, state, wrapped):
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "net.pth")
    wanted = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3), order="bgr")
    made = import_file(tmp_path / "net.pth", "resnet18", tmp_path / "w", origin="a stick", preprocessing=wanted)
    checked = verify(made)
    assert (checked.intact, checked.stated, checked.origin) == (True, checked.sha256, "a stick")
    assert preprocessing_of(made) == wanted
    assert list((tmp_path / "w").iterdir()) == [made]
    net = resolve("resnet18", ("layer1",), weights=made, factories=(), preprocessing=wanted)
    assert net.spec.order == "bgr"


def test_bgr_is_rgb_turned_round(tmp_path, state):
    save_file(state, tmp_path / "w.safetensors")
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    plain = resolve("resnet18", ("layer1",), weights=tmp_path / "w.safetensors", factories=())
    mean, std = plain.spec.mean, plain.spec.std
    turned = resolve(
        "resnet18",
        ("layer1",),
        weights=tmp_path / "w.safetensors",
        factories=(),
        preprocessing=Preprocessing(mean=mean, std=std, order="bgr"),
    )
    assert torch.allclose(turned(images)["layer1"], plain(images.flip(1))["layer1"])


def test_a_changed_tensor_is_noticed(tmp_path, state):
    save_file(state, tmp_path / "net.safetensors")
    made = import_file(tmp_path / "net.safetensors", "resnet18", tmp_path / "w")
    bent = {name: tensor.clone() for name, tensor in load_file(made).items()}
    bent["conv1.weight"][0, 0, 0, 0] += 1
    save_file(bent, made, {"goldline": json.dumps(metadata(made))})
    assert not verify(made).intact


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_a_pth_is_run(tmp_path):
    mark = tmp_path / "it ran"
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"weight": Bomb(mark)}))
    with pytest.raises(ConfigError, match=r"bomb\.pth cannot be read"):
        import_file(tmp_path / "bomb.pth", "resnet18", tmp_path / "w")
    assert not mark.exists()
    assert list((tmp_path / "w").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"no weights at all"])
def test_what_is_no_weights_file_is_refused(tmp_path, content):
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(content)
        if name.endswith("pth") or not content.startswith(b"\x08"):
            with pytest.raises(ConfigError, match="cannot be read"):
                import_file(tmp_path / name, "resnet18", tmp_path / "w")


def test_tensors_alone_are_taken_from_a_pth(tmp_path):
    torch.save({"epoch": 3, "weight": torch.ones(2)}, tmp_path / "mixed.pth")
    with pytest.raises(ConfigError, match="no state dict of tensors"):
        import_file(tmp_path / "mixed.pth", "resnet18", tmp_path / "w")


@pytest.mark.parametrize("name", ["", "../resnet18", "a/b", ".hidden", "x\0y"])
def test_a_name_cannot_leave_the_folder(tmp_path, name, empty):
    with pytest.raises(ConfigError, match="no name of a backbone"):
        empty.places(name)


def test_random_weights_are_never_silent():
    with pytest.raises(
        ConfigError, match=r"no weights for backbone resnet18.*--weights.*weights import.*download = true"
    ):
        resolve("resnet18", ("layer1",), weights=None, factories=())
    with pytest.raises(ConfigError, match="has no layer 'layer9'"):
        resolve("resnet18", ("layer9",), weights=None, factories=())
