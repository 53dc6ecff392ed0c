"""RESULTS.md's tables are what the lines in scripts/paper/results say, cell by cell."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import perturbation_seeds
import small_plans
import small_tasks
import synthetic_table
from significance import mean_sd, paired_t, sign_flip
from tables import number, read_lines

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "scripts/paper/results"
SECTIONS = {
    part.split("\n")[0].split(" (")[0]: part
    for part in re.split(r"^##+ ", (ROOT / "RESULTS.md").read_text("utf-8"), flags=re.M)
}
SYNTHETIC = {
    "The synthetic oracle experiment": "synthetic.jsonl",
    "The other six, and GOLD as published": "synthetic_rest.jsonl",
}
SMALL = {
    "translation": "Translation at the size of two cores",
    "summarization": "Summarization at the size of two cores",
}
TUNED = {
    "translation": ("ce", "tailr", "focal", "confidence_penalty", "eaft"),
    "summarization": ("ce", "tailr", "gce", "focal", "unlikelihood", "confidence_penalty", "eaft"),
}
SECOND = ("ce", "ce continued", "gold_p", "asft", "gold_p lagged")
ONCE_THIRD = ("ce", "ce continued", "gold lagged", "gold_p lagged")
NEAR_0 = ("ce", "tailr near 0")


def rows(text):
    lines = {line for line in text.splitlines() if line.startswith("| ")}
    return {line for line in lines if not line.startswith("| ---")}


@pytest.mark.parametrize("section", SYNTHETIC)
def test_the_synthetic_tables(section):
    lines = read_lines(KEPT / SYNTHETIC[section], ("objective", "seed", "figures"))
    made = rows(synthetic_table.render(lines))
    assert len(made) > 20
    left = rows(SECTIONS[section]) - made
    assert not made - rows(SECTIONS[section])
    assert all(line.startswith("| oracle | 5 ") for line in left)  # kept with no lines


def test_the_seeds_that_repeat_the_synthetic_tables():
    """Differences of TVD within 0.01 of the tables' means; below 0 only cross-entropy's own."""
    lines = read_lines(KEPT / "synthetic_third.jsonl", ("objective", "seed", "figures"))
    found, told = by_objective(lines), set()
    for file in SYNTHETIC.values():
        for name, own in by_objective(read_lines(KEPT / file, ("objective",))).items():
            told.add(name)
            assert found[name] == pytest.approx(own, abs=0.01), name
    assert found.keys() == told
    assert len(found) == 27  # beside cross-entropy
    below = {name: round(gap, 3) for name, gap in found.items() if gap < 0}
    assert below == {"ce-continued": -0.001}


def by_objective(lines):
    """Mean difference of TVD to cross-entropy's."""
    seeds = {(each["objective"], each["seed"]): each["figures"].get("tvd") for each in lines}
    gaps = {}
    for (name, seed), tvd in seeds.items():
        if name not in ("ce", "oracle"):
            gaps.setdefault(name, []).append(tvd - seeds["ce", seed])
    return {name: mean_sd(own)[0] for name, own in gaps.items()}


def test_the_table_of_spoilt_sentences():
    seeds = perturbation_seeds.by_seed(perturbation_seeds.read([KEPT / "spoilt.jsonl"]))
    made = perturbation_seeds.render_of(seeds, [5], "oracle", "rise")
    assert len(rows(made)) == 1 + 29
    assert rows(made) == rows(SECTIONS["All twenty-eight"])


def small(file, task, labels=None, screen=False):
    """The table of small_tasks.py --table FILE."""
    sweeps = [each for each in small_plans.SWEEPS if labels is None or each.label in labels]
    if screen:
        sweeps = [replace(each, grid=each.middle) for each in sweeps]
    settings = small_plans.Settings(
        Path("runs/small_tasks"),
        (1,) if screen else (1, 2, 3),
        small_plans.Size(),
        dict.fromkeys(small_plans.TASKS, 2500),
        small_plans.BUILT_IN,
    )
    results = small_tasks.Results(KEPT / file)
    return rows(small_tasks.report(settings, [small_plans.TASKS[task]], sweeps, results))


@pytest.mark.parametrize("task", SMALL)
def test_the_small_tasks_tables(task):
    made = small("small_tasks.jsonl", task, screen=True)
    made |= small("small_tasks.jsonl", task, TUNED[task])
    if task == "summarization":
        made |= small("small_tasks_second.jsonl", task, SECOND)
    else:
        made |= small("small_tasks_third.jsonl", task, ONCE_THIRD, screen=True)
        made |= small("small_tasks_third.jsonl", task, NEAR_0)
    assert len(made) == {"translation": 1 + 20 + 5 + 4 + 2, "summarization": 1 + 20 + 7 + 5}[task]
    assert {row for row in rows(SECTIONS[SMALL[task]]) if len(row.split("|")) > 10} == made


@pytest.mark.parametrize("task", SMALL)
def test_the_differences_of_small_tasks(task):
    """Difference, seeds and both p over seeds; the bootstrap's cells need the predictions."""
    found = 0
    for row in rows(SECTIONS[SMALL[task]]):
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        if len(cells) != 8 or cells[5] != "3":
            continue
        own, base, file = group(cells[0], task)
        lines = [json.loads(line) for line in (KEPT / file).read_text("utf-8").splitlines()]
        ours, theirs = (
            {each["seed"]: each["test"][cells[1]] for each in lines if wanted(each)}
            for wanted in (own, base)
        )
        assert sorted(ours) == sorted(theirs) == [1, 2, 3]
        differences = [ours[seed] - theirs[seed] for seed in ours]
        gap = mean_sd(list(ours.values()))[0] - mean_sd(list(theirs.values()))[0]
        tests = [number(each(differences), 4) for each in (paired_t, sign_flip)]
        assert [cells[2], *cells[6:]] == [f"{gap:+.3f}", *tests], row
        found += 1
    assert found == {"translation": 25, "summarization": 45}[task]


def group(label, task):
    """What a run must be to belong to the label, and to its base; the file of both."""
    name, *settings = label.split(" ")
    values = dict(each.split("=") for each in settings)
    lagged = "weights_from" in values
    (sweep,) = (
        each
        for each in small_plans.SWEEPS
        if each.objective == name
        and (each.fixed == small_plans.LAGGED) == lagged
        and float(values.get(each.tuned, "nan")) in each.grid
    )
    value = float(values[sweep.tuned])
    base = "ce continued" if sweep.after_ce else "ce"
    file = "small_tasks_second.jsonl" if sweep.after_ce else "small_tasks.jsonl"
    if sweep.label in NEAR_0:
        file = "small_tasks_third.jsonl"
    return (
        lambda line: (line["task"], line["objective"], line["value"]) == (task, sweep.label, value),
        lambda line: (line["task"], line["objective"]) == (task, base),
        file,
    )
