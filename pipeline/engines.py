"""What runs a frozen network: torch anywhere, or OpenVINO on a CPU, in float32, bfloat16 or 8 bits.

The engine belongs to a model version: thresholds are calibrated with it, so it is chosen when a model is fitted, never
when it is loaded. OpenVINO sees one picture at a time: on a CPU a batch gains nothing (measured), and a picture's
features are then the same alone as in any company.
"""

import copy
import sys
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pipeline import int8
from pipeline.errors import ConfigError
from pipeline.fused_layers import fuse_layers
from pipeline.graphs import Replayed
from pipeline.threads import shared

INT8 = "openvino-int8"
ENGINES = ("torch", "torch-bf16", "openvino-fp32", "openvino-bf16", INT8)
AUTO = "auto"
_BYTES_PER_WEIGHT, _BYTES_PER_PIXEL = 3, 200  # of a compiled network in 8 bits


class Engine(Protocol):
    """Pixels to feature maps."""

    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) uint8 -> a map (B, C, h, w) float32 for each layer."""
        ...


class Preprocessed(nn.Module):
    """A network with its normalisation in front: (B, 3, H, W) uint8, RGB -> one map a layer, in order."""

    def __init__(self, net: nn.Module, layers: tuple[str, ...], scale: Tensor, shift: Tensor, *, bgr: bool) -> None:
        super().__init__()
        self.net, self.layers, self.bgr = net, layers, bgr
        self.scale = nn.Buffer(scale.view(1, 3, 1, 1))
        self.shift = nn.Buffer(shift.view(1, 3, 1, 1))
        self._graphs: dict[tuple[int, int], Any] = {}
        self._converting = threading.Lock()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """As the class says."""
        maps = self.net(self.prepare(images))
        return tuple(maps[layer] for layer in self.layers)

    def prepare(self, images: Tensor) -> Tensor:
        """What the network sees of pixels 0 to 255; scale and shift are in the network's order of channels."""
        x = images.flip(1) if self.bgr else images
        return x.to(torch.float32, memory_format=torch.channels_last) * self.scale + self.shift

    def graph(self, size: tuple[int, int]) -> Any:
        """OpenVINO's graph of it for one picture of (H, W), the caller's own.

        It is made once for each size: that is half a second of Python, in which no other thread of it runs.
        """
        with self._converting:
            if size not in self._graphs:
                self._graphs[size] = _converted(self._apart(), size)
            return self._graphs[size].clone()

    def _apart(self) -> "Preprocessed":
        """The same tensors in modules of their own: torch.export swaps a module's for others while it traces it."""
        shared = {id(each): each for each in (*self.net.parameters(), *self.net.buffers())}
        return Preprocessed(_copied(self.net, shared), self.layers, self.scale, self.shift, bgr=self.bgr)


class TorchEngine:
    """Runs on any device of torch, in float32; a GPU's convolutions are TF32, as is torch's default."""

    def __init__(self, net: Preprocessed, device: torch.device) -> None:
        self._device = device
        self._net = net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """As `Engine` says."""
        return [each.float() for each in self._net(images.to(self._device, non_blocking=True))]


class Bf16Engine:
    """Runs on any device of torch, in bfloat16 between float32 pixels and float32 maps; on CUDA as graphs."""

    def __init__(self, net: Preprocessed, device: torch.device) -> None:
        self._whole = net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._half = _copied(net.net, {}).to(torch.bfloat16)
        if device.type == "cuda" and isinstance(self._half, GraphModule):
            fuse_layers(self._half)
        self._run = Replayed(self._maps, device)

    def __call__(self, images: Tensor) -> list[Tensor]:
        """As `Engine` says."""
        return self._run(images)

    def _maps(self, images: Tensor) -> list[Tensor]:
        with torch.autocast(images.device.type, enabled=False):  # a graph would keep what the first caller had set
            maps = self._half(self._whole.prepare(images).to(torch.bfloat16))
        return [maps[layer] for layer in self._whole.layers]


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.requests: dict[tuple[int, int], Any] = {}


