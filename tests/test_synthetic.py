"""The synthetic experiment: its distributions are enumerated, its stages run once and only once."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from tiny import WORDS, text
from transformers import AutoConfig, AutoModelForSeq2SeqLM

import check
import recipe
import stages
import synthetic
import synthetic_table
from recipe import QUICK, Settings, objectives, student_config
from sentences import GO, SentenceModel, compare
from stages import Experiment, run_student, words_of
from tvd_gen import OBJECTIVES
from tvd_gen.config import load_config
from tvd_gen.errors import ConfigError, DataError, NonFiniteError
from tvd_gen.metrics.distances import sequence_tvd, token_distances
from tvd_gen.models import TokenizerSpec, train_tokenizer

LONGEST = 4
TOKENIZER = train_tokenizer(TokenizerSpec(type="word", vocab_size=100), [f"{GO} red blue green"])
IDS = [TOKENIZER.convert_tokens_to_ids(word) for word in ("red", "blue", "green")]
SENTENCES = [
    [*row] for length in range(1, LONGEST + 1) for row in itertools.product(IDS, repeat=length)
]


def sentence_model(seed):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "lstm_seq2seq", vocab_size=len(TOKENIZER), embedding_size=6, hidden_size=8, init_range=1.0,
        pad_token_id=TOKENIZER.pad_token_id, decoder_start_token_id=TOKENIZER.eos_token_id,
    )  # fmt: skip
    return SentenceModel(AutoModelForSeq2SeqLM.from_config(config), TOKENIZER, LONGEST)


# --- a model as a distribution over sentences ---------------------------------------------------


def test_all_sentences_together_have_probability_1():
    """Forbidden words, empty sentences and the cut at the end must all be normalised away."""
    for seed in range(3):
        assert sentence_model(seed).logp(SENTENCES).exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_samples_come_from_that_distribution_and_know_their_probability():
    model, count = sentence_model(0), 20_000
    drawn = model.sample(count, seed=1)
    torch.testing.assert_close(drawn.logp, model.logp(drawn.rows), rtol=0, atol=1e-5)
    p = model.logp(SENTENCES).exp()
    places = {tuple(row): i for i, row in enumerate(SENTENCES)}
    counts = torch.bincount(
        torch.tensor([places[tuple(row)] for row in drawn.rows]), minlength=len(SENTENCES)
    )
    common = p * count > 5
    chi2 = ((counts - count * p) ** 2 / (count * p))[common].sum().item()
    assert chi2 < common.sum().item() + 5 * math.sqrt(2 * common.sum().item())
    assert drawn.rows == model.sample(count, seed=1).rows
    assert drawn.rows != model.sample(count, seed=2).rows


def test_the_end_is_a_token_unless_it_was_forced():
    model = sentence_model(0)
    red = IDS[0]
    assert model.tokens([[red], [red] * 3, [red] * LONGEST]) == 2 + 4 + LONGEST
    logp = model.logp([[red]])
    assert model.perplexity([[red]], logp) == pytest.approx(math.exp(-logp.item() / 2))


def test_distances_are_those_of_dense_probabilities_after_every_prefix():
    """Step by step, each sentence by itself: no batch, no padding, no hook on the head."""
    p, q = sentence_model(0), sentence_model(1)
    rows = [SENTENCES[0], SENTENCES[20], SENTENCES[-1]]
    allowed, found = [*IDS, TOKENIZER.eos_token_id], []
    for row in rows:
        for length in range(min(len(row) + 1, LONGEST)):
            ids = torch.tensor([[TOKENIZER.eos_token_id, *row[:length]]])
            words = allowed if length else IDS
            logps = [
                each.model(input_ids=each.source.unsqueeze(0), decoder_input_ids=ids)
                .logits[0, -1, words]
                .log_softmax(0)
                .unsqueeze(0)
                for each in (p, q)
            ]
            found.append(torch.stack([each[0] for each in token_distances(*logps)]))
    expected = torch.stack(found).mean(0).double()
    torch.testing.assert_close(torch.stack([*compare(p, q, rows)]), expected, rtol=1e-4, atol=1e-6)
    assert compare(p, p, rows).tvd == 0


def test_sequence_tvd_of_samples_is_that_of_the_enumerated_models():
    p, q = sentence_model(0), sentence_model(1)
    exact = (p.logp(SENTENCES).exp() - q.logp(SENTENCES).exp()).abs().sum().item() / 2
    for one, other in ((p, q), (q, p)):
        drawn = one.sample(20_000, seed=3)
        found = sequence_tvd(drawn.logp, other.logp(drawn.rows))
        assert abs(found.mean - exact) < 4 * found.standard_error


# --- the recipe ---------------------------------------------------------------------------------


def test_every_objective_takes_part_and_its_config_is_right(tmp_path):
    """A new entry of OBJECTIVES that needs numbers wants a line in the recipe."""
    sections = objectives()
    assert {section["name"] for section in sections.values()} == set(OBJECTIVES)
    for name in sections:
        file = tmp_path / f"{name}.yaml"
        tree = student_config(Settings(patience=3), *[tmp_path] * 2, name, 1, ce=tmp_path)
        file.write_text(json.dumps(tree))
        assert load_config(file).objective.build()


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A dog's ball.", "a dog 's ball ."),
        ("a black-and-white cat , asleep .", "a black - and - white cat , asleep ."),
        ("  ", ""),
    ],
)
def test_captions_become_words_and_stay_so(caption, words):
    assert words_of(caption) == words
    assert words_of(words) == words


# --- the stages ---------------------------------------------------------------------------------

TINY = dataclasses.replace(
    QUICK, width=8, oracle_epochs=2, epochs=2, evaluations=2, train=60, validation=20, test=30,
    compared=10, captions=40, caption_validation=10, longest=6, max_tokens=128,
)  # fmt: skip
WANTED = (["ce", "tailr-0.1", "gold", "d2gpo"], (1, 2))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    files = root / "captions.txt", root / "more.txt"
    files[0].write_text("\n".join(text(i, 2 + i % 4) for i in range(40)))
    files[1].write_text("\n".join(text(i, 2 + i % 3) for i in range(10)))
    synthetic.run(root / "output", TINY, *files, *WANTED, 1)
    return Experiment(root / "output" / "seed-2", TINY, 2), files


def test_one_command_makes_every_file(finished):
    experiment, _ = finished
    output = experiment.root.parent
    lines = (output / "results.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [(r["objective"], r["seed"]) for r in records] == sorted(
        (name, seed) for name in [*WANTED[0], "oracle"] for seed in WANTED[1]
    )
    for record in records:
        if record["objective"] == "oracle":
            assert record["figures"]["ppl_oracle"] > 1
            continue
        assert {*synthetic_table.COLUMNS} <= record["figures"].keys()
        assert all(math.isfinite(value) for value in record["figures"].values())
        assert 0 <= record["figures"]["sequence_tvd"] <= 1
        assert record["versions"].keys() == {"tvd-gen", "torch", "transformers", "processor"}
        assert 1 <= record["training"]["best_epoch"] <= record["training"]["epoch"] == 2
    table = (output / "table.md").read_text()
    assert "| tailr-0.1 | 2 |" in table
    test = (experiment.data / "test.jsonl").read_text().splitlines()
    assert {word for line in test for word in json.loads(line)["target"].split()} <= {*WORDS}


def test_laws_that_quick_runs_are_judged_by_can_fail(finished, tmp_path):
    """What continuous integration learns of a broken distance."""
    lines = (finished[0].root.parent / "results.jsonl").read_text().splitlines()
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(lines))
    (missing,) = check.faults_of_students(tmp_path)
    assert "no figures of asft, ce-continued" in missing
    record = json.loads(lines[0])
    for figure, value, told in (
        ("tvd", 1.1, "contradict"),
        ("tvd_student", 2 * record["figures"]["tvd_student"] + 0.1, "contradict"),
        ("sequence_kl", -1.0, "better than the oracle"),
        ("bleu_4", math.nan, "not finite"),
    ):
        changed = {**record, "figures": {**record["figures"], figure: value}}
        file.write_text("\n".join([*lines, json.dumps(changed)]))
        assert told in list(check.faults_of_students(tmp_path))[1]


def test_the_same_command_does_nothing_twice(finished):
    experiment, files = finished
    before = {path: path.stat().st_mtime_ns for path in experiment.root.rglob("*.safetensors")}
    synthetic.run(experiment.root.parent, TINY, *files, *WANTED, 1)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_student_that_lost_its_last_stage_gets_the_same_figures(finished):
    """Where a kill fell between training and measuring."""
    experiment, _ = finished
    file = experiment.student("tailr-0.1") / "figures.json"
    before = json.loads(file.read_text())
    file.unlink()
    run_student(experiment, "tailr-0.1", lambda _: None)
    after = json.loads(file.read_text())
    assert (before["figures"], before["training"]) == (after["figures"], after["training"])


def test_a_student_that_diverges_spoils_no_other(finished, monkeypatch):
    """One objective of twenty, at night."""
    experiment, _ = finished

    def diverges(_experiment, name, _say):
        if name == "gce":
            raise NonFiniteError("step 7: the loss is nan")

    monkeypatch.setattr(synthetic, "run_student", diverges)
    faults = synthetic.run_students(experiment, ["gce", "poly1", "focal"], 1)
    assert faults == ["gce, seed 2: step 7: the loss is nan"]


def test_other_settings_are_refused(finished):
    """Else a table would mix students of two experiments."""
    experiment, files = finished
    other = dataclasses.replace(TINY, test=31)
    with pytest.raises(ConfigError, match="test was 30"):
        synthetic.run(experiment.root.parent, other, *files, *WANTED, 1)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_sentences_of_the_oracle_that_have_changed_are_noticed(finished, split):
    """The oracle's own probabilities are of the sentences that it drew, in their order."""
    experiment, files = finished
    file = experiment.data / f"{split}.jsonl"
    before = file.read_bytes()
    for change, told in (
        (lambda: file.write_bytes(b"".join(before.splitlines(True)[::-1])), "has changed"),
        (file.unlink, "is not there"),
    ):
        change()
        with pytest.raises(ConfigError, match=rf"{split}.jsonl: {told}.*remove .*oracle-figures"):
            synthetic.run(experiment.root.parent, TINY, *files, *WANTED, 1)
    own = experiment.own.read_text()
    experiment.own.unlink()
    synthetic.run(experiment.root.parent, TINY, *files, *WANTED, 1)
    assert (file.read_bytes(), experiment.own.read_text()) == (before, own)


