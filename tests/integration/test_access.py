"""deploy/kafka/acls.sh on a real broker with an authorizer: each role can do its work, and nothing else."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
)
from kafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError

from model_store import ModelKey, open_store
from pipeline.data import Artifact
from tests.guarded_broker import PASSWORD, ROLES, GuardedBroker, credentials
from workers import topics
from workers.rig import Rig

pytestmark = pytest.mark.kafka

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "kafka" / "acls.sh"
OPERATIONS = {
    "Read": ACLOperation.READ,
    "Write": ACLOperation.WRITE,
    "Create": ACLOperation.CREATE,
    "Describe": ACLOperation.DESCRIBE,
    "DescribeConfigs": ACLOperation.DESCRIBE_CONFIGS,
}
WRITES = {
    "camera": {"frames"},
    "worker": {"results", "heatmaps", "dead-letters", "shadow", "drift"},
    "feedback": {"feedback"},
    "operator": {"frames", "drift"},
}
READS = {
    "worker": {"frames", "results", "drift", "feedback"},
    "gate": {"frames", "results"},
    "refit": {"shadow"},
    "operator": set(topics.KINDS),
}


def asked(folder: Path, address: str) -> list[list[str]]:
    """The command lines that the script gives to kafka-acls.sh, which is written down here instead of run."""
    tool, told = folder / "kafka-acls.sh", folder / "told"
    tool.write_text(
        f'#!/bin/sh\nprintf "%s\\0" "$@" >>{shlex.quote(str(told))}\nprintf "\\n" >>{shlex.quote(str(told))}\n'
    )
    tool.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "BOOTSTRAP": address, "KAFKA_ACLS": str(tool)}
    subprocess.run(["bash", str(SCRIPT)], env=environment, check=True)
    return [line.split("\0")[:-1] for line in told.read_text().splitlines()]


def rules(words: list[str]) -> Iterator[ACL]:
    """What one of them means, by Kafka's manual: every operation on every resource."""
    given: dict[str, list[str]] = {}
    rest = iter(words)
    for word in rest:
        given.setdefault(word, []).extend([] if word == "--add" else [next(rest)])
    kind = ACLResourcePatternType[given.pop("--resource-pattern-type", ["literal"])[0].upper()]
    resources = [ResourcePattern(ResourceType.TOPIC, name, kind) for name in given.pop("--topic", [])]
    resources += [ResourcePattern(ResourceType.GROUP, name, kind) for name in given.pop("--group", [])]
    (who,), operations = given.pop("--allow-principal"), given.pop("--operation")
    del given["--add"], given["--bootstrap-server"]
    assert not given, given
    for resource in resources:
        for operation in operations:
            yield ACL(who, "*", OPERATIONS[operation], ACLPermissionType.ALLOW, resource)


@pytest.fixture(scope="module")
def guarded(jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedBroker]:
    """A broker with the script's rules and no topic yet."""
    assert jars
    folder = tmp_path_factory.mktemp("guarded")
    with GuardedBroker(folder) as broker:
        wanted = [rule for words in asked(folder, broker.address) for rule in rules(words)]
        with topics.admin([broker.address], credentials("root"), timeout_s=10.0) as client:
            client.create_acls(wanted)
        yield broker


