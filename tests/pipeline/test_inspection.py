"""The walk, end to end: encoded parts in, verdicts out, and the same again from a stored model."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from model_store import codec
from pipeline.backbone import resolve
from pipeline.commissioning import commission
from pipeline.data import Artifact, Decision, Frame, Reason, Scores
from pipeline.decode import Limits
from pipeline.errors import ArtifactError, ConfigError
from pipeline.inspection import Inspector, inspect_together
from pipeline.methods import make_config
from pipeline.synthetic import draw, encode
from pipeline.view import View

VIEW = View(size=(64, 64))


WHOLE = {"crop": False, "keep_aspect": False, "even_light": False, "tiles": [1], "roi": [], "resized_by": "torch"}


def frames(seed, count, defect=None):
    drawn = [draw("cap", seed=seed + k, defect=defect, size=(96, 96)) for k in range(count)]
    kind = ["PNG", "JPEG", "WEBP"]
    return [
        Frame(frame_id=f"{defect}-{seed + k}", image=encode(d.image, format=kind[k % 3])) for k, d in enumerate(drawn)
    ]


@pytest.fixture(scope="module")
def backbone():
    return resolve("resnet18", ("layer2", "layer3"), weights=None, random_weights=True, factories=())


@pytest.fixture(scope="module")
def inspector(backbone):
    goods = frames(0, 24)
    config = make_config("patchcore", {"coreset": 0.1})
    made = commission(goods, method="patchcore", config=config, backbone=backbone, view=VIEW, limits=Limits(), rate=0.1)
    return made.inspector


@pytest.fixture(scope="module")
def mixed():
    """Goods and defects, with three that cannot be read among them."""
    some = [*frames(100, 4), *frames(200, 4, "stain")]
    some.insert(0, Frame(frame_id="empty", image=b""))
    some.insert(3, Frame(frame_id="text", image=b"hello"))
    some.append(Frame(frame_id="cut", image=some[1].image[:200]))
    return some


@pytest.fixture(scope="module")
def artifact(inspector):
    return inspector.save()


def scores_of(inspected):
    return {v.frame_id: v.score for v in inspected.verdicts}


def test_every_frame_has_a_verdict_or_a_failure_never_both(inspector, mixed):
    inspected = inspector.inspect(mixed)
    decided = [v.frame_id for v in inspected.verdicts]
    failed = [f.frame_id for f in inspected.failures]
    assert sorted(decided + failed) == sorted(f.frame_id for f in mixed)
    assert failed == ["empty", "text", "cut"]
    assert decided == [f.frame_id for f in mixed if f.frame_id not in failed]
    assert all(f.reason is Reason.BAD_FRAME for f in inspected.failures)
    assert set(inspected.maps) == set(inspected.placements) == set(decided)
    assert set(inspected.seconds) == {"decode", "embed", "score"}
    for verdict in inspected.verdicts:
        assert inspected.maps[verdict.frame_id].shape == VIEW.size
        assert inspected.placements[verdict.frame_id].image_size == (96, 96)
        assert (verdict.decision is Decision.REJECT) == (verdict.score > inspector.threshold.image)
        assert 0 < verdict.p_value <= 1


@pytest.mark.parametrize("some", [[], [b""], [b"x", b"y"]])
def test_a_batch_without_a_readable_frame_is_only_failures(inspector, some):
    inspected = inspector.inspect([Frame(frame_id=str(k), image=image) for k, image in enumerate(some)])
    assert (inspected.verdicts, len(inspected.failures), inspected.maps) == ((), len(some), {})


def test_a_batch_of_n_is_n_batches_of_one(inspector, mixed):
    together = inspector.inspect(mixed)
    alone = [inspector.inspect([frame]) for frame in mixed]
    singly = {frame_id: score for each in alone for frame_id, score in scores_of(each).items()}
    assert scores_of(together) == pytest.approx(singly, rel=1e-5)
    decided = [v.decision for v in together.verdicts]
    assert decided == [v.decision for each in alone for v in each.verdicts]
    for each in alone:
        for frame_id, m in each.maps.items():
            torch.testing.assert_close(m, together.maps[frame_id], rtol=1e-4, atol=1e-5)


def test_a_stored_inspector_gives_equal_scores_and_verdicts(inspector, backbone, mixed, artifact):
    data = codec.encode(artifact)
    stored = codec.decode(data, codec.version_of(artifact))
    before = inspector.inspect(mixed)
    for each in (artifact, stored):
        again = Inspector.load(each, open_backbone=lambda _: backbone, limits=Limits())
        assert again.view == inspector.view
        assert again.threshold.guarantee == inspector.threshold.guarantee
        after = again.inspect(mixed)
        assert after.verdicts == before.verdicts
        assert after.failures == before.failures
        assert codec.encode(again.save()) == data


def test_a_crop_is_stored_too(inspector, backbone):
    cropped = Inspector(inspector.detector, inspector.threshold, View(size=(64, 64), crop=True), Limits())
    assert Inspector.load(cropped.save(), open_backbone=lambda _: backbone, limits=Limits()).view.crop


def test_inputs_and_model_are_untouched(inspector, mixed, artifact):
    before = copy.deepcopy(mixed)
    inspector.inspect(mixed)
    assert mixed == before
    assert codec.encode(inspector.save()) == codec.encode(artifact)


def test_two_threads_agree(inspector, mixed):
    alone = inspector.inspect(mixed)
    with ThreadPoolExecutor(2) as pool:
        for inspected in pool.map(inspector.inspect, [mixed] * 6):
            assert inspected.verdicts == alone.verdicts


def test_drawn_defects_score_above_goods_on_average(inspector):
    goods = scores_of(inspector.inspect(frames(300, 12)))
    defects = scores_of(inspector.inspect(frames(400, 12, "stain")))
    assert np.mean(list(defects.values())) > np.mean(list(goods.values()))


class Broken:
    """The inspector's detector, giving out a score that is none."""

    def __init__(self, detector, value):
        self.detector, self.value = detector, value

    def embed(self, images):
        return self.detector.embed(images)

    def score(self, features):
        scores = self.detector.score(features)
        return Scores(scores.image.clone().index_fill_(0, torch.tensor(0), self.value), scores.map)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_that_frame_s_failure(inspector, mixed, value):
    broken = Inspector(Broken(inspector.detector, value), inspector.threshold, VIEW, Limits())
    inspected = broken.inspect(mixed)
    first = mixed[1].frame_id
    assert {f.frame_id: f.reason for f in inspected.failures}[first] is Reason.ERROR
    assert first not in {v.frame_id for v in inspected.verdicts}
    assert len(inspected.verdicts) + len(inspected.failures) == len(mixed)


