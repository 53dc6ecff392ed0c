"""Spoilt texts: the laws of the edits, the scores beside torch's, and a whole small analysis."""

import json
import math
import sys
from itertools import pairwise, product
from pathlib import Path
from random import Random

import pytest
import torch
from tiny import LM, QUIET, config, text

import check
import perturbation
import perturbation_seeds
from edits import EDITS, repeat, substitute, truncate, versions, vocabulary_of
from tvd_gen.run import train

VOCABULARY = ["a", "b", "c", "d", "e"]
LINE = " a  b c d\te "


def steps(kind, most=20, seed="0/0"):
    """Each version's words beside the next one's."""
    made = [each.split(" ") for each in versions(LINE, kind, most, seed, VOCABULARY)]
    return list(pairwise(made))


@pytest.mark.parametrize("kind", EDITS)
def test_versions_are_cumulative_never_empty_and_repeat_themselves(kind):
    made = versions(LINE, kind, 20, "7/3", VOCABULARY)
    assert made[0] == "a b c d e"
    assert all(made)
    assert made[:4] == versions(LINE, kind, 3, "7/3", VOCABULARY)  # more edits go on from fewer
    assert kind == "truncate" or made != versions(LINE, kind, 20, "8/3", VOCABULARY)
    for before, after in steps(kind):
        assert abs(len(before) - len(after)) <= 1
        assert before != after


def test_a_repetition_says_a_word_twice_in_its_place():
    for before, after in steps("repeat"):
        assert any(after == [*before[: i + 1], *before[i:]] for i in range(len(before)))
    assert len(steps("repeat")) == 20


def test_truncation_keeps_a_beginning_and_the_last_word_stays():
    """The published script calls this the deletion of a random word, and drops what is empty."""
    made = versions(LINE, "truncate", 20, "0", VOCABULARY)
    assert made == ["a b c d e", "a b c d", "a b c", "a b", "a"]


def test_a_deletion_takes_one_word_and_any():
    gone = set()
    for seed in range(60):
        (before, after), *_ = steps("delete", seed=str(seed))
        gone |= set(before) - set(after)
        assert len(after) == 4
    assert gone == set(VOCABULARY)


def test_a_substitution_changes_one_word_for_another_of_the_vocabulary():
    for before, after in steps("substitute"):
        changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert len(changed) == 1
        assert changed[0][1] in VOCABULARY


def test_substitutes_are_uniform():
    """Each of the other words as often, in each place as often: within 5 deviations."""
    random = Random(0)
    counts = {}
    for _ in range(8000):
        after = substitute(["a", "b"], random, VOCABULARY)
        counts[tuple(after)] = counts.get(tuple(after), 0) + 1
    assert len(counts) == 8
    assert all(abs(count - 1000) < 150 for count in counts.values())


def test_the_mixture_is_of_the_three_published_edits():
    kinds = {"repeat": 0, "truncate": 0, "substitute": 0}
    for seed in range(300):
        (before, after), *_ = steps("mixed", seed=str(seed))
        if len(after) > len(before):
            kinds["repeat"] += 1
        else:
            kinds["truncate" if len(after) < len(before) else "substitute"] += 1
    assert all(70 < count < 130 for count in kinds.values())


def test_one_word_is_never_lost_and_one_vocabulary_word_is_refused():
    assert versions("a", "delete", 20, "0", VOCABULARY) == ["a"]
    assert truncate(["a"], Random(0), VOCABULARY) == []
    assert repeat(["a"], Random(0), VOCABULARY) == ["a", "a"]
    with pytest.raises(ValueError, match="2 different words"):
        vocabulary_of(["a a", "a"])


# -- scores --------------------------------------------------------------------------------------


def language_model(tmp_path, files, folder="lm", **objective):
    data = {"files": files, "columns": {"text": "source"}, "block_size": 16}
    settings = config(tmp_path, files, **LM, data=data, objective=objective)
    return train(settings, tmp_path / folder, **QUIET)


