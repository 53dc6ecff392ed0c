"""What must hold of the paper's experiments however small they are; 1 where it does not.

    python scripts/paper/check.py runs/paper-check

The folder has `synthetic` (synthetic.py) and `small_tasks` (small_tasks.py), with all objectives,
`toy` (toy.py) and `perturbation` (perturbation.py). Their figures mean nothing when they are quick,
but no total variation is above 1 or above what Pinsker's inequality allows, no fit of the toy is
better by a divergence than the one that was fitted by it, no student knows the oracle's sentences
better than the oracle, no run is missing and none has diverged.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from recipe import ORACLE, objectives
from small_plans import SWEEPS, TASKS
from tables import read_lines

SLACK = 0.05  # nats a sentence: the oracle's are a sample
SEARCHED = 1e-6  # so near the toy's search comes to the least


def faults_of_students(folder: Path) -> Iterator[str]:
    """What is wrong with results.jsonl of synthetic.py."""
    records = read_lines(folder / "results.jsonl", ("objective", "figures"))
    records = [record for record in records if record["objective"] != ORACLE]
    if missing := objectives().keys() - {record["objective"] for record in records}:
        yield f"synthetic: no figures of {', '.join(sorted(missing))}"
    for record in records:
        name, figures = f"synthetic, {record['objective']}", record["figures"]
        if not all(math.isfinite(value) for value in figures.values()):
            yield f"{name}: a figure is not finite"
        for of in ("", "_student"):
            tvd, kl, reverse = (figures[f"{key}{of}"] for key in ("tvd", "kl", "reverse_kl"))
            if not 0.0 < tvd <= min(1.0, math.sqrt(min(kl, reverse) / 2.0)):
                yield f"{name}: TVD {tvd:g} and KL {kl:g}, {reverse:g} contradict each other"
        if figures["sequence_kl"] < -SLACK:
            yield f"{name}: knows the oracle's sentences better than the oracle"


def faults_of_runs(folder: Path) -> Iterator[str]:
    """What is wrong with results.jsonl of small_tasks.py."""
    lines = read_lines(folder / "results.jsonl", ("task", "objective", "run"))
    found = {(line["task"], line["objective"]) for line in lines}
    for wanted in ((task, sweep.label) for task in TASKS for sweep in SWEEPS):
        if wanted not in found:
            yield f"small tasks: no run of {', '.join(wanted)}"
    for line in lines:
        numbers = [line.get(split, {}).get("nll", math.nan) for split in ("validation", "test")]
        if not all(0.0 < nll < 20.0 for nll in numbers):
            yield f"small tasks, {line['run']}: nll {numbers}"


def faults_of_toy(folder: Path) -> Iterator[str]:
    """What is wrong with toy.json of toy.py."""
    fits = json.loads((folder / "toy.json").read_text("utf-8"))["fits"]
    least = {key: min(fit[key] for fit in fits) for key in ("kl", "tvd")}
    for fit in fits:
        if not 0.0 < fit["tvd"] <= min(1.0, math.sqrt(fit["kl"] / 2.0)):
            yield f"toy, {fit['divergence']}: TVD {fit['tvd']:g} and KL {fit['kl']:g} contradict"
        key = fit["divergence"]
        if key in least and fit[key] > least[key] + SEARCHED:
            yield f"toy: the best fit by {key} has {fit[key]:g}, another one {least[key]:g}"


def faults_of_spoilt(folder: Path) -> Iterator[str]:
    """What is wrong with perturbation.json of perturbation.py, one folder for each seed."""
    for file in sorted(folder.glob("*/perturbation.json")) or [folder / "perturbation.json"]:
        records = json.loads(file.read_text("utf-8"))["results"]
        if not records:
            yield f"{file}: has no results"
        for record in records:
            name = f"{file.parent.name}, {record['model']}, {record['kind']} {record['edits']}"
            if not all(math.isfinite(record[key]["value"]) for key in ("nll", "rise")):
                yield f"{name}: a number is not finite"
            if not 0.0 <= record["more_probable"]["value"] <= 1.0:
                yield f"{name}: a share of {record['more_probable']['value']:g}"


def main() -> None:
    """Read, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    laws = {
        "synthetic": faults_of_students,
        "small_tasks": faults_of_runs,
        "toy": faults_of_toy,
        "perturbation": faults_of_spoilt,
    }
    try:
        faults = [fault for name, law in laws.items() for fault in law(folder / name)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{type(error).__name__}: {error}; `make paper-check` makes what is checked")
    sys.exit("\n".join(faults) or None)


if __name__ == "__main__":
    main()
