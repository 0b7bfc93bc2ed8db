"""The demo, as a person runs it: on drawn parts, and on real pictures where there are some."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.kafka


@pytest.mark.timeout(600)
def test_the_demo_on_drawn_parts_loses_nothing_and_finds_defects(tmp_path: Path, broker: str) -> None:
    report = _demo(tmp_path, broker, "--frames", "200", "--rate", "15")
    assert report["frames"] == report["results"] == 200
    assert (report["lost"], report["duplicates"], report["contradictory"]) == (0, 0, 0)
    assert sum(report["verdicts"].values()) == 200
    counted = {"received": 200, "in_flight": 0, "verdicts": report["verdicts"]}
    assert report["metrics"] == counted, "the worker's own counters say the same"
    gate = report["gate"]
    assert gate["on_time"] + gate["defaulted"] == gate["parts"] == 200
    assert report["image_auroc"] > 0.65, "clearly better than chance"
    assert report["latency_ms"]["p50"] <= report["latency_ms"]["p99"] <= report["latency_ms"]["max"]
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "<svg" in page
    assert "://" not in page, "the page needs nothing from elsewhere"  # pictures in base 64 have no colon
    assert not list((tmp_path / ".goldline").glob("demo-*")), "it leaves nothing behind"


@pytest.mark.data
@pytest.mark.timeout(900)
def test_real_bottles_with_a_strong_backbone(tmp_path: Path, broker: str, data_dir: Path) -> None:
    report = _demo(
        tmp_path,
        broker,
        "--data",
        str(data_dir / "data/bottle"),
        "--backbone",
        "resnetv2:resnet50v2",
        "--weights",
        str(data_dir / "weights/resnet50v2.safetensors"),
        "--layers",
        "layer2a,layer3a",
        python_path=data_dir / "weights",
    )
    assert report["frames"] == report["results"] == 83
    assert report["lost"] == report["contradictory"] == 0
    assert report["image_auroc"] >= 0.99


def _demo(folder: Path, broker: str, *arguments: str, python_path: Path | None = None) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-m", "workers", "demo", "--report", "report.json", "--broker", broker, *arguments],
        cwd=folder,
        env={**os.environ, **({"PYTHONPATH": str(python_path)} if python_path else {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report
