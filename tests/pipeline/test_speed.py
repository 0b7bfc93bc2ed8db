"""Benchmarks say what they measured, of whatever they are asked for."""

import json
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import engines, methods
from pipeline.errors import ConfigError
from pipeline.pruning import ROWS_MIN
from pipeline.speed import cost, encoded, fit, frames, peers, score, turns
from workers import cli
from workers.commands import bench_pictures


def test_variants_take_turns_and_their_medians_count():
    order, spent = [], {"a": iter([9.0, 1.0, 3.0, 2.0]), "b": iter([9.0, 5.0, 4.0, 6.0])}

    def variant(name):
        def once():
            order.append(name)
            return next(spent[name])

        return once

    assert turns.medians({name: variant(name) for name in "ab"}, repeats=3) == {"a": 2.0, "b": 5.0}
    assert order == ["a", "b"] * 4


def test_back_and_forth_each_comes_first_as_often_and_the_mean_counts():
    order = []
    variants = {name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}
    took = turns.measured(variants, repeats=2, warm_up=False, back_and_forth=True)
    assert "".join(order) == "abbaabba"
    assert {name: each.seconds for name, each in took.items()} == {"a": [2.5, 6.5], "b": [2.5, 6.5]}


def test_turns_have_quartiles():
    spent = iter([5.0, 1.0, 4.0, 2.0, 3.0])
    took = turns.measured({"a": lambda: next(spent)}, repeats=5, warm_up=False)["a"]
    assert took.spread == turns.Spread(3.0, 2.0, 4.0)
    assert turns.Took([7.0]).spread == turns.Spread(7.0, 7.0, 7.0)


def test_a_ratio_is_of_each_turn_by_itself():
    slow_then_fast, twice_that = turns.Took([9.0, 1.0, 5.0]), turns.Took([18.0, 2.0, 10.0])
    assert twice_that.times(slow_then_fast) == turns.Spread(2.0, 2.0, 2.0)
    assert turns.Took([4.0, 2.0, 30.0]).times(turns.Took([2.0, 2.0, 10.0])) == turns.Spread(2.0, 1.5, 2.5)


