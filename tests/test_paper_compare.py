"""Runs side by side: the metrics as sums, the groups, the tests, the command."""

import json
import re
import sys

import numpy as np
import pytest
import yaml
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest
from tiny import QUIET, config, text

import compare
from significance import bootstrap, difference
from tvd_gen.config import dump_config
from tvd_gen.errors import ConfigError
from tvd_gen.metrics import text_metrics
from tvd_gen.run import evaluate, train

GROUPS = ["bleu", "chrf", "rouge", "repetition", "diversity"]
SOURCES = [text(i, 6) for i in range(120)]
REFERENCES = [text(2 * i, 5 + i % 7) for i in range(120)]


def predictions(share, seed):
    """The references with that share of their words wrong."""
    random = np.random.default_rng(seed)
    return [
        " ".join(word if random.random() > share else "wrong" for word in line.split())
        for line in REFERENCES
    ]


def folder(tmp_path, files, name, said, *, seed=1, gamma=0.5, rows=None, **extra):
    """A run folder as train and eval leave it, without a training."""
    path = tmp_path / name
    path.mkdir()
    objective = {"name": "tailr", "gamma": gamma}
    tree = config(tmp_path, files, objective=objective).model_copy(update={"seed": seed})
    (path / "config.yaml").write_text(dump_config(tree))
    lines = [
        {"source": s, "target": r, "prediction": p}
        for s, r, p in zip(SOURCES, REFERENCES, said, strict=True)
    ]
    lines = [lines[i] for i in rows] if rows is not None else lines
    (path / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = [[line[key] for line in lines] for key in ("prediction", "target")]
    numbers = text_metrics(GROUPS, *columns) | {"nll": 2.0 + gamma + seed / 10, "lead_bleu": 9.0}
    (path / "metrics.json").write_text(json.dumps(numbers | {"rows": float(len(lines))} | extra))
    return compare.read_run(path)


def compared(runs, metrics, resamples=999):
    found = compare.compare(compare.grouped(runs), metrics, resamples, 0)
    return {each.metric: each for each in found}


@pytest.mark.parametrize("name", compare.SUMS)
def test_sums_give_the_metric_of_any_sample_of_items(name):
    """The bootstrap resamples rows of sums: a wrong row is a wrong interval, and nothing shows."""
    said, rows = predictions(0.3, 0), np.random.default_rng(1).integers(120, size=120)
    sums = compare.SUMS[name](said, REFERENCES)
    drawn = [[texts[i] for i in rows] for texts in (said, REFERENCES)]
    direct = text_metrics(GROUPS, *drawn)[name]
    assert float(sums.score(sums.rows[rows].sum(0, keepdims=True))[0]) == pytest.approx(direct)


@pytest.mark.parametrize("name", compare.TOKEN_SUMS)
def test_sums_of_tokens_are_the_metric_of_any_sample_of_items(name):
    """Items weigh by their tokens: the mean of their means is another number."""
    random = np.random.default_rng(0)
    logp = [-random.exponential(2.0, n) for n in random.integers(1, 30, 50)]
    items = [compare.Item("", "", "", -each.mean(), (each > -1).mean(), len(each)) for each in logp]
    sums, rows = compare.TOKEN_SUMS[name](items), random.integers(50, size=50)
    drawn = np.concatenate([logp[i] for i in rows])
    direct = {
        "nll": -drawn.mean(),
        "accuracy": (drawn > -1).mean(),
        "perplexity": np.exp(-drawn.mean()),
    }
    assert float(sums.score(sums.rows[rows].sum(0, keepdims=True))[0]) == pytest.approx(
        direct[name]
    )


def test_the_bleu_test_is_sacrebleus():
    """An oracle that is not ours; its resamples are others, and its p is one of |differences|."""
    systems = [predictions(0.30, 0), predictions(0.33, 1)]
    test = PairedTest(
        [("first", systems[0]), ("second", systems[1])],
        {"BLEU": BLEU(force=True)}, [REFERENCES], test_type="bs", n_samples=2000,
    )  # fmt: skip
    theirs = test()[1]["BLEU"]
    first, second = (compare.SUMS["bleu"](said, REFERENCES) for said in systems)
    gap = bootstrap(difference(first, second), resamples=1999)
    assert gap.value == pytest.approx(theirs[1].score - theirs[0].score)
    own = bootstrap(second, resamples=1999)
    assert (own.high - own.low) / 2 == pytest.approx(theirs[1].ci, rel=0.1)
    assert (gap.p <= 0.05) == (theirs[1].p_value <= 0.05)


def test_equal_predictions_differ_by_nothing(tmp_path, files):
    runs = [folder(tmp_path, files, str(g), predictions(0.3, 0), gamma=g) for g in (0.1, 0.2)]
    found = compared(runs, list(compare.SUMS))
    assert all(each.items.p == 1.0 and each.difference == 0.0 for each in found.values())


def test_the_order_of_the_predictions_does_not_matter(tmp_path, files):
    order = np.random.default_rng(0).permutation(120)
    first = folder(tmp_path, files, "first", predictions(0.3, 0), gamma=0.1)
    seconds = [
        folder(tmp_path, files, name, predictions(0.4, 1), gamma=0.2, rows=rows)
        for name, rows in (("there", None), ("mixed", order))
    ]
    one, two = (compared([first, run], ["bleu", "rougeL"]) for run in seconds)
    for name in one:
        assert vars(one[name].items) == pytest.approx(vars(two[name].items))
    assert one["bleu"].items.p < 0.01


def test_what_is_stripped_to_be_scored_is_stripped_here_too(tmp_path, files):
    """predictions.jsonl keeps it, and the numbers would not follow from it."""
    folder(tmp_path, files, "run", predictions(0.3, 0))
    said = tmp_path / "run" / "predictions.jsonl"
    said.write_text(re.sub(r"(?<=[a-z]) ", " <newline> ", said.read_text()))
    settings = {"evaluation": {"strip": ["<newline>"]}}
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(settings))
    run = compare.read_run(tmp_path / "run")
    assert "<newline>" in run.items[0][1]
    assert run.sums("rep_4").value == pytest.approx(run.metrics["rep_4"])
    assert run.sums("bleu").value == pytest.approx(run.metrics["bleu"])


