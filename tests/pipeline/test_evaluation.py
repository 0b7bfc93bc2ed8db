"""Figures against their definitions, and folders as people really leave them."""

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.evaluation import dataset
from pipeline.evaluation.figures import auroc
from pipeline.synthetic import defects_of, write_dataset


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
