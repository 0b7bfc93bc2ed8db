import os
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from pipeline.backbone import default_layers, resolve, state_sha256
from pipeline.backbone_spec import BackboneSpec
from pipeline.devices import resolve_device
from pipeline.errors import ArtifactError, ConfigError, ShapeError

LAYERS = ("layer2", "layer3")
FACTORY = "goldline_test_net:build"


def pictures(b=2, size=64, seed=0):
    return torch.randint(0, 256, (b, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def small(**options):
    given = {"weights": None, "factories": (), "random_weights": "weights" not in options, **options}
    return resolve("resnet18", given.pop("layers", LAYERS), **given)


@pytest.fixture(scope="module")
def backbone():
    return small()


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """A module on the path with factories of all kinds; it is unloaded afterwards."""
    source = """
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 6, 3, 4, 1)

            def forward(self, x):
                one = self.conv(x)
                return {"one": one, "two": one[:, :2, ::2, ::2], "flat": one.mean((2, 3))}

        def build(weights):
            return Net()

        def bare(weights):
            return nn.Conv2d(3, 4, 3)

        def broken(weights):
            raise RuntimeError("out of cheese")

        def text(weights):
            return "net"
    """
    (tmp_path / "goldline_test_net.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    yield FACTORY
    sys.modules.pop("goldline_test_net", None)


def test_feature_maps(backbone):
    images = pictures()
    copy = images.clone()
    maps = backbone(images)
    assert list(maps) == list(LAYERS)
    assert maps["layer2"].shape == (2, 128, 8, 8)
    assert maps["layer3"].shape == (2, 256, 4, 4)
    assert all(each.dtype == torch.float32 for each in maps.values())
    assert torch.equal(images, copy)
    assert backbone.channels == {"layer2": 128, "layer3": 256}
    assert list(small(layers=("layer3", "layer1"))(images)) == ["layer3", "layer1"]


def test_equals_torchvision_with_weights_from_a_file(tmp_path):
    torch.manual_seed(1)
    model = torchvision.models.resnet18().eval()
    for module in model.modules():  # statistics that matter, so that folding the norms could go wrong
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    ours = small(weights=tmp_path / "net.safetensors")
    images = pictures()
    mean, std = torch.tensor(ours.spec.mean).view(3, 1, 1), torch.tensor(ours.spec.std).view(3, 1, 1)
    with torch.no_grad():
        x = (images / 255 - mean) / std
        x = model.layer2(model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(x))))))
        expected = {"layer2": x, "layer3": model.layer3(x)}
    for layer, truth in expected.items():
        assert (ours(images)[layer] - truth).norm() < 1e-5 * truth.norm()
    assert ours.spec.weights == "file:net.safetensors"

    part = {key: value for key, value in model.state_dict().items() if not key.startswith(("fc", "layer4"))}
    save_file(part, tmp_path / "part.safetensors")
    again = small(weights=tmp_path / "part.safetensors", expected_sha256=ours.spec.weights_sha256)
    assert again.spec.same_features(ours.spec)
    assert again.spec != ours.spec


