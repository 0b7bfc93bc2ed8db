"""docs/measured.md, of what benchmarks wrote beside this file: `python -m tests.benchmarks.figures` makes it anew.

No figure is typed: each comes from a JSON that one command writes, which stands above its table.
"""

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workers.words import counted

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "measured.md"
_HEAD = """# Measured

Made by `python -m tests.benchmarks.figures` from the JSON files in [tests/benchmarks](../tests/benchmarks); the
command above each table writes its file. Times belong to the machine that is named; ratios hold further. What the words
and keys mean: [performance](performance.md).
"""

Report = Mapping[str, Any]
Cell = str | float | bool | None


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(HERE), encoding="utf-8")


def page(folder: Path) -> str:
    """The page, of the reports that there are in this folder."""
    parts = [_HEAD]
    for name, (title, command, told) in _SECTIONS.items():
        path = folder / f"{name}.json"
        if path.exists():
            report = json.loads(path.read_text(encoding="utf-8"))
            option = "--report" if told is _demo else "--json"
            shown = f"```sh\n{command} {option} tests/benchmarks/{name}.json\n```"
            parts.append(f"## {title}\n\n{shown}\n\n{textwrap.fill(_machine(report), 118)}\n")
            parts += [f"{text if text.startswith('|') else textwrap.fill(text, 118)}\n" for text in told(report)]
    return "\n".join(parts)


def _machine(report: Report) -> str:
    told = report.get("machine")
    if told is None:
        return "Nothing in it depends on the machine:"
    gpu = f", {told['gpu']}" if told["gpu"] else ""
    return f"On {told['cpu']}, {told['cores']} cores, {told['instructions'] or 'no vector instructions'}{gpu}:"


def _score(report: Report) -> Iterator[str]:
    other = {"its bank": "peer_bank_rows"} if any(row.get("peer_bank_rows") for row in report["rows"]) else {}
    rows = [
        {
            **row,
            "settings": _settings(row.get("settings", {})),
            "ratio": None if row["ratio"] is None else round(row["ratio"], 2),
            "ratio_range": _quartiles(row),
        }
        for row in report["rows"]
    ]
    yield _picked(
        rows,
        {
            "method": "method",
            **({"settings": "settings"} if any(row["settings"] for row in rows) else {}),
            "backbone": "backbone",
            "bank": "bank_rows",
            "batch": "batch",
            "run by": "precision",
            "ms a picture": "ms_per_image",
            "peer": "peer",
            **other,
            "peer's ms": "peer_ms_per_image",
            "ratio": "ratio",
            **({"its quartiles": "ratio_range"} if any(row["ratio_range"] for row in rows) else {}),
            "right neighbours": "exact_agreement",
        },
    )


def _accuracy(report: Report) -> Iterator[str]:
    ranges = {key: f"{key}_range" for key in ("image_auroc", "peer_image_auroc")}
    yield _picked(
        [row | {new: _range(row[f"{key}_by_seed"]) for key, new in ranges.items()} for row in report["rows"]],
        {
            "set": "dataset",
            "goods": "goods",
            "defects": "defects",
            "method": "method",
            "settings": "settings",
            "run by": "engine",
            "image AUROC": "image_auroc",
            "its seeds": "image_auroc_range",
            "peer": "peer",
            "peer's": "peer_image_auroc",
            "peer's seeds": "peer_image_auroc_range",
        },
    )


