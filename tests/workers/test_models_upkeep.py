"""`goldline models` over a version's life, on a disk and in Redis; and a worker under whose feet the store changes."""

import getpass
import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise

import pytest
import redis
import torch
from structlog.testing import capture_logs

from model_store import ModelKey, open_store
from pipeline import commissioning, methods, synthetic
from pipeline.backbone import resolve
from pipeline.data import Artifact, Frame
from pipeline.decode import Limits
from pipeline.errors import ModelNotFound
from pipeline.settings import Settings
from pipeline.view import View
from tests.redis_server import RedisServer
from workers import cli
from workers.backbones import opener
from workers.live import Models

STATION = "line-1/top"
KEY = ModelKey(STATION)
ME = getpass.getuser()


def goldline(*arguments):
    """Run `goldline ARGUMENTS` in this process: its exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["goldline", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return ended.value.code or 0, out.getvalue(), err.getvalue()


@pytest.fixture(params=["disk", "redis"])
def url(request, tmp_path):
    if request.param == "disk":
        yield f"file://{tmp_path}/models"
        return
    assert request.getfixturevalue("redis_server")
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as server:  # of this test's own: it is flushed
        yield f"redis://{server.address}/0?cache={tmp_path}/cache"


@pytest.fixture
def models(url):
    """Runs `goldline models ARGUMENTS`, which must work; with --json what it says is read."""

    def run(name, *arguments):
        status, out, err = goldline("models", name, *arguments, "--store", url)
        assert status == 0, err
        return json.loads(out) if "--json" in arguments else out

    return run


@pytest.fixture
def refused(url):
    def run(name, *arguments):
        status, out, err = goldline("models", name, *arguments, "--store", url)
        assert (status, out) == (2, "")
        assert "Traceback" not in err
        return err

    return run


@pytest.fixture
def versions(url):
    """Three versions: the first was in service, the second is, the third never was."""
    store = open_store(url)
    made = [
        store.put(KEY, Artifact(method="padim", tensors={"bank": torch.full((8, 8), float(n))}, meta={"n": n}))
        for n in range(3)
    ]
    for before, version in [(None, made[0]), (made[0], made[1])]:
        store.promote(KEY, version, expected=before, who="ana", why=f"number {made.index(version)}")
    return made


def test_states_and_marks_are_in_the_list(models, versions):
    retired, _, candidate = versions
    models("pin", STATION, retired[:8], "--why", "the golden one")
    models("shadow", STATION, candidate[:8], "--canary", "0.05")
    rows = {row["version"]: row for row in models("list", STATION, "--json")}
    assert [rows[v]["state"] for v in versions] == ["retired", "active", "shadow"]
    assert [rows[v]["pinned"] for v in versions] == [True, False, False]
    assert [rows[v]["canary_share"] for v in versions] == [0, 0, 0.05]
    lines = models("list", STATION).splitlines()
    (pinned,) = [line for line in lines if retired[:12] in line]
    (tried,) = [line for line in lines if candidate[:12] in line]
    assert "retired" in pinned
    assert pinned.endswith("pinned")
    assert "shadow" in tried
    assert tried.endswith("canary 0.05")
    models("shadow", STATION, "--off")
    models("pin", STATION, retired[:8], "--unpin")
    assert [row["state"] for row in models("list", STATION, "--json") if row["version"] == candidate] == ["candidate"]
    assert not any(row["pinned"] for row in models("list", STATION, "--json"))


def test_history_is_everything_that_anybody_changed(models, versions):
    retired, active, candidate = versions
    models("pin", STATION, retired[:8], "--why", "the golden\none")
    models("shadow", STATION, candidate[:8], "--canary", "0.05", "--why", "looks good")
    models("promote", STATION, candidate[:8], "--why", "better")
    rows = models("history", STATION, "--json")
    assert [(row["what"], row["version"], row["who"], row["why"]) for row in rows] == [
        ("promoted", retired, "ana", "number 0"),
        ("promoted", active, "ana", "number 1"),
        ("pinned", retired, ME, "the golden\none"),
        ("shadow, canary 0.05:", candidate, ME, "looks good"),
        ("promoted", candidate, ME, "better"),
        ("shadow off:", candidate, ME, "promoted"),
    ]
    assert rows[1]["previous"] == retired
    shown = models("history", STATION).splitlines()
    assert len(shown) == 6
    assert shown[2].endswith(f"pinned {retired[:12]}  {ME}: the golden\N{REPLACEMENT CHARACTER}one")


def test_a_promoted_shadow_is_none_after_a_rollback(models, versions):
    """Else what was rolled back because it was bad would go on deciding its share of the parts."""
    models("shadow", STATION, versions[2][:8], "--canary", "0.5")
    models("promote", STATION, versions[2][:8])
    models("rollback", STATION)
    states = {row["version"]: row["state"] for row in models("list", STATION, "--json")}
    assert states[versions[2]] == "retired"


def test_gc_says_what_it_keeps_and_why(models, versions):
    retired, active, candidate = versions
    said = models("gc", "--keep-days", "0", "--dry-run")
    assert "1 of 3 versions would be deleted" in said
    assert said.count("keep  ") == 2
    assert models("gc").count("keep  ") == 3, "all were used lately"
    models("pin", STATION, candidate[:8])
    assert models("gc", "--keep-days", "0", "--json")["freed_bytes"] == 0
    models("pin", STATION, candidate[:8], "--unpin")
    told = models("gc", "--keep-days", "0", "--json")
    assert {row["version"]: row["kept"] for row in told["versions"]} == {
        retired: "previous: a rollback returns to it",
        active: "current",
        candidate: None,
    }
    assert [(s["where"], s["version"]) for s in told["swept"]] == [("store", candidate)]
    assert told["freed_bytes"] > 8 * 8 * 4
    assert {row["version"] for row in models("list", "--json")} == {retired, active}


def test_what_cannot_be_is_refused(refused, versions):
    assert "name a VERSION" in refused("shadow", STATION)
    assert "name a VERSION" in refused("shadow", STATION, versions[2][:8], "--off")
    assert "name a VERSION" in refused("shadow", STATION, "--off", "--canary", "0.1")
    assert "cannot be tried beside itself" in refused("shadow", STATION, versions[1][:8])
    assert "canary" in refused("shadow", STATION, versions[2][:8], "--canary", "2")
    assert versions[1][:12] in refused("pin", STATION, "f" * 64)
    assert "keep-days" in refused("gc", "--keep-days", "-1")


def test_show_is_for_people_and_json_for_machines(models, url, versions):
    store = open_store(url)
    made = {"why": "new \x1b[31mlamp", "settings": {"coreset": 0.1}, "frames": {"fit": 9}, "seen_by": "ben"}
    artifact = Artifact(method="padim", tensors={"bank": torch.ones(2)}, meta={"view": {"size": [64, 64]}})
    version = store.put(KEY, artifact, lineage=made)
    told = models("show", STATION, version[:8])
    for line in ("state        candidate", "  settings     coreset=0.1", "  view.size    64, 64", "  seen_by      ben"):
        assert line in told.splitlines()
    assert "\x1b" not in told
    assert "number 1" in models("show", STATION)
    assert models("show", STATION, version[:8], "--json")["lineage"]["settings"] == {"coreset": 0.1}


# A worker


@pytest.fixture(scope="module")
def fitted():
    """Three versions of a small real PatchCore."""
    goods = [
        Frame(frame_id=str(i), image=synthetic.encode(synthetic.draw("cap", seed=i, size=(96, 96)).image))
        for i in range(14)
    ]
    net = resolve("resnet18", ("layer1",), weights=None, random_weights=True, factories=[])
    config = methods.make_config("patchcore", {"coreset": "0.02"})
    return [
        commissioning.commission(
            goods,
            method="patchcore",
            config=config,
            backbone=net,
            view=View(size=(64, 64)),
            limits=Limits(),
            rate=0.05,
            seed=seed,
        ).inspector.save()
        for seed in range(3)
    ]


def a_worker(url):
    return Models(
        open_store(url),
        [KEY],
        open_backbone=opener(Settings(), "cpu"),
        limits=Limits(),
        poll_s=3600.0,
        most_bytes=10**9,
    )


def verdicts(worker):
    frame = Frame(frame_id="f", image=synthetic.encode(synthetic.draw("cap", seed=99, size=(96, 96)).image))
    live = worker.find(STATION, "default")
    return live.version, live.inspector.inspect([frame]).verdicts[0].score


def test_a_version_deleted_under_a_running_worker_stays_in_its_memory(url, models, fitted):
    store, worker = open_store(url), a_worker(url)
    versions = [store.put(KEY, artifact) for artifact in fitted]
    store.promote(KEY, versions[0], expected=None, who="ana")
    worker.refresh()
    before = verdicts(worker)
    for old, new in pairwise(versions):
        store.promote(KEY, new, expected=old, who="ana")
    models("gc", "--keep-days", "0")
    with pytest.raises(ModelNotFound):
        store.get(KEY, versions[0])
    assert verdicts(worker) == before
    worker.refresh()
    assert verdicts(worker)[0] == versions[2]


@pytest.mark.parametrize("url", ["redis"], indirect=True)
def test_redis_flushed_a_worker_goes_on_and_an_import_restores_it(url, models, refused, fitted, tmp_path):
    store, worker = open_store(url), a_worker(url)
    version = store.put(KEY, fitted[0])
    store.promote(KEY, version, expected=None, who="ana")
    worker.refresh()
    before = verdicts(worker)
    models("export", STATION, "--out", tmp_path / "model.goldline")
    with redis.Redis.from_url(url.partition("?")[0]) as client:
        client.flushall()
    with capture_logs() as logs:
        worker.refresh()
    (said,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert said["event"] == "store: keeping the models there are"
    assert "was it flushed" in said["error"]
    assert verdicts(worker) == before
    for command in (("list",), ("promote", STATION, version), ("gc",), ("pin", STATION, version), ("history", STATION)):
        assert "goldline models import FILE --promote" in refused(*command)
    started = a_worker(url)
    started.refresh()
    assert verdicts(started) == before, "a worker that starts meanwhile has this machine's copy"
    models("import", tmp_path / "model.goldline", "--promote")
    with capture_logs() as logs:
        worker.refresh()
    assert [entry for entry in logs if entry["log_level"] == "error"] == []
    assert verdicts(worker) == before
    assert open_store(url).current(KEY) == version
