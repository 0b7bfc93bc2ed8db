"""`goldline status` when the broker goes away while it looks."""

import pytest
from kafka.errors import KafkaTimeoutError

from pipeline import settings as line
from pipeline.errors import ConfigError
from workers import clients, status


def test_a_broker_that_goes_away_is_one_clear_error(monkeypatch):
    class Gone:
        """A consumer whose broker answered once."""

        def __getattr__(self, name):
            def fails(*_, **__):
                raise KafkaTimeoutError("no answer")

            return fails

        def close(self):
            """Nothing is open."""

    monkeypatch.setattr(clients, "consumer", lambda *_, **__: Gone())
    settings = line.build({"stations": {"line-1/top": {}}, "kafka": {"brokers": ["127.0.0.1:9"]}})
    with (
        status.LineReader(settings, window_s=60.0, at_most=10) as reader,
        pytest.raises(ConfigError, match="does not answer any more"),
    ):
        reader.look()
