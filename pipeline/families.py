"""A teacher and its students of one patch size (Bergmann et al. 2020): training, and what they differ by."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline import learned, patch_cnn, training
from pipeline.patch_cnn import PatchCnn
from pipeline.progress import Progress, silent

_LEAST_SPREAD = 1e-6  # of a map over good pictures


class Family(nn.Module):
    """A teacher and its students, all of one patch size."""

    def __init__(self, field: int, students: int) -> None:
        super().__init__()
        self.field = field
        self.teacher = PatchCnn(field)
        self.students = nn.ModuleList(PatchCnn(field) for _ in range(students))

    def forward(self, images: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """Normalised (B, 3, H, W) -> squared error and variance, (B, h, w) each."""
        x = patch_cnn.padded(images, self.field, stride)
        return error_and_variance(self.teacher(x, stride), torch.stack([s(x, stride) for s in self.students]))


def error_and_variance(teacher: Tensor, students: Tensor) -> tuple[Tensor, Tensor]:
    """||mean of S_i - T||^2, and mean of ||S_i||^2 - ||mean of S_i||^2, as the mean of ||S_i - mean||^2.

    Args:
        teacher: (B, D, h, w).
        students: (M, B, D, h, w).
    """
    mean = students.mean(dim=0)
    return (mean - teacher).square().sum(dim=1), (students - mean).square().sum(dim=2).mean(dim=0)


@torch.inference_mode()
def maps_of(nets: nn.Module, images: Tensor, stride: int, device: torch.device, progress: Progress = silent) -> Tensor:
    """(B, F, 2, h, w): by patch size, error and variance. One picture at a time: memory, and equal scores alone."""
    assert isinstance(nets, nn.ModuleList)  # noqa: S101 - made here
    size = (int(images.shape[2]), int(images.shape[3]))
    maps = torch.empty(len(images), len(nets), 2, *patch_cnn.grid_of(size, stride), device=device)
    for place in range(len(images)):
        progress("scales", place, len(images))
        pixels = learned.normalised(images[place : place + 1], device)
        for each, family in enumerate(nets):
            maps[place, each, 0], maps[place, each, 1] = (values[0] for values in family(pixels, stride))
    progress("scales", len(images), len(images))
    return maps


def scales_of(maps: Tensor, by_position: bool) -> Tensor:
    """Means and deviations of the maps (N, F, 2, h, w) of held-out goods, as `StudentsDetector.scales`.

    By position the variances count with one picture more, of what places vary by on average.
    """
    values = maps.double()
    everywhere = (0, 3, 4)
    if not by_position:
        spread = values.std(dim=everywhere)
        means = values.mean(dim=everywhere)
    else:
        count = len(values)
        means, at_each = values.mean(dim=0), values.var(dim=0, unbiased=False)
        usual = at_each.mean(dim=(2, 3)) if count > 1 else values.var(dim=everywhere, unbiased=False)
        spread = ((count * at_each + usual[..., None, None]) / (count + 1)).sqrt()
    return torch.stack([means, spread.clamp(min=_LEAST_SPREAD)], dim=2).float()


def normalise(family: Family, images: Tensor, stride: int, progress: Progress) -> None:
    """Mean 0 and deviation 1 in each of the teacher's dimensions over the good pictures."""
    device = family.teacher.last.weight.device

    def descriptors() -> Iterator[Tensor]:
        for place in range(len(images)):
            progress(f"outputs {family.field}", place, len(images))
            pixels = learned.normalised(images[place : place + 1], device)
            with torch.no_grad(), training.half(str(device)):
                yield family.teacher(patch_cnn.padded(pixels, family.field, stride), stride)
        progress(f"outputs {family.field}", len(images), len(images))

    mean, std = learned.statistics(descriptors())
    learned.standardise(family.teacher.last, mean, std)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schooling:
    """How students are trained.

    Attributes:
        images: good pictures, (N, 3, H, W) uint8.
        crop_px: side of what they see of one; 0 for all of it.
        stride: px between patches.
        rate: learning rate over the training.
    """

    images: Tensor
    crop_px: int
    stride: int
    steps: int
    rate: training.Rate
    weight_decay: float
    seed: int


def train(family: Family, how: Schooling, *, checkpoint: training.Checkpoint | None, progress: Progress) -> None:
    """Train the students; the teacher is frozen, and all are left in evaluation mode."""
    learned.freeze(family.teacher)
    training.train(
        family.students,
        lambda _, generator: imitation_loss(family, how, generator),
        steps=how.steps,
        optimiser=torch.optim.Adam(family.students.parameters(), how.rate(0), weight_decay=how.weight_decay),
        rate=how.rate,
        seed=how.seed,
        stage=f"students {family.field}",
        checkpoint=checkpoint,
        progress=progress,
    )
    learned.freeze(family)


def imitation_loss(family: Family, how: Schooling, generator: torch.Generator) -> Tensor:
    """Mean over positions of ||S_i - T||^2, averaged over the students, of one good picture."""
    place = int(torch.randint(len(how.images), (1,), generator=generator))
    device = family.teacher.last.weight.device
    x = patch_cnn.padded(learned.normalised(how.images[place : place + 1], device), family.field, how.stride)
    if how.crop_px:
        rows, columns = (_window(side, how.crop_px + family.field - 1, generator) for side in x.shape[2:])
        x = x[..., rows, columns]
    with torch.no_grad():
        wanted = family.teacher(x, how.stride).float()
    losses = [(student(x, how.stride).float() - wanted).square().sum(dim=1).mean() for student in family.students]
    return torch.stack(losses).mean()


def _window(side: int, length: int, generator: torch.Generator) -> slice:
    length = min(side, length)
    first = int(torch.randint(side - length + 1, (1,), generator=generator))
    return slice(first, first + length)
