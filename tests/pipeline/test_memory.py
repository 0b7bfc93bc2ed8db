"""Memory is said beforehand: what there is, and a bound that holds."""

import subprocess
import sys

import pytest
import torch

from pipeline import coreset, memory, methods
from pipeline.backbone import resolve
from pipeline.methods.patchcore import PatchCoreConfig

CPU = torch.device("cpu")


def test_what_there_is_is_of_this_machine():
    left = memory.available(CPU)
    assert left is None or 10**7 < left < 10**14


@pytest.mark.parametrize(("most", "expected"), [("1000000", 500_000), ("max", 7_000_000), ("100000", 0)])
def test_a_container_has_no_more_than_its_limit(monkeypatch, tmp_path, most, expected):
    (tmp_path / "memory.max").write_text(f"{most}\n")
    (tmp_path / "memory.current").write_text("600000\n")
    (tmp_path / "memory.stat").write_text("anon 450000\ninactive_file 100000\nactive_file 50000\n")
    (tmp_path / "meminfo").write_text("MemTotal:  9999 kB\nMemAvailable:  6836 kB\n")
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    assert memory.available(CPU) == pytest.approx(expected, rel=1e-3)


def test_where_nobody_says_only_the_bound_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    assert memory.available(CPU) is None
    assert memory.foreseen("the fit", 2_140_000_000, CPU) == "memory: at most 2.1 GB for the fit"


def test_a_bound_above_what_there_is_says_what_to_do(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda _: 1_000_000_000)
    assert memory.foreseen("x", 3_000_000, CPU) == "memory: at most 3 MB for x; 1.0 GB are free on this machine"
    assert memory.foreseen("x", 3 * 10**9, CPU).endswith("on this machine: give fewer pictures, or more memory")


MEASURED = """
import sys
from pathlib import Path
import torch
from pipeline import coreset
from pipeline.pruning import PrunedBank
rows, dim, count = map(int, sys.argv[1:])
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
warm = torch.randn(2000, 64)
PrunedBank.of(warm[coreset.select(warm, 1000, seed=0)])  # libraries take their own when they are first used
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = status("VmRSS")
features = torch.randn(rows, dim)
features = features[coreset.select(features, count, seed=0)]
PrunedBank.of(features)
print(status("VmHWM") - before, coreset.most_bytes(rows, dim, count, device=features.device))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is read from Linux's /proc")
@pytest.mark.parametrize(("rows", "dim", "count"), [(60_000, 384, 60), (60_000, 96, 900), (24_000, 256, 12_000)])
def test_a_coreset_takes_no_more_than_it_says_and_not_much_less(rows, dim, count):
    told = [sys.executable, "-c", MEASURED, str(rows), str(dim), str(count)]
    said = subprocess.run(told, capture_output=True, text=True, check=True, timeout=300).stdout
    taken, most = map(int, said.split())
    assert 0.5 * most < taken < 1.02 * most


def test_a_fit_of_patchcore_is_foreseen_and_others_say_nothing():
    net = resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())
    config = PatchCoreConfig(coreset=0.01)
    foreseen = methods.fit_bytes("patchcore", 209, config, backbone=net, size=(224, 224))
    patches = 209 * 28 * 28
    buffers = torch.get_num_threads() * (8 << 20)
    assert foreseen == buffers + 4 * patches * (384 + 128 + 4)
    on_gpu = coreset.most_bytes(patches, 384, 1638, device=torch.device("cuda"))
    assert on_gpu == buffers + 4 * patches * 384 + 10 * patches * 132  # `select` says 2.5 times as much there
    assert methods.fit_bytes("padim", 209, None, backbone=net, size=(224, 224)) is None
