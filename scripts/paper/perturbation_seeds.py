"""Perturbation analyses of several seeds: means, deviations, and differences tested by seed.

    python scripts/paper/perturbation_seeds.py perturbation/seed-1 perturbation/seed-2 ...

Each folder is an output of perturbation.py on one seed's models, with the same names and kinds of
edits in all. Differences are to the first model.
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


def render(seeds: Sequence[Mapping[Key, Mapping[str, Any]]], edits: Sequence[int]) -> str:
    """Markdown; ValueError where the folders have different models or kinds."""
    keys = [key for key in seeds[0] if key[2] in edits]
    for seed in seeds[1:]:
        if missing := [key for key in keys if key not in seed]:
            raise ValueError(f"a folder lacks {missing[0]}: all must be of the same models")
    first = keys[0][0]
    rows = []
    for model, kind, count in keys:
        cells = []
        for column in COLUMNS:
            own, base = (
                [seed[name, kind, count][column]["value"] for seed in seeds]
                for name in (model, first)
            )
            cells.append(_spread(own, base if model != first else None))
        rows.append([model, kind, str(count), *cells])
    return table(["model", "kind", "edits", *COLUMNS.values()], rows)


def _spread(own: Sequence[float], base: Sequence[float] | None) -> str:
    mean, deviation = mean_sd(own)
    text = number(mean) + (f" ± {number(deviation)}" if len(own) > 1 else "")
    if base is None or len(own) < 2:
        return text
    away = [value - other for value, other in zip(own, base, strict=True)]
    return f"{text} ({mean_sd(away)[0]:+.3f}, p {paired_t(away):.2g})"


def main() -> None:
    """Read, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--edits", nargs="+", type=int, default=[1, 5])
    given = parser.parse_args()
    try:
        print(render([read(folder) for folder in given.folders], given.edits))
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
