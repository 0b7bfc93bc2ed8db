"""The engine that is taken where nobody names one: the fastest that runs, agrees, and in 8 bits tells goods apart."""

import sys
import threading
import time
import types

import pytest
import torch

from pipeline import eight_bits, engines, fastest, methods, tiling
from pipeline.backbone import resolve
from pipeline.data import Images
from pipeline.errors import ConfigError
from pipeline.synthetic import draw

CPU = torch.device("cpu")
SIZE = (64, 64)


@pytest.fixture(scope="module")
def backbone():
    return resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())


@pytest.fixture(scope="module")
def goods():
    drawn = [draw("cap", seed=k, size=SIZE).image for k in range(16)]
    return torch.stack([torch.from_numpy(each.copy()).permute(2, 0, 1) for each in drawn])


def test_the_chosen_engine_belongs_to_the_spec(backbone):
    chosen = fastest.on_fastest_engine(backbone, (64, 64))
    assert chosen.spec.engine in engines.candidates(CPU)
    assert not chosen.spec.same_features(backbone.spec) or chosen.spec.engine == "torch"


def test_the_fastest_wins_unless_its_features_are_wrong():
    def run(engine, picture):
        seconds, factor = engine
        time.sleep(seconds)
        return [picture.float() * factor]

    opened = {"torch": (0.02, 1.0), "wrong": (0.0, 1.1), "fast": (0.002, 1.001), "slow": (0.03, 1.0)}
    assert fastest.fastest(opened, run, (8, 8)) == opened["fast"]


