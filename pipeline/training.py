"""Training by gradient: one loop, with progress, checkpoints, half precision where it pays, and an early stop.

Step i draws its random numbers from a generator of its own, seeded by (seed, i): a training that was cut off goes on
exactly as it would have gone.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline import engines
from pipeline.errors import FitError
from pipeline.progress import Progress, silent

Rate: TypeAlias = Callable[[float], float]
"""Learning rate at a share of the training, 0 to 1."""

_SAVE_EVERY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """When to stop early.

    Attributes:
        loss: of pictures that the training does not see; lower is better.
        every: steps between two looks.
        patience: looks in a row without a better one, after which the training ends.
    """

    loss: Callable[[], float]
    every: int
    patience: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What came of a training.

    Attributes:
        steps: done, all that were asked for unless it stopped early.
        loss: mean of the last tenth of the steps that this call ran; NaN if it ran none.
    """

    steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a training is kept, beside others.

    Attributes:
        folder: is made.
        name: what is trained.
        key: of all that the training depends on (`digest`): another training's file is not gone on with.
    """

    folder: Path
    name: str
    key: str

    @property
    def path(self) -> Path:
        """The file; another training's is another, so that none is lost to it."""
        return self.folder / f"{self.name}-{self.key[:16]}.safetensors"


@dataclass(slots=True)
class _State:
    """Where a training stands."""

    step: int = 0
    best_loss: float = math.inf
    worse: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)


