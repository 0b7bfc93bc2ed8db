"""Options of the Kafka clients, made from settings once: brokers, TLS, SASL."""

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from pipeline.errors import ConfigError
from pipeline.settings import Kafka, secret_file
from workers import settings_file
from workers.header_names import forgive_edges
from workers.wire import Record

forgive_edges()

ANSWER_S = 5.0  # so long a broker may take to answer at the start; later, clients wait for as long as it takes
_TOGETHER_BYTES = 512 * 1024
_RECONNECT_MS = 1000  # a line waits for its broker: the default's 30 s would outlast the outage
_ATTEMPT_S = 2.0


def ssl_context(kafka: Kafka) -> ssl.SSLContext | None:
    """The TLS context, or None where TLS is not asked for.

    Raises:
        ConfigError: a certificate or key cannot be read.
    """
    if kafka.tls is None:
        return None
    try:
        context = ssl.create_default_context(cafile=kafka.tls.ca_file)
        if kafka.tls.cert_file:
            context.load_cert_chain(secret_file(kafka.tls.cert_file), secret_file(kafka.tls.key_file or ""))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"kafka.tls: cannot read the certificates: {error}") from error
    return context


def password(kafka: Kafka) -> str | None:
    """The SASL password from its file.

    Raises:
        ConfigError: the file cannot be read.
    """
    if kafka.sasl is None:
        return None
    try:
        return secret_file(kafka.sasl.password_file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"kafka.sasl.password_file: cannot read {kafka.sasl.password_file}") from error


def client_options(kafka: Kafka) -> dict[str, Any]:
    """Security options for any kafka-python client."""
    options: dict[str, Any] = {}
    context = ssl_context(kafka)
    options["security_protocol"] = ("SASL_" if kafka.sasl else "") + ("SSL" if context else "PLAINTEXT")
    if context:
        options["ssl_context"] = context
    if kafka.sasl:
        options |= {
            "sasl_mechanism": kafka.sasl.mechanism,
            "sasl_plain_username": kafka.sasl.username,
            "sasl_plain_password": password(kafka),
        }
    return options