def logits_nll(scorer, source, words):
    """-log p of a text's tokens and the end token, by torch from the model's own logits."""
    ids = scorer.tokenizer(words, add_special_tokens=False)["input_ids"]
    target = torch.tensor([*ids, scorer.tokenizer.eos_token_id])
    if source is None:
        logits, target = scorer.model(target[None]).logits[0, :-1], target[1:]
    else:
        read = scorer.tokenizer(source, add_special_tokens=False)["input_ids"]
        read = torch.tensor([[*read, scorer.tokenizer.eos_token_id]])
        logits = scorer.model(input_ids=read, labels=target[None]).logits[0]
    return float(torch.nn.functional.cross_entropy(logits, target, reduction="sum").detach()), len(
        target
    )


@pytest.mark.parametrize("kind", ["causal", "encoder-decoder"])
def test_scores_are_torchs_cross_entropy_of_the_models_own_logits(tmp_path, files, kind):
    """Spoilt texts are longer than what the run was trained on: none may be cut to be scored."""
    causal = kind == "causal"
    run = language_model(tmp_path, files) if causal else None
    run = run or train(config(tmp_path, files), tmp_path / "run", **QUIET)
    scorer = perturbation.load_scorer(str(run), with_source=not causal)
    texts = [text(i, 3 + 4 * i) for i in range(4)]
    sources = None if causal else [text(i + 5, 6) for i in range(4)]
    made = perturbation.make_versions(texts, ["repeat", "substitute"], 3, 0)
    scores = scorer(made, sources, 5)
    for version, (nll, tokens) in zip(made, scores, strict=True):
        source = None if sources is None else sources[version.text]
        expected, count = logits_nll(scorer, source, version.words)
        assert nll == pytest.approx(expected, rel=1e-5)
        assert tokens == count


def test_a_plain_model_folder_scores_like_its_run(tmp_path, files):
    run = language_model(tmp_path, files)
    made = perturbation.make_versions([text(0, 6), text(1, 9)], ["mixed"], 2, 0)
    own, plain = (
        perturbation.load_scorer(str(place), False)(made, None, 4) for place in (run, run / "model")
    )
    assert (own == plain).all()


def test_what_does_not_fit_or_has_no_source_is_one_line(tmp_path, files):
    run = language_model(tmp_path, files)
    scorer = perturbation.load_scorer(str(run), False)
    long = perturbation.make_versions([text(0, 61), text(1, 3)], ["repeat"], 20, 0)
    with pytest.raises(perturbation.ConfigError, match=r"text 1 after 20 edits.*64 positions"):
        scorer(long, None, 4)
    bart = train(config(tmp_path, files), tmp_path / "run", **QUIET)
    with pytest.raises(perturbation.ConfigError, match="reads a source"):
        perturbation.load_scorer(str(bart), False)


def test_known_scores_give_known_shares_and_rises():
    made = perturbation.make_versions(["a b c", "b c d"], ["truncate"], 1, 0)
    scores = {"one": [[3, 3], [6, 3], [4, 2], [2, 2]], "two": [[3, 3], [6, 3], [4, 2], [6, 2]]}
    given = {name: perturbation.np.array(rows, float) for name, rows in scores.items()}
    found = list(perturbation.summarise(made, given, 99))
    one, two = (each for each in found if each["edits"] == 1)
    assert one["nll"]["value"] == 1.5  # (4 + 2) / (2 + 2)
    assert one["rise"]["value"] == 0.0  # before it was (3 + 6) / (3 + 3)
    assert one["more_probable"]["value"] == 0.5  # 4 / 2 > 3 / 3, 2 / 2 < 6 / 3
    assert one["more_probable_total"]["value"] == 0.5
    assert two["rise_difference"]["value"] == pytest.approx((4 + 6) / (2 + 2) - 1.5)
    assert "rise_difference" not in one