def train(
    module: nn.Module,
    loss: Callable[[int, torch.Generator], Tensor],
    *,
    steps: int,
    optimiser: torch.optim.Optimizer,
    rate: Rate,
    seed: int,
    stage: str = "train",
    held_out: HeldOut | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> Trained:
    """Minimise a loss; `module` is left in evaluation mode, with the best weights if there was an early stop.

    Args:
        module: all that learns, and every buffer that changes while it does.
        loss: of the batch of a step, from its own generator on the CPU; called under `half`.
        steps: at most.
        optimiser: of the module's parameters.
        rate: learning rate over the training.
        seed: of the steps' generators.
        stage: what `progress` calls it.
        held_out: when to stop early; by default never.
        checkpoint: where to keep it each minute; the same call goes on from there.
        progress: told after each step.

    Raises:
        FitError: the loss is no longer finite.
    """
    device = str(next(module.parameters()).device)
    state = _resume(checkpoint, module, optimiser) if checkpoint else _State()
    recent: list[float] = []
    saved_at = time.monotonic()
    generator = torch.Generator()
    while state.step < steps and not (held_out and state.worse >= held_out.patience):
        module.train()
        for group in optimiser.param_groups:
            group["lr"] = rate(state.step / steps)
        generator.manual_seed(_seed_of(seed, state.step))
        with half(device):
            value = loss(state.step, generator)
        told = float(value.detach())
        if not math.isfinite(told):
            raise FitError(f"{stage}: the loss is {told} at step {state.step}; try a lower learning rate")
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        recent = [*recent, told][-max(1, steps // 10) :]
        state.step += 1
        progress(stage, state.step, steps)
        if held_out and state.step % held_out.every == 0:
            _look(held_out, module, state)
        if checkpoint and (time.monotonic() > saved_at + _SAVE_EVERY_S or state.step == steps):
            _save(checkpoint, module, optimiser, state)
            saved_at = time.monotonic()
    if state.step < steps:
        progress(stage, state.step, state.step)  # what was asked for was a limit
    if state.best:
        module.load_state_dict(state.best)
    module.eval()
    return Trained(steps=state.step, loss=sum(recent) / len(recent) if recent else math.nan)


def half(device: str) -> AbstractContextManager[Any]:
    """bfloat16 products, where the device has them: about four times as fast on a CPU with AMX."""
    kind = torch.device(device).type
    able = kind == "cuda" or engines.has_bf16()
    return torch.autocast(kind, torch.bfloat16, enabled=able)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's global generators start from `seed`; outside they are as they were: for initial weights, dropout.

    Those of GPUs are left alone where CUDA was not in use before: nothing is drawn from them then, and a seed for them
    would wait for the first use outside.
    """
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        if gpus:
            torch.cuda.manual_seed_all(seed)
        yield


def digest(*said: Any) -> str:
    """A key for a checkpoint: of JSON values and tensors."""
    sha = hashlib.sha256()
    for each in said:
        if isinstance(each, Tensor):
            sha.update(str((tuple(each.shape), each.dtype)).encode())
            sha.update(each.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        else:
            sha.update(json.dumps(each, sort_keys=True).encode())
    return sha.hexdigest()


def batch_of(step: int, count: int, size: int, seed: int) -> Tensor:
    """Which of `count` things step `step` sees: each once an epoch, in an order of the epoch's own.

    Args:
        step: from 0; an epoch has `steps_of(1, count, size)`.
        count: how many things there are.
        size: of a batch; an epoch's last one may be smaller.
        seed: of the orders.

    Returns:
        (B,) int64.
    """
    epoch, place = divmod(step, steps_of(1, count, size))
    generator = torch.Generator().manual_seed(_seed_of(seed, -1 - epoch))
    return torch.randperm(count, generator=generator)[place * size : (place + 1) * size]


def steps_of(epochs: int, count: int, size: int) -> int:
    """Steps of so many epochs over `count` things in batches of `size`."""
    return epochs * math.ceil(count / size)


def constant(rate: float) -> Rate:
    """The same all along."""
    return lambda _: rate


def dropped(rate: float, at: float, to: float = 0.1) -> Rate:
    """Multiplied by `to` from a share `at` of the training."""
    return lambda done: rate * (to if done >= at else 1)


def cosine(rate: float) -> Rate:
    """Half a cosine down to nothing."""
    return lambda done: rate * (1 + math.cos(math.pi * done)) / 2


def one_cycle(peak: float, up: float = 0.3) -> Rate:
    """A cosine up from a 25th over a share `up`, a cosine down to nothing."""

    def at(done: float) -> float:
        phase = done / up if done < up else 1 - (done - up) / (1 - up)
        height = (1 - math.cos(math.pi * phase)) / 2
        return peak * (0.04 + 0.96 * height if done < up else height)

    return at


def _seed_of(seed: int, step: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:7])


def _look(held_out: HeldOut, module: nn.Module, state: _State) -> None:
    module.eval()
    with torch.no_grad():
        seen = held_out.loss()
    if seen < state.best_loss:
        state.best_loss, state.worse = seen, 0
        state.best = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    else:
        state.worse += 1


def _resume(checkpoint: Checkpoint, module: nn.Module, optimiser: torch.optim.Optimizer) -> _State:
    """Load what was kept, if it is of the same training; else start anew."""
    try:
        with safe_open(checkpoint.path, "pt") as file:
            said = file.metadata() or {}
        if said.get("key") != checkpoint.key:
            return _State()
        tensors = load_file(checkpoint.path)
    except (OSError, SafetensorError):  # none yet, or cut short: begin at the beginning
        return _State()
    parts: dict[str, dict[str, Tensor]] = {"module": {}, "best": {}, "optimiser": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    module.load_state_dict(parts["module"])
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimiser"].items():
        number, _, entry = name.partition("/")
        entries.setdefault(int(number), {})[entry] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": entries})
    return _State(int(said["step"]), float(said["best_loss"]), int(said["worse"]), parts["best"])


def _save(checkpoint: Checkpoint, module: nn.Module, optimiser: torch.optim.Optimizer, state: _State) -> None:
    """Write it whole or not at all."""
    tensors = {f"module/{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in state.best.items()}
    for number, entries in optimiser.state_dict()["state"].items():
        for name, value in entries.items():
            tensors[f"optimiser/{number}/{name}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    checkpoint.folder.mkdir(parents=True, exist_ok=True)
    part = checkpoint.path.with_suffix(".part")
    told = {"key": checkpoint.key, "step": state.step, "best_loss": state.best_loss, "worse": state.worse}
    save_file(
        {name: tensor.contiguous().cpu() for name, tensor in tensors.items()},
        part,
        {name: str(value) for name, value in told.items()},
    )
    part.replace(checkpoint.path)
