"""`goldline screen` shows good pictures unlike the others; `--without` leaves them out of fits and evaluations."""

import json
import shutil

import pytest

from model_store import ModelKey, open_store
from pipeline import synthetic
from tests.workers.test_calibrate import goldline, refused, told

STATION = "line-1/top"
SEEN = ("--size", 96, "--backbone", "goldline-s", "--device", "cpu", "--engine", "torch", "--set", "coreset=0.2")
SPOILT = "spoilt <b>.png"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Nineteen drawn gears and one that lacks something; its name could do harm on a page."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(19):
        (folder / f"{i:02}.png").write_bytes(drawn(i))
    (folder / SPOILT).write_bytes(drawn(100, defect="missing"))
    return folder


def drawn(seed, *, defect=None):
    return synthetic.encode(synthetic.draw("gear", seed=seed, size=(96, 96), defect=defect).image, format="PNG")


@pytest.fixture
def without(tmp_path):
    file = tmp_path / "without.txt"

    def write(*names):
        file.write_text("# looked at on Monday\n\n" + "\n".join(names) + "\n")
        return "--without", file

    return write


def test_a_defect_among_the_goods_is_shown_first(photos, tmp_path):
    page = tmp_path / "unlike.html"
    lines = told("screen", photos, *SEEN, "--top", 3, "--html", page).splitlines()
    assert lines[0].split(maxsplit=3)[:2] == ["1", "*"]
    assert lines[0].endswith(f"  {SPOILT}")
    assert len([line for line in lines if ".png" in line]) == 3
    assert lines[3].startswith("1 of 20 pictures stand out (*)")
    assert lines[4] == f"look at the first ones: {page}"
    shown = page.read_text()
    assert shown.count("<figure>") == 3
    assert shown.count("data:image/png;base64,") == 6
    assert "1. spoilt &lt;b&gt;.png, score" in shown
    assert "<b>" not in shown


def test_what_is_not_shown_is_told_and_no_work_is_lost_for_a_page(photos, tmp_path):
    twice = tmp_path / "photos"
    shutil.copytree(photos, twice)
    (twice / "b-\udcff.png").write_bytes(drawn(101, defect="missing"))  # a name that is no Unicode
    lines = told("screen", twice, *SEEN, "--top", 1, "--html", tmp_path / "page.html").splitlines()
    stand_out = int(lines[1].split()[0])
    assert stand_out == 2, "one would show nothing here"
    assert lines[2] == "1 of these are not shown: --top 2 shows them"
    assert "<figure>" in (tmp_path / "page.html").read_text()
    nowhere = tmp_path / "nowhere/page.html"
    assert refused("screen", photos, *SEEN, "--html", nowhere).startswith(f"goldline: --html {nowhere}: there is no")


def test_json_has_every_picture(photos):
    body = json.loads(told("screen", photos, *SEEN, "--folds", 3, "--json"))
    rows = body["pictures"]
    assert [row["picture"] for row in rows if row["stands_out"]] == [SPOILT]
    assert sorted(row["picture"] for row in rows) == sorted(path.name for path in photos.iterdir())
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert (body["unreadable"], body["left_out"]) == ([], [])


def test_what_is_left_out_is_not_screened_again(photos, without):
    body = json.loads(told("screen", photos, *SEEN, "--json", *without(SPOILT)))
    assert len(body["pictures"]) == 19
    assert body["left_out"] == [SPOILT]
    assert not any(row["stands_out"] for row in body["pictures"])


def test_a_fit_without_a_picture_is_the_fit_of_a_folder_that_lacks_it(photos, without, tmp_path):
    lacking = tmp_path / "lacking"
    shutil.copytree(photos, lacking, ignore=lambda _folder, names: [name for name in names if name == SPOILT])
    made = []
    said = told("fit", photos, "--station", STATION, *SEEN, "--store", f"file://{tmp_path}/said", *without(SPOILT))
    assert f"left out   1: {SPOILT}" in said.splitlines()
    for folder, more in ((photos, without(SPOILT)), (lacking, ())):
        url = f"file://{tmp_path}/{folder.name}-models"
        told("fit", folder, "--station", STATION, *SEEN, "--store", url, *more)
        store = open_store(url)
        (entry,) = store.versions(ModelKey(STATION))
        made.append((entry.version, entry.lineage.extra["left_out"]))
    assert made[0] == (made[1][0], [SPOILT])
    assert made[1][1] == []
    shown = told("models", "show", STATION, "--store", f"file://{tmp_path}/{photos.name}-models")
    assert f"  left out     {SPOILT}" in shown.splitlines()


