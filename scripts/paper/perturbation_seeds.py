"""Perturbation analyses of several seeds: means, deviations, and differences tested by seed.

    python scripts/paper/perturbation_seeds.py perturbation/seed-1 perturbation/seed-2 ...

Each folder is an output of perturbation.py on one seed's models, with the same names and kinds of
edits in all. Differences are to the first model. Where one of the models is the truth, as the
oracle of the synthetic experiment (--truth oracle), a column has each model's ratio less the
truth's, and p of its being 0: below 0 a model finds spoilt texts too probable.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from significance import mean_sd, paired_t
from tables import number, table

COLUMNS = {"ratio": "ratio", "more_probable": "more probable", "more_probable_total": "in total"}
Key = tuple[str, str, int]


def read(folder: Path) -> dict[Key, Mapping[str, Any]]:
    """model, kind and number of edits -> the record."""
    records = json.loads((folder / "perturbation.json").read_text("utf-8"))["results"]
    return {(each["model"], each["kind"], each["edits"]): each for each in records}


def render(
    seeds: Sequence[Mapping[Key, Mapping[str, Any]]], edits: Sequence[int], truth: str | None = None
) -> str:
    """Markdown; ValueError where the folders have different models or kinds."""
    keys = [key for key in seeds[0] if key[2] in edits]
    for seed in seeds[1:]:
        if missing := [key for key in keys if key not in seed]:
            raise ValueError(f"a folder lacks {missing[0]}: all must be of the same models")
    first = keys[0][0]
    if truth and truth not in {key[0] for key in keys}:
        raise ValueError(f"--truth {truth}: no model of that name")
    rows = []
    for model, kind, count in keys:

        def values(name: str, column: str, place: tuple[str, int] = (kind, count)) -> list[float]:
            return [seed[name, *place][column]["value"] for seed in seeds]

        cells = [
            _spread(values(model, column), None if model == first else values(first, column))
            for column in COLUMNS
        ]
        if truth:
            cells.append(_away(values(model, "ratio"), values(truth, "ratio")))
        rows.append([model, kind, str(count), *cells])
    last = [f"ratio less the {truth}'s"] if truth else []
    return table(["model", "kind", "edits", *COLUMNS.values(), *last], rows)


def _spread(own: Sequence[float], base: Sequence[float] | None) -> str:
    mean, deviation = mean_sd(own)
    text = number(mean) + (f" ± {number(deviation)}" if len(own) > 1 else "")
    return text if base is None or len(own) < 2 else f"{text} ({_away(own, base)})"


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
    parser.add_argument("--truth", metavar="MODEL")
    given = parser.parse_args()
    try:
        print(render([read(folder) for folder in given.folders], given.edits, given.truth))
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
