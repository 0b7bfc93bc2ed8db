"""Engines give torch's features, whichever runs them; the fastest that does is chosen."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pipeline import engines, threads
from pipeline.backbone import resolve
from pipeline.backbone_spec import BackboneSpec
from pipeline.errors import ConfigError
from pipeline.fastest import AGREE

CPU = torch.device("cpu")
OTHERS = [name for name in engines.candidates(CPU) if name != "torch"]
BY_NAME = [*OTHERS, "torch-bf16"]
TOLERANCE = {"openvino-fp32": 1e-5, "openvino-bf16": AGREE, "torch-bf16": AGREE}


def pictures(b=3, h=64, w=96):
    return torch.randint(0, 256, (b, 3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["goldline-s", "resnet18"])
def backbone(request):
    random = request.param != "goldline-s"
    return resolve(request.param, ("layer2", "layer3"), weights=None, random_weights=random, factories=())


def test_openvino_is_there_where_the_tests_run():
    assert "openvino-fp32" in OTHERS, "the development environment has the extra `cpu`"


@pytest.mark.parametrize("engine", BY_NAME)
def test_features_agree_with_torch(backbone, engine):
    images = pictures()
    copy = images.clone()
    made, truth = backbone.on(engine)(images), backbone(images)
    assert list(made) == list(truth)
    for layer, expected in truth.items():
        assert made[layer].shape == expected.shape
        assert made[layer].dtype == torch.float32
        assert (made[layer] - expected).norm() <= TOLERANCE[engine] * expected.norm()
    assert torch.equal(images, copy)


def test_a_network_runs_as_ever_while_it_is_converted(backbone):
    """A model in 8 bits is loaded while frames are scored by torch on the same network."""
    images, done, seen = pictures(1), threading.Event(), []
    with torch.no_grad():
        expected = backbone.differentiable(backbone.prepare(images.float()))["layer3"]

    def run():
        with torch.no_grad():
            while not done.is_set():
                made = backbone.differentiable(backbone.prepare(images.float()))["layer3"]
                seen.append(torch.allclose(made, expected, rtol=1e-4, atol=1e-4))

    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(run)
        try:
            for side in (160, 192):
                backbone.on("openvino-fp32")(pictures(1, side, side))
        finally:
            done.set()
        running.result()
    assert len(seen) > 1
    assert all(seen)


def test_a_second_thread_waits_for_a_picture_of_the_batch_in_hand_and_not_for_all(backbone):
    """A model that is warmed up while a worker scores."""
    net = backbone.on("openvino-fp32")
    one, many = pictures(1, 64, 64), pictures(1, 64, 64).repeat(600, 1, 1, 1)
    net(one)
    with ThreadPoolExecutor(1) as executor:
        batch = executor.submit(net, many)
        while not batch.running() and not batch.done():
            time.sleep(0)
        for _ in range(3):
            net(one)
        assert not batch.done()
        assert len(batch.result()["layer2"]) == 600


def test_two_threads_are_served_at_once_where_a_process_computes_so(backbone):
    before = torch.get_num_threads()
    threads.share(2, 2)
    try:
        assert torch.get_num_threads() == 1
        shared = backbone.on("openvino-fp32")
    finally:
        threads.share(before, 1)
    images = pictures(1, 64, 64)
    truth, many = backbone.on("openvino-fp32")(images), images.repeat(5, 1, 1, 1)
    shared(images)
    engine = shared._engine
    (graph,) = engine._graphs.values()
    assert graph.get_property("NUM_STREAMS") == 2
    assert graph.get_property("INFERENCE_NUM_THREADS") == 2
    both, original = threading.Barrier(2), engine._request

    class Meeting:
        """A request whose first picture waits until another thread's is in it, too."""

        def __init__(self, request):
            self.request, self.met = request, False

        def infer(self, *given, **named):
            if not self.met:
                self.met = bool(both.wait(20) >= 0)
            return self.request.infer(*given, **named)

        @property
        def output_tensors(self):
            return self.request.output_tensors

    engine._request = lambda size: Meeting(original(size))
    with ThreadPoolExecutor(2) as executor:
        for made in executor.map(shared, [many, many]):
            for layer, expected in truth.items():
                torch.testing.assert_close(made[layer], expected.expand_as(made[layer]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", OTHERS)
def test_a_picture_has_the_same_features_alone_and_in_company(backbone, engine):
    net = backbone.on(engine)
    images = pictures()
    together = net(images)
    for place in range(len(images)):
        alone = net(images[place : place + 1])
        assert all(torch.equal(alone[layer][0], together[layer][place]) for layer in together)


@pytest.mark.parametrize("engine", BY_NAME)
def test_pictures_of_another_size_and_no_pictures_at_all(backbone, engine):
    net = backbone.on(engine)
    assert [tuple(m.shape) for m in net(pictures(1, 32, 64)).values()] == [(1, 128, 4, 8), (1, 256, 2, 4)]
    assert [tuple(m.shape) for m in net(pictures(0, 32, 64)).values()] == [(0, 128, 4, 8), (0, 256, 2, 4)]


def test_what_later_pictures_do_leaves_earlier_features_alone(backbone):
    net = backbone.on(OTHERS[0])
    first = net(pictures())
    kept = {layer: each.clone() for layer, each in first.items()}
    net(255 - pictures())
    assert all(torch.equal(first[layer], kept[layer]) for layer in kept)


@pytest.mark.parametrize("engine", BY_NAME)
def test_autocast_around_a_caller_changes_nothing(backbone, engine):
    net, images = backbone.on(engine), pictures()
    with torch.autocast("cpu", torch.bfloat16):
        inside = net(images)
    truth = backbone(images)
    assert all((inside[k] - truth[k]).norm() <= TOLERANCE[engine] * truth[k].norm() for k in truth)


def test_bfloat16_leaves_the_float32_network_as_it_is(backbone):
    net = backbone.on("torch-bf16")
    prepared = net.prepare(pictures().float())
    half, truth = net.differentiable(prepared), backbone.differentiable(prepared)
    assert all(torch.equal(half[layer], truth[layer]) for layer in truth)
    assert BackboneSpec.from_meta(net.spec.to_meta()).engine == "torch-bf16"


def test_bfloat16_by_torch_is_worth_a_trial_on_a_gpu_that_has_it(monkeypatch):
    assert "torch-bf16" not in engines.candidates(CPU)
    for able, names in ((True, ["torch", "torch-bf16"]), (False, ["torch"])):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation, able=able: able)
        assert engines.candidates(torch.device("cuda")) == names


def test_an_engine_that_cannot_be_is_refused(backbone):
    with pytest.raises(ConfigError, match="there are torch, torch-bf16, openvino"):
        backbone.on("tensorrt")
    net = engines.Preprocessed(torch.nn.Identity(), ("x",), torch.ones(3), torch.zeros(3), bgr=False)
    with pytest.raises(ConfigError, match="runs on the CPU"):
        engines.make(net, "openvino-fp32", torch.device("cuda"))


def test_openvino_tells_its_makers_nothing():
    pytest.importorskip("openvino")
    program = """
from pipeline import engines
engines._openvino()
from openvino.tools.ovc import convert_impl, telemetry_utils
print(telemetry_utils.tm.__name__, convert_impl.tm.__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub"] * 2
