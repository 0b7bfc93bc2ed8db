"""Patch description networks (Batzner et al. 2024, tables 5 and 6), and how one is distilled from a backbone.

A PDN describes patches of 33 x 33 px, 4 px apart, and no padding is in it. The numbers of
layers are from code that follows the paper; the tables themselves were not re-read.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline import learned, training
from pipeline.backbone import Backbone
from pipeline.data import Size
from pipeline.errors import FitError
from pipeline.natural import NaturalPictures
from pipeline.patches import Pooling
from pipeline.progress import Progress

SMALLEST_PX = 64
_BATCH = 8
BORDER = 4  # cells of a quarter of the picture that lack a whole patch, at each edge


def pdn(kind: str, outputs: int) -> nn.Sequential:
    """The small ("s") or medium ("m") network: (B, 3, H, W) -> (B, outputs, *grid_of((H, W)))."""
    pool, relu = nn.AvgPool2d(2), nn.ReLU()
    if kind == "s":
        layers = [
            *(nn.Conv2d(3, 128, 4), relu, pool),
            *(nn.Conv2d(128, 256, 4), relu, pool),
            *(nn.Conv2d(256, 256, 3), relu),
            nn.Conv2d(256, outputs, 4),
        ]
    else:
        layers = [
            *(nn.Conv2d(3, 256, 4), relu, pool),
            *(nn.Conv2d(256, 512, 4), relu, pool),
            *(nn.Conv2d(512, 512, 1), relu),
            *(nn.Conv2d(512, 512, 3), relu),
            *(nn.Conv2d(512, outputs, 4), relu),
            nn.Conv2d(outputs, outputs, 1),
        ]
    net = nn.Sequential(*layers)
    learned.initialise(net)
    return net


def grid_of(size: Size) -> Size:
    """(h, w) of a PDN's output: 56 for 256 px."""
    height, width = (((side - 3) // 2 - 3) // 2 - 5 for side in size)
    return height, width


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """How a teacher is made.

    Attributes:
        kind: of PDN.
        dim: channels at most that the backbone's features are pooled to.
        pictures: natural ones.
        side_px: of the teacher's pictures; the backbone sees them twice as large, so that its stride of 8 is a PDN's 4.
        counted: pictures that give the features' mean and deviation.
        rate: learning rate over the training.
    """

    kind: str
    dim: int
    pictures: NaturalPictures
    side_px: int
    counted: int
    steps: int
    batch: int
    rate: training.Rate
    weight_decay: float
    seed: int


def distil(
    backbone: Backbone, how: Distillation, *, checkpoint: training.Checkpoint | None, progress: Progress
) -> nn.Sequential:
    """A PDN that regresses the backbone's patch features, each channel normalised over natural pictures.

    The features are PatchCore's (`patches.Pooling`), at twice the size, cut to the cells whose patch the PDN sees
    whole.

    Raises:
        FitError: the features are not finite.
    """
    pooling = Pooling(tuple(backbone.channels.values()), how.dim, backbone.device)
    mean, std = learned.statistics(_features(backbone, pooling, how, progress))
    if not bool((mean.isfinite() & std.isfinite()).all()):
        raise FitError(f"the features of {backbone.spec.name} are not finite: are these the right weights?")
    mean, std = (each.to(backbone.device).view(1, -1, 1, 1) for each in (mean, std))
    with training.seeded(how.seed):
        net = pdn(how.kind, pooling.dim)
    teacher = learned.ready(net, backbone.device)

    def loss(step: int, _: torch.Generator) -> Tensor:
        pixels = _pictures(how, how.counted + step * how.batch, how.batch)
        wanted = (_targets(backbone, pooling, pixels) - mean) / std
        seen: Tensor = teacher(learned.normalised(_halved(pixels), backbone.device))
        return functional.mse_loss(seen.float(), wanted)

    training.train(
        teacher,
        loss,
        steps=how.steps,
        optimiser=torch.optim.Adam(teacher.parameters(), how.rate(0), weight_decay=how.weight_decay),
        rate=how.rate,
        seed=how.seed,
        stage="teacher",
        checkpoint=checkpoint,
        progress=progress,
    )
    learned.freeze(net)
    return net


def normalise_outputs(teacher: nn.Sequential, images: Tensor, progress: Progress) -> None:
    """Mean 0 and deviation 1 in each channel over the good pictures, folded into the last convolution."""
    last = teacher[-1]
    assert isinstance(last, nn.Conv2d)  # noqa: S101 - a PDN ends with one
    device = last.weight.device

    def outputs(at: int) -> Tensor:
        progress("outputs", at, len(images))
        with torch.no_grad():
            out: Tensor = teacher(learned.normalised(images[at : at + _BATCH], device))
        return out

    mean, std = learned.statistics(outputs(at) for at in range(0, len(images), _BATCH))
    progress("outputs", len(images), len(images))
    learned.standardise(last, mean, std)


def _pictures(how: Distillation, first: int, count: int) -> Tensor:
    return how.pictures.batch(range(first, first + count), (2 * how.side_px, 2 * how.side_px))


def _halved(pixels: Tensor) -> Tensor:
    """Twice the size -> the size, float of 0 to 255."""
    return functional.avg_pool2d(pixels.float(), 2)


@torch.no_grad()
def _targets(backbone: Backbone, pooling: Pooling, pixels: Tensor) -> Tensor:
    """Features (B, D, h, w) at the places where the PDN has outputs."""
    maps = pooling([each.float() for each in backbone(pixels).values()]).float()
    quarter = (pixels.shape[2] // 8, pixels.shape[3] // 8)
    if maps.shape[2:] != quarter:
        maps = functional.interpolate(maps, size=quarter, mode="bilinear", align_corners=False)
    return maps[:, :, BORDER:-BORDER, BORDER:-BORDER].clone()


def _features(backbone: Backbone, pooling: Pooling, how: Distillation, progress: Progress) -> Iterator[Tensor]:
    for at in range(0, how.counted, how.batch):
        progress("features", at, how.counted)
        yield _targets(backbone, pooling, _pictures(how, at, min(how.batch, how.counted - at)))
    progress("features", how.counted, how.counted)
