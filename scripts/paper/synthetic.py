"""The synthetic experiment: students of a known oracle, one for each objective and seed.

    python scripts/paper/synthetic.py --captions train.txt --validation valid.txt
    python scripts/paper/synthetic.py ... --objectives ce tailr-1e-07 --seeds 1 2 3 --jobs 2
    python scripts/paper/synthetic.py --quick          # minutes; its figures mean nothing

An LSTM that was trained on captions, one a line, is the oracle. Students learn from its sentences
and are measured against it: both distributions are known. A seed has an oracle of its own, so that
seeds can be made on different days and differences are not one oracle's. The same command goes on
where it was stopped. OUTPUT/results.jsonl has a line for each student, OUTPUT/table.md the
comparison.
"""

import argparse
import dataclasses
import gzip
import json
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import torch

import synthetic_table
from arguments import count
from recipe import QUICK, Settings, needs_ce, objectives
from side_by_side import ProcessDied, side_by_side
from stages import (
    Experiment,
    fix,
    is_measured,
    read_captions,
    run_student,
    sample_oracle,
    train_oracle,
)
from tvd_gen.data.corpora import corpus_files
from tvd_gen.errors import NonFiniteError, TvdGenError
from tvd_gen.run.folder import write_text
from tvd_gen.run.training import has_bf16


def say(line: str) -> None:
    """A line of news, at once."""
    print(line, flush=True)


def quiet(_: str) -> None:
    """No news."""


def one_student(experiment: Experiment, name: str) -> str | None:
    """A student, on one core; what went wrong, if it is this student's own fault."""
    torch.set_num_threads(1)
    try:
        run_student(experiment, name, quiet)
    except NonFiniteError as error:  # an objective may well diverge
        return f"{name}, seed {experiment.seed}: {error}"
    return None


def run_students(experiment: Experiment, names: Sequence[str], jobs: int) -> list[str]:
    """Train and measure those that have no figures yet, `jobs` at a time; the ones that failed.

    Those that look at the student of cross-entropy come after it.
    """
    after = [name for name in names if needs_ce(name)]
    first = [name for name in names if name not in after]
    if after and "ce" not in first:
        first = ["ce", *first]
    return [fault for part in (first, after) for fault in _run_part(experiment, part, jobs)]


def _run_part(experiment: Experiment, names: Sequence[str], jobs: int) -> list[str]:
    left = [name for name in names if not is_measured(experiment, name)]
    faults = []
    with closing(side_by_side(partial(one_student, experiment), left, jobs)) as students:
        for done, (name, fault) in enumerate(students, start=1):
            say(f"seed {experiment.seed}, {done} of {len(left)}: {fault or name}")
            faults += [fault] if fault else []
    return faults


def run(
    output: Path,
    settings: Settings,
    captions: Path,
    validation: Path,
    names: Sequence[str],
    seeds: Sequence[int],
    jobs: int,
) -> tuple[str, list[str]]:
    """All stages that are not done; the table, and the students that failed."""
    faults = []
    for seed in seeds:  # a stopped experiment has whole seeds
        experiment = Experiment(output / f"seed-{seed}", settings, seed)
        fix(experiment, captions, validation)
        read_captions(experiment, captions, validation)
        train_oracle(experiment, say)
        sample_oracle(experiment, say)
        faults += run_students(experiment, names, jobs)
    return synthetic_table.write(output), faults


def shipped_captions(output: Path) -> tuple[Path, Path]:
    """Short texts for want of captions: the synopses of Debian's packages, as files of lines."""
    output.mkdir(parents=True, exist_ok=True)
    made = []
    for split, file in corpus_files("debian-descriptions").items():
        if split == "test":
            continue
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            texts = [" ".join(json.loads(line)["target"].split()) for line in lines]
        made.append(output / f"synopses-{split}.txt")
        write_text(made[-1], "".join(f"{text}\n" for text in texts))
    train, validation = made
    return train, validation


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    known = [*objectives()]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=Path, help="default: synopses that ship with tvd-gen")
    parser.add_argument("--validation", type=Path)
    parser.add_argument(
        "--output", type=Path, help="default: runs/synthetic, with --quick runs/synthetic-quick"
    )
    parser.add_argument("--objectives", nargs="+", choices=known, default=known, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=count, default=[1, 2, 3, 4, 5])
    parser.add_argument("--epochs", type=count, help="of a student; published: 100")
    parser.add_argument(
        "--patience", type=count, help="stop after so many evaluations without a best"
    )
    parser.add_argument("--float32", action="store_true", help="in place of bfloat16")
    parser.add_argument("--jobs", type=count, default=1, help="students at a time, a core each")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    given.output = given.output or Path("runs/synthetic-quick" if given.quick else "runs/synthetic")
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print the table."""
    given = parse(arguments)
    settings = QUICK if given.quick else Settings()
    changes = {"epochs": given.epochs, "patience": given.patience}
    settings = dataclasses.replace(settings, **{k: v for k, v in changes.items() if v is not None})
    fast = torch.accelerator.is_available() or has_bf16()
    if not fast and not given.float32:  # the records say what was used, and are not mixed
        say("float32 in place of bfloat16, for which this processor has no fast instructions")
    settings = dataclasses.replace(settings, bf16=fast and not given.float32)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through every finally
    try:
        files = given.captions, given.validation
        if files == (None, None):
            files = shipped_captions(given.output)
        elif None in files:
            sys.exit("give both --captions and --validation, or neither")
        for file in files:
            if not file.is_file():
                told = "is a folder" if file.is_dir() else "no such file"
                sys.exit(f"{file}: {told}; captions are texts, one a line")
        wanted = given.objectives, given.seeds, given.jobs
        table, faults = run(given.output, settings, *files, *wanted)
    except (TvdGenError, ProcessDied, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    say(f"\n{table}")
    if faults:
        sys.exit("\n".join(["without figures:", *faults]))


if __name__ == "__main__":
    main()
