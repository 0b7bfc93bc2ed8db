"""Networks that describe patches of p x p px (Bergmann et al. 2020, tables 4 to 6), and how teachers are distilled.

Described patch by patch, or densely with the same result: a pooling then either goes on in steps of 2, as for one
patch, or in steps of 1, after which all that follows is dilated twice as much (Bailer et al., "Fast Dense Feature
Extraction with CNNs that have Pooling or Striding Layers", BMVC 2017; not re-read).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline import learned, training
from pipeline.backbone import Backbone
from pipeline.data import Size
from pipeline.errors import FitError
from pipeline.natural import NaturalPictures
from pipeline.progress import Progress

DIM = 128  # of a descriptor
SLOPE = 5e-3  # of the leaky rectifiers
_POOL = (0, 0)
_LAYERS: dict[int, tuple[tuple[int, int], ...]] = {  # kernel, channels
    17: ((6, 128), (5, 256), (5, 256), (4, DIM)),
    33: ((5, 128), _POOL, (5, 256), _POOL, (2, 256), (4, DIM)),
    65: ((5, 128), _POOL, (5, 128), _POOL, (5, 256), _POOL, (4, 256), (1, DIM)),
}
FIELDS = tuple(_LAYERS)
STRIDES = (1, 2, 4, 8)
_CROP_PX = 512  # of a natural picture
_ZOOMS = (2.0, 8.0)  # crop's side by patch's
PER_PICTURE = 4  # patches in a row of the same


class PatchCnn(nn.Module):
    """Descriptors of patches of `field` px a side."""

    def __init__(self, field: int) -> None:
        super().__init__()
        self.field = field
        self._pools = [layer == _POOL for layer in _LAYERS[field]]
        convs, before = [], 3
        for kernel, channels in (layer for layer in _LAYERS[field] if layer != _POOL):
            convs.append(nn.Conv2d(before, channels, kernel))
            before = channels
        self.convs = nn.ModuleList(convs)
        learned.initialise(self, SLOPE)

    @property
    def last(self) -> nn.Conv2d:
        """The convolution that gives the descriptors."""
        conv = self.convs[-1]
        assert isinstance(conv, nn.Conv2d)  # noqa: S101 - made above
        return conv

    def forward(self, x: Tensor, stride: int = STRIDES[-1]) -> Tensor:
        """Descriptors of the patches whose first pixels are `stride` px apart.

        Args:
            x: normalised, (B, 3, H + field - 1, W + field - 1).
            stride: 1, 2, 4 or 8.

        Returns:
            (B, 128, ceil(H / stride), ceil(W / stride)).
        """
        rows, columns = (-(-(side - self.field + 1) // stride) for side in x.shape[2:])
        convs, spacing, dilation = (c for c in self.convs if isinstance(c, nn.Conv2d)), 1, 1
        for pool in self._pools:
            if pool and spacing < stride:
                x, spacing = functional.max_pool2d(x, 2), spacing * 2
            elif pool:
                x, dilation = functional.max_pool2d(x, 2, stride=1, dilation=dilation), dilation * 2
            else:
                conv = next(convs)
                last = conv is self.last
                step = stride // spacing if last else 1
                x = functional.conv2d(x, conv.weight, conv.bias, stride=step, dilation=dilation)
                x = x if last else functional.leaky_relu(x, SLOPE)
        return x[:, :, :rows, :columns]  # a pooling over an odd number of values leaves one out: there may be more


def padded(images: Tensor, field: int, stride: int) -> Tensor:
    """Mirrored at the edges, so that each `stride` x `stride` px get the descriptor of the patch around them."""
    before, after = field // 2 - stride // 2, field // 2 + stride // 2
    return functional.pad(images, [before, after, before, after], mode="reflect")


def grid_of(size: Size, stride: int) -> Size:
    """(h, w) of a picture's descriptors."""
    return -(-size[0] // stride), -(-size[1] // stride)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """How teachers are made.

    Attributes:
        fields: patch sizes p, a teacher each.
        pictures: natural ones.
        view_px: side that a patch has for the backbone.
        counted: patches that give the features' mean and deviation.
        rate: learning rate over the training.
        weights: of the losses of knowledge, of the metric and of compactness: lk, lm, lc.
        margin: delta, of the metric's loss.
    """

    fields: tuple[int, ...]
    pictures: NaturalPictures
    view_px: int
    counted: int
    steps: int
    batch: int
    rate: training.Rate
    weight_decay: float
    weights: tuple[float, float, float]
    margin: float
    seed: int


def distil(
    backbone: Backbone, how: Distillation, *, checkpoint: training.Checkpoint | None, progress: Progress
) -> dict[int, PatchCnn]:
    """Teachers by patch size, trained side by side on the same patches: what the backbone says of them costs once.

    Raises:
        FitError: the features are not finite.
    """
    mean, std = _statistics(backbone, how, progress)
    layer = list(backbone.channels)[-1]
    with training.seeded(how.seed):
        teachers = {field: PatchCnn(field) for field in how.fields}
        decoders = {field: nn.Conv2d(DIM, backbone.channels[layer], 1) for field in how.fields}
    both = nn.ModuleList([*teachers.values(), *decoders.values()])
    learned.ready(both, backbone.device)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        cuts = Cuts(how.pictures, how.counted + step * how.batch, how.batch, generator)
        wanted = (_seen(backbone, cuts.resized(how.view_px)) - mean) / std
        losses = [field_loss(teachers[p], decoders[p], cuts, wanted, how, generator) for p in how.fields]
        return torch.stack(losses).sum()

    training.train(
        both,
        loss,
        steps=how.steps,
        optimiser=torch.optim.Adam(both.parameters(), how.rate(0), weight_decay=how.weight_decay),
        rate=how.rate,
        seed=how.seed,
        stage="teacher",
        checkpoint=checkpoint,
        progress=progress,
    )
    learned.freeze(both)
    return teachers


class Cuts:
    """Patches of natural pictures, of all zooms, in pixels of their own."""

    def __init__(self, pictures: NaturalPictures, first: int, count: int, generator: torch.Generator) -> None:
        chance = torch.rand(count, 3, generator=generator).tolist()
        places = range(first // PER_PICTURE, first // PER_PICTURE + -(-count // PER_PICTURE))
        crops = pictures.batch(places, (_CROP_PX, _CROP_PX)).float()
        self._crops = [crops[i // PER_PICTURE] for i in range(count)]
        self._boxes = []
        for share, x, y in chance:
            side = int(_CROP_PX / (_ZOOMS[0] + share * (_ZOOMS[1] - _ZOOMS[0])))
            self._boxes.append((int(x * (_CROP_PX - side)), int(y * (_CROP_PX - side)), side))

    def resized(self, side_px: int) -> Tensor:
        """(B, 3, side, side) of 0 to 255."""
        return self._cut(self._boxes, side_px)

    def shifted(self, side_px: int, generator: torch.Generator) -> Tensor:
        """The same, shifted by up to a quarter of their side, with noise of 0.1 of the range."""
        shares = (2 * torch.rand(len(self._boxes), 2, generator=generator) - 1).tolist()
        boxes = []
        for (x, y, side), (right, down) in zip(self._boxes, shares, strict=True):
            most, last = side * (side_px - 1) / (4 * side_px), _CROP_PX - side
            moved = (round(x + most * right), round(y + most * down))
            boxes.append((min(max(moved[0], 0), last), min(max(moved[1], 0), last), side))
        patches = self._cut(boxes, side_px)
        return (patches + 25.5 * torch.randn(patches.shape, generator=generator)).clamp_(0, 255)

    def _cut(self, boxes: list[tuple[int, int, int]], side_px: int) -> Tensor:
        patches = [
            functional.interpolate(
                crop[None, :, y : y + side, x : x + side], size=(side_px, side_px), mode="bilinear", antialias=True
            )
            for crop, (x, y, side) in zip(self._crops, boxes, strict=True)
        ]
        return torch.cat(patches)


def field_loss(
    teacher: PatchCnn,
    decoder: nn.Module,
    cuts: Cuts,
    wanted: Tensor,
    how: Distillation,
    generator: torch.Generator,
) -> Tensor:
    """The loss lk L_k + lm L_m + lc L_c of one patch size; `wanted` is (B, C)."""
    device = wanted.device
    described = teacher(learned.normalised(cuts.resized(teacher.field), device))
    decoded = decoder(described).flatten(1).float()
    flat = described.flatten(1).float()
    knowledge, metric, compact = how.weights
    loss: Tensor = knowledge * (decoded - wanted).square().sum(dim=1).mean() + compact * compactness(flat)
    if metric:
        near = teacher(learned.normalised(cuts.shifted(teacher.field, generator), device)).flatten(1).float()
        loss = loss + metric * triplet(flat, near, flat.roll(PER_PICTURE, dims=0), how.margin)
    return loss


def triplet(anchors: Tensor, near: Tensor, far: Tensor, margin: float) -> Tensor:
    """max(0, margin + d+ - d-), d- the smaller of the distances of `far` to the other two; all (B, D)."""
    to_far = torch.minimum((anchors - far).square().sum(dim=1), (near - far).square().sum(dim=1))
    return (margin + (anchors - near).square().sum(dim=1) - to_far).clamp(min=0).mean()


def compactness(descriptors: Tensor) -> Tensor:
    """Sum of the correlations of different dimensions over the batch (B, D)."""
    centred = descriptors - descriptors.mean(dim=0)
    unit = centred / (centred.square().sum(dim=0, keepdim=True) + 1e-8).sqrt()
    correlations = unit.T @ unit
    total: Tensor = correlations.sum() - correlations.diagonal().sum()
    return total


@torch.no_grad()
def _seen(backbone: Backbone, patches: Tensor) -> Tensor:
    """The deepest layer's means, (B, C)."""
    maps = list(backbone(patches.round().to(torch.uint8)).values())
    means: Tensor = maps[-1].float().mean(dim=(2, 3))
    return means


def _statistics(backbone: Backbone, how: Distillation, progress: Progress) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(how.seed)
    seen = []
    for at in range(0, how.counted, how.batch):
        progress("features", at, how.counted)
        cuts = Cuts(how.pictures, at, min(how.batch, how.counted - at), generator)
        seen.append(_seen(backbone, cuts.resized(how.view_px)))
    progress("features", how.counted, how.counted)
    mean, std = learned.statistics(seen)
    if not bool((mean.isfinite() & std.isfinite()).all()):
        raise FitError(f"the features of {backbone.spec.name} are not finite: are these the right weights?")
    return mean.to(backbone.device), std.to(backbone.device)
