"""What every method promises, one small test a rule, run over METHODS. A method that passes can run a line."""

import dataclasses
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from model_store import codec
from pipeline import methods
from pipeline.backbone import resolve
from pipeline.data import Artifact, Images, Scores
from pipeline.errors import ArtifactError, ConfigError, FitError, ShapeError
from pipeline.methods import METHODS
from pipeline.methods.base import Refittable
from tests.conformance.pictures import BOX, SIZE, bad, config, good

COUNT = 12
each_method = pytest.mark.parametrize("name", sorted(METHODS))


@pytest.fixture(scope="session")
def backbone():
    return resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())


@pytest.fixture(scope="session")
def fitted(backbone):
    """A detector of each method, fitted once."""
    made: dict[str, methods.Detector] = {}

    def of(name):
        if name not in made:
            made[name] = methods.fit(name, Images(good(COUNT)), config(name), backbone=backbone, seed=0)
        return made[name]

    return of


def scores_of(detector, pictures):
    return detector.score(detector.embed(pictures))


def assert_equal(a: Scores, b: Scores) -> None:
    assert torch.equal(a.image, b.image)
    assert torch.equal(a.map, b.map)


def localises(detector) -> bool:
    return bool(detector.save().meta.get("localises", True))


@each_method
def test_saved_and_loaded_it_scores_the_same(name, fitted, backbone):
    stored = codec.encode(fitted(name).save())
    read = methods.load(codec.decode(stored, sha256(stored).hexdigest()), backbone=backbone)
    assert_equal(scores_of(fitted(name), bad(3)), scores_of(read, bad(3)))


@each_method
def test_a_seed_equals_itself(name, fitted, backbone):
    again = methods.fit(name, Images(good(COUNT)), config(name), backbone=backbone, seed=0)
    first, second = fitted(name).save(), again.save()
    assert first.meta == second.meta
    assert set(first.tensors) == set(second.tensors)
    for key, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[key]), key


@pytest.mark.parametrize("name", sorted(n for n, entry in METHODS.items() if isinstance(entry.method, Refittable)))
def test_it_goes_on_with_further_pictures_and_leaves_its_parent_as_it_is(name, fitted, backbone):
    before = fitted(name).save()
    one, two = (methods.grow(name, fitted(name), Images(good(4, 7)), new_share_max=0.5, seed=0) for _ in range(2))
    after, grown, again = fitted(name).save(), one.detector.save(), two.detector.save()
    for key, tensor in before.tensors.items():
        assert torch.equal(tensor, after.tensors[key]), "the parent changed"
        assert torch.equal(grown.tensors[key], again.tensors[key]), "a seed equals itself"
    assert any(not torch.equal(before.tensors[key], grown.tensors[key]) for key in before.tensors)
    assert 0 < one.new_share <= 0.5
    assert set(one.taken) <= set(range(4))
    with pytest.raises(ShapeError):
        methods.grow(name, fitted(name), Images(good(2)[..., :32]), new_share_max=0.5, seed=0)
    loaded = methods.load(grown, backbone=backbone)
    assert methods.can_grow(name, loaded), "the next refit goes on from it"
    assert float(scores_of(loaded, bad(2)).image.min()) > float(scores_of(loaded, good(2, 8)).image.max())


@each_method
def test_shapes_and_types(name, fitted):
    scored = scores_of(fitted(name), good(3, seed=5))
    assert (tuple(scored.image.shape), scored.image.dtype) == ((3,), torch.float32)
    assert (tuple(scored.map.shape), scored.map.dtype) == ((3, SIZE, SIZE), torch.float32)
    assert bool(scored.image.isfinite().all())
    assert bool(scored.map.isfinite().all())
    assert not scored.image.requires_grad
    assert not scored.map.requires_grad


@each_method
def test_an_empty_batch_has_empty_scores(name, fitted):
    scored = scores_of(fitted(name), good(1)[:0])
    assert tuple(scored.image.shape) == (0,)
    assert tuple(scored.map.shape) == (0, SIZE, SIZE)


@each_method
def test_inputs_are_left_alone(name, fitted, backbone):
    pictures, kept = good(COUNT, seed=3), good(COUNT, seed=3)
    methods.fit(name, Images(pictures), config(name), backbone=backbone, seed=1)
    assert torch.equal(pictures, kept)
    features = fitted(name).embed(pictures[:2])
    assert torch.equal(pictures, kept)
    before = {key: value.clone() for key, value in features.maps.items()}
    first = fitted(name).score(features)
    for key, value in features.maps.items():
        assert torch.equal(value, before[key]), key
    assert_equal(first, fitted(name).score(features))


