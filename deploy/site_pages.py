"""What mkdocs.yml cannot say: pages that stand elsewhere in the repository, their links, and the list of alerts.

A page of docs/ links to files as the repository has them. In the site a link to a README becomes a link to its page,
and one to a file that has none becomes its name.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = {
    "README.md": "reference.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "pipeline/methods/README.md": "methods.md",
    "pipeline/weights/README.md": "packages/weights.md",
    "pipeline/README.md": "packages/pipeline.md",
    "model_store/README.md": "packages/model_store.md",
    "workers/README.md": "packages/workers.md",
}
_SOURCES = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
_TABLE = "<!-- alerts -->"
_RUN = re.compile(r"^```sh run$", re.MULTILINE)  # a test runs it: tests/integration/test_documents.py


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Enter the pages of alerts, and pages of docs/ that mkdocs.yml does not name, into the navigation."""
    nav: list[dict[str, Any]] = config.nav or []
    named = set(re.findall(r"[\w/-]+\.md", str(nav)))
    alerts = [f"alerts/{path.name}" for path in _alerts()]
    next(entry for entry in nav if "Alerts" in entry)["Alerts"] += alerts
    nav += [path.name for path in sorted(DOCS.glob("*.md")) if path.name not in named]
    nav += [{"More": [page for page in PAGES.values() if page not in named]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what stands outside of docs/, and the pictures that it shows."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
        for picture, _, target in _LINK.findall(text):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
            if picture:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links to their pages."""
    del config
    here = page.file.src_uri
    source = _SOURCES.get(here, f"docs/{here}")

    def turned(found: re.Match[str]) -> str:
        picture, text, target = found.groups()
        path, mark, heading = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return found[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        there = PAGES.get(there, there.removeprefix("docs/"))
        if files.get_file_from_path(there) is None:
            return f"{text} (`{there}`)"
        return f"{picture}[{text}]({posixpath.relpath(there, posixpath.dirname(here))}{mark}{heading})"

    parts = _FENCE.split(markdown)
    text = "".join(part if part.startswith("```") else _LINK.sub(turned, part) for part in parts)
    text = _RUN.sub("```sh", text)
    return text.replace(_TABLE, "\n".join(f"- [{_title(path)}]({path.name})" for path in _alerts()))


def _alerts() -> list[Path]:
    return [path for path in sorted((DOCS / "alerts").glob("*.md")) if path.name != "index.md"]


def _title(path: Path) -> str:
    found = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else path.stem
