"""The documentation as a site: it builds, its links lead somewhere, it fetches nothing."""

import re
import sys
from pathlib import Path

import pytest

from tests.deployed import ROOT, ran


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    told = ran(sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "-d", str(folder), cwd=ROOT)
    assert told.returncode == 0, told.stderr
    return folder


def test_every_document_has_a_page_in_the_navigation(site):
    front = (site / "index.html").read_text()
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")} - {"404.html"}
    assert {"tutorial.html", "methods.html", "reference.html", "alerts/index.html"} <= pages
    assert {page for page in pages if f'href="{page}"' not in front} == set()


def test_every_alert_is_listed(site):
    told = (site / "alerts" / "index.html").read_text()
    for path in (ROOT / "docs" / "alerts").glob("*.md"):
        assert path.name == "index.md" or f'href="{path.stem}.html"' in told, path


def test_a_link_to_a_readme_is_one_to_its_page(site):
    front = (site / "index.html").read_text()
    assert 'href="reference.html#at-the-gate"' in front
    assert not [path for path in site.rglob("*.html") if re.search(r'href="[^":]*\.md["#]', path.read_text())]


def test_blocks_that_tests_run_look_like_all_others(site):
    assert "sh run" not in (site / "tutorial.html").read_text()


def test_nothing_is_fetched_from_elsewhere(site):
    for path in site.rglob("*.html"):
        assert not re.search(r'(src|rel="stylesheet" href)="https?://', path.read_text()), path
