"""What is fused says what it said before; what may not be fused is left."""

import copy

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

from pipeline.backbone import resolve
from pipeline.fused_layers import ConvRelu, _alike, fuse_layers


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.a(x))
        return torch.relu(self.c(self.relu(self.b(x))) + x)


class Shared(Net):
    def forward(self, x):
        return torch.relu(self.a(torch.relu(self.a(x))))


class Seen(Net):
    def forward(self, x):
        y = self.a(x)
        return torch.relu(y) + y


class Spread(Net):
    def forward(self, x):
        return torch.relu(self.a(x) + self.b(x).mean((2, 3), keepdim=True))


class Same(Net):
    def forward(self, x):
        y = self.a(x)
        return torch.relu(y + y)


class Number(Net):
    def forward(self, x):
        return torch.relu(self.a(x) + 0.5)


class Swapped(Net):
    def forward(self, x):
        return (x + self.a(x)).relu()


class Nested(Net):
    def forward(self, x):
        return torch.relu(torch.relu(self.a(x) + self.b(x)) + x)


class Twice(Net):
    def forward(self, x):
        return torch.relu(torch.relu(self.a(x)) + x)


class SumOfReluOfSum(Net):
    def forward(self, x):
        return torch.relu(torch.relu(self.a(x) + x))


class OverwrittenBefore(Net):
    def forward(self, x):
        x = self.d(x)
        y = self.a(x)
        return torch.relu(y + torch.relu_(x))


class OverwrittenByModule(Net):
    def forward(self, x):
        x = self.d(x)
        y = self.a(x)
        return torch.relu(y) + self.relu(x)


class OverwrittenOther(Net):
    def forward(self, x):
        x = self.d(x)
        y = x.add_(self.a(self.b(x)))
        return torch.relu(y) + x


class OverwrittenAfterTheSum(Net):
    def forward(self, x):
        other = self.b(x)
        y = self.a(x) + other
        other.add_(1)
        return torch.relu(y) + other


class OverwrittenThroughAView(Net):
    def forward(self, x):
        x = self.d(x)
        y = self.a(x)
        x.view(-1).mul_(2)
        return torch.relu(y) + x


@pytest.mark.parametrize(
    ("kind", "fused"),
    [
        (OverwrittenAfterTheSum, 0),
        (OverwrittenThroughAView, 0),
        (Net, 3),
        (Shared, 0),
        (Seen, 0),
        (Spread, 1),
        (Same, 0),
        (Number, 0),
        (Swapped, 1),
        (Nested, 1),
        (Twice, 1),
        (SumOfReluOfSum, 1),
        (OverwrittenBefore, 0),
        (OverwrittenByModule, 0),
        (OverwrittenOther, 0),
    ],
)
def test_fused_nets_say_the_same(kind, fused):
    torch.manual_seed(0)
    net = symbolic_trace(kind().eval())
    changed = copy.deepcopy(net)
    fuse_layers(changed)
    x = torch.randn(2, 4, 9, 7)
    before = x.clone()
    assert torch.equal(changed(x), net(x))
    assert torch.equal(x, before)
    assert sum(isinstance(each, ConvRelu) for each in changed.modules()) == fused


@pytest.mark.parametrize(("name", "left"), [("wide_resnet50_2", 3), ("goldline-s", 5)])
def test_of_a_backbone_shortcuts_and_heads_are_left(name, left):
    net = resolve(name, ("layer2", "layer3"), weights=None, random_weights=name != "goldline-s", factories=())._net
    changed = copy.deepcopy(net)
    fuse_layers(changed)
    convolutions = [each for each in changed.modules() if isinstance(each, nn.Conv2d)]
    fused = [each for each in changed.modules() if isinstance(each, ConvRelu)]
    assert len(convolutions) - len(fused) == left
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for layer, truth in net(x).items():
            assert torch.equal(changed(x)[layer], truth)


@pytest.mark.parametrize(
    ("shape", "alike"), [((2, 4, 5, 4), True), ((2, 4, 1, 1), False), ((2, 1, 5, 4), False), ((2, 4, 9, 7), False)]
)
def test_a_map_of_another_size_is_not_added_in_the_kernel(shape, alike):
    conv = nn.Conv2d(4, 4, 3, stride=2, padding=1)
    x = torch.zeros(2, 4, 9, 7)
    assert conv(x).shape == (2, 4, 5, 4)
    assert _alike(torch.zeros(shape), x, conv) == alike
    assert not _alike(torch.zeros(2, 4, 5, 4, dtype=torch.float16), x, conv)
