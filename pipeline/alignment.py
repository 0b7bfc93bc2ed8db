"""What FYD trains (Zheng et al. 2022): small spatial transformers, and a loss without negatives that fits maps.

A transformer's warp is a similarity: turn, scale and shift, each bounded. Unbounded it could lower every loss by
looking at an even corner of the picture, and it could carry a defect out of sight. Bounds are not enough: a warp that
all pictures share lowers the losses in the same way, and aligns nothing (measured: it ran into its bounds). So what
they share is taken off, the batch's mean in training and all good pictures' after (`settle`), as in congealing
(Learned-Miller, PAMI 2006).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, affine_grid, grid_sample, interpolate, normalize

from pipeline.backbone import Backbone
from pipeline.data import Images
from pipeline.errors import FitError
from pipeline.progress import Progress

LOOK = 64  # side of the picture that the image transformer looks at and is judged by
_BATCH = 16
_CODE = 8  # side of the map that the warp is read from
_WIDE = 256
_TURN = math.radians(15)
_SCALE = 0.15
_SHIFT = 0.2  # of half the picture's side
_GAIN_MIN = 0.05  # of the image loss


class Localiser(nn.Module):
    """(B, C, h, w) -> a warp (B, 2, 3) in coordinates from -1 to 1; the identity until it is trained."""

    common: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(64, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
        )  # fmt: skip
        self.tell = nn.Linear(16 * _CODE**2, 4)
        nn.init.zeros_(self.tell.weight)
        nn.init.zeros_(self.tell.bias)
        self.register_buffer("common", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        told = self.raw(x)
        told = torch.tanh(told - (told.mean(dim=0) if self.training else self.common))
        turn, scale = told[:, 0] * _TURN, torch.exp(told[:, 1] * _SCALE)
        height, width = x.shape[2:]
        cos, sin = scale * turn.cos(), scale * turn.sin()
        # The aspect keeps turns from shearing a picture that is not square.
        across = torch.stack([cos, -sin * (height / width), told[:, 2] * _SHIFT], dim=1)
        down = torch.stack([sin * (width / height), cos, told[:, 3] * _SHIFT], dim=1)
        return torch.stack([across, down], dim=1)

    def raw(self, x: Tensor) -> Tensor:
        """Turn, scale and shifts (B, 4), neither bounded nor less what pictures share."""
        told: Tensor = self.tell(adaptive_avg_pool2d(self.look(x), _CODE).flatten(1)).float()
        return told


class Fine(nn.Module):
    """Encoder and predictor of the non-contrastive loss: three 1x1 convolutions, and two."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*_mix(channels, _WIDE), *_mix(_WIDE, _WIDE), nn.Conv2d(_WIDE, _WIDE, 1))
        self.predictor = nn.Sequential(*_mix(_WIDE, _WIDE), nn.Conv2d(_WIDE, _WIDE, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Mean loss over all pairs of a batch (B, C, h, w), B at least 2."""
        z = self.encoder(maps)
        return apart(self.predictor(z), z.detach())


@torch.no_grad()
def settle(net: nn.Module, maps: Tensor) -> None:
    """Take what all these pictures or maps (N, C, h, w) share for what a localiser is to take off."""
    assert isinstance(net, Localiser)  # noqa: S101 - a ModuleDict has forgotten it
    net.eval()
    device = net.common.device
    told = [net.raw(part.to(device, torch.float32)) for part in torch.split(maps, _BATCH)]
    net.common.copy_(torch.cat(told).mean(dim=0))


@torch.no_grad()
def rest_unless_it_gains(net: nn.Module, pictures: Tensor) -> None:
    """Let a trained localiser leave pictures (N, 3, h, w) where they are if it hardly lowers their image loss.

    Less than 5 %: they lie alike already, or cannot be laid over one another, and to resample each a little
    differently only widens the Gaussians (measured on 60 pictures of cubes: loss 2 % lower, image AUROC 0.966 instead
    of 0.994; on bottle 19 % lower, and kept).
    """
    assert isinstance(net, Localiser)  # noqa: S101 - a ModuleDict has forgotten it
    parts = [part for part in torch.split(pictures, 2 * _BATCH) if len(part) > 1]  # one picture has no pair
    before = sum(float(image_loss(part)) for part in parts)
    warped = sum(float(image_loss(warp(part, net(part)))) for part in parts)
    if before - warped < _GAIN_MIN * before or not before:
        for each in (net.tell.weight, net.tell.bias, net.common):
            each.zero_()


def warp(x: Tensor, theta: Tensor, padding: str = "reflection") -> Tensor:
    """(B, C, h, w) as `theta` (B, 2, 3) has it, in float32; every position of the output looks where theta sends it."""
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 knows a place to a sixth of a pixel only
        grid = affine_grid(theta.float(), list(x.shape), align_corners=False)
        laid: Tensor = grid_sample(x.float(), grid, padding_mode=padding, align_corners=False)
    return laid


def after(first: Tensor, second: Tensor) -> Tensor:
    """The warp that does what `second` does to a picture warped by `first`: (B, 2, 3)."""
    return (_square(first) @ _square(second))[:, :2]


def undone(theta: Tensor) -> Tensor:
    """The warp back: (B, 2, 3)."""
    back: Tensor = torch.linalg.inv(_square(theta))
    return back[:, :2]


def image_loss(pictures: Tensor) -> Tensor:
    """Sum over pairs of the batch of the mean over positions of ||A_ij - B_ij||_2: L_ICA."""
    total = pictures.new_zeros(())
    for i in range(1, len(pictures)):
        difference = pictures[i:] - pictures[:-i]  # every pair once, by how far apart they stand
        total = total + (difference.square().sum(dim=1) + 1e-12).sqrt().mean(dim=(1, 2)).sum()
    return total


def apart(predicted: Tensor, encoded: Tensor) -> Tensor:
    """Mean over pairs A, B and positions of -1/2 [cos(p_A, z_B) + cos(p_B, z_A)]: L_FA, from (B, C, h, w).

    Sums come first: of p_A . z_B over all A, B it is sum(p) . sum(z), less those of A with itself.
    """
    count = len(predicted)
    p, z = normalize(predicted.float(), dim=1), normalize(encoded.float(), dim=1)
    all_pairs = (p.sum(dim=0) * z.sum(dim=0)).sum(dim=0)
    itself = (p * z).sum(dim=(0, 1))
    loss: Tensor = (itself - all_pairs).mean() / (count * (count - 1))
    return loss


@torch.no_grad()
def aligned(images: Tensor, nets: nn.ModuleDict, backbone: Backbone) -> tuple[list[Tensor], Tensor]:
    """The layers' aligned maps, and the warp (B, 2, 3) from the first layer's grid to the picture."""
    pixels, theta = images, torch.eye(2, 3, device=backbone.device).repeat(len(images), 1, 1)
    if "picture" in nets and len(images):
        placed = images.to(backbone.device)
        theta = nets["picture"](small(placed))
        pixels = warp(placed.float(), theta).round_().clamp_(0, 255).to(torch.uint8)
    maps = list(backbone(pixels).values())
    if "layer0" in nets and len(images):
        thetas = [nets[f"layer{i}"](each) for i, each in enumerate(maps)]
        maps = [warp(each, own) for each, own in zip(maps, thetas, strict=True)]
        theta = after(theta, thetas[0])
    return maps, theta


@torch.no_grad()
def features_of(images: Images, nets: nn.ModuleDict, backbone: Backbone, progress: Progress) -> list[Tensor]:
    """Maps of all pictures, aligned as pictures alone, by layer, float16.

    Raises:
        FitError: they are not finite in float16.
    """
    only = nn.ModuleDict({"picture": nets["picture"]} if "picture" in nets else {}).eval()
    kept: list[Tensor] = []
    for at in range(0, len(images), _BATCH):
        progress("features", at, len(images))
        maps, _ = aligned(images.pixels[at : at + _BATCH], only, backbone)
        kept = kept or [torch.empty(len(images), *each.shape[1:], dtype=torch.float16) for each in maps]
        for all_, each in zip(kept, maps, strict=True):
            all_[at : at + _BATCH] = each
    progress("features", len(images), len(images))
    if not all(bool(each.isfinite().all()) for each in kept):
        raise FitError(f"the features of {backbone.spec.name} are not finite in float16: are these its weights?")
    return kept


def small(images: Tensor) -> Tensor:
    """(B, 3, 64, 64) float32 in 0 to 1."""
    return interpolate(images.float() / 255, size=(LOOK, LOOK), mode="bilinear", antialias=True)


def _square(theta: Tensor) -> Tensor:
    last = theta.new_tensor([0.0, 0.0, 1.0]).expand(len(theta), 1, 3)
    return torch.cat([theta, last], dim=1)


def _mix(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU()]
