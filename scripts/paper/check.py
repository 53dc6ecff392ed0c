"""What must hold of the paper's experiments however small they are; 1 where it does not.

    python scripts/paper/check.py runs/paper-check

The folder has `synthetic` (synthetic.py) and `small_tasks` (small_tasks.py), with all objectives.
Their figures mean nothing when they are quick, but no total variation is above 1 or above what
Pinsker's inequality allows, no student knows the oracle's sentences better than the oracle, no run
is missing and none has diverged.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipe import objectives
from small_plans import SWEEPS, TASKS

SLACK = 0.05  # nats a sentence: the oracle's are a sample


def faults_of_students(folder: Path) -> Iterator[str]:
    """What is wrong with results.jsonl of synthetic.py."""
    records = _lines(folder / "results.jsonl")
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
    lines = _lines(folder / "results.jsonl")
    found = {(line["task"], line["objective"]) for line in lines}
    for wanted in ((task, sweep.label) for task in TASKS for sweep in SWEEPS):
        if wanted not in found:
            yield f"small tasks: no run of {', '.join(wanted)}"
    for line in lines:
        numbers = [line.get(split, {}).get("nll", math.nan) for split in ("validation", "test")]
        if not all(0.0 < nll < 20.0 for nll in numbers):
            yield f"small tasks, {line['run']}: nll {numbers}"


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        sys.exit(f"{file} is not there: nothing to check; `make paper-check` makes it")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def main() -> None:
    """Read, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    faults = [*faults_of_students(folder / "synthetic"), *faults_of_runs(folder / "small_tasks")]
    sys.exit("\n".join(faults) or None)


if __name__ == "__main__":
    main()
