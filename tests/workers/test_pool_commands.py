"""`goldline pool` on a pool on disk, and which versions `goldline feedback` names."""

import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest

from model_store import ModelKey, State, open_store
from model_store.pool import open_pool
from model_store.pool_records import Candidate, Feedback
from pipeline import settings as line
from pipeline.data import Decision
from tests.model_store.backends import model
from tests.workers.test_models_upkeep import goldline
from workers.commands.feedback import _fitted_with
from workers.provenance import Fitted
from workers.rig import to_toml

KEY, OTHER = ModelKey("line-1/top"), ModelKey("line-1/side", "sku-7.b")
NOW = datetime.now(UTC)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "line.toml"
    urls = {"store": {"url": f"file://{tmp_path}/models"}, "pool": {"url": f"file://{tmp_path}/pool", "keep_days": 3}}
    path.write_text(to_toml(urls))
    return path


@pytest.fixture
def pool(config):
    made = open_pool(line.read(config, {}).pool)
    made.create()
    for i, (key, age_h) in enumerate([(KEY, 30), (KEY, 1), (OTHER, 2)]):
        admit(made, i, key=key, at=NOW - timedelta(hours=age_h))
    return made


def admit(pool, i, *, key, at):
    made = Candidate(
        key=key,
        frame_id=f"frame-{i}",
        part_id=f"part-{i}",
        captured_at=at,
        image=f"picture {i}".encode(),
        decision=Decision.PASS,
        score=1.0,
        p_value=0.5,
        model="a" * 64,
    )
    assert pool.admit(made, at=at) == "admitted"


def told(*arguments):
    status, out, err = goldline(*arguments)
    assert status == 0, err
    return out


def test_stats_counts_by_station_and_day(pool, config):
    pool.report([Feedback(part_id="part-1", verdict="good", by="ana", at=NOW)])
    pool.report([Feedback(part_id="part-9", verdict="defect", by="ana", at=NOW)])
    body = json.loads(told("pool", "stats", "--config", config, "--json"))
    assert (body["defects"], body["removals"]) == (1, 1)
    side, top = body["stations"]
    assert (side["station"], side["recipe"], side["frames"], side["size_bytes"]) == ("line-1/side", "sku-7.b", 1, 9)
    assert (top["frames"], top["quarantined"], top["usable"], top["verified"]) == (2, 1, 1, 1)
    days = [f"{NOW - timedelta(hours=h):%Y-%m-%d}" for h in (30, 1)]
    assert top["days"] == dict.fromkeys(days, 1)
    assert top["oldest"] < top["newest"]
    shown = told("pool", "stats", "--config", config)
    assert "line-1/top (default): 2 frames, 18 bytes" in shown
    assert "1 in quarantine, 1 verified, 1 usable" in shown
    assert f"  {days[0]}       1" in shown


def test_show_and_remove_say_what_there_is_and_was(pool, config):
    shown = told("pool", "show", "part-0", "--config", config)
    assert "line-1/top (default)  frame-0" in shown
    assert "usable" in shown
    assert json.loads(told("pool", "show", "part-1", "--config", config, "--json"))["frames"][0]["quarantined"]
    assert told("pool", "remove", "part-0", "--by", "ana", "--why", "oil\x1b[2J", "--config", config) == (
        "1 frames removed\n"
    )
    body = json.loads(told("pool", "show", "part-0", "--config", config, "--json"))
    assert body["frames"] == []
    assert body["reports"][0]["by"] == "ana"
    assert [frame["frame_id"] for frame in body["removals"][0]["frames"]] == ["frame-0"]
    shown = told("pool", "show", "part-0", "--config", config)
    assert "reported as defective by ana" in shown
    assert "1 frames removed, by ana" in shown
    assert "\x1b" not in shown, "words of people do nothing to a terminal"


def test_removing_at_one_station_leaves_the_others(pool, config):
    admit(pool, 1, key=OTHER, at=NOW)
    remove = ("pool", "remove", "part-1", "--by", "ana", "--why", "light")
    assert json.loads(told(*remove, "--station", OTHER.station, "--config", config, "--json"))["removed"] == 1
    assert [pooled.key for pooled in pool.frames(part_id="part-1")] == [KEY]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("remove", "part-1", "--by", " ", "--why", "x"), "feedback"),
        (("remove", "part-1", "--by", "ana", "--why", "x", "--station", "Line 1"), "feedback"),
        (("remove", "part-1", "--by", "ana"), "--why"),
        (("remove", "part-1", "--why", "x"), "--by"),
    ],
)
def test_a_removal_that_nobody_signs_is_refused(pool, config, arguments, says):
    status, _, err = goldline("pool", *arguments, "--config", config)
    assert status == 2
    assert says in err
    assert len(pool.frames()) == 3


def test_without_a_pool_it_is_said_where_to_name_one(tmp_path):
    path = tmp_path / "line.toml"
    path.write_text("")
    status, _, err = goldline("pool", "stats", "--config", path)
    assert (status, "[pool] url" in err) == (2, True)


def test_versions_fitted_with_a_picture_of_the_part_are_named_also_after_it_was_removed(pool, config):
    settings = line.read(config, {})
    store = open_store(settings.store.url)
    digest = hashlib.sha256(b"picture 1").hexdigest()[:12]
    with_it = store.put(KEY, model(1.0), lineage={"pictures": sorted([digest, "0" * 12])})
    store.put(KEY, model(2.0), lineage={"pictures": ["0" * 12]})
    found = [Fitted(key=KEY, version=with_it, state=State.CANDIDATE)]
    assert _fitted_with(settings, "part-1") == (found, "")
    assert _fitted_with(settings, "part-0") == ([], "")
    pool.report([Feedback(part_id="part-1", verdict="defect", by="ana", at=NOW)])
    assert _fitted_with(settings, "part-1") == (found, "")
    store.put(OTHER, model(3.0))
    assert "1 versions" in _fitted_with(settings, "part-1")[1]
    assert "no picture of it" in _fitted_with(settings, "part-7")[1]


def test_where_it_is_not_known_which_versions_were_fitted_it_is_said_why(pool, config):
    settings = line.read(config, {})
    assert "is it mounted" in _fitted_with(settings, "part-1")[1]
    open_store(settings.store.url).put(KEY, model())
    assert "no [pool]" in _fitted_with(line.Settings(store=settings.store), "part-1")[1]