@pytest.mark.parametrize("there", [True, False])
def test_a_whole_analysis_of_two_runs(tmp_path, files, monkeypatch, capsys, there):
    """As a user runs it; without matplotlib the numbers are still written."""
    runs = [
        language_model(tmp_path, files, folder, **objective)
        for folder, objective in (
            ("first", {"name": "ce", "gamma": None, "min_weight": None}),
            ("second", {}),
        )
    ]
    out = tmp_path / "out"
    options = ["--kinds", "repeat", "truncate", "--edits", "3", "--resamples", "99"]
    monkeypatch.setattr(
        sys, "argv", ["perturbation.py", *map(str, runs), *options, "--output", str(out)]
    )
    if not there:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    perturbation.main()
    lines = [json.loads(line) for line in (out / "perturbation.jsonl").read_text().splitlines()]
    results = json.loads((out / "perturbation.json").read_text())["results"]
    assert len(lines) == 9 * (1 + 3 + 3)
    assert set(lines[0]["scores"]) == {"first", "second"}
    points = {("none", 0), *product(("repeat", "truncate"), (1, 2, 3))}
    for model in ("first", "second"):
        own = {(each["kind"], each["edits"]) for each in results if each["model"] == model}
        assert own == points
    for each in results:
        assert each["rise"]["low"] <= each["rise"]["value"] <= each["rise"]["high"]
        assert 0 <= each["more_probable"]["low"] <= each["more_probable"]["high"] <= 1
    assert (out / "perturbation.png").exists() is there
    assert (out / "perturbation.svg").exists() is there
    printed = capsys.readouterr().out
    assert "| second | truncate | 3 |" in printed
    assert ("matplotlib is not installed" in printed) is not there


def test_texts_of_files_with_sources_and_limits(tmp_path):
    pairs = [str(tmp_path / name) for name in ("a.src", "a.tgt")]
    Path(pairs[0]).write_text("one\ntwo\nthree\n")
    Path(pairs[1]).write_text("a b\na b c d\nc d\n")
    read = perturbation.read_texts(pairs, {}, "", 5, 3)
    assert read == (["one", "three"], ["a b", "c d"])
    with pytest.raises(perturbation.ConfigError, match="no run folder"):
        perturbation.read_texts([], {}, str(tmp_path), 5, 3)


def seeds_folder(folder, values, **settings):
    """One seed's output: model -> its nll after one edit."""
    folder.mkdir()
    shares = {"more_probable": {"value": 0.5}, "more_probable_total": {"value": 0.25}}
    results = [
        {"model": model, "kind": "repeat", "edits": 1, "texts": 9, "nll": {"value": nll}}
        | {"rise": {"value": nll - 1.0}, **shares}
        for model, nll in values.items()
    ]
    settings = {"models": [f"{folder}/{model}" for model in values], "limit": 9} | settings
    tree = {"settings": settings, "results": results}
    (folder / "perturbation.json").write_text(json.dumps(tree))
    return folder


def rendered(folders, *more):
    return perturbation_seeds.render(
        perturbation_seeds.by_seed(perturbation_seeds.read(folders)), *more
    )


def test_seeds_are_paired(tmp_path):
    """Of differences 1, 2, 3: t = 2 sqrt(3), p = 0.074 with two degrees of freedom (any table)."""
    pairs = enumerate([(1.0, 2.0), (2.0, 4.0), (3.0, 6.0)])
    folders = [seeds_folder(tmp_path / str(i), {"ce": a, "tailr": b}) for i, (a, b) in pairs]
    text = rendered(folders, [1])
    assert "| ce | repeat | 1 | 2.000 ± 1.000 | 1.000 ± 1.000 | 0.500 ± 0.000 |" in text
    assert "| tailr | repeat | 1 | 4.000 ± 2.000 (+2.000, p 0.074) | 3.000 ± 2.000 (+2.000" in text
    told = rendered(folders, [1], "tailr")
    assert "| ce | repeat | 1 | 2.000 ± 1.000 (-2.000, p 0.074) | 1.000 ± 1.000 (-2.000" in told
    assert "| tailr | repeat | 1 | 4.000 ± 2.000 | 3.000 ± 2.000 |" in told
    seeds = perturbation_seeds.by_seed(perturbation_seeds.read(folders))
    lines = perturbation_seeds.render_of(seeds, [1], "tailr", "nll").splitlines()
    assert lines[2:] == ["| tailr | 1 | 4.000 ± 2.000 |", "| ce | 1 | -2.000, p 0.074 |"]