@pytest.mark.parametrize("at", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_an_engine_that_gives_out_no_number_is_not_chosen(at):
    """Whichever picture and whichever map it is: a maximum of Python's is blind to it."""
    asked = []

    def run(engine, picture):
        asked.append(engine)
        time.sleep(0.02 if engine == "torch" else 0)
        maps = [picture.float(), picture.float()]
        if engine == "none" and asked.count("none") - 1 == at[0]:
            maps[at[1]] = maps[at[1]] * torch.nan
        return maps

    assert fastest.fastest({"torch": "torch", "none": "none"}, run, (8, 8)) == "torch"


def test_torch_is_taken_where_nothing_agrees_even_with_itself():
    drawn = torch.Generator().manual_seed(0)

    def run(engine, picture):
        return [torch.rand(picture.shape, generator=drawn)]

    assert fastest.fastest({"torch": "torch", "other": "other"}, run, (8, 8)) == "torch"


def test_an_engine_that_fails_is_not_chosen():
    def run(engine, picture):
        if engine == "fails":
            raise RuntimeError("mat1 and mat2 must have the same dtype")
        return [picture.float()]

    assert fastest.fastest({"torch": "runs", "torch-bf16": "fails"}, run, (8, 8)) == "runs"
    with pytest.raises(RuntimeError, match="same dtype"):
        fastest.fastest({"torch": "fails"}, run, (8, 8))


def test_an_engine_that_gives_out_what_was_kept_of_the_last_picture_is_not_chosen():
    kept = []

    def run(engine, picture):
        if engine == "torch":
            time.sleep(0.005)
            kept[:] = [picture.float()]
        return list(kept)

    assert fastest.fastest({"torch": "torch", "stale": "stale"}, run, (8, 8)) == "torch"


class Own(torch.nn.Module):
    """A network of somebody's own, with what a copy or a conversion does not get on with."""

    def __init__(self, trouble):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.Conv2d(8, 8, 3, 2, 1)
        self.kept, self.hooked = {}, trouble == "hooks"
        if trouble == "lock":
            self.lock = threading.Lock()
        for name in "ab" if self.hooked else "":
            getattr(self, name).register_forward_hook(lambda _, __, made, name=name: self.kept.update({name: made}))

    def forward(self, pixels):
        a = self.a(pixels)
        b = self.b(a)
        return dict(self.kept) if self.hooked else {"a": a, "b": b}


@pytest.mark.parametrize("trouble", ["lock", "hooks"])
def test_a_network_of_ones_own_that_no_engine_can_copy_or_convert_runs_by_torch(monkeypatch, goods, trouble):
    monkeypatch.setitem(sys.modules, "own_nets", types.SimpleNamespace(made=lambda _: Own(trouble).eval()))
    own = resolve("own_nets:made", ("a", "b"), weights=None, random_weights=True, factories=["own_nets:made"])
    chosen = fastest.settled(fastest.on_fastest_engine(own, SIZE), goods)
    assert chosen.spec.engine == "torch"
    with pytest.raises(ConfigError, match=r"(Own cannot be copied|cannot run Own).*--engine torch"):
        own.on("openvino-fp32")(goods)
    assert chosen(goods[:1])["a"].shape == (1, 8, 32, 32), "and it still runs"


def maps(pictures=4, seed=0):
    return torch.randn(pictures, 8, 10, 10, generator=torch.Generator().manual_seed(seed))


def test_disturbance_is_of_distances_alone():
    truth = maps()
    offset = torch.randn(8, 1, 1, generator=torch.Generator().manual_seed(1))
    assert eight_bits.disturbance([truth], [truth]) == 0
    assert eight_bits.disturbance([truth], [truth + offset]) < 1e-5
    assert eight_bits.disturbance([truth, truth], [truth, 1.05 * truth]) == pytest.approx(0.05, rel=1e-3)


def test_disturbance_is_the_relative_error_of_nearest_distances():
    truth, made = maps(), maps() + 0.1 * maps(seed=2)
    rows, others = (each.permute(0, 2, 3, 1).reshape(4, 100, 8) for each in (truth, made))
    few = [y * 10 + x for y in range(0, 10, 2) for x in range(0, 10, 2)]
    expected, seen = (
        torch.cat([torch.cdist(r[i, few], torch.cat([r[:i], r[i + 1 :]]).reshape(-1, 8)).amin(1) for i in range(4)])
        for r in (rows, others)
    )
    wanted = float((seen - expected).norm() / expected.norm())
    assert wanted > 0.01
    assert eight_bits.disturbance([truth], [made]) == pytest.approx(wanted, rel=1e-3)


def test_pictures_that_are_all_alike_say_nothing():
    alike = maps(1).expand(4, 8, 10, 10)
    assert eight_bits.disturbance([alike], [alike]) == torch.inf
    drawn = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for made in ([drawn * torch.nan, drawn], [drawn, drawn * torch.nan]):
        assert not eight_bits.disturbance([drawn, drawn], made) <= eight_bits.DISTURBED_MAX


def timed(monkeypatch, *seconds):
    """What engines take, in the order in which they are asked."""
    left = list(seconds)
    monkeypatch.setattr(fastest, "_typical_s", lambda _: left.pop(0))


@pytest.mark.parametrize(("rounded_s", "engine"), [(0.5, engines.INT8), (2.0, "openvino-fp32")])
def test_8_bits_are_taken_where_they_are_faster(monkeypatch, backbone, goods, rounded_s, engine):
    timed(monkeypatch, rounded_s, 1.0)
    may = backbone.on("openvino-fp32", may_round=True)
    assert not fastest.is_settled(may)
    made = fastest.settled(may, goods)
    assert made.spec.engine == engine
    assert bool(made.spec.cuts) == (engine == engines.INT8)
    assert fastest.is_settled(made)


def test_8_bits_that_disturb_are_not_taken(monkeypatch, backbone, goods):
    timed(monkeypatch, 0.5, 1.0, 0.5, 1.0)
    may = backbone.on("openvino-fp32", may_round=True)
    assert fastest.settled(may, goods[:1].expand(4, -1, -1, -1)).spec.engine == "openvino-fp32"
    monkeypatch.setattr(eight_bits, "DISTURBED_MAX", 1e-4)
    assert fastest.settled(may, goods).spec.engine == "openvino-fp32"


def test_an_engine_that_was_asked_for_stays(backbone, goods):
    for engine in ("torch", "openvino-fp32"):
        assert fastest.settled(backbone.on(engine), goods).spec.engine == engine
    assert not fastest.is_settled(backbone.on(engines.INT8))
    made = fastest.settled(backbone.on(engines.INT8), goods)
    assert fastest.settled(made, goods[:4]) is made


def test_a_network_that_has_nothing_to_round_keeps_its_engine(goods):
    net = resolve("vit_b_16", ("conv_proj",), weights=None, random_weights=True, factories=())
    large = torch.nn.functional.interpolate(goods[:4].float(), size=(224, 224)).to(torch.uint8)
    assert fastest.settled(net.on("openvino-fp32", may_round=True), large).spec.engine == "openvino-fp32"


def test_a_network_that_cannot_be_rounded_here_keeps_its_engine(monkeypatch, backbone, goods):
    def fails(*_):
        raise RuntimeError("no such operation")

    monkeypatch.setattr(engines, "cuts_of", fails)
    assert fastest.settled(backbone.on("torch", may_round=True), goods).spec.engine == "torch"


@pytest.mark.parametrize(("method", "engine"), [("patchcore", engines.INT8), ("mkd", "openvino-fp32")])
def test_only_methods_that_compare_features_as_they_are_round_unasked(monkeypatch, backbone, goods, method, engine):
    timed(monkeypatch, 0.5, 1.0)
    may = backbone.on("openvino-fp32", may_round=True)
    assert tiling.settled(may, method, Images(goods), tiles=(1,), size=SIZE).spec.engine == engine
    if method == "patchcore":
        timed(monkeypatch, 0.5, 1.0)
        config = methods.make_config(method, {"coreset": 0.1})
        made = tiling.fit(method, Images(goods), config, tiles=(1,), size=SIZE, backbone=may, seed=0)
        assert made.save().meta["backbone"]["engine"] == engines.INT8