@each_method
def test_a_defect_is_above_the_background(name, fitted):
    if not localises(fitted(name)):
        pytest.skip(f"{name} judges pictures, not pixels")
    maps = scores_of(fitted(name), bad(4)).map
    inside = maps[:, BOX[0], BOX[1]]
    outside = torch.ones(SIZE, SIZE, dtype=torch.bool)
    outside[BOX] = False
    assert (inside.mean(dim=(1, 2)) > maps[:, outside].mean(dim=1)).all()


@each_method
def test_a_bad_picture_is_above_a_good_one(name, fitted):
    defects, goods = scores_of(fitted(name), bad(8)).image, scores_of(fitted(name), good(8, seed=7)).image
    assert defects.median() > goods.median()


@each_method
def test_two_threads_agree(name, fitted):
    detector = fitted(name)
    pictures = bad(2)
    expected = scores_of(detector, pictures)
    with ThreadPoolExecutor(2) as pool:
        for scored in pool.map(lambda _: scores_of(detector, pictures), range(8)):
            assert_equal(expected, scored)


@each_method
def test_alone_as_in_company(name, fitted):
    pictures = torch.cat([good(2, seed=11), bad(2)])
    together = scores_of(fitted(name), pictures)
    for place in range(len(pictures)):
        alone = scores_of(fitted(name), pictures[place : place + 1])
        torch.testing.assert_close(alone.image[0], together.image[place], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(alone.map[0], together.map[place], rtol=1e-3, atol=1e-4)


@each_method
@pytest.mark.parametrize(
    "shape", [(1, 3, SIZE, SIZE + 16), (1, 3, SIZE - 16, SIZE), (1, 1, SIZE, SIZE), (3, SIZE, SIZE)]
)
def test_a_picture_of_another_shape_is_refused(name, fitted, shape):
    with pytest.raises(ShapeError, match=str(SIZE)):
        fitted(name).embed(torch.zeros(shape, dtype=torch.uint8))


@each_method
@pytest.mark.parametrize("kind", [torch.float32, torch.int16])
def test_pictures_of_other_numbers_than_bytes_are_refused(name, fitted, kind):
    with pytest.raises(ShapeError, match="uint8"):
        fitted(name).embed(good(1).to(kind))


@each_method
@pytest.mark.parametrize("side", [0, 4097, 10**7, 10**19])
def test_a_picture_size_that_nobody_has_is_refused(name, fitted, backbone, side):
    artifact = fitted(name).save()
    artifact.meta["image_size"] = [side, side]
    with pytest.raises(ArtifactError):
        methods.load(artifact, backbone=backbone)


@each_method
@pytest.mark.parametrize("count", [0, 1])
def test_too_few_pictures_are_refused_with_how_many_are_needed(name, backbone, count):
    with pytest.raises(FitError, match=rf"at least \d+ .*not {count}"):
        methods.fit(name, Images(good(3)[:count]), config(name), backbone=backbone, seed=0)


@each_method
def test_settings_of_another_method_are_refused(name, backbone):
    with pytest.raises(ConfigError, match=METHODS[name].config.__name__):
        methods.fit(name, Images(good(2)), object(), backbone=backbone, seed=0)


@each_method
def test_an_artifact_is_plain(name, fitted):
    artifact = fitted(name).save()
    assert artifact.method == name
    assert json.loads(json.dumps(artifact.meta)) == artifact.meta
    for key, tensor in artifact.tensors.items():
        assert tensor.device.type == "cpu", key
        assert tensor.is_contiguous(), key
        assert not tensor.requires_grad, key


@each_method
def test_a_saved_artifact_is_nobody_elses(name, fitted):
    """Changing what `save` gave must not change the detector."""
    expected = scores_of(fitted(name), bad(1))
    for tensor in fitted(name).save().tensors.values():
        tensor.zero_()
    assert_equal(expected, scores_of(fitted(name), bad(1)))


@each_method
def test_an_artifact_carries_all_that_scoring_needs(name, fitted, tmp_path):
    """Another process, with no picture to learn from, scores the same from the artifact alone."""
    (tmp_path / "model").write_bytes(codec.encode(fitted(name).save()))
    torch.save(bad(2), tmp_path / "pictures")
    program = """
import sys, torch
from hashlib import sha256
from pathlib import Path
from model_store import codec
from pipeline import methods
from pipeline.backbone import resolve
folder = Path(sys.argv[1])
stored = (folder / "model").read_bytes()
backbone = resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())
detector = methods.load(codec.decode(stored, sha256(stored).hexdigest()), backbone=backbone)
pictures = torch.load(folder / "pictures", weights_only=True)
print(detector.score(detector.embed(pictures)).image.tolist())
"""
    root = Path(__file__).resolve().parents[2]
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(tmp_path)],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    expected = scores_of(fitted(name), bad(2)).image
    torch.testing.assert_close(torch.tensor(json.loads(told.stdout)), expected, rtol=1e-5, atol=1e-6)


