"""deploy/systemd: what systemd itself says of the units, and whether they start what there is."""

import os
import re
import shutil
from pathlib import Path

import pytest

from pipeline.settings import Settings
from tests.conftest import missing
from tests.deployed import DEPLOY, ran, split, wrong_command, wrong_variables

FOLDER = DEPLOY / "systemd"
UNITS = sorted(path.name for path in FOLDER.glob("goldline-*.service"))
ROLES = ("worker", "gate", "camera", "refit")
STATION = r"line\x2d1-top"  # what systemd-escape makes of line-1/top


def read(path: Path) -> dict[str, dict[str, list[str]]]:
    """A unit, its sections and keys; a key may stand in it more than once."""
    found: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return found


def instance(unit: str) -> str:
    return unit.replace("@.", f"@{STATION}.")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units as they would be installed, with a `goldline` that is there."""
    if not shutil.which("systemd-analyze"):
        missing("no systemd-analyze here: install systemd")
    folder = tmp_path_factory.mktemp("units")
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    program = folder / "goldline"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for path in folder.glob("*.service"):
        path.write_text(path.read_text().replace("/opt/goldline/bin/goldline", str(program)))
    return folder


def analyze(installed: Path, *arguments: str):
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{installed}:"}
    return ran("systemd-analyze", *arguments, env=environment, cwd=installed)


@pytest.mark.parametrize("unit", [*UNITS, "goldline-gc.timer"])
def test_systemd_finds_nothing_wrong(installed, unit):
    told = analyze(installed, "verify", "--man=no", "--recursive-errors=no", f"./{instance(unit)}")
    assert (told.returncode, told.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS)
def test_little_is_exposed(installed, unit):
    told = analyze(installed, "security", "--offline=true", "--no-pager", "--threshold=15", instance(unit))
    assert told.returncode == 0, told.stdout


@pytest.mark.parametrize("addition", ["gpu.conf", "camera-device.conf"])
def test_additions_for_devices_leave_the_rest_shut(installed, addition):
    unit = "goldline-worker@" if addition == "gpu.conf" else "goldline-camera@"
    folder = installed / f"{unit}.service.d"
    folder.mkdir()
    shutil.copy(FOLDER / addition, folder)
    told = analyze(installed, "verify", "--man=no", "--recursive-errors=no", f"./{unit}1.service")
    score = analyze(installed, "security", "--offline=true", "--no-pager", "--threshold=20", f"{unit}1.service")
    shutil.rmtree(folder)
    assert (told.returncode, told.stderr) == (0, "")
    assert score.returncode == 0, score.stdout


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_starts_what_there_is(unit):
    service = read(FOLDER / unit)["Service"]
    (line,) = service["ExecStart"]
    program, *arguments = split(re.sub(r"\$\{\w+\}|%I", lambda found: _stands_for(found[0]), line))
    assert program == "/opt/goldline/bin/goldline"
    assert not wrong_command(arguments)
    pairs = [pair for value in service.get("Environment", []) for pair in split(value.replace("%i", "1"))]
    assert not wrong_variables(dict(pair.split("=", 1) for pair in pairs))


def _stands_for(word: str) -> str:
    return {"${SOURCE}": "/dev/video0", "${STATION}": "line-1/top", "${RATE}": "5", "%I": "line-1/top"}[word]


@pytest.mark.parametrize("role", ROLES)
def test_each_role_has_its_own_password_and_none_in_the_environment(role):
    (unit,) = [name for name in UNITS if name.startswith(f"goldline-{role}")]
    given = read(FOLDER / unit)["Service"]["LoadCredential"]
    assert f"kafka.password:goldline.kafka.{role}" in given
    assert f"-/etc/goldline/{role}.env" in read(FOLDER / unit)["Service"]["EnvironmentFile"]


def test_every_end_but_a_stop_is_followed_by_a_start():
    common = read(FOLDER / "goldline-.service.d" / "10-hardening.conf")
    assert common["Service"]["Restart"] == ["always"]  # 70, stuck, among them
    assert common["Unit"]["StartLimitIntervalSec"] == ["0"]
    for role in ROLES:
        (unit,) = [name for name in UNITS if name.startswith(f"goldline-{role}")]
        assert "Restart" not in read(FOLDER / unit)["Service"]


def test_a_worker_has_the_time_to_finish_what_is_in_flight():
    (stop,) = read(FOLDER / "goldline-worker@.service")["Service"]["TimeoutStopSec"]
    assert int(stop) > Settings().worker.drain_s + 5.0


def test_the_user_that_units_run_as_is_made():
    common = read(FOLDER / "goldline-.service.d" / "10-hardening.conf")["Service"]
    (line,) = [x for x in (FOLDER / "goldline.sysusers").read_text().splitlines() if not x.startswith("#")]
    kind, name, number, *_ = split(line)
    assert (kind, [name]) == ("u", common["User"])
    assert f"--uid {number} " in (DEPLOY.parent / "docker" / "Dockerfile").read_text()  # one owner on a shared disk
