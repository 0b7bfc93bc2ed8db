"""`goldline refit` from a pool on disk to a model in service: candidates, reviews, approvals, and what stops them."""

import getpass
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from model_store import ITSELF, ModelKey, open_store, promote, state_of, withdrawal
from model_store.leases import open_leases
from model_store.pool import open_pool
from model_store.pool_records import Candidate, Feedback
from pipeline import commissioning, methods, synthetic
from pipeline import review as reviewing
from pipeline import settings as line
from pipeline.backbone import resolve
from pipeline.data import Artifact, Decision, Frame
from pipeline.decode import Limits
from pipeline.drift import Baseline
from pipeline.martingale import Alarm
from pipeline.view import View
from tests.workers.test_models_upkeep import goldline
from workers import approval, baselines, provenance, refit_watch
from workers.baselines import Kept
from workers.commands import refit as command
from workers.metrics import RefitMetrics
from workers.rig import Rig, to_toml

STATION = "line-1/top"
KEY = ModelKey(STATION)
NOW = datetime.now(UTC)
POOLED = 24
ALARM = Alarm(log_martingale=8.0, direction="higher", since=NOW - timedelta(hours=31), at=NOW, frame_id="f", seen=90)
ROOT = Path(__file__).resolve().parents[2]


def picture(seed, *, spoilt=False):
    """A drawn cap; a spoilt one so that a backbone without training sees it."""
    image = synthetic.draw("cap", seed=seed, size=(64, 64)).image
    if spoilt:
        image[16:48, 16:48] = np.random.default_rng(seed).integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
    return synthetic.encode(image)


@pytest.fixture(scope="module")
def drawn():
    """Pictures by what they are for, each drawn once."""
    return {
        "fit": [picture(i) for i in range(40)],
        "pool": [picture(100 + i) for i in range(POOLED)],
        "good": [picture(200 + i) for i in range(20)],
        "defect": [picture(300 + i, spoilt=True) for i in range(6)],
    }


@pytest.fixture(scope="module")
def first(drawn):
    """A real PatchCore on drawn caps, and what its lineage would be."""
    frames = [Frame(frame_id=str(i), image=image) for i, image in enumerate(drawn["fit"])]
    made = commissioning.commission(
        frames,
        method="patchcore",
        config=methods.make_config("patchcore", {"coreset": "0.1"}),
        backbone=resolve("resnet18", ("layer1", "layer2"), weights=None, random_weights=True, factories=[]),
        view=View(size=(64, 64)),
        limits=Limits(),
        rate=0.05,
    )
    lineage = {"created_by": "tests", "method": "patchcore", "pictures": provenance.pictures(frames)}
    return made.inspector.save(), lineage


@pytest.fixture
def settings_tree(tmp_path):
    return {
        "store": {"url": f"file://{tmp_path}/models"},
        "pool": {"url": f"file://{tmp_path}/pool"},
        "drift": {"folder": f"{tmp_path}/drift"},
        "refit": {
            "golden": f"{tmp_path}/golden",
            "rules": {
                "frames_min": 10,
                "goods_min": 15,
                "defects_min": 6,
                "folds": 2,
                "p_min": 0.0,
                "distance_max": 100.0,
            },
        },
        "stations": {STATION: {}},
    }


@pytest.fixture
def config(tmp_path, settings_tree):
    path = tmp_path / "line.toml"
    path.write_text(to_toml(settings_tree))
    return path


@pytest.fixture
def settings(config):
    return line.read(config, {})


@pytest.fixture
def store(settings, first):
    made = open_store(settings.store.url)
    artifact, lineage = first
    promote(made, KEY, made.put(KEY, artifact, lineage=lineage), expected=None, who="ana")
    return made


@pytest.fixture
def pool(settings, drawn):
    made = open_pool(settings.pool)
    made.create()
    for i, image in enumerate(drawn["pool"]):
        at = NOW - timedelta(hours=30, minutes=i)
        offered = Candidate(
            key=KEY,
            frame_id=f"frame-{i}",
            part_id=f"part-{i}",
            captured_at=at,
            image=image,
            decision=Decision.PASS,
            score=1.0,
            p_value=0.5,
            model="a" * 64,
        )
        assert made.admit(offered, at=at) == "admitted"
    return made