def _settings(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def _quartiles(row: Report) -> str:
    return f"{row['ratio_low']:.3g} to {row['ratio_high']:.3g}" if row.get("ratio_low") else ""


def _range(figures: Sequence[float]) -> str:
    return f"{min(figures):.3f} to {max(figures):.3f}" if figures else ""


def _fit(report: Report) -> Iterator[str]:
    yield _picked(
        [{**row, "ratio_range": _quartiles(row)} for row in report["rows"]],
        {
            "backbone": "backbone",
            "pictures": "images",
            "bank": "bank_rows",
            "run by": "precision",
            "s": "fit_s",
            "features, s": "features_s",
            "coreset, s": "coreset_s",
            "peer": "peer",
            "peer's s": "peer_fit_s",
            "ratio": "ratio",
            **({"its quartiles": "ratio_range"} if any(row.get("turns", 1) > 1 for row in report["rows"]) else {}),
        },
    )


def _frames(report: Report) -> Iterator[str]:
    rows = [{**row, "range": f"{row['per_s_low']} to {row['per_s_high']}"} for row in report["rows"]]
    heads = {"backbone": "backbone", "bank": "bank_rows", "frames together": "batch", "run by": "precision"}
    yield _picked(
        rows,
        heads
        | {"decoded on": "decode_on", "batches at once": "at_once", "frames a second": "frames_per_s"}
        | {"its quartiles": "range"},
    )


def _bank_search(report: Report) -> Iterator[str]:
    yield _picked(
        [{**row, "ratio_range": _quartiles(row)} for row in report["rows"]],
        {
            "set": "dataset",
            "backbone": "backbone",
            "rows": "rows",
            "dimensions": "dim",
            "axes": "axes",
            "bounded, ms": "bounded_ms",
            "whole, ms": "whole_ms",
            "ratio": "ratio",
            "its quartiles": "ratio_range",
            "neighbours, ms": "around_ms",
            "of the whole, ms": "around_whole_ms",
            "agreement": "agreement",
            **({"left on a GPU": "left"} if all("left" in row for row in report["rows"]) else {}),
        },
    )


def _cost(report: Report) -> Iterator[str]:
    yield _table(
        ("side, px", "bank", "measured, ms", "predicted, ms", "error", "fitted"),
        (
            (
                row["size"],
                row["bank_rows"],
                row["ms"],
                row["predicted_ms"],
                f"{row['relative_error'] * 100:+.0f} %",
                not row["unseen"],
            )
            for row in report["rows"]
        ),
    )


def _line(report: Report) -> Iterator[str]:
    highest = report["highest_per_s"]
    run_by = f", run by {report['engine']}" if "engine" in report else ""  # the oldest reports do not say
    yield (
        f"{counted(report['stations'], 'station')}, {counted(report['workers'], 'worker')}{run_by}, frames of "
        f"{report['frame_bytes'] / 1000:.0f} kB, p99 within {report['p99_bound_ms']:g} ms: "
        + (f"**{highest} a second**." if highest else "no rate was kept up with.")
    )
    yield _table(
        ("a second", "p50, ms", "p99, ms", "said", "others on the host took", "kept up"),
        (
            (
                row["rate_per_s"],
                row["p50_ms"],
                row["p99_ms"],
                _said(row["said"]),
                f"{row['stolen']:.1%}",
                row["kept_up"],
            )
            for row in report["tried"]
        ),
    )
    kept = [row for row in report["tried"] if row["kept_up"]]
    if kept:
        best = max(kept, key=lambda row: float(row["rate_per_s"]))
        stages = best["waterfall_ms"]
        yield f"Where the time goes at {best['rate_per_s']} a second, medians in ms:"
        yield _table(tuple(name.replace("_", " ") for name in stages), [tuple(stages.values())])
        if "cpu_ms" in best:  # the oldest reports do not say
            yield f"What a frame takes of a core meanwhile: {_milliseconds(best['cpu_ms'])}."


def _load(report: Report) -> Iterator[str]:
    frame, line, station, worker = (report["milliseconds"][name] for name in ("frame", "line", "station", "worker"))
    yield (
        f"Frames of {report['size_bytes'] / 1000:.0f} kB, run by {report['rows'][0]['engine']}: a frame takes "
        f"{frame:.1f} ms of a core, a second of the line {line:.0f} ms, of a station {station:.1f}, of a worker "
        f"{worker:.1f}."
    )
    yield _table(
        (
            "stations",
            "workers",
            "frames a second",
            "cores busy",
            "predicted",
            "error",
            "fitted",
            "ms of a core for a frame",
        ),
        (
            (
                row["stations"],
                row["workers"],
                row["rate_per_s"],
                row["cores"],
                row["predicted_cores"],
                f"{row['relative_error'] * 100:+.0f} %",
                not row["unseen"],
                _milliseconds(row["cpu_ms"]),
            )
            for row in report["rows"]
        ),
    )


def _milliseconds(spent: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {each:g} ms" for name, each in spent.items())


def _demo(report: Report) -> Iterator[str]:
    verdicts, latency = report["verdicts"], report["latency_ms"]
    yield (
        f"{report['frames']:,} frames of two stations at {report['rate']:g} a second, with a gate: "
        f"{report['results']:,} verdicts ({_said(verdicts)}), {report['lost']} lost, {report['duplicates']} twice. "
        f"From capture to verdict p50 {latency['p50']:g} ms, p99 {latency['p99']:g} ms, at most {latency['max']:g} ms. "
        f"{report['missed_defects']} of {report['defects']} drawn defects passed, {report['false_rejects']} of "
        f"{report['goods']:,} goods were rejected, image AUROC {report['image_auroc']:.3f}, by kind of defect:"
    )
    yield _table(
        ("defect", "frames", "found", "missed", "undecided"),
        (
            (kind, each["frames"], each["found"], each["missed"], each["undecided"])
            for kind, each in report["by_defect"].items()
        ),
    )


def _walk(report: Report) -> Iterator[str]:
    yield (
        f"{report['frames']:,} frames of {report['size_bytes'] / 1000:.0f} kB at {report['rate']:g} a second: "
        f"{report['lost']} lost, {report['duplicates']} twice. Milliseconds from frame sent to result read:"
    )
    whole = {"p50": report["p50_ms"], "p99": report["p99_ms"], "max": report["max_ms"]}
    yield _table(
        ("", "p50", "p99", "max"),
        (
            (name.replace("_", " "), each["p50"], each["p99"], each["max"])
            for name, each in ({"all": whole} | report["stages_ms"]).items()
        ),
    )


def _swaps(report: Report) -> Iterator[str]:
    undecided = sum(count for word, count in report["said"].items() if word not in {"pass", "reject"})
    yield (
        f"{report['swaps_seen']} swaps during {report['frames']:,} frames at {report['rate_per_s']} a second, half of "
        f"what the machine sustains: {report['lost']} lost, {report['late']} late, {undecided} without a decision, "
        f"{report['repeats']} twice, {report['mismatched']} with another score than that of the version they name. "
        f"From a promotion to the first verdict of the new version: {report['swap_s']['p50']} s in the median, "
        f"{report['swap_s']['max']} s at most."
    )


def _stations(report: Report) -> Iterator[str]:
    yield (
        f"{report['stations']} stations with {report['recipes']} recipes each, one worker that sustains "
        f"{report['sustainable_per_s']} frames a second, of which all together take {report['share']:.0%}; in turn "
        "without and with a flood, and at each turn every station changes its product."
    )
    rows = [
        "| who sends what | offered | said to the one | said to the others | late or shed | decided: one, least |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    loads = {"even": "all alike", "flooded": f"one {report['flood']:g} times as much"}
    for name, about in loads.items():
        row = report[name]
        late = f"{row['others_late']}" + (f", {row['others_loading']} while loading" if row["others_loading"] else "")
        offered = f"{row['offered_per_s']}/s, {row['offered_per_s'] / report['sustainable_per_s']:.0%}"
        rows.append(
            f"| {about} | {offered} | {_said(row['flood'])} | {_said(row['others'])} | {late} "
            f"| {row['decided']['flood']}, {row['decided']['worst_other']} |"
        )
    yield "\n".join(rows)
    yield (
        "Turn by turn, of the others late or shed, and what other guests of this virtual machine's host took of its "
        "processors meanwhile: "
        + "; ".join(f"{about}: {', '.join(map(_turn, report[name]['turns']))}" for name, about in loads.items())
        + "."
    )


def _turn(turn: Report) -> str:
    return f"{turn['others_late']} of {turn['others']:,} at {turn['stolen']:.1%}"


def _profile(report: Report) -> Iterator[str]:
    yield (
        f"{report['rate_per_s']:g} frames a second of {report['frame_bytes'] / 1000:.0f} kB, run by "
        f"{report['engine']}, {report['decided']} of {report['frames']} decided: the worker keeps {report['cores']} "
        f"cores busy (others on the same host took {report['stolen']:.1%}). What a frame takes of a core: "
        f"{_milliseconds(report['cpu_ms'])}. Of the worker's, by thread:"
    )
    yield _table(("thread", "ms a frame"), tuple(report["threads_ms"].items()))
    yield "And of what those of Python did:"
    yield _table(("what for", "share"), ((name, f"{share:.1%}") for name, share in report["parts"].items()))


def _overload(report: Report) -> Iterator[str]:
    memory = report["memory_mb"]
    yield (
        f"{report['achieved_per_s']} frames a second for {report['seconds']:g} s, where {report['sustainable_per_s']} "
        f"are sustained: {_said(report['flood'])}; {report['lost']} lost. Memory {memory['start']} MB before, "
        f"{memory['most']} at most. Every frame in time again after {report['recovered_after_s']} s; of those sent "
        f"then: {_said(report['after'])}."
    )


def _refit(report: Report) -> Iterator[str]:
    yield (
        f"{report['rate_per_s']:g} frames a second of {report['frame_bytes'] / 1000:.0f} kB; {report['refits']} refits "
        f"of {report['refit_s']} s beside them: p99 {report['p99_ratio']} times that without (medians of the turns)."
    )
    yield _table(
        ("turn", "frames", "p50, ms", "p99, ms"),
        (
            (kind, row["frames"], row["p50_ms"], row["p99_ms"])
            for pair in zip(report["without"], report["with"], strict=True)
            for kind, row in zip(("without", "with a refit"), pair, strict=True)
        ),
    )


def _poisoning(report: Report) -> Iterator[str]:
    rows = report["rows"]
    pairs = sorted({f"{row['method']} on {row['source']}" for row in rows})
    yield (
        f"{', '.join(pairs)}, each run by itself, {report['size'][0]} px, golden and other defects of the same kinds: "
        "what refits learnt, and what those that went live lost of the golden defects (and found, that the model "
        "before them missed). Harmful are those that lost more than a point of recall, with 95 % certainty, on "
        "defects that no rule knows. Of missed defects there are 0, 0.1, 1, 5 and 10 % in the pool; slow are ten "
        "nights of parts that are each a little worse."
    )
    found: dict[tuple[str, str], list[Report]] = {}
    for row in rows:
        found.setdefault((row["attack"], row["without"]), []).append(row)
    keys = ("live", "tried", "harmful", "learnt", "poison", "lost", "found")
    sums = {pair: {key: sum(row[key] for row in each) for key in keys} for pair, each in found.items()}
    yield _table(
        ("attack", "defence left out", "refits live", "harmful", "poison learnt", "golden lost, found"),
        (
            (
                attack,
                without,
                f"{total['live']} of {total['tried']}",
                total["harmful"],
                f"{total['learnt']:,} of {total['poison']:,}",
                f"{total['lost']}, {total['found']}",
            )
            for (attack, without), total in sums.items()
        ),
    )


def _seasons(report: Report) -> Iterator[str]:
    course, line = report["course"], report["line"]
    yield (
        f"{course['days']} days, {line['method']}, `{course['part']}` at {course['size'][0]} px. Misses at equal false "
        f"rejects are those at the {line['rate']:.0%} that all aim at, false rejects at equal misses those at what "
        "never-refit misses there, were all thresholds of a strategy times one factor:"
    )
    yield _table(
        (
            "seed",
            "changes, times the usual",
            "strategy",
            "false rejects",
            "misses",
            "misses at equal false rejects",
            "false rejects at equal misses",
            "cost of 1,000 parts",
            "refits live",
            "defective parts learnt",
        ),
        (
            (
                row["seed"],
                row["changes"],
                row["strategy"],
                _share(row["false_reject_rate"]),
                _share(row["miss_rate"]),
                _share(row["miss_rate_at_equal_false_rejects"]),
                _share(row["false_reject_rate_at_equal_misses"]),
                None if row["cost_per_1000_parts"] is None else f"{row['cost_per_1000_parts']:.1f}",
                row["nights"].get("live", 0),
                row["defective_parts_learnt"],
            )
            for row in report["rows"]
        ),
    )


def _share(share: float | None) -> str | None:
    """In per cent; nothing where too few parts say."""
    return None if share is None else f"{share:.2%}"


def _said(words: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {word}" for word, count in words.items())


def _picked(rows: Iterable[Report], keys: Mapping[str, str]) -> str:
    """A table of these keys of each row, by head."""
    return _table(tuple(keys), ([row[key] for key in keys.values()] for row in rows))


def _table(heads: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    lines = [heads, ["---"] * len(heads), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Cell) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


_SECTIONS = {
    "score": (
        "A picture, beside anomalib",
        "goldline bench score --peers --batch 1 --engines torch,openvino-fp32,openvino-bf16,openvino-int8",
        _score,
    ),
    "score-batch8": (
        "Eight pictures at once, beside anomalib",
        "goldline bench score --peers --backbones wide_resnet50_2 --batch 8 --engines openvino-bf16,openvino-int8",
        _score,
    ),
    "score-default": (
        "The default, beside anomalib's",
        (
            "goldline bench score --peers --backbones goldline-s --bank 1638 --peer-bank 16385 --batch 1 "
            "--engines torch,openvino-fp32,openvino-bf16,openvino-int8"
        ),
        _score,
    ),
    "score-padim": (
        "PaDiM for parts that lie alike, beside anomalib's PatchCore",
        (
            "goldline bench score --peers --backbones goldline-s --fixtured --peer-bank 16385 --batch 1 "
            "--engines torch,openvino-fp32,openvino-bf16,openvino-int8"
        ),
        _score,
    ),
    "accuracy": (
        "What is found, beside anomalib",
        "python -m tests.benchmarks.accuracy --coreset 0.01",
        _accuracy,
    ),
    "accuracy-auto": (
        "What a method that good pictures chose finds, beside anomalib",
        (
            "python -m tests.benchmarks.accuracy --sets magnetic_tile,cubes,deeppcb,bottle --methods auto,patchcore "
            "--coreset 0.01 --seeds 2"
        ),
        _accuracy,
    ),
    "accuracy-default": (
        "What is found, beside anomalib's own coreset",
        "python -m tests.benchmarks.accuracy --sets magnetic_tile,cubes --coreset 0.1 --seeds 1",
        _accuracy,
    ),
    "accuracy-default-deeppcb": (
        "The same on boards",
        "python -m tests.benchmarks.accuracy --sets deeppcb --methods auto,patchcore --coreset 0.1 --seeds 1",
        _accuracy,
    ),
    "score-amx": ("A picture with AMX, beside anomalib", "goldline bench score --peers --batch 1", _score),
    "score-default-amx": (
        "The default with AMX, beside anomalib's",
        "goldline bench score --peers --backbones goldline-s --bank 1638 --peer-bank 16385 --batch 1",
        _score,
    ),
    "score-h100": (
        "PatchCore on a GPU",
        "goldline bench score --device cuda --backbones wide_resnet50_2 --bank 16385 --batch 1,64 --engines torch-bf16",
        _score,
    ),
    "score-others-h100": (
        "PaDiM and SPADE on a GPU",
        "goldline bench score --device cuda --backbones wide_resnet50_2 --methods padim,spade --batch 1,64 --repeats 5",
        _score,
    ),
    "fit-h100": (
        "A fit of PatchCore on a GPU, beside anomalib",
        "goldline bench fit --device cuda --peers --repeats 3",
        _fit,
    ),
    "fit": ("A fit of PatchCore, beside anomalib", "goldline bench fit --peers", _fit),
    "bank-search": (
        "The search in PatchCore's bank, bounded and whole",
        "python -m tests.benchmarks.bank_search",
        _bank_search,
    ),
    "bank-search-amx": (
        "The search with AMX, bounded and whole",
        "python -m tests.benchmarks.bank_search",
        _bank_search,
    ),
    "frames-amx": ("Frames in a worker's threads", "goldline bench frames --repeats 15", _frames),
    "cost": ("What a picture's cost grows with", "goldline bench cost", _cost),
    "line": ("The highest rate of a line", "goldline bench line", _line),
    "line-two-workers": ("The same with two workers", "goldline bench line --workers 2", _line),
    "line-fixtured": ("The same with PaDiM for parts that lie alike", "goldline bench line --fixtured", _line),
    "line-bf16": ("The same in bfloat16", "goldline bench line --engine openvino-bf16", _line),
    "line-amx": ("The highest rate of a line on slower cores", "goldline bench line", _line),
    "line-amx-two-workers": ("The same cores with two workers", "goldline bench line --workers 2", _line),
    "load": ("What a line takes of processors", "goldline bench load", _load),
    "demo": ("The demo", "goldline demo --frames 2000 --rate 30", _demo),
    "walk": ("The walk without a model", "goldline bench walk", _walk),
    "walk-150": ("The walk without a model, five times as fast", "goldline bench walk --rate 150 --frames 3000", _walk),
    "profile": ("What a worker's time goes to", "python -m tests.benchmarks.walk_profile", _profile),
    "refit": ("A refit beside a line", "goldline bench refit", _refit),
    "seasons": ("Seasons with and without refits", "python -m tests.benchmarks.seasons", _seasons),
    "poisoning": ("What poisoned pools do", "python -m tests.benchmarks.poisoning", _poisoning),
    "swaps": ("Models swapped under load", "goldline bench swaps", _swaps),
    "stations": ("A flood at one of many stations", "goldline bench stations", _stations),
    "overload": ("Ten times what can be decided", "goldline bench overload", _overload),
}


if __name__ == "__main__":
    main()
