"""The settings that a rig writes are the settings that a worker reads."""

import tomllib

import pytest

from pipeline import settings as line
from pipeline.errors import ConfigError
from workers import dev_broker
from workers.rig import Rig, to_toml

TREE = {
    "name": 'a "quoted" \\ name',
    "empty": "",
    "unicode": "Prüfplatz ☃",
    "flag": True,
    "other": False,
    "whole": -3,
    "part": 0.005,
    "small": 1e-7,
    "large": 1e22,
    "list": ["a", 'b"c', "d\\e"],
    "numbers": [1, 2.5],
    "nested": [[1], ["x", True]],
    "none": [],
    "kafka": {"brokers": ["127.0.0.1:9092"], "tls": {"ca_file": "/etc/ca.pem", "deeper": {"still": 1}}},
    "stations": {
        "line-1/top": {"partition": 3, "recipes": ["default", "cap.blue"]},
        'od"d\\key': {"deadline_ms": 150},
        "with space": {},
        "": {"x": 1},
        "1.5": {"on": False},
    },
    "backbones": {"my.module:factory": {}, "resnet18": {"weights": "/w/r.safetensors"}},
}


def test_what_is_written_is_read_back():
    assert tomllib.loads(to_toml(TREE)) == TREE


def test_values_after_a_table_stay_where_they_belong():
    tree = {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert tomllib.loads(to_toml(tree)) == tree


def test_tuples_become_lists():
    assert tomllib.loads(to_toml({"argv": ("a", "b")})) == {"argv": ["a", "b"]}


def test_an_empty_tree_is_empty():
    assert tomllib.loads(to_toml({})) == {}


@pytest.mark.parametrize("text", ["two\nlines", "\x00", "tab\t", "\x7f", "\u2028"])
@pytest.mark.parametrize("where", ["value", "key", "list"])
def test_what_cannot_be_written_is_refused_rather_than_garbled(text, where):
    tree = {"value": {"a": text}, "key": {text: 1}, "list": {"a": [text]}}[where]
    with pytest.raises(ConfigError, match="cannot write"):
        to_toml(tree)


def test_settings_are_read_as_they_were_meant(tmp_path):
    tree = {
        "worker": {"threads": 1, "stuck_s": 120.0, "heatmaps": "all"},
        "gate": {"on_reject": ["/bin/echo", 'a "b" $(c)'], "stop_after": 3},
        "backbones": {"pkg.module:make": {"weights": "/srv/w file.safetensors"}},
        "stations": {"line-1/top": {"deadline_ms": 60_000, "on_no_decision": "pass"}, "line-2/top": {}},
    }
    path = tmp_path / "line.toml"
    path.write_text(to_toml(tree), encoding="utf-8")
    assert line.read(path, {}) == line.build(tree)


@pytest.mark.kafka
def test_a_broker_is_stopped_whose_start_was_interrupted(jars, tmp_path, monkeypatch):
    monkeypatch.delenv("GOLDLINE_BROKER", raising=False)
    launched = []

    def interrupted(_, pid):
        launched.append(pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(dev_broker, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt), Rig(tmp_path, {}):
        pass
    (pid,) = launched
    assert not dev_broker._is_ours(tmp_path / "kafka", pid)
