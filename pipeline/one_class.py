"""What Deep SVDD trains (Ruff et al. 2018): networks without biases, the centre, and both objectives."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu, max_pool2d

CODE = 128  # length of an embedding
_WIDTHS = (3, 32, 64, 128)
_EPS = 1e-4  # of batch norms without weights
_LEAST_CENTRE = 0.1  # a centre's coordinate nearer to 0 could be met by zero weights
_RADIUS_EPOCH = 10  # from here on a soft boundary has a radius


class Encoder(nn.Module):
    """(B, 3, side, side) -> (B, 128).

    No biases, and no weights in norms: either could send everything to the centre.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 5, padding=2, bias=False) for a, b in pairwise(_WIDTHS))
        self.norms = nn.ModuleList(_norm(b) for b in _WIDTHS[1:])
        self.code = nn.Linear(_WIDTHS[-1] * (side // 8) ** 2, CODE, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = max_pool2d(leaky_relu(norm(conv(x))), 2)
        out: Tensor = self.code(x.flatten(1))
        return out


class Decoder(nn.Module):
    """(B, 128) -> (B, 3, side, side), for the pretraining alone."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.grid = side // 8
        self.start = nn.Linear(CODE, _WIDTHS[-1] * self.grid**2, bias=False)
        back = _WIDTHS[::-1]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 5, padding=2, bias=False) for a, b in pairwise(back))
        self.norms = nn.ModuleList(_norm(b) for b in back[:-1])

    def forward(self, code: Tensor) -> Tensor:
        """As the class says."""
        x: Tensor = self.start(code).view(-1, _WIDTHS[-1], self.grid, self.grid)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(interpolate(leaky_relu(norm(x)), scale_factor=2.0, mode="nearest"))
        return x.sigmoid()


class Objective(nn.Module):
    """Both of the paper's objectives (equations 3 and 4), without their weight decay, which is the optimiser's."""

    centre: Tensor
    radius: Tensor

    def __init__(self, encoder: Encoder, centre: Tensor, objective: str, nu: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("centre", centre)
        self.register_buffer("radius", centre.new_zeros(()))
        self._soft = objective == "soft-boundary"
        self._nu = nu

    def forward(self, epoch: int, pictures: Tensor) -> Tensor:
        """Of a batch, in an epoch counted from 0; renews the radius of a soft boundary."""
        squares = squared(self.encoder(pictures).float(), self.centre)
        if not self._soft:
            return squares.mean()
        value = soft_boundary(squares, self.radius, self._nu)
        if epoch >= _RADIUS_EPOCH:
            self.renew(squares.detach())
        return value

    def renew(self, squares: Tensor) -> None:
        """The radius that a share nu of these distances exceeds."""
        self.radius.copy_(squares.sqrt().quantile(1 - self._nu))


def soft_boundary(squares: Tensor, radius: Tensor, nu: float) -> Tensor:
    """R^2 + 1/nu mean max(0, ||phi - c||^2 - R^2), from squared distances (B,)."""
    return radius.square() + (squares - radius.square()).clamp(min=0).mean() / nu


def centre_of(embeddings: Tensor) -> Tensor:
    """Their mean, no coordinate nearer to zero than 0.1: (128,)."""
    mean = embeddings.mean(dim=0)
    away = torch.where(mean < 0, -_LEAST_CENTRE, _LEAST_CENTRE)
    return torch.where(mean.abs() < _LEAST_CENTRE, away, mean)


def squared(embeddings: Tensor, centre: Tensor) -> Tensor:
    """Squared distances from the centre: (B,)."""
    return (embeddings - centre).square().sum(dim=1)


def reconstruction(encoder: Encoder, decoder: Decoder, pictures: Tensor) -> Tensor:
    """Squared error of a picture made from its code, mean over pictures."""
    made: Tensor = decoder(encoder(pictures))
    return (made.float() - pictures).square().flatten(1).sum(dim=1).mean()


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPS, affine=False)
