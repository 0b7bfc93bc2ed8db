"""Pictures small enough to fit every method in seconds, and settings that train as briefly."""

import torch
from torch import Tensor

from pipeline import methods

SIZE = 64
BOX = (slice(36, 54), slice(8, 26))  # of the defect: rows, columns
FEWEST = 2  # no method may ask for more good pictures than this suite gives it

# What a method's fit needs to be over in seconds here; beside its quick settings, where it has some.
TINY: dict[str, dict[str, object]] = {
    "efficientad": {
        "dim": 32,
        "teacher_px": 64,
        "teacher_steps": 6,
        "teacher_batch": 1,
        "statistics": 4,
        "steps": 12,
        "crop_px": 40,
    },
    "deep_svdd": {"pretrain_epochs": 3, "epochs": 12, "batch": 6},
    "fyd": {"dim": 40, "epochs": 2, "batch": 6},
    "mkd": {"side": 64, "epochs": 25, "batch": 6},
    "padim": {"dim": 40},
    "patchcore": {"coreset": 0.1},
    "students": {"teacher_steps": 4, "teacher_batch": 8, "statistics": 8, "students": 2, "steps": 8, "crop_px": 32},
}


def config(name: str) -> object:
    return methods.make_config(name, TINY.get(name, {}), quick=True)


def good(n: int, seed: int = 0) -> Tensor:
    """Stripes under changing light, with a little noise: (n, 3, 64, 64) uint8."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.sin(torch.arange(SIZE) / 4).view(1, 1, 1, SIZE)
    rows = torch.sin(torch.arange(SIZE) / 9).view(1, 1, SIZE, 1)
    light = 1 + 0.05 * torch.randn(n, 1, 1, 1, generator=generator)
    noise = 5 * torch.randn(n, 3, SIZE, SIZE, generator=generator)
    return ((128 + 50 * columns + 30 * rows) * light + noise).clamp(0, 255).to(torch.uint8)


def bad(n: int, seed: int = 99) -> Tensor:
    """The same with a scratched red patch in BOX."""
    pictures = good(n, seed)
    generator = torch.Generator().manual_seed(seed)
    height, width = (part.stop - part.start for part in BOX)
    patch = torch.tensor([235.0, 20.0, 20.0]).view(1, 3, 1, 1) + 15 * torch.randn(
        n, 3, height, width, generator=generator
    )
    patch[..., 8:10, :] = 250
    pictures[:, :, BOX[0], BOX[1]] = patch.clamp(0, 255).to(torch.uint8)
    return pictures
