"""docker/Dockerfile: rules that linters have, and what goes into the images. No engine runs here to build them."""

import json
import re
import sys
from fnmatch import fnmatch
from importlib import metadata

import pytest

from tests.deployed import ROOT, ran, wrong_command, wrong_variables
from tests.test_docs import KEYS

DOCKERFILE = ROOT / "docker" / "Dockerfile"
TARGETS = ("worker-cpu", "worker-gpu")


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], " ".join(line.split()[1:])) for line in text.splitlines() if line.strip()]


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Each stage by its name: what it is made from, and its instructions."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            source, _, name = rest.partition(" AS ")
            found[name] = source, []
        elif found:
            found[list(found)[-1]][1].append((word, rest))
    return found


def lineage(target: str) -> list[tuple[str, str]]:
    """All instructions of a target, those of the stages below it first."""
    source, own = stages()[target]
    return (lineage(source) if source in stages() else []) + own


def test_bases_are_pinned():
    named = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG")
    for source, _ in stages().values():
        if source not in stages():
            image = re.sub(r"\$\{(\w+)\}", lambda found: named[found[1]], source)
            assert re.search(r":\d+\.\d+\.\d+-[\w.-]+$|@sha256:[0-9a-f]{64}$", image), image


@pytest.mark.parametrize("target", TARGETS)
def test_nobody_is_root_in_the_end(target):
    users = [rest for word, rest in lineage(target) if word == "USER"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", users[-1])  # a number: Kubernetes cannot tell a name from root
    own = stages()[target][1]
    assert not [rest for word, rest in own if word == "RUN"]  # files that come after the user are root's, read-only


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_built_or_fetched_in_what_is_shipped(target):
    for word, rest in lineage(target):
        if word == "RUN":
            assert not re.search(r"apt-get|pip|curl|wget|gcc|build-essential|git ", rest), rest
        assert word != "ADD"
        if word == "COPY":
            assert rest.startswith("--from=packages-"), rest


def test_packages_come_as_wheels_with_their_digests_but_torch_for_cpus():
    without = []
    for _, own in stages().values():
        for word, rest in own:
            for installed in re.findall(r"install (-.*?)(?=&&|$)", rest) if word == "RUN" and "pip" in rest else ():
                assert "--no-deps" in installed
                assert "--only-binary :all:" in installed or "--no-index" in installed
                if "--require-hashes" not in installed and "--no-index" not in installed:
                    without.append(installed)
    assert [line.split()[-1] for line in without] == ["torch-cpu.txt"]
    assert "https://download.pytorch.org/whl/cpu " in without[0]


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_starts_a_worker_and_says_whether_it_lives(target):
    last = dict(lineage(target))
    assert json.loads(last["ENTRYPOINT"]) == ["goldline"]
    assert not wrong_command(json.loads(last["CMD"]))
    check = json.loads(last["HEALTHCHECK"].partition(" CMD ")[2])
    assert "/health/live" in check[2]
    compile(check[2], "HEALTHCHECK", "exec")
    assert last["WORKDIR"] == "/etc/goldline"  # where the default of --config is looked for
    environment = dict(pair.split("=", 1) for word, rest in lineage(target) if word == "ENV" for pair in rest.split())
    assert not wrong_variables(environment)
    for variable in re.findall(r"environ\['(\w+)'\]", check[2]):
        assert variable in environment


def test_folders_that_settings_have_by_default_are_there_and_writable():
    made = next(rest for word, rest in stages()["worker"][1] if word == "RUN")
    folders = [default for default in KEYS.values() if isinstance(default, str) and "/srv/goldline" in default]
    assert folders
    for folder in folders:
        assert folder.removeprefix("file://") in made
    assert "-o goldline" in made


def test_the_context_has_what_is_copied_and_nothing_else():
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = set()
    for _, own in stages().values():
        for word, rest in own:
            if word == "COPY" and not rest.startswith("--from"):
                copied |= set(rest.split()[:-1])
    assert copied == kept
    assert all((ROOT / name).exists() for name in kept)
    assert any(fnmatch("workers/__pycache__", rule.removeprefix("**/")) or rule == "**/__pycache__" for rule in rules)


def chosen(*arguments: str) -> dict[str, str]:
    told = ran(sys.executable, str(ROOT / "docker" / "requirements.py"), *arguments)
    assert told.returncode == 0, told.stderr
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", told.stdout, re.MULTILINE))


def needs(package: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """What an installed package asks for, and what that asks for."""
    found: set[str] = set()
    todo = [package]
    while todo:
        for line in metadata.requires(todo.pop()) or ():
            marker = line.partition(";")[2]
            if "extra ==" in marker or "win" in marker.lower() or "python_version <" in marker:
                continue
            name = re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower()
            if name not in found:
                found.add(name)
                try:
                    metadata.distribution(name)
                    todo.append(name)
                except metadata.PackageNotFoundError:
                    found.discard(name)
    return found


def test_the_gpu_image_has_all_that_goldline_asks_for():
    assert needs("goldline") - chosen("--extra", "video").keys() == set()


def test_the_cpu_image_has_the_same_without_cuda():
    gpu, cpu = (
        chosen("--extra", "video", "--extra", "cpu"),
        chosen("--extra", "video", "--extra", "cpu", "--without-cuda"),
    )
    left_out = gpu.keys() - cpu.keys()
    assert {"torch", "torchvision", "triton", "nvidia-cublas"} <= left_out
    assert all(re.match(r"torch|torchvision|triton|nvidia-|cuda-", name) for name in left_out)
    assert {"openvino", "sympy", "jinja2", "faust-streaming"} <= cpu.keys()
    assert chosen("--torch-cpu") == {"torch": f"{gpu['torch']}+cpu", "torchvision": f"{gpu['torchvision']}+cpu"}


def test_no_tool_of_development_is_in_an_image():
    assert not {"pytest", "mypy", "ruff", "pre-commit"} & chosen("--extra", "video", "--extra", "cpu").keys()


def test_every_package_brings_its_digests():
    told = ran(sys.executable, str(ROOT / "docker" / "requirements.py"), "--extra", "video")
    entries = re.split(r"^(?=[a-z0-9])", told.stdout, flags=re.MULTILINE)[1:]
    assert entries
    assert all("--hash=sha256:" in entry for entry in entries)


def test_what_the_lock_file_lacks_is_told():
    told = ran(sys.executable, str(ROOT / "docker" / "requirements.py"), "--package", "no-such-package")
    assert told.returncode == 1
    assert "no-such-package" in told.stderr
