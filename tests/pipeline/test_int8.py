"""8 bits: near float32, the same again from what a model keeps, and refused where they do not fit."""

import json
import math

import numpy as np
import openvino
import pytest
import torch

from pipeline import engines, int8, methods
from pipeline.backbone import resolve
from pipeline.backbone_spec import BackboneSpec
from pipeline.commissioning import commission
from pipeline.data import Frame
from pipeline.decode import Limits
from pipeline.errors import ArtifactError, ConfigError, FitError
from pipeline.inspection import Inspector
from pipeline.settings import Settings
from pipeline.synthetic import draw, encode
from pipeline.view import View
from workers.backbones import opener

SIZE = (64, 64)


def pictures(count, first=0):
    drawn = [draw("cap", seed=first + k, size=SIZE).image for k in range(count)]
    return torch.stack([torch.from_numpy(each.copy()).permute(2, 0, 1) for each in drawn])


def backbone(name="goldline-s", cuts=()):
    random = name != "goldline-s"
    layers = ("features.6", "features.10") if name == "mobilenet_v2" else ("layer2", "layer3")
    return resolve(name, layers, weights=None, random_weights=random, factories=(), engine=engines.INT8, cuts=cuts)


@pytest.fixture(scope="module")
def own():
    return backbone().rounded(pictures(8))


@pytest.mark.parametrize(("name", "tolerance"), [("goldline-s", 0.1), ("resnet18", 0.05), ("mobilenet_v2", 0.1)])
def test_features_are_near_torchs(name, tolerance):
    net = backbone(name).rounded(pictures(8))
    made, truth = net(pictures(3, first=100)), net.on("torch")(pictures(3, first=100))
    for layer, expected in truth.items():
        assert made[layer].shape == expected.shape
        error = float((made[layer] - expected).norm() / expected.norm())
        assert 1e-4 < error < tolerance  # not float32 by another name


def test_integers_are_multiplied_as_float32_would(own):
    """Rounded as for integers, and multiplied in float32: the same, or sums have overflowed."""
    graph = own._whole.graph(SIZE)
    int8.quantise(openvino, graph, own.spec.cuts)
    compiled = compiled_of(graph, integers=False)
    assert set(precisions(compiled)) == {"f32"}
    request = compiled.create_infer_request()
    white = torch.full((1, 3, *SIZE), 255, dtype=torch.uint8)
    for images in (*pictures(3, first=100).split(1), white):
        request.infer({0: images.numpy()})
        emulated = [torch.from_numpy(output.data.copy()) for output in request.output_tensors]
        for made, expected in zip(own(images).values(), emulated, strict=True):
            assert float((made - expected).norm() / expected.norm()) < 0.05  # ties are rounded either way


def compiled_of(graph, *, integers):
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    if not integers:
        options["LP_TRANSFORMS_MODE"] = "NO"  # OpenVINO's own, for debugging
    return openvino.Core().compile_model(graph, "CPU", options)


def precisions(compiled):
    told = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    return [each["runtimePrecision"].astype(str) for each in told if each["layerType"].astype(str) == "Convolution"]


@pytest.mark.parametrize("value", [0.3, 0.55, 0.75, 1.0, 3.0])
def test_the_largest_inputs_and_weights_do_not_overflow(value):
    opset = openvino.opset13
    pixels = opset.parameter([1, 64, 8, 8], np.float32)
    weights = opset.constant(np.full((16, 64, 1, 1), 0.5, np.float32))
    inputs = opset.relu(pixels)
    made = opset.relu(opset.convolution(inputs, weights, [1, 1], [0, 0], [0, 0], [1, 1]))
    graph = openvino.Model([opset.result(made)], [pixels])
    int8.quantise(openvino, graph, (1.0,))
    compiled = compiled_of(graph, integers=True)
    assert set(precisions(compiled)) <= {"u8", "i8"}
    seen = compiled(np.full((1, 64, 8, 8), value, np.float32))[0]
    assert np.allclose(seen, 32 * round(min(value, 1.0) * 255) / 255, rtol=1e-4)


def test_convolutions_multiply_integers_but_for_the_first_and_the_last(own):
    own(pictures(1))
    kinds = precisions(own._engine._graphs[SIZE])
    assert len(kinds) == 18
    assert kinds.count("f32") == 3
    assert set(kinds) <= {"u8", "i8", "f32"}


def test_an_input_is_cut_off_where_that_costs_least():
    counts = np.zeros(2048)
    counts[:1024] = 1000.0
    assert int8._best_cut(counts, 2.0) == pytest.approx(1.0, abs=0.02)  # nothing lies beyond
    counts[-1] = 1.0  # a single value: its loss is less than what finer steps gain
    assert int8._best_cut(counts, 2.0) < 1.9
    counts[-1] = 1e6
    assert int8._best_cut(counts, 2.0) == pytest.approx(2.0, abs=0.02)