def test_a_table_can_be_made_of_the_lines(finished, monkeypatch, capsys):
    output = finished[0].root.parent
    monkeypatch.setattr("sys.argv", ["synthetic_table.py", str(output / "results.jsonl")])
    synthetic_table.main()
    assert capsys.readouterr().out == (output / "table.md").read_text() + "\n"
    (output / "results.jsonl").rename(output / "kept.jsonl")
    (output / "results.jsonl").write_text('{"objective": "ce"}\n')
    with pytest.raises(
        SystemExit, match=r"results.jsonl:1: has not objective, seed, figures, after_ce"
    ):
        synthetic_table.main()
    (output / "kept.jsonl").rename(output / "results.jsonl")


def test_another_seed_cannot_have_other_settings_or_captions(finished, tmp_path):
    """Its table has the mean over seeds."""
    experiment, files = finished
    wider = dataclasses.replace(TINY, width=16)
    with pytest.raises(ConfigError, match=r"seed-1: has other settings \(width was 8\)"):
        synthetic.run(experiment.root.parent, wider, *files, ["ce"], [3], 1)
    other = tmp_path / "captions.txt"
    other.write_text(files[0].read_text() + "one more\n")
    with pytest.raises(ConfigError, match="captions_sha256 was"):
        synthetic.run(experiment.root.parent, TINY, other, files[1], ["ce"], [3], 1)
    assert not (experiment.root.parent / "seed-3").exists()