def without(mapping, key):
    return {k: v for k, v in mapping.items() if k != key}


def load(artifact, backbone):
    return Inspector.load(artifact, open_backbone=lambda _: backbone, limits=Limits())


@pytest.mark.parametrize("key", ["threshold", "view", "backbone", "config", "image_size"])
def test_an_artifact_without_one_of_its_values_is_refused(artifact, backbone, key):
    damaged = Artifact(method=artifact.method, tensors=artifact.tensors, meta=without(artifact.meta, key))
    with pytest.raises(ArtifactError):
        load(damaged, backbone)


@pytest.mark.parametrize("name", ["calibration", "bank"])
def test_an_artifact_without_one_of_its_tensors_is_refused(artifact, backbone, name):
    damaged = Artifact(method=artifact.method, tensors=without(artifact.tensors, name), meta=artifact.meta)
    with pytest.raises(ArtifactError):
        load(damaged, backbone)


@pytest.mark.parametrize(
    "change",
    [
        {"view": None}, {"view": "64"}, {"view": {}}, {"view": {"size": [64, 64]}}, {"view": {"crop": False}},
        {"view": {"size": [64], **WHOLE}}, {"view": {"size": [64, 64, 64], **WHOLE}},
        {"view": {"size": ["64", "64"], **WHOLE}}, {"view": {"size": [64.5, 64], **WHOLE}},
        {"view": {"size": [10**9, 64], **WHOLE}}, {"view": {"size": [-64, 64], **WHOLE}},
        {"view": {"size": [64, 64], **WHOLE, "crop": "no"}}, {"view": {"size": [96, 96], **WHOLE}},
        {"view": {"size": [64, 64], **WHOLE, "extra": 1}}, {"view": {**WHOLE, "size": [64, 64], "resized_by": "x"}},
        {"threshold": None}, {"threshold": {}}, {"threshold": []}, {"backbone": None}, {"backbone": {"name": "x"}},
        {"image_size": [128, 128]}, {"image_size": None}, {"config": {}},
    ],
    ids=str,
)  # fmt: skip
def test_a_hostile_artifact_is_refused(artifact, backbone, change):
    damaged = Artifact(method=artifact.method, tensors=artifact.tensors, meta={**artifact.meta, **change})
    with pytest.raises(ArtifactError):
        load(damaged, backbone)


def test_a_view_that_is_whole_is_taken_and_one_of_an_older_version_is_refused_with_what_to_do(artifact, backbone):
    view = {"size": [64, 64], **WHOLE}
    whole = Artifact(method=artifact.method, tensors=artifact.tensors, meta={**artifact.meta, "view": view})
    assert load(whole, backbone).view == VIEW
    del view["resized_by"]
    with pytest.raises(ArtifactError, match="must be fitted anew"):
        load(whole, backbone)


