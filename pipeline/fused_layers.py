"""Convolution, sum and ReLU in one kernel on a GPU: a residual network's maps go through memory once, not thrice."""

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional

_RELUS = {torch.relu, torch.relu_, functional.relu, functional.relu_, "relu", "relu_"}
_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}


class ConvRelu(nn.Module):
    """relu(conv(x)), or relu(conv(x) + other)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """As the class says; (B, C, H, W) each."""
        layer = self.conv
        settings: Any = (layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        if x.device.type == "cuda" and other is None:
            return torch.cudnn_convolution_relu(x, layer.weight, *settings)
        if x.device.type == "cuda" and other is not None and _alike(other, x, layer):
            other = other.contiguous(memory_format=torch.channels_last)
            return torch.cudnn_convolution_add_relu(x, layer.weight, other, 1.0, *settings)
        made = layer(x)
        return functional.relu(made if other is None else made + other)


def fuse_layers(net: GraphModule) -> None:
    """Put a `ConvRelu` for each convolution that only a ReLU follows, or only a sum and a ReLU.

    Args:
        net: traced, its batch norms folded into the convolutions already; changed in place.
    """
    modules = dict(net.named_modules())
    for relu in list(net.graph.nodes):
        if not _is(relu, modules, nn.ReLU, _RELUS) or len(relu.all_input_nodes) != 1:
            continue
        before = relu.all_input_nodes[0]
        conv, others = before, list[Node]()
        if _is(before, modules, nn.Identity, _SUMS) and len(before.users) == 1 and len(before.all_input_nodes) == 2:
            conv, others = next(
                ((a, [b]) for a, b in (before.all_input_nodes, before.all_input_nodes[::-1]) if _fits(a, modules)),
                (before, []),
            )
        if not _fits(conv, modules):
            continue
        net.set_submodule(str(conv.target), ConvRelu(modules[str(conv.target)]))
        with net.graph.inserting_before(relu):
            both = net.graph.call_module(str(conv.target), (conv.all_input_nodes[0], *others))
        relu.replace_all_uses_with(both)
        for done in [relu, *([before] if others else []), conv]:
            net.graph.erase_node(done)
    net.graph.lint()
    net.recompile()


def _is(node: Node, modules: dict[str, nn.Module], kind: type[nn.Module], functions: set[Any]) -> bool:
    """A call of such a module, or of one of these functions or methods, with tensors alone."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], kind)
    plain = node.op in {"call_function", "call_method"} and node.target in functions
    return plain and not set(node.kwargs) - {"inplace"} and len(node.args) == len(node.all_input_nodes)


def _fits(node: Node, modules: dict[str, nn.Module]) -> bool:
    """A convolution as cuDNN fuses them, called here alone and used once."""
    conv = modules.get(str(node.target)) if node.op == "call_module" else None
    once = len(node.users) == 1 and sum(each.target == node.target for each in node.graph.nodes) == 1
    return type(conv) is nn.Conv2d and once and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _alike(other: Tensor, x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether `other` is as large as what the convolution makes of x: a sum may also spread a smaller one."""
    return other.dim() == 4 and other.shape[:2] == (x.shape[0], conv.out_channels) and 1 not in other.shape[2:]
