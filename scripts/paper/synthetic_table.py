"""Results of several seeds: means, deviations, and differences that are tested by seed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from significance import mean_sd, paired_t
from tables import table
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
deviation over seeds; a seed has an oracle of its own, the same for all objectives. Those with a †
begin with the student of cross-entropy, as ce-continued† does: compare with it.
"""


def collect(folder: Path) -> list[dict[str, Any]]:
    """The records of all measured students, by objective and seed."""
    files = sorted(folder.glob("seed-*/students/*/figures.json"))
    records = [json.loads(file.read_text("utf-8")) for file in files]
    return sorted(records, key=lambda record: (record["objective"], record["seed"]))


def oracles(folder: Path) -> list[dict[str, float]]:
    """The figures of the seeds' oracles themselves."""
    files = sorted(folder.glob("seed-*/oracle-figures.json"))
    return [json.loads(file.read_text("utf-8"))["figures"] for file in files]


def write(folder: Path) -> str:
    """results.jsonl and table.md; the table."""
    records = collect(folder)
    write_lines(folder / "results.jsonl", records)
    text = render(records, oracles(folder))
    write_text(folder / "table.md", text)
    return text


def render(records: Sequence[Mapping[str, Any]], oracles: Sequence[Mapping[str, float]]) -> str:
    """Markdown: figures, then differences to cross-entropy."""
    records = [{**record, "objective": _shown(record)} for record in records]
    names = list(dict.fromkeys(record["objective"] for record in records))
    names.sort(key=lambda name: (name != BASE, name))
    figures = {name: _by_seed(records, name) for name in names}
    own = [_spread([figure[key] for figure in oracles if key in figure]) for key in COLUMNS]
    rows = [["oracle", str(len(oracles)), *own]]
    for name, seeds in figures.items():
        cells = [_spread([figure[key] for figure in seeds.values()]) for key in COLUMNS]
        rows.append([name, str(len(seeds)), *cells])
    parts = [LEGEND, table(["objective", "seeds", *COLUMNS.values()], rows)]
    if BASE in figures and len(figures) > 1:
        parts.append(
            f"\nDifferences to {BASE}, paired by seed: mean, and p of a two-sided paired t-test "
            f"(not corrected for the {(len(figures) - 1) * len(COLUMNS)} comparisons).\n"
        )
        rows = [[name, *_differences(figures, name)] for name in names if name != BASE]
        parts.append(table(["objective", "pairs", *COLUMNS.values()], rows))
    return "\n".join(parts) + "\n"


def _shown(record: Mapping[str, Any]) -> str:
    name: str = record["objective"]
    return f"{name}†" if record["after_ce"] else name


def _by_seed(records: Sequence[Mapping[str, Any]], name: str) -> dict[int, Mapping[str, float]]:
    return {r["seed"]: r["figures"] for r in records if r["objective"] == name}


def _differences(figures: Mapping[str, Mapping[int, Mapping[str, float]]], name: str) -> list[str]:
    seeds = sorted(figures[name].keys() & figures[BASE].keys())
    cells = []
    for key in COLUMNS:
        pairs = [figures[name][seed][key] - figures[BASE][seed][key] for seed in seeds]
        cells.append(_tested(pairs))
    return [str(len(seeds)), *cells]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, deviation = mean_sd(values)
    return f"{mean:.4g}" + (f" ± {deviation:.2g}" if len(values) > 1 else "")


def _tested(differences: Sequence[float]) -> str:
    if not differences:
        return ""
    p = f" (p {paired_t(differences):.2g})" if len(differences) > 1 else ""
    return f"{mean_sd(differences)[0]:+.3g}{p}"
