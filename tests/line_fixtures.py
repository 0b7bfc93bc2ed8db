"""A line for the tests: a real broker, a real small model, real processes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model_store import ModelKey, open_store
from model_store.frames import open_roots
from pipeline import commissioning, methods, synthetic
from pipeline.backbone import resolve
from pipeline.data import Artifact, Frame
from pipeline.decode import Limits
from pipeline.view import View
from tests.line import STATIONS
from workers.rig import Rig


@pytest.fixture(scope="session")
def model() -> Artifact:
    """A real PatchCore on drawn caps, small enough to score in a few milliseconds."""
    goods = [
        Frame(frame_id=str(i), image=synthetic.encode(synthetic.draw("cap", seed=i, size=(96, 96)).image))
        for i in range(24)
    ]
    backbone = resolve("resnet18", ("layer1", "layer2"), weights=None, random_weights=True, factories=[])
    made = commissioning.commission(
        goods,
        method="patchcore",
        config=methods.make_config("patchcore", {"coreset": "0.05"}),
        backbone=backbone,
        view=View(size=(64, 64)),
        limits=Limits(),
        rate=0.05,
    )
    return made.inspector.save()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty drawn caps, every fifth with a scratch."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(40):
        drawn = synthetic.draw("cap", seed=1000 + i, defect="scratch" if i % 5 == 0 else None, size=(96, 96))
        (folder / f"{i:03d}.jpg").write_bytes(synthetic.encode(drawn.image))
    return folder


@pytest.fixture
def make_line(tmp_path: Path, broker: str, model: Artifact) -> Iterator[Callable[..., Rig]]:
    """Makes lines on the tests' broker, with a model promoted at both stations."""
    opened: list[Rig] = []

    def make(
        *,
        own_broker: bool = False,
        deadline_ms: int = 60_000,
        frames: dict[str, Any] | None = None,
        pool: dict[str, Any] | None = None,
        refit: dict[str, Any] | None = None,
        **worker: Any,
    ) -> Rig:
        tree = {
            "stations": {station: {"deadline_ms": deadline_ms} for station in STATIONS},
            "frames": frames or {},
            "pool": pool or {},
            "refit": refit or {},
            "worker": {"threads": 1, "stuck_s": 120.0, **worker},
        }
        rig = Rig(tmp_path / f"line-{len(opened)}", tree, address=None if own_broker else broker)
        opened.append(rig)
        rig.__enter__()
        for root in open_roots((frames or {}).get("roots", []), keep_s=3600).stores:
            root.create()
        store = open_store(rig.store_url)
        for station in STATIONS:
            version = store.put(ModelKey(station), model)
            store.promote(ModelKey(station), version, expected=None, who="tests")
        return rig

    yield make
    for rig in opened:
        rig.close()
