"""The paper's tasks at the size of two cores: objectives tuned alike, then trained with seeds.

    python scripts/paper/small_tasks.py --jobs 2 --tatoeba deu.txt    # hours; resumable
    python scripts/paper/small_tasks.py --screen ...                  # each once: which to tune?
    python scripts/paper/small_tasks.py --quick                       # minutes: does it all run?
    python scripts/paper/small_tasks.py --table [results.jsonl]       # of what is finished

Translation, German to English, and summarization, a package's description to its synopsis, by small
Transformers from scratch. Those that summarize first learn to give the description's first
sentence: all begin with one such model, as the paper's begin with BART, for a few minutes of
synopses alone teach no model to read. Each of SWEEPS is an objective and one number of it, tuned
over its grid with the first seed by the validation set's BLEU or ROUGE-L; then it is trained with
every seed. (TaiLr has two sweeps, for its second grid came after the first.)
--screen stops after one run of each, at the middle of its grid, which a full run takes over.
Each run is a run folder with predictions.jsonl of the test set and a line in results.jsonl; the
same command goes on where it was stopped, and leaves out what is finished. Objectives that need a
trained model (a * behind their name) start from cross-entropy's of their seed, and so are trained
twice as long; `ce continued` is their control.

Without --tatoeba (English TAB German; tatoeba.org, manythings.org/anki) translation is of the
package descriptions that ship; --descriptions names a folder of {train,valid,test}.jsonl with
`text` and `summary` in place of those that ship.
"""

import argparse
import hashlib
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: one core for each job
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from arguments import count
from provenance import made_with
from side_by_side import ProcessDied, side_by_side
from significance import mean_sd
from small_data import SPLITS, files_of, tatoeba, write_leads, write_splits
from small_plans import (
    BUILT_IN,
    MOST_WORDS,
    QUICK,
    QUICK_GRID,
    QUICK_STEPS,
    SIZES,
    SWEEPS,
    TASKS,
    Plan,
    Settings,
    Size,
    Sweep,
    Task,
    Tree,
    data_section,
    plan,
    plan_lead,
)
from tables import number, read_lines, table
from tvd_gen.config import load_config
from tvd_gen.data.readers import source_file
from tvd_gen.errors import NonFiniteError, TvdGenError
from tvd_gen.run import evaluate, train
from tvd_gen.run.folder import RunFolder, write_text
from tvd_gen.strict_json import to_json

Say = Callable[[str], None]


def finish(run: Plan) -> Tree:
    """Train and evaluate a run, or what of it is left to do; its line of results.jsonl."""
    torch.set_num_threads(1)
    file = run.folder.parent / f"{run.folder.name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, to_json(run.tree, indent=1) + "\n")
    line = {
        "run": str(Path(run.task) / run.folder.name),
        "task": run.task,
        "objective": run.label,
        "value": run.value,
        "seed": run.seed,
        "steps": run.tree["training"]["max_steps"],
        "config": fingerprint(run),
        "versions": made_with(),
    }
    began = time.monotonic(), time.process_time()
    try:
        train(load_config(file), run.folder, say=_quiet, progress=_quiet)
    except NonFiniteError as error:  # an objective may well diverge
        return line | {"diverged": str(error)}
    trained = time.monotonic(), time.process_time()
    numbers = {
        split: evaluate(
            run.folder, overrides={"evaluation.split": split}, say=_quiet, progress=_quiet
        )
        for split in SPLITS[1:]  # test last: predictions.jsonl is of it
    }
    shutil.rmtree(RunFolder(run.folder).checkpoints, ignore_errors=True)
    spent = {"seconds": trained[0] - began[0], "cpu_seconds": trained[1] - began[1]}
    return line | spent | numbers


def _quiet(*_: Any) -> None:
    return None


# --- many runs ---------------------------------------------------------------------------------


def fingerprint(run: Plan) -> str:
    """Of all that decides a run's numbers, the files of its data included."""
    made = hashlib.sha256(to_json(run.tree).encode())
    for file in run.tree["data"].get("files", {}).values():
        made.update(hash_of(file).encode())
    return made.hexdigest()[:16]


@lru_cache(maxsize=16)
def hash_of(file: str) -> str:
    """Of a file that all runs of a campaign read."""
    return source_file(file).sha256


class NotTuned(ValueError):
    """An objective some of whose values have not been tried."""


