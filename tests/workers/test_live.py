"""Whatever is wrong with a candidate or with the store, the model in service stays."""

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from structlog.testing import capture_logs

from model_store import Marks, ModelKey, open_store, version_of
from model_store.records import short
from pipeline import commissioning, methods, synthetic
from pipeline.backbone import Backbone, resolve
from pipeline.data import Artifact, Frame
from pipeline.decode import Limits
from pipeline.footprint import footprint
from pipeline.inspection import Inspector
from pipeline.settings import Settings
from pipeline.view import View
from workers.backbones import opener
from workers.live import Models
from workers.loading import Loader
from workers.shelf import Live, Trial

TOP, SIDE = ModelKey("line-1/top"), ModelKey("line-1/side")
CAPS = [
    Frame(frame_id=f"c{i}", image=synthetic.encode(synthetic.draw("cap", seed=50 + i, size=(96, 96)).image))
    for i in range(2)
]


@pytest.fixture(scope="module")
def fitted():
    """Three versions of a small real PatchCore."""
    goods = [
        Frame(frame_id=str(i), image=synthetic.encode(synthetic.draw("cap", seed=i, size=(96, 96)).image))
        for i in range(14)
    ]
    net = resolve("resnet18", ("layer1", "layer2"), weights=None, random_weights=True, factories=[])
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


@pytest.fixture
def store(tmp_path):
    return open_store(f"file://{tmp_path}/models")


@pytest.fixture(scope="module")
def open_backbone():
    """As in a worker, but opened once for all tests."""
    opened, really = {}, opener(Settings(), "cpu")

    def backbone(spec):
        if spec not in opened:
            opened[spec] = really(spec)
        return opened[spec]

    return backbone


@pytest.fixture
def watch(store, open_backbone):
    """Makes the models of a worker, which has looked at the store once."""
    made = []

    def start(*keys, poll_s=3600.0, refresh=True, opens=None, most_bytes=10**9):
        models = Models(
            store,
            list(keys or [TOP, SIDE]),
            open_backbone=opens or open_backbone,
            limits=Limits(),
            poll_s=poll_s,
            most_bytes=most_bytes,
        )
        made.append(models)
        if refresh:
            models.refresh()
        return models

    yield start
    for models in made:
        models.stop()


def put(store, artifact, key=TOP):
    return store.put(key, artifact)


def promote(store, artifact, key=TOP):
    version = put(store, artifact, key)
    store.promote(key, version, expected=store.current(key), who="tests")
    return version


def blob(tmp_path, version):
    return tmp_path / "models" / "objects" / version[:2] / version


