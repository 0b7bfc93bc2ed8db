import dataclasses
import json
from hashlib import sha256

import pytest
import torch
from torch.nn.functional import interpolate

from model_store import codec
from pipeline import methods, tiling
from pipeline.backbone import resolve
from pipeline.commissioning import commission, rotated
from pipeline.data import Artifact, Features, Frame, Images, Scores
from pipeline.decode import Limits
from pipeline.errors import ArtifactError, ConfigError, FitError, ShapeError
from pipeline.inspection import Inspector
from pipeline.synthetic import draw, encode
from pipeline.view import View, seen_size

SIZE = (64, 64)
TILES = (1, 2)
SIDE = seen_size(SIZE, TILES)[0]


@pytest.fixture(scope="module")
def backbone():
    return resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())


def pictures(n, seed=0, side=SIDE):
    g = torch.Generator().manual_seed(seed)
    ramp = 128 + 60 * torch.sin(torch.arange(side) / 5).view(1, 1, 1, side)
    return (ramp + 6 * torch.randn(n, 3, side, side, generator=g)).clamp(0, 255).to(torch.uint8)


def small_defect(n):
    images = pictures(n, seed=50)
    images[:, :, 80:87, 30:37] = 250
    return images


@pytest.fixture(scope="module")
def detector(backbone):
    config = methods.make_config("patchcore", {"coreset": 0.1})
    return tiling.fit("patchcore", Images(pictures(14)), config, tiles=TILES, size=SIZE, backbone=backbone, seed=0)