@pytest.fixture
def golden(tmp_path, drawn):
    folder = tmp_path / "golden" / STATION / "default"
    for kind in ("good", "defect"):
        (folder / kind).mkdir(parents=True)
        for i, image in enumerate(drawn[kind]):
            (folder / kind / f"{i:02}.jpg").write_bytes(image)
    return folder


@pytest.fixture
def watched(settings):
    """The station's monitors as a worker keeps them, with no alarm; call it to raise one."""
    path = baselines.place(settings, STATION, "default")

    def keep(alarm=None, windows=()):
        baseline = Baseline()
        if alarm:
            name = next(iter(baseline.monitors))
            baseline.monitors[name].alarm = alarm
        baselines.write(path, Kept(baseline=baseline, log_limit=7.0, saved_at=NOW, windows=windows))

    keep()
    return keep


@pytest.fixture
def refit(config, monkeypatch):
    monkeypatch.setattr(command, "_step_back", lambda threads: None)  # no process gets its priority back

    def run(*arguments, status=0):
        got, out, err = goldline("refit", *arguments, "--config", config)
        assert got == status, (out, err)
        return out or err

    return run


@pytest.fixture
def whole(store, pool, golden, watched):
    """All that a refit needs."""
    return store


def refitted(refit, *arguments, status=0):
    return json.loads(refit("--station", STATION, "--json", *arguments, status=status))


def state(store, version):
    return state_of(version, store.history(KEY), store.marks(KEY))


def test_a_candidate_waits_for_a_person_who_approves_it(whole, refit, drawn):
    parent = whole.current(KEY)
    done = refitted(refit, "--why", "a new lot")
    assert (done["outcome"], done["parent"], done["reasons"]) == ("stored", parent, [])
    assert {f["outcome"] for f in done["review"]["findings"]} == {"passed"}
    assert whole.current(KEY) == parent, "a person decides"
    lineage = provenance.lineage_of(whole, KEY, done["version"])
    used = {f"frame-{i}" for i in range(POOLED)} - done["left_out"].keys()
    assert (lineage.parent, lineage.why, lineage.created_by) == (parent, "a new lot", getpass.getuser())
    assert (set(lineage.extra["pool_frames"]), lineage.extra["refit"]) == (used, "incremental")
    assert lineage.frames == {"fit": len(used), "tune": 0, "calibrate": 20, "unreadable": 0}
    learnt = provenance.lineage_of(whole, KEY, parent).pictures
    assert set(learnt) < set(lineage.pictures), "the parent's pictures are in it"
    assert len(lineage.pictures) == len(learnt) + len(used)

    assert "in service" in refit("approve", STATION, done["version"][:12], "--by", "Ana Jones")
    last = whole.history(KEY)[-1]
    assert (last.version, last.previous, last.who) == (done["version"], parent, "Ana Jones")


def test_the_review_is_kept_and_shown(whole, refit, settings):
    done = refitted(refit)
    status, out, err = goldline("models", "show", STATION, done["version"], "--store", settings.store.url)
    assert status == 0, err
    for finding in done["review"]["findings"]:
        assert finding["words"][:60] in out, finding["rule"]


def test_a_dry_run_stores_nothing(whole, refit):
    before = whole.versions(KEY)
    assert refitted(refit, "--dry-run")["outcome"] == "dry run"
    assert [info.version for info in whole.versions(KEY)] == [info.version for info in before]


def test_auto_puts_it_in_service_when_every_rule_was_checked(whole, refit):
    done = refitted(refit, "--approval", "auto")
    assert done["outcome"] == "promoted"
    assert whole.current(KEY) == done["version"]
    assert whole.history(KEY)[-1].who == ITSELF


def test_auto_waits_for_a_person_where_the_model_approved_last_is_gone(whole, pool, refit, settings):
    approved = whole.current(KEY)
    for n in (1, 2):
        other = whole.put(KEY, changed(whole.get(KEY, whole.current(KEY)), by=n), lineage={"pictures": ["0" * 12]})
        promote(whole, KEY, other, expected=whole.current(KEY), who=ITSELF)
    assert refitted(refit, "--dry-run")["review"]["findings"][-1]["outcome"] == "passed"
    next(Path(settings.store.url.removeprefix("file://")).rglob(f"versions/{approved}*.json")).unlink()
    done = refitted(refit, "--approval", "auto")
    assert done["outcome"] == "stored"
    assert "lost since approval: the model that a person approved last is stored no more" in done["words"]


