"""What people and later inspections say of parts: read from the topic of feedback, applied to the pool.

One group follows for the whole line, so that each message is applied once by whichever worker holds the topic's
partition, and it begins with the oldest message there is. An offset is committed after its message was applied: a crash
applies some again, which changes nothing.
"""

import threading

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from model_store import open_store
from model_store.pool import DiskPool
from model_store.pool_records import Feedback
from pipeline.errors import ConfigError, StoreError, StoreUnavailable
from pipeline.settings import Settings
from workers import clients, logs, messages, provenance, topics, wire

log = logs.get(__name__)

_LOOK_S = 0.5  # between polls, so that many messages share a look through the pool
_AGAIN_S = 5.0
_STOP_S = 5.0


class Follower:
    """Applies feedback to a pool, in a thread of its own, until stopped.

    Attributes:
        applied: messages applied.
        skipped: messages that are none of ours.
    """

    def __init__(self, settings: Settings, pool: DiskPool) -> None:
        self.applied = 0
        self.skipped = 0
        self._settings = settings
        self._pool = pool
        self._stop = threading.Event()
        self._away = False
        self._thread = threading.Thread(target=self._run, name="feedback", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Leave the group; what is not committed comes again."""
        self._stop.set()
        self._thread.join(_STOP_S)
        log.info("feedback: ended", applied=self.applied, skipped=self.skipped)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except (KafkaError, ConfigError) as error:
                log.warning("feedback: the broker does not answer, asking again", error=type(error).__name__)
            except Exception:  # whatever it is, later feedback must still be read
                log.exception("feedback: reading it failed, beginning again")
            self._stop.wait(_AGAIN_S)

    def _follow(self) -> None:
        kafka = self._settings.kafka
        client = clients.consumer(kafka, group_id=f"{kafka.group}.pool", auto_offset_reset="earliest")
        try:
            client.subscribe([topics.name(kafka.prefix, "feedback")])
            while not self._stop.wait(_LOOK_S):
                self._step(client)
        finally:
            client.close()

    def _step(self, client: KafkaConsumer) -> None:
        """Apply what one poll brings, then commit it; with the pool away, go back to where it began."""
        read = list(clients.records(client))
        if not read:
            return
        said = [(record, messages.decode_feedback(record.value, record.key)) for record in read]
        skipped = [record.origin for record, feedback in said if feedback is None]
        try:
            feedback = [each for _, each in said if each is not None]
            self._apply(feedback)
        except StoreUnavailable as error:
            if not self._away:
                log.error("feedback waits: the pool does not answer", error=str(error))
            self._away = True
            for record in reversed(read):
                client.seek(TopicPartition(record.topic, record.partition), record.offset)
            self._stop.wait(_AGAIN_S)
            return
        if self._away:
            log.info("feedback: the pool answers again")
            self._away = False
        self.applied += len(feedback)
        self.skipped += len(skipped)
        if skipped:
            log.warning("feedback that is none was skipped", messages=len(skipped), first=skipped[0])
        after = {TopicPartition(record.topic, record.partition): record.offset + 1 for record in read}
        client.commit({place: OffsetAndMetadata(offset, "", -1) for place, offset in after.items()})

    def _apply(self, said: list[Feedback]) -> None:
        for feedback, frames in zip(said, self._pool.report(said), strict=True):
            if feedback.verdict == "defect":
                log.info("feedback: an accepted part is defective", part_id=feedback.part_id, frames_removed=frames)
                self._withdraw(feedback)

    def _withdraw(self, feedback: Feedback) -> None:
        """Versions that learnt from the part and wait are withdrawn; best effort, as approvals look again."""
        try:
            store = open_store(self._settings.store.url)
            fitted, _ = provenance.fitted_with(store, feedback.part_id, set())
            for each in provenance.withdraw_waiting(store, fitted, feedback):
                log.error(
                    "feedback: a version was fitted with a defective part",
                    part_id=feedback.part_id,
                    station=each.key.station,
                    recipe=each.key.recipe,
                    model=each.version,
                    state=each.state.value,
                )
        except (StoreError, ConfigError) as error:
            log.warning("feedback: which versions learnt from it is not known", error=str(error))


def publish(settings: Settings, feedback: Feedback) -> None:
    """Send feedback, and wait until the broker has it.

    Raises:
        ConfigError: no broker answers, or it refuses.
    """
    headers = wire.event_headers(
        wire.FEEDBACK_TYPE,
        messages.result_id(feedback.part_id, messages.encode_feedback(feedback).decode()),
        "goldline/feedback",
        feedback.at,
        "application/json",
    )
    topic = topics.name(settings.kafka.prefix, "feedback")
    client = clients.producer(settings.kafka, outage_s=20.0)
    try:
        value, key = messages.encode_feedback(feedback), feedback.part_id.encode()
        client.send(topic, value=value, key=key, headers=headers).get(timeout=30)
    except KafkaError as error:
        raise ConfigError(f"the broker did not take it on {topic}: {type(error).__name__}: {error}") from error
    finally:
        client.close()
