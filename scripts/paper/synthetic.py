"""The synthetic experiment: students of a known oracle, one objective and one seed each.

    python scripts/paper/synthetic.py --captions train.txt --validation valid.txt
    python scripts/paper/synthetic.py ... --objectives ce tailr-1e-07 --seeds 1 2 3 --jobs 2
    python scripts/paper/synthetic.py ... --quick      # minutes; its figures mean nothing

An LSTM that was trained on captions, one a line, is the oracle. Students learn from its sentences
and are measured against it: both distributions are known. The same command goes on where it was
stopped. OUTPUT/results.jsonl has a line for each student, OUTPUT/table.md the comparison.
"""

import argparse
import dataclasses
import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

import synthetic_table
from recipe import QUICK, Settings, objectives
from stages import Experiment, fix, read_captions, run_student, sample_oracle, train_oracle
from tvd_gen.errors import TvdGenError


def say(line: str) -> None:
    """A line of news, at once."""
    print(line, flush=True)


def quiet(_: str) -> None:
    """No news."""


def one_student(experiment: Experiment, name: str, seed: int) -> None:
    """A student in a process of its own, or in this one."""
    torch.set_num_threads(1)
    run_student(experiment, name, seed, quiet)


def run_students(experiment: Experiment, wanted: Sequence[tuple[str, int]], jobs: int) -> None:
    """Train and measure those that have no figures yet, `jobs` at a time."""
    left = [each for each in wanted if not (experiment.student(*each) / "figures.json").exists()]
    if jobs == 1:
        for done, each in enumerate(left, start=1):
            one_student(experiment, *each)
            say(f"{done} of {len(left)}: {each[0]}, seed {each[1]}")
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        runs = {pool.submit(one_student, experiment, *each): each for each in left}
        try:
            for done, run in enumerate(as_completed(runs), start=1):
                run.result()
                say(f"{done} of {len(left)}: {runs[run][0]}, seed {runs[run][1]}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run(
    experiment: Experiment,
    captions: Path,
    validation: Path,
    wanted: Sequence[tuple[str, int]],
    jobs: int,
) -> str:
    """All stages that are not done; the table."""
    fix(experiment, captions, validation)
    read_captions(experiment, captions, validation)
    train_oracle(experiment, say)
    sample_oracle(experiment, say)
    run_students(experiment, wanted, jobs)
    return synthetic_table.write(experiment.root, json.loads(experiment.own.read_text())["figures"])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    known = [*objectives()]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/synthetic"))
    parser.add_argument("--objectives", nargs="+", choices=known, default=known, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--epochs", type=int, help="of a student; published: 100")
    parser.add_argument(
        "--patience", type=int, help="stop after so many evaluations without a best"
    )
    parser.add_argument("--jobs", type=int, default=1, help="students at a time, a core each")
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print the table."""
    given = parse(arguments)
    settings = QUICK if given.quick else Settings()
    changes = {"epochs": given.epochs, "patience": given.patience}
    settings = dataclasses.replace(settings, **{k: v for k, v in changes.items() if v is not None})
    experiment = Experiment(given.output, settings)
    # seed by seed: a stopped experiment has whole pairs
    wanted = [(name, seed) for seed in given.seeds for name in given.objectives]
    try:
        say("\n" + run(experiment, given.captions, given.validation, wanted, given.jobs))
    except TvdGenError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