def point(size, rows, *, unseen=False, bounded_from=ROWS_MIN, ms=None):
    patches, bounded = (size // 8) ** 2, rows >= bounded_from
    truth = 2.0 + 1e-4 * size**2 + 2e-4 * rows + patches * (1e-4 + 2e-7 * rows if bounded else 1e-6 * rows)
    return cost.Row(
        size=size,
        pixels=size**2,
        patches=patches,
        bank_rows=rows,
        bounded=bounded,
        unseen=unseen,
        ms=ms or truth,
        ms_low=truth,
        ms_high=truth,
    )


ASKED = cost.Asked()
GRID = [point(size, rows) for size in ASKED.sizes for rows in ASKED.bank_rows]
UNSEEN = [point(size, rows, unseen=True) for size, rows in ASKED.unseen]


def test_what_grows_as_the_terms_do_is_found_and_predicted():
    found = cost.grown([*GRID, *UNSEEN], engine="torch", backbone="goldline-s")
    truth = {"picture": 2e6, "pixel": 100, "row": 200, "patch_row": 1.0, "bounded_patch_row": 0.2, "bounded_patch": 100}
    assert found.nanoseconds == pytest.approx(truth, rel=1e-4)
    assert max(abs(row.relative_error) for row in found.rows) < 1e-3
    assert cost.body(found)["largest_error_unseen"] < 1e-3


def test_an_unseen_point_is_not_fitted():
    wrong = point(288, 8192, unseen=True, ms=2 * UNSEEN[1].ms)
    found = cost.grown([*GRID, wrong], engine="torch", backbone="goldline-s")
    assert found.rows[-1].predicted_ms == pytest.approx(UNSEEN[1].ms, rel=1e-3)
    assert cost.body(found)["largest_error_unseen"] == pytest.approx(0.5, rel=1e-2)


def test_nothing_costs_less_than_nothing():
    faster = [point(size, rows, ms=5.0 - size / 1000) for size in (128, 224, 320) for rows in (250, 500)]
    assert min(cost.fit(faster)) >= 0
    assert cost.fit(faster)[4:].tolist() == [0.0, 0.0], "no point was bounded"


@pytest.mark.parametrize("rows", [[], GRID[:5], [GRID[0], GRID[5]], [each for each in GRID if each.bank_rows != 250]])
def test_points_that_cannot_tell_the_terms_apart_are_refused(rows):
    with pytest.raises(ConfigError, match="two sizes"):
        cost.fit(rows)


def test_the_command_measures_the_same_grid_unless_told_otherwise():
    given = {option.name: option.default for option in bench_pictures.cost.params}
    assert given["sizes"] == ",".join(map(str, ASKED.sizes))
    assert given["bank_rows"] == ",".join(map(str, ASKED.bank_rows))
    assert given["unseen"] == ",".join(f"{size}x{rows}" for size, rows in ASKED.unseen)


def test_a_cost_is_measured_on_a_grid_and_on_unseen_points():
    asked = cost.Asked(sizes=[64, 96], bank_rows=[50, 200], unseen=[(80, 100)], engine="torch", repeats=1)
    found = cost.run(asked)
    assert [(row.size, row.patches, row.bank_rows, row.unseen) for row in found.rows] == [
        (64, 64, 50, False),
        (64, 64, 200, False),
        (96, 144, 50, False),
        (96, 144, 200, False),
        (80, 100, 100, True),
    ]
    assert all(row.ms > 0 and row.predicted_ms > 0 and not row.bounded for row in found.rows)
    assert json.loads(json.dumps(cost.body(found)))["precision"] == "torch"


def test_a_row_for_each_engine_bank_and_batch_with_how_exact_it_is():
    asked = score.Asked(
        backbones=["goldline-s"], bank_rows=[50, 60], batches=[1, 2], engines=["torch"], size=64, repeats=1
    )
    rows = score.run(asked)
    assert [(row.bank_rows, row.batch) for row in rows] == [(50, 1), (50, 2), (60, 1), (60, 2)]
    assert all(row.ms_per_image > 0 and row.exact_agreement == 1.0 and row.score_error < 1e-5 for row in rows)
    assert json.loads(json.dumps(score.body(rows)))["rows"][0]["precision"] == "torch"


def test_methods_without_a_bank_are_measured_too():
    asked = score.Asked(methods=["padim"], backbones=["goldline-s"], batches=[1], engines=["torch"], size=64, repeats=1)
    (row,) = score.run(asked)
    assert (row.method, row.bank_rows, row.exact_agreement) == ("padim", None, None)


def test_settings_go_to_the_methods_that_have_them_and_a_peer_beside_one_without_a_bank_has_its_own(peer_script):
    peer_script(_ROWS_AS_SECONDS)
    asked = score.Asked(
        methods=["padim", "patchcore"],
        settings={"dim": "7", "image_score": "map"},
        backbones=["goldline-s"],
        bank_rows=[50],
        batches=[1],
        engines=["torch"],
        size=64,
        repeats=1,
        peers=True,
        peer_bank=70,
    )
    of_torch = {row.method: row for row in score.run(asked) if row.peer == "anomalib torch"}
    assert of_torch["padim"].settings == {"dim": "7"}
    assert of_torch["patchcore"].settings == {"dim": "7", "image_score": "map"}
    assert all((row.peer_bank_rows, row.peer_ms_per_image) == (70, 70_000) for row in of_torch.values())


def test_a_row_names_what_presets_have_set_as_it_would_be_set_by_name():
    asked = score.Asked(
        methods=["padim"],
        settings={"dim": "7"},
        fixtured=True,
        backbones=["goldline-s"],
        batches=[1],
        engines=["torch"],
        size=64,
        repeats=1,
    )
    (row,) = score.run(asked)
    assert row.settings["embedding"] == "principal"
    assert methods.make_config("padim", row.settings) == methods.make_config("padim", {"dim": 7}, fixtured=True)


@pytest.mark.parametrize("name", methods.METHODS)
def test_presets_are_the_same_by_name(name):
    asked = score.Asked(quick=True, fixtured=True)
    config = methods.make_config(name, methods.presets(name, quick=True, fixtured=True))
    assert methods.make_config(name, score.settings_of(asked, name)) == config


def test_an_inspector_has_the_settings_that_are_asked_for():
    net = score.net_of("goldline-s", "torch", "cpu")
    config = methods.make_config("padim", {"dim": "7", "embedding": "principal"})
    assert score.inspector_of("padim", net, None, 64, config).detector.config == config
    config = methods.make_config("patchcore", {"dim": "7"})
    assert score.inspector_of("patchcore", net, 50, 64, config).detector.bank.shape == (50, 7)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"coreset": "0.1"}, "no coreset"), ({"whitening": "0.9"}, "no whitening"), ({"dmi": "7"}, "nearest: dim")],
)
def test_settings_that_go_with_no_drawn_bank_or_that_nothing_has_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        score.run(score.Asked(backbones=["goldline-s"], settings=settings, size=64))


