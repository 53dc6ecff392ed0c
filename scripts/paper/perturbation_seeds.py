"""Perturbation analyses of several seeds: means, deviations, and differences tested by seed.

    python scripts/paper/perturbation_seeds.py perturbation/seed-1 perturbation/seed-2 ...

Each folder is an output of perturbation.py on one seed's models, with the same names and kinds of
edits in all. In brackets: what a number is more than the first model's, or that of --base, and p of
a two-sided paired t-test, not corrected for their number. The base may be the truth, as the oracle
of the synthetic experiment is (--base oracle): a model whose nll rises less than the truth's finds
spoilt texts too probable, next to its own unspoilt ones.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from significance import mean_sd, paired_t
from tables import number, table

COLUMNS = {
    "nll": "nll",
    "rise": "rise",
    "more_probable": "more probable",
    "more_probable_total": "in total",
}
Key = tuple[str, str, int]


def read(folder: Path) -> dict[Key, Mapping[str, Any]]:
    """model, kind and number of edits -> the record."""
    records = json.loads((folder / "perturbation.json").read_text("utf-8"))["results"]
    return {(each["model"], each["kind"], each["edits"]): each for each in records}


def render(
    seeds: Sequence[Mapping[Key, Mapping[str, Any]]], edits: Sequence[int], base: str | None = None
) -> str:
    """Markdown; ValueError where the folders have different models or kinds."""
    keys = [key for key in seeds[0] if key[2] in edits]
    if not keys:
        raise ValueError(f"--edits {' '.join(map(str, edits))}: none in the folders")
    for seed in seeds[1:]:
        if missing := [key for key in keys if key not in seed]:
            raise ValueError(f"a folder lacks {missing[0]}: all must be of the same models")
    base = base or keys[0][0]
    if base not in {key[0] for key in keys}:
        raise ValueError(f"--base {base}: no model of that name")
    rows = []
    for model, kind, count in keys:
        cells = []
        for column in COLUMNS:
            own, other = (
                [seed[name, kind, count][column]["value"] for seed in seeds]
                for name in (model, base)
            )
            cells.append(_spread(own) + ("" if model == base else f" ({_away(own, other)})"))
        rows.append([model, kind, str(count), *cells])
    return table(["model", "kind", "edits", *COLUMNS.values()], rows)


def _spread(own: Sequence[float]) -> str:
    mean, deviation = mean_sd(own)
    return number(mean) + (f" ± {number(deviation)}" if len(own) > 1 else "")


def _away(own: Sequence[float], base: Sequence[float]) -> str:
    differences = [value - other for value, other in zip(own, base, strict=True)]
    p = f", p {paired_t(differences):.2g}" if len(differences) > 1 else ""
    return f"{mean_sd(differences)[0]:+.3f}{p}"


def main() -> None:
    """Read, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--edits", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--base", metavar="MODEL", help="default: the first")
    given = parser.parse_args()
    try:
        print(render([read(folder) for folder in given.folders], given.edits, given.base))
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