def test_an_evaluation_leaves_out_what_it_is_told(tmp_path, photos, without):
    for kind in ("train/good", "test/good", "test/missing"):
        (tmp_path / "gears" / kind).mkdir(parents=True)
    for path in photos.iterdir():
        shutil.copy(path, tmp_path / "gears/train/good")
    for i in range(4):
        (tmp_path / "gears/test/good" / f"{i}.png").write_bytes(drawn(500 + i))
        (tmp_path / "gears/test/missing" / f"{i}.png").write_bytes(drawn(600 + i, defect="missing"))
    rows = {}
    for name, more in (("all", ()), ("without", without(f"train/good/{SPOILT}"))):
        told("evaluate", tmp_path / "gears", *SEEN[:-1], "coreset=1", "--json", tmp_path / f"{name}.json", *more)
        (rows[name],) = json.loads((tmp_path / f"{name}.json").read_text())
    assert (rows["all"]["left_out"], rows["without"]["left_out"]) == ([], [f"train/good/{SPOILT}"])
    assert rows["without"]["bank_bytes"] / rows["all"]["bank_bytes"] == pytest.approx(19 / 20, rel=0.01)
    shutil.copytree(tmp_path / "gears", tmp_path / "sets/one")
    shutil.copytree(tmp_path / "gears", tmp_path / "sets/two")
    assert "goes with one dataset, not with 2" in refused("evaluate", tmp_path / "sets", *SEEN, *without(SPOILT))


def test_a_name_may_begin_with_a_hash_or_a_space(photos, without, tmp_path):
    odd = tmp_path / "odd"
    shutil.copytree(photos, odd)
    for name in ("#1.png", " 2.png"):
        shutil.copy(photos / SPOILT, odd / name)
    file = tmp_path / "names.txt"
    file.write_bytes(f"\ufeff#1.png\r\n# 07.png stays\r\n#\r\n 2.png\r\n{SPOILT}\r\n".encode())
    body = json.loads(told("screen", odd, *SEEN, "--json", "--without", file))
    assert sorted(row["picture"] for row in body["pictures"]) == [f"{i:02}.png" for i in range(19)]


def test_a_threshold_is_not_calibrated_on_what_a_fit_without_a_picture_has_seen(photos, without, tmp_path):
    store = ("--store", f"file://{tmp_path}/models")
    told("fit", photos, "--station", STATION, *SEEN, *store, *without(SPOILT))
    message = refused("calibrate", STATION, photos, "--verified-by", "ana", *store)
    assert "was fitted on 19 of these very pictures" in message


def test_names_that_mean_no_picture_or_several_are_refused(photos, without, tmp_path):
    fit = ("fit", "--station", STATION, *SEEN, "--store", f"file://{tmp_path}/models")
    assert "no picture '0.png' in" in refused(*fit, photos, *without("0.png"))
    assert "nearest: 07.png" in refused(*fit, photos, *without("007.png"))
    for shift in ("early", "late"):
        shutil.copytree(photos, tmp_path / "photos" / shift)
    message = refused(*fit, tmp_path / "photos", *without("07.png"))
    assert "'07.png' means 2 pictures" in message
    assert "early/07.png" in message
    shutil.copy(photos / "07.png", tmp_path / "photos/07.png")
    status, _, err = goldline(*fit, tmp_path / "photos", *without("07.png"))  # as `screen` names the one at the root
    assert status == 0, err
    everything = without(*(path.name for path in photos.iterdir()))
    assert "all 20 pictures" in refused(*fit, photos, *everything)
    missing = tmp_path / "missing.txt"
    assert f"--without {missing}: No such file" in refused(*fit, photos, "--without", missing)
    assert "it names no picture" in refused(*fit, photos, *without("# nothing", "  # yet"))
    assert "a comment begins with `# `" in refused(*fit, photos, *without("#nothing"))
    assert "nearest: 07.png" in refused(*fit, photos, *without("photos\\07.PNG"))
    missing.write_bytes("07.png".encode("utf-16"))
    assert "it is no text in UTF-8" in refused(*fit, photos, "--without", missing)
    for name in ("late/07.png", "late/07.png  ", tmp_path / "photos/late/07.png"):
        body = json.loads(told(*fit, tmp_path / "photos", "--json", *without(str(name))))
        assert body["left_out"] == ["late/07.png"]