def test_without_a_method_there_is_nothing_to_measure():
    with pytest.raises(ConfigError, match="name a method: deep_svdd, efficientad"):
        score.run(score.Asked(methods=[], size=64))


def test_a_fit_is_its_features_and_its_coreset():
    (row,) = fit.run(fit.Asked(backbone="goldline-s", images=12, coreset=0.1, engine="torch", size=64))
    assert row.bank_rows == 12 * 64 // 10
    assert row.fit_s == pytest.approx(row.features_s + row.coreset_s, abs=0.02)


def test_frames_are_counted_by_how_many_batches_are_computed_at_the_same_time():
    before = torch.get_num_threads()
    given = {"bank_rows": 60, "batch": 3, "size": 64, "size_bytes": 3000, "engine": "torch", "repeats": 2}
    one, two = frames.run(frames.Asked(**given, at_once=(1, 2)))
    assert (one.at_once, two.at_once) == (1, 2)
    assert {one.decode_on, two.decode_on} == {"cpu"}, "a CPU has no nvJPEG"
    for row in (one, two):
        assert 0 < row.per_s_low <= row.frames_per_s <= row.per_s_high
        assert row.precision == "torch"
        assert row.frame_bytes == pytest.approx(len(encoded.drawn(0, encoded.side_of(3000))), rel=0.2)
    assert torch.get_num_threads() == before
    with pytest.raises(ConfigError, match="want as many threads"):
        frames.run(frames.Asked(**given, at_once=(1, 10_000)))


def test_what_a_turn_took_becomes_frames_a_second():
    row = frames._with(frames_row(), turns.Took([2.0, 1.0, 4.0]), 100)
    assert (row.per_s_low, row.frames_per_s, row.per_s_high) == (33.3, 50.0, 66.7)


def frames_row():
    (row,) = frames.run(
        frames.Asked(bank_rows=60, batch=1, size=64, size_bytes=3000, engine="torch", at_once=(1,), repeats=1)
    )
    return row


def test_without_an_environment_for_peers_it_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setenv(peers.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="make bench-peers"):
        peers.python()


@pytest.fixture
def peer_script(monkeypatch, tmp_path):
    """Stands in for the peer's own program, which needs several GB: the protocol is what is tested."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "python").symlink_to(sys.executable)
    monkeypatch.setenv(peers.VARIABLE, str(tmp_path))

    def write(text):
        script = tmp_path / "peer.py"
        script.write_text(textwrap.dedent(text))
        monkeypatch.setattr(peers, "_SCRIPT", script)

    return write


_ROWS_AS_SECONDS = """
import json, sys
task = json.loads(sys.argv[1])
print(json.dumps({"ready": True}), flush=True)
for _ in sys.stdin:
    print(json.dumps({"seconds": task["bank_rows"]}), flush=True)
