"""The topics: making them, and checking those that are there; what each is made with is in `topic_specs`.

Of a topic that exists nothing is changed but for partitions that more stations need, which `widen` adds. `check` says
what else is wrong, a person decides.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from kafka.net.compat import KafkaNetClient

from pipeline.errors import ConfigError
from workers import clients, settings_file
from workers.topic_specs import KINDS, TopicSpec, frame_max_bytes, name, of, specs

__all__ = [
    "KINDS",
    "TopicSpec",
    "admin",
    "check",
    "connected",
    "create",
    "delete",
    "frame_max_bytes",
    "name",
    "of",
    "specs",
    "widen",
]

_PAIR = ("frames", "results")  # always as many partitions each


def admin(brokers: Sequence[str], client_options: Mapping[str, Any], *, timeout_s: float) -> KafkaAdminClient:
    """A connected admin client.

    Raises:
        KafkaError: nobody answered within `timeout_s`; unlike kafka-python alone, this leaves no thread then.
    """
    made: list[KafkaNetClient] = []

    def keep(**options: Any) -> KafkaNetClient:
        made.append(KafkaNetClient(**options))
        return made[-1]

    timeout_ms = int(timeout_s * 1000)
    limits = {"bootstrap_timeout_ms": timeout_ms, "request_timeout_ms": timeout_ms}
    try:
        return KafkaAdminClient(bootstrap_servers=list(brokers), kafka_client=keep, **{**limits, **client_options})
    except BaseException:
        for client in made:
            client.close()
        raise


def create(
    brokers: Sequence[str],
    specs: Sequence[TopicSpec],
    *,
    replication: int = 1,
    client_options: Mapping[str, Any] | None = None,
    timeout_s: float = 10.0,
) -> list[str]:
    """Makes the topics that are missing and waits until they can be used.

    Returns:
        The names of those made; existing ones are left as they are (see `check`).

    Raises:
        ConfigError: no broker answers, or it refuses.
    """
    with connected(brokers, client_options or {}, timeout_s) as client:
        there = set(client.list_topics())
        missing = [spec for spec in specs if spec.name not in there]
        made: list[str] = []
        for spec in missing:
            # Acknowledged frames survive the loss of one replica where there are three.
            config = {**spec.config, "min.insync.replicas": str(max(1, replication - 1))}
            wanted = {"num_partitions": spec.partitions, "replication_factor": replication, "configs": config}
            with contextlib.suppress(TopicAlreadyExistsError):  # somebody else made it meanwhile
                client.create_topics({spec.name: wanted})
                made.append(spec.name)
        client.wait_for_topics([spec.name for spec in missing], timeout_ms=timeout_s * 1000)
    return made


def widen(
    brokers: Sequence[str],
    specs: Sequence[TopicSpec],
    *,
    client_options: Mapping[str, Any] | None = None,
    timeout_s: float = 10.0,
) -> dict[str, tuple[int, int]]:
    """Adds the partitions that topics lack; none is ever taken away, and what is in the others stays.

    A station's number comes from settings, never from a hash of its name that the count would change; one without a
    number of its own keeps the one it had as long as new stations are appended to the settings. Frames come last: no
    worker may be given a partition that results lack.

    Returns:
        Name of each topic that was widened: partitions before and after.

    Raises:
        ConfigError: no broker answers, or it refuses.
    """
    with connected(brokers, client_options or {}, timeout_s) as client:
        counts = _counts(client, specs)
        there = [spec for spec in specs if spec.name in counts]
        wanted = {spec.name: (counts[spec.name], _needed(spec, counts)) for spec in there}
        added = {topic: (have, need) for topic, (have, need) in wanted.items() if have < need}
        for topic in sorted(added, key=lambda topic: topic.endswith(".frames")):
            client.create_partitions({topic: added[topic][1]}, timeout_ms=round(timeout_s * 1000))
        deadline = time.monotonic() + timeout_s
        while any(_counts(client, there)[topic] < need for topic, (_, need) in added.items()):
            if time.monotonic() > deadline:
                raise ConfigError(f"the new partitions of {', '.join(added)} did not appear within {timeout_s:g} s")
            time.sleep(0.05)
    return added


def delete(
    brokers: Sequence[str],
    specs: Sequence[TopicSpec],
    *,
    client_options: Mapping[str, Any] | None = None,
    timeout_s: float = 10.0,
) -> None:
    """Deletes topics and all that is in them; those that are not there are passed over.

    Raises:
        ConfigError: no broker answers, or it refuses.
    """
    with connected(brokers, client_options or {}, timeout_s) as client:
        there = set(client.list_topics())
        client.delete_topics([spec.name for spec in specs if spec.name in there])


def check(
    brokers: Sequence[str],
    specs: Sequence[TopicSpec],
    *,
    client_options: Mapping[str, Any] | None = None,
    timeout_s: float = 10.0,
) -> list[str]:
    """What is wrong with the topics, a sentence each with the command that mends it; empty when all is well.

    Raises:
        ConfigError: no broker answers, or it refuses.
    """
    with connected(brokers, client_options or {}, timeout_s) as client:
        counts = _counts(client, specs)
        wanted = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in counts]
        configs = client.describe_configs(wanted, config_filter="all")["topic"] if wanted else {}
    problems: list[str] = []
    for spec in specs:
        if spec.name not in counts:
            problems.append(f"topic {spec.name} is missing; make it: {_mend()}")
            continue
        config = {key: str(entry["value"]) for key, entry in configs[spec.name].items()}
        problems += _wrong_count(spec, counts) + _wrong_config(spec, config)
    return problems


def _mend() -> str:
    return f"goldline topics create {settings_file.option()}"


def _counts(client: KafkaAdminClient, specs: Sequence[TopicSpec]) -> dict[str, int]:
    """Partitions of the topics that are there."""
    return {
        topic["name"]: len(topic["partitions"])
        for topic in client.describe_topics([spec.name for spec in specs])
        if _exists(topic["name"], topic["error_code"])
    }


def _needed(spec: TopicSpec, counts: Mapping[str, int]) -> int:
    """Partitions as settings need them; frames and results as many as either has: none can be taken away."""
    prefix, _, kind = spec.name.rpartition(".")
    pair = [counts.get(name(prefix, each), 0) for each in _PAIR] if kind in _PAIR else []
    return max([spec.partitions, *pair])


def _wrong_count(spec: TopicSpec, counts: Mapping[str, int]) -> list[str]:
    have, need = counts[spec.name], _needed(spec, counts)
    if have >= need:
        return []
    return [f"topic {spec.name} has partitions: {have}, needed: {need}; add them: {_mend()}"]


def _wrong_config(spec: TopicSpec, have: Mapping[str, str]) -> list[str]:
    def told(key: str, needed: str) -> str:
        alter = f"kafka-configs.sh --alter --topic {spec.name} --add-config {key}={spec.config[key]}"
        seen = f"topic {spec.name} has {key}={have[key]}, needed: {needed}"
        return f"{seen}; {alter}, or delete it and run: {_mend()}"

    problems: list[str] = []
    limit = "max.message.bytes"
    if limit in spec.config and int(have[limit]) < int(spec.config[limit]):
        problems.append(told(limit, f"{spec.config[limit]} or more"))
    exact = (key for key in ("message.timestamp.type", "cleanup.policy") if key in spec.config)
    problems += [told(key, spec.config[key]) for key in exact if have[key] != spec.config[key]]
    return problems


def _exists(topic: str, code: int) -> bool:
    """Whether metadata has the topic; an error other than "unknown" is raised, not taken for absence."""
    if code in {0, 5}:  # 5: a partition has no leader just now
        return True
    if code == 3:
        return False
    raise for_code(code)(topic)


@contextlib.contextmanager
def connected(
    brokers: Sequence[str], client_options: Mapping[str, Any], timeout_s: float
) -> Iterator[KafkaAdminClient]:
    """An admin client, for as long as it is needed.

    Raises:
        ConfigError: no broker answers, or one refuses what is asked meanwhile.
    """
    where, within_s = ", ".join(brokers), min(timeout_s, clients.ANSWER_S)
    if "proxy_url" not in client_options and not clients.reachable(brokers, within_s=within_s):
        raise clients.no_broker(brokers, within_s=within_s)
    try:
        client = admin(brokers, {"bootstrap_timeout_ms": round(within_s * 1000), **client_options}, timeout_s=timeout_s)
    except (KafkaError, OSError) as error:
        raise clients.no_broker(brokers, within_s=within_s, error=error) from error
    try:
        with client:
            yield client
    except KafkaError as error:
        raise ConfigError(f"the Kafka broker at {where} refused: {error}") from error
