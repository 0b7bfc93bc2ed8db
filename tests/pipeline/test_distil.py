"""The student learns from its teacher, goes on where it stopped, and becomes a backbone."""

from pathlib import Path

import pytest
import torch

from pipeline import synthetic, training
from pipeline.backbone import Backbone, resolve
from pipeline.distil import DistilConfig, distil
from pipeline.errors import ConfigError, FitError

CONFIG = DistilConfig(views=1, epochs=3, batch=8, size=64, peak_rate=1e-3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(24):
        part = synthetic.PARTS[i % len(synthetic.PARTS)]
        image = synthetic.draw(part, seed=i, size=(96, 96)).image
        (folder / f"{i}.jpg").write_bytes(synthetic.encode(image))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def teacher() -> Backbone:
    return resolve("resnet18", ("layer2", "layer3"), weights=None, random_weights=True, factories=[])


def test_the_student_explains_more_with_more_training(teacher: Backbone, photos: list[Path], tmp_path: Path) -> None:
    short = distil(teacher, photos, tmp_path / "short.safetensors", DistilConfig(**_with(epochs=1)))
    longer = distil(teacher, photos, tmp_path / "long.safetensors", DistilConfig(**_with(epochs=12)))
    assert sum(longer.unexplained.values()) < 0.7 * sum(short.unexplained.values())


def test_an_interrupted_training_ends_as_if_it_had_not_been(
    teacher: Backbone, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.safetensors"
    distil(teacher, photos, whole, CONFIG)
    cut = tmp_path / "cut.safetensors"

    def stop_in_the_second_epoch(stage: str, done: int, _: int) -> None:
        if stage == "student" and done == 5:  # an epoch has 3 steps
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "_SAVE_EVERY_S", -1.0)  # after each step
    with pytest.raises(KeyboardInterrupt):
        distil(teacher, photos, cut, CONFIG, progress=stop_in_the_second_epoch)
    seen: list[tuple[str, int]] = []
    distil(teacher, photos, cut, CONFIG, progress=lambda stage, done, _total: seen.append((stage, done)))
    assert seen[0] == ("student", 5), "neither the teacher nor what was done of the student ran again"
    one = resolve("goldline-s", ("layer2", "layer3"), weights=whole, factories=[])
    other = resolve("goldline-s", ("layer2", "layer3"), weights=cut, factories=[])
    assert one.spec.weights_sha256 == other.spec.weights_sha256


def test_the_student_is_a_backbone_of_strides_8_and_16(teacher: Backbone, photos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "student.safetensors"
    distil(teacher, photos, out, DistilConfig(**_with(epochs=1)))
    assert out.stat().st_size < 6_000_000
    net = resolve("goldline-s", ("layer2", "layer3"), weights=out, factories=[])
    maps = net(torch.zeros(2, 3, 96, 128, dtype=torch.uint8))
    assert [tuple(m.shape) for m in maps.values()] == [(2, 128, 12, 16), (2, 256, 6, 8)]


def test_too_few_photographs_are_said_to_be_too_few(teacher: Backbone, photos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(FitError, match=r"3 photographs; at least one batch, 8"):
        distil(teacher, photos[:3], tmp_path / "x.safetensors", CONFIG)


def test_a_teacher_of_other_strides_is_refused(photos: list[Path], tmp_path: Path) -> None:
    shallow = resolve("resnet18", ("layer1", "layer2"), weights=None, random_weights=True, factories=[])
    with pytest.raises(ConfigError, match="strides 8 and 16"):
        distil(shallow, photos, tmp_path / "x.safetensors", CONFIG)


def _with(*, epochs: int) -> dict[str, int | float]:
    return {"views": 1, "epochs": epochs, "batch": 8, "size": 64, "peak_rate": 1e-3}
