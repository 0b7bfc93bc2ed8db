"""`goldline simulate`."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from workers.progress_bars import shown

_file = click.Path(path_type=Path, dir_okay=False)


@click.group("simulate")
def command() -> None:
    """Play through what takes months on a line, without one."""


@command.command("season")
@click.option("--days", type=click.IntRange(min=1), default=90, show_default=True, help="How long it is.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which season.")
@click.option("--parts-per-day", type=click.IntRange(min=10), default=60, show_default=True, help="Parts inspected.")
@click.option("--part", default="cap", show_default=True, help="What is drawn: gear, cap or board.")
@click.option("--method", default="padim", show_default=True, help="The method that all strategies use.")
@click.option("--defect-rate", type=float, default=0.005, show_default=True, help="Share of parts that is defective.")
@click.option(
    "--changes", type=float, default=1.0, show_default=True, help="Times the usual, of lots, lamp and warmth."
)
@click.option("--rate", type=float, default=0.02, show_default=True, help="Share of good parts that may be rejected.")
@click.option("--audits", type=click.IntRange(min=0), default=10, show_default=True, help="Parts audited each day.")
@click.option("--cost-miss", type=float, default=50.0, show_default=True, help="Of a defective part that passes.")
@click.option("--cost-false-reject", type=float, default=1.0, show_default=True, help="Of a good part that does not.")
@click.option("--json", "json_file", type=_file, help="Write every day's numbers there.")
@click.option("--html", "html_file", type=_file, help="Write a page with charts.")
def season(
    days: int,
    seed: int,
    parts_per_day: int,
    part: str,
    method: str,
    defect_rate: float,
    changes: float,
    rate: float,
    audits: int,
    cost_miss: float,
    cost_false_reject: float,
    json_file: Path | None,
    html_file: Path | None,
) -> None:
    """A season of drawn parts, for three strategies: never refit, naive nightly refit, Goldline.

    Lots of material change, the lamp ages and is replaced, it gets warmer, a few parts are defective, and people find
    only some of the defects that pass, some of them late. Each strategy sees the same parts. Goldline's pool, feedback,
    drift monitors, refit, review, calibration and store are those of a real line, without Kafka. The naive one fits
    and calibrates every night on what passed in the last seven days.

    Rates are of further parts each day that nothing learns from. A cost is of 1,000 parts at the line's defect rate.

    \b
    Examples:
      goldline simulate season --days 90 --html season.html --json season.json
      goldline simulate season --seed 1 --part gear --cost-miss 200
      goldline simulate season --changes 3
    """
    from workers.season import page, run  # noqa: PLC0415 - torch takes seconds to import
    from workers.season.ledger import Costs  # noqa: PLC0415
    from workers.season.world import Course  # noqa: PLC0415

    course = Course(
        part=part,
        days=days,
        seed=seed,
        parts_per_day=parts_per_day,
        defect_rate=defect_rate,
        changes=changes,
        audits_per_day=audits,
    )
    costs = Costs(miss=cost_miss, false_reject=cost_false_reject)
    with shown() as progress:
        report = run.simulate(course, run.Line(method=method, rate=rate), costs, progress=progress)
    if json_file:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if html_file:
        html_file.write_text(page.render(report), encoding="utf-8")
    table = Table(box=None, padding=(0, 2, 0, 0), caption=f"{days} days in {report['wall_s']:.0f} s")
    table.add_column("")
    rejects, misses = page.share(report["equal_false_reject_rate"]), page.share(report["equal_miss_rate"])
    equal = (f"misses at\n{rejects} f.r.", f"f.r. at\n{misses} m.")
    for head in ("false\nrejects", "misses", *equal, "cost of\n1,000", "refits\nlive"):
        table.add_column(head, justify="right")
    for name, found in report["strategies"].items():
        cost = found["cost_per_1000_parts"]
        table.add_row(
            name,
            page.share(found["false_reject_rate"]),
            page.share(found["miss_rate"]),
            page.share(found["miss_rate_at_equal_false_rejects"]),
            page.share(found["false_reject_rate_at_equal_misses"]),
            "-" if cost is None else f"{cost:.1f}",
            str(found["nights"].get("live", 0)),
        )
    Console().print(table)
