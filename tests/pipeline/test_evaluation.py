"""Figures against their definitions, and folders as people really leave them."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn import metrics

from pipeline import tiling
from pipeline.backbone import resolve
from pipeline.decode import Limits
from pipeline.errors import ConfigError
from pipeline.evaluation import dataset, trial
from pipeline.evaluation.figures import aupro, auroc, average_precision, misses_at, pixel_auroc, rank_correlation
from pipeline.methods import make_config
from pipeline.synthetic import defects_of, write_dataset
from pipeline.view import View


def by_counting(goods, defects):
    return np.mean([(d > g) + 0.5 * (d == g) for g in goods for d in defects])


@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_chance_that_a_defect_scores_higher_ties_counting_half(levels, seed):
    rng = np.random.default_rng(seed)
    goods = rng.integers(0, levels, rng.integers(1, 40)).astype(float).tolist()
    defects = (rng.integers(0, levels, rng.integers(1, 40)) + seed % 2).astype(float).tolist()
    assert auroc(goods, defects) == pytest.approx(by_counting(goods, defects))


def test_auroc_at_its_ends():
    assert auroc([0, 1], [2, 3]) == 1.0
    assert auroc([2, 3], [0, 1]) == 0.0
    assert auroc([1, 1], [1, 1, 1]) == 0.5


@pytest.mark.parametrize(("goods", "defects"), [([], [1.0]), ([1.0], []), ([], [])])
def test_auroc_of_nothing_is_none(goods, defects):
    assert auroc(goods, defects) is None


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gear")
    write_dataset(folder, "gear", goods=3, test_goods=2, defects_each=1, seed=0)
    return folder


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def test_a_dataset_in_mvtec_layout_is_read_goods_first(written):
    assert [p.name for p in dataset.goods(written)] == ["000.png", "001.png", "002.png"]
    samples = dataset.tests(written)
    assert [s.defect for s in samples[:2]] == [None, None]
    assert sorted(s.defect for s in samples[2:]) == sorted(defects_of("gear"))
    for sample in samples[2:]:
        assert sample.mask == written / "ground_truth" / sample.defect / "000_mask.png"
    assert all(s.mask is None for s in samples[:2])


def test_a_defect_nobody_drew_has_no_mask(tmp_path):
    picture(tmp_path / "test/crack/1.png")
    assert [(s.defect, s.mask) for s in dataset.tests(tmp_path)] == [("crack", None)]


def test_a_plain_folder_is_all_goods(tmp_path):
    wanted = [picture(tmp_path / name) for name in ("a.JPG", "b.png", "deeper/c.bmp")]
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    assert dataset.goods(tmp_path) == wanted


def test_a_missing_folder_is_told(tmp_path):
    for look in (dataset.goods, dataset.tests, dataset.pictures):
        with pytest.raises(ConfigError, match="no such folder"):
            look(tmp_path / "none")


def test_a_folder_without_pictures_is_told(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"no pictures in .*\.png"):
        dataset.goods(tmp_path)
    (tmp_path / "train/good").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no pictures in"):
        dataset.goods(tmp_path)


@pytest.mark.parametrize("other", ["test/good", "ground_truth/crack"])
def test_a_test_set_is_never_taken_for_goods(tmp_path, other):
    picture(tmp_path / other / "1.png")
    with pytest.raises(ConfigError, match="no train/good"):
        dataset.goods(tmp_path)


def test_a_test_picture_in_no_folder_is_told(tmp_path):
    picture(tmp_path / "test/good/1.png")
    picture(tmp_path / "test/stray.png")
    with pytest.raises(ConfigError, match=r"stray\.png lies beside"):
        dataset.tests(tmp_path)


def scored(seed, levels):
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, levels, (3, 12, 14)).astype(np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[0, 2:5, 3:6] = masks[0, 8:10, 1:3] = masks[1, 4:9, 4:12] = True
    return maps + masks * rng.random(maps.shape).astype(np.float32) * levels, masks


@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_scikit_learn(seed, levels):
    rng = np.random.default_rng(seed)
    goods = rng.integers(0, levels, 30).astype(float).tolist()
    defects = (rng.integers(0, levels, 20) + 1).astype(float).tolist()
    truth, scores = [0] * 30 + [1] * 20, goods + defects
    assert auroc(goods, defects) == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert average_precision(goods, defects) == pytest.approx(metrics.average_precision_score(truth, scores))
    maps, masks = scored(seed, levels)
    assert pixel_auroc(maps, masks) == pytest.approx(metrics.roc_auc_score(masks.ravel(), maps.ravel()))


def aupro_by_thresholds(maps, masks, limit):
    """The definition, one threshold at a time."""
    regions = []
    for place, mask in enumerate(masks):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [(place, labels == n + 1) for n in range(count)]
    points = [(0.0, 0.0)]
    for line in np.unique(maps)[::-1]:
        above = maps >= line
        overlap = np.mean([above[place][region].mean() for place, region in regions])
        points.append((above[~masks].mean(), overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        end = min(x1, limit)
        top = y1 if x1 == x0 else y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (end - x0) * (y0 + top) / 2
    return area / limit


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_aupro_equals_its_definition(seed, levels, limit):
    maps, masks = scored(seed, levels)
    assert aupro(maps, masks, limit) == pytest.approx(aupro_by_thresholds(maps, masks, limit))


def test_aupro_of_cases_made_by_hand():
    masks = np.zeros((1, 10, 10), bool)
    masks[0, :2, :5] = True  # one region of 10 pixels
    masks[0, 9, 9] = True  # one of 1 pixel
    perfect = masks.astype(np.float32)
    assert aupro(perfect, masks) == pytest.approx(1.0)
    assert aupro(1 - perfect, masks) == pytest.approx(0.0)
    only_the_large_one = perfect.copy()
    only_the_large_one[0, 9, 9] = 0
    # Half the regions are found at no false positive; the rest of the curve is a straight line to (1, 1).
    assert aupro(only_the_large_one, masks, 0.3) == pytest.approx(0.5 + 0.5 * 0.3 / 2)
    assert aupro(perfect, np.zeros_like(masks)) is None
    assert aupro(perfect, np.ones_like(masks)) is None


@pytest.mark.parametrize("above", [[0.9, 0.8, 0.7], [0.9, 0.9, 0.9]], ids=["each alone", "in a tie"])
def test_aupro_is_nothing_where_the_curve_rises_exactly_at_the_limit(above):
    maps = np.array([[[*above, 0.5, *[0.1] * 7]]], np.float32)  # three of ten good pixels above the only region
    masks = maps == 0.5
    assert aupro(maps, masks, 0.3) == aupro_by_thresholds(maps, masks, 0.3) == 0.0


def half(maps):
    """Positions of the left half."""
    inside = np.zeros(maps.shape[1:], bool)
    inside[:, : maps.shape[2] // 2] = True
    return inside


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_pixels_are_those_of_what_lies_inside(seed):
    maps, masks = scored(seed, 5)
    inside = half(maps)
    left, drawn = maps[:, :, :7], masks[:, :, :7]
    assert pixel_auroc(maps, masks, inside) == pytest.approx(pixel_auroc(left, drawn))
    assert aupro(maps, masks, 0.3, inside) == pytest.approx(aupro_by_thresholds(left, drawn, 0.3))


def test_a_region_that_lies_outside_is_no_miss():
    masks = np.zeros((1, 10, 10), bool)
    masks[0, :2, :2] = masks[0, 8:, 8:] = True
    maps = np.zeros(masks.shape, np.float32)
    maps[0, :2, :2] = 1  # the one inside is found, the other is not
    assert pixel_auroc(maps, masks, half(maps)) == aupro(maps, masks, 0.3, half(maps)) == 1.0
    assert aupro(maps, masks, 0.3) < 0.6


def test_a_region_that_the_border_cuts_in_two_stays_one_region():
    masks = np.zeros((1, 9, 8), bool)
    masks[0, 0, :6] = masks[0, 4, :6] = masks[0, :5, 5] = True  # two arms inside, joined outside
    masks[0, 8, 0] = True
    maps = np.zeros(masks.shape, np.float32)
    maps[0, 8, 0] = 1
    assert aupro(maps, masks, 0.01, half(maps)) == pytest.approx(0.5, abs=0.01), "one of two regions, not of three"


def test_figures_of_pixels_are_none_where_no_defect_lies_inside():
    masks = np.zeros((1, 4, 4), bool)
    masks[0, 0, 3] = True
    maps = masks.astype(np.float32)
    assert pixel_auroc(maps, masks, half(maps)) is None
    assert aupro(maps, masks, 0.3, half(maps)) is None


def test_misses_at_a_rate_of_false_rejects():
    goods = [float(i) for i in range(200)]
    defects = [150.0, 198.0, 197.5, 250.0]
    assert misses_at(goods, defects, 0.01) == 0.25, "two goods may lie above, so the line is at 197"
    assert misses_at(goods, [197.0], 0.01) == 1.0, "a defect on the line passes, as a part does"
    assert misses_at(goods, defects, 0.005) == 0.75, "one good may lie above: the line is at 198"
    assert misses_at(goods, defects, 0.001) is None, "a thousandth of 200 goods is no part"
    assert misses_at(goods, [], 0.01) is None


def test_a_trial_has_every_figure_that_its_dataset_allows(tmp_path):
    write_dataset(tmp_path / "cap", "cap", goods=12, test_goods=4, defects_each=1, seed=5)
    net = resolve("resnet18", ("layer1",), weights=None, random_weights=True, factories=())
    view = View(size=(64, 64))
    pictures = trial.read(tmp_path / "cap", view, Limits())
    config = make_config("patchcore", {"coreset": 0.02})
    done = trial.run(pictures, "patchcore", config, net, seed=0)
    row = done.row
    assert (row.dataset, row.method, row.backbone, row.seed, row.engine) == ("cap", "patchcore", "resnet18", 0, "torch")
    assert (row.goods, row.defects) == (4, len(defects_of("cap")))
    for value in (row.image_auroc, row.pixel_auroc, row.aupro_030, row.aupro_005, row.average_precision):
        assert 0 <= value <= 1
    assert row.misses_at == {"0.01": None, "0.005": None, "0.001": None}, "four goods are too few to say"
    assert row.fit_s > 0
    assert row.ms_per_frame > 0
    assert row.bank_bytes == 4 * 64 * int(12 * 16 * 16 * 0.02)
    (next((tmp_path / "cap" / "ground_truth").rglob("*.png"))).unlink()
    assert trial.read(tmp_path / "cap", view, Limits()).masks is None, "a defect without a mask would count as good"
    assert trial.run(pictures, "patchcore", config, net, seed=0).row.image_auroc == row.image_auroc


VIEW = View(size=(64, 64))


@pytest.fixture
def gear(tmp_path):
    write_dataset(tmp_path / "gear", "gear", goods=3, test_goods=2, defects_each=1, seed=0)
    return tmp_path / "gear"


def a_defect(folder):
    """A picture of a defect and its mask."""
    sample = next(s for s in dataset.tests(folder) if s.defect)
    return sample.path, sample.mask


def redraw(mask, change):
    with Image.open(mask) as opened:
        values = np.array(opened.convert("L"))
    Image.fromarray(change(values).astype(np.uint8)).save(mask)


def test_pictures_that_cannot_be_read_are_named_by_their_paths_in_the_dataset(gear):
    (gear / "train/good/001.png").write_bytes(b"no picture")
    (gear / "test/good/000.png").write_bytes(b"")
    pictures = trial.read(gear, VIEW, Limits())
    assert pictures.unreadable == ["train/good/001.png", "test/good/000.png"]
    assert len(pictures.train) == 2
    assert len(pictures.test) == len(pictures.samples) == len(dataset.tests(gear)) - 1


def test_no_readable_good_picture_is_told(gear):
    for path in dataset.goods(gear):
        path.write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"no readable good picture in .*gear: not a readable picture"):
        trial.read(gear, VIEW, Limits())


def test_a_corrupt_mask_is_named_and_what_to_do(gear):
    _, mask = a_defect(gear)
    mask.write_bytes(mask.read_bytes()[:60])
    with pytest.raises(ConfigError, match=rf"{mask.name} cannot be read .*: draw it anew, or take it away"):
        trial.read(gear, VIEW, Limits())


@pytest.mark.parametrize("lightest", [1, 127])
def test_a_mask_that_is_nowhere_lighter_than_half_is_refused(gear, lightest):
    _, mask = a_defect(gear)
    redraw(mask, lambda values: (values > 127) * lightest)
    with pytest.raises(ConfigError, match=rf"{mask.name} is {lightest} where it is lightest.*write it with 0 and 255"):
        trial.read(gear, VIEW, Limits())


def test_a_mask_of_128_is_read_as_one_of_255(gear):
    _, mask = a_defect(gear)
    before = trial.read(gear, VIEW, Limits()).masks
    redraw(mask, lambda values: (values > 127) * 128)
    assert np.array_equal(trial.read(gear, VIEW, Limits()).masks, before)


def test_a_defect_whose_mask_does_not_outlast_the_resize_is_named(gear):
    path, mask = a_defect(gear)
    assert trial.read(gear, VIEW, Limits()).lost_masks == []
    redraw(mask, np.zeros_like)
    assert trial.read(gear, VIEW, Limits()).lost_masks == [str(path.relative_to(gear))]
    one_pixel = np.zeros((256, 256), np.uint8)
    one_pixel[1, 0] = 255  # a resize to 64 looks at every fourth
    Image.fromarray(one_pixel).save(mask)
    assert trial.read(gear, VIEW, Limits()).lost_masks == [str(path.relative_to(gear))]


def test_a_defect_outside_of_the_region_of_interest_is_named(gear):
    path, mask = a_defect(gear)
    drawn = np.zeros((64, 64), np.uint8)
    drawn[:, 40:50] = 255
    Image.fromarray(drawn).save(mask)
    left = Image.fromarray(np.repeat([[255] * 32 + [0] * 32], 64, axis=0).astype(np.uint8))
    assert str(path.relative_to(gear)) in trial.read(gear, VIEW.with_roi(left), Limits()).lost_masks


def test_a_trial_counts_pixels_inside_the_region_of_interest_alone(gear):
    net = resolve("resnet18", ("layer1",), weights=None, random_weights=True, factories=())
    left = Image.fromarray(np.repeat([[255] * 32 + [0] * 32], 64, axis=0).astype(np.uint8))
    pictures = trial.read(gear, VIEW.with_roi(left), Limits())
    done = trial.run(pictures, "patchcore", make_config("patchcore", {"coreset": 0.1}), net, seed=0)
    maps, masks = done.maps[:, :, :32], pictures.masks[:, :, :32]
    assert done.row.pixel_auroc == pytest.approx(pixel_auroc(maps, masks), abs=1e-5)
    assert done.row.aupro_030 == pytest.approx(aupro(maps, masks, 0.3), abs=1e-5)
    assert done.row.lost_masks == pictures.lost_masks


def test_a_dataset_in_the_present_folder_has_its_name(gear, monkeypatch):
    monkeypatch.chdir(gear)
    assert trial.read(Path(), VIEW, Limits()).name == "gear"
    monkeypatch.chdir(gear / "test")
    assert trial.read(Path(".."), VIEW, Limits()).name == "gear"


def test_methods_by_position_and_tiles_are_refused_before_there_is_a_picture():
    with pytest.raises(ConfigError, match="padim keeps statistics by position"):
        tiling.check("padim", make_config("padim", {}), (1, 2))
    by_position = make_config("students", {"by_position": "true"})
    with pytest.raises(ConfigError, match="students with --set by_position=false"):
        tiling.check("students", by_position, (1, 2))
    for method, config in (("padim", make_config("padim", {})), ("students", by_position)):
        tiling.check(method, config, tiling.WHOLE)
    tiling.check("patchcore", make_config("patchcore", {}), (1, 2))


def test_rank_correlation_is_one_for_any_rising_relation_and_none_without_an_order():
    values = [0.1, 0.5, 0.2, 0.9]
    assert rank_correlation(values, [v**3 for v in values]) == pytest.approx(1)
    assert rank_correlation(values, [-v for v in values]) == pytest.approx(-1)
    assert rank_correlation(values[:2], values[:2]) is None
    assert rank_correlation(values, [1.0] * 4) is None
