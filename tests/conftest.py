"""What tests share: a real Kafka broker, real data where there is some, topics of one's own."""

import os
import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ConfigError

with warnings.catch_warnings():
    # kafka-python reads its schemas with a call that Python 3.11 deprecates.
    warnings.filterwarnings("ignore", "(read|open)_text is deprecated", DeprecationWarning)
    import kafka.admin

    from tests.redis_server import RedisServer
    from workers import dev_broker, kafka_jars

assert kafka.admin

pytest_plugins = ["tests.line_fixtures"]


def missing(what: str) -> None:
    """Without a service a test is skipped on a laptop and fails in CI, where it must not go unnoticed."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def jars() -> Path:
    """Kafka's jars, with a Java to run them."""
    try:
        kafka_jars.java()
        return kafka_jars.fetch()
    except ConfigError as error:
        missing(str(error))
        raise


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a real broker: the one GOLDLINE_BROKER names, or one of our own for this session."""
    if address := os.environ.get("GOLDLINE_BROKER"):
        yield address
        return
    request.getfixturevalue("jars")
    directory = tmp_path_factory.mktemp("kafka")
    try:
        yield dev_broker.start(directory, port=0).address
    finally:
        dev_broker.stop(directory, erase=True)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a real Redis: the one GOLDLINE_REDIS names, or one of our own for this session."""
    if address := os.environ.get("GOLDLINE_REDIS"):
        yield address
        return
    if shutil.which("redis-server") is None:
        missing("no redis-server here: install it, or name one of your own in GOLDLINE_REDIS=HOST:PORT")
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server.address


@pytest.fixture
def server(redis_server: str, tmp_path: Path) -> Iterator[RedisServer]:
    """A real Redis of a test's own: it may be killed."""
    assert redis_server
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as own:
        yield own


@pytest.fixture
def topics_prefix() -> str:
    """A prefix that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real images and weights, where GOLDLINE_DATA says."""
    named = os.environ.get("GOLDLINE_DATA")
    if not named:
        pytest.skip("GOLDLINE_DATA is not set: no real images or weights")
    return Path(named)
