import socket

import pytest
from kafka import KafkaAdminClient

from pipeline.errors import ConfigError
from workers import topics

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


def test_too_few_partitions(broker, specs):
    make(broker, specs[0], partitions=2)
    make(broker, specs[1], partitions=2)
    topics.create([broker], specs)
    frames, results = topics.check([broker], specs)
    assert "frames has partitions: 2, needed: 3" in frames
    assert "results has partitions: 2, needed: 3" in results


@pytest.mark.parametrize("partitions", [2, 4])
def test_results_need_as_many_partitions_as_frames(broker, specs, partitions):
    make(broker, specs[1], partitions=partitions)
    topics.create([broker], specs)
    [problem] = topics.check([broker], specs)
    assert f"results has partitions: {partitions}, needed: as many as {specs[0].name}, 3" in problem


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
