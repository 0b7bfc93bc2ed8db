"""Our own compact backbone: a student of a large network, made for CPUs.

Plain 3x3 convolutions with batch normalisation that folds away. `layer2` (stride 8) and `layer3` (stride 16) imitate
the leading principal components of the teacher's layers of those strides, so distances between its features imitate
distances between the teacher's.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import relu

NAME = "goldline-s"
LAYERS = ("layer2", "layer3")
CHANNELS = (128, 256)
WIDTHS = (32, 64, 128, 256)
SHIPPED = Path(__file__).parent / "weights" / f"{NAME}.safetensors"


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        changes = stride != 1 or c_in != c_out
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class GoldlineS(nn.Module):
    """(B, 3, H, W) -> {"layer2": (B, 128, H/8, W/8), "layer3": (B, 256, H/16, W/16)}.

    2.8 million parameters and 1.2 G multiply-adds at 224x224, with the widths that it ships with.
    """

    def __init__(self, widths: tuple[int, int, int, int] = WIDTHS) -> None:
        super().__init__()
        stem, one, two, three = widths
        self.stem = nn.Conv2d(3, stem, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(stem)
        self.stage1 = nn.Sequential(_Block(stem, one, 2), _Block(one, one, 1))
        self.stage2 = nn.Sequential(_Block(one, two, 2), _Block(two, two, 1))
        self.stage3 = nn.Sequential(_Block(two, three, 2), _Block(three, three, 1))
        self.head2 = nn.Conv2d(two, CHANNELS[0], 1)
        self.head3 = nn.Conv2d(three, CHANNELS[1], 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """As the class says; H and W are best multiples of 16."""
        x = self.stage1(relu(self.bn(self.stem(x))))
        two = self.stage2(x)
        return {"layer2": self.head2(two), "layer3": self.head3(self.stage3(two))}


def widths_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int, int]:
    """The widths of the network that has tensors of these shapes; those it ships with, where they do not say."""
    names = ("stem.weight", "stage1.0.conv1.weight", "stage2.0.conv1.weight", "stage3.0.conv1.weight")
    stem, one, two, three = (
        shapes[name][0] if shapes.get(name) else usual for name, usual in zip(names, WIDTHS, strict=True)
    )
    return stem, one, two, three
