"""Another checkout's `goldline bench score` as a peer, turn by turn: see `peers.py`. PYTHONPATH says which checkout.

Its only argument is a task in JSON. It asks that checkout for no more than `net_of`, `inspector_of`, `pictures` and
`timed` of `pipeline.speed.score`: where these are not as they are here, the two cannot be compared.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch


def main() -> None:
    """Get ready, then do the work once for each line of standard input."""
    import pipeline  # noqa: PLC0415 - of that checkout
    from pipeline import methods  # noqa: PLC0415
    from pipeline.speed import score, turns  # noqa: PLC0415

    found, wanted = Path(str(pipeline.__file__)).parent.parent, Path(os.environ["PYTHONPATH"])
    if not found.samefile(wanted):
        sys.exit(f"{wanted} was to be measured, not {found}")
    task = SimpleNamespace(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    config = methods.make_config(task.method, task.settings)
    net = score.net_of(task.backbone, task.engine, task.device)
    work = score.timed(
        score.inspector_of(task.method, net, task.bank_rows, task.size, config),
        score.pictures(task.batch, task.size, first=1000),
    )
    _say({"version": turns.machine()["commit"]})
    for _ in sys.stdin:
        _say({"seconds": work()})


def _say(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
