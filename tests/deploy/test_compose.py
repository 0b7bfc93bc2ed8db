"""deploy/compose.yaml, without an engine: its schema, its rules, and that its services start what there is."""

import hashlib
import json
import re
import stat
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from pipeline import settings
from pipeline.settings import Settings
from tests.deployed import DEPLOY, ROOT, ran, wrong_command, wrong_variables
from tests.redis_server import RedisServer

FILE = DEPLOY / "compose.yaml"
# https://github.com/compose-spec/compose-spec, schema/compose-spec.json (Apache-2.0)
SCHEMA = Path(__file__).with_name("compose-spec.json")
LINE = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = LINE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("goldline:")}
each = pytest.mark.parametrize("name", SERVICES)
each_of_ours = pytest.mark.parametrize("name", OURS)


def mounts(service: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Source, target and mode of each volume."""
    plain = [re.sub(r"\$\{GOLDLINE_PICTURES:-(\w+)\}", r"\1", text) for text in service.get("volumes", [])]
    return [(*text.split(":"), "rw")[:3] for text in plain]


def test_it_is_what_compose_understands():
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(LINE)


@pytest.mark.parametrize(
    "wrong",
    [{"services": {"a": {"imagine": "b"}}}, {"services": {"a": {"depends_on": {"b": {"condition": "service_happy"}}}}}],
)
def test_the_schema_would_find_a_slip(wrong):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(wrong)


def test_what_the_line_needs_is_there():
    assert {"kafka", "redis", "prometheus", "grafana", "gate", "refit"} <= SERVICES.keys()
    assert SERVICES["worker"]["deploy"]["replicas"] == 2
    assert [name for name in SERVICES if name.startswith("camera-")]


@each
def test_images_are_pinned_and_rights_are_few(name):
    service = SERVICES[name]
    assert re.search(r":v?\d+\.\d+\.\d+(-\w+)?$|^goldline:", service["image"])
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("read_only", False) is (name != "kafka")
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & service.keys()
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}


@each
def test_ports_are_this_machine_s_alone(name):
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:")
    assert LINE["networks"]["line"]["internal"] is True
    assert "people" not in SERVICES[name]["networks"] or SERVICES[name]["ports"]


@each
def test_who_is_waited_for_can_be_waited_for(name):
    for other, how in SERVICES[name].get("depends_on", {}).items():
        ends = SERVICES[other]["restart"] == "no"
        assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy")
        checked = (
            SERVICES[other].get("healthcheck") or {"of": "the image"}
            if other in OURS
            else SERVICES[other]["healthcheck"]
        )
        assert ends or not checked.get("disable")


def test_nobody_waits_for_himself():
    done: set[str] = set()
    while ready := {n for n, s in SERVICES.items() if n not in done and s.get("depends_on", {}).keys() <= done}:
        done |= ready
    assert done == SERVICES.keys()


@each
def test_what_is_mounted_exists(name):
    for source, target, mode in mounts(SERVICES[name]):
        if source.startswith("."):
            assert mode == "ro"
            assert (DEPLOY / source).exists(), source
        else:
            assert source in LINE["volumes"]
        assert target.startswith("/")


@each
def test_secrets_are_files_that_are_made(name, tmp_path):
    made_by(tmp_path)
    for secret in SERVICES[name].get("secrets", []):
        file = LINE["secrets"][secret]["file"]
        assert (tmp_path / Path(file).name).exists()
    assert not [k for k in SERVICES[name].get("environment", {}) if "PASSWORD" in k and not k.endswith("__FILE")]


@each_of_ours
def test_a_service_starts_what_there_is(name):
    service = OURS[name]
    if "entrypoint" in service:
        assert service["entrypoint"][:2] == ["python", "-c"]
        compile(service["entrypoint"][2], name, "exec")
    else:
        assert not wrong_command(service["command"])
    assert not wrong_variables(service.get("environment", {}))
    assert service["build"]["target"] in (DEPLOY / service["build"]["context"] / "docker/Dockerfile").read_text()
    for option, given in zip(service["command"], service["command"][1:], strict=False):
        if option == "--station":
            assert given in line().stations


def line() -> Settings:
    return settings.read(DEPLOY / "compose" / "line.toml", {})


@each_of_ours
def test_what_a_service_writes_to_is_mounted(name):
    """The root file system is read-only: the pool, the store's copies and the monitors need a place."""
    places = {target: mode for _, target, mode in mounts(OURS[name])}
    assert "/tmp" in OURS[name]["tmpfs"][0]
    command = OURS[name].get("command", [""])
    if command[:1] in (["worker"], ["refit"]):
        assert places["/srv/goldline/pool"] == "rw"
    if command[:1] in (["worker"], ["refit"], ["fit"]):
        assert places["/var/lib/goldline"] == "rw"
    if command[:1] == ["camera"]:
        assert places["/srv/goldline/frames"] == "rw"


@each_of_ours
def test_whoever_stays_is_asked_how_it_is(name):
    """The image asks /health/live; what ends by itself has nobody to answer."""
    assert OURS[name].get("healthcheck", {}) == ({"disable": True} if OURS[name]["restart"] == "no" else {})


def test_kafka_is_the_one_that_the_tests_run_on():
    pom = (ROOT / "workers" / "kafka" / "pom.xml").read_text()
    assert SERVICES["kafka"]["image"] == "apache/kafka:" + re.findall(r"<kafka.version>(.+)</kafka.version>", pom)[0]
    assert SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"] == f"LINE://{line().kafka.brokers[0]}"


def test_prometheus_asks_every_process_of_ours():
    config = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text())
    (found,) = config["scrape_configs"][0]["dns_sd_configs"]
    assert set(found["names"]) == {name for name, service in OURS.items() if service["restart"] != "no"}
    assert f"GOLDLINE_METRICS__PORT={found['port']}" in (ROOT / "docker" / "Dockerfile").read_text()


