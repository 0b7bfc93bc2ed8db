"""Teachers distilled on folders of photographs, as the `photos` setting takes them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import patch_cnn, pdn, training
from pipeline.backbone import resolve
from pipeline.natural import NaturalPictures


def drawn_photographs(folder: Path) -> str:
    """Six JPEG files, of waves with grain, one of them in a folder below."""
    (folder / "below").mkdir()
    rows, columns = np.mgrid[0:150, 0:200]
    for k in range(6):
        chance = np.random.default_rng(k)
        angle, length = chance.uniform(0, np.pi), chance.uniform(4, 30)
        wave = np.sin((np.cos(angle) * rows + np.sin(angle) * columns) / length)[..., None]
        pixels = 128 + 60 * wave * chance.uniform(-1, 1, 3) + chance.normal(0, 8, (150, 200, 3))
        place = folder / "below" / "5.jpeg" if k == 5 else folder / f"{k}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place)
    return str(folder)


def real_photographs(_: Path) -> str:
    """Those in the folder of real data; skips without them."""
    named = os.environ.get("GOLDLINE_DATA")
    if not named:
        pytest.skip("GOLDLINE_DATA is not set: no real photographs")
    folder = Path(named) / "photos"
    if not folder.is_dir():
        pytest.skip(f"there are no real photographs in {folder}")
    return str(folder)


@pytest.fixture(scope="module")
def backbone():
    return resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())


def efficientads(backbone, photos, steps):
    """A teacher after so many steps on these photographs, and its losses."""
    how = pdn.Distillation(
        kind="s", dim=16, pictures=NaturalPictures.of_folder(photos, 0), side_px=64, counted=8, steps=steps, batch=2,
        rate=training.constant(1e-3), weight_decay=0, seed=0,
    )  # fmt: skip
    losses = []
    plain = pdn.functional.mse_loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pdn.functional, "mse_loss", lambda a, b: (losses.append(float(plain(a, b).detach())), plain(a, b))[1]
        )
        teacher = pdn.distil(backbone, how, checkpoint=None, progress=lambda *_: None)
    return teacher.state_dict(), losses


def students(backbone, photos, steps):
    """A teacher after so many steps on these photographs, and its losses."""
    how = patch_cnn.Distillation(
        fields=(33,), pictures=NaturalPictures.of_folder(photos, 0), view_px=32, counted=32, steps=steps, batch=16,
        rate=training.constant(1e-3), weight_decay=0, weights=(1.0, 0.0, 0.0), margin=1.0, seed=0,
    )  # fmt: skip
    losses = []
    plain = patch_cnn.field_loss

    def told(*given):
        loss = plain(*given)
        losses.append(float(loss.detach()))
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patch_cnn, "field_loss", told)
        teachers = patch_cnn.distil(backbone, how, checkpoint=None, progress=lambda *_: None)
    return teachers[33].state_dict(), losses


@pytest.mark.parametrize("distilled", [efficientads, students])
@pytest.mark.parametrize("photos", [drawn_photographs, pytest.param(real_photographs, marks=pytest.mark.data)])
def test_a_teacher_learns_from_photographs(backbone, tmp_path, photos, distilled):
    folder = photos(tmp_path)
    _, losses = distilled(backbone, folder, 24)
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])
    (ours, _), (drawn, _) = (distilled(backbone, each, 3) for each in (folder, ""))
    assert not any(torch.equal(ours[name], drawn[name]) for name in ours)
