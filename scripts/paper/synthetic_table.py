"""Results of several seeds: means, deviations, and differences that are tested by seed.

    python scripts/paper/synthetic_table.py results.jsonl

prints the table of a results.jsonl of synthetic.py, as the ones in scripts/paper/results.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe import ORACLE
from significance import mean_sd, paired_t
from tables import read_lines, table
from tvd_gen.run.folder import write_lines, write_text

BASE, CONTROL = "ce", "ce-continued†"
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
begin with the student of cross-entropy and have a few epochs more, as ce-continued† has; of them
the last model is taken, of the others that of the lowest nll.
"""


def collect(folder: Path) -> list[dict[str, Any]]:
    """The records of all measured students and of the oracles, by objective and seed."""
    students = sorted(folder.glob("seed-*/students/*/figures.json"))
    records = [json.loads(file.read_text("utf-8")) for file in students]
    oracles = sorted(folder.glob("seed-*/oracle-figures.json"))
    trees = [json.loads(file.read_text("utf-8")) for file in oracles]
    records += [tree["record"] for tree in trees if "record" in tree]  # not of earlier versions
    return sorted(records, key=lambda record: (record["objective"], record["seed"]))


def write(folder: Path) -> str:
    """results.jsonl and table.md; the table."""
    records = collect(folder)
    write_lines(folder / "results.jsonl", records)
    text = render(records)
    write_text(folder / "table.md", text)
    return text


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: figures, then differences to cross-entropy, and of those with a † to control."""
    records = [{**record, "objective": _shown(record)} for record in records]
    names = list(dict.fromkeys(record["objective"] for record in records))
    names.sort(key=lambda name: (name != ORACLE, name != BASE, name))
    figures = {name: _by_seed(records, name) for name in names}
    rows = []
    for name, seeds in figures.items():
        cells = [_spread([each[key] for each in seeds.values() if key in each]) for key in COLUMNS]
        rows.append([name, str(len(seeds)), *cells])
    parts = [LEGEND, table(["objective", "seeds", *COLUMNS.values()], rows)]
    after = [name for name in names if name.endswith("†")]
    for base, others in ((BASE, names), (CONTROL, after)):
        others = [name for name in others if name not in (base, ORACLE)]
        if base not in figures or not others:
            continue
        parts.append(
            f"\nDifferences to {base}, paired by seed: mean, and p of a two-sided paired t-test "
            f"(not corrected for the {len(others) * len(COLUMNS)} comparisons).\n"
        )
        rows = [[name, *_differences(figures[name], figures[base])] for name in others]
        parts.append(table(["objective", "pairs", *COLUMNS.values()], rows))
    return "\n".join(parts) + "\n"


def _shown(record: Mapping[str, Any]) -> str:
    name: str = record["objective"]
    return f"{name}†" if record["after_ce"] else name


def _by_seed(records: Sequence[Mapping[str, Any]], name: str) -> dict[int, Mapping[str, float]]:
    return {r["seed"]: r["figures"] for r in records if r["objective"] == name}


def _differences(
    own: Mapping[int, Mapping[str, float]], base: Mapping[int, Mapping[str, float]]
) -> list[str]:
    seeds = sorted(own.keys() & base.keys())
    cells = [_tested([own[seed][key] - base[seed][key] for seed in seeds]) for key in COLUMNS]
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


def main() -> None:
    """Read, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    file: Path = parser.parse_args().results
    try:
        print(render(read_lines(file, ("objective", "seed", "figures", "after_ce"))))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    except (KeyError, TypeError) as error:
        sys.exit(f"these are not results of synthetic.py ({type(error).__name__}: {error})")


if __name__ == "__main__":
    main()
