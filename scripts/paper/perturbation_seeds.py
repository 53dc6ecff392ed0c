"""Perturbation analyses of several seeds: means, deviations, and differences tested by seed.

    python scripts/paper/perturbation_seeds.py perturbation/seed-1 perturbation/seed-2 ...
    python scripts/paper/perturbation_seeds.py ... --lines seeds.jsonl     # keep what it is made of
    python scripts/paper/perturbation_seeds.py seeds.jsonl                 # and make it of that

Each folder is an output of perturbation.py on one seed's models, with the same names and kinds of
edits in all. In brackets, or alone with --column: what a number is more than the first model's, or
that of --base, and p of a two-sided paired t-test, not corrected for their number. The base may be
the truth, as the oracle of the synthetic experiment is (--base oracle): a model whose nll rises
less than the truth's finds spoilt texts too probable, next to its own unspoilt ones.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from significance import mean_sd, paired_t
from tables import number, read_lines, table
from tvd_gen.run.folder import write_lines

COLUMNS = {
    "nll": "nll",
    "rise": "rise",
    "more_probable": "more probable",
    "more_probable_total": "in total",
}
ALIKE = ("limit", "max_words", "edits", "kinds", "seed", "columns")
"""settings that all seeds must share"""
Key = tuple[str, str, int]
Seed = Mapping[Key, Mapping[str, float]]
Line = Mapping[str, Any]
"""of one model of one seed: the folder, the model's name and place, settings, and its numbers"""


def read(places: Sequence[Path]) -> list[Line]:
    """The lines of folders and files of lines.

    ValueError where one is no perturbation analysis, where a seed is there twice, and where seeds
    were made with unlike settings.
    """
    lines = [line for place in places for line in _lines(place)]
    seeds: dict[str, list[Line]] = {}
    for line in lines:
        seeds.setdefault(line["folder"], []).append(line)
        for name in ALIKE:
            own, first = (each["settings"].get(name) for each in (line, lines[0]))
            if own != first:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(f"{line['folder']}: {option} {own}, others have {first}")
    folder_of: dict[str, str] = {}
    for folder, own_lines in seeds.items():
        made = json.dumps([(line["model"], line["numbers"]) for line in own_lines])
        other = folder_of.setdefault(made, folder)
        if other != folder or len({line["model"] for line in own_lines}) < len(own_lines):
            raise ValueError(f"{folder}: the models of {other} again; each seed counts once")
    return lines


def _lines(place: Path) -> list[Line]:
    if place.is_file():
        return read_lines(place, ("folder", "model", "place", "settings", "numbers"))
    file = place / "perturbation.json"
    text = file.read_text("utf-8")
    try:
        tree = json.loads(text)
        settings, models = dict(tree["settings"]), {}
        for record in tree["results"]:
            numbers = {key: record[key] for key in ("kind", "edits", "texts")}
            numbers |= {column: record[column]["value"] for column in COLUMNS}
            models.setdefault(record["model"], []).append(numbers)
        named = zip(models.items(), settings.pop("models"), strict=True)
        return [
            {"folder": str(place), "model": name, "place": model, "settings": settings}
            | {"numbers": numbers}
            for (name, numbers), model in named
        ]
    except (ValueError, KeyError, TypeError) as error:
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file}: was not written by perturbation.py ({told})") from None


def by_seed(lines: Sequence[Line]) -> list[Seed]:
    """(model, kind, number of edits) -> the numbers, of each seed."""
    seeds: dict[str, dict[Key, Mapping[str, float]]] = {}
    for line in lines:
        for each in line["numbers"]:
            seeds.setdefault(line["folder"], {})[line["model"], each["kind"], each["edits"]] = each
    return list(seeds.values())


def keep(file: Path, lines: Sequence[Line], edits: Sequence[int]) -> None:
    """Write the lines, with the numbers of these numbers of edits."""
    write_lines(
        file,
        (
            {**line, "numbers": [each for each in line["numbers"] if each["edits"] in edits]}
            for line in lines
        ),
    )


def _keys(seeds: Sequence[Seed], edits: Sequence[int], base: str | None) -> tuple[list[Key], str]:
    """What is shown, and the base; ValueError where the folders have different models or kinds."""
    keys = [key for key in seeds[0] if key[2] in edits]
    if not keys:
        raise ValueError(f"--edits {' '.join(map(str, edits))}: none in the folders")
    for seed in seeds[1:]:
        if missing := [key for key in keys if key not in seed]:
            raise ValueError(f"a folder lacks {missing[0]}: all must be of the same models")
    base = base or keys[0][0]
    if base not in {key[0] for key in keys}:
        raise ValueError(f"--base {base}: no model of that name")
    return keys, base


def render(seeds: Sequence[Seed], edits: Sequence[int], base: str | None = None) -> str:
    """Markdown, a row for each model, kind and number of edits."""
    keys, base = _keys(seeds, edits, base)
    rows = []
    for model, kind, count in keys:
        cells = []
        for column in COLUMNS:
            own, other = (
                [seed[name, kind, count][column] for seed in seeds] for name in (model, base)
            )
            cells.append(_spread(own) + ("" if model == base else f" ({_away(own, other)})"))
        rows.append([model, kind, str(count), *cells])
    return table(["model", "kind", "edits", *COLUMNS.values()], rows)


def render_of(seeds: Sequence[Seed], edits: Sequence[int], base: str | None, column: str) -> str:
    """Markdown of one column, the kinds side by side: the base's values, and how far others are."""
    keys, base = _keys(seeds, edits, base)
    kinds = list(dict.fromkeys(kind for _, kind, _ in keys))
    models = dict.fromkeys((model, count) for model, _, count in keys)
    rows = []
    for model, count in sorted(models, key=lambda each: each[0] != base):  # stable
        cells = []
        for kind in kinds:
            own, other = (
                [seed[name, kind, count][column] for seed in seeds] for name in (model, base)
            )
            cells.append(_spread(own) if model == base else _away(own, other))
        rows.append([model, str(count), *cells])
    return table(["model", "edits", *kinds], rows)


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
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--edits", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--base", metavar="MODEL", help="default: the first")
    parser.add_argument(
        "--column", choices=COLUMNS, help="this one alone, the kinds of edits side by side"
    )
    parser.add_argument(
        "--lines", type=Path, metavar="FILE", help="write what the table is made of"
    )
    given = parser.parse_args()
    try:
        lines = read(given.folders)
        wanted = by_seed(lines), given.edits, given.base
        print(render_of(*wanted, given.column) if given.column else render(*wanted))
        if given.lines:
            keep(given.lines, lines, given.edits)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    except (KeyError, TypeError, AttributeError) as error:
        sys.exit(f"these are not lines of --lines ({type(error).__name__}: {error})")


if __name__ == "__main__":
    main()
