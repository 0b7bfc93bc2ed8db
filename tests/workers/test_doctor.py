"""What is not fit is named with what to do about it, and the exit status says so."""

import json
import socket
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from redis import Redis

from pipeline.settings import build
from workers import doctor, waiting
from workers.cli import cli
from workers.rig import to_toml


@pytest.fixture
def nobody():
    """An address where nobody answers."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def settings(tmp_path, **tree):
    return build({"store": {"url": f"file://{tmp_path}/models"}, "stations": {"line-1/top": {}}, **tree})


def test_a_machine_with_nothing_is_told_all_that_fails(tmp_path, nobody):
    config = tmp_path / "plant.toml"
    tree = {
        "kafka": {"brokers": [nobody]},
        "store": {"url": f"file://{tmp_path}/models"},
        "frames": {"roots": [f"file://{tmp_path}/frames", "redis://127.0.0.1:1/0"]},
        "pool": {"url": f"file://{tmp_path}/pool"},
        "worker": {"device": "cuda:99"},
        "drift": {"folder": str(tmp_path / "drift")},
        "backbones": {"resnet50": {"weights": str(tmp_path / "none.safetensors")}},
        "stations": {"line-1/top": {}},
    }
    config.write_text(to_toml(tree))
    ran = CliRunner().invoke(cli, ["doctor", "--config", str(config), "--json"])
    assert ran.exit_code == 1
    told = json.loads(ran.output)
    assert told["ok"] is False
    failing = {f["name"] for f in told["findings"] if f["state"] == "fail"}
    assert failing >= {"broker", "store", "frames", "redis, [frames] roots 1", "pool", "weights", "device"}
    assert all(bool(f["todo"]) == (f["state"] == "fail") for f in told["findings"])
    todo = {f["name"]: f["todo"] for f in told["findings"]}
    assert f"yours in {config} ([kafka] brokers)" in todo["broker"]
    assert f"goldline frames create --config {config}" in todo["frames"]
    assert not (tmp_path / "frames").exists(), "nothing is made by looking"
    assert not (tmp_path / "models").exists()


def test_settings_that_are_wrong_are_a_finding_too(tmp_path):
    config = tmp_path / "line.toml"
    config.write_text("[worker]\nbatch_max = 0\n\x1b = 1")
    ran = CliRunner().invoke(cli, ["doctor", "--config", str(config)])
    assert ran.exit_code == 1
    assert ran.output.startswith("fail  settings: ")
    assert "\x1b" not in ran.output
    assert "do: " in ran.output


def test_a_clock_that_nobody_holds_matters_where_the_broker_is_elsewhere(tmp_path, monkeypatch):
    class Kernel:
        def __init__(self, state):
            self.adjtimex = lambda _: state

    here, far = settings(tmp_path), settings(tmp_path, kafka={"brokers": ["kafka.plant:9092"]})
    for state, seen in ((5, "fail"), (-1, "fail"), (0, "pass")):
        monkeypatch.setattr(doctor.ctypes, "CDLL", lambda _, state=state: Kernel(state))
        assert [f.state for f in doctor.clock(far)] == [seen]
        assert [f.state for f in doctor.clock(here)] == ["skip"]


def test_a_disk_without_room_fails(tmp_path, monkeypatch):
    usage = doctor.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage._replace(free=doctor._FREE_MIN - 1))
    assert {f.state for f in doctor.disk(settings(tmp_path))} == {"fail"}


def test_a_disk_that_hangs_is_a_finding_and_not_the_end(tmp_path, monkeypatch):
    def hangs(_):
        threading.Event().wait(20)

    monkeypatch.setattr(doctor.shutil, "disk_usage", hangs)
    monkeypatch.setattr(doctor, "_STORE_S", 0.2)
    found = list(doctor.disk(build({"store": {"url": f"file://{tmp_path}"}, "frames": {"roots": []}})))
    assert {finding.state for finding in found} == {"fail"}
    assert "has not answered" in found[0].seen


def test_a_redis_that_may_evict_models_fails(redis_server, tmp_path):
    url = f"redis://{redis_server}/0"
    host, _, port = redis_server.partition(":")
    line = build({"store": {"url": url}, "frames": {"roots": [url]}})
    with Redis(host=host, port=int(port)) as client:
        before = client.config_get("maxmemory-policy")["maxmemory-policy"]
        try:
            client.config_set("maxmemory-policy", "allkeys-lru")
            models, pictures = doctor.redis(line)
            assert (models.state, pictures.state) == ("fail", "pass"), "pictures may go"
            assert "noeviction" in models.todo
            client.config_set("maxmemory-policy", "noeviction")
            assert [f.state for f in doctor.redis(line)] == ["pass", "pass"]
        finally:
            client.config_set("maxmemory-policy", before)


def test_what_hangs_is_given_up():
    never = threading.Event()
    with pytest.raises(doctor.GoldlineError, match=r"the disk has not answered within 0\.05 s"):
        waiting.at_most(0.05, never.wait, what="the disk")
    never.set()
    assert waiting.at_most(5, lambda: 7, what="the disk") == 7


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_learns_of_commands_without_loading_them(shell):
    script = CliRunner().invoke(cli, ["completion", shell])
    assert script.exit_code == 0
    assert f"_GOLDLINE_COMPLETE={shell}_complete" in script.output
    asked = {"_GOLDLINE_COMPLETE": "bash_complete", "COMP_WORDS": "goldline sta", "COMP_CWORD": "1"}
    assert CliRunner().invoke(cli, [], prog_name="goldline", env=asked).output == "plain,status\n"
    asked |= {"COMP_WORDS": "goldline status --wi", "COMP_CWORD": "2"}
    assert CliRunner().invoke(cli, [], prog_name="goldline", env=asked).output == "plain,--window\n"


def test_check_connects_when_asked(tmp_path, nobody):
    config = Path(tmp_path / "line.toml")
    config.write_text(to_toml({"kafka": {"brokers": [nobody]}, "store": {"url": f"file://{tmp_path}/models"}}))
    assert CliRunner().invoke(cli, ["check", str(config)]).exit_code == 0
    ran = CliRunner().invoke(cli, ["check", str(config), "--connect", "--json"])
    assert ran.exit_code == 1
    found = {f["name"]: f["state"] for f in json.loads(ran.output)["findings"]}
    assert found == {"device": "pass", "broker": "fail", "store": "fail"}
    told = CliRunner().invoke(cli, ["check", str(config), "--connect"])
    assert "fail  broker: " in told.output
    assert told.exit_code == 1
