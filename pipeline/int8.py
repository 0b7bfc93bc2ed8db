"""Convolutions in 8 bits for OpenVINO: what good pictures show of each one's input says how finely it is rounded.

Weights are rounded symmetrically channel by channel, inputs to 256 steps between the least and the largest value seen;
sums are exact, and everything between convolutions stays float32. Which convolutions there are, and in which order, is
the graph's own: a model keeps the ranges, and they are as good as the network whose digest it keeps as well.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError

_STEPS, _WEIGHT_STEPS = 256, 255  # of inputs; of weights, as many on either side of zero
_LEAST = 1e-6  # of a range: an input that is always zero
_KINDS = {"Convolution": 1, "GroupConvolution": 2}  # and how many axes of its weights name an output


def ranges_of(openvino: Any, graph: Any, images: Tensor) -> tuple[float, ...]:
    """The least and the largest value that each convolution's input has over these pictures, zero within.

    Args:
        openvino: the package.
        graph: a network of one picture (1, 3, H, W) uint8; it is changed.
        images: (B, 3, H, W) uint8, good pictures.

    Returns:
        Least and largest by turns, convolution by convolution.
    """
    first = len(graph.outputs)
    inputs = [conv.input_value(0) for conv in _convolutions(graph)]
    graph.add_results([openvino.opset13.result(each) for each in inputs])
    request = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    seen = np.zeros((len(inputs), 2))
    for image in torch.split(images, 1):
        request.infer({0: image.numpy()})
        for place in range(len(inputs)):
            values = request.get_output_tensor(first + place).data
            seen[place] = min(seen[place, 0], values.min()), max(seen[place, 1], values.max(), _LEAST)
    return tuple(float(value) for value in seen.flatten())


def quantise(openvino: Any, graph: Any, ranges: tuple[float, ...]) -> None:
    """Let each convolution multiply integers.

    Args:
        openvino: the package.
        graph: as in `ranges_of`; it is changed.
        ranges: what that returned for the same network.

    Raises:
        ConfigError: they are of another network.
    """
    convolutions = _convolutions(graph)
    if len(ranges) != 2 * len(convolutions):
        raise ConfigError(
            f"the model has 8-bit ranges of {len(ranges) // 2} convolutions, and its network {len(convolutions)} here: "
            "fit anew, or with another --engine"
        )
    opset = openvino.opset13
    for conv, low, high in zip(convolutions, ranges[::2], ranges[1::2], strict=True):
        asked = opset.fake_quantize(conv.input_value(0), *_constants(opset, low, high), _STEPS)
        conv.input(0).replace_source_output(asked.output(0))
        weights = conv.input_value(1)
        values = weights.get_node().data
        axes = tuple(range(_KINDS[conv.get_type_name()], values.ndim))
        most = np.maximum(np.abs(values).max(axis=axes, keepdims=True), _LEAST).astype(np.float32)
        rounded = opset.fake_quantize(weights, *_constants(opset, -most, most), _WEIGHT_STEPS)
        conv.input(1).replace_source_output(rounded.output(0))
    graph.validate_nodes_and_infer_types()


def _convolutions(graph: Any) -> list[Any]:
    """Those with weights of their own, in the graph's order."""
    return [
        node
        for node in graph.get_ordered_ops()
        if node.get_type_name() in _KINDS and node.input_value(1).get_node().get_type_name() == "Constant"
    ]


def _constants(opset: Any, low: Any, high: Any) -> list[Any]:
    """Bounds of what goes in and of what comes out, which are the same."""
    low, high = (opset.constant(np.asarray(value, np.float32)) for value in (low, high))
    return [low, high, low, high]