"""
TASK = peers.PeerTask(
    kind="score", engine="torch", backbone="resnet18", layers=("layer2",), size=64, images=1, bank_rows=9, threads=1
)


def test_a_peer_gets_its_task_and_works_once_for_each_line(peer_script):
    peer_script("""
        import json, sys
        task = json.loads(sys.argv[1])
        print("a library says something")
        print(json.dumps({"ready": True}), flush=True)
        for turn, _ in enumerate(sys.stdin):
            print(json.dumps({"seconds": task["bank_rows"] + turn}), flush=True)
    """)
    with peers.anomalib(TASK) as peer:
        assert [peer.run(), peer.run()] == [9.0, 10.0]
        process = peer._process
    assert process.poll() is not None


def test_a_peers_bank_may_have_other_rows(peer_script):
    peer_script(_ROWS_AS_SECONDS)
    asked = score.Asked(
        backbones=["goldline-s"], bank_rows=[50], batches=[1], engines=["torch"], size=64, repeats=1, peers=True
    )
    of_torch = [row for row in score.run(asked) if row.peer == "anomalib torch"]
    assert [(row.peer_bank_rows, row.peer_ms_per_image) for row in of_torch] == [(None, 50_000)]
    of_torch = [row for row in score.run(replace(asked, peer_bank=70)) if row.peer == "anomalib torch"]
    assert [(row.bank_rows, row.peer_bank_rows, row.peer_ms_per_image) for row in of_torch] == [(50, 70, 70_000)]


def test_8_bits_are_measured_with_cuts():
    net = score.net_of("goldline-s", "openvino-int8", "cpu")
    inspector = score.inspector_of("patchcore", net, 50, 64, methods.make_config("patchcore", {}))
    assert inspector.save().meta["backbone"]["cuts"]


def test_a_peers_threads_wait_as_they_would_without_us_unless_somebody_has_said_how(peer_script, monkeypatch):
    peer_script("""
        import json, os, sys
        print(json.dumps({"ready": True}), flush=True)
        for _ in sys.stdin:
            print(json.dumps({"seconds": os.environ.get("GOMP_SPINCOUNT", 0)}), flush=True)
    """)
    for said, expected in ((cli._SPIN_COUNT, 0), ("7", 7)):
        monkeypatch.setenv("GOMP_SPINCOUNT", said)
        with peers.anomalib(TASK) as peer:
            assert peer.run() == expected


def test_another_checkout_takes_its_turns_each_engine_beside_its_own():
    asked = score.Asked(
        backbones=["goldline-s"],
        bank_rows=[50],
        batches=[2],
        engines=["torch", "openvino-fp32"],
        size=64,
        repeats=1,
        checkout=Path(score.__file__).parents[2],
    )
    rows = score.run(asked)
    assert [(row.precision, row.peer) for row in rows] == [
        ("torch", "goldline torch"),
        ("openvino-fp32", "goldline openvino-fp32"),
    ]
    assert all(row.peer_version == turns.machine()["commit"] and row.ratio > 0 for row in rows)


def test_a_folder_that_is_no_checkout_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no checkout of Goldline"):
        score.run(score.Asked(backbones=["goldline-s"], bank_rows=[50], batches=[1], size=64, checkout=tmp_path))


def test_a_peer_that_dies_is_an_error(peer_script):
    peer_script("raise SystemExit(3)")
    with pytest.raises(ConfigError, match="status 3"), peers.anomalib(TASK):
        pass


def test_goldline_s_is_measured_with_the_weights_that_it_ships_beside_a_peers_default():
    assert score.net_of("goldline-s", "torch", "cpu").spec.weights == "shipped:goldline-s"
    assert score.net_of("resnet18", "torch", "cpu").spec.weights.startswith("random:")
    assert [peers.backbone_of(name) for name in ("goldline-s", "resnet18")] == ["wide_resnet50_2", "resnet18"]


def test_where_no_engines_are_named_all_of_this_processor_are_measured_8_bits_too():
    rows = score.run(score.Asked(backbones=["goldline-s"], bank_rows=[50], batches=[1], size=64, repeats=1))
    there = engines.candidates(torch.device("cpu"))
    rounded = ["openvino-int8"] if "openvino-fp32" in there else []
    assert [row.precision for row in rows] == [*there, *rounded]
