"""What a model takes in memory is measured against what it is known to hold."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import integers, methods
from pipeline.backbone import resolve
from pipeline.data import Images
from pipeline.footprint import footprint
from tests.conformance.pictures import good


@pytest.fixture(scope="module")
def backbone():
    return resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())


def fitted(method, backbone, **settings):
    return methods.fit(method, Images(good(12)), methods.make_config(method, settings), backbone=backbone, seed=0)


def test_padims_factors_are_whole_squares(backbone):
    detector = fitted("padim", backbone, dim=60)
    positions = 64
    assert footprint(detector) == positions * 60 * 60 * 4 + positions * 60 * 4 + 60 * 8


@pytest.mark.parametrize("amx", [False, True])
def test_a_prepared_bank_counts_its_short_forms_and_the_backbone_does_not_count(backbone, monkeypatch, amx):
    monkeypatch.setattr(integers, "has_amx", lambda: amx)
    detector = fitted("patchcore", backbone, coreset=1.0)
    bank = detector.bank.nbytes
    assert detector.bounded
    assert 1.05 * bank < footprint(detector) < 1.5 * bank
    assert footprint(backbone) == 0


def test_each_buffer_counts_once():
    whole = torch.zeros(10, 10)
    array = np.zeros(100)
    assert footprint([whole, whole[2:4], {"again": whole}]) == 400
    assert footprint((array, array[5:])) == 800
    assert footprint(nn.Linear(3, 2)) == 4 * (6 + 2)
    loop: list[object] = [whole]
    loop.append(loop)
    assert footprint(loop) == 400


def test_what_foreign_objects_hold_is_left_out():
    assert footprint(SimpleNamespace(held=torch.zeros(10))) == 0


def test_a_backbone_in_8_bits_is_compiled_for_its_models_and_counts(backbone):
    pytest.importorskip("openvino")
    rounded = backbone.rounded(good(8))
    assert footprint(rounded) == 0, "nothing is compiled before the first picture"
    rounded(good(1))
    weights = sum(each.numel() for each in rounded.parameters())
    once = footprint(rounded)
    assert 2 * weights < once < 20 * weights
    rounded(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))
    assert footprint([rounded, {"again": rounded}]) > 1.5 * once, "a size of pictures, a network"
    shared = backbone.on("openvino-fp32")
    shared(good(1))
    assert footprint(shared) == 0