class Results:
    """results.jsonl: a line for each finished run, the newest last."""

    def __init__(self, file: Path, *, mend: bool = True) -> None:
        """mend: take a line that was cut off out of the file."""
        self.file = file
        if mend and self.file.exists():
            whole, _, cut = self.file.read_bytes().rpartition(b"\n")
            if cut:  # a full disk, a power loss: its run is measured again
                write_text(self.file, f"{whole.decode()}\n" if whole else "")
        there = self.file.exists() and self.file.stat().st_size
        lines = read_lines(self.file, ("run", "steps")) if there else []
        self.lines: dict[str, Tree] = {line["run"]: line for line in lines}

    def add(self, line: Tree) -> None:
        """Keep a line, on the disk at once."""
        self.lines[line["run"]] = line
        with self.file.open("a", encoding="utf-8") as file:
            file.write(to_json(line) + "\n")

    def of(self, run: Plan) -> Tree | None:
        """The line of a run; ValueError where it was made with another number of steps."""
        line = self.lines.get(str(Path(run.task) / run.folder.name))
        if line and line["steps"] != run.tree["training"]["max_steps"]:
            raise ValueError(
                f"{self.file}: has {line['steps']} steps a run; give --budget {line['steps']}, "
                "or take another --output"
            )
        return line


def complete(runs: Sequence[Plan], results: Results, jobs: int, say: Say) -> None:
    """Finish what is not finished, so many at a time; ends with the first fault."""
    todo = []
    for run in runs:
        line = results.of(run)
        if line is None:
            todo.append(run)
        elif line["config"] != fingerprint(run):
            raise ValueError(f"{line['run']}: was made with other settings; take another --output")
    with closing(side_by_side(finish, todo, jobs)) as finished:
        for done, (_, line) in enumerate(finished, start=1):
            results.add(line)
            say(f"{done}/{len(todo)} {line['run']}: {_told(line)}")


def _told(line: Tree) -> str:
    return line.get("diverged") or f"{line['seconds']:.0f} s"


def best(settings: Settings, task: Task, sweep: Sweep, results: Results) -> float | None:
    """The value with the best validation score, of the first seed; the first of equal ones.

    NotTuned where some value was not tried.
    """
    scores = {}
    for value in sweep.values:
        line = results.of(plan(settings, task, sweep, value, settings.seeds[0]))
        if line is None:
            raise NotTuned(f"{task.name}: {sweep.label} is not tuned yet")
        scores[value] = -math.inf if "diverged" in line else line["validation"][task.chosen_by]
    return max(scores, key=lambda value: scores[value])


def run_all(
    settings: Settings, tasks: Sequence[Task], sweeps: Sequence[Sweep], jobs: int, say: Say
) -> Results:
    """What others begin with first, the leads and cross-entropy; then every grid; every seed."""
    settings.output.mkdir(parents=True, exist_ok=True)
    results, seeds = Results(settings.output / "results.jsonl"), settings.seeds
    for task in tasks:
        if task.lead_steps:
            place = data_section(settings, task, settings.data[task.name])
            write_leads(place, settings.output / "leads")
            complete([plan_lead(settings, task)], results, jobs, say)
    if any(sweep.looks_at_ce or sweep.after_ce for sweep in sweeps):
        ce = [plan(settings, task, SWEEPS[0], None, seed) for task in tasks for seed in seeds]
        complete(ce, results, jobs, say)
    grids = [
        plan(settings, task, sweep, value, seeds[0])
        for task in tasks
        for sweep in sweeps
        for value in sweep.values
    ]
    complete(grids, results, jobs, say)
    tuned = [
        plan(settings, task, sweep, best(settings, task, sweep, results), seed)
        for task in tasks
        for sweep in sweeps
        for seed in seeds
    ]
    complete(tuned, results, jobs, say)
    return results


def recorded(place: Path) -> Results:
    """The results of an output folder or a results.jsonl, as they are; ValueError for none."""
    file = place / "results.jsonl" if place.is_dir() else place
    if not file.is_file():
        raise ValueError(f"{file}: no such file; there are no finished runs to tell of")
    return Results(file, mend=False)


# --- the table ---------------------------------------------------------------------------------


def report(
    settings: Settings, tasks: Sequence[Task], sweeps: Sequence[Sweep], results: Results
) -> str:
    """For each task a table of test metrics and, first, of what was tuned by; mean and standard
    deviation over the seeds."""
    parts = []
    for task in tasks:
        groups = [group for sweep in sweeps if (group := _tuned(settings, task, sweep, results))]
        if not groups:
            continue
        whole = [line["run"] for group in groups for line in group if "diverged" not in line]
        runs = [os.path.relpath(settings.output / run) for run in whole]
        parts += [
            f"## {task.name}, {groups[0][0]['steps']} steps\n",
            table(
                ["objective", "value", "seeds", f"valid. {task.chosen_by}", *task.columns, "cpu s"],
                [_row(task, group) for group in groups],
            ),
            f"\npython scripts/paper/compare.py {' '.join(runs)}\n",
        ]
    return "\n".join(parts)


