"""Benchmarks say what they measured, of whatever they are asked for."""

import json
import sys
import textwrap

import pytest

from pipeline.errors import ConfigError
from pipeline.speed import fit, peers, score, turns


def test_variants_take_turns_and_their_medians_count():
    order, spent = [], {"a": iter([9.0, 1.0, 3.0, 2.0]), "b": iter([9.0, 5.0, 4.0, 6.0])}

    def variant(name):
        def once():
            order.append(name)
            return next(spent[name])

        return once

    assert turns.medians({name: variant(name) for name in "ab"}, repeats=3) == {"a": 2.0, "b": 5.0}
    assert order == ["a", "b"] * 4


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


def test_a_fit_is_its_features_and_its_coreset():
    (row,) = fit.run(fit.Asked(backbone="goldline-s", images=12, coreset=0.1, engine="torch", size=64))
    assert row.bank_rows == 12 * 64 // 10
    assert row.fit_s == pytest.approx(row.features_s + row.coreset_s, abs=0.02)


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
    with peers.Peer(TASK) as peer:
        assert [peer.run(), peer.run()] == [9.0, 10.0]
        process = peer._process
    assert process.poll() is not None


def test_a_peer_that_dies_is_an_error(peer_script):
    peer_script("raise SystemExit(3)")
    with pytest.raises(ConfigError, match="status 3"), peers.Peer(TASK):
        pass
