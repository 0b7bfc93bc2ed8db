"""The command line as people use it: what it prints, where, and with which exit status."""

import getpass
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from pipeline import synthetic
from pipeline.errors import ConfigError
from workers import cli
from workers.commands.view_options import check_roi

GOODS = 14


class Ran:
    """What one `goldline ...` did."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    def json(self):
        assert self.status == 0, self.err
        return json.loads(self.out)

    def lines(self):
        assert self.status == 0, self.err
        return [json.loads(line) for line in self.out.splitlines()]

    def refused(self):
        """The message of a command that refused: no traceback, nothing on standard output."""
        assert self.status == 2, (self.out, self.err)
        assert "Traceback" not in self.err
        assert self.out == ""
        return self.err.strip()


def run(*arguments):
    """Run `goldline ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["goldline", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return Ran(ended.value.code or 0, out.getvalue(), err.getvalue())


@pytest.fixture
def goldline(monkeypatch):
    """Runs `goldline ARGUMENTS`, without what the environment may say."""
    monkeypatch.delenv("GOLDLINE_STORE__URL", raising=False)
    return run


def line_toml(tmp_path, text):
    path = tmp_path / "line.toml"
    path.write_text(text)
    return path


# Help


def test_help_lists_every_command(goldline):
    shown = goldline("--help")
    assert shown.status == 0
    for name, says in cli.COMMANDS.items():
        assert f"  {name} " in shown.out
        assert says.split(":")[0][:30] in shown.out
    assert goldline("-h").out == shown.out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_help(goldline, name):
    shown = goldline(name, "--help")
    assert shown.status == 0
    assert f"goldline {name} [OPTIONS]" in shown.out
    assert "Commands:" in shown.out or len(shown.out.splitlines()) > 5


@pytest.mark.parametrize(
    ("group", "name"),
    [
        *(
            ("models", n)
            for n in [
                "list",
                "show",
                "history",
                "promote",
                "rollback",
                "pin",
                "shadow",
                "gc",
                "diff",
                "export",
                "import",
            ]
        ),
        *(("dead-letters", n) for n in ("list", "show", "replay")),
        *(("topics", n) for n in ("create", "check")),
        ("bench", "walk"),
        ("kafka", "start"),
    ],
)
def test_each_command_of_a_group_has_help(goldline, group, name):
    shown = goldline(group, name, "--help")
    assert shown.status == 0
    assert "Usage:" in shown.out


def test_a_mistyped_command_is_told_the_nearest(goldline):
    assert "did you mean score?" in goldline("scor").refused()
    assert "see goldline --help" in goldline("xyzzy").refused()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[worker]\nheatmaps = "yes"', "worker.heatmaps: choose all, reject or none (saw 'yes')"),
        ('[defaults]\non_no_decision = "rejct"', "defaults.on_no_decision: choose reject or pass (saw 'rejct')"),
        ('[worker]\ndevice = "gpu"', "worker.device"),
        ('[store]\nurl = "ftp://x/y"', "no model store speaks 'ftp'"),
    ],
)
def test_a_wrong_setting_is_told_what_it_may_be(goldline, tmp_path, text, says):
    assert says in goldline("check", line_toml(tmp_path, f'{text}\n[stations."line-1/top"]\n')).refused()


def test_as_a_process_it_is_the_same():
    """`python -m workers`, with warnings as they come: nothing of ours may clutter standard error."""
    ran = subprocess.run(
        [sys.executable, "-m", "workers", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "dead-letters" in ran.stdout
    assert ran.stderr == ""


def test_the_version_is_told(goldline):
    shown = goldline("--version")
    assert shown.status == 0
    assert "version 0." in shown.out


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("fit",), ("score", "x"), ("check", "--nonsense"), ("models", "x")]
)
def test_wrong_usage_is_told_and_refused(goldline, arguments):
    ran = goldline(*arguments)
    assert ran.status == 2
    assert "Error: " in ran.err
    assert "Traceback" not in ran.err


# Settings


@pytest.mark.parametrize(
    "arguments",
    [
        ("worker",),
        ("gate",),
        ("results",),
        ("topics", "check"),
        ("topics", "create"),
        ("dead-letters", "list"),
        ("camera", "photos", "--station", "line-1/top"),
    ],
)
def test_settings_that_are_not_there_are_one_clear_line(goldline, tmp_path, arguments):
    missing = tmp_path / "missing.toml"
    message = goldline(*arguments, "--config", missing).refused()
    assert message == f"goldline: cannot read settings {missing}: No such file or directory"


def test_check_says_what_the_line_looks_like(goldline, tmp_path):
    path = line_toml(
        tmp_path,
        """
        [defaults]
        deadline_ms = 250
        [stations."line-1/top"]
        recipes = ["default", "cap.blue"]
        [stations."line-1/side"]
        partition = 0
        on_no_decision = "pass"
        """,
    )
    ran = goldline("check", path)
    assert ran.status == 0
    assert ran.out.splitlines() == [
        f"{path}: ok, 2 stations",
        "  line-1/top: partition 1, recipes default, cap.blue, 250 ms, no decision means reject",
        "  line-1/side: partition 0, recipes default, 250 ms, no decision means pass",
    ]
    told = goldline("check", path, "--json").json()
    assert told == {"ok": True, "problems": [], "partitions": {"line-1/top": 1, "line-1/side": 0}}


WRONG = """
[worker]
batch_max = 0
wait_sm = 5.0
[kafka]
brokers = "localhost"
[defaults]
on_no_decision = "maybe"
[stations."Line 1"]
deadline_ms = -1
"""


def test_check_names_every_wrong_value_with_its_path(goldline, tmp_path):
    path = line_toml(tmp_path, WRONG)
    message = goldline("check", path).refused()
    for place in (
        "worker.batch_max",
        "worker.wait_sm",
        "kafka.brokers",
        "defaults.on_no_decision",
        "Line 1.deadline_ms",
    ):
        assert place in message
    assert "did you mean wait_ms?" in message
    ran = goldline("check", path, "--json")
    told = json.loads(ran.out)
    assert (ran.status, told["ok"]) == (2, False)
    assert len(told["problems"]) == 6
    assert all(str(path) in problem for problem in told["problems"])


@pytest.mark.parametrize("text", ["this is not TOML", "[worker\n", "\x00", "kafka = 3"])
def test_check_refuses_what_is_no_toml(goldline, tmp_path, text):
    path = line_toml(tmp_path, text)
    assert "line.toml" in goldline("check", path).refused()
    ran = goldline("check", path, "--json")
    assert (ran.status, json.loads(ran.out)["ok"]) == (2, False)


def test_check_of_a_folder_or_of_binary_is_refused(goldline, tmp_path):
    assert "cannot read settings" in goldline("check", tmp_path).refused()
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "is not TOML" in goldline("check", path).refused()


def test_check_applies_the_environment(goldline, tmp_path, monkeypatch):
    path = line_toml(tmp_path, '[stations."line-1/top"]\n')
    monkeypatch.setenv("GOLDLINE_DEFAULTS__DEADLINE_MS", "123")
    assert "123 ms" in goldline("check", path).out
    monkeypatch.setenv("GOLDLINE_WORKER__BATCH_MAX", "many")
    assert "GOLDLINE_WORKER__BATCH_MAX" in goldline("check", path).refused()


@pytest.mark.parametrize("arguments", [("gate", "--station", "line-9/top"), ("camera", "x", "--station", "line-9/top")])
def test_a_station_that_is_not_in_the_settings_is_refused(tmp_path, arguments):
    """In a process of its own, as these commands set up logs and signals."""
    path = line_toml(tmp_path, '[stations."line-1/top"]\n')
    ran = subprocess.run(
        [sys.executable, "-m", "workers", *arguments, "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 2
    assert "no station line-9/top in the settings (there: line-1/top)" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ('fuse = "any-reject"\n[stations."line-2/top"]\n', "name this gate's with --station"),
        ('fuse = "weighted"\nreject_at = 2\n', "a part that no camera saw would pass"),
    ],
)
def test_a_gate_whose_stations_make_no_sense_together_is_refused(tmp_path, settings, told):
    path = line_toml(tmp_path, f'[gate]\n{settings}[stations."line-1/top"]\n')
    command = [sys.executable, "-m", "workers", "gate", "--config", str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    assert told in ran.stderr
    assert "Traceback" not in ran.stderr


# Fit, score, models


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Drawn caps: 14 good ones to learn from, two to score, one spoilt, one that is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for kind in ("goods", "parts"):
        (folder / kind).mkdir()
    for i in range(GOODS):
        drawn = synthetic.draw("cap", seed=i, size=(96, 96))
        (folder / "goods" / f"{i:02}.jpg").write_bytes(synthetic.encode(drawn.image))
    for i in range(2):
        drawn = synthetic.draw("cap", seed=1000 + i, size=(96, 96))
        (folder / "parts" / f"{i}-good.png").write_bytes(synthetic.encode(drawn.image, format="PNG"))
    grey = Image.new("RGB", (96, 96), (255, 0, 255))
    grey.save(folder / "parts" / "2-wrong.png")
    (folder / "parts" / "3-torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    return folder


FIT = (
    "--station",
    "line-1/top",
    "--size",
    64,
    "--backbone",
    "resnet18",
    "--layers",
    "layer1,layer2",
    "--set",
    "coreset=0.02",
    "--device",
    "cpu",
    "--engine",
    "torch",
    "--random-weights",
)


@pytest.fixture(scope="module")
def plant(pictures, tmp_path_factory):
    """A store with two versions: the first in service. Its URL, and what `fit --json` said of both."""
    url = f"file://{tmp_path_factory.mktemp('store')}/models"

    def fit(*more):
        return run("fit", pictures / "goods", *FIT, "--store", url, "--json", *more).json()

    return (
        url,
        fit("--false-reject-rate", "0.1", "--why", "first shift"),
        fit("--false-reject-rate", "0.2", "--seed", "1"),
    )


def current(goldline, url):
    rows = goldline("models", "list", "line-1/top", "--store", url, "--json").json()
    (version,) = [row["version"] for row in rows if row["current"]]
    return version


def test_fit_says_what_it_made(plant):
    _, first, _ = plant
    assert {"version", "threshold", "guarantee", "frames", "fit_s"} <= first.keys()
    assert len(first["version"]) == 64
    assert first["frames"] == {"fit": 9, "tune": 0, "calibrate": 5}
    assert sum(first["frames"].values()) == GOODS
    assert first["threshold"] > 0
    assert first["fit_s"] > 0
    guarantee = first["guarantee"]
    assert (guarantee["holds"], guarantee["rate"], guarantee["goods"]) == (False, 0.1, 5)
    assert guarantee["goods_needed"] > 5
    assert "no guarantee" in guarantee["text"]
    assert (first["method"], first["backbone"]["weights"], first["unreadable"]) == ("patchcore", "random:seed=0", [])


def test_the_first_fit_is_in_service_and_the_second_is_not(goldline, plant):
    url, first, second = plant
    assert (first["promoted"], second["promoted"]) == (True, False)
    assert first["version"] != second["version"]
    assert current(goldline, url) == first["version"]


def test_a_store_is_the_lines_own_unless_another_is_named(goldline, plant, pictures, tmp_path, monkeypatch):
    url, first, second = plant
    config = line_toml(tmp_path, f'[store]\nurl = "{url}"\n[stations."line-1/top"]\n')
    assert len(goldline("models", "list", "--config", config, "--json").json()) == 2
    monkeypatch.chdir(tmp_path)
    assert len(goldline("models", "list", "--json").json()) == 2, "line.toml here, as for other commands"
    assert {"version": first["version"]}.items() <= goldline(
        "thresholds", "explain", "line-1/top", "--json"
    ).json().items()
    there = f"file://{tmp_path}/there"
    assert "holds no model store" in goldline("models", "list", "--store", there).refused()
    monkeypatch.setenv("GOLDLINE_STORE__URL", there)
    assert "holds no model store" in goldline("models", "list").refused()
    assert "holds no model store" in goldline("score", "line-1/top", pictures / "parts", "--config", config).refused()
    (tmp_path / "line.toml").write_text("no TOML")
    assert "holds no model store" in goldline("models", "list").refused(), "a variable or an option needs no settings"
    monkeypatch.delenv("GOLDLINE_STORE__URL")
    assert len(goldline("models", "list", "--store", url, "--json").json()) == 2
    assert "is not TOML" in goldline("models", "list").refused()
    assert "does not exist" in goldline("models", "list", "--config", "none.toml", "--store", url).refused()
    config = line_toml(tmp_path, f'[store]\nurl = "{url}"\n[stations."line-1/top"]\n')
    made = goldline("fit", pictures / "goods", *FIT, "--seed", "1", "--false-reject-rate", "0.2", "--config", config)
    assert f"kept in    {url}" in made.out
    assert "(stored, not promoted)" in made.out
    told = next(line for line in made.out.splitlines() if line.startswith("to use it"))
    assert told.endswith(f"--recipe default --store {url}")
    assert second["version"].startswith(made.out.split()[1]), "the very same model, in the very same store"


def test_models_lists_both_and_stars_the_one_in_service(goldline, plant):
    url, first, second = plant
    rows = goldline("models", "list", "--store", url, "--json").json()
    assert [(row["version"], row["current"]) for row in rows] == [(first["version"], True), (second["version"], False)]
    assert all(row["lineage"]["frames"]["fit"] == 9 for row in rows)
    assert all(row["size_bytes"] > 1000 for row in rows)
    shown = goldline("models", "list", "--store", url)
    assert [line[0] for line in shown.out.splitlines()] == ["*", " "]
    assert shown.out.count("  patchcore  ") == 2
    assert goldline("models", "list", "line-9/top", "--store", url).out == ""


def test_models_show_says_how_a_version_came_about(goldline, plant):
    url, first, second = plant
    shown = goldline("models", "show", "line-1/top", "--store", url, "--json").json()
    assert (shown["version"], shown["current"], shown["method"]) == (first["version"], True, "patchcore")
    assert [p["version"] for p in shown["promotions"]] == [first["version"]] * len(shown["promotions"])
    assert shown["meta"]["threshold"]["image"] == first["threshold"]
    other = goldline("models", "show", "line-1/top", second["version"][:8], "--store", url, "--json").json()
    assert (other["version"], other["current"]) == (second["version"], False)


def test_fit_records_where_a_model_comes_from(goldline, plant, pictures):
    url, first, second = plant
    lineages = {row["version"]: row["lineage"] for row in goldline("models", "list", "--store", url, "--json").json()}
    one, two = lineages[first["version"]], lineages[second["version"]]
    assert (one["parent"], two["parent"]) == ("", first["version"])
    assert (one["why"], two["why"]) == ("first shift", "")
    assert one["frames"] == {"fit": 9, "tune": 0, "calibrate": 5, "unreadable": 0, "copies": 0}
    assert (one["method"], one["settings"]["coreset"]) == ("patchcore", 0.02)
    assert one["backbone"] == first["backbone"]["weights_sha256"]
    assert one["code"] in goldline("--version").out
    assert (one["created_by"], one["created_at"][:2]) == (getpass.getuser(), "20")
    each = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in (pictures / "goods").iterdir())
    assert one["dataset"] == two["dataset"] == hashlib.sha256("\n".join(each).encode()).hexdigest()
    assert one["pictures"] == [digest[:12] for digest in each]
    assert one["calibration"] != two["calibration"], "another seed holds other frames out"
    assert all(len(digest) == 64 for digest in (one["calibration"], two["calibration"]))
    shown = goldline("models", "show", "line-1/top", first["version"], "--store", url).out
    assert one["pictures"][0] not in shown, "a list for machines"
    for line in ("  why          first shift", "  frames       calibrate=5, copies=0, fit=9, tune=0, unreadable=0"):
        assert line in shown.splitlines()


def test_promote_and_roll_back(goldline, plant):
    url, first, second = plant
    ran = goldline("models", "promote", "line-1/top", second["version"][:10], "--why", "better", "--store", url)
    assert ran.out == f"{second['version'][:12]} is in service at line-1/top (default), after {first['version'][:12]}\n"
    assert current(goldline, url) == second["version"]
    ran = goldline("models", "rollback", "line-1/top", "--store", url)
    assert ran.out == f"{first['version'][:12]} is in service at line-1/top (default) again\n"
    assert current(goldline, url) == first["version"]
    shown = goldline("models", "show", "line-1/top", second["version"], "--store", url, "--json").json()
    assert [p["why"] for p in shown["promotions"]] == ["better"]


def test_a_model_is_carried_to_another_store_in_one_file(goldline, plant, tmp_path):
    url, first, _ = plant
    file, there = tmp_path / "model.goldline", f"file://{tmp_path}/there"
    ran = goldline("models", "export", "line-1/top", "--out", file, "--store", url)
    assert ran.status == 0
    assert first["version"][:12] in ran.out
    assert "in service" not in goldline("models", "import", file, "--store", there).out
    assert "in service" in goldline("models", "import", file, "--promote", "--store", there).out
    assert current(goldline, there) == first["version"]
    file.write_bytes(file.read_bytes()[:-1])
    assert "is damaged" in goldline("models", "import", file, "--store", there).refused()
    assert "No such file" in goldline("models", "import", tmp_path / "none", "--store", there).refused()


def test_what_differs_between_two_versions(goldline, plant):
    url, first, second = plant
    changed = goldline(
        "models", "diff", "line-1/top", second["version"][:9], first["version"], "--store", url, "--json"
    ).json()
    assert changed["meta.threshold.image"] == [second["threshold"], first["threshold"]]
    assert "method" not in changed
    assert "the same" in goldline("models", "diff", "line-1/top", first["version"], "--store", url).out


@pytest.mark.parametrize("version", ["abc", "f" * 64, "../../etc", "current2"])
def test_a_version_that_is_not_there_is_refused_with_those_that_are(goldline, plant, version):
    url, first, _ = plant
    message = goldline("models", "promote", "line-1/top", version, "--store", url).refused()
    assert first["version"][:12] in message
    assert len(message.splitlines()) == 1


def test_score_gives_a_line_for_each_picture_in_order(goldline, plant, pictures):
    url, first, _ = plant
    lines = goldline("score", "line-1/top", pictures / "parts", "--store", url, "--json").lines()
    names = ["0-good.png", "1-good.png", "2-wrong.png", "3-torn.jpg"]
    assert [line["path"] for line in lines] == [str(pictures / "parts" / name) for name in names]
    for line in lines:
        assert {"path", "verdict", "reason", "score", "threshold", "p_value", "regions", "model"} <= line.keys()
        assert line["model"] == {"method": "patchcore", "version": first["version"]}
    for line in lines[:3]:
        assert line["verdict"] == ("reject" if line["score"] > line["threshold"] else "pass")
        assert line["reason"] is None
        assert line["threshold"] == first["threshold"]
        assert 0 < line["p_value"] <= 1
    assert lines[2]["verdict"] == "reject"
    assert lines[2]["regions"]
    x0, y0, x1, y1 = lines[2]["regions"][0]["box"]
    assert 0 <= x0 < x1 <= 96
    assert 0 <= y0 < y1 <= 96


def test_a_picture_that_cannot_be_read_is_no_decision_and_stops_nothing(goldline, plant, pictures):
    url, *_ = plant
    torn = goldline("score", "line-1/top", pictures / "parts", "--store", url, "--json").lines()[3]
    assert (torn["verdict"], torn["reason"], torn["score"], torn["regions"]) == ("no_decision", "bad_frame", None, [])
    assert "not a readable picture" in torn["detail"]
    shown = goldline("score", "line-1/top", pictures / "parts", "--store", url)
    assert shown.status == 0
    assert [line.split()[0] for line in shown.out.splitlines()][2:] == ["REJECT", "NO_DECISION"]


def test_score_by_a_versions_beginning(goldline, plant, pictures):
    url, _, second = plant
    picture = pictures / "parts" / "0-good.png"
    (line,) = goldline("score", second["version"][:7], picture, "--store", url, "--json").lines()
    assert line["model"]["version"] == second["version"]
    assert line["threshold"] == second["threshold"]
    (again,) = goldline("score", second["version"], picture, "--store", url, "--json").lines()
    assert again == line


def test_a_batch_scores_as_one_picture_does(goldline, plant, pictures):
    url, *_ = plant
    together = goldline("score", "line-1/top", pictures / "goods", "--store", url, "--json").lines()
    for line in together[::9]:
        (alone,) = goldline("score", "line-1/top", line["path"], "--store", url, "--json").lines()
        assert alone["score"] == pytest.approx(line["score"], rel=1e-4)
        assert alone["verdict"] == line["verdict"]


def test_heatmaps_of_names_that_are_long_or_no_text(goldline, plant, pictures, tmp_path):
    url, *_ = plant
    picture = (pictures / "parts" / "0-good.png").read_bytes()
    folder = tmp_path / ("f" * 200)
    folder.mkdir()
    names = [b"\xff.png", "\u3042".encode() * 80 + b".png"]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(picture)
    ran = goldline("score", "line-1/top", folder, "--heatmaps", tmp_path / "maps", "--store", url, "--json")
    assert (ran.status, len(list((tmp_path / "maps").iterdir()))) == (0, 2), ran.err


def test_score_writes_heatmaps_of_what_could_be_read(goldline, plant, pictures, tmp_path):
    url, *_ = plant
    folder = tmp_path / "deep" / "heat maps"
    goldline("score", "line-1/top", pictures / "parts", "--heatmaps", folder, "--store", url, "--json").lines()
    written = sorted(folder.iterdir())
    assert [path.name for path in written] == [
        "00000-parts-0-good.png",
        "00001-parts-1-good.png",
        "00002-parts-2-wrong.png",
    ]
    for path in written:
        with Image.open(path) as picture:
            assert (picture.size, picture.mode) == ((64, 64), "RGB")


def test_fit_tells_people_what_it_promises(goldline, plant, pictures, tmp_path):
    own = f"file://{tmp_path}/own"
    ran = goldline("fit", pictures / "goods", *FIT, "--store", own, "--recipe", "blue")
    assert ran.status == 0
    assert "(in service)" in ran.out
    assert "no guarantee: 5 calibration goods" in ran.out
    assert "random weights" in " ".join(ran.err.split())
    assert re.search(r"memory: at most \d+ MB for the fit to 14 pictures", ran.err)
    assert re.search(r"^run by +(torch|openvino-\w+)$", ran.out, re.MULTILINE)
    again = goldline("fit", pictures / "goods", *FIT, "--store", own, "--recipe", "blue", "--seed", 3)
    assert "(stored, not promoted)" in again.out
    command = next(line for line in again.out.splitlines() if line.startswith("to use it")).split()[3:]
    assert goldline(*command[1:], "--store", own).status == 0, "the command that it names works"
    third = goldline(
        "fit", pictures / "goods", *FIT, "--store", own, "--recipe", "blue", "--seed", 4, "--promote", "--json"
    )
    assert third.json()["promoted"]
    (now,) = [
        row["version"]
        for row in goldline("models", "list", "line-1/top", "--recipe", "blue", "--store", own, "--json").json()
        if row["current"]
    ]
    assert now == third.json()["version"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--station", "Line 1"), "a station is line/place"),
        (("--method", "patchcor"), "nearest: patchcore"),
        (("--method", ""), "no method ''"),
        (("--set", "corset=0.1"), "nearest: coreset"),
        (("--set", "coreset"), "key=value"),
        (("--set", "coreset=7"), "coreset"),
        (
            ("--fixtured", "--method", "patchcore"),
            "patchcore has no settings for parts that lie alike. With such: padim",
        ),
        (("--size", "8"), "32 to 4096"),
        (("--layers", "layer9"), "layer9"),
        (("--backbone", "no_such_net"), "no_such_net"),
        (("--weights", "/nowhere/w.safetensors"), "/nowhere/w.safetensors"),
        (("--device", "tpu"), "tpu"),
        (("--false-reject-rate", "0.7"), "0.7"),
        (("--store", "redis://:secret@host/0"), "password_file"),
    ],
)
def test_fit_refuses_before_anything_is_stored(goldline, pictures, tmp_path, more, says):
    message = goldline("fit", pictures / "goods", *FIT, "--store", f"file://{tmp_path}/m", *more).refused()
    assert says in " ".join(message.split())
    assert "secret" not in message
    assert not (tmp_path / "m").exists()


def test_fit_needs_a_folder_with_enough_pictures(goldline, tmp_path, pictures):
    store = ("--store", f"file://{tmp_path}/m")
    assert "no such folder" in goldline("fit", tmp_path / "missing", *FIT, *store).refused()
    (tmp_path / "empty").mkdir()
    assert "no pictures" in goldline("fit", tmp_path / "empty", *FIT, *store).refused()
    few = tmp_path / "few"
    few.mkdir()
    for i in range(3):
        (few / f"{i}.jpg").write_bytes((pictures / "goods" / f"{i:02}.jpg").read_bytes())
    assert "at least 10 are needed" in goldline("fit", few, *FIT, *store).refused()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("line-9/top", "nothing is current yet"),
        ("deadbeef", "no station and no model version 'deadbeef'"),
        ("Line/Top", "a station is"),
        ("../..", "a station is"),
    ],
)
def test_score_refuses_a_model_that_is_not_there(goldline, plant, pictures, model, says):
    url, *_ = plant
    assert says in goldline("score", model, pictures / "parts", "--store", url).refused()


def test_score_refuses_what_cannot_be_read_or_written(goldline, plant, pictures, tmp_path):
    url, *_ = plant
    score = ("score", "line-1/top")
    assert "no such picture" in goldline(*score, tmp_path / "x.jpg", "--store", url).refused()
    nowhere = goldline(*score, pictures / "parts", "--store", f"file://{tmp_path}/nowhere").refused()
    assert "is it mounted?" in nowhere
    taken = tmp_path / "a file"
    taken.write_text("")
    message = goldline(*score, pictures / "parts", "--store", url, "--heatmaps", taken).refused()
    assert message == f"goldline: {taken}: File exists"


def test_weights_are_imported_found_verified_and_carried_on(goldline, tmp_path, monkeypatch):
    monkeypatch.setenv("GOLDLINE_WEIGHTS", str(tmp_path / "folder"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    assert "there are no weights for resnet18" in goldline("weights", "verify", "resnet18").refused()
    made = goldline("weights", "import", tmp_path / "resnet18.pth", "--name", "resnet18", "--json").json()
    assert made["tensors"] == len(state)
    rows = goldline("weights", "where", "resnet18", "--json").json()
    assert [row["kind"] for row in rows if row["taken"]] == ["folder"]
    assert "resnet18" in [row["name"] for row in goldline("weights", "list", "--json").json()]
    assert goldline("weights", "verify", "resnet18", "--json").json()["stated"] == made["sha256"]
    assert goldline("weights", "export", "resnet18", tmp_path / "stick.safetensors").status == 0
    assert goldline("weights", "verify", tmp_path / "stick.safetensors", "--json").json()["sha256"] == made["sha256"]
    assert "three numbers" in goldline("weights", "import", "x", "--name", "y", "--mean", "1,2").refused()


def test_distil_runs_on_64_photographs(goldline, tmp_path):
    for i in range(64):
        image = synthetic.draw(synthetic.PARTS[i % 3], seed=i, size=(64, 64)).image
        (tmp_path / f"{i:02d}.jpg").write_bytes(synthetic.encode(image))
    teacher = tmp_path / "teacher.safetensors"
    save_file(torchvision.models.resnet18().state_dict(), teacher)
    out = tmp_path / "student.safetensors"
    told = goldline(
        *("weights", "distil", "--teacher", "resnet18", "--teacher-weights", teacher, "--teacher-layers"),
        *("layer2,layer3", "--photos", tmp_path, "--out", out, "--epochs", 1, "--views", 1, "--json"),
    ).json()
    assert (told["photos"], told["epochs"]) == (64, 1)
    assert out.stat().st_size < 6_000_000
    shown = goldline("weights", "verify", out, "--json").json()
    assert len(shown["sha256"]) == 64


def test_evaluate_writes_rows_and_a_page(goldline, tmp_path):
    folder = tmp_path / "sets"
    synthetic.write_dataset(folder / "gear", "gear", goods=8, test_goods=3, defects_each=1, seed=2)
    options = ("--size", 64, "--backbone", "resnet18", "--layers", "layer1", "--random-weights", "--engine", "torch")
    files = ("--json", tmp_path / "rows.json", "--html", tmp_path / "page.html")
    ran = goldline("evaluate", folder, *options, "--set", "coreset=0.05", "--seeds", 2, *files)
    assert ran.status == 0
    assert [f"gear patchcore {what}: image_auroc " in ran.err for what in ("seed 0", "seed 1", "mean")] == [True] * 3
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["dataset"], row["method"], row["seed"]) for row in rows] == [("gear", "patchcore", s) for s in (0, 1)]
    wanted = "dataset method backbone seed image_auroc pixel_auroc aupro_030 aupro_005 misses_at goods"
    assert {*wanted.split(), "average_precision", "defects", "fit_s", "ms_per_frame", "bank_bytes"} <= rows[0].keys()
    assert rows[0]["settings"]["coreset"] == 0.05
    assert rows[0]["settings"]["neighbours"] == 9, "defaults too"
    assert (rows[0]["view"]["size"], rows[0]["view"]["roi"], rows[0]["view"]["rotations"]) == ([64, 64], False, 1)
    page = (tmp_path / "page.html").read_text()
    assert "coreset 0.05" in page
    assert page.count("<svg") == 2
    assert page.count("<figure") > 4
    assert "nearest: patchcore" in goldline("evaluate", folder, *options, "--methods", "patchcor").refused()
    assert "none of patchcore has the setting 'x'." in goldline("evaluate", folder, *options, "--set", "x=1").refused()
    mistyped = goldline("evaluate", folder, *options, "--set", "corset=0.1").refused()
    assert "'corset'; nearest: coreset. There are: coreset, dim" in mistyped
    assert "neither a dataset" in goldline("evaluate", tmp_path / "sets" / "gear" / "test", *options).refused()
    twice = goldline("evaluate", folder, *options, "--set", "coreset=0.1", "--set", "coreset=0.2").refused()
    assert "--set coreset is given twice, as 0.1 and as 0.2" in twice


def test_parts_that_lie_alike_are_padims_unless_methods_are_named(goldline, tmp_path):
    synthetic.write_dataset(tmp_path / "gear", "gear", goods=12, test_goods=3, defects_each=1, seed=2)
    net = ("--backbone", "resnet18", "--layers", "layer1,layer2", "--random-weights", "--engine", "torch")
    options = ("--size", 64, *net)  # 192 channels
    for names, expected in (((), ["padim"]), (("--methods", "spade,padim"), ["spade", "padim"])):
        ran = goldline("evaluate", tmp_path / "gear", *options, *names, "--fixtured", "--json", tmp_path / "rows.json")
        assert ran.status == 0
        rows = json.loads((tmp_path / "rows.json").read_text())
        assert [row["method"] for row in rows] == expected
        assert rows[-1]["settings"]["embedding"] == "principal"
    screened = goldline("screen", tmp_path / "gear", *options, "--fixtured", "--set", "coreset=0.1").refused()
    assert "padim has no setting 'coreset'" in screened
    assert "mkd has no settings for parts" in goldline("screen", tmp_path, "--fixtured", "--method", "mkd").refused()
    store = ("--store", f"file://{tmp_path}/models")
    assert goldline("fit", tmp_path / "gear", *options, "--station", "a/b", "--fixtured", *store).status == 0
    (model,) = goldline("models", "list", *store, "--json").json()
    assert model["lineage"]["method"] == "padim"
    expected = {"dim": 128, "embedding": "principal", "locally_aware": True, "shrinkage": 0.2, "ridge": 1e-5}
    assert model["lineage"]["settings"].items() >= expected.items()


def test_an_evaluation_goes_on_from_its_checkpoints(goldline, tmp_path):
    for seed, name in enumerate(("bolt", "gear")):
        synthetic.write_dataset(tmp_path / "sets" / name, "gear", goods=12, test_goods=3, defects_each=1, seed=seed)
    options = ("--size", 64, "--methods", "deep_svdd", "--set", "pretrain_epochs=2", "--set", "epochs=2")
    asked = ("evaluate", tmp_path / "sets", *options, "--seeds", 2, "--scratch", tmp_path / "kept")

    def written():
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}

    rows, times = [], []
    for name in ("first", "again"):
        assert goldline(*asked, "--json", tmp_path / name).status == 0
        rows.append([row["image_auroc"] for row in json.loads((tmp_path / name).read_text())])
        times.append(written())
    assert len(times[0]) == 8, "two trainings for each set and seed"
    assert times[1] == times[0], "nothing is trained again"
    assert rows[1] == rows[0]


def test_an_evaluation_says_how_many_defects_pass_where_goods_suffice_to_say_it(goldline, tmp_path):
    synthetic.write_dataset(tmp_path / "gear", "gear", goods=10, test_goods=100, defects_each=1, seed=2)
    options = ("--size", 64, "--backbone", "resnet18", "--layers", "layer1", "--random-weights", "--engine", "torch")
    ran = goldline("evaluate", tmp_path / "gear", *options, "--set", "coreset=0.05", "--json", tmp_path / "rows.json")
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    passing = round(row["misses_at"]["0.01"] * row["defects"])
    assert f"gear patchcore seed 0: {passing} of {row['defects']} defects pass at 1.0% false rejects" in ran.err
    assert "at 0.5%" not in ran.err, "half a good part cannot be rejected"
    assert "learnt from" not in ran.err, "ten are enough"


def test_a_region_that_was_painted_on_other_frames_is_refused(goldline, tmp_path):
    synthetic.write_dataset(tmp_path / "gear", "gear", goods=12, test_goods=3, defects_each=1, seed=2)
    options = ("--size", 64, "--backbone", "resnet18", "--layers", "layer1", "--random-weights", "--engine", "torch")
    first = min((tmp_path / "gear/train/good").iterdir())
    with Image.open(first) as frame:
        wide, high = frame.size
    Image.new("L", (wide, high // 2), 255).save(tmp_path / "other.png")
    Image.new("L", (wide // 2, high // 2 + 1), 255).save(tmp_path / "half.png")  # a pixel of rounding
    fit = ("fit", tmp_path / "gear", "--station", "line-1/top", "--store", f"file://{tmp_path}/models")
    for command in (("evaluate", tmp_path / "gear"), ("screen", tmp_path / "gear"), fit):
        said = goldline(*command, *options, "--set", "coreset=0.05", "--roi", tmp_path / "other.png").refused()
        assert f"is {wide}x{high // 2} px and the frames ({first.name}) are {wide}x{high}" in said
    smaller = goldline("evaluate", tmp_path / "gear", *options, "--set", "coreset=0.05", "--roi", tmp_path / "half.png")
    assert smaller.status == 0, smaller.err


@pytest.mark.parametrize(("side", "tiles", "told"), [(8, 1, True), (32, 1, False), (8, 4, False)])
def test_a_fit_to_a_small_region_says_so(goldline, tmp_path, side, tiles, told):
    synthetic.write_dataset(tmp_path / "gear", "gear", goods=16, test_goods=0, defects_each=0, seed=2)
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (20, 20, 20 + side, 20 + side))
    mask.save(tmp_path / "mask.png")
    options = ("--size", 64, "--backbone", "resnet18", "--layers", "layer1", "--random-weights", "--engine", "torch")
    fit = ("fit", tmp_path / "gear", "--station", "line-1/top", "--store", f"file://{tmp_path}/models")
    ran = goldline(*fit, *options, "--set", "coreset=0.05", "--roi", tmp_path / "mask.png", "--tiles", tiles)
    assert ran.status == 0, ran.err
    assert ("The model has 64 pixels in the region of interest, of 4,096 that" in ran.err) is told


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png", "webp"])
def test_a_region_is_compared_with_frames_as_they_are_turned(tmp_path, suffix):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 80)).save(tmp_path / f"turned.{suffix}", exif=turned)
    (tmp_path / f"broken.{suffix}").write_bytes(b"RIFF and no more")
    frames = [tmp_path / f"broken.{suffix}", tmp_path / f"turned.{suffix}"]
    Image.new("L", (80, 40), 255).save(tmp_path / "lying.png")
    Image.new("L", (40, 80), 255).save(tmp_path / "standing.png")
    check_roi(tmp_path / "lying.png", frames)
    with pytest.raises(ConfigError, match=f"is 40x80 px and the frames \\(turned.{suffix}\\) are 80x40"):
        check_roi(tmp_path / "standing.png", frames)


def test_an_evaluation_that_is_cut_short_leaves_what_it_found(goldline, tmp_path):
    synthetic.write_dataset(tmp_path / "gear", "gear", goods=8, test_goods=3, defects_each=1, seed=2)
    options = ("--size", 64, "--backbone", "resnet18", "--layers", "layer1", "--random-weights", "--engine", "torch")
    methods = ("--methods", "padim,patchcore", "--set", "coreset=0.0001")  # no bank for the second
    files = ("--json", tmp_path / "rows.json", "--html", tmp_path / "page.html")
    ran = goldline("evaluate", tmp_path / "gear", *options, *methods, *files)
    assert ran.status == 2
    assert "is smaller than neighbours = 9" in ran.err
    assert [row["method"] for row in json.loads((tmp_path / "rows.json").read_text())] == ["padim"]
    assert "gear: padim</h2>" in (tmp_path / "page.html").read_text()
    assert [line.split()[:2] for line in ran.out.splitlines() if "padim" in line] == [["gear", "padim"]]


def test_an_evaluation_says_which_pictures_it_could_not_read_and_how_it_read_masks(goldline, tmp_path, monkeypatch):
    synthetic.write_dataset(tmp_path / "gear", "gear", goods=8, test_goods=3, defects_each=1, seed=2)
    (tmp_path / "gear/test/good/<b>.png").write_bytes(b"no picture")
    mask = next((tmp_path / "gear/ground_truth").rglob("*.png"))
    Image.new("L", (64, 64)).save(mask)
    defect = f"test/{mask.parent.name}/000.png"
    monkeypatch.chdir(tmp_path / "gear")
    options = ("--size", 64, "--backbone", "resnet18", "--layers", "layer1", "--random-weights", "--engine", "torch")
    files = ("--json", tmp_path / "rows.json", "--html", tmp_path / "page.html")
    ran = goldline("evaluate", ".", *options, "--set", "coreset=0.05", *files)
    assert ran.status == 0, ran.err
    assert "gear: pictures that cannot be read, in no figure: 1 (test/good/<b>.png)" in ran.err
    assert f"in figures of pixels there is nothing to find of them: 1 ({defect})" in ran.err
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert (row["dataset"], row["unreadable"], row["lost_masks"]) == ("gear", ["test/good/<b>.png"], [defect])
    few = "learnt from 8 good pictures: a model that serves is refused with fewer than 10"
    assert (row["learnt_from"], f"gear: {few}" in ran.err) == (8, True)
    page = (tmp_path / "page.html").read_text()
    assert few in page
    assert "pictures that cannot be read, in no figure: 1 (test/good/&lt;b&gt;.png)" in page
    assert defect in page
    assert "lighter than half after a nearest resize" in page
    assert "With a region of interest only pixels inside it count" in page


def test_an_evaluation_refuses_at_the_start_what_can_be_known_then(goldline, tmp_path):
    for name in ("bolt", "gear"):
        synthetic.write_dataset(tmp_path / name, "gear", goods=8, test_goods=3, defects_each=1, seed=2)
    options = ("--size", 64, "--backbone", "resnet18", "--layers", "layer1", "--random-weights", "--engine", "torch")
    rows = ("--json", tmp_path / "rows.json")
    tiled = goldline("evaluate", tmp_path, *options, *rows, "--methods", "patchcore,padim", "--tiles", "1,2").refused()
    assert "padim keeps statistics by position" in tiled
    for path in (tmp_path / "gear/test").rglob("*.png"):
        path.unlink()
    assert "no pictures in" in goldline("evaluate", tmp_path, *options, *rows, "--set", "coreset=0.05").refused()
    assert not (tmp_path / "rows.json").exists()


@pytest.mark.parametrize(
    ("said", "expected"),
    [({}, "5000 None"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE"), ({"GOMP_SPINCOUNT": "7"}, "7 None")],
)
def test_threads_are_told_how_to_wait_before_torch_is_loaded_unless_somebody_has_said_so(said, expected):
    program = """
        import os, sys
        from workers import cli
        assert "torch" not in sys.modules
        try:
            cli.main()
        finally:
            print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"), file=sys.stderr)
    """
    plain = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), "--help"],
        env={**plain, **said},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stderr.strip() == expected


def test_fit_takes_what_finds_the_most_planted_defects_and_says_what_was_tried(goldline, tmp_path):
    (tmp_path / "goods").mkdir()
    for i in range(30):
        drawn = synthetic.draw("cap", seed=i, size=(96, 96))
        (tmp_path / "goods" / f"{i:02d}.png").write_bytes(synthetic.encode(drawn.image, format="PNG"))
    store = ("--store", f"file://{tmp_path}/models", "--device", "cpu", "--engine", "torch")
    fit = ("fit", tmp_path / "goods", "--station", "line-1/top", "--size", 96, *store)
    told = goldline(*fit, "--method", "auto", "--json").json()
    assert [(each["method"], sorted(each["settings"])) for each in told["choice"]] == [
        ("patchcore", []),
        ("patchcore", ["image_score", "whitening"]),
        ("padim", ["dim", "embedding", "locally_aware", "ridge", "shrinkage"]),
    ]
    (taken,) = [each for each in told["choice"] if each["taken"]]
    assert told["method"] == taken["method"]
    assert all(0.5 < each["planted_auroc"] <= 1 for each in told["choice"])
    lineage = goldline("models", "list", "--store", store[1], "--json").json()[0]["lineage"]
    assert (lineage["method"], lineage["choice"]) == (told["method"], told["choice"])
    assert lineage["settings"].items() >= taken["settings"].items()
    people = goldline(*fit, "--method", "auto", "--recipe", "blue").out
    assert (people.count("taken  "), people.count("tried  ")) == (1, 2)
    shown = goldline("models", "show", "line-1/top", "--recipe", "blue", "--store", store[1]).out
    assert all(f"  {row}" in shown for row in people.splitlines()[:3]), shown
    assert "nearest: auto" in goldline(*fit, "--method", "aut").refused()
    assert "auto chooses the settings, too" in goldline(*fit, "--method", "auto", "--set", "coreset=0.1").refused()


def test_evaluate_takes_auto_for_a_method(goldline, tmp_path):
    synthetic.write_dataset(tmp_path / "cap", "cap", goods=21, test_goods=3, defects_each=1, seed=2)
    options = ("--size", 96, "--engine", "torch", "--device", "cpu", "--json", tmp_path / "rows.json")
    asked = ("--methods", "auto,patchcore", "--set", "coreset=0.02", "--html", tmp_path / "page.html")
    ran = goldline("evaluate", tmp_path / "cap", *options, *asked)
    assert ran.status == 0, ran.err
    auto, patchcore = json.loads((tmp_path / "rows.json").read_text())
    (taken,) = [each for each in auto["choice"] if each["taken"]]
    assert (auto["method"], patchcore["method"], patchcore["choice"]) == (taken["method"], "patchcore", [])
    assert auto["settings"].get("coreset", 0.01) == 0.01, "what is set is of methods that are named"
    assert f"cap auto: {auto['method']}: image_auroc" in ran.err
    alone = goldline("evaluate", tmp_path / "cap", *options, "--methods", "auto", "--set", "coreset=0.02").refused()
    assert "auto chooses the settings, too" in alone
    page = (tmp_path / "page.html").read_text()
    assert (f"cap: auto: {auto['method']}" in page, page.count("of planted defects, lead")) == (True, 3)
    synthetic.write_dataset(tmp_path / "few", "cap", goods=19, test_goods=3, defects_each=1, seed=2)
    few = goldline("evaluate", tmp_path / "few", *options, "--methods", "patchcore,auto").refused()
    assert "19 good pictures to fit are too few to choose a method by" in few


def test_fit_leaves_copies_out(goldline, tmp_path):
    goods, clean = tmp_path / "goods", tmp_path / "clean"
    for i in range(24):
        drawn = synthetic.draw("cap", seed=i if i < 12 else 7 * i % 12, size=(96, 96))
        for folder in (goods, clean) if i < 12 else (goods,):
            folder.mkdir(exist_ok=True)
            (folder / f"{i:02d}.png").write_bytes(synthetic.encode(drawn.image, format="PNG"))
    options = ("--station", "line-1/top", "--size", 96, "--engine", "torch", "--device", "cpu")
    ran = goldline("fit", goods, *options, "--store", f"file://{tmp_path}/models", "--json")
    same = goldline("fit", clean, *options, "--store", f"file://{tmp_path}/others", "--json")
    assert ran.json()["version"] == same.json()["version"], "as if nobody had copied any"
    frames = ran.json()["frames"]
    assert frames["fit"] + frames["calibrate"] == 12
    assert "12 of 24 pictures are copies of others and are left out" in ran.err
    (kept,) = goldline("models", "list", "--store", f"file://{tmp_path}/models", "--json").json()
    assert kept["lineage"]["frames"]["copies"] == 12
