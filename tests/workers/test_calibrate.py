"""`goldline calibrate`, `goldline thresholds explain`: thresholds from verified good parts, and what they promise."""

import getpass
import hashlib
import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch

from model_store import ModelKey, open_store
from pipeline import selection, synthetic
from pipeline.guarantee import allowed, provable
from pipeline.selection import Marked, Selection
from workers import cli

STATION = "line-1/top"
KEY = ModelKey(STATION)
GOODS = 60


def goldline(*arguments):
    """Run `goldline ARGUMENTS` in this process: its exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["goldline", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return ended.value.code or 0, out.getvalue(), err.getvalue()


def told(*arguments):
    status, out, err = goldline(*arguments)
    assert status == 0, err
    return out


def refused(*arguments):
    status, out, err = goldline(*arguments)
    assert (status, out) == (2, ""), err
    assert "Traceback" not in err
    return err


def digest(folder):
    each = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.jpg"))
    return hashlib.sha256("\n".join(each).encode()).hexdigest()


@pytest.fixture(scope="module")
def goods(tmp_path_factory):
    """Sixty drawn caps that the model was not fitted on."""
    folder = tmp_path_factory.mktemp("goods")
    for i in range(GOODS):
        drawn = synthetic.draw("cap", seed=100 + i, size=(96, 96))
        (folder / f"{i:02}.jpg").write_bytes(synthetic.encode(drawn.image))
    return folder


@pytest.fixture
def store(tmp_path, model):
    """A store with one model in service, and its URL."""
    url = f"file://{tmp_path}/models"
    store = open_store(url)
    lineage = {"dataset": "d" * 64, "method": "patchcore", "frames": {"fit": 17, "tune": 0, "calibrate": 7}}
    store.promote(KEY, store.put(KEY, model, lineage=lineage), expected=None, who="tests")
    return store, url


@pytest.fixture
def few(goods, tmp_path):
    """Six of the pictures, in a folder that a test may change."""
    folder = tmp_path / "few"
    folder.mkdir()
    for path in sorted(goods.iterdir())[:6]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def listed(folder, **changes):
    """A list beside the pictures that says how they were chosen."""
    parts = tuple(
        Marked(part_id=f"p{i}", frame_id=f"f{i}", picture=path.name, captured_at="")
        for i, path in enumerate(sorted(folder.glob("*.jpg")))
    )
    said = {"chosen_by": "part-id", "station": STATION, "of": 500, "parts": parts} | changes
    selection.write(folder, Selection(**said))


def test_the_same_detector_gets_a_threshold_from_verified_goods(store, goods, model):
    models, url = store
    parent = models.current(KEY)
    out = told("calibrate", STATION, goods, "--verified-by", "ana", "--why", "new lamp", "--store", url, "--json")
    made = json.loads(out)
    assert (made["parent"], made["promoted"], made["calibrated_on"]) == (parent, False, GOODS)
    assert models.current(KEY) == parent, "it waits"
    assert made["version"] != parent
    assert (made["guarantee"]["holds"], made["guarantee"]["rate"], made["guarantee"]["goods"]) == (True, 0.05, GOODS)

    artifact = models.get(KEY, made["version"])
    assert artifact.tensors.keys() == model.tensors.keys()
    assert all(torch.equal(artifact.tensors[n], t) for n, t in model.tensors.items() if n != "calibration")
    assert {n for n in model.meta if artifact.meta[n] != model.meta[n]} == {"threshold"}

    lines = told("score", STATION, goods, "--store", url, "--json").splitlines()
    scores = [json.loads(line)["score"] for line in lines]
    assert made["threshold"] == pytest.approx(max(scores), rel=1e-4), "k = 0 of 60 at 5 %"
    assert made["rejected_before"] == sum(json.loads(line)["verdict"] == "reject" for line in lines)
    assert made["threshold_before"] == json.loads(lines[0])["threshold"]

    lineage = next(info.lineage.to_json() for info in models.versions(KEY) if info.version == made["version"])
    assert lineage["frames"] == {"fit": 17, "tune": 0, "calibrate": GOODS, "unreadable": 0}
    assert (lineage["parent"], lineage["why"], lineage["method"]) == (parent, "new lamp", "patchcore")
    assert (lineage["dataset"], lineage["calibration"]) == ("d" * 64, digest(goods))
    assert (lineage["verified_by"], lineage["chosen_by"]) == ("ana", "unselected, as stated")
    assert lineage["created_by"] == getpass.getuser()


def test_promote_puts_it_in_service_and_people_are_told(store, few):
    models, url = store
    before = models.current(KEY)
    (few / "torn.jpg").write_bytes(b"\xff\xd8\xff no picture")
    out = told("calibrate", STATION, few, "--verified-by", "ana", "--rate", "0.01", "--promote", "--store", url)
    assert models.current(KEY) != before
    assert models.history(KEY)[-1].previous == before
    assert "(in service)" in out
    assert "no guarantee: 6 calibration goods, 299 are needed for 0.01" in out
    assert "unreadable 1: " in out


def test_what_it_says_to_do_next_works(store, few):
    models, url = store
    out = told("calibrate", STATION, few, "--verified-by", "ana", "--store", url)
    command = next(line for line in out.splitlines() if line.startswith("to use it")).split()[4:]
    before = models.current(KEY)
    told(*command, "--store", url)
    assert models.current(KEY) != before


def test_parts_drawn_for_an_audit_calibrate_though_some_were_taken_out(store, few, goods, tmp_path):
    models, url = store
    listed(few)
    (few / "03.jpg").unlink()
    more = tmp_path / "more"
    more.mkdir()
    (more / "a.jpg").write_bytes((goods / "50.jpg").read_bytes())
    out = told("calibrate", STATION, few, more, "--verified-by", "ana", "--store", url, "--json")
    assert json.loads(out)["calibrated_on"] == 6
    lineage = next(i.lineage.to_json() for i in models.versions(KEY) if i.version == json.loads(out)["version"])
    assert lineage["chosen_by"] == "part-id, unselected, as stated"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"chosen_by": "threshold"}, "Good parts that scored above it are missing"),
        ({"station": "line-2/top"}, "drawn at line-2/top (default), not line-1/top (default)"),
        ({"recipe": "blue"}, "drawn at line-1/top (blue)"),
        ({"parts": ()}, "6 pictures were not drawn with the others"),
    ],
    ids=["truncated", "station", "recipe", "strange pictures"],
)
def test_pictures_that_may_not_calibrate_are_refused(store, few, changes, says):
    models, url = store
    listed(few, **changes)
    assert says in refused("calibrate", STATION, few, "--verified-by", "ana", "--store", url)
    assert len(models.versions(KEY)) == 1


def test_a_fit_refuses_them_too(few, tmp_path):
    listed(few, chosen_by="threshold")
    url = f"file://{tmp_path}/none"
    assert "a threshold selected these pictures" in refused("fit", few, "--station", STATION, "--store", url)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"chosen_by": "luck", "station": "line-1/top"}', "\xff"])
def test_a_list_that_cannot_be_understood_is_refused(store, few, text):
    (few / selection.FILE).write_bytes(text.encode("latin-1"))
    assert "does not say how these pictures were chosen" in refused(
        "calibrate", STATION, few, "--verified-by", "ana", "--store", store[1]
    )


def test_pictures_that_nobody_answers_for_are_refused(store, few):
    assert "--verified-by" in refused("calibrate", STATION, few, "--store", store[1])
    assert "name is needed" in refused("calibrate", STATION, few, "--verified-by", " ", "--store", store[1])


def test_the_pictures_of_the_fit_are_refused(tmp_path, model, few):
    url = f"file://{tmp_path}/fitted"
    store = open_store(url)
    store.promote(KEY, store.put(KEY, model, lineage={"dataset": digest(few)}), expected=None, who="tests")
    assert "was fitted on these very pictures" in refused(
        "calibrate", STATION, few, "--verified-by", "a", "--store", url
    )


def test_a_picture_counts_once(store, few):
    (few / "copy.jpg").write_bytes((few / "02.jpg").read_bytes())
    message = refused("calibrate", STATION, few, "--verified-by", "ana", "--store", store[1])
    assert "is the same picture as" in message
    assert "each part counts once" in message


def test_too_few_pictures_none_readable_and_a_wrong_rate_are_refused(store, few, tmp_path):
    models, url = store
    options = ("--verified-by", "ana", "--store", url)
    assert "0.7" in refused("calibrate", STATION, few, "--rate", "0.7", *options)
    for name in ("00", "01"):
        (few / f"{name}.jpg").unlink()
    assert "4 calibration goods; at least 5" in refused("calibrate", STATION, few, *options)
    for i, path in enumerate(sorted(few.iterdir())):
        path.write_bytes(b"no picture %d" % i)
    assert "none of 4 pictures can be read" in refused("calibrate", STATION, few, *options)
    assert "no such folder" in refused("calibrate", STATION, tmp_path / "none", *options)
    assert "nothing is current" in refused("calibrate", "line-9/top", few, *options)
    assert len(models.versions(KEY)) == 1


def test_explain_says_what_is_promised_and_what_more_parts_would_buy(store, goods):
    _, url = store
    told("calibrate", STATION, goods, "--verified-by", "ana", "--promote", "--store", url)
    body = json.loads(told("thresholds", "explain", STATION, "--store", url, "--json"))
    assert (body["guarantee"]["holds"], body["above"], body["proved"]) == (True, 0, 0.05)
    assert (body["verified_by"], body["chosen_by"]) == ("ana", "unselected, as stated")
    assert {row["rate"]: (row["goods"], row["more"]) for row in body["goods_needed"]} == {
        0.05: (59, 0), 0.01: (299, 239), 0.005: (598, 538), 0.001: (2995, 2935),
    }  # fmt: skip
    assert body["more_goods"][0] == {
        "goods": GOODS,
        "provable": provable(GOODS),
        "allowed": 0,
        "expected": pytest.approx(1 / 61),
    }
    assert [row["goods"] for row in body["more_goods"]] == [60, 100, 300, 600, 1000, 2000, 3000, 5000, 10_000]
    assert all(row["allowed"] == allowed(row["goods"], 0.05) for row in body["more_goods"])
    page = told("thresholds", "explain", STATION, "--store", url)
    assert "At most 5 % of good parts are rejected, with 95 % confidence." in page
    assert "It rests on 60 good parts: 0 may lie above the threshold, 0 do." in page
    assert "verified by ana" in page
    assert "that defects are found" in page
    assert "to promise 0.1 %: 2995 (2935 more)" in page


def test_explain_says_no_guarantee_where_there_is_none(store):
    _, url = store
    page = told("thresholds", "explain", STATION, "--store", url)
    assert "No guarantee: 5 % was asked for; 7 good parts cannot prove it, 59 can." in page
    assert "None of them lies above it: at most 34.8 % is proved" in page
    assert "nobody stated it" in page
    body = json.loads(told("thresholds", "explain", STATION, "--store", url, "--json"))
    assert (body["guarantee"]["holds"], body["proved"]) == (False, provable(7))
    assert body["more_goods"][0]["allowed"] is None
