"""What others took of the processors is what the kernel counted since the last look."""

from pathlib import Path

import pytest

from workers import bench_rig


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    """Says what /proc/stat is to hold."""
    stat = tmp_path / "stat"
    monkeypatch.setattr(bench_rig, "_STAT", stat)
    return lambda *counts: stat.write_text(f"cpu  {' '.join(map(str, counts))} 0 0\ncpu0 1 2 3\n")


def test_a_share_is_of_the_time_since_it_was_last_asked(kernel):
    kernel(100, 0, 50, 800, 0, 0, 10, 40)
    stolen = bench_rig.Stolen()
    kernel(160, 0, 60, 820, 0, 0, 10, 50)
    assert stolen.share() == pytest.approx(0.1)
    assert stolen.share() == 0.0


@pytest.mark.parametrize("counts", [(), (1, 2, 3), ("x",) * 8])
def test_a_kernel_that_does_not_say_took_nothing(kernel, counts):
    kernel(*counts)
    assert bench_rig.Stolen().share() == 0.0


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this system has no /proc/stat")
def test_this_machines_kernel_is_understood():
    assert bench_rig._ticks()[1] > 0