def test_auto_waits_for_a_person_where_misses_cannot_be_checked(whole, golden, refit):
    for path in (golden / "defect").iterdir():
        path.unlink()
    done = refitted(refit, "--approval", "auto")
    assert done["outcome"] == "stored"
    assert "no golden defects" in done["words"]


def test_auto_waits_for_a_person_where_golden_defects_are_few(whole, golden, refit):
    for path in sorted((golden / "defect").iterdir())[1:]:
        path.unlink()
    done = refitted(refit, "--approval", "auto")
    assert done["outcome"] == "stored"
    assert "lost defects: 1 golden defects that the model in service catches are too few to say" in done["words"]


def test_a_trial_comes_before_service(whole, refit):
    parent = whole.current(KEY)
    done = refitted(refit, "--approval", "shadow-then-auto")
    assert (done["outcome"], whole.marks(KEY).shadow, whole.current(KEY)) == ("on trial", done["version"], parent)


def test_a_promotion_killed_before_its_last_step_leaves_the_model_in_service(whole, refit):
    parent = whole.current(KEY)
    version = refitted(refit, "--approval", "shadow-then-auto")["version"]
    whole.promote(KEY, version, expected=parent, who=ITSELF)  # and the shadow's mark was not taken away
    assert refitted(refit, "--dry-run")["outcome"] == "dry run"
    assert whole.marks(KEY).shadow == version, "a dry run changes nothing"
    assert refitted(refit)["parent"] == version
    assert (whole.current(KEY), state(whole, version)) == (version, "active")
    assert (whole.marks(KEY).shadow, whole.marks(KEY).withdrawn) == (None, set())


def test_without_golden_goods_it_is_refused_and_says_what_is_missing(store, pool, watched, refit):
    done = refitted(refit, status=3)
    assert (done["outcome"], done["version"]) == ("refused", None)
    assert any(reason.startswith("calibration: 0 verified goods") for reason in done["reasons"])
    assert [info.version for info in store.versions(KEY)] == [store.current(KEY)]


def test_too_few_frames_are_refused(whole, pool, refit):
    said = [Feedback(part_id=f"part-{i}", verdict="defect", by="ana", at=NOW) for i in range(POOLED - 9)]
    pool.report(said)
    assert any(r.startswith("frames: 9 frames") for r in refitted(refit, status=3)["reasons"])


def test_goods_that_the_model_was_fitted_on_cannot_calibrate(whole, golden, drawn, refit):
    for path in (golden / "good").iterdir():
        path.unlink()
    for i, image in enumerate(drawn["fit"][:20]):
        (golden / "good" / f"{i}.jpg").write_bytes(image)
    assert any(r.startswith("calibration: 0 verified") for r in refitted(refit, status=3)["reasons"])


def test_goods_that_a_threshold_selected_are_no_golden_set(whole, golden, refit):
    chosen = {"chosen_by": "threshold", "station": STATION}
    (golden / "good" / "selection.json").write_text(json.dumps(chosen))
    assert "a threshold selected these pictures" in refit("--station", STATION, status=2)


def test_drift_pauses_refits_until_a_person_has_looked(whole, watched, refit):
    watched(alarm=ALARM)
    (reason,) = refitted(refit, status=3)["reasons"]
    assert "goldline baseline accept" in reason
    watched()
    assert refitted(refit)["outcome"] == "stored"


@pytest.mark.parametrize("approve", ["auto", "shadow-then-auto"])
def test_drift_that_begins_during_a_fit_keeps_its_candidate_waiting(whole, pool, watched, refit, settings, approve):
    parent = whole.current(KEY)
    done = refitted(refit)
    watched(alarm=ALARM)
    review = reviewing.read(done["review"])
    decided = approval.after_review(settings, whole, pool, KEY, done["version"], parent, review, approve)
    assert decided.what == "stored"
    assert "goldline baseline accept" in decided.words
    assert (whole.current(KEY), whole.marks(KEY).shadow) == (parent, None)