@pytest.mark.parametrize(("n", "size"), [(1, (64, 64)), (2, (64, 64)), (3, (64, 48)), (4, (40, 64))])
def test_tiles_cover_the_frame_and_join_to_it(n, size):
    whole = seen_size(size, (n,))
    images = torch.randint(0, 256, (2, 3, *whole), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    tiles = tiling.cut(images, size, n)
    assert tuple(tiles.shape) == (2 * n * n, 3, *size)
    joined = tiling.join(tiles[:, 0].float(), n)
    torch.testing.assert_close(joined, images[:, 0].float())


def test_seams_are_blended():
    """Two tiles that disagree meet in a ramp, not in a step."""
    maps = torch.zeros(4, 64, 64)
    maps[1::2] = 1  # the right ones
    joined = tiling.join(maps, 2)[0]
    steps = joined.diff(dim=1)
    assert steps.min() >= 0
    assert steps.max() <= 1 / 8 + 1e-6
    assert (joined[:, 0] == 0).all()
    assert (joined[:, -1] == 1).all()


def test_a_coarser_level_sees_the_whole_frame_smaller():
    images = pictures(1)
    expected = interpolate(images.float(), size=SIZE, mode="bilinear", antialias=True).round().to(torch.uint8)
    assert torch.equal(tiling.cut(images, SIZE, 1), expected)


def test_one_level_of_one_tile_is_the_method_itself(backbone):
    config = methods.make_config("patchcore", {"coreset": 0.1})
    plain = methods.fit("patchcore", Images(pictures(6, side=64)), config, backbone=backbone, seed=0)
    same = tiling.fit(
        "patchcore", Images(pictures(6, side=64)), config, tiles=(1,), size=SIZE, backbone=backbone, seed=0
    )
    assert codec.encode(plain.save()) == codec.encode(same.save())


def test_a_small_defect_is_found_where_it_is(detector):
    scored = detector.score(detector.embed(small_defect(3)))
    goods = detector.score(detector.embed(pictures(6, seed=9)))
    assert scored.image.min() > goods.image.max()
    for each in scored.map:
        row, column = divmod(int(each.argmax()), each.shape[1])
        assert abs(row - 83) < 12
        assert abs(column - 33) < 12


def test_goods_score_about_nothing(detector):
    goods = detector.score(detector.embed(pictures(20, seed=9))).image
    assert abs(goods.mean()) < 3


def test_saved_and_loaded_it_scores_the_same(detector, backbone):
    stored = codec.encode(detector.save())
    again = tiling.load(codec.decode(stored, sha256(stored).hexdigest()), backbone=backbone)
    for scored in (detector, again):
        assert torch.equal(
            scored.score(scored.embed(small_defect(2))).map, detector.score(detector.embed(small_defect(2))).map
        )
    assert codec.encode(again.save()) == stored


def test_alone_as_in_company(detector):
    images = torch.cat([pictures(2, seed=4), small_defect(1)])
    together = detector.score(detector.embed(images))
    for place in range(3):
        alone = detector.score(detector.embed(images[place : place + 1]))
        torch.testing.assert_close(alone.image[0], together.image[place], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.map[0], together.map[place], rtol=1e-3, atol=1e-3)


def test_a_frame_of_another_size_is_refused(detector):
    with pytest.raises(ShapeError, match="120"):
        detector.embed(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_damaged_artifacts_are_refused(detector, backbone):
    good = detector.save()
    for change in (
        {"tiles": [2, 1]},
        {"tiles": [1]},
        {"tiles": [0, 2]},
        {"tiles": [1, 99]},
        {"tiles": "12"},
        {"levels": []},
        {"levels": [1, 2]},
        {"levels": [good.meta["levels"][0], {**good.meta["levels"][1], "image_size": [32, 32]}]},
    ):
        with pytest.raises(ArtifactError):
            tiling.load(dataclasses.replace(good, meta={**good.meta, **change}), backbone=backbone)
    spread = good.tensors["spread"]
    for wrong in (spread[:1], spread * torch.nan, spread * 0, spread.double()):
        with pytest.raises(ArtifactError):
            tiling.load(dataclasses.replace(good, tensors={**good.tensors, "spread": wrong}), backbone=backbone)
    with pytest.raises(ArtifactError):
        tiling.load(dataclasses.replace(good, tensors={**good.tensors, "3/bank": spread}), backbone=backbone)


def test_too_few_pictures_and_methods_by_position_are_refused(backbone):
    config = methods.make_config("patchcore", {})
    with pytest.raises(FitError, match="at least 8"):
        tiling.fit("patchcore", Images(pictures(6)), config, tiles=TILES, size=SIZE, backbone=backbone, seed=0)
    with pytest.raises(ConfigError, match="padim keeps statistics by position"):
        tiling.fit(
            "padim",
            Images(pictures(9)),
            methods.make_config("padim", {}),
            tiles=TILES,
            size=SIZE,
            backbone=backbone,
            seed=0,
        )


def test_students_by_position_are_refused(backbone):
    config = methods.make_config("students", {}, quick=True)
    with pytest.raises(ConfigError, match="students with --set by_position=false"):
        tiling.fit("students", Images(pictures(8)), config, tiles=TILES, size=SIZE, backbone=backbone, seed=0)


def test_a_tiled_inspector_goes_the_whole_way(backbone):
    drawn = [draw("cap", seed=k, size=(150, 150)) for k in range(30)]
    goods = [Frame(frame_id=str(k), image=encode(d.image, format="PNG")) for k, d in enumerate(drawn)]
    made = commission(
        goods,
        method="patchcore",
        config=methods.make_config("patchcore", {"coreset": 0.1}),
        backbone=backbone,
        view=View(size=SIZE, tiles=TILES, even_light=True),
        limits=Limits(),
        rate=0.1,
    )
    artifact = made.inspector.save()
    json.dumps(artifact.meta)
    again = Inspector.load(artifact, open_backbone=lambda _: backbone, limits=Limits())
    assert again.view == made.inspector.view
    seen, repeated = made.inspector.inspect(goods[:4]), again.inspect(goods[:4])
    assert seen.verdicts == repeated.verdicts
    assert all(tuple(m.shape) == (120, 120) for m in seen.maps.values())


def test_rotations_turn_the_picture():
    images = torch.zeros(1, 3, 41, 41, dtype=torch.uint8)
    images[:, :, 5:9, 18:23] = 255  # above the centre
    turned = rotated(Images(images), 4).pixels
    assert tuple(turned.shape) == (4, 3, 41, 41)
    assert torch.equal(turned[0], images[0])
    torch.testing.assert_close(turned[2].float(), images[0].rot90(2, (1, 2)).float(), atol=2, rtol=0)
    quarter = {tuple(map(int, t[0].nonzero().float().mean(dim=0))) for t in (turned[1], turned[3])}
    assert quarter == {(20, 6), (20, 33)} or quarter == {(20, 6), (20, 34)}
    assert torch.equal(rotated(Images(images), 1).pixels, images)


class Recorded:
    """A detector that keeps the pictures it was fitted on and those it scored."""

    def __init__(self, images):
        self.images, self.scored = images, []

    def embed(self, images):
        self.scored.append(images)
        return Features(maps={"mean": images.float().mean(dim=(1, 2, 3))}, image_size=SIZE)

    def score(self, features):
        image = features.maps["mean"]
        return Scores(image=image, map=image.new_zeros(len(image), *SIZE))

    def save(self):
        return Artifact(method="recorded", tensors={})


@pytest.fixture
def recorded(monkeypatch):
    """The detectors of the levels, in their order."""
    made = []

    def fit(_method, images, _config, **_how):
        made.append(Recorded(images))
        return made[-1]

    monkeypatch.setattr(methods, "fit", fit)
    return made


def greys(images):
    return images[:, 0, 0, 0].tolist()


def test_all_turns_of_a_tuning_picture_are_kept_for_tuning(recorded, backbone):
    flat = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, SIDE, SIDE)
    tiling.fit("patchcore", rotated(Images(flat), 3), object(), tiles=TILES, size=SIZE, backbone=backbone, seed=0)
    for n, level in zip(TILES, recorded, strict=True):
        fitted_on, tuned_on = greys(level.images.pixels), greys(torch.cat(level.scored))
        assert not set(fitted_on) & set(tuned_on)
        assert sorted(fitted_on + tuned_on) == sorted(list(range(10)) * 3 * n * n)
        assert list(level.images.originals) == fitted_on


def test_without_turns_tuning_pictures_are_drawn_by_picture(recorded, backbone):
    flat = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, SIDE, SIDE)
    tiling.fit("patchcore", Images(flat), object(), tiles=(2,), size=SIZE, backbone=backbone, seed=3)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3)).tolist()
    assert greys(recorded[0].images.pixels)[::4] == sorted(order[4:])
    assert greys(torch.cat(recorded[0].scored))[::4] == sorted(order[:4])
    assert list(recorded[0].images.originals) == greys(recorded[0].images.pixels), "tiles of one picture stay together"


def test_maps_of_a_method_that_does_not_localise_stay_zero(backbone):
    config = methods.make_config("deep_svdd", {"pretrain_epochs": 1, "epochs": 1, "batch": 8}, quick=True)
    made = tiling.fit("deep_svdd", Images(pictures(8)), config, tiles=TILES, size=SIZE, backbone=backbone, seed=0)
    again = tiling.load(made.save(), backbone=backbone)
    for each in (made, again):
        scored = each.score(each.embed(pictures(2, seed=9)))
        assert not scored.map.any()
        assert scored.image.any()