def test_figures_of_another_objective_are_refused(finished, monkeypatch):
    experiment, _ = finished
    made = recipe.student_config

    def floored(*places, **more):
        tree = made(*places, **more)
        return {**tree, "objective": {**tree["objective"], "min_weight": 0.9}}

    monkeypatch.setattr(stages, "student_config", floored)
    with pytest.raises(ConfigError, match=r"tailr-0.1: was made with .*'min_weight': 0.2"):
        synthetic.run_students(experiment, ["tailr-0.1"], 1)


def test_captions_that_cannot_be_read_leave_nothing_behind(tmp_path, finished, capsys):
    """A second start with the right file must not find the first one's."""
    captions, more = tmp_path / "captions.txt", finished[1][1]
    experiment = Experiment(tmp_path / "seed-1", TINY, 1)
    for content, told in ((b"\n \n", "has no captions"), (b"caf\xe9\n", "is no UTF-8")):
        captions.write_bytes(content)
        with pytest.raises(DataError, match=f"captions.txt: {told}"):
            stages.read_captions(experiment, captions, more)
        assert not experiment.captions.exists()
    captions.write_text("a dog\n")
    words = ["--captions", str(captions), "--validation", str(more), "--output", str(captions)]
    with pytest.raises(SystemExit, match="1"):
        synthetic.main(words)
    assert "captions.txt" in capsys.readouterr().err.splitlines()[0]
    with pytest.raises(SystemExit, match="2"):
        synthetic.main([*words, "--epochs", "-3"])
    with pytest.raises(SystemExit, match="is a folder; captions are texts"):
        synthetic.main(["--captions", str(tmp_path), *words[2:4], "--output", str(tmp_path / "o")])


