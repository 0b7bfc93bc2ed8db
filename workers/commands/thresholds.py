"""`goldline thresholds`."""

import json
from collections.abc import Iterator
from typing import Any

import click

from model_store import ModelKey, open_store, resolve_version, short
from pipeline.guarantee import allowed, needed, provable
from pipeline.inspection import threshold_of
from workers.commands import options
from workers.commands.model_page import plain

_RATES = (0.01, 0.005, 0.001)
_GOODS = (59, 100, 300, 600, 1_000, 2_000, 3_000, 5_000, 10_000)
NOT_PROMISED = (
    "that defects are found: it knows good parts alone; score pictures of real defects for that",
    "anything about parts unlike those it was calibrated on: after another lamp, lens, material or pose calibrate anew",
    "that this calibration is none of the unlucky ones: the confidence says how many are not",
    "the share of a single day, which varies around the rate",
    "a rate for parts that several stations or frames show: these rates add up",
)


@click.group("thresholds")
def command() -> None:
    """What thresholds promise."""


@command.command("explain")
@click.argument("station")
@click.argument("version", default="current")
@options.recipe
@options.line_store
@options.as_json
def explain(station: str, version: str, recipe: str, store_url: str, as_json: bool) -> None:
    """What the threshold of VERSION at STATION promises, what it does not, and what more parts would buy."""
    store = open_store(store_url)
    key = ModelKey(station, recipe)
    found = resolve_version(store, key, version)
    threshold = threshold_of(store.get(key, found))
    lineage = next(info.lineage.to_json() for info in store.versions(key) if info.version == found)
    n, rate, confidence = len(threshold.goods), threshold.guarantee.rate, threshold.guarantee.confidence
    body = {
        "station": station,
        "recipe": recipe,
        "version": found,
        "threshold": threshold.image,
        "guarantee": {**threshold.to_meta()["guarantee"], "text": str(threshold.guarantee)},
        "above": threshold.above,
        "proved": _proved(n, threshold.above, threshold.guarantee.holds, rate, confidence),
        "verified_by": lineage.get("verified_by"),
        "chosen_by": lineage.get("chosen_by"),
        "not_promised": NOT_PROMISED,
        "goods_needed": [
            {"rate": each, "goods": needed(each, confidence), "more": max(0, needed(each, confidence) - n)}
            for each in sorted({*_RATES, rate}, reverse=True)
        ],
        "more_goods": [_bought(m, rate, confidence) for m in (n, *(m for m in _GOODS if m > n))],
    }
    click.echo(json.dumps(body) if as_json else "\n".join(_page(body)))


def _proved(n: int, above: int, holds: bool, rate: float, confidence: float) -> float | None:
    """What is proved of the threshold as it is; None for nothing.

    A fitted tail that lies above every good rejects no more than the highest good would as a threshold.
    """
    if holds:
        return rate
    return provable(n, 0, confidence) if above == 0 else None


def _bought(n: int, rate: float, confidence: float) -> dict[str, Any]:
    """What n goods can do: the smallest rate they prove, and for the rate wanted k and the rejects to expect.

    The rate above the (k+1)-th largest of n scores is (k + 1) / (n + 1) on average, if no two scores are equal.
    """
    k = allowed(n, rate, confidence)
    return {
        "goods": n,
        "provable": provable(n, 0, confidence),
        "allowed": k,
        "expected": None if k is None else (k + 1) / (n + 1),
    }


def _page(body: dict[str, Any]) -> Iterator[str]:
    g = body["guarantee"]
    rate, sure = _percent(g["rate"]), _percent(g["confidence"])
    yield f"threshold {body['threshold']:.4g} of {short(body['version'])}, {body['station']} ({body['recipe']})"
    yield ""
    yield "promised"
    if g["holds"]:
        yield f"  At most {rate} of good parts are rejected, with {sure} confidence."
        yield f"  It rests on {g['goods']} good parts: {g['allowed']} may lie above the threshold, {body['above']} do."
    else:
        yield f"  No guarantee: {rate} was asked for; {g['goods']} good parts cannot prove it, {g['goods_needed']} can."
        yield "  The threshold is a guess, from a tail fitted to their scores."
        if body["proved"] is not None:
            yield f"  None of them lies above it: at most {_percent(body['proved'])} is proved, with {sure} confidence."
    yield "  " + _origin(body)
    yield ""
    yield "not promised"
    yield from (f"  - {each}" for each in body["not_promised"])
    yield ""
    yield "what more good parts would buy"
    yield f"  {'parts':>6}  {'can prove':>9}  {'above, at ' + rate:>15}  {'rejects on average':>18}"
    for row in body["more_goods"]:
        k, expected = ("-", "-") if row["allowed"] is None else (row["allowed"], _percent(row["expected"]))
        yield f"  {row['goods']:>6}  {_percent(row['provable']):>9}  {k:>15}  {expected:>18}"
    for row in body["goods_needed"]:
        more = f"{row['more']} more" if row["more"] else "there are enough"
        yield f"  to promise {_percent(row['rate'])}: {row['goods']} ({more})"


def _origin(body: dict[str, Any]) -> str:
    if body["verified_by"]:
        return f"They were verified by {plain(body['verified_by'])}; chosen by: {plain(body['chosen_by'])}."
    return "They were held out of the pictures for the fit, which have to be unselected good parts: nobody stated it."


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