def test_random_weights_follow_the_seed_and_leave_the_generator_alone(backbone):
    state = torch.random.get_rng_state()
    again, other = small(), small(seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert again.spec == backbone.spec
    assert backbone.spec.weights == "random:seed=0"
    assert other.spec.weights_sha256 != backbone.spec.weights_sha256
    assert torch.equal(again(pictures())["layer3"], backbone(pictures())["layer3"])


def test_threads_agree(backbone):
    batches = [pictures(seed=i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(backbone, batches))
    for batch, maps in zip(batches, together, strict=True):
        torch.testing.assert_close(maps["layer3"], backbone(batch)["layer3"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 3, 8, 8),
    ],
)
def test_refuses_other_tensors(backbone, images):
    with pytest.raises(ShapeError, match="uint8, not"):
        backbone(images)


def test_unknown_names_and_layers():
    with pytest.raises(ConfigError, match=r"'resnet19'.*resnet18"):
        resolve("resnet19", LAYERS, weights=None, random_weights=True, factories=())
    with pytest.raises(ConfigError, match=r"no layer 'layer33'; nearest: layer3.*layer1"):
        small(layers=("layer33",))
    for layers in ((), ("layer2", "layer2")):
        with pytest.raises(ConfigError, match="each once"):
            small(layers=layers)
    with pytest.raises(ConfigError, match=r"layer fc of resnet18 is \(1, 1000\)"):
        small(layers=("fc",))


def test_default_layers():
    assert default_layers("resnet18") == default_layers("wide_resnet50_2") == LAYERS
    for name in ("vgg16", "resnetv2:resnet50v2"):
        with pytest.raises(ConfigError, match="--layers a,b"):
            default_layers(name)


def test_weights_files_that_are_refused(tmp_path):
    for name in ("net.pth", "net.pt", "net"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        with pytest.raises(ConfigError, match="convert"):
            small(weights=tmp_path / name)
    with pytest.raises(ConfigError, match="no such file"):
        small(weights=tmp_path / "absent.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(ConfigError, match="cannot be read"):
        small(weights=tmp_path / "junk.safetensors")
    save_file({"conv1.weight": torch.zeros(1), "foo": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"another network.*missing, 1 unknown, 1 of another shape"):
        small(weights=tmp_path / "other.safetensors")


def test_another_digest_is_refused(backbone):
    assert small(expected_sha256=backbone.spec.weights_sha256).spec == backbone.spec
    with pytest.raises(ArtifactError, match=r"0000.*random weights has"):
        small(expected_sha256="0" * 64)


def test_digest_sees_names_types_shapes_and_values():
    base = {"a": torch.zeros(2, 3), "b": torch.ones(())}
    variants = [
        {"a": torch.zeros(3, 2), "b": torch.ones(())},
        {"c": torch.zeros(2, 3), "b": torch.ones(())},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(())},
        {"a": torch.zeros(2, 3), "b": -torch.ones(())},
    ]
    assert len({state_sha256(each) for each in [base, *variants]}) == 5
    transposed = {"b": base["b"], "a": torch.zeros(3, 2).T, "bn.num_batches_tracked": torch.tensor(3)}
    assert state_sha256(transposed) == state_sha256(base)


def test_a_factory_is_imported_only_with_permission(factory):
    with pytest.raises(ConfigError, match=r'\[backbones."goldline_test_net:build"\]'):
        resolve(factory, ("one",), weights=None, random_weights=True, factories=())
    with pytest.raises(ArtifactError, match="permitted"):
        resolve(
            factory,
            ("one",),
            weights=None,
            random_weights=True,
            factories=("goldline_test_net:bare",),
            expected_sha256="0" * 64,
        )
    assert "goldline_test_net" not in sys.modules
    net = resolve(factory, ("two", "one"), weights=None, random_weights=True, factories=[factory], seed=3)
    assert net.channels == {"two": 2, "one": 6}
    assert list(net(pictures())) == ["two", "one"]
    again = resolve(factory, ("two", "one"), weights=None, random_weights=True, factories=[factory], seed=3)
    assert again.spec == net.spec
    with pytest.raises(ArtifactError, match="needs"):
        resolve(factory, ("one",), weights=None, random_weights=True, factories=[factory], expected_sha256="0" * 64)


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        (FACTORY, "three", "no layer 'three'.*one, two"),
        (FACTORY, "flat", r"\(1, 6\), not a map"),
        ("goldline_test_net:bare", "one", "returns Tensor, not dict"),
        ("goldline_test_net:broken", "one", "RuntimeError: out of cheese"),
        ("goldline_test_net:text", "one", "returned str"),
        ("goldline_test_net:absent", "one", "has no absent"),
        ("goldline_no_such_module:build", "one", "PYTHONPATH"),
        ("../goldline:build", "one", "written module:factory"),
    ],
)
def test_factories_that_fail(factory, name, layer, message):
    with pytest.raises(ConfigError, match=message):
        resolve(name, (layer,), weights=None, random_weights=True, factories=[name])


def test_spec_survives_json(backbone):
    meta = backbone.spec.to_meta()
    assert BackboneSpec.from_meta(meta) == backbone.spec
    wrong = [
        None,
        {},
        {**meta, "more": 1},
        {**meta, "layers": "layer2"},
        {**meta, "layers": []},
        {**meta, "layers": ["a", "a"]},
        {**meta, "weights_sha256": "xyz"},
        {**meta, "std": [0.2, 0.2]},
        {**meta, "std": [0.2, 0.2, 0.0]},
        {**meta, "mean": [0.2, 0.2, float("nan")]},
        {**meta, "name": 3},
    ]
    for each in wrong:
        with pytest.raises(ArtifactError, match="backbone"):
            BackboneSpec.from_meta(each)


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "", "cuda:x", "cuda:1234"):
        with pytest.raises(ConfigError, match="choose auto"):
            resolve_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none():
    with pytest.raises(ConfigError, match="no CUDA"):
        resolve_device("cuda")


@pytest.mark.data
@pytest.mark.skipif("GOLDLINE_DATA" not in os.environ, reason="set GOLDLINE_DATA to the folder of data/ and weights/")
def test_resnet50v2_with_real_weights(monkeypatch):
    weights = Path(os.environ["GOLDLINE_DATA"]) / "weights"
    monkeypatch.syspath_prepend(weights)
    name, file = "resnetv2:resnet50v2", weights / "resnet50v2.safetensors"
    net = resolve(name, ("layer2a", "layer3a"), weights=file, factories=[name])
    assert net.channels == {"layer2a": 512, "layer3a": 1024}
    maps = net(pictures(1, 128))
    assert maps["layer2a"].shape == (1, 512, 16, 16)
    assert maps["layer2a"].min() >= 0
    untrained = resolve(name, ("layer2a", "layer3a"), weights=None, random_weights=True, factories=[name])
    assert untrained.spec.weights_sha256 != net.spec.weights_sha256