def made_by(folder: Path) -> None:
    script = DEPLOY / "compose" / "secrets.py"
    call = f"import runpy, pathlib; runpy.run_path({str(script)!r})['main'](pathlib.Path({str(folder)!r}))"
    done = ran(sys.executable, "-c", call)
    assert done.returncode == 0, done.stderr


def test_secrets_are_made_once_and_for_nobody_else_on_the_machine(tmp_path):
    folder = tmp_path / "secrets"
    made_by(folder)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    made_by(folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    words = [text for name, text in before.items() if name != "redis_users"]
    assert len(set(words)) == len(words)
    assert all(len(word) >= 32 and word not in before["redis_users"] for word in words)
    assert hashlib.sha256(before["redis_worker"].encode()).hexdigest() in before["redis_users"]
    ignored = ran("git", "check-ignore", "deploy/secrets/grafana", cwd=ROOT)
    assert ignored.returncode == 0
    assert "deploy/secrets" not in (ROOT / ".dockerignore").read_text()


def test_redis_takes_its_users_and_gives_each_what_it_needs(redis_server, tmp_path):
    made_by(tmp_path)
    assert redis_server
    with RedisServer(tmp_path, "--aclfile", str(tmp_path / "redis_users")) as server:
        host, _, port = server.address.rpartition(":")
        where = {"host": host, "port": int(port), "decode_responses": True}
        with pytest.raises((AuthenticationError, ResponseError, NoPermissionError)):
            Redis(**where).get("goldline:x")
        users = {name: (tmp_path / f"redis_{name}").read_text() for name in ("engineer", "worker")}
        clients = {name: Redis(**where, username=name, password=word) for name, word in users.items()}
        assert clients["engineer"].set("goldline:x", "1")
        assert clients["worker"].get("goldline:x") == "1"
        for call in (lambda c: c.set("goldline:x", "2"), lambda c: c.config_get("dir"), lambda c: c.flushall()):
            with pytest.raises(NoPermissionError):
                call(clients["worker"])
        with pytest.raises(NoPermissionError):
            clients["engineer"].flushall()