def test_an_artifact_of_an_unknown_method_is_refused(artifact, backbone):
    with pytest.raises(ArtifactError, match="os:system"):
        load(Artifact(method="os:system", tensors=artifact.tensors, meta=artifact.meta), backbone)


def test_a_backbone_that_cannot_be_had_is_the_artifact_s_fault(artifact):
    def nowhere(_):
        raise ConfigError("no such backbone")

    with pytest.raises(ArtifactError, match="no such backbone"):
        Inspector.load(artifact, open_backbone=nowhere, limits=Limits())


def test_another_backbone_than_the_fit_s_is_refused(artifact):
    other = resolve("resnet18", ("layer2", "layer3"), weights=None, random_weights=True, factories=(), seed=7)
    with pytest.raises(ArtifactError):
        load(artifact, other)


class Counting:
    """A backbone's network, told how often it runs and on how many pictures."""

    def __init__(self, backbone, monkeypatch):
        self.sizes, really = [], backbone._engine

        def engine(images):
            self.sizes.append(images.shape[0])
            return really(images)

        monkeypatch.setattr(backbone, "_engine", engine)


@pytest.fixture(scope="module")
def two(backbone, artifact):
    """The inspector twice, and one of another method and other pictures on the same backbone."""
    goods = frames(40, 24)
    made = commission(
        goods,
        method="padim",
        config=make_config("padim", {"dim": 20}),
        backbone=backbone,
        view=VIEW,
        limits=Limits(),
        rate=0.1,
    )
    return [
        Inspector.load(each, open_backbone=lambda _: backbone, limits=Limits())
        for each in (artifact, made.inspector.save())
    ]


def test_models_on_one_backbone_share_one_run_of_it_and_say_what_they_say_alone(two, backbone, mixed, monkeypatch):
    goods = frames(300, 3)
    alone = [two[0].inspect(mixed), two[1].inspect(goods), two[1].inspect(mixed)]
    ran = Counting(backbone, monkeypatch)
    together = list(inspect_together([(two[0], mixed), (two[1], goods), (two[1], list(mixed))]))
    assert ran.sizes == [8 + 3 + 8], "eight of the mixed can be read"
    for one, other in zip(alone, together, strict=True):
        assert scores_of(other) == pytest.approx(scores_of(one), rel=1e-4)
        assert other.failures == one.failures
        for frame_id, m in one.maps.items():
            torch.testing.assert_close(other.maps[frame_id], m, rtol=1e-3, atol=1e-4)
    ran.sizes.clear()
    two[0].inspect(goods)
    assert ran.sizes == [3], "nothing is left of the shared run"


def test_the_same_frames_asked_for_twice_are_run_once(two, backbone, mixed, monkeypatch):
    alone = [each.inspect(mixed) for each in two]
    ran = Counting(backbone, monkeypatch)
    together = list(inspect_together([(each, mixed) for each in two]))
    assert ran.sizes == [8]
    for one, other in zip(alone, together, strict=True):
        assert scores_of(other) == pytest.approx(scores_of(one), rel=1e-4)


def test_views_of_two_sizes_are_two_runs(two, backbone, monkeypatch):
    wide = Inspector(two[0].detector, two[0].threshold, View(size=(96, 96)), Limits(), shares=backbone)
    wide.detector = type(two[0].detector)(two[0].detector.bank, two[0].detector.config, (96, 96), backbone)
    ran = Counting(backbone, monkeypatch)
    goods = frames(300, 3)
    results = list(inspect_together([(two[0], goods), (wide, goods), (two[1], list(goods))]))
    assert sorted(ran.sizes) == [3, 6]
    assert [len(each.verdicts) for each in results] == [3, 3, 3]


def test_a_model_that_fails_harms_no_other_of_its_run(two, mixed):
    class Broken:
        def inspect(self, frames):
            raise RuntimeError("the device is on fire")

    failed, fine = inspect_together([(Broken(), mixed), (two[0], mixed)])
    assert str(failed) == "the device is on fire"
    assert scores_of(fine) == pytest.approx(scores_of(two[0].inspect(mixed)), rel=1e-5)


def test_a_shared_run_is_of_its_own_thread(two, backbone, mixed):
    """Another thread's pictures, meanwhile, are its own."""
    goods = frames(300, 3)
    alone = scores_of(two[0].inspect(goods))
    running = inspect_together([(two[0], mixed), (two[1], mixed)])
    next(running)
    with ThreadPoolExecutor(1) as other:
        assert scores_of(other.submit(two[0].inspect, goods).result()) == pytest.approx(alone, rel=1e-5)
    next(running)
