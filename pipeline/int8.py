"""Convolutions in 8 bits for OpenVINO: what good pictures show of each one's input says how finely it is rounded.

Weights are rounded symmetrically channel by channel, inputs to 255 steps from zero to a largest value. Larger ones are
cut off; where, is what costs the good pictures least of rounding and cutting off together. Everything between
convolutions stays float32.

A processor without VNNI adds two products in 16 bits: 2 x 255 x 127 would overflow these, and what a defect lights up
most would be lost first. So one of the two has a bit less, on every processor, and models score alike on all. It is the
weights: what rounding does to them is much the same for a patch and for the one that it is compared with, and cancels;
what it does to inputs is not (measured: distances to the nearest good patch are wrong by half as much).

What stays float32: inputs that were negative on good pictures, as pixels are and what comes from no ReLU; and
convolutions whose sums are given out as they are, where nothing behind them evens out what rounding does.

Which convolutions there are, and in which order, is the graph's own: a model keeps the cuts, and they are as good as
the network whose digest it keeps as well.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ConfigError, FitError

_LARGEST, _WEIGHT_LARGEST = 255, 63  # of integers; 2 x 255 x 63 fits into 16 bits
_LEVELS, _WEIGHT_LEVELS = 256, 255  # that OpenVINO multiplies as integers, inputs from 0 and weights from -127
_LEAST = 1e-6  # of a cut: an input that is always zero
_KINDS = {"Convolution": 1, "GroupConvolution": 2}  # and how many axes of its weights name an output
_BINS = 2048
_SHARES = np.linspace(0.3, 1.0, 71)  # where an input may be cut off, of the largest value seen: defects lie higher
FLOAT = 0.0  # cut of an input that is not rounded


def cuts_of(openvino: Any, graph: Any, images: Tensor) -> tuple[float, ...]:
    """Where each convolution's input is cut off, convolution by convolution; `FLOAT` where it is not rounded.

    Args:
        openvino: the package.
        graph: a network of one picture (1, 3, H, W) uint8; it is changed.
        images: (B, 3, H, W) uint8, good pictures.

    Raises:
        FitError: an input is not finite, or none can be rounded.
    """
    first = len(graph.outputs)
    convolutions = _convolutions(graph)
    inputs, last = [conv.input_value(0) for conv in convolutions], [_is_last(conv) for conv in convolutions]
    graph.add_results([openvino.opset13.result(each) for each in inputs])
    request = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()

    def seen() -> Iterator[tuple[int, NDArray[np.float32]]]:
        for image in torch.split(images, 1):
            request.infer({0: image.numpy()})
            yield from ((k, request.get_output_tensor(first + k).data) for k in range(len(inputs)))

    low, high = np.zeros(len(inputs)), np.zeros(len(inputs))
    for k, values in seen():
        low[k], high[k] = min(low[k], values.min()), max(high[k], values.max())
    if not bool(np.isfinite(high).all()):
        raise FitError("what the network makes of these pictures is not finite: are these the right weights?")
    high[high < _LEAST] = FLOAT  # zero on all good pictures: what lights up there stays as it is
    counts = np.zeros((len(inputs), _BINS))
    for k, values in seen():
        counts[k] += np.histogram(values[values > 0], _BINS, (0, high[k] or 1.0))[0]
    rounded = (low == 0) & (high > FLOAT) & ~np.array(last)
    if not rounded.any():
        raise FitError(
            "no input of this network can be rounded to 8 bits, as no ReLU comes before one: take another --engine"
        )
    return tuple(_best_cut(counts[k], float(high[k])) if rounded[k] else FLOAT for k in range(len(inputs)))


def _best_cut(counts: NDArray[np.float64], high: float) -> float:
    """The least squared error of all values: a step's variance, and what is cut off. Zeros are exact in any case."""
    middles = (np.arange(_BINS) + 0.5) / _BINS * high
    errors = [
        counts.sum() * (cut / _LARGEST) ** 2 / 12 + (counts * (middles - cut).clip(0) ** 2).sum()
        for cut in _SHARES * high
    ]
    return float(_SHARES[int(np.argmin(errors))] * high)


def quantise(openvino: Any, graph: Any, cuts: tuple[float, ...]) -> None:
    """Let each convolution multiply integers, but for those whose cut is `FLOAT`.

    Args:
        openvino: the package.
        graph: as in `cuts_of`; it is changed.
        cuts: what that returned for the same network.

    Raises:
        ConfigError: they are of another network.
    """
    convolutions = _convolutions(graph)
    if len(cuts) != len(convolutions):
        raise ConfigError(
            f"the model has 8-bit cuts of {len(cuts)} convolutions, and its network {len(convolutions)} here: "
            "fit anew, or with another --engine"
        )
    opset = openvino.opset13
    for conv, high in zip(convolutions, cuts, strict=True):
        if high == FLOAT:
            continue
        inputs = opset.fake_quantize(conv.input_value(0), *_constants(opset, 0.0, high), _LEVELS)
        conv.input(0).replace_source_output(inputs.output(0))
        weights = conv.input_value(1)
        values = weights.get_node().data
        axes = tuple(range(_KINDS[conv.get_type_name()], values.ndim))
        most = np.maximum(np.abs(values).max(axis=axes, keepdims=True), _LEAST).astype(np.float32)
        end = most * (_WEIGHT_LEVELS // 2 / _WEIGHT_LARGEST)  # no weight reaches it: none needs the last bit
        rounded = opset.fake_quantize(weights, *_constants(opset, -end, end), _WEIGHT_LEVELS)
        conv.input(1).replace_source_output(rounded.output(0))
    graph.validate_nodes_and_infer_types()


def _convolutions(graph: Any) -> list[Any]:
    """Those with weights of their own, in the graph's order."""
    return [
        node
        for node in graph.get_ordered_ops()
        if node.get_type_name() in _KINDS and node.input_value(1).get_node().get_type_name() == "Constant"
    ]


def _is_last(conv: Any) -> bool:
    """Whether its sums, with a bias or without, are given out."""
    kinds = [each.get_node().get_type_name() for each in conv.output(0).get_target_inputs()]
    if kinds == ["Add"]:
        (added,) = (each.get_node() for each in conv.output(0).get_target_inputs())
        kinds = [each.get_node().get_type_name() for each in added.output(0).get_target_inputs()]
    return "Result" in kinds


def _constants(opset: Any, low: Any, high: Any) -> list[Any]:
    """Bounds of what goes in and of what comes out, which are the same."""
    low, high = (opset.constant(np.asarray(value, np.float32)) for value in (low, high))
    return [low, high, low, high]
