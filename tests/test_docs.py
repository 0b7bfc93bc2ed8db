"""What there is is documented, and what is documented is there."""

import itertools
import re
import shlex
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from pipeline import settings
from pipeline.guarantee import needed
from pipeline.methods import METHODS
from pipeline.settings import Section, Settings
from workers import topics
from workers.cli import COMMANDS, cli

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PACKAGES = ("pipeline", "model_store", "workers")
EXAMPLE = ROOT / "deploy" / "line.toml"
DOCUMENTS = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *(ROOT / p / "README.md" for p in (*PACKAGES, "pipeline/methods")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=[str(p.relative_to(ROOT)) for p in DOCUMENTS])

_FENCE = re.compile(r"^```(\w*)(?: run)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FILE = re.compile(rf"(?:{'|'.join(PACKAGES)}|deploy|docker|docs|tests|\.ci)/[\w./-]+")
_SETTING = re.compile(r"#(?=\S)")  # `#key = value` is a setting, `# words` are words


def prose(path: Path) -> str:
    return _FENCE.sub("", path.read_text())


def shell_lines(path: Path) -> Iterator[str]:
    for language, block in _FENCE.findall(path.read_text()):
        if language == "sh":
            yield from block.replace("\\\n", " ").splitlines()


def command_lines(path: Path) -> Iterator[list[str]]:
    """What follows `goldline` in every shell line and code span of a document; `make demo` is `goldline demo`."""
    for text in (*shell_lines(path), *_SPAN.findall(prose(path))):
        if not re.match(r"([A-Z_]+=\S+ )*(goldline|make demo)\b", text):
            continue
        words = list(
            itertools.takewhile(lambda word: not re.match(r"\d?[<>|&]", word), shlex.split(text, comments=True))
        )
        while re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words[0] == "make":
            passed = [w.removeprefix("ARGS=") for w in words[2:] if w.startswith("ARGS=")]
            words = ["goldline", "demo", *(shlex.split(passed[0]) if passed else [])]
        yield words[1:]


def problem_with(arguments: list[str]) -> str | None:
    """What click would say to a command line, without running it."""
    command: click.Command = cli
    ctx = click.Context(cli, info_name="goldline")
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        found = command.get_command(ctx, arguments[0])
        if found is None:
            return f"no command {arguments[0]!r}"
        command, arguments = found, arguments[1:]
        ctx = click.Context(command, info_name=command.name, parent=ctx)
    if not arguments or arguments == ["--help"]:
        return None  # the command's name alone is a mention, not a call
    try:
        given, left, _ = command.make_parser(ctx).parse_args(args=list(arguments))
        for param in command.params:
            check_value(param, given.get(param.name), ctx)
    except click.UsageError as error:
        return error.format_message()
    return f"too much: {left}" if left else None


def check_value(param: click.Parameter, value: object, ctx: click.Context) -> None:
    """Refuse what is missing or of the wrong type; files need not exist."""
    if not isinstance(value, str | tuple | list) or value == ():
        if param.required:
            raise click.MissingParameter(ctx=ctx, param=param)
    elif not isinstance(param.type, click.Path | click.File):
        param.type_cast_value(ctx, value)


def commands(command: click.Command, words: tuple[str, ...]) -> Iterator[str]:
    yield " ".join(words)
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            found = command.get_command(ctx, name)
            assert found is not None
            yield from commands(found, (*words, name))


def keys(kind: type[Section], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every setting with its default; `*` stands for a name that the user chooses."""
    for field in msgspec.structs.fields(kind):
        options = (field.type, *typing.get_args(field.type))
        section = next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)
        named = ("*",) if typing.get_origin(field.type) is dict else ()
        if section:
            yield from keys(section, (*path, field.name, *named))
        else:
            yield (*path, field.name), field.default


def in_full() -> dict[str, typing.Any]:
    """The example with every setting that is commented out put in."""
    return tomllib.loads("\n".join(_SETTING.sub("", line, count=1) for line in EXAMPLE.read_text().splitlines()))


def at(tree: object, path: tuple[str, ...]) -> object:
    for name in path:
        assert isinstance(tree, dict), path
        tree = next(iter(tree.values())) if name == "*" else tree[name]
    return tree


KEYS = dict(keys(Settings))


@pytest.mark.parametrize("name", [c for name in COMMANDS for c in commands(cli.get_command(None, name), (name,))])
def test_every_command_is_in_the_readme(name):
    assert re.search(rf"\bgoldline {name}\b", README.read_text())


def test_the_methods_are_documented_with_their_settings():
    text = (ROOT / "pipeline" / "methods" / "README.md").read_text()
    changes = (ROOT / "CHANGELOG.md").read_text()
    for name, entry in METHODS.items():
        assert f"--method {name}" in text
        assert re.search(rf"^\| `{name}` \|", text, re.MULTILINE)
        title = re.search(rf"^## (.+), `--method {name}`$", text, re.MULTILINE)
        assert title
        assert title[1] in changes
        for setting, default in msgspec.to_builtins(entry.config()).items():
            shown = str(default).lower() if isinstance(default, bool) else str(default)
            assert re.search(rf"^\| `{setting}` \| {re.escape(shown)} \|", text, re.MULTILINE), setting


@pytest.mark.parametrize("kind", topics.KINDS)
def test_every_topic_has_its_row_and_how_long_it_is_kept(kind):
    (row,) = re.findall(rf"^\| `goldline\.{kind}` \|.*\| ([^|]+) \|$", README.read_text(), re.MULTILINE)
    spec = next(s for s in topics.of(Settings()) if s.name == f"goldline.{kind}")
    hours = int(spec.config["retention.ms"]) / 3_600_000
    said = re.match(r"(\d+) (hour|day)", row)
    assert said
    assert int(said[1]) * {"hour": 1, "day": 24}[said[2]] == hours
    if "retention.bytes" in spec.config:
        assert f"{int(spec.config['retention.bytes']) // 2**30} GiB" in row


@pytest.mark.parametrize("section", sorted({path[0] for path in KEYS}))
def test_every_section_is_in_the_readme(section):
    assert f"`[{section}" in README.read_text()


def test_the_example_is_accepted_as_it_is_and_with_everything_in_it():
    assert settings.read(EXAMPLE, {}).stations
    assert settings.build(in_full()).kafka.sasl


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_the_example_has_every_setting_with_its_default(path):
    shown = at(in_full(), path)
    default = KEYS[path]
    if default is msgspec.NODEFAULT or default is None:
        assert shown not in (None, "")  # an example
    else:
        assert msgspec.to_builtins(default) == (tuple(shown) if isinstance(shown, list) else shown)


def test_every_setting_of_the_example_says_what_it_does():
    lines = EXAMPLE.read_text().splitlines()
    explained = set()
    for before, line in itertools.pairwise(lines):
        found = re.match(r"#?(\w+) = ", line)
        if not found:
            continue
        if before.startswith("# "):
            explained.add(found[1])
    # Told of by the words above their table, or beside a neighbour that is explained.
    beside = {"ca_file", "cert_file", "key_file", "username", "password_file", "mechanism"}
    beside |= {"on_reject", "pass_url", "reject_url", "on_stop", "weights"}
    assert {path[-1] for path in KEYS} == explained | beside


@each_document
def test_every_command_line_would_be_understood(path):
    wrong = {" ".join(words): told for words in command_lines(path) if (told := problem_with(words))}
    assert not wrong


@pytest.mark.parametrize(
    "line",
    [
        "fly",
        "models fly",
        "fit photos",
        "fit --station line-1/top",
        "score line-1/top",
        "check a.toml b.toml",
        "camera photos --station line-1/top --speed 5",
        "camera photos --station line-1/top --rate fast",
        "worker --log-level loud",
    ],
)
def test_a_command_line_that_is_wrong_is_found(line):
    assert problem_with(line.split())


def test_the_readme_shows_command_lines():
    assert len(list(command_lines(README))) > len(COMMANDS)


@each_document
def test_every_make_target_exists(path):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join((*shell_lines(path), *_SPAN.findall(prose(path))))
    assert set(re.findall(r"^(?:[A-Z_]+=\S+ )*make ([a-z]+)", text, re.MULTILINE)) <= targets


@each_document
def test_every_link_leads_somewhere(path):
    for link in _LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, heading = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", prose(target), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}, link


@each_document
def test_every_file_that_is_named_exists(path):
    text = path.read_text()
    named = {name.rstrip("./") for name in _FILE.findall(text) if "NAME" not in name}
    assert not {name for name in named if not (ROOT / name).exists()}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_lives_in_it(package):
    folder = ROOT / package
    text = (folder / "README.md").read_text()
    named = set(re.findall(r"`([a-z_0-9]+\.py)`|`([a-z_0-9]+/)`", text))
    there = {p.name for p in folder.glob("*.py") if not p.name.startswith("__")}
    there |= {f"{p.name}/" for p in folder.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert there <= {name for pair in named for name in pair}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_names_no_file_that_is_gone(package):
    folder = ROOT / package
    for name in re.findall(r"`([a-z_/]+\.py)`", (folder / "README.md").read_text()):
        assert (folder / name).exists() or (ROOT / name).exists(), name


def test_what_on_call_reads_is_what_the_log_says():
    table = README.read_text().partition("## On call")[2].partition("\n## ")[0]
    source = "\n".join(p.read_text() for p in (ROOT / "workers").rglob("*.py"))
    events = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert events
    assert not [event for event in events if f'"{event}"' not in source]


def test_the_goods_that_a_promise_needs_are_the_ones_in_the_table():
    rows = re.findall(r"^\| (0\.\d+)[^|]* \| (\d+) \| (\d+) \|$", README.read_text(), re.MULTILINE)
    assert len(rows) == 4
    for rate, goods, pictures in rows:
        assert int(goods) == needed(float(rate))
        assert round(int(pictures) * 0.3) >= int(goods) > round((int(pictures) - 1) * 0.3)


@each_document
def test_no_document_is_wider_than_it_should_be(path):
    for line in prose(path).splitlines():
        assert len(line) <= 125 or line.startswith("|"), line
