"""What `goldline models show` prints for people."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from model_store import ModelKey, Version, short
from pipeline import choice as choices
from pipeline import review as reviewing
from pipeline.review import Review

_WIDEST = 100
_LINEAGE = (
    ("made", "created_at"),
    ("by", "created_by"),
    ("why", "why"),
    ("parent", "parent"),
    ("fitted by", "method"),
    ("settings", "settings"),
    ("frames", "frames"),
    ("left out", "left_out"),
    ("dataset", "dataset"),
    ("calibration", "calibration"),
    ("backbone", "backbone"),
    ("code", "code"),
    ("notes", "notes"),
)


def plain(text: object) -> str:
    """Words of people as one line that does nothing to a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def to_use(key: ModelKey, version: Version, store_url: str) -> str:
    """The line that says how a version that is only stored goes into service."""
    told = ["goldline", "models", "promote", key.station, short(version), "--recipe", key.recipe, "--store", store_url]
    return f"to use it  {shlex.join(told)}"


def page(body: Mapping[str, Any]) -> str:
    """A version as lines: what it is, where it comes from, what is inside, when it was in service.

    Args:
        body: what `goldline models show STATION --json` prints.
    """
    lineage = body["lineage"]
    review, choice = reviewing.read(lineage.get("review")), choices.read(lineage.get("choice"))
    known = {name for _, name in _LINEAGE} | {"pictures", "pool_parts", "review"} | ({"choice"} if choice else set())
    more = {name: value for name, value in lineage.items() if name not in known}
    lines = [
        *_lines("", _what(body)),
        "",
        "where it comes from",
        *_lines("  ", [(title, _said(lineage.get(name))) for title, name in _LINEAGE]),
        *_lines("  ", [(name, _said(value)) for name, value in more.items()]),
        *(["", "choice of the method", *(f"  {plain(row)}" for row in choice.rows())] if choice else []),
        *(["", "review", *(f"  {row}" for row in rows_of(review))] if review else []),
        "",
        "what is inside",
        *_lines("  ", _flat("", body["meta"])),
    ]
    if body["promotions"]:
        lines += ["", "promotions"]
    for each in body["promotions"]:
        lines.append(f"  {each['at'][:19]}  {plain(each['who'])}" + (f": {plain(each['why'])}" if each["why"] else ""))
    return "\n".join(lines)


def rows_of(review: Review) -> list[str]:
    """A review for people, a line for each rule."""
    head = f"{'rule':18} {'':11}  {review.how}, {review.used} of {review.pool} frames"
    return [head, *(f"{plain(f.rule):18} {f.outcome:11}  {plain(f.words)}" for f in review.findings)]


def _what(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    canary = f", canary for {body['canary_share']:.3g} of the parts" if body["canary_share"] else ""
    yield "model", body["version"]
    yield "station", f"{body['station']} ({body['recipe']})"
    yield "state", body["state"] + canary + (", pinned" if body["pinned"] else "")
    yield "method", plain(body["method"])
    yield "size", f"{body['size_bytes']:,} bytes"
    yield "used", f"{body['used_at'][:10]} or later"


def _lines(indent: str, pairs: Any) -> Iterator[str]:
    return (f"{indent}{plain(title):<12} {text}" for title, text in pairs if text)


def _said(value: object) -> str:
    """A value for people; nothing for what is empty."""
    if isinstance(value, Mapping):
        return ", ".join(f"{plain(name)}={_said(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        value = ", ".join(_said(each) for each in value)
    text = plain("" if value is None else value)
    return text if len(text) <= _WIDEST else f"{text[:_WIDEST]}..."


def _flat(path: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a model says of itself, by dotted names."""
    for name, value in values.items():
        where = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            yield from _flat(where, value)
        else:
            yield where, _said(value)
