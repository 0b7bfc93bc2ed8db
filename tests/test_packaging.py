"""The wheel: what a line server installs."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_wheel_is_small_and_complete(tmp_path):
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size <= 10_000_000
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "pipeline/weights/goldline-s.safetensors",
        "pipeline/py.typed",
        "workers/schemas/result.v1.json",
        "workers/schemas/feedback.v1.json",
        "workers/kafka/server.properties",
    ):
        assert needed in names
    assert not [name for name in names if name.startswith(("tests/", "deploy/"))]
    weights = zipfile.ZipFile(wheel).getinfo("pipeline/weights/goldline-s.safetensors")
    assert weights.file_size <= 6_000_000
