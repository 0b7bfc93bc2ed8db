"""Backbones that a worker opens: networks are kept once, engines while a model stands on them."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from pipeline import engines
from pipeline.backbone import resolve
from pipeline.settings import Settings
from workers.backbones import opener

pytest.importorskip("openvino")


def pictures(count):
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def spec():
    """Of the backbone that ships, in 8 bits."""
    return resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=()).rounded(pictures(8)).spec


def other(spec):
    return replace(spec, cuts=tuple(1.5 * cut for cut in spec.cuts))


def test_models_in_8_bits_share_weights_and_not_engines(spec):
    opens = opener(Settings(), "auto")
    one, two = opens(spec), opens(other(spec))
    assert opens(spec) is one
    assert (one.spec, two.spec) == (spec, other(spec))
    assert [each.data_ptr() for each in one.parameters()] == [each.data_ptr() for each in two.parameters()]
    images = pictures(2)
    assert not torch.equal(one(images)["layer3"], two(images)["layer3"])
    again = opener(Settings(), "auto")(spec)
    assert torch.equal(one(images)["layer3"], again(images)["layer3"])


def test_an_engine_leaves_memory_with_the_last_model_that_stands_on_it(spec):
    opens = opener(Settings(), "cpu")
    opened = opens(spec)
    opened(pictures(1))
    gone = weakref.ref(opened)
    del opened
    gc.collect()
    assert gone() is None
    assert opens(spec).spec == spec


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_engines_that_are_no_models_own_are_kept_on_one_network(spec, device):
    opens = opener(Settings(), device)
    plain = [replace(spec, engine=engine, cuts=()) for engine in ("torch", "openvino-fp32")]
    first = [weakref.ref(opens(each)) for each in plain]
    gc.collect()
    assert [opens(each) for each in plain] == [each() for each in first]
    if not torch.cuda.is_available():
        one, two = (each().parameters() for each in first)
        assert [each.data_ptr() for each in one] == [each.data_ptr() for each in two]


def test_a_network_is_converted_once_for_each_size_of_picture(spec, monkeypatch):
    sizes, really = [], engines._converted
    monkeypatch.setattr(engines, "_converted", lambda net, size: sizes.append(size) or really(net, size))
    opens = opener(Settings(), "cpu")
    for each in (spec, other(spec), replace(spec, engine="openvino-fp32", cuts=())):
        opens(each)(pictures(1))
        opens(each)(pictures(1)[..., :32, :])
    assert sizes == [(64, 64), (32, 64)]
