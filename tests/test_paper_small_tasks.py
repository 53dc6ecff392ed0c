"""The paper's tasks made small: what is tuned, run, resumed and told; how the data are split."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import pytest

import compare
import small_plans
import small_tasks
from small_data import tatoeba
from tvd_gen.config import load_config
from tvd_gen.errors import NonFiniteError
from tvd_gen.objectives import OBJECTIVES

TINY = small_plans.Size(16, 16, 1, 300, {"train": 60, "validation": 6, "test": 6})
TUNED = [
    small_plans.Sweep("ce", "ce"),
    small_plans.Sweep("tailr", "tailr", "gamma", (0.01, 0.5)),
    small_plans.Sweep("gold", "gold", "min_weight", (0.2,), after_ce=True),
]


def settings(output, seeds=(1, 2), steps=2):
    wanted = dict.fromkeys(small_plans.TASKS, steps)
    return small_plans.Settings(output, seeds, TINY, wanted, small_plans.BUILT_IN)


@pytest.fixture
def said():
    return []


def test_objectives_are_tuned_alike_then_run_with_every_seed(tmp_path, said, monkeypatch, capsys):
    """The whole way, in this process; then again, where everything is there already."""
    made, task = settings(tmp_path), small_plans.TRANSLATION
    results = small_tasks.run_all(made, [task], TUNED, 1, said.append)
    runs = [*results.lines]
    value = small_tasks.best(made, task, TUNED[1], results)
    assert sorted(runs) == sorted(
        f"translation/{name}-seed{seed}"
        for name, seeds in {
            "ce": (1, 2), "tailr-0.01": (1, 2)[: 1 + (value == 0.01)],
            "tailr-0.5": (1, 2)[: 1 + (value == 0.5)], "gold-0.2": (1, 2),
        }.items()
        for seed in seeds
    )  # fmt: skip
    for name in runs:
        assert (tmp_path / name / "predictions.jsonl").exists()
        assert not (tmp_path / name / "checkpoints").exists()
        settled = json.loads((tmp_path / name / "evaluation.json").read_text())
        assert settled["evaluation"]["split"] == "test"
    monkeypatch.setattr(small_tasks, "finish", lambda run: pytest.fail(f"{run.folder} again"))
    small_tasks.run_all(made, [task], TUNED, 1, said.append)
    wider = dataclasses.replace(made, size=dataclasses.replace(TINY, width=24))
    with pytest.raises(ValueError, match="made with other settings"):
        small_tasks.run_all(wider, [task], TUNED, 1, said.append)

    text = small_tasks.report(made, [task], TUNED, results)
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")] == [
        "| objective", "| ---", "| ce", "| tailr", "| gold*",
    ]  # fmt: skip
    tuned = text.splitlines()[5].split(" | ")
    assert float(tuned[3].split(" ")[0]) == pytest.approx(
        sum(results.lines[f"translation/tailr-{value:g}-seed{n}"]["validation"]["bleu"]
            for n in (1, 2)) / 2, abs=6e-3,
    )  # fmt: skip
    command = next(line for line in text.splitlines() if line.startswith("python "))
    monkeypatch.setattr(sys, "argv", command.split()[1:])
    compare.main()  # the seeds of each objective are one group, gold's each after its own ce
    for seed in (1, 2):
        begun = load_config(tmp_path / "translation" / f"gold-0.2-seed{seed}" / "config.yaml")
        assert begun.model.pretrained == str(tmp_path / "translation" / f"ce-seed{seed}" / "model")
    rows = [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines()[2:5]]
    assert [row[1] for row in rows] == ["1, 2"] * 3


def test_what_is_finished_survives_a_fault(tmp_path, said, monkeypatch):
    """A campaign of hours that is stopped by one run must not begin anew."""
    made, finish, asked = settings(tmp_path, seeds=(1,)), small_tasks.finish, []

    def fragile(run):
        asked.append(run.folder.name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return finish(run)

    monkeypatch.setattr(small_tasks, "finish", fragile)
    task = small_plans.SUMMARIZATION
    with pytest.raises(KeyboardInterrupt):
        small_tasks.run_all(made, [task], TUNED[:2], 1, said.append)
    small_tasks.run_all(made, [task], TUNED[:2], 1, said.append)
    assert asked == ["lead", "ce-seed1", *["tailr-0.01-seed1"] * 2, "tailr-0.5-seed1"]
    leads = [json.loads(x) for x in (tmp_path / "leads" / "test.jsonl").read_text().splitlines()]
    assert len(leads) == TINY.rows["test"]
    assert all(row["source"].startswith(row["target"][:20]) for row in leads)
    begun = load_config(tmp_path / "summarization" / "ce-seed1" / "config.yaml").model
    assert begun.pretrained == str(tmp_path / "summarization" / "lead" / "model")


def test_an_objective_that_diverges_is_told_and_stops_no_other(tmp_path, said, monkeypatch):
    made, task, train = settings(tmp_path), small_plans.TRANSLATION, small_tasks.train

    def diverges(config, folder, **more):
        if "tailr-0.5" in folder.name or folder.name == "ce-seed2":
            raise NonFiniteError("step 1: the loss is nan")
        return train(config, folder, **more)

    monkeypatch.setattr(small_tasks, "train", diverges)
    for _ in range(2):  # the second time there is nothing left to do
        results = small_tasks.run_all(made, [task], TUNED[:2], 1, said.append)
        monkeypatch.setattr(small_tasks, "finish", lambda run: pytest.fail(f"{run.folder} again"))
    assert "3/3 translation/tailr-0.5-seed1: step 1: the loss is nan" in said
    assert small_tasks.best(made, task, TUNED[1], results) == 0.01
    rows = small_tasks.report(made, [task], TUNED[:2], results).splitlines()
    assert rows[4].startswith("| ce |  | 1, 1 diverged |")
    assert rows[5].startswith("| tailr | 0.01 | 2 |")
    assert "ce-seed2" not in rows[-1]


def test_other_data_of_the_same_name_is_noticed(tmp_path, said):
    files = {split: str(tmp_path / f"{split}.jsonl") for split in small_tasks.SPLITS}
    for file in files.values():
        row = {"source": "ein roter Hund", "target": "a red dog"}
        Path(file).write_text("".join(json.dumps(row) + "\n" for _ in range(20)))
    made = settings(tmp_path / "out", seeds=(1,))
    made = dataclasses.replace(made, data={"translation": {"files": files}})
    run = small_plans.plan(made, small_plans.TRANSLATION, TUNED[0], None, 1)
    before = small_tasks.fingerprint(run)
    small_tasks.hash_of.cache_clear()
    assert small_tasks.fingerprint(run) == before
    Path(files["test"]).write_text(Path(files["test"]).read_text().replace("red", "blue"))
    small_tasks.hash_of.cache_clear()
    assert small_tasks.fingerprint(run) != before


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    whole = json.dumps({"run": "translation/ce-seed1", "steps": 5}) + "\n"
    file = tmp_path / "results.jsonl"
    for text, kept in ((whole + '{"run": "tra', whole), ('{"run"', ""), (whole, whole)):
        file.write_text(text)
        assert list(small_tasks.Results(file).lines) == ["translation/ce-seed1"][: bool(kept)]
        assert file.read_text() == kept
    file.write_text('{"objective": "ce", "seed": 1}\n')  # synthetic.py's
    with pytest.raises(ValueError, match=r"results.jsonl:1: has not run, steps"):
        small_tasks.Results(file)


def test_results_of_another_budget_are_refused(tmp_path, said):
    line = {"run": "translation/ce-seed1", "task": "translation", "steps": 5}
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match="has 5 steps a run; give --budget 5, or take another"):
        small_tasks.run_all(settings(tmp_path), [small_plans.TRANSLATION], TUNED, 1, said.append)


def test_a_screening_runs_each_once_and_a_full_run_takes_it_over(tmp_path, monkeypatch):
    ran = []

    def finish(run):
        ran.append((run.task, run.label, run.value, run.seed))
        score = {"validation": dict.fromkeys(small_plans.TRANSLATION.columns, 1.0)}
        score["test"] = score["validation"]
        return {
            "run": f"{run.task}/{run.folder.name}", "task": run.task, "objective": run.label,
            "value": run.value, "seed": run.seed, "steps": run.tree["training"]["max_steps"],
            "config": small_tasks.fingerprint(run), "seconds": 1, "cpu_seconds": 1, **score,
        }  # fmt: skip

    monkeypatch.setattr(small_tasks, "finish", finish)
    words = ["--tasks", "translation", "--seeds", "3", "4", "--output", str(tmp_path), "--screen"]
    small_tasks.main(words)
    middles = [(sweep.label, *(sweep.middle or (None,))) for sweep in small_plans.SWEEPS]
    assert sorted(ran, key=str) == sorted((("translation", *m, 3) for m in middles), key=str)
    assert ("translation", "tailr", 0.1, 3) in ran
    small_tasks.main([*words[:-1], "--objectives", "tailr"])
    assert sorted(run[2:] for run in ran[len(middles) :]) == [(0.01, 3), (0.01, 4), (0.8, 3)]


@pytest.mark.parametrize("task", small_plans.TASKS.values(), ids=small_plans.TASKS)
@pytest.mark.parametrize("sweep", small_plans.SWEEPS, ids=lambda sweep: sweep.label)
def test_every_run_of_the_table_is_a_config(tmp_path, task, sweep):
    """A name that is wrong in the grid would be found after hours."""
    for value in sweep.values:
        run = small_plans.plan(settings(tmp_path), task, sweep, value, 1)
        file = tmp_path / "run.yaml"
        file.write_text(json.dumps(run.tree))
        objective, _, additions = load_config(file).objective.build()
        found = additions | vars(objective)
        assert sweep.tuned is None or found[sweep.tuned] == value
        assert task.chosen_by in task.columns


def test_the_table_has_every_objective():
    """One that is added must be compared too."""
    assert {sweep.objective for sweep in small_plans.SWEEPS} == set(OBJECTIVES)


def test_the_published_floors_are_tailrs(tmp_path):
    for task, floor in ((small_plans.TRANSLATION, 0.3), (small_plans.SUMMARIZATION, 0.2)):
        run = small_plans.plan(settings(tmp_path), task, small_plans.SWEEPS[2], 0.1, 1)
        assert run.tree["objective"] == {"name": "tailr", "gamma": 0.1, "min_weight": floor}


def sentences(tmp_path):
    lines = [f"English {i}\tDeutsch {i}" for i in range(40)]
    lines += [f"English {i}\tAnders {i}" for i in range(40)]
    lines += [f"Also {i}\tDeutsch {i}" for i in range(10)]  # one German, two English
    lines += [f"english {i}!\tANDERS {i + 1}." for i in range(0, 40, 2)]  # but for case and marks
    lines += ["much too long to be of any use at all\tzu lang"]
    file = tmp_path / "pairs.tsv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_no_sentence_of_tatoeba_is_in_two_splits(tmp_path):
    """It has many translations of one sentence: by lines, most test sentences would be known."""
    splits = tatoeba(sentences(tmp_path), 4, {"validation": 8, "test": 8})
    for field in ("source", "target"):
        bare = [{row[field].lower().rstrip("!.") for row in rows} for rows in splits.values()]
        assert all(bare)
        assert not any(one & other for one, other in itertools.combinations(bare, 2))
    assert len({row["target"].lower().rstrip("!") for row in splits["train"]}) == 50 - 16
    again = tatoeba(sentences(tmp_path), 4, {"validation": 8, "test": 8})
    assert splits == again
    assert splits != tatoeba(sentences(tmp_path), 4, {"validation": 8, "test": 8}, seed=1)


def test_a_line_without_a_translation_is_named(tmp_path):
    file = tmp_path / "pairs.tsv"
    file.write_text("one\teins\ntwo\n")
    with pytest.raises(ValueError, match=r"pairs.tsv:2: needs English TAB German"):
        tatoeba(file, 4, {"validation": 1, "test": 1})


def test_the_command_line_quick_in_this_process(tmp_path, capsys):
    words = ["--quick", "--tasks", "translation", "--objectives", "ce", "--budget", "2"]
    small_tasks.main([*words, "--output", str(tmp_path)])
    first = capsys.readouterr()
    assert "1/1 translation/ce-seed1" in first.err
    assert "## translation, 2 steps" in first.out
    small_tasks.main([*words, "--output", str(tmp_path), "--table"])
    assert capsys.readouterr() == (first.out, "")
    assert (tmp_path / "small_tasks.md").read_text() == first.out[:-1]


def test_a_user_s_own_pairs_and_descriptions(tmp_path, capsys):
    """The long commands of RESULTS.md, small: --tatoeba, --descriptions, --screen."""
    pairs, folder = tmp_path / "deu.txt", tmp_path / "debian"
    folder.mkdir()
    pairs.write_text("".join(f"tea number {i}\tTee Nummer {i}\n" for i in range(1900)))
    for split in ("train", "valid", "test"):
        rows = [{"text": f"{split} {i} is tea. It is hot.", "summary": "tea"} for i in range(40)]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ["--quick", "--screen", "--budget", "2", "--objectives", "ce", "tailr"]
    words += ["--tatoeba", str(pairs), "--descriptions", str(folder), "--output", str(tmp_path)]
    small_tasks.main(words)
    out = capsys.readouterr().out
    for task in ("translation", "summarization"):
        assert f"## {task}, 2 steps" in out
        assert (tmp_path / task / "tailr-0.1-seed1/predictions.jsonl").exists()
    predictions = (tmp_path / "translation/ce-seed1/predictions.jsonl").read_text()
    assert json.loads(predictions.splitlines()[0])["source"].startswith("Tee Nummer")
    pairs.write_bytes(b"one\teins\ntwo\tzw\xf6lf\n")
    with pytest.raises(SystemExit, match=r"deu.txt:2: no UTF-8"):
        small_tasks.main(words)


def test_a_table_of_nothing_is_no_table(tmp_path):
    words = ["--quick", "--output", str(tmp_path / "out"), "--table"]
    with pytest.raises(SystemExit, match="no such file; there are no finished runs"):
        small_tasks.main(words)
    assert not (tmp_path / "out").exists()
    kept = tmp_path / "kept.jsonl"
    kept.write_text('{"run": "translation/ce-seed1", "steps": 12}\n')
    with pytest.raises(SystemExit, match=r"kept.jsonl: has no finished runs of these"):
        small_tasks.main([*words, str(kept), "--tasks", "summarization"])
    kept.write_text("{\n")
    with pytest.raises(SystemExit, match=r"kept.jsonl:1: no JSON"):
        small_tasks.main([*words, str(kept)])
    kept.write_text('{"run": "lead", "steps": 12}')  # whole, but for the line's end
    before = kept.read_bytes()
    with pytest.raises(SystemExit, match=r"kept.jsonl: has no finished runs of these"):
        small_tasks.main([*words, str(kept)])
    assert kept.read_bytes() == before, "it only prints"


@pytest.mark.parametrize("option", ["--jobs", "--budget", "--seeds"])
def test_a_count_of_nothing_is_refused(option, tmp_path, capsys):
    """No jobs did nothing, and told of an objective that is not tuned; 0 steps were the default."""
    with pytest.raises(SystemExit, match="2"):
        small_tasks.main([option, "0", "--output", str(tmp_path / "out")])
    assert f"argument {option}: 0 is no whole number from 1 on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
