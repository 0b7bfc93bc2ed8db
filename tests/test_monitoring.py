"""Dashboards, rules, runbooks and metrics belong together."""

import re
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.conftest import missing
from tests.monitoring import DASHBOARDS, ROOT, RULES, RUNBOOKS, alerts, asked, exported, panels, rules, series_names

CASES = ROOT / "tests/prometheus/rules_test.yaml"
METRICS = (ROOT / "docs/metrics.md").read_text()
UNITS = {"short", "s", "reqps", "percentunit", "bytes"}


def test_the_dashboards_are_as_their_program_writes_them(tmp_path):
    subprocess.run([sys.executable, ROOT / "deploy/grafana/generate.py", tmp_path], check=True)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {p.name: p.read_text() for p in DASHBOARDS}
    assert [p.stem for p in DASHBOARDS] == ["line", "models", "station", "workers"]


@pytest.mark.parametrize(("dashboard", "panel"), list(panels()), ids=lambda p: p if isinstance(p, str) else p["title"])
def test_a_panel_says_what_it_shows(dashboard, panel):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["datasource"]["uid"] == "${datasource}"
    assert panel["targets"]
    for target in panel["targets"]:
        assert asked(target["expr"]), target["expr"]


def test_no_two_panels_lie_on_each_other():
    for name in {name for name, _ in panels()}:
        taken = set()
        for _, panel in (each for each in panels() if each[0] == name):
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken
            assert max(x for x, _ in cells) < 24
            taken |= cells


def test_every_metric_that_is_asked_for_exists():
    there = series_names() | {"up"} | {rule["record"] for rule in rules() if "record" in rule}
    queries = [target["expr"] for _, panel in panels() for target in panel["targets"]]
    queries += [rule["expr"] for rule in rules()]
    assert {name for query in queries for name in asked(query)} <= there


def test_a_name_in_a_query_is_found():
    assert asked('sum by (station, up) (rate(goldline_a_total{process="up"}[5m])) / goldline:b:c and up == 0') == {
        "goldline_a_total",
        "goldline:b:c",
        "up",
    }


def test_every_metric_is_documented_and_no_other():
    assert set(re.findall(r"`((?:goldline|process)_[a-z_]+)`", METRICS)) == exported().keys()


def test_every_metric_of_ours_is_on_a_dashboard_or_in_a_rule():
    queries = [target["expr"] for _, panel in panels() for target in panel["targets"]]
    queries += [rule["expr"] for rule in rules()]
    used = {re.sub("_(bucket|sum|count)$", "", name) for query in queries for name in asked(query)}
    assert {name for name in exported() if name.startswith("goldline_")} <= used


@pytest.mark.parametrize("name", list(alerts()))
def test_an_alert_has_its_page_which_says_what_to_do(name):
    rule = alerts()[name]
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["runbook_url"] == f"docs/alerts/{name}.md"
    page = (RUNBOOKS / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n\nSeverity: {rule['labels']['severity']}.\n")
    assert re.findall("^## (.+)", page, re.MULTILINE) == ["What it means", "First look", "What to do"]


def test_no_page_outlives_its_alert():
    assert {p.stem for p in RUNBOOKS.glob("*.md")} - {"index"} == alerts().keys()


def test_every_alert_is_tested_firing_and_quiet():
    names = [case["name"].partition(":")[0] for case in yaml.safe_load(CASES.read_text())["tests"]]
    assert sorted(names) == sorted(f"{name} {kind}" for name in alerts() for kind in ("fires", "is quiet"))


@pytest.fixture(scope="module")
def promtool():
    found = shutil.which("promtool")
    if found is None:
        missing("no promtool here: install prometheus (Debian: apt-get install prometheus)")
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", "--lint-fatal", RULES],
        ["check", "config", ROOT / "deploy/prometheus/prometheus.yaml"],
        ["test", "rules", CASES],
    ],
    ids=["rules", "config", "cases"],
)
def test_promtool_accepts(promtool, arguments):
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