def test_who_begins_with_cross_entropy_ends_with_its_last_model(finished):
    """Its nll is the lowest before it has learned anything of its own."""
    experiment, _ = finished
    for name, found in (("gold", False), ("tailr-0.1", True)):
        run = load_config(experiment.student(name) / "config.yaml")
        assert run.training.load_best_model_at_end is found
    starts = {
        seed: student_config(TINY, *[experiment.root] * 2, name, 2, ce=experiment.root)["seed"]
        for seed, name in ((2, "ce"), (1002, recipe.RESEEDED))
    }
    assert all(seed == found for seed, found in starts.items())


def test_the_records_say_which_precision_was_used(tmp_path, finished, monkeypatch, capsys):
    """Without fast bf16 training is in float32, and its students are not mixed with others."""
    captions, validation = finished[1]
    words = [
        "--captions",
        str(captions),
        "--validation",
        str(validation),
        "--output",
        str(tmp_path),
    ]
    used = []
    monkeypatch.setattr(synthetic, "run", lambda *given: used.append(given[1].bf16) or ("", []))
    for gpu, fast in ((False, True), (False, False), (True, False)):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda gpu=gpu: gpu)
        monkeypatch.setattr(synthetic, "has_bf16", lambda fast=fast: fast)
        synthetic.main(words)
        assert ("float32" in capsys.readouterr().out) is not (fast or gpu)
    assert used == [True, False, True]


def test_the_command_line_knows_its_objectives():
    given = synthetic.parse(["--captions", "a", "--validation", "b", "--objectives", "ce"])
    assert given.seeds == [1, 2, 3, 4, 5]
    with pytest.raises(SystemExit):
        synthetic.parse(["--captions", "a", "--validation", "b", "--objectives", "cee"])


# --- the table ----------------------------------------------------------------------------------


def test_differences_are_paired_by_seed():
    """Seeds differ by more than objectives do."""

    def record(name, seed, shift):
        figures = dict.fromkeys(synthetic_table.COLUMNS, 10 * seed + (1 + 0.01 * seed) * shift)
        after = name == "tailr"
        return {"objective": name, "seed": seed, "figures": figures, "after_ce": after}

    records = [record("ce", seed, 0) for seed in (1, 2, 3)]
    records += [record("tailr", seed, 1) for seed in (1, 2)]
    table = synthetic_table.render(records)
    assert "| ce | 3 | 20 ± 10 |" in table
    assert "| tailr† | 2 | +1.01 (p 0.0031) |" in table
    assert "Differences to ce," in table
    assert "Differences to ce-continued" not in table
    control = [{**record("ce-continued", seed, 2), "after_ce": True} for seed in (1, 2, 3)]
    table = synthetic_table.render(records + control)
    last = table.split("Differences to ce-continued†")[1]
    assert "| tailr† | 2 | -1.01 (p 0.0031) |" in last
    assert "ce-continued† |" not in last