def test_seeds_of_other_models_are_refused(tmp_path):
    folders = [seeds_folder(tmp_path / name, {"ce": 1.0, name: 2.0}) for name in ("a", "b")]
    with pytest.raises(ValueError, match="lacks"):
        rendered(folders, [1])
    with pytest.raises(ValueError, match="--edits 99: none"):
        rendered(folders[:1], [99])
    with pytest.raises(ValueError, match="--base gold: no model"):
        rendered(folders[:1], [1], "gold")


def test_seeds_count_once_and_were_made_alike(tmp_path, monkeypatch):
    """Else p would be of a number of seeds that there is not, or of two experiments."""
    first, second = (seeds_folder(tmp_path / n, {"ce": float(n), "b": 2.0}) for n in "12")
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "perturbation.json").write_bytes((first / "perturbation.json").read_bytes())
    for twice in ([first, first], [first, second, copied]):
        with pytest.raises(ValueError, match=r"the models of .*1 again; each seed counts once"):
            perturbation_seeds.read(twice)
    monkeypatch.chdir(tmp_path)
    inside = [
        seeds_folder(tmp_path / name, {"ce": n, "b": 2.0}, models=["ce", "b"])
        for name, n in (("x", 1.1), ("y", 1.2))
    ]
    assert len(perturbation_seeds.by_seed(perturbation_seeds.read(inside))) == 2
    lines = [line | {"folder": "one"} for line in perturbation_seeds.read(inside)]
    merged = tmp_path / "merged.jsonl"
    merged.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(ValueError, match="one: the models of one again"):
        perturbation_seeds.read([merged])
    short = seeds_folder(tmp_path / "3", {"ce": 1.0, "b": 2.0}, limit=5)
    with pytest.raises(ValueError, match="3: --limit 5, others have 9"):
        perturbation_seeds.read([first, short])


def test_a_table_of_kept_lines_is_the_same(tmp_path, monkeypatch, capsys):
    folders = [seeds_folder(tmp_path / name, {"ce": 1.0, "b": float(name)}) for name in "123"]
    kept = tmp_path / "seeds.jsonl"
    printed = []
    for words in ([*map(str, folders), "--lines", str(kept)], [str(kept)]):
        monkeypatch.setattr(sys, "argv", ["perturbation_seeds.py", *words, "--edits", "1"])
        perturbation_seeds.main()
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    with pytest.raises(ValueError, match="counts once"):
        perturbation_seeds.read([kept, kept])
    (folders[0] / "perturbation.json").write_text("{}")
    with pytest.raises(ValueError, match=r"perturbation.json: was not written by perturbation.py"):
        perturbation_seeds.read(folders)


def test_laws_that_quick_analyses_are_judged_by_can_fail(tmp_path):
    shown = seeds_folder(tmp_path / "seed-1", {"ce": 1.0})
    assert not list(check.faults_of_spoilt(tmp_path))
    tree = json.loads((shown / "perturbation.json").read_text())
    for key, value, told in (
        ("nll", math.inf, "not finite"),
        ("more_probable", 1.5, "share of 1.5"),
    ):
        spoilt = [{**tree["results"][0], key: {"value": value}}]
        (shown / "perturbation.json").write_text(json.dumps({**tree, "results": spoilt}))
        assert told in next(check.faults_of_spoilt(tmp_path))


def test_a_column_that_is_not_there_is_asked_for_by_the_option(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"source": "a", "text": "b c"}\n')
    with pytest.raises(perturbation.ConfigError, match=r"here data.columns is --columns FIELD=COL"):
        perturbation.read_texts([str(file)], {"source": "source"}, "", 5, 3)
