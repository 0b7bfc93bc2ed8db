"""The part of requirements.lock that an image needs, with its hashes: read by docker/Dockerfile, standard library only.

--extra video                   what Goldline and this extra need
--extra video --without-cuda    the same, without torch and CUDA's packages
--torch-cpu                     torch and torchvision as PyTorch's own index has them
--package hatchling             what a package needs
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = ("torch", "torchvision")
_CUDA = re.compile(r"nvidia-.+|cuda-.+|triton")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def normal(requirement: str) -> str:
    """The normalised name at the beginning of a requirement."""
    found = _NAME.match(requirement)
    if found is None:
        raise SystemExit(f"no package's name in {requirement!r}")
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def locked(text: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Each package's lines of a lock file, and the packages that asked for it (its `# via`)."""
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    found = {}
    for entry in entries:
        lines = [line for line in entry.splitlines() if not line.lstrip().startswith("#")]
        comments = [line.strip(" #") for line in entry.splitlines() if line.lstrip().startswith("#")]
        via = {normal(c.removeprefix("via").strip()) for c in comments if c.removeprefix("via").strip()[:1].isalnum()}
        found[normal(entry)] = "\n".join(line for line in lines if line.strip()), frozenset(via)
    return found


def needed(lock: dict[str, tuple[str, frozenset[str]]], roots: set[str]) -> set[str]:
    """The roots and all that they asked for, whoever else asked too."""
    chosen: set[str] = set()
    more = roots
    while more:
        chosen |= more
        more = {name for name, (_, via) in lock.items() if via & chosen} - chosen
    return chosen


def main(arguments: list[str]) -> str:
    """The requirements, one entry after the other."""
    parser = argparse.ArgumentParser(description="The part of requirements.lock that an image needs.")
    parser.add_argument("--extra", action="append", default=[])
    parser.add_argument("--package", action="append", default=[])
    parser.add_argument("--without-cuda", action="store_true")
    parser.add_argument("--torch-cpu", action="store_true")
    given = parser.parse_args(arguments)
    lock = locked((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    if given.torch_cpu:
        pins = [lock[name][0].split()[0] for name in TORCH]
        return "\n".join(f"{pin}+cpu" for pin in pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*given.package] or [*project["dependencies"]]
    for extra in given.extra:
        asked += project["optional-dependencies"][extra]
    roots = {normal(requirement) for requirement in asked}
    if missing := roots - lock.keys():
        raise SystemExit(f"not in requirements.lock: {', '.join(sorted(missing))}; make it anew (CONTRIBUTING.md)")
    chosen = needed(lock, roots)
    if given.without_cuda:
        chosen = {name for name in chosen if name not in TORCH and not _CUDA.fullmatch(name)}
    return "\n".join(lock[name][0] for name in sorted(chosen))


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]) + "\n")