class OpenVinoEngine:
    """Runs on the CPU; a graph is compiled for each size of picture when the first of it comes.

    In 8 bits it needs ranges; without, it is in float32 until `Backbone.rounded` has taken them.
    """

    def __init__(self, net: Preprocessed, precision: str, cuts: tuple[float, ...] = ()) -> None:
        self._core = _openvino().Core()
        if precision == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ConfigError("this CPU has no bfloat16: fit anew here, or with --engine openvino-fp32")
        self._net = net.cpu()
        self._cuts = cuts
        threads, at_once = shared()
        self._options = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16", "int8": "f32"}[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": at_once,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if at_once > 1:  # a thread that may not leave its core waits there for whatever else a line runs on it
            self._options["ENABLE_CPU_PINNING"] = False
        self._graphs: dict[tuple[int, int], Any] = {}
        self._compiling = threading.Lock()
        # Each thread has its own: a model that is warmed up waits for a picture of the batch in hand, not for all.
        self._mine = _OfThread()

    def __call__(self, images: Tensor) -> list[Tensor]:
        """As `Engine` says."""
        pixels = np.ascontiguousarray(images.cpu().permute(0, 2, 3, 1).numpy())
        request = self._request((pixels.shape[1], pixels.shape[2]))
        maps: list[Tensor] = []
        for place in range(len(pixels)):
            request.infer({0: pixels[place : place + 1]}, share_inputs=True)
            outputs = [torch.from_numpy(output.data) for output in request.output_tensors]
            maps = maps or [output.new_empty(len(pixels), *output.shape[1:]) for output in outputs]
            for whole, output in zip(maps, outputs, strict=True):
                whole[place] = output[0]
        return [each.permute(0, 3, 1, 2) for each in maps or self._none(request)]

    @staticmethod
    def _none(request: Any) -> list[Tensor]:
        return [torch.zeros(0, *tuple(output.shape)[1:]) for output in request.output_tensors]

    def _request(self, size: tuple[int, int]) -> Any:
        requests = self._mine.requests
        if size not in requests:
            if size not in self._graphs:  # else nobody waits while another size is compiled
                with self._compiling:
                    if size not in self._graphs:
                        self._graphs[size] = self._compiled(size)
            requests[size] = self._graphs[size].create_infer_request()
        return requests[size]

    @property
    def size_bytes(self) -> int:
        """What it takes of memory, roughly: measured with four networks in 8 bits, at 256 to 768 pixels."""
        weights = sum(each.numel() for each in self._net.parameters())
        return sum(_BYTES_PER_WEIGHT * weights + _BYTES_PER_PIXEL * h * w for h, w in list(self._graphs))

    def _compiled(self, size: tuple[int, int]) -> Any:
        graph = self._net.graph(size)
        if self._cuts:
            int8.quantise(_openvino(), graph, self._cuts)
        return self._core.compile_model(_channels_last(graph), "CPU", self._options)


def _copied(net: nn.Module, shared: dict[int, Any]) -> nn.Module:
    """Modules of its own, with what is `shared`, by id, taken as it is."""
    try:
        return copy.deepcopy(net, shared)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a lock, an open file: whatever a network of one's own holds
        raise ConfigError(
            f"{type(net).__name__} cannot be copied, which every engine but torch does ({_start_of(error)}):"
            " --engine torch"
        ) from error


def _start_of(error: Exception) -> str:
    """The beginning of an error that may go on for pages."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:200]


def _channels_last(graph: Any) -> Any:
    """The same with channels innermost in what goes in and comes out, as pictures are decoded and convolutions want."""
    outside = _openvino().preprocess.PrePostProcessor(graph)
    ends = [outside.input(0), *(outside.output(i) for i in range(len(graph.outputs)))]
    for end in ends:
        end.tensor().set_layout(_openvino().Layout("NHWC"))
        end.model().set_layout(_openvino().Layout("NCHW"))
    return outside.build()


def _converted(net: Preprocessed, size: tuple[int, int]) -> Any:
    example = torch.zeros(1, 3, *size, dtype=torch.uint8)
    # Autocast around a caller would be exported with the network, and OpenVINO reads it wrongly.
    with torch.no_grad(), torch.autocast("cpu", enabled=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's and OpenVINO's about each other
        try:
            graph = _openvino().convert_model(torch.export.export(net, (example,)))
            graph.reshape({0: example.shape})
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a network of one's own does that neither knows
            raise ConfigError(
                f"OpenVINO cannot run {type(net.net).__name__} ({_start_of(error)}): --engine torch"
            ) from error
    return graph


def cuts_of(net: Preprocessed, images: Tensor) -> tuple[float, ...]:
    """Where inputs are cut off for 8 bits: see `int8.cuts_of`; `images` (B, 3, H, W) uint8."""
    return int8.cuts_of(_openvino(), net.cpu().graph((images.shape[2], images.shape[3])), images.cpu())


def make(net: Preprocessed, engine: str, device: torch.device, cuts: tuple[float, ...] = ()) -> Engine:
    """The engine of that name, running this network; in 8 bits with these cuts.

    Raises:
        ConfigError: no such engine, or it cannot run here or not on this device.
    """
    if engine == "torch":
        return TorchEngine(net, device)
    if engine == "torch-bf16":
        return Bf16Engine(net, device)
    if engine not in ENGINES:
        raise ConfigError(f"no engine {engine!r}; there are {', '.join(ENGINES)}")
    if device.type != "cpu":
        raise ConfigError(f"{engine} runs on the CPU, and the device asked for is {device}: choose cpu, or fit anew")
    return OpenVinoEngine(net, engine.partition("-")[2], cuts)


def candidates(device: torch.device) -> list[str]:
    """Engines worth a trial on this device, torch first."""
    if device.type == "cuda":
        return ["torch", "torch-bf16"] if torch.cuda.is_bf16_supported(including_emulation=False) else ["torch"]
    if not _has_openvino():
        return ["torch"]
    able = _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ["torch", "openvino-fp32", *(["openvino-bf16"] if "BF16" in able else [])]


def cpu_only(engine: str) -> bool:
    """Whether this engine runs on nothing else."""
    return engine.startswith("openvino")


def can_round(device: torch.device) -> bool:
    """Whether there is an engine in 8 bits."""
    return device.type == "cpu" and _has_openvino()


@cache
def has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware, as far as the kernel says."""
    try:
        return "bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


@cache
def _has_openvino() -> bool:
    try:
        _openvino()
    except ConfigError:
        return False
    return True


def _openvino() -> Any:
    """The package, imported when it is first needed: it takes a second.

    Without its telemetry, which tells its makers of each conversion unless somebody opted out: a line tells nobody.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # its import fails, as if not installed
    try:
        import openvino  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise ConfigError("OpenVINO is not installed: pip install 'goldline[cpu]', or --engine torch") from error
    return openvino