@each_method
def test_an_artifact_that_lacks_or_adds_a_tensor_is_refused(name, fitted, backbone):
    artifact = fitted(name).save()
    for key in artifact.tensors:
        fewer = {other: tensor for other, tensor in artifact.tensors.items() if other != key}
        with pytest.raises(ArtifactError):
            methods.load(dataclasses.replace(artifact, tensors=fewer), backbone=backbone)
    more = {**artifact.tensors, "surplus": torch.zeros(1)}
    with pytest.raises(ArtifactError):
        methods.load(dataclasses.replace(artifact, tensors=more), backbone=backbone)


@each_method
def test_a_tensor_of_another_shape_or_type_is_refused(name, fitted, backbone):
    artifact = fitted(name).save()
    for key, tensor in artifact.tensors.items():
        other = torch.int8 if tensor.dtype != torch.int8 else torch.int16
        for wrong in (tensor.unsqueeze(0).repeat(2, *[1] * tensor.dim()), tensor.to(other), tensor.flatten()[:0]):
            with pytest.raises(ArtifactError):
                methods.load(_with(artifact, key, wrong), backbone=backbone)


@each_method
def test_a_value_that_is_not_finite_is_refused(name, fitted, backbone):
    artifact = fitted(name).save()
    for key, tensor in artifact.tensors.items():
        if tensor.is_floating_point():
            wrong = tensor.clone()
            wrong.view(-1)[0] = float("nan")
            with pytest.raises(ArtifactError):
                methods.load(_with(artifact, key, wrong), backbone=backbone)


@each_method
def test_wrong_settings_in_an_artifact_are_refused(name, fitted, backbone):
    artifact = fitted(name).save()
    kept = artifact.meta["config"]
    for config_ in ({}, {**kept, "surplus": 1}, {**kept, next(iter(kept)): "no such value"}, None):
        with pytest.raises(ArtifactError):
            methods.load(dataclasses.replace(artifact, meta={**artifact.meta, "config": config_}), backbone=backbone)
    for size in (None, [SIZE], [0, SIZE], [-1, 5], ["a", 2]):
        with pytest.raises(ArtifactError):
            methods.load(dataclasses.replace(artifact, meta={**artifact.meta, "image_size": size}), backbone=backbone)


@each_method
def test_a_model_of_another_method_is_refused(name, fitted, backbone):
    for other in METHODS:
        if other != name:
            with pytest.raises(ArtifactError):
                methods.load(dataclasses.replace(fitted(name).save(), method=other), backbone=backbone)


@each_method
def test_another_backbone_is_refused(name, fitted):
    other = resolve("resnet18", ("layer2", "layer3"), weights=None, random_weights=True, factories=())
    with pytest.raises(ArtifactError):
        methods.load(fitted(name).save(), backbone=other)


@each_method
def test_quick_settings_are_settings(name):
    assert methods.make_config(name, {}, quick=True)
    assert set(METHODS[name].quick) <= {entry.name for entry in dataclasses.fields(METHODS[name].config)}


@each_method
def test_the_header_names_title_paper_fit_score_and_departures(name):
    text = sys.modules[type(METHODS[name].method).__module__].__doc__ or ""
    assert '"' in text.splitlines()[0]
    assert "\nfit: " in text
    assert "\nscore: " in text
    assert "\nDepartures, and why:\n" in text


def _with(artifact: Artifact, key: str, tensor: torch.Tensor) -> Artifact:
    return dataclasses.replace(artifact, tensors={**artifact.tensors, key: tensor})