def producer(kafka: Kafka, *, request_max_bytes: int = 1_048_576, outage_s: float = 120.0) -> KafkaProducer:
    """An idempotent producer that confirms delivery and rides out a broker's absence of `outage_s` seconds.

    Raises:
        ConfigError: no broker answers.
    """
    return _connected(
        kafka,
        lambda: KafkaProducer(
            bootstrap_servers=list(kafka.brokers),
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            # One request at a time is under way to a partition: what waits behind it goes together.
            batch_size=min(_TOGETHER_BYTES, request_max_bytes // 2),
            delivery_timeout_ms=round(outage_s * 1000),
            request_timeout_ms=min(30_000, round(outage_s * 1000)),
            bootstrap_timeout_ms=round(ANSWER_S * 1000),
            max_block_ms=round(outage_s * 1000),
            max_request_size=request_max_bytes,
            reconnect_backoff_max_ms=_RECONNECT_MS,
            **client_options(kafka),
        ),
    )


def consumer(
    kafka: Kafka, *, fetch_max_bytes: int = 1_048_576, fetch_wait_ms: int = 50, **options: Any
) -> KafkaConsumer:
    """A consumer that commits nothing by itself.

    Args:
        kafka: the brokers.
        fetch_max_bytes: of one partition at once.
        fetch_wait_ms: so long the broker waits for a record before it answers with none. Meanwhile it answers nothing
            else that this consumer asks: short for one that seeks, long for one that follows and should cost little.
        **options: of kafka-python.

    Raises:
        ConfigError: no broker answers.
    """
    return _connected(
        kafka,
        lambda: KafkaConsumer(
            bootstrap_servers=list(kafka.brokers),
            enable_auto_commit=False,
            max_partition_fetch_bytes=fetch_max_bytes,
            fetch_max_wait_ms=fetch_wait_ms,
            bootstrap_timeout_ms=round(ANSWER_S * 1000),
            reconnect_backoff_max_ms=_RECONNECT_MS,
            **client_options(kafka),
            **options,
        ),
    )


def tail(
    kafka: Kafka,
    topic: str,
    *,
    from_start: bool = False,
    partition: int | None = None,
    fetch_max_bytes: int = 1_048_576,
    fetch_wait_ms: int = 50,
) -> KafkaConsumer:
    """A consumer of every partition of a topic, or of one, from its start or from now on, in no group.

    Raises:
        ConfigError: no broker answers, or there is no such topic.
    """
    client = consumer(kafka, fetch_max_bytes=fetch_max_bytes, fetch_wait_ms=fetch_wait_ms)
    partitions = set(client.partitions_for_topic(topic) or ())
    if partition is not None:
        partitions &= {partition}
    if not partitions:
        client.close()
        missing = f"topic {topic}" if partition is None else f"partition {partition} of topic {topic}"
        raise ConfigError(f"there is no {missing}; make it with: goldline topics create {settings_file.option()}")
    assigned = [TopicPartition(topic, p) for p in sorted(partitions)]
    client.assign(assigned)
    (client.seek_to_beginning if from_start else client.seek_to_end)(*assigned)
    for each in assigned:
        client.position(each)
    return client


def require_partition(kafka: Kafka, topic: str, partition: int) -> None:
    """Nothing, where a topic has a partition of this number.

    Raises:
        ConfigError: it has not, or no broker answers.
    """
    client = consumer(kafka)
    there = _partitions(client, topic)
    client.close()
    if partition not in there:
        raise ConfigError(
            f"topic {topic} has no partition {partition}: it was made for fewer stations; add it with: "
            f"goldline topics create {settings_file.option()}"
        )


def _partitions(client: KafkaConsumer, topic: str) -> set[int]:
    found: set[int] = client.partitions_for_topic(topic) or set()
    if not found:
        client.close()
        raise ConfigError(f"there is no topic {topic}; make it with: goldline topics create {settings_file.option()}")
    return found


def records(client: KafkaConsumer, *, timeout_ms: int = 100, at_most: int = 500) -> Iterator[Record]:
    """What one poll brings."""
    for batch in client.poll(timeout_ms=timeout_ms, max_records=at_most).values():
        for r in batch:
            yield Record(
                topic=r.topic,
                partition=r.partition,
                offset=r.offset,
                timestamp_ms=r.timestamp,
                key=r.key,
                value=r.value,
                headers=r.headers or [],
            )


def reachable(brokers: Sequence[str], *, within_s: float) -> bool:
    """Whether any address accepts a connection; kafka-python takes long to say no, and leaks a socket each time."""
    deadline = time.monotonic() + within_s
    while True:
        for broker in brokers:
            host, _, port = broker.rpartition(":")
            left = max(0.1, deadline - time.monotonic())
            with contextlib.suppress(OSError, ValueError, OverflowError):
                socket.create_connection((host.strip("[]"), int(port)), timeout=min(left, _ATTEMPT_S)).close()
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def no_broker(brokers: Sequence[str], *, within_s: float, error: Exception | None = None) -> ConfigError:
    """One clear error: where nobody answered, and what to try."""
    seen = f" ({type(error).__name__})" if error else ""
    return ConfigError(
        f"no Kafka broker answers at {', '.join(brokers)} within {within_s:g} s{seen}; start one with "
        f"`goldline kafka start`, or name yours in {settings_file.named()} ([kafka] brokers)"
    )


def _connected(kafka: Kafka, make: Any) -> Any:
    if not reachable(kafka.brokers, within_s=ANSWER_S):
        raise no_broker(kafka.brokers, within_s=ANSWER_S)
    try:
        return make()
    except (KafkaError, OSError) as error:
        raise no_broker(kafka.brokers, within_s=ANSWER_S, error=error) from error