def damage(path):
    """Flip one bit in the middle of the tensors."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def promoted_by_force(tmp_path, key, version):
    """What the store itself would refuse: a pointer to a version, whatever its state."""
    folder = tmp_path.joinpath("models", "models", *key.station.split("/"), key.recipe, "promotions")
    folder.mkdir(parents=True, exist_ok=True)
    number = max([int(p.stem) for p in folder.glob("[0-9]*.json")], default=0) + 1
    said = {"version": version, "previous": None, "at": "2025-06-15T12:00:00Z", "who": "x", "why": ""}
    (folder / f"{number:08}.json").write_text(json.dumps(said))


def refresh(models):
    """The errors that one more look at the store brings."""
    with capture_logs() as logged:
        models.refresh()
    return [each["event"] for each in logged if each["log_level"] == "error"]


def test_what_is_current_is_loaded_and_scores(store, watch, fitted, open_backbone):
    version = promote(store, fitted[0])
    live = watch().find("line-1/top", "default")
    assert (live.version, live.method) == (version, "patchcore")
    here = Inspector.load(fitted[0], open_backbone=open_backbone, limits=Limits()).inspect(CAPS)
    there = live.inspector.inspect(CAPS)
    np.testing.assert_allclose([v.score for v in there.verdicts], [v.score for v in here.verdicts], rtol=1e-4)


@pytest.mark.parametrize(
    ("station", "recipe"), [("line-1/top", "other"), ("line-1/side", "default"), ("line-9/top", "default"), ("", "")]
)
def test_a_recipe_or_station_without_a_model_has_none(store, watch, fitted, station, recipe):
    promote(store, fitted[0])
    assert watch().find(station, recipe) is None


def test_recipes_of_a_station_have_models_of_their_own(store, watch, fitted):
    green = ModelKey("line-1/top", "green")
    versions = promote(store, fitted[0]), promote(store, fitted[1], green)
    models = watch(TOP, green)
    assert models.find("line-1/top", "default").version == versions[0]
    assert models.find("line-1/top", "green").version == versions[1]


def test_a_stored_version_that_nobody_promoted_is_not_used(store, watch, fitted):
    put(store, fitted[0])
    assert watch().find("line-1/top", "default") is None


def test_a_promotion_is_swapped_in_whole_at_the_next_look(store, watch, fitted):
    first = promote(store, fitted[0])
    models = watch()
    before = models.find("line-1/top", "default")
    second = promote(store, fitted[1])
    assert models.find("line-1/top", "default") is before
    assert refresh(models) == []
    after = models.find("line-1/top", "default")
    assert (before.version, after.version) == (first, second)
    assert after.inspector is not before.inspector
    store.promote(TOP, first, expected=second, who="tests", why="rollback")
    models.refresh()
    assert models.find("line-1/top", "default").version == first


def test_what_has_not_changed_is_not_loaded_again(store, watch, fitted):
    promote(store, fitted[0])
    models = watch()
    live = models.find("line-1/top", "default")
    models.refresh()
    assert models.find("line-1/top", "default") is live


def test_a_backbone_is_opened_once_for_all_models(store, watch, fitted):
    promote(store, fitted[0])
    promote(store, fitted[1], SIDE)
    models = watch(opens=opener(Settings(), "cpu"))
    one, other = models.find("line-1/top", "default"), models.find("line-1/side", "default")
    assert one.inspector.shares is other.inspector.shares is not None


def test_a_flipped_bit_leaves_the_old_model_and_is_not_tried_again(tmp_path, store, watch, fitted):
    first = promote(store, fitted[0])
    models = watch()
    second = promote(store, fitted[1])
    damage(blob(tmp_path, second))
    with capture_logs() as logged:
        models.refresh()
    (refusal,) = [each for each in logged if each["log_level"] == "error"]
    assert (refusal["refused"], refusal["kept"], refusal["station"]) == (second, first, "line-1/top")
    assert "damaged" in refusal["error"]
    assert models.find("line-1/top", "default").version == first
    assert models.find("line-1/top", "default").inspector.inspect(CAPS).verdicts
    assert refresh(models) == [], "not tried again until the pointer moves"
    third = promote(store, fitted[2])
    assert refresh(models) == []
    assert models.find("line-1/top", "default").version == third


def test_a_mended_model_is_loaded_when_it_is_promoted_again(tmp_path, store, watch, fitted):
    first = promote(store, fitted[0])
    models = watch()
    second = promote(store, fitted[1])
    damage(blob(tmp_path, second))
    assert refresh(models) == ["model refused: keeping the one there is"]
    store.promote(TOP, first, expected=second, who="tests", why="rollback")
    models.refresh()
    assert promote(store, fitted[1]) == second, "put mends the damaged copy"
    assert refresh(models) == []
    assert models.find("line-1/top", "default").version == second


def broken(artifact, *, method=None, without=None, backbone=None, view=None, threshold=None, tensors=None):
    """The artifact with something wrong that its checksum cannot show."""
    meta = json.loads(json.dumps(artifact.meta))
    meta.pop(without, None)
    meta.get("backbone", {}).update(backbone or {})
    meta.get("view", {}).update(view or {})
    meta.get("threshold", {}).update(threshold or {})
    kept = {name: t for name, t in artifact.tensors.items() if name != without}
    return Artifact(method=method or artifact.method, tensors={**kept, **(tensors or {})}, meta=meta)


WRONG = [
    {"method": "magic"},
    {"without": "threshold"},
    {"without": "view"},
    {"without": "backbone"},
    {"without": "calibration"},
    {"without": "bank"},
    {"backbone": {"name": "os:system"}},
    {"backbone": {"name": "no_such_net"}},
    {"backbone": {"layers": ["layer9"]}},
    {"backbone": {"weights": "file:elsewhere.safetensors"}},
    {"backbone": {"weights_sha256": "0" * 64}},
    {"view": {"size": [8, 8]}},
    {"view": {"size": "large"}},
    {"view": {"size": [None, {}]}},
    {"threshold": {"image": "high"}},
    {"threshold": {"guarantee": {"holds": True}}},
]


@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_a_candidate_that_cannot_work_is_refused_and_stops_nobody(store, watch, fitted, changes):
    first = promote(store, fitted[0])
    models = watch()
    bad = promote(store, broken(fitted[1], **changes))
    other = promote(store, fitted[2], SIDE)  # comes after the bad one in the order of keys
    with capture_logs() as logged:
        models.refresh()
    (refusal,) = [each for each in logged if each["log_level"] == "error"]
    assert (refusal["event"], refusal["refused"]) == ("model refused: keeping the one there is", bad)
    assert models.find("line-1/top", "default").version == first
    assert models.find("line-1/side", "default").version == other
    assert refresh(models) == []


def test_a_model_that_fails_at_its_first_use_is_never_in_service(store, watch, fitted, open_backbone):
    class Worn(Backbone):
        def __init__(self, spec):
            self.__dict__ |= open_backbone(spec).__dict__

        def __call__(self, images):
            if images.any():  # loading tries a black picture of its own
                raise RuntimeError("out of memory")
            return super().__call__(images)

    promote(store, fitted[0])
    models = watch(opens=Worn, refresh=False)
    with capture_logs() as logged:
        models.refresh()
    assert "RuntimeError: out of memory" in logged[0]["error"]
    assert models.find("line-1/top", "default") is None


def test_a_broken_model_stops_no_worker_from_starting(store, watch, fitted):
    promote(store, broken(fitted[0], backbone={"name": "no_such_net"}))
    other = promote(store, fitted[1], SIDE)
    models = watch(refresh=False)
    models.start()
    assert models.find("line-1/top", "default") is None
    assert models.find("line-1/side", "default").version == other


def test_a_damaged_pointer_keeps_its_station_as_it_was_and_stops_nobody(tmp_path, store, watch, fitted):
    first = promote(store, fitted[0])
    models = watch()
    folder = tmp_path / "models" / "models" / "line-1" / "top" / "default" / "promotions"
    (folder / "00000099.json").write_text("not JSON")
    other = promote(store, fitted[1], SIDE)
    assert len(refresh(models)) == 1
    assert models.find("line-1/top", "default").version == first
    assert models.find("line-1/side", "default").version == other


def test_a_pointer_to_nothing_keeps_the_model_there_is(tmp_path, store, watch, fitted):
    first = promote(store, fitted[0])
    models = watch()
    promoted_by_force(tmp_path, TOP, "f" * 64)
    assert len(refresh(models)) == 1
    assert models.find("line-1/top", "default").version == first


def test_a_store_that_vanishes_and_comes_back_harms_nobody(tmp_path, store, watch, fitted):
    first = promote(store, fitted[0])
    models = watch()
    live = models.find("line-1/top", "default")
    (tmp_path / "models").rename(tmp_path / "away")
    assert "store: keeping the models there are" in refresh(models)
    assert models.find("line-1/top", "default") is live
    (tmp_path / "models").mkdir()  # as an empty mount point is
    assert refresh(models) == [], "it was told"
    assert models.find("line-1/top", "default").version == first
    assert live.inspector.inspect(CAPS).verdicts, "its tensors are its own"
    (tmp_path / "models").rmdir()
    (tmp_path / "away").rename(tmp_path / "models")
    second = promote(store, fitted[1])
    with capture_logs() as logs:
        models.refresh()
    assert [e["event"] for e in logs] == ["model in service", "store: it answers again"]
    assert models.find("line-1/top", "default").version == second


def test_a_store_erased_for_good_leaves_the_models_in_service(tmp_path, store, watch, fitted):
    promote(store, fitted[0])
    models = watch()
    shutil.rmtree(tmp_path / "models")
    models.refresh()
    assert len(models.find("line-1/top", "default").inspector.inspect(CAPS).verdicts) == 2


def test_a_worker_starts_without_a_store_and_says_which_models_it_lacks(watch):
    models = watch(refresh=False)
    with capture_logs() as logged:
        models.start()
    assert [each["station"] for each in logged if each["log_level"] == "warning"] == ["line-1/top", "line-1/side"]


def test_promotions_are_noticed_while_running(store, watch, fitted):
    models = watch(TOP, poll_s=0.02, refresh=False)
    models.start()
    version = promote(store, fitted[0])
    until = time.monotonic() + 20
    while models.find("line-1/top", "default") is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert models.find("line-1/top", "default").version == version == version_of(fitted[0])


def size_of(artifact, open_backbone):
    return footprint(Inspector.load(artifact, open_backbone=open_backbone, limits=Limits()))


def test_when_memory_is_full_a_model_is_loaded_when_asked_for_and_the_least_used_leaves(
    store, watch, fitted, open_backbone
):
    green = ModelKey("line-1/top", "green")
    versions = [promote(store, fitted[i], key) for i, key in enumerate((TOP, SIDE, green))]
    models = watch(TOP, SIDE, green, refresh=False, most_bytes=int(2.5 * size_of(fitted[0], open_backbone)))
    models.start()
    assert models.find("line-1/top", "green") is None
    assert models.find("line-1/side", "default").version == versions[1]
    assert models.find("line-1/top", "default").version == versions[0], "used later than the other"
    models.load("line-1/top", "green").result(20)
    assert models.find("line-1/top", "green").version == versions[2]
    assert models.find("line-1/side", "default") is None
    assert models.find("line-1/top", "default").version == versions[0]
    models.refresh()
    assert models.find("line-1/side", "default") is None, "a look at the store loads nothing that nobody asked for"
    models.load("line-1/side", "default").result(20)
    assert models.find("line-1/side", "default").version == versions[1]


def test_a_model_too_large_for_the_memory_is_loaded_all_the_same(store, watch, fitted):
    version = promote(store, fitted[0])
    models = watch(most_bytes=1)
    assert models.find("line-1/top", "default").version == version


def test_nothing_is_waited_for_where_there_is_no_model(store, watch, fitted):
    version = promote(store, fitted[0])
    models = watch(refresh=False)
    models.start()
    assert models.load("line-9/top", "default") is None, "a station that is not in the settings"
    assert models.load("line-1/top", "default") is None, "it is in memory"
    models.load("line-1/side", "default").result(20)
    assert models.load("line-1/side", "default") is None, "the store was asked, and has none"
    second = store.put(SIDE, fitted[1])
    store.promote(SIDE, second, expected=None, who="tests")
    models.refresh()
    assert models.find("line-1/side", "default").version == second != version


def test_a_swap_back_needs_no_load(tmp_path, store, watch, fitted):
    first = promote(store, fitted[0])
    models = watch()
    before = models.find("line-1/top", "default")
    second = promote(store, fitted[1])
    models.refresh()
    store.promote(TOP, first, expected=second, who="tests", why="rollback")
    damage(blob(tmp_path, first))
    assert refresh(models) == []
    assert models.find("line-1/top", "default") is before


def shadow(store, artifact, *, share=0.0, key=TOP):
    """Try a version at a key."""
    version = put(store, artifact, key)
    marks = store.marks(key)
    store.mark(key, replace(marks, shadow=version, canary_share=share), expected=marks, who="tests")
    return version


def test_a_shadow_is_tried_beside_the_model_in_service_until_it_is_called_off(store, watch, fitted):
    first = promote(store, fitted[0])
    models = watch()
    assert models.trial("line-1/top", "default") is None
    second = shadow(store, fitted[1], share=0.25)
    models.refresh()
    trial = models.trial("line-1/top", "default")
    assert (trial.live.version, trial.canary_share) == (second, 0.25)
    assert models.find("line-1/top", "default").version == first
    assert models.trial("line-1/side", "default") is None
    third = shadow(store, fitted[2])
    models.refresh()
    assert models.trial("line-1/top", "default").live.version == third
    store.mark(TOP, Marks(), expected=store.marks(TOP), who="tests")
    models.refresh()
    assert models.trial("line-1/top", "default") is None


def test_a_shadow_that_is_promoted_is_tried_no_more(store, watch, fitted):
    first = promote(store, fitted[0])
    second = shadow(store, fitted[1], share=0.5)
    models = watch()
    assert models.trial("line-1/top", "default").live.version == second
    store.promote(TOP, second, expected=first, who="tests")
    models.refresh()
    assert models.find("line-1/top", "default").version == second
    assert models.trial("line-1/top", "default") is None


def test_a_shadow_that_cannot_work_harms_nobody_and_is_tried_once(store, watch, fitted):
    first = promote(store, fitted[0])
    shadow(store, broken(fitted[1], backbone={"name": "no_such_net"}))
    models = watch(refresh=False)
    assert refresh(models) == ["model refused: keeping the one there is"]
    assert models.find("line-1/top", "default").version == first
    assert models.trial("line-1/top", "default") is None
    assert refresh(models) == []


def test_a_canary_decides_its_share_of_the_parts_and_always_the_same_ones():
    trial = Trial(Live(None, "fake", "a" * 64), 0.3)
    parts = [Frame(frame_id=f"f-{i}", image=b"", part_id=f"p-{i}") for i in range(2000)]
    decided = [trial.decides(part) for part in parts]
    assert 0.26 < sum(decided) / len(decided) < 0.34
    again = [Frame(frame_id=f"other-{i}", image=b"", part_id=f"p-{i}") for i in range(2000)]
    assert [trial.decides(part) for part in again] == decided, "every frame of a part has the same judge"
    assert not any(Trial(trial.live, 0.0).decides(part) for part in parts)
    assert all(Trial(trial.live, 1.0).decides(part) for part in parts)


def test_a_store_that_lost_a_station_is_told_of_once_and_the_model_stays(tmp_path, store, watch, fitted):
    version = promote(store, fitted[0])
    promote(store, fitted[1], SIDE)
    models = watch()
    shutil.rmtree(tmp_path / "models" / "models" / "line-1" / "top")
    (told,) = refresh(models)
    assert "no model here any more" in told
    assert models.find("line-1/top", "default").version == version
    assert refresh(models) == []


def told_of(models):
    return {state.key: (state.ok, state.detail) for state in models.states()}


def test_health_is_told_of_models_in_service_and_of_those_that_nobody_promoted(store, watch, fitted):
    version = promote(store, fitted[0])
    models = watch()
    assert told_of(models) == {TOP: (True, f"patchcore {short(version)}"), SIDE: (True, "none is promoted")}


def test_health_is_told_of_a_refused_model_until_the_pointer_moves(tmp_path, store, watch, fitted):
    first = promote(store, fitted[0])
    models, second = watch(), put(store, fitted[1])
    damage(blob(tmp_path, second))
    promoted_by_force(tmp_path, TOP, second)
    models.refresh()
    ok, detail = told_of(models)[TOP]
    assert ok, "the old one serves"
    assert detail.startswith(f"patchcore {short(first)}; {short(second)} is refused: ArtifactError: ")
    ok, detail = told_of(watch())[TOP]
    assert not ok, "a worker that starts now has none"
    assert detail.startswith(f"{short(second)} is refused: ")
    promoted_by_force(tmp_path, TOP, first)
    models.refresh()
    assert told_of(models)[TOP] == (True, f"patchcore {short(first)}")


def test_health_is_told_of_a_store_that_is_away(tmp_path, store, watch, fitted):
    version = promote(store, fitted[0])
    models = watch()
    (tmp_path / "models").rename(tmp_path / "away")
    models.refresh()
    assert [told_of(models)[key][0] for key in (TOP, SIDE)] == [True, False]
    assert "StoreUnavailable" in told_of(models)[TOP][1]
    (tmp_path / "away").rename(tmp_path / "models")
    models.refresh()
    assert told_of(models)[TOP] == (True, f"patchcore {short(version)}")


def test_a_version_is_warmed_up_once_and_what_failed_is_warmed_up_again(store, fitted, open_backbone, monkeypatch):
    loader, inspected = Loader(store, open_backbone, Limits()), []
    version = store.put(TOP, fitted[0])
    really = Inspector.inspect
    monkeypatch.setattr(Inspector, "inspect", lambda self, frames: inspected.append(frames) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loader.load(TOP, version)
    monkeypatch.setattr(Inspector, "inspect", lambda self, frames: inspected.append(frames) or really(self, frames))
    first, second = loader.load(TOP, version), loader.load(TOP, version)
    assert len(inspected) == 2
    assert first.version == second.version == version
    assert first is not second
    store.put(SIDE, fitted[1])
    loader.load(SIDE, version_of(fitted[1]))
    assert len(inspected) == 3
