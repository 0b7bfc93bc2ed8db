"""What the files of deploy/ and docker/ say, held against what there is: commands, settings, services of ours."""

import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path

from pipeline.settings import Settings
from pipeline.settings_overrides import overrides
from tests.test_docs import problem_with

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"

# Variables that are no settings: README.md, Settings.
OTHERS = {"GOLDLINE_PICTURES", "GOLDLINE_REDIS_PASSWORD"}


def wrong_command(arguments: Iterable[str]) -> str | None:
    """What `goldline ARGUMENTS` would be told, or None."""
    return problem_with([str(word) for word in arguments])


def wrong_variables(environment: dict[str, str]) -> list[str]:
    """What is wrong with variables of ours: no such setting, or a value that it cannot have."""
    ours = {name: str(value) for name, value in environment.items() if name.startswith("GOLDLINE_")}
    known = {name: value for name, value in ours.items() if name not in OTHERS}
    strange = [f"{name} is no setting" for name in known if "__" not in name]
    return strange + list(overrides({}, Settings, known, prefix="GOLDLINE_"))


def split(line: str) -> list[str]:
    """A shell's or systemd's line as words."""
    return shlex.split(line, comments=True)


def ran(*argv: str, **options: object) -> "subprocess.CompletedProcess[str]":
    """A command's output, whatever its status."""
    return subprocess.run(argv, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
