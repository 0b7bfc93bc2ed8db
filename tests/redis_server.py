"""A Redis of one's own, on loopback and a free port, stopped by whoever started it."""

import os
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis


def make_certificates(folder: Path) -> Path:
    """`ca`, and signed by it `server` (for 127.0.0.1) and `client`, each a .crt and a .key; made by openssl."""
    folder.mkdir()
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

    def run(*argv: str) -> None:
        subprocess.run(argv, cwd=folder, check=True, capture_output=True)

    run(*new, "-x509", "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "client"):
        run(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
        run("openssl", "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signed)
    return folder


class RedisServer:
    """`with RedisServer(folder, "--requirepass", "x") as server: server.address`.

    With the folder of `certificates` it speaks TLS alone, and asks its clients for certificates too.
    """

    def __init__(self, folder: Path, *options: str, certificates: Path | None = None) -> None:
        self._folder = folder
        self._certificates = certificates
        self._options = options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it, again on the same port after `kill`, with what it had written."""
        argv = ["redis-server", "--bind", "127.0.0.1", "--dir", str(self._folder), *self._ports()]
        argv += ["--save", "", "--appendonly", "yes", "--appendfsync", "always", *self._options]
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ, "LC_ALL": "C"})
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                with redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=1, **self._secured()) as client:
                    client.ping()
                return
            except redis.AuthenticationError:
                return
            except redis.RedisError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.02)
        raise RuntimeError(f"redis-server did not start: {(self._folder / 'log').read_text()[-2000:]}")

    def _ports(self) -> list[str]:
        if self._certificates is None:
            return ["--port", str(self.port)]
        files = {"ca-cert": "ca.crt", "cert": "server.crt", "key": "server.key"}
        named = [word for option, file in files.items() for word in (f"--tls-{option}-file", self._certificates / file)]
        return ["--port", "0", "--tls-port", str(self.port), *map(str, named)]

    def _secured(self) -> dict[str, object]:
        if self._certificates is None:
            return {}
        files = {"ssl_ca_certs": "ca.crt", "ssl_certfile": "client.crt", "ssl_keyfile": "client.key"}
        return {"ssl": True, **{option: str(self._certificates / file) for option, file in files.items()}}

    def kill(self) -> None:
        """As a power cut would."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait(20)
