"""The page of measured figures says what the reports say."""

import json

from tests.benchmarks import figures


def test_the_page_is_what_the_reports_make_of_it():
    made = figures.page(figures.HERE)
    assert figures.PAGE.read_text(encoding="utf-8") == made, "run python -m tests.benchmarks.figures"
    there = [name for name in figures._SECTIONS if (figures.HERE / f"{name}.json").exists()]
    assert len(there) == made.count("\n## ")


def test_another_figure_makes_another_page(tmp_path):
    report = json.loads((figures.HERE / "swaps.json").read_text())
    (tmp_path / "swaps.json").write_text(json.dumps({**report, "late": 17}))
    assert "17 late" in figures.page(tmp_path)
    assert figures.page(tmp_path).count("\n## ") == 1