def test_no_person_approves_while_the_station_drifts(whole, watched, refit):
    parent, version = whole.current(KEY), refitted(refit)["version"]
    watched(alarm=ALARM)
    assert "goldline baseline accept" in refit("approve", STATION, version, "--by", "ana", status=2)
    assert whole.current(KEY) == parent
    watched()
    refit("approve", STATION, version, "--by", "ana")
    assert whole.current(KEY) == version


def test_a_trial_goes_on_while_nobody_knows_whether_the_station_drifts(whole, settings, refit):
    parent, version = whole.current(KEY), refitted(refit, "--approval", "shadow-then-auto")["version"]
    baselines.place(settings, STATION, "default").unlink()
    done = refitted(refit)
    assert (done["outcome"], done["version"]) == ("trial goes on", version)
    assert "is that the folder of its worker?" in done["words"]
    assert (whole.current(KEY), whole.marks(KEY).shadow) == (parent, version)


def test_frames_of_a_time_of_drift_are_left_out_for_good(whole, watched, refit):
    window = baselines.Window(since=NOW - timedelta(hours=30, minutes=11, seconds=30), until=NOW - timedelta(hours=29))
    watched(windows=(window,))
    done = refitted(refit)
    assert done["review"]["pool"] == POOLED - 12
    used = provenance.lineage_of(whole, KEY, done["version"]).extra["pool_frames"]
    assert min(int(name.removeprefix("frame-")) for name in used) >= 12


def test_two_at_once_one_runs_and_the_other_says_who(whole, settings, refit):
    before = [info.version for info in whole.versions(KEY)]
    with open_leases(settings.store.url).hold(f"refit/{STATION}/default", who="bob@server-3"):
        told = refit("--station", STATION, status=4)
    assert "bob@server-3 is at it since" in told
    assert [info.version for info in whole.versions(KEY)] == before


def test_a_refused_candidate_goes_in_service_by_no_way(whole, refit, settings):
    version = refitted(refit)["version"]
    refit("refuse", STATION, version, "--by", "ana", "--why", "the heatmaps look odd")
    assert state(whole, version) == "withdrawn"
    assert "withdrawn by ana" in refit("approve", STATION, version, "--by", "bob", status=2)
    status, _, err = goldline("models", "promote", STATION, version, "--store", settings.store.url)
    assert (status, "the heatmaps look odd" in err) == (2, True)
    assert refitted(refit, status=3)["words"].count("the same model as before"), "the same pool gives the same model"


def test_what_was_held_beside_another_model_is_not_approved(whole, refit):
    first, version = whole.current(KEY), refitted(refit)["version"]
    other = whole.put(KEY, changed(whole.get(KEY, version)))
    promote(whole, KEY, other, expected=first, who="ana")
    assert "refit again" in refit("approve", STATION, version, "--by", "ana", status=2)
    assert whole.current(KEY) == other


def changed(artifact, by=1):
    """The same model with another threshold: another version."""
    meta = dict(artifact.meta)
    meta["threshold"] = {**meta["threshold"], "pixel": meta["threshold"]["pixel"] + by}
    return Artifact(method=artifact.method, tensors=artifact.tensors, meta=meta)


def test_a_part_that_turns_out_defective_takes_its_candidate_with_it(whole, pool, refit):
    version = refitted(refit)["version"]
    used = provenance.lineage_of(whole, KEY, version).extra["pool_frames"]
    part = used[0].replace("frame", "part")
    pool.report([Feedback(part_id=part, verdict="defect", by="ana", at=NOW)])
    assert "reported as defective since" in refit("approve", STATION, version, "--by", "bob", status=2)
    assert state(whole, version) == "withdrawn"


def test_feedback_withdraws_what_waits_and_names_what_is_in_service(whole, refit):
    parent = whole.current(KEY)
    active = refitted(refit, "--approval", "auto")["version"]
    part = provenance.lineage_of(whole, KEY, active).extra["pool_frames"][0].replace("frame", "part")
    said = Feedback(part_id=part, verdict="defect", by="ana", at=NOW)
    found, _ = provenance.fitted_with(whole, part, set())
    assert [(each.version, each.state) for each in found] == [(active, "active")]
    promote(whole, KEY, parent, expected=active, who="ana")
    (after,) = provenance.withdraw_waiting(whole, found, said)
    assert after.state == "active", "what was in service is a person's to take out"


