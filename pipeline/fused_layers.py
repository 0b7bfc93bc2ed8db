"""Convolution, sum and ReLU in one kernel on a GPU: a residual network's maps go through memory once, not thrice."""

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional

_RELUS = {torch.relu, torch.relu_, functional.relu, functional.relu_, "relu", "relu_"}
_OVERWRITING_SUMS = {operator.iadd, "add_"}
_SUMS = {operator.add, torch.add, "add", *_OVERWRITING_SUMS}
_IN_PLACE = {"iadd", "isub", "imul", "itruediv", "setitem"}
_VIEWS = {"view", "reshape", "permute", "transpose", "flatten", "squeeze", "unsqueeze", "chunk", "split", "getitem"}


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
        if _is_sum(before, modules) and len(before.users) == 1:
            conv, others = next(
                ((a, [b]) for a, b in (before.all_input_nodes, before.all_input_nodes[::-1]) if _fits(a, modules)),
                (before, []),
            )
        if not _fits(conv, modules):
            continue
        target = str(conv.target)
        modules[target] = ConvRelu(modules[target])
        net.set_submodule(target, modules[target])
        with net.graph.inserting_before(relu):
            both = net.graph.call_module(target, (conv.all_input_nodes[0], *others))
        relu.replace_all_uses_with(both)
        for done in [relu, *([before] if others else []), conv]:
            net.graph.erase_node(done)
    net.graph.lint()
    net.recompile()


def _is(node: Node, modules: dict[str, nn.Module], kind: type[nn.Module], functions: set[Any]) -> bool:
    """A call of such a module, or of one of these functions or methods, with tensors alone."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], kind)
    return _calls(node, functions)


def _calls(node: Node, functions: set[Any]) -> bool:
    plain = node.op in {"call_function", "call_method"} and node.target in functions
    return plain and not set(node.kwargs) - {"inplace"} and len(node.args) == len(node.all_input_nodes)


def _is_sum(node: Node, modules: dict[str, nn.Module]) -> bool:
    """A sum of two maps; not one that overwrites a map which others see as well, nor one of what others overwrite."""
    if not _calls(node, _SUMS) or len(node.all_input_nodes) != 2:
        return False
    overwritten = any(
        _overwrites(user, each, modules) for each in node.all_input_nodes for user in {*each.users} - {node}
    )
    return not overwritten and (node.target not in _OVERWRITING_SUMS or len(node.all_input_nodes[0].users) == 1)


def _fits(node: Node, modules: dict[str, nn.Module]) -> bool:
    """A convolution as cuDNN fuses them, called here alone, used once, of a map that nobody overwrites."""
    conv = modules.get(str(node.target)) if node.op == "call_module" else None
    once = len(node.users) == 1 and sum(each.target == node.target for each in node.graph.nodes) == 1
    if type(conv) is not nn.Conv2d or not once or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    seen = node.all_input_nodes[0]
    return not any(_overwrites(user, seen, modules) for user in seen.users)


def _overwrites(user: Node, node: Node, modules: dict[str, nn.Module]) -> bool:
    """Whether this user of a map may write to it, or to a view of it: what is computed later would see that."""
    if user.op == "call_module":
        return bool(getattr(modules[str(user.target)], "inplace", False))
    name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
    writes = name.endswith("_") and not name.endswith("__") and node in user.args[:1]
    told = user.kwargs.get("inplace") is True or any(each is True for each in user.args)
    return user.op != "output" and (writes or told or name in _IN_PLACE or name in _VIEWS)


def _alike(other: Tensor, x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether `other` is as large as what the convolution makes of x: a sum may also spread a smaller one."""
    assert not isinstance(conv.padding, str)  # noqa: S101 - such a one is not fused
    sides = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)
    )
    return other.shape == (x.shape[0], conv.out_channels, *sides) and other.dtype == x.dtype
