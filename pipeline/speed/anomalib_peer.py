"""Anomalib's PatchCore as a peer, run by the Python of an environment that has anomalib: see `peers.py`.

Its only argument is a task in JSON. Pictures and bank are random: its time does not depend on them.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import torch


def main() -> None:
    """Get ready, then do the work once for each line of standard input."""
    warnings.simplefilter("ignore")
    task = SimpleNamespace(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    work = _fitting(task) if task.kind == "fit" else _scoring(task)
    _say({"version": ", ".join(f"{name} {metadata.version(name)}" for name in ("anomalib", "torch", "openvino"))})
    for _ in sys.stdin:
        started = time.perf_counter()
        work()
        if task.device != "cpu":
            torch.cuda.synchronize(task.device)
        _say({"seconds": time.perf_counter() - started})


def _model(task: SimpleNamespace) -> Any:
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel  # noqa: PLC0415

    return PatchcoreModel(layers=task.layers, backbone=task.backbone, pre_trained=False).to(task.device)


def _scoring(task: SimpleNamespace) -> Callable[[], object]:
    model = _model(task).eval()
    pictures = torch.rand(task.images, 3, task.size, task.size)
    with torch.inference_mode():
        model.train()
        dim = model(pictures[:1].to(task.device)).shape[1]
        model.eval()
        model.embedding_store.clear()
        model.memory_bank = torch.randn(task.bank_rows, dim, device=task.device)
    if task.engine == "torch":
        return lambda: _score(model, pictures.to(task.device))
    return _openvino(model, pictures, task)


class _Plain(torch.nn.Module):
    """The model with tensors for an answer, as a converter wants it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and maps."""
        scored = self.model(pictures)
        return scored.pred_score, scored.anomaly_map


@torch.inference_mode()
def _score(model: Any, pictures: torch.Tensor) -> object:
    scored = model(pictures)
    return scored.pred_score.cpu(), scored.anomaly_map.cpu()


def _openvino(model: Any, pictures: torch.Tensor, task: SimpleNamespace) -> Callable[[], object]:
    import openvino  # noqa: PLC0415

    with torch.no_grad():
        graph = openvino.convert_model(_Plain(model), example_input=pictures)
    graph.reshape({0: list(pictures.shape)})
    options = {
        "INFERENCE_PRECISION_HINT": {"openvino-fp32": "f32", "openvino-bf16": "bf16"}[task.engine],
        "INFERENCE_NUM_THREADS": task.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()
    batch = pictures.numpy()
    return lambda: request.infer({0: batch}, share_inputs=True)


def _fitting(task: SimpleNamespace) -> Callable[[], object]:
    model = _model(task)
    pictures = torch.rand(task.images, 3, task.size, task.size)

    def fit() -> None:
        model.train()
        model.feature_extractor.eval()
        model.embedding_store.clear()
        with torch.no_grad():
            for part in torch.split(pictures, 32):
                model(part.to(task.device))
            patches = sum(len(each) for each in model.embedding_store)
            model.subsample_embedding(task.bank_rows / patches)

    return fit


def _say(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