def test_seeds_of_one_config_are_a_group_and_are_paired(tmp_path, files):
    runs = [
        folder(tmp_path, files, f"{g}-{s}", predictions(0.3 + g / 10, s), gamma=g, seed=s)
        for g, seeds in ((0.0, (1, 2, 3)), (0.8, (2, 3, 4)))
        for s in seeds
    ]
    groups = compare.grouped(runs)
    assert {label: [run.seed for run in group] for label, group in groups.items()} == {
        "gamma=0.0": [1, 2, 3],
        "gamma=0.8": [2, 3, 4],
    }
    nll = compared(runs, ["nll"])["nll"]
    assert nll.difference == pytest.approx(0.8 + 0.1)
    assert (nll.items, nll.seeds, nll.signs) == (None, 2, 0.5)
    bleu = compared(runs, ["bleu"])["bleu"]
    means = [np.mean([run.metrics["bleu"] for run in group]) for group in groups.values()]
    assert bleu.difference == pytest.approx(bleu.items.value) == pytest.approx(means[1] - means[0])


def test_runs_that_begin_with_a_model_of_their_own_seed_are_a_group(tmp_path, files):
    runs = []
    for gamma, seed in ((0.0, 1), (0.0, 11), (0.8, 1), (0.8, 11)):
        folder(tmp_path, files, f"{gamma}-{seed}", predictions(0.3, seed), gamma=gamma, seed=seed)
        file = tmp_path / f"{gamma}-{seed}" / "config.yaml"
        tree = yaml.safe_load(file.read_text())
        tree["model"] = {"pretrained": f"runs/ce-seed{seed}/model"}
        file.write_text(json.dumps(tree))
        runs.append(compare.read_run(file.parent))
    assert {label: len(group) for label, group in compare.grouped(runs).items()} == {
        "gamma=0.0": 2,
        "gamma=0.8": 2,
    }
    file.write_text(json.dumps(tree | {"model": {"pretrained": "runs/ce-seed1/model"}}))
    assert len(compare.grouped([*runs[:3], compare.read_run(file.parent)])) == 3


def test_what_cannot_be_compared_is_one_line(tmp_path, files):
    said = predictions(0.3, 0)
    first = folder(tmp_path, files, "first", said)
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare.grouped([first, folder(tmp_path, files, "second", said, seed=2)])
    other = folder(tmp_path, files, "other", said, gamma=0.1)
    with pytest.raises(ConfigError, match="a seed is there twice"):
        compare.grouped([first, first, other])
    fewer = folder(tmp_path, files, "fewer", said, gamma=0.1, rows=range(100))
    with pytest.raises(ConfigError, match=r"not the test items of .*100 and 120"):
        compare.grouped([first, fewer])
    (tmp_path / "fewer" / "predictions.jsonl").unlink()  # as a language model's
    (tmp_path / "first" / "predictions.jsonl").unlink()
    pair = [compare.read_run(tmp_path / name) for name in ("first", "fewer")]
    with pytest.raises(ConfigError, match=r"not the test items of .*100 and 120"):
        compare.grouped(pair)
    first = folder(tmp_path, files, "whole", said)
    older = folder(tmp_path, files, "older", said, gamma=0.1, bleu=12.0)
    with pytest.raises(ConfigError, match="run tvd-gen eval again"):
        older.sums("bleu")
    with pytest.raises(ConfigError, match="--metrics: blue"):
        compare.chosen([first, other], ["blue"])
    with pytest.raises(ConfigError, match=r"has no config\.yaml"):
        compare.read_run(tmp_path)


def test_two_real_runs_as_a_user_compares_them(tmp_path, files, monkeypatch, capsys):
    """A tokenizer that lower-cases is scored in lower case, here too."""
    config(tmp_path, files)
    small = json.loads((tmp_path / "tiny.yaml").read_text())["model"]
    small["tokenizer"]["lowercase"] = True
    asked = {"evaluation.metrics": ["bleu", "rouge", "perplexity"]}
    runs = []
    for gamma in (0.1, 0.8):
        settings = config(tmp_path, files, model=small, objective={"gamma": gamma})
        runs.append(train(settings, tmp_path / f"run{gamma}", **QUIET))
        evaluate(runs[-1], overrides=asked, **QUIET)
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, runs), "--json", str(out)])
    compare.main()
    printed = capsys.readouterr().out
    assert "Less gamma=0.1:" in printed
    assert "| gamma=0.8 | rougeL |" in printed
    found = {each["metric"]: each for each in json.loads(out.read_text())}
    assert set(found) == {"bleu", "rouge1", "rouge2", "rougeL", "rougeLsum", "nll", "perplexity"}
    assert found["nll"]["items"]["value"] == pytest.approx(found["nll"]["difference"])
    assert found["perplexity"]["items"]["low"] <= found["perplexity"]["items"]["high"]
    assert found["bleu"]["items"]["low"] <= found["bleu"]["items"]["high"]
