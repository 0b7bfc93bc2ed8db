"""What EfficientAD trains (Batzner et al. 2024, section 3): a student and an autoencoder that imitate a teacher."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline import learned, pdn, training
from pipeline.data import Size
from pipeline.natural import NaturalPictures
from pipeline.progress import Progress

STRIDE = 4  # of a PDN
_WIDE = 64  # channels of the autoencoder
_STEPS_DOWN = 5
_JITTER = 0.2


class Autoencoder(nn.Module):
    """Sees the picture as a whole: one code of 64 values, from which it makes the teacher's outputs.

    At 256 px the sizes are the paper's: 8 x 8 before the code; 3, 8, 15, 32, 63, 127, 56 after it. At other sizes they
    scale, and the kernel that makes the code is as large as what it sees, so that there always is one code.
    """

    def __init__(self, size: Size, outputs: int) -> None:
        super().__init__()
        widths = (3, 32, 32, _WIDE, _WIDE, _WIDE)
        down = [nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths)]
        height, width = (side // 2**_STEPS_DOWN for side in size)
        self.encoder = nn.Sequential(*(part for conv in down for part in (conv, nn.ReLU())))
        self.code = nn.Conv2d(_WIDE, _WIDE, (height, width))
        self.sizes = [*decoder_sizes(size), pdn.grid_of(size)]
        self.decoder = nn.ModuleList(nn.Conv2d(_WIDE, _WIDE, 4, padding=2) for _ in self.sizes[1:])
        self.last = nn.Sequential(
            nn.Conv2d(_WIDE, _WIDE, 3, padding=1), nn.ReLU(), nn.Conv2d(_WIDE, outputs, 3, padding=1)
        )
        self.dropout = nn.Dropout(0.2)
        learned.initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, outputs, h, w)."""
        x = self.code(self.encoder(x))
        for size, conv in zip(self.sizes, self.decoder, strict=False):
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
            x = self.dropout(functional.relu(conv(x)))
        x = functional.interpolate(x, size=self.sizes[-1], mode="bilinear", align_corners=False)
        out: Tensor = self.last(x)
        return out


def decoder_sizes(size: Size) -> list[Size]:
    """Sizes that the autoencoder's decoder upsamples to before the last: 3, 8, 15, 32, 63, 127 for 256 px."""
    parts = ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1))
    height, width = size
    return [(max(1, height // part - less), max(1, width // part - less)) for part, less in parts]


class Nets(nn.Module):
    """The three networks, D and 2 D and D outputs wide."""

    def __init__(self, kind: str, size: Size, dim: int) -> None:
        super().__init__()
        self.teacher = pdn.pdn(kind, dim)
        self.student = pdn.pdn(kind, 2 * dim)
        self.autoencoder = Autoencoder(size, dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised (B, 3, H, W) -> (B, D, h, w), (B, 2 D, h, w), (B, D, h, w)."""
        return self.teacher(images), self.student(images), self.autoencoder(images)


def hard_loss(squares: Tensor, quantile: float) -> Tensor:
    """Mean of the values at or above a quantile (linear between ranks): found by rank, without sorting them all."""
    count = squares.numel()
    kept = count - math.ceil(quantile * (count - 1) - 1e-9)
    return squares.flatten().topk(kept, sorted=False).values.mean()


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """One of brightness, contrast and saturation changed by a factor of 0.8 to 1.2.

    Args:
        images: (B, 3, H, W) of 0 to 255.
        generator: of which change, and how much.

    Returns:
        (B, 3, H, W) float32 of 0 to 255.
    """
    pixels = images.float()
    factor = 1 + _JITTER * (2 * float(torch.rand(1, generator=generator)) - 1)
    grey = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    origins = (torch.zeros_like(grey), grey.mean(dim=(2, 3), keepdim=True), grey)
    origin = origins[int(torch.randint(3, (1,), generator=generator))]
    return (origin + factor * (pixels - origin)).clamp_(0, 255)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imitation:
    """How the student and the autoencoder are trained.

    Attributes:
        images: good pictures, (N, 3, H, W) uint8.
        natural: where the student is asked for nothing.
        crop_px: side of what the losses and the student see, a multiple of 4; 0 for whole pictures. The autoencoder
            always sees the whole.
        hard: quantile of the hard features.
        rate: learning rate over the training.
    """

    images: Tensor
    natural: NaturalPictures
    crop_px: int
    hard: float
    steps: int
    rate: training.Rate
    weight_decay: float
    seed: int


def train(nets: Nets, how: Imitation, *, checkpoint: training.Checkpoint | None, progress: Progress) -> None:
    """Train the student and the autoencoder; the teacher is frozen, and all are left in evaluation mode."""
    learned.freeze(nets.teacher)
    learners = nn.ModuleDict({"student": nets.student, "autoencoder": nets.autoencoder})
    training.train(
        learners,
        lambda step, generator: imitation_loss(nets, how, step, generator),
        steps=how.steps,
        optimiser=torch.optim.Adam(learners.parameters(), how.rate(0), weight_decay=how.weight_decay),
        rate=how.rate,
        seed=how.seed,
        stage="student",
        checkpoint=checkpoint,
        progress=progress,
    )
    learned.freeze(nets)


def imitation_loss(nets: Nets, how: Imitation, step: int, generator: torch.Generator) -> Tensor:
    """The three losses of one good picture x, its changed copy x' and a natural picture P, summed.

    Hard features: (T(x) - S(x))^2 at or above the quantile; S(P)^2; (T(x') - A(x'))^2; (A(x') - S'(x'))^2.
    """
    device = next(nets.student.parameters()).device
    place = int(torch.randint(len(how.images), (1,), generator=generator))
    image = how.images[place : place + 1]
    changed = jitter(image, generator)
    rows, columns, cells = _window(image.shape[2:], how.crop_px, generator)
    size = (rows.stop - rows.start, columns.stop - columns.start)
    small = torch.cat([image[..., rows, columns].float(), changed[..., rows, columns]])
    whole = learned.normalised(changed, device)
    seen = learned.normalised(torch.cat([small, how.natural.batch([step], size).float()]), device)
    with torch.no_grad():
        taught: Tensor = nets.teacher(seen[:2]).float()
    student: Tensor = nets.student(seen).float()
    with training.seeded(int(torch.randint(2**62, (1,), generator=generator))):  # dropout has no generator of its own
        autoencoder: Tensor = nets.autoencoder(whole).float()[(..., *cells)]
    dim = taught.shape[1]
    hard = hard_loss((taught[:1] - student[:1, :dim]).square(), how.hard)
    penalty = student[2:, :dim].square().mean()
    from_whole = functional.mse_loss(autoencoder, taught[1:])
    between = functional.mse_loss(student[1:2, dim:], autoencoder)
    return hard + penalty + from_whole + between


def _window(size: torch.Size, crop_px: int, generator: torch.Generator) -> tuple[slice, slice, tuple[slice, slice]]:
    """Rows and columns of a random crop, and the cells of the PDN's grid that it gives."""
    pixels, cells = [], []
    for side, grid in zip(size, pdn.grid_of((size[0], size[1])), strict=True):
        length, count = side, grid
        if 0 < crop_px < side:
            length, count = crop_px, pdn.grid_of((crop_px, crop_px))[0]
        first = int(torch.randint(grid - count + 1, (1,), generator=generator))
        pixels.append(slice(first * STRIDE, first * STRIDE + length))
        cells.append(slice(first, first + count))
    return pixels[0], pixels[1], (cells[0], cells[1])
