"""A real broker that asks who is there and lets nobody do what no rule permits; beside it, what a line's users are."""

import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kafka.errors import KafkaError

from workers import dev_broker, topics
from workers.kafka_jars import RESOURCES

PASSWORD = "for-tests-alone"
ROLES = ("admin", "camera", "worker", "gate", "feedback", "refit", "operator", "scaler")


def credentials(user: str) -> dict[str, Any]:
    """What a kafka-python client needs to be this user."""
    return {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": user,
        "sasl_plain_password": PASSWORD,
    }


class GuardedBroker:
    """One process of Kafka with StandardAuthorizer; `root` may do everything. Use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jars = dev_broker.fetch()
        self.java = str(dev_broker.java())
        self._port, self._controller = _free_port(), _free_port()
        self.address = f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        settings = self.folder / "server.properties"
        settings.write_text(self._settings())
        jvm = [self.java, "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        jvm += [f"-Dlog4j2.configurationFile={(RESOURCES / 'log4j2.xml').as_uri()}", "-cp", f"{self.jars}/*"]
        tool = [
            "kafka.tools.StorageTool",
            "format",
            "--standalone",
            "-t",
            "AAAAAAAAAAAAAAAAAAAAAA",
            "-c",
            str(settings),
        ]
        subprocess.run([*jvm, *tool], check=True, capture_output=True)
        with (self.folder / "kafka.log").open("wb") as log:
            self._process = subprocess.Popen([*jvm, "kafka.Kafka", str(settings)], stdout=log, stderr=log)
        until = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                told = (self.folder / "kafka.log").read_text()[-2000:]
                self.__exit__(None, None, None)
                raise AssertionError(told)
            time.sleep(0.2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(20)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            with topics.admin([self.address], credentials("root"), timeout_s=3.0) as client:
                return any(not broker.get("is_fenced") for broker in client.describe_cluster()["brokers"])
        except (OSError, KafkaError):
            return False

    def _settings(self) -> str:
        users = " ".join(f'user_{user}="{PASSWORD}"' for user in ("root", *(f"goldline-{role}" for role in ROLES)))
        login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        text = (
            (RESOURCES / "server.properties")
            .read_text()
            .format(host="127.0.0.1", port=self._port, controller_port=self._controller, data=self.folder / "data")
        )
        return text.replace("BROKER:PLAINTEXT", "BROKER:SASL_PLAINTEXT") + "\n".join(
            [
                "",
                "sasl.enabled.mechanisms=PLAIN",
                "sasl.mechanism.inter.broker.protocol=PLAIN",
                f'listener.name.broker.plain.sasl.jaas.config={login} username="root" password="{PASSWORD}" {users};',
                "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "allow.everyone.if.no.acl.found=false",
                # The controller's listener is for the broker itself, which does not say who it is there.
                "super.users=User:root;User:ANONYMOUS",
                "",
            ]
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