@pytest.fixture(scope="module")
def rig(guarded: GuardedBroker, model: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A line whose topics its admin made; each process is started as a user of its own."""
    folder = tmp_path_factory.mktemp("access")
    (folder / "password").write_text(PASSWORD)
    rig = Rig(folder, {})
    rig.config.write_text(f"""
[kafka]
brokers = ["{guarded.address}"]
[kafka.sasl]
username = "nobody"
password_file = "{folder}/password"
mechanism = "PLAIN"
[store]
url = "{rig.store_url}"
[pool]
url = "file://{folder}/pool"
[drift]
folder = "{folder}/drift"
[worker]
threads = 1
[stations."line-1/top"]
deadline_ms = 60000
""")
    store = open_store(rig.store_url)
    store.promote(ModelKey("line-1/top"), store.put(ModelKey("line-1/top"), model), expected=None, who="tests")
    made = as_role(rig, "admin", "topics", "create", "--json")
    assert made.returncode == 0, made.stderr
    assert len(json.loads(made.stdout)["created"]) == len(topics.KINDS)
    yield rig
    rig.close()


def user(role: str) -> dict[str, str]:
    return {"GOLDLINE_KAFKA__SASL__USERNAME": f"goldline-{role}"}


def as_role(rig: Rig, role: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "workers", *arguments, "--config", str(rig.config)]
    return subprocess.run(argv, env={**os.environ, **user(role)}, capture_output=True, text=True, check=False)


def test_a_line_works_with_a_user_for_each_process(rig: Rig, pictures: Path) -> None:
    config = ["--config", str(rig.config)]
    worker = rig.run("worker", "worker", *config, environment=user("worker"))
    gate = rig.run("gate", "gate", *config, "--json", environment=user("gate"))
    rig.wait_for(worker, '"event": "assigned"', within_s=240)
    rig.wait_for(gate, "gate started")
    sent = as_role(rig, "camera", "camera", str(pictures), "--station", "line-1/top", "--rate", "20", "--json")
    assert json.loads(sent.stdout)["accepted"] == 40, sent.stderr
    until = time.monotonic() + 60
    while len(actions := (rig.directory / "gate.out").read_text().splitlines()) < 40:
        assert time.monotonic() < until, worker.last_words()
        time.sleep(0.2)
    assert {json.loads(line)["why"] for line in actions} == {"verdict"}
    said = as_role(rig, "feedback", "feedback", "part-1", "defect", "--by", "ana")
    assert said.returncode == 0, said.stderr
    rig.wait_for(worker, "feedback: an accepted part is defective")
    read = as_role(rig, "operator", "results", "--from-start", "--until-end", "--json")
    assert len(read.stdout.splitlines()) == 40, read.stderr
    for words in (["baseline", "accept", "line-1/top", "--by", "ana", "--why", "lamp"], ["dead-letters", "list"]):
        ran = as_role(rig, "operator", *words)
        assert ran.returncode == 0, ran.stderr
    assert as_role(rig, "operator", "topics", "check").returncode == 0
    assert worker.end() == 0
    assert "AuthorizationFailed" not in worker.log.read_text() + gate.log.read_text()


def may_write(who: dict[str, Any], topic: str) -> bool:
    producer = KafkaProducer(**who, enable_idempotence=False, max_block_ms=10_000)
    try:
        producer.send(topic, b"x", partition=0).get(10)
    except TopicAuthorizationFailedError:
        return False
    finally:
        producer.close()
    return True


def may_read(who: dict[str, Any], topic: str) -> bool:
    """Of a topic that holds something."""
    consumer = KafkaConsumer(**who, enable_auto_commit=False)
    place = TopicPartition(topic, 0)
    try:
        if not consumer.partitions_for_topic(topic):
            return False  # may not even know of it
        consumer.assign([place])
        consumer.seek_to_beginning(place)
        while not consumer.poll(500):
            pass
    except TopicAuthorizationFailedError:
        return False
    finally:
        consumer.close()
    return True


@pytest.mark.parametrize("kind", topics.KINDS)
def test_a_role_writes_and_reads_what_it_has_to_alone(rig: Rig, guarded: GuardedBroker, kind: str) -> None:
    topic, where = f"goldline.{kind}", {"bootstrap_servers": guarded.address}
    assert may_write({**where, **credentials("root")}, topic)
    for role in ROLES:
        who = {**where, **credentials(f"goldline-{role}")}
        assert may_write(who, topic) == (kind in WRITES.get(role, ())), role
        assert may_read(who, topic) == (kind in READS.get(role, ())), role


@pytest.mark.parametrize("role", ["gate", "operator"])
def test_nobody_but_workers_takes_stations_from_a_worker(guarded: GuardedBroker, rig: Rig, role: str) -> None:
    who = {"bootstrap_servers": guarded.address, **credentials(f"goldline-{role}")}
    consumer = KafkaConsumer(**who, group_id="goldline", enable_auto_commit=False)
    consumer.subscribe(["goldline.frames"])
    refused: type[Exception] | None = None
    while refused is None:
        try:
            assert not consumer.poll(500)
            assert not consumer.assignment()
        except (GroupAuthorizationFailedError, TopicAuthorizationFailedError) as error:
            refused = type(error)
    consumer.close(timeout_ms=1000)
    assert refused is GroupAuthorizationFailedError
