"""`goldline simulate season --html`: each strategy's rates by day, what they cost, and what the station was like."""

import html
from collections.abc import Sequence
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fbfaf7; max-width: 64rem; margin: 2rem auto;
  padding: 0 1rem; }
h2 { margin-top: 2.2rem; font-size: 1.15rem; } table { border-collapse: collapse; }
td, th { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid #d9d4c7; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; } svg text { font-size: 11px; fill: #1c2430; }
"""
_COLOURS = ("#7a7568", "#b3261e", "#35608f")
_RATES = "Rates are of parts that are there for measuring alone, those of seven days at each day."
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 900, 220, 48, 22


def render(report: dict[str, Any]) -> str:
    """A self-contained page.

    Args:
        report: of `run.simulate`.
    """
    names, days = list(report["strategies"]), report["days"]
    course, costs = report["course"], report["costs"]
    marks = [k for k in range(1, len(days)) if days[k]["lot"] != days[k - 1]["lot"]]
    new_lamps = [k for k in range(1, len(days)) if days[k]["lamp"] > days[k - 1]["lamp"]]
    rates = {
        kind: {name: [day["strategies"][name]["week"][kind] for day in days] for name in names}
        for kind in ("false_reject_rate", "miss_rate")
    }
    station = {
        "lamp, share of its light lost": [1 - day["lamp"] for day in days],
        "degrees above the first day, in hundreds": [day["warmer_c"] / 100 for day in days],
    }
    return "".join(
        (
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
            f"<title>Goldline: a season</title><style>{_STYLE}</style><h1>A season of {len(days)} days</h1>",
            f"<p>{_line(course)} {_RATES} {_legend(names)}</p>",
            "<h2>Good parts rejected</h2>",
            _chart(rates["false_reject_rate"], marks, new_lamps),
            "<h2>Defects missed</h2>",
            _chart(rates["miss_rate"], marks, new_lamps),
            f"<h2>The season, at {costs['miss']:g} a miss and {costs['false_reject']:g} a false reject</h2>",
            _table(report),
            "<h2>The station</h2>",
            _chart(station, marks, new_lamps),
            f"<p>{_legend(list(station))} Dotted: a new lot. Solid: a new lamp.</p></html>",
        )
    )


def _line(course: dict[str, Any]) -> str:
    return html.escape(
        f"Drawn parts ({course['part']}), {course['parts_per_day']} a day, {course['defect_rate']:.2%} of them "
        f"defective, {course['audits_per_day']} audited. {course['found_share']:.0%} of the defects that pass are "
        f"found later, after {course['found_after_h']:g} hours on average. Lots, lamp and warmth change "
        f"{course['changes']:g} times as much as usual. Seed {course['seed']}."
    )


def _legend(names: Sequence[str]) -> str:
    return (
        ", ".join(
            f'<b style="color:{colour}">{html.escape(name)}</b>' for name, colour in zip(names, _COLOURS, strict=False)
        )
        + "."
    )


def _chart(lines: dict[str, list[float | None]], marks: Sequence[int], lamps: Sequence[int]) -> str:
    """Shares over days, one line for each name."""
    values = [v for line in lines.values() for v in line if v is not None]
    top, low = max([*values, 0.01]), min([*values, 0.0])
    days = max(len(line) for line in lines.values())

    def x(day: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 8) * day / max(days - 1, 1)

    def y(share: float) -> float:
        return 8 + (_HEIGHT - _BOTTOM - 8) * (top - share) / (top - low)

    drawn = [_rule(x(k), dotted=True) for k in marks] + [_rule(x(k), dotted=False) for k in lamps]
    for share in (low + (top - low) * k / 4 for k in range(5)):
        drawn.append(f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="#eae6da"/>')
        drawn.append(f'<text x="0" y="{y(share) + 4:.1f}">{share:.1%}</text>')
    drawn += [f'<text x="{x(day):.1f}" y="{_HEIGHT - 4}">{day}</text>' for day in range(0, days, 10)]
    for (name, line), colour in zip(lines.items(), _COLOURS, strict=False):
        points = " ".join(f"{x(k):.1f},{y(v):.1f}" for k, v in enumerate(line) if v is not None)
        drawn.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2">'
            f"<title>{html.escape(name)}</title></polyline>"
        )
    named = html.escape(", ".join(lines), quote=True)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{named}">{"".join(drawn)}</svg>'


def _rule(x: float, *, dotted: bool) -> str:
    dashes = ' stroke-dasharray="2 4"' if dotted else ""
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{_HEIGHT - _BOTTOM}" stroke="#b8b09a"{dashes}/>'


def _table(report: dict[str, Any]) -> str:
    heads: tuple[str, ...] = (
        "",
        "false rejects",
        "misses",
        f"misses at {share(report['equal_false_reject_rate'])} false rejects",
        f"false rejects at {share(report['equal_miss_rate'])} misses",
    )
    heads += ("cost of 1,000 parts", "refits live", "refused", "defective parts learnt")
    rows = [f"<tr>{''.join(f'<th class=n>{html.escape(h)}</th>' if h else '<th></th>' for h in heads)}</tr>"]
    for name, found in report["strategies"].items():
        nights = found["nights"]
        cells = (
            share(found["false_reject_rate"]),
            share(found["miss_rate"]),
            share(found["miss_rate_at_equal_false_rejects"]),
            share(found["false_reject_rate_at_equal_misses"]),
            "-" if found["cost_per_1000_parts"] is None else f"{found['cost_per_1000_parts']:.1f}",
            str(nights.get("live", 0)),
            str(nights.get("refused", 0)),
            str(found["defective_parts_learnt"]),
        )
        rows.append(f"<tr><td>{html.escape(name)}</td>{''.join(f'<td class=n>{c}</td>' for c in cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def share(value: float | None) -> str:
    """A rate for people; a dash where there were too few parts to say."""
    return "-" if value is None else f"{value:.2%}"