def _tuned(settings: Settings, task: Task, sweep: Sweep, results: Results) -> list[Tree]:
    """The lines of the tuned value's runs that are finished; none before it is tuned."""
    try:
        value = best(settings, task, sweep, results)
    except NotTuned:
        return []
    runs = [plan(settings, task, sweep, value, seed) for seed in settings.seeds]
    return [line for run in runs if (line := results.of(run))]


def _row(task: Task, lines: Sequence[Tree]) -> list[str]:
    value, label = lines[0]["value"], lines[0]["objective"]
    starred = any(sweep.after_ce for sweep in SWEEPS if sweep.label == label)
    whole = [line for line in lines if "diverged" not in line]
    seeds = str(len(whole))
    if len(whole) < len(lines):
        seeds += f", {len(lines) - len(whole)} diverged"
    return [
        f"{label}*" if starred else label,
        "" if value is None else f"{value:g}",
        seeds,
        _spread([line["validation"][task.chosen_by] for line in whole]),
        *(_spread([line["test"][name] for line in whole]) for name in task.columns),
        number(mean_sd([line["cpu_seconds"] for line in whole])[0], 0) if whole else "",
    ]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, sd = mean_sd(values)
    digits = 2 if mean >= 1 else 3
    return number(mean, digits) + (f" ± {number(sd, digits)}" if len(values) > 1 else "")


# --- the command line --------------------------------------------------------------------------


def data_of(given: argparse.Namespace) -> dict[str, Tree]:
    """task -> the place of its rows; Tatoeba's are split and written into the output folder."""
    places = dict(BUILT_IN)
    if given.tatoeba:
        splits = tatoeba(given.tatoeba, MOST_WORDS, SIZES)
        write_splits(given.output / "tatoeba", splits)
        places["translation"] = {"files": files_of(given.output / "tatoeba")}
    if given.descriptions:
        folder = given.descriptions.absolute()
        files = {split: str(folder / f"{split}.jsonl") for split in SPLITS}
        files["validation"] = str(folder / "valid.jsonl")
        columns = {"source": "text", "target": "summary"}
        places["summarization"] = {"files": files, "columns": columns}
    return places


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    labels = [sweep.label for sweep in SWEEPS]
    made.add_argument("--tasks", nargs="+", choices=[*TASKS], default=[*TASKS])
    made.add_argument("--objectives", nargs="+", choices=labels, metavar="LABEL")
    made.add_argument("--tatoeba", type=Path, help="a file of English TAB German")
    made.add_argument("--descriptions", type=Path, help="a folder of descriptions")
    made.add_argument("--seeds", type=count, nargs="+", default=[1, 2, 3])
    made.add_argument("--budget", type=count, help="steps of each run; default: the task's")
    made.add_argument("--jobs", type=count, default=1, help="runs at a time, one thread each")
    made.add_argument(
        "--screen", action="store_true", help="each once, at its grid's middle: which to tune?"
    )
    made.add_argument("--quick", action="store_true", help="tiny models and data, a few steps")
    made.add_argument(
        "--table", nargs="?", const=True, metavar="FILE",
        help="only print what is finished, here or in another results.jsonl",
    )  # fmt: skip
    made.add_argument("--output", type=Path, help="default: runs/small_tasks, or .../quick")
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line, run, print the table."""
    given = options().parse_args(words)
    say: Say = _say
    tasks = [TASKS[name] for name in given.tasks]
    name = "runs/small_tasks/quick" if given.quick else "runs/small_tasks"
    given.output = (given.output or Path(name)).absolute()
    steps = {
        task.name: given.budget or (QUICK_STEPS if given.quick else task.steps) for task in tasks
    }
    size = QUICK if given.quick else Size()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through every finally
    seeds = tuple(given.seeds[:1] if given.quick or given.screen else given.seeds)
    try:
        places = BUILT_IN if given.table else data_of(given)
        settings = Settings(given.output, seeds, size, steps, places)
        labels = given.objectives
        sweeps = [each for each in SWEEPS if labels is None or each.label in labels]
        if given.quick:
            sweeps = [replace(each, grid=each.grid[:QUICK_GRID]) for each in sweeps]
        if given.screen:
            sweeps = [replace(each, grid=each.middle) for each in sweeps]
        if given.table:
            results = recorded(settings.output if given.table is True else Path(given.table))
        else:
            results = run_all(settings, tasks, sweeps, given.jobs, say)
        if not (text := report(settings, tasks, sweeps, results)):
            raise ValueError(f"{results.file}: has no finished runs of these tasks and objectives")
    except (TvdGenError, ProcessDied, ValueError, OSError) as fault:
        raise SystemExit(f"{type(fault).__name__}: {fault}") from fault
    if not given.table:
        write_text(given.output / "small_tasks.md", text)
    print(text)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