def test_pool_show_names_the_refits_that_learnt_from_a_part(whole, refit, config):
    version = refitted(refit)["version"]
    part = provenance.lineage_of(whole, KEY, version).extra["pool_frames"][0].replace("frame", "part")
    status, out, err = goldline("pool", "show", part, "--config", config, "--json")
    assert status == 0, err
    assert [row["version"] for row in json.loads(out)["fitted_with"]] == [version]


@pytest.mark.parametrize("arguments", [[], ["--watch", "--station", STATION]])
def test_it_is_one_station_or_all_by_schedule(whole, refit, arguments):
    assert "--station, or --watch" in refit(*arguments, status=2)


def test_watching_needs_a_schedule(whole, refit):
    assert "every night at three" in refit("--watch", status=2)


def test_a_watch_refits_every_station_when_it_is_due_and_not_before(whole, config, settings_tree):
    settings_tree["refit"]["schedule"] = "0 3 * * *"
    settings_tree["stations"]["line-1/side"] = {}
    config.write_text(to_toml(settings_tree))
    stop = threading.Event()
    three = datetime(2026, 3, 29, 3, tzinfo=UTC)
    times = [three - timedelta(seconds=0.1)] * 3 + [three]
    seen = []

    def clock():
        at = times[min(len(seen), 3)]
        seen.append(len(whole.versions(KEY)))
        if len(seen) == 5:
            stop.set()
        return at

    read = line.read(config, {})
    metrics = RefitMetrics(read)
    with capture_logs() as logged:
        refit_watch.run(read, stop, clock, metrics)
    assert (
        metrics.registry.get_sample_value(
            "goldline_refits_total", {"station": STATION, "recipe": "default", "outcome": "stored"}
        )
        == 1
    )
    assert seen == [1, 1, 1, 1, 2, 2], "stored once, at three"
    told = [(entry["event"], entry.get("station"), entry.get("outcome")) for entry in logged]
    assert ("refit", STATION, "stored") in told
    assert ("refit: there is no model to refit", "line-1/side", None) in told


def test_a_watch_says_who_is_at_it_and_goes_on(whole, settings):
    with open_leases(settings.store.url).hold(f"refit/{STATION}/default", who="bob@server-3"), capture_logs() as logged:
        refit_watch.once(settings, KEY)
    assert [(entry["event"], entry["log_level"]) for entry in logged] == [("refit: another process is at it", "info")]


@pytest.mark.parametrize("page", ["/health/live", "/health/ready", "/metrics"])
def test_a_watch_that_waits_for_its_hour_answers(watching, page):
    with urllib.request.urlopen(watching + page, timeout=10) as answer:
        assert answer.status == 200


@pytest.fixture(scope="module")
def watching(tmp_path_factory):
    """A process that waits for its hour; where it answers. It needs no broker."""
    rig = Rig(tmp_path_factory.mktemp("watching"), {})
    rig.config.write_text(to_toml({"stations": {STATION: {}}, "refit": {"schedule": "0 0 29 2 *"}}))
    process = rig.run("refit", "refit", "--watch", "--config", str(rig.config))
    yield rig.metrics_url(process)
    process.end()


def argv(config):
    code = "import sys; from workers.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, "refit", "--station", STATION, "--approval", "auto", "--config", str(config)]


def test_killed_at_any_moment_it_leaves_the_model_and_no_half_version(whole, config, refit):
    parent, chance = whole.current(KEY), random.Random(3)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    began = time.monotonic()
    subprocess.run([*argv(config), "--dry-run"], env=environment, cwd=ROOT, check=True, capture_output=True)
    lasts_s = time.monotonic() - began
    for _ in range(3):
        process = subprocess.Popen(argv(config), env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
        time.sleep(lasts_s * chance.uniform(0.3, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        versions = [info.version for info in whole.versions(KEY)]
        for version in versions:
            whole.get(KEY, version)  # whole, or an ArtifactError
        assert whole.current(KEY) in versions
        if whole.current(KEY) != parent:
            break
    done = refitted(refit, "--approval", "auto")
    assert done["outcome"] == "promoted"
    assert not withdrawal(whole, KEY, done["version"])
