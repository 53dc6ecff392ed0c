"""Results of several seeds: means, deviations, and differences that are tested by seed."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tvd_gen.run.folder import write_lines, write_text

BASE = "ce"
COLUMNS = {
    "ppl_oracle": "PPL oracle",
    "ppl_test": "PPL test",
    "bleu_4": "BLEU-4",
    "self_bleu_4": "SelfBLEU-4",
    "tvd": "TVD",
    "kl": "KL",
    "reverse_kl": "reverse KL",
    "tvd_student": "TVD*",
    "kl_student": "KL*",
    "reverse_kl_student": "reverse KL*",
    "sequence_tvd": "sequence TVD",
    "sequence_tvd_student": "sequence TVD*",
}
LEGEND = """\
PPL oracle: the oracle's perplexity of the student's sentences; PPL test: the student's of the
oracle's, both of a token, the end included. BLEU-4: of each of the student's sentences against the
first 500 of the oracle's at once, smoothed (method 1), the mean; SelfBLEU-4: of its first 500, each
against the 499 others. TVD, KL(oracle, student) and reverse KL, in nats: exact, of the next token,
the mean over prefixes of the oracle's sentences, and (*) of the student's. Sequence TVD: an
unbiased estimate from the oracle's sentences, and (*) from the student's. Mean and standard
deviation over seeds, which change the student's start, the order of its rows and its sentences; the
oracle and its sentences are the same for all.
"""


def collect(folder: Path) -> list[dict[str, Any]]:
    """The records of all measured students, by objective and seed."""
    files = sorted(folder.glob("students/*/figures.json"))
    records = [json.loads(file.read_text("utf-8")) for file in files]
    return sorted(records, key=lambda record: (record["objective"], record["seed"]))


def write(folder: Path, oracle: Mapping[str, float]) -> str:
    """results.jsonl and table.md; the table."""
    records = collect(folder)
    write_lines(folder / "results.jsonl", records)
    text = render(records, oracle)
    write_text(folder / "table.md", text)
    return text


def render(records: Sequence[Mapping[str, Any]], oracle: Mapping[str, float]) -> str:
    """Markdown: figures, then differences to cross-entropy."""
    names = list(dict.fromkeys(record["objective"] for record in records))
    names.sort(key=lambda name: (name != BASE, name))
    figures = {name: _by_seed(records, name) for name in names}
    parts = [LEGEND, _table([("oracle", [_number(oracle.get(key)) for key in COLUMNS])], figures)]
    if BASE in figures and len(figures) > 1:
        parts.append(
            f"Differences to {BASE}, paired by seed: mean, and p of a two-sided paired t-test (not "
            f"corrected for the {(len(figures) - 1) * len(COLUMNS)} comparisons).\n"
        )
        rows = [(name, _differences(figures, name)) for name in names if name != BASE]
        parts.append(_lines(["objective", "pairs", *COLUMNS.values()], rows))
    return "\n".join(parts)


def _by_seed(records: Sequence[Mapping[str, Any]], name: str) -> dict[int, Mapping[str, float]]:
    return {r["seed"]: r["figures"] for r in records if r["objective"] == name}


def _table(
    rows: list[tuple[str, list[str]]], figures: Mapping[str, Mapping[int, Mapping[str, float]]]
) -> str:
    rows = [(name, ["", *cells]) for name, cells in rows]
    for name, seeds in figures.items():
        cells = [_spread([figure[key] for figure in seeds.values()]) for key in COLUMNS]
        rows.append((name, [str(len(seeds)), *cells]))
    return _lines(["objective", "seeds", *COLUMNS.values()], rows)


def _differences(figures: Mapping[str, Mapping[int, Mapping[str, float]]], name: str) -> list[str]:
    seeds = sorted(figures[name].keys() & figures[BASE].keys())
    cells = []
    for key in COLUMNS:
        pairs = [figures[name][seed][key] - figures[BASE][seed][key] for seed in seeds]
        cells.append(_tested(pairs))
    return [str(len(seeds)), *cells]


def _lines(header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _spread(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    return _number(mean) + (f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else "")


def _tested(differences: Sequence[float]) -> str:
    if not differences:
        return ""
    mean = statistics.fmean(differences)
    p = paired_p(differences)
    return f"{mean:+.3g}" + ("" if p is None else f" (p {p:.2g})")


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of Student's t that the differences have mean 0; None for fewer than two, or
    where all are equal."""
    if len(differences) < 2:
        return None
    deviation = statistics.stdev(differences)
    if deviation == 0.0:
        return None
    t = statistics.fmean(differences) / (deviation / math.sqrt(len(differences)))
    return two_sided(t, len(differences) - 1)


def two_sided(t: float, freedom: int, parts: int = 2000) -> float:
    """P(|T| >= |t|) of Student's t.

    With t = sqrt(freedom) tan(a) its density is cos(a)^(freedom - 1), up to a factor; Simpson's
    rule from a to pi / 2, over that from 0, keeps its digits where p is small.
    """

    def area(low: float) -> float:
        step = (math.pi / 2 - low) / parts
        heights = [math.cos(low + i * step) ** (freedom - 1) for i in range(parts + 1)]
        inner = 4 * math.fsum(heights[1:-1:2]) + 2 * math.fsum(heights[2:-1:2])
        return (heights[0] + inner + heights[-1]) * step / 3

    return area(math.atan(abs(t) / math.sqrt(freedom))) / area(0.0)
