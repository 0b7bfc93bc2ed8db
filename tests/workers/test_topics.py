import socket

import pytest
from click.testing import CliRunner
from kafka import KafkaAdminClient

from pipeline.errors import ConfigError
from pipeline.settings import Kafka
from workers import clients, topics
from workers.cli import cli

pytestmark = pytest.mark.kafka


@pytest.fixture
def specs(topics_prefix):
    return topics.specs(partitions=3, frame_max_bytes=900_000, prefix=topics_prefix)


def make(broker, spec, *, partitions=None, **changes):
    config = {**spec.config, **changes}
    wanted = {"num_partitions": partitions or spec.partitions, "replication_factor": 1, "configs": config}
    with KafkaAdminClient(bootstrap_servers=broker) as admin:
        admin.create_topics({spec.name: wanted}, wait_for_metadata=True)


def test_creating_twice_makes_them_once(broker, specs):
    assert topics.create([broker], specs) == [spec.name for spec in specs]
    assert topics.create([broker], specs) == []
    assert topics.check([broker], specs) == []


def test_an_existing_topic_is_left_alone(broker, specs):
    make(broker, specs[0], partitions=5)
    made = topics.create([broker], specs)
    assert made == [spec.name for spec in specs[1:]]
    assert [p for p in topics.check([broker], specs) if "partitions" in p] == [
        p for p in topics.check([broker], specs) if specs[1].name in p
    ]


def test_missing_topics_are_told_with_the_command_that_makes_them(broker, specs):
    problems = topics.check([broker], specs)
    assert len(problems) == len(specs)
    for spec, problem in zip(specs, problems, strict=True):
        assert problem == (f"topic {spec.name} is missing; make it: goldline topics create --config line.toml")


@pytest.mark.parametrize(
    ("kind", "changes", "seen", "needed"),
    [
        ("frames", {"max.message.bytes": "1000000"}, "max.message.bytes=1000000", "966560 or more"),
        ("frames", {"message.timestamp.type": "CreateTime"}, "=CreateTime", "LogAppendTime"),
        ("results", {"message.timestamp.type": "CreateTime"}, "=CreateTime", "LogAppendTime"),
        ("results", {"cleanup.policy": "compact"}, "cleanup.policy=compact", "delete"),
        ("dead-letters", {"max.message.bytes": "966560"}, "max.message.bytes=966560", "1032096 or more"),
    ],
)
def test_a_wrong_setting_is_told(broker, specs, kind, changes, seen, needed):
    if kind == "frames" and "max.message.bytes" in changes:
        changes = {"max.message.bytes": "900000"}
        seen = "max.message.bytes=900000"
    spec = specs[topics.KINDS.index(kind)]
    make(broker, spec, **changes)
    topics.create([broker], specs)
    [problem] = topics.check([broker], specs)
    assert spec.name in problem
    assert seen in problem
    assert f"needed: {needed}" in problem
    assert "goldline topics create --config line.toml" in problem


def test_too_few_partitions_are_told_and_added(broker, specs):
    for spec in specs[:3]:
        make(broker, spec, partitions=2)
    topics.create([broker], specs)
    assert topics.check([broker], specs) == [
        f"topic {spec.name} has partitions: 2, needed: 3; add them: goldline topics create --config line.toml"
        for spec in specs[:3]
    ]
    assert topics.widen([broker], specs) == {spec.name: (2, 3) for spec in specs[:3]}
    assert topics.check([broker], specs) == []
    assert topics.widen([broker], specs) == {}


def test_what_is_in_a_topic_stays_when_it_is_widened(broker, specs):
    kafka = Kafka(brokers=(broker,))
    results = next(spec for spec in specs if spec.name.endswith(".results"))
    make(broker, results, partitions=2)
    producer = clients.producer(kafka)
    for partition in (0, 1):
        producer.send(results.name, key=b"line-1/top", value=b"%d" % partition, partition=partition).get(timeout=10)
    producer.close()
    topics.widen([broker], specs)
    client = clients.tail(kafka, results.name, from_start=True)
    read = {}
    while len(read) < 2:
        read |= {record.partition: record.value for record in clients.records(client)}
    assert read == {0: b"0", 1: b"1"}
    assert client.partitions_for_topic(results.name) == {0, 1, 2}
    client.close()


@pytest.mark.parametrize("wider", ["frames", "results"])
def test_the_narrower_of_frames_and_results_gets_as_many_as_the_other(broker, specs, wider):
    """Partitions cannot be taken away, and a worker recovers its answers from the partition of the same number."""
    make(broker, next(spec for spec in specs if spec.name.endswith(f".{wider}")), partitions=5)
    topics.create([broker], specs)
    narrow = next(s.name for s in specs if s.name.endswith({"frames": ".results", "results": ".frames"}[wider]))
    [problem] = topics.check([broker], specs)
    assert f"{narrow} has partitions: 3, needed: 5" in problem
    assert topics.widen([broker], specs) == {narrow: (3, 5)}
    assert topics.check([broker], specs) == []


def test_the_command_adds_partitions_for_a_new_station_and_names_its_own_settings(broker, topics_prefix, tmp_path):
    config = tmp_path / "plant 1.toml"
    kafka = f'[kafka]\nbrokers = ["{broker}"]\nprefix = "{topics_prefix}"\n'
    config.write_text(kafka + '[stations."line-1/top"]\n')
    assert CliRunner().invoke(cli, ["topics", "create", "--config", str(config)]).exit_code == 0
    config.write_text(kafka + '[stations."line-1/top"]\n[stations."line-1/side"]\n')
    told = CliRunner().invoke(cli, ["topics", "check", "--config", str(config)])
    assert told.exit_code == 1
    assert f"add them: goldline topics create --config '{config}'" in told.output
    made = CliRunner().invoke(cli, ["topics", "create", "--config", str(config)])
    assert made.exit_code == 0, made.output
    assert f"wider  {topics_prefix}.frames  2 partitions, 1 before" in made.output
    assert CliRunner().invoke(cli, ["topics", "check", "--config", str(config)]).exit_code == 0


def test_a_silent_address_is_named():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        specs = topics.specs(partitions=1, frame_max_bytes=1000)
        with pytest.raises(ConfigError, match=f"no Kafka broker answers at {address} within 0.5 s"):
            topics.check([address], specs, timeout_s=0.5)


def test_a_dead_letter_holds_a_frame_and_more_headers():
    frames, results, _, letters, *_ = topics.specs(partitions=6, frame_max_bytes=2_000_000)
    assert int(frames.config["max.message.bytes"]) > 2_000_000
    assert int(letters.config["max.message.bytes"]) > int(frames.config["max.message.bytes"])
    assert frames.partitions == results.partitions == 6


def test_without_a_broker_a_command_says_where_it_looked_and_what_to_try(tmp_path):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        config = tmp_path / "plant.toml"
        config.write_text(f'[kafka]\nbrokers = ["{address}"]\n[stations."line-1/top"]\n')
        for command in (["results"], ["topics", "check"]):
            told = CliRunner().invoke(cli, [*command, "--config", str(config)])
            assert isinstance(told.exception, ConfigError)
            assert str(told.exception) == (
                f"no Kafka broker answers at {address} within 5 s; start one with `goldline kafka start`, or name "
                f"yours in {config} ([kafka] brokers)"
            )
