"""A large bank goes in and out without copies of it: by the peak memory of a process that does nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BANK_MB = 100  # a quarter of what a large bank has; the bounds are in its size
SLACK = 0.6  # of the bank: some chunks of 8 MiB on their way, and the allocator

# Linux counts a process's peak of resident memory itself, and forgets it on request.
MEASURED = """
import sys
from pathlib import Path
import torch
from model_store import ModelKey, carry, open_store
from pipeline.data import Artifact

url, act, mb = sys.argv[1], sys.argv[2], int(sys.argv[3])
key, file = ModelKey("line-1/top"), Path(sys.argv[4])
store = open_store(url)

def small():
    return Artifact(method="m", tensors={"bank": torch.zeros(4, 4)}, meta={})

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))

other = ModelKey("line-1/side")
warm = store.put(other, small())
store.get(other, warm)
artifact = Artifact(method="m", tensors={"bank": torch.rand(mb * 1024, 256)}, meta={}) if act == "put" else None
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
if act == "put":
    store.promote(key, store.put(key, artifact), expected=None, who="ana")
elif act == "get":
    got = store.get(key, store.current(key)).tensors["bank"].clone()
    assert got.shape == (mb * 1024, 256)
elif act == "export":
    carry.export(store, key, store.current(key), file)
else:
    carry.import_(store, file, key=ModelKey("line-2/top"))
print((resident("VmHWM") - before) / mb)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells a process its peak memory")
def test_a_bank_goes_in_and_out_with_bounded_memory(backend, tmp_path):
    """Scaled: 100 MB stand for 400. A worker's own copy, and the file's mapped pages, are in what a get may take."""

    def peak(act):
        url, file = backend.url(tmp_path), tmp_path / "model.goldline"
        argv = [sys.executable, "-c", MEASURED, url, act, str(BANK_MB), str(file)]
        return float(subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True, timeout=200).stdout)

    assert peak("put") < SLACK, "put makes no copy"
    assert peak("get") < 2 + SLACK, "the mapped file, and the copy that the worker takes"
    assert peak("export") < 1 + SLACK, "the mapped file"
    assert peak("import") < 1 + SLACK, "likewise"