def test_cuts_are_of_what_good_pictures_show(own):
    assert len(own.spec.cuts) == 18  # also where two convolutions share one input
    assert own.spec.cuts[0] == int8.FLOAT  # normalised pixels are negative, too
    assert own.spec.cuts.count(int8.FLOAT) == 3  # and both heads' sums are the features
    assert backbone().rounded(pictures(8)).spec == own.spec
    assert backbone().rounded(pictures(8, first=50)).spec != own.spec


def test_without_cuts_it_is_float32_and_other_engines_have_none(own):
    plain, images = backbone(), pictures(2)
    truth = plain.on("openvino-fp32")(images)
    assert all(torch.equal(plain(images)[layer], truth[layer]) for layer in truth)
    assert own.on("openvino-fp32").spec.cuts == ()


def test_a_spec_keeps_them_and_others_are_written_as_ever(own):
    meta = json.loads(json.dumps(own.spec.to_meta()))
    assert BackboneSpec.from_meta(meta) == own.spec
    assert own.spec.same_features(BackboneSpec.from_meta(meta))
    assert "cuts" not in own.on("torch").spec.to_meta()
    changed = {**meta, "cuts": [2 * value for value in meta["cuts"]]}
    assert not own.spec.same_features(BackboneSpec.from_meta(changed))


@pytest.mark.parametrize("cuts", [[], [-0.5, 1.0], [1.0, math.inf], [math.nan, 1.0], [1e39], [1e-46]])
def test_cuts_that_are_none_are_refused(cuts, own):
    with pytest.raises(ArtifactError, match="openvino-int8 with cuts"):
        BackboneSpec.from_meta({**own.spec.to_meta(), "cuts": cuts})


def test_a_model_of_the_8_bits_there_were_before_is_refused(own):
    meta = own.spec.to_meta()
    with pytest.raises(ArtifactError, match="earlier version rounded it to 8 bits, in another way: fit anew"):
        BackboneSpec.from_meta({**{k: v for k, v in meta.items() if k != "cuts"}, "ranges": meta["cuts"]})


def test_another_engine_with_cuts_is_refused(own):
    with pytest.raises(ArtifactError, match="torch with cuts"):
        BackboneSpec.from_meta({**own.spec.to_meta(), "engine": "torch"})


def test_cuts_of_another_network_are_refused(own):
    net = backbone(cuts=own.spec.cuts[:-1])
    with pytest.raises(ConfigError, match="8-bit cuts of 17 convolutions, and its network 18 here: fit anew"):
        net(pictures(1))


def goods(count, first=0):
    return [Frame(frame_id=str(k), image=encode(draw("cap", seed=first + k, size=SIZE).image)) for k in range(count)]


@pytest.mark.parametrize("tiles", [(1,), (1, 2)])
def test_a_model_keeps_its_cuts_and_scores_the_same_when_it_is_loaded(tiles):
    made = commission(
        goods(20), method="patchcore", config=methods.make_config("patchcore", {"coreset": 0.1}),
        view=View(size=SIZE, tiles=tiles), backbone=backbone(), limits=Limits(), rate=0.1,
    ).inspector  # fmt: skip
    artifact = made.save()
    assert len(artifact.meta["backbone"]["cuts"]) == 18
    loaded = Inspector.load(artifact, open_backbone=opener(Settings(), "cpu"), limits=Limits())
    frames = goods(4, first=100)
    ours, theirs = made.inspect(frames), loaded.inspect(frames)
    assert [v.score for v in ours.verdicts] == [v.score for v in theirs.verdicts]
    assert len(ours.verdicts) == 4


def test_a_network_without_relu_is_refused():
    opset = openvino.opset13
    pixels = opset.parameter([1, 3, 32, 32], np.uint8)
    weights = opset.constant(np.ones((4, 3, 3, 3), np.float32))
    inputs = opset.add(opset.convert(pixels, "f32"), np.float32(-100))
    made = opset.convolution(inputs, weights, [1, 1], [0, 0], [0, 0], [1, 1])
    graph = openvino.Model([opset.result(made)], [pixels])
    with pytest.raises(FitError, match="take another --engine"):
        int8.cuts_of(openvino, graph, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_a_model_that_was_tried_before_is_compiled_when_it_is_loaded_again(own):
    """Its engine may have left memory meanwhile, and no frame waits for a compiler."""
    made = commission(
        goods(20), method="patchcore", config=methods.make_config("patchcore", {"coreset": 0.1}),
        view=View(size=SIZE), backbone=own, limits=Limits(), rate=0.1,
    ).inspector  # fmt: skip
    opened = []

    def opens(spec):
        opened.append(backbone(cuts=spec.cuts))
        return opened[-1]

    Inspector.load(made.save(), open_backbone=opens, limits=Limits(), tried=True)
    assert opened[0].own_bytes > 0
