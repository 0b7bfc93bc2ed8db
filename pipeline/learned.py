"""What methods with networks of their own share: pixels in, a split of the goods, weights to tensors and back."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pipeline import fitted
from pipeline.backbone_spec import IMAGENET_MEAN, IMAGENET_STD
from pipeline.data import Artifact, Images
from pipeline.errors import ArtifactError, FitError

_FEWEST_ORIGINALS = 2
_LEAST_STD = 1e-6  # a channel that never changes stays finite


def normalised(images: Tensor, device: torch.device) -> Tensor:
    """(B, 3, H, W), uint8 or of 0 to 255 -> float32 with ImageNet's mean and deviation, on `device`."""
    mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1)
    pixels = images.to(device).to(torch.float32, memory_format=torch.channels_last)
    return (pixels / 255 - mean) / std


def ready(net: nn.Module, device: torch.device) -> nn.Module:
    """The network on its device, in the layout that its convolutions are fastest in."""
    placed: nn.Module = net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def initialise(net: nn.Module, slope: float = 0.0) -> None:
    """He's weights (2015), zero biases: signals keep their size however deep, so that a short training gets somewhere.

    Args:
        net: its convolutions are set.
        slope: of the leaky rectifiers between them.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=slope)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def split(images: Images, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Places of pictures to train on, and of those of at least one original to hold out.

    Turns of one picture stay together: what was trained on another turn of it would not be held out.

    Raises:
        FitError: fewer than two originals.
    """
    count = len(originals_of(images))
    if count < _FEWEST_ORIGINALS:
        raise FitError(f"at least {_FEWEST_ORIGINALS} good pictures are needed beside turns of them, not {count}")
    return hold_out(images, min(count - 1, max(1, round(count * share))), seed)


def originals_of(images: Images) -> list[int]:
    """Each original once, ascending; places where each picture is its own."""
    return sorted(set(images.originals)) if images.originals else list(range(len(images)))


def hold_out(images: Images, held: int, seed: int) -> tuple[Tensor, Tensor]:
    """Places of the pictures that are kept, and of all those of `held` originals drawn at random; both ascending."""
    originals = originals_of(images)
    order = torch.randperm(len(originals), generator=torch.Generator().manual_seed(seed))
    out = {originals[place] for place in order[:held].tolist()}
    is_out = torch.tensor([each in out for each in images.originals or originals])
    return (~is_out).nonzero()[:, 0], is_out.nonzero()[:, 0]


def statistics(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of each channel of maps or rows (B, D, ...), which come batch by batch."""
    total, square, count = torch.zeros(1), torch.zeros(1), 0
    for batch in batches:
        rows = batch.detach().transpose(0, 1).flatten(1).double().cpu()
        total, square, count = total + rows.sum(1), square + rows.square().sum(1), count + rows.shape[1]
    mean = total / count
    variance = (square / count - mean.square()).clamp_(min=_LEAST_STD**2)
    return mean.float(), variance.sqrt().float()


@torch.no_grad()
def standardise(last: nn.Conv2d, mean: Tensor, std: Tensor) -> None:
    """Fold (y - mean) / std, by channel, into the convolution that gives y."""
    mean, std = mean.to(last.weight.device), std.to(last.weight.device)
    assert last.bias is not None  # noqa: S101 - ours have one
    last.weight.div_(std.view(-1, 1, 1, 1))
    last.bias.sub_(mean).div_(std)


def to_tensors(nets: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Weights of all networks by `network.parameter`, copied, on the CPU."""
    return {
        f"{name}.{key}": tensor.detach().to("cpu", copy=True).contiguous()
        for name, net in nets.items()
        for key, tensor in net.state_dict().items()
    }


def restore(artifact: Artifact, nets: Mapping[str, nn.Module], others: Mapping[str, tuple[int, ...]]) -> list[Tensor]:
    """Put an artifact's weights into networks of the right shapes.

    Args:
        artifact: whose tensors are those of `to_tensors` and `others`, and no more.
        nets: get their weights; left in evaluation mode, frozen. Made on the device "meta" they take no memory before
            all shapes are checked.
        others: shapes of what else the artifact holds, float32.

    Returns:
        `others`, in their order.

    Raises:
        ArtifactError: a tensor is missing, foreign, of another shape or type, or not finite.
    """
    wanted = {f"{name}.{key}": tensor for name, net in nets.items() for key, tensor in net.state_dict().items()}
    read = dict(zip([*wanted, *others], fitted.tensors(artifact, [*wanted, *others]), strict=True))
    for name, tensor in wanted.items():
        fitted.check_shape(name, read[name], tuple(tensor.shape), tensor.dtype)
    for name, shape in others.items():
        fitted.check_shape(name, read[name], shape, torch.float32)
    for name, net in nets.items():
        net.load_state_dict({key: read[f"{name}.{key}"].clone() for key in net.state_dict()}, assign=True)
        freeze(net)
    return [read[name] for name in others]


def freeze(net: nn.Module) -> nn.Module:
    """In evaluation mode, without gradients."""
    return net.eval().requires_grad_(requires_grad=False)


def check_increasing(name: str, values: Tensor) -> None:
    """Refuse rows (..., 2) whose second value is not above the first.

    Raises:
        ArtifactError: one is not.
    """
    if not bool((values[..., 1] > values[..., 0]).all()):
        raise ArtifactError(f"{name} must increase, not {values.tolist()}")
