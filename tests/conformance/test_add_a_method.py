"""The five steps of CONTRIBUTING are enough: one file and one entry pass every rule and go the whole way.

It is written here as a contributor would write it: the shared maths, the house's interfaces, nothing else.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from PIL import Image

from tests.conformance.pictures import good

ROOT = Path(__file__).resolve().parents[2]

MEAN_DISTANCE = '''
"""Mean distance: "Distance to the Mean Picture", for this test.

fit: the mean feature at each position.
score: the distance to it.

Departures, and why:

* None: there is no paper.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline import fitted
from pipeline.backbone import Backbone
from pipeline.data import Artifact, Features, Images, Scores, Size
from pipeline.errors import ArtifactError
from pipeline.maps import smooth, upsample
from pipeline.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class MeanConfig:
    sigma: float = 1.0


class MeanDetector:
    def __init__(self, mean: Tensor, config: MeanConfig, size: Size, backbone: Backbone) -> None:
        self.mean, self.config, self.image_size, self.backbone = mean, config, size, backbone

    def embed(self, images: Tensor) -> Features:
        fitted.check_pixels(images, self.image_size)
        return Features(maps={"first": next(iter(self.backbone(images).values()))}, image_size=self.image_size)

    @torch.inference_mode()
    def score(self, features: Features) -> Scores:
        grid = (features.maps["first"] - self.mean).square().sum(dim=1).sqrt()
        maps = smooth(upsample(grid, features.image_size), self.config.sigma)
        return Scores(image=maps.flatten(1).amax(dim=1), map=maps)

    def save(self) -> Artifact:
        meta = fitted.to_meta(self.config, self.backbone, self.image_size)
        return Artifact(method="mean", tensors={"mean": self.mean.cpu().clone()}, meta=meta)


class Mean:
    def fit(
        self,
        images: Images,
        config: MeanConfig,
        *,
        backbone: Backbone,
        seed: int,
        scratch: Path | None = None,
        progress: Progress = silent,
    ) -> MeanDetector:
        fitted.check_enough("mean", images, 2)
        first = next(iter(backbone(images.pixels).values()))
        return MeanDetector(first.mean(dim=0), config, images.size, backbone)

    def load(self, artifact: Artifact, *, backbone: Backbone) -> MeanDetector:
        config, size = fitted.from_meta(artifact, "mean", MeanConfig, backbone)
        (mean,) = fitted.tensors(artifact, ["mean"])
        if mean.dim() != 3:
            raise ArtifactError(f"mean must be (C, h, w), not {tuple(mean.shape)}")
        fitted.check_shape("mean", mean, (next(iter(backbone.channels.values())), *mean.shape[1:]), torch.float32)
        return MeanDetector(mean, config, size, backbone)
'''

ENTER = """
import sys
sys.path.insert(0, {folder!r})
import pytest
import mean_distance
from pipeline.methods import METHODS, MethodEntry
from workers.cli import cli

# In this process only: the rule of the artifact that carries all starts another, and `fit` and `score` below are two.
METHODS["mean"] = MethodEntry(method=mean_distance.Mean(), config=mean_distance.MeanConfig)
if sys.argv[1] == "rules":
    chosen = ["-k", "mean and not carries_all"]
    sys.exit(pytest.main(["tests/conformance/test_rules.py", "-q", "-p", "no:cacheprovider", *chosen]))
cli(sys.argv[1:])
"""


def test_a_method_is_a_file_and_an_entry(tmp_path):
    (tmp_path / "mean_distance.py").write_text(textwrap.dedent(MEAN_DISTANCE).lstrip())
    program = tmp_path / "enter.py"
    program.write_text(ENTER.format(folder=str(tmp_path)))

    def run(*words: str) -> str:
        argv = [sys.executable, "-W", "ignore", str(program), *words]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, env=_with_root())
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    told = run("rules")
    assert " passed" in told
    assert "failed" not in told
    photos = tmp_path / "photos"
    photos.mkdir()
    _draw(photos)
    store = f"file://{tmp_path / 'models'}"
    run("fit", str(photos), "--station", "a/b", "--method", "mean", "--store", store, "--size", "64")
    assert '"method": "mean"' in run("score", "a/b", str(photos), "--store", store, "--json")


def _with_root() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _draw(folder: Path) -> None:
    for place, picture in enumerate(good(12)):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{place}.png")
