"""A run from config to numbers, on tiny models: what it leaves behind, and what is refused."""

import json
import math
import subprocess
from pathlib import Path

import numpy
import pytest
import torch
from datasets import Dataset
from tiny import LM, QUIET, TINY, config, silent, text
from transformers import EvalPrediction

from tvd_gen.config import load_config
from tvd_gen.data import encode_corpus, load_corpus
from tvd_gen.errors import ConfigError, DataError, ModelError, NonFiniteError
from tvd_gen.metrics import baseline_metrics, text_metrics
from tvd_gen.models import TokenizerSpec, train_tokenizer
from tvd_gen.run import evaluate, evaluation, generate, plan, train, training
from tvd_gen.tasks import TASKS


def strict_json(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_run_folder_has_what_the_design_promises(tmp_path, files):
    """The stages meet only in the run folder: whatever is missing there is lost."""
    seen = []
    run = tmp_path / "runs" / "tiny"
    settings = config(tmp_path, files)
    got = train(settings, run, say=silent, progress=lambda *a: seen.append(a[:3]))
    assert got == run
    assert load_config(run / "config.yaml") == settings
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "data.json", "log.jsonl", "model"}
    assert (run / "model" / "model.safetensors").is_file()
    assert ("training", 4, 4) in seen

    log = [strict_json(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [2, 4]
    expected = ["step", "epoch", "loss", "nll", "mean_weight", "share_floored", "accuracy"]
    expected += ["entropy", "gamma", "learning_rate", "grad_norm", "tokens_per_second"]
    assert list(log[0])[: len(expected)] == expected

    data = strict_json((run / "data.json").read_text())
    assert data["splits"]["train"]["rows_kept"] == 40
    assert len(data["splits"]["train"]["files"][0]["sha256"]) == 64

    numbers = evaluate(run, **QUIET)
    assert strict_json((run / "metrics.json").read_text()) == numbers
    names = {"rouge1", "rouge2", "rougeL", "rougeLsum", "nll", "perplexity", "ece", "distinct_1"}
    assert names | {"rep_16", "lead_rougeL"} <= set(numbers)
    assert all(isinstance(value, float) and math.isfinite(value) for value in numbers.values())
    predictions = [
        strict_json(line) for line in (run / "predictions.jsonl").read_text().splitlines()
    ]
    there = [json.loads(line) for line in Path(files["test"]).read_text().splitlines()]
    assert [{k: row[k] for k in ("source", "target")} for row in predictions] == there
    tokens = sum(row["tokens"] for row in predictions)
    nll = sum(row["nll"] * row["tokens"] for row in predictions) / tokens
    assert nll == pytest.approx(numbers["nll"], rel=1e-12)
    assert all(0 <= row["accuracy"] <= 1 for row in predictions)


def _echo(model, tokenizer, batch, encoder_decoder):
    """Stands for a model that says what it reads."""
    return [t.strip() for t in tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)]


def test_predictions_stay_beside_their_own_rows(tmp_path, files, monkeypatch):
    """Batches go by length and rows are left out; one row's slip would void every score."""
    rows = [json.loads(line) for line in Path(files["test"]).read_text().splitlines()]
    rows[3]["source"], rows[6]["source"] = " ", text(1, 40)  # bad; over the limit
    Path(files["test"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"files": files, "on_bad_row": "skip", "too_long": "skip", "max_source_tokens": 30}
    run = train(config(tmp_path, files, data=data), tmp_path / "run", **QUIET)
    monkeypatch.setattr(evaluation, "_generate_batch", _echo)
    lines = []
    numbers = evaluate(run, say=lines.append, progress=silent)
    kept = [row for i, row in enumerate(rows) if i not in (3, 6)]
    read = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    texts = [{k: row[k] for k in ("source", "target", "prediction")} for row in read]
    assert texts == [{**row, "prediction": row["source"]} for row in kept]
    tokenizer = evaluation.open_run(run, {}, silent)[3]
    ids = tokenizer([row["target"] for row in kept], add_special_tokens=False)["input_ids"]
    assert [row["tokens"] for row in read] == [len(each) + 1 for each in ids]  # the end's
    assert numbers["rows"] == 7
    assert numbers["lead_rougeL"] == pytest.approx(numbers["rougeL"])  # one sentence: all of it
    assert any("2 left out" in line for line in lines)
    report = json.loads((run / "evaluation.json").read_text())
    assert report["splits"]["test"]["rows_kept"] == 7
    assert list(generate(run, [row["source"] for row in kept], **QUIET)) == [
        row["source"] for row in kept
    ]


def test_a_decoders_output_is_what_comes_after_the_prompt(tmp_path, files):
    run = train(
        config(tmp_path, files, **(LM | {"task": "summarization"})), tmp_path / "run", **QUIET
    )
    _, _, model, tokenizer = evaluation.open_run(run, {}, silent)
    said = tokenizer(" dog", add_special_tokens=False, return_tensors="pt")["input_ids"]
    model.generate = lambda input_ids, **_: torch.cat([input_ids, said], dim=1)
    batch = {"input_ids": tokenizer("red cat", return_tensors="pt")["input_ids"]}
    assert evaluation._generate_batch(model, tokenizer, batch, False) == ["dog"]
    assert model.config.use_cache


def test_sampling_repeats_itself_and_follows_the_seed(tmp_path, files):
    sampling = {"do_sample": True, "top_k": 0}
    run = train(config(tmp_path, files, generation=sampling), tmp_path / "run", **QUIET)
    texts = [text(i, 5) for i in range(6)]
    one, two = (list(generate(run, texts, **QUIET)) for _ in range(2))
    assert one == two


def test_older_predictions_do_not_stay_beside_newer_numbers(tmp_path, files):
    run = train(config(tmp_path, files), tmp_path / "run", **QUIET)
    evaluate(run, **QUIET)
    changes = {"evaluation.metrics": ["perplexity"], "evaluation.split": "validation"}
    evaluate(run, overrides=changes, **QUIET)
    assert not (run / "predictions.jsonl").exists()


def test_a_tokenizer_that_lower_cases_is_scored_in_lower_case(tmp_path, files, monkeypatch):
    """Else a perfect model would have no word right."""
    model = {
        "architecture": {"model_type": "bart", "max_position_embeddings": 64, **TINY},
        "tokenizer": {"type": "bpe", "vocab_size": 300, "lowercase": True},
    }
    rows = [json.loads(line) for line in Path(files["test"]).read_text().splitlines()]
    rows = [{"source": row["source"], "target": row["source"].upper()} for row in rows]
    Path(files["test"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = train(
        config(tmp_path, files, model=model, data={"files": files, "max_target_tokens": 60}),
        tmp_path / "run",
        **QUIET,
    )
    monkeypatch.setattr(evaluation, "_generate_batch", _echo)
    assert evaluate(run, overrides={"evaluation.metrics": ["bleu"]}, **QUIET)["bleu"] > 99


@pytest.mark.parametrize("lowercase", [False, True])
def test_texts_are_scored_as_after_sed(tmp_path, files, monkeypatch, lowercase):
    """Published story figures are of texts that sed has gone through; predictions.jsonl keeps all.

    The oracle is that sed, on both columns of predictions.jsonl.
    """
    rows = [json.loads(line) for line in Path(files["test"]).read_text().splitlines()]
    for row in rows:
        first, *others = row["source"].split()
        row["source"] = f"{first} <newline> <newline> {' '.join(others)}<newline>."
        row["target"] = row["source"].replace("red", "blue").replace("<newline>.", "; <newline>")
    Path(files["test"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = {
        "architecture": {"model_type": "bart", "max_position_embeddings": 64, **TINY},
        "tokenizer": {"type": "bpe", "vocab_size": 300, "lowercase": lowercase},
    }
    data = {"files": files, "max_target_tokens": 60}
    run = train(config(tmp_path, files, model=model, data=data), tmp_path / "run", **QUIET)
    monkeypatch.setattr(evaluation, "_generate_batch", _echo)
    groups = ["bleu", "corpus_bleu", "repetition", "diversity"]
    strip = ["<NEWLINE>" if lowercase else "<newline>"]
    asked = {"evaluation.metrics": groups, "evaluation.strip": strip}
    numbers = evaluate(run, overrides=asked, **QUIET)
    said = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert {key: said[0][key] for key in ("source", "target")} == rows[0]
    columns = {}
    for key in ("prediction", "target", "source"):
        text = "".join(row[key] + "\n" for row in said)
        command = ["sed", "s/<newline>//g"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        columns[key] = done.stdout.splitlines()
    expected = text_metrics(groups, columns["prediction"], columns["target"])
    expected |= baseline_metrics("lead", groups, columns["source"], columns["target"])
    assert numbers == expected | {"rows": len(rows)}
    evaluation_as_it_is = evaluate(run, overrides={"evaluation.metrics": groups}, **QUIET)
    assert evaluation_as_it_is["rep_4"] > numbers["rep_4"]


@pytest.mark.parametrize("lowercase", [False, True])
def test_a_best_model_is_chosen_by_texts_that_are_stripped_too(tmp_path, files, lowercase):
    strip = "<NewLine>" if lowercase else "<newline>"
    settings = config(tmp_path, files, evaluation={"metrics": ["bleu"], "strip": [strip]})
    texts = ["red <newline> cat runs soft", "red cat runs<newline> soft"]
    tokenizer = train_tokenizer(TokenizerSpec(vocab_size=300, lowercase=lowercase), texts * 3)
    made, wanted = (numpy.array([tokenizer(x)["input_ids"]]) for x in texts)
    score = training._scorer(settings, tokenizer)
    assert score(EvalPrediction(made, wanted))["bleu"] == pytest.approx(100)


@pytest.mark.parametrize("read", [3, 70])
def test_texts_that_do_not_fit_the_model_are_one_line(tmp_path, files, read):
    """Past its positions a model stops with an index error, on a GPU with a device assert."""
    run = train(config(tmp_path, files), tmp_path / "run", **QUIET)
    wanted = {"generation.max_new_tokens": 65 if read < 64 else 6, "data.max_source_tokens": 500}
    with pytest.raises(ConfigError, match="64 positions"):
        list(generate(run, [text(0, read)], overrides=wanted, **QUIET))


def test_texts_that_are_cut_to_be_read_are_told(tmp_path, files):
    run = train(config(tmp_path, files), tmp_path / "run", **QUIET)
    lines = []
    cut = {"data.max_source_tokens": 8}
    list(generate(run, ["red", text(0, 30)], overrides=cut, say=lines.append, progress=silent))
    assert "1 of 2 texts were cut at data.max_source_tokens" in lines


def test_a_language_model_of_the_run_goes_on_writing(tmp_path, files):
    texts = {"files": files, "columns": {"text": "source"}, "block_size": 16}
    run = train(config(tmp_path, files, **LM, data=texts), tmp_path / "run", **QUIET)
    assert len(list(generate(run, ["red cat"], **QUIET))) == 1


def test_evaluation_numbers_do_not_depend_on_the_batch_size(tmp_path, files):
    run = train(config(tmp_path, files), tmp_path / "run", **QUIET)
    one, nine = (evaluate(run, overrides={"evaluation.batch_size": n}, **QUIET) for n in (1, 9))
    assert one == pytest.approx(nine, rel=1e-5)


LSTM = {
    "model": {
        "architecture": {"model_type": "lstm_seq2seq", "hidden_size": 8},
        "tokenizer": {"type": "word"},
    }
}
"""Of our own; the others take any argument, row numbers too."""


@pytest.mark.parametrize("sections", [{}, LSTM, LM, LM | {"task": "summarization"}], ids=str)
def test_row_scores_are_torchs_cross_entropy_of_each_row_alone(tmp_path, files, sections):
    """A count that is off by one gives a row its neighbour's tokens, and the totals stay right."""
    columns = {"columns": {"text": "source"}} if sections == LM else {}
    settings = config(tmp_path, files, **sections, data={"files": files} | columns)
    run = train(settings, tmp_path / "run", **QUIET)
    _, settings, model, tokenizer = evaluation.open_run(run, {}, silent)
    task = TASKS[settings.task]
    corpus = load_corpus(settings.data, task.fields, splits=("test",), required=("test",))
    both = model.config.is_encoder_decoder
    encoded = encode_corpus(corpus, task.kind, tokenizer, settings.data, encoder_decoder=both)
    scores, _ = evaluation.score_rows(model, tokenizer, encoded["test"], 4, silent)
    for row, own, count, right in zip(encoded["test"], *scores, strict=True):
        labels = torch.tensor([row["labels"]])
        inputs = {"input_ids": torch.tensor([row["input_ids"]])}
        if both:
            inputs["labels"] = labels
        logits = model(**inputs).logits[0].detach()
        if not both:
            logits, labels = logits[:-1], labels[:, 1:]
        expected = torch.nn.functional.cross_entropy(logits, labels[0], reduction="sum")
        assert float(own) == pytest.approx(float(expected), rel=1e-5)
        assert count == (labels != -100).sum()
        assert right == (logits.argmax(-1) == labels[0]).sum()
    whole = evaluate(run, **QUIET)
    assert float(scores.nll.sum() / scores.tokens.sum()) == pytest.approx(whole["nll"], rel=1e-6)


DECODER = LM | {
    "model": LM["model"]
    | {"architecture": {"model_type": "trocr"} | {k: v for k, v in TINY.items() if "enc" not in k}},
}
"""Whose labels transformers does not shift: this project's rows are shifted all the same."""


@pytest.mark.parametrize("sections", [{}, LM, DECODER], ids=["bart", "gpt2", "trocr"])
def test_evaluation_agrees_with_the_trainers_own(sections, tmp_path, files):
    """nll has two programs, one in training and one in evaluation: they must be one number."""
    columns = {"columns": {"text": "source"}} if sections else {}
    settings = config(
        tmp_path,
        files,
        **sections,
        data={"files": files} | columns,
        training={"eval_strategy": "steps", "eval_steps": 4},
        evaluation={"split": "validation"},
    )
    run = train(settings, tmp_path / "run", **QUIET)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    last = next(row for row in log if "eval_nll" in row)
    numbers = evaluate(run, **QUIET)
    assert numbers["nll"] == pytest.approx(last["eval_nll"], rel=1e-5)
    assert numbers["perplexity"] == pytest.approx(last["eval_perplexity"], rel=1e-5)


@pytest.mark.parametrize("data", [{"block_size": 16}, {}, {"block_size": 16, "streaming": True}])
def test_language_models_train_on_blocks_rows_and_streams(tmp_path, files, data):
    texts = {"files": files, "columns": {"text": "source"}} | data
    run = train(config(tmp_path, files, **LM, data=texts), tmp_path / "run", **QUIET)
    numbers = evaluate(run, **QUIET)
    assert set(numbers) == {"nll", "perplexity", "ece", "rows"}
    assert not (run / "predictions.jsonl").exists()


def test_a_decoder_only_model_summarizes_with_a_prompt(tmp_path, files):
    data = {"files": files, "prompt": "{source} =>"}
    run = train(
        config(tmp_path, files, **(LM | {"task": "summarization"}), data=data),
        tmp_path / "run",
        **QUIET,
    )
    assert "rougeL" in evaluate(run, **QUIET)


def test_translation_is_selected_by_generated_bleu_in_budgeted_batches(tmp_path, files):
    """The published recipe: batches of so many tokens, best checkpoint by BLEU of beam search."""
    run = train(
        config(
            tmp_path,
            files,
            task="translation",
            training={
                "max_tokens": 64,
                "predict_with_generate": True,
                "eval_strategy": "steps",
                "save_strategy": "steps",
                "eval_steps": 2,
                "save_steps": 2,
                "load_best_model_at_end": True,
                "metric_for_best_model": "bleu",
            },
            generation={"num_beams": 2},
        ),
        tmp_path / "run",
        **QUIET,
    )
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "eval_bleu" in row] == [2, 4]
    assert {"bleu", "chrf", "copy_bleu"} <= set(evaluate(run, **QUIET))


def test_the_length_of_what_is_written_follows_what_is_read(tmp_path, files, monkeypatch):
    """Published translations may be 1.2 times the source and 10 tokens more, while training too."""
    asked = []

    def record(self, input_ids, max_new_tokens, **_):
        asked.append((input_ids.shape[1], max_new_tokens))
        return torch.full((len(input_ids), 2), 5)

    monkeypatch.setattr("transformers.BartForConditionalGeneration.generate", record)
    training = {"predict_with_generate": True, "eval_strategy": "epoch", "max_steps": 2}
    generation = {"max_new_tokens": 3, "source_ratio": 1.2}
    made = config(tmp_path, files, training=training, generation=generation)
    run = train(made, tmp_path / "run", **QUIET)
    while_training, asked[:] = [*asked], []
    evaluate(run, **QUIET)
    for calls in (while_training, asked):
        assert calls
        assert all(most == int(1.2 * read) + 3 for read, most in calls)


def test_sources_and_targets_with_vocabularies_of_their_own(tmp_path, files):
    """The whole way of the published translation recipe: plan, train, evaluate, generate."""
    architecture = {"model_type": "marian", "max_position_embeddings": 64, **TINY}
    architecture["share_encoder_decoder_embeddings"] = False
    tokenizer = {"type": "bpe", "vocab_size": 300, "separate": True}
    model = {"architecture": architecture, "tokenizer": tokenizer}
    made = config(tmp_path, files, task="translation", model=model)
    example = plan(made, **QUIET).examples[0]
    first = json.loads(Path(files["train"]).read_text().splitlines()[0])
    assert example["reads"].startswith(first["source"])
    run = train(made, tmp_path / "run", **QUIET)
    assert (run / "model" / "source_tokenizer.json").is_file()
    assert {"bleu", "nll", "copy_bleu"} <= set(evaluate(run, **QUIET))
    assert len([*generate(run, [first["source"]], **QUIET)]) == 1


def test_a_plan_counts_what_training_does_and_makes_nothing(tmp_path, files):
    settings = config(tmp_path, files, training={"max_tokens": 64, "num_train_epochs": 2})
    settings = load_config(tmp_path / "tiny.yaml", {"training.max_steps": None})
    before = set(tmp_path.rglob("*"))
    found = plan(settings, **QUIET)
    assert set(tmp_path.rglob("*")) == before
    assert found.data["train"]["rows"] == 40
    assert found.examples[0]["learns"].startswith(text(0, 1))
    run = train(settings, tmp_path / "run", **QUIET)
    last = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()][-1]
    assert found.steps["steps"] == pytest.approx(last["step"], abs=1)
    assert found.steps["epochs"] == pytest.approx(2.0)


def test_frozen_parameters_stay_as_they_are(tmp_path, files):
    from safetensors.torch import load_file

    runs = []
    for steps in (1, 4):
        settings = config(tmp_path, files, training={"max_steps": steps})
        settings = load_config(tmp_path / "tiny.yaml", {"model.freeze": ["model.encoder.*"]})
        run = train(settings, tmp_path / f"run{steps}", **QUIET)
        runs.append(load_file(run / "model" / "model.safetensors"))
    moved = {name for name in runs[0] if not runs[0][name].equal(runs[1][name])}
    assert moved
    assert not any(name.startswith("model.encoder.layers") for name in moved)


def test_the_same_config_gives_the_same_model(tmp_path, files):
    """A result that its own command does not reproduce is no result."""
    settings = config(tmp_path, files)
    logs = []
    for name in ("one", "two"):
        run = train(settings, tmp_path / name, **QUIET)
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        logs.append([{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows])
        logs[-1].append((run / "model" / "model.safetensors").read_bytes())
    assert logs[0] == logs[1]


def test_bf16_without_hardware_for_it_is_float32_and_says_so(tmp_path, files, monkeypatch):
    """On such a processor bf16 is several times slower; a change of precision must be told."""
    from tvd_gen.run import training

    settings = config(tmp_path, files, training={"bf16": True, "use_cpu": True})
    for has in (True, False):
        monkeypatch.setattr(training, "has_bf16", lambda has=has: has)
        lines = []
        assert training.arguments(settings, tmp_path, lines.append).bf16 is has
        assert any("float32" in line for line in lines) is not has


@pytest.mark.parametrize(
    ("amx", "avx512", "intel", "fast"),
    [(1, 1, 1, True), (0, 1, 1, False), (0, 1, 0, True), (0, 0, 0, False)],
)
def test_bf16_is_fast_by_amx_and_by_amds_avx512(monkeypatch, amx, avx512, intel, fast):
    from tvd_gen.run import training

    monkeypatch.setattr(training.torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    monkeypatch.setattr(training.torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512))
    monkeypatch.setattr(training, "_is_intel", lambda: bool(intel))
    assert training.has_bf16() is fast


# -- what is refused ----------------------------------------------------------------------------


def test_a_folder_with_something_else_is_not_written_into(tmp_path, files):
    run = tmp_path / "run"
    run.mkdir()
    (run / "precious").write_text("a week of work")
    with pytest.raises(ConfigError, match="holds no run, but precious"):
        train(config(tmp_path, files), run, **QUIET)
    assert [p.name for p in run.iterdir()] == ["precious"]


def test_bad_rows_stop_the_run_before_it_begins(tmp_path, files):
    file = Path(files["train"])
    file.write_text(file.read_text() + '{"source": "red", "target": " "}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:41"):
        train(config(tmp_path, files), tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def test_a_missing_or_leaking_test_split_is_told_before_training(tmp_path, files):
    """Found out after days of training, both void the result."""
    rows = Path(files["train"]).read_text().splitlines()[:3]
    Path(files["test"]).write_text("\n".join(rows) + "\n")
    for given, expected in (
        (files, "3 also in train"),
        ({"train": files["train"]}, "no test split"),
    ):
        lines = []
        plan(config(tmp_path, given), say=lines.append, progress=silent)
        assert any(expected in line for line in lines)


def test_rows_that_are_cut_are_told(tmp_path, files):
    lines = []
    data = {"files": files, "max_source_tokens": 8}
    plan(config(tmp_path, files, data=data), say=lines.append, progress=silent)
    assert any(line.startswith("train: 40 rows, ") and line.endswith(" cut") for line in lines)


def test_skipped_rows_are_counted_in_data_json(tmp_path, files):
    file = Path(files["train"])
    file.write_text(file.read_text() + '{"source": "red", "target": " "}\n')
    data = {"files": files, "on_bad_row": "skip"}
    run = train(config(tmp_path, files, data=data), tmp_path / "run", **QUIET)
    report = json.loads((run / "data.json").read_text())["splits"]["train"]
    assert (report["rows_read"], report["rows_kept"], sum(report["bad"].values())) == (41, 40, 1)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (LM | {"task": "summarization", "training": {"predict_with_generate": True,
            "eval_strategy": "steps"}}, "encoder-decoder"),
        ({"training": {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True,
            "save_strategy": "epoch"}}, "training"),
        ({"training": {"lr_scheduler_type": "cosine_with_min_lr"}}, "training"),
        (LM | {"data": {"streaming": True, "block_size": 16, "columns": {"text": "source"}},
            "training": {"max_tokens": 64}}, "streaming"),
        ({"model": {"architecture": {"model_type": "bert", "hidden_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
            "tokenizer": {"vocab_size": 300}}}, "is_decoder"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_one_line(tmp_path, files, sections, message):
    with pytest.raises(ConfigError, match=message):
        train(config(tmp_path, files, **sections), tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()  # or the next try would find it taken


def test_the_log_knows_how_the_run_ended(tmp_path, files):
    run = train(config(tmp_path, files, training={"max_steps": 5}), tmp_path / "run", **QUIET)
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 5]


def test_a_run_that_diverges_after_its_last_log_keeps_no_model(tmp_path, files):
    wild = {"learning_rate": 90.0, "max_grad_norm": 0, "optim": "sgd", "max_steps": 30}
    settings = config(tmp_path, files, training={**wild, "logging_steps": 50})
    with pytest.raises(NonFiniteError):
        train(settings, tmp_path / "run", **QUIET)
    assert not (tmp_path / "run" / "model").exists()


def test_a_run_of_relative_files_is_evaluated_from_anywhere(tmp_path, files, monkeypatch):
    monkeypatch.chdir(tmp_path)
    near = {split: Path(file).name for split, file in files.items()}
    run = train(config(tmp_path, near), tmp_path / "run", **QUIET)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate(run, **QUIET)["rows"] == 9


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_a_tokenizer_lower_cases_only_where_it_was_told_to(kind, lowercase):
    """One of words knows no word but its own, and must not be taken for one that lower-cases."""
    spec = TokenizerSpec(type=kind, vocab_size=300, lowercase=lowercase)
    tokenizer = train_tokenizer(spec, ["The dog sees the cat .", "a fox"])
    assert training.lowercases(tokenizer) is lowercase


def test_evaluation_changes_only_what_a_trained_model_leaves_open(tmp_path, files):
    run = train(config(tmp_path, files), tmp_path / "run", **QUIET)
    with pytest.raises(ConfigError, match="the model is trained"):
        evaluate(run, overrides={"objective.gamma": 0.5}, **QUIET)
    with pytest.raises(ConfigError, match="no such run folder"):
        evaluate(tmp_path / "nowhere", **QUIET)


def test_parquet_trains_like_json_lines(tmp_path, files):
    rows = {split: Dataset.from_json(file) for split, file in files.items()}
    parquet = {split: str(tmp_path / f"{split}.parquet") for split in files}
    for split, data in rows.items():
        data.to_parquet(parquet[split])
    losses = []
    for name, given in (("json", files), ("parquet", parquet)):
        run = train(config(tmp_path, given), tmp_path / name, **QUIET)
        losses.append(json.loads((run / "log.jsonl").read_text().splitlines()[-1])["loss"])
    assert losses[0] == losses[1]


def with_objective(section, tmp_path, files, **sections):
    """The tiny config with another objective section, whole."""
    config(tmp_path, files, **sections)
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"objective": section}))
    return load_config(path)


def test_an_objective_looks_at_a_trained_run(tmp_path, files):
    """GOLD and ASFT begin from what cross-entropy has learned."""
    first = train(with_objective({"name": "ce"}, tmp_path, files), tmp_path / "ce", **QUIET)
    for section in (
        {"name": "gold", "weights_from": "lagged", "weights_every": 2},
        {"name": "asft"},
        {"name": "d2gpo"},
    ):
        made = with_objective(section | {"reference": str(first / "model")}, tmp_path, files)
        run = train(made, tmp_path / section["name"], **QUIET)
        assert (run / "model" / "model.safetensors").is_file()


def test_a_new_model_is_no_reference(tmp_path, files):
    with pytest.raises(ConfigError, match=r"objective\.reference: is missing; a new model"):
        with_objective({"name": "gold"}, tmp_path, files)


def test_a_reference_without_room_for_the_rows_is_refused(tmp_path, files):
    """It stopped in the first step, with an index out of range."""
    short = {"architecture": {"model_type": "bart", "max_position_embeddings": 8, **TINY}}
    short["tokenizer"] = {"type": "bpe", "vocab_size": 300}
    limits = {"max_source_tokens": 6, "max_target_tokens": 6}
    made = with_objective({"name": "ce"}, tmp_path, files, model=short, data=limits)
    first = train(made, tmp_path / "ce", **QUIET)
    section = {"name": "asft", "reference": str(first / "model")}
    with pytest.raises(ConfigError, match="tokens, and the reference has 8 positions"):
        train(with_objective(section, tmp_path, files), tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def test_a_reference_with_other_words_is_refused(tmp_path, files):
    architecture = {"model_type": "bart", "max_position_embeddings": 64, **TINY}
    other = {"architecture": architecture, "tokenizer": {"type": "bpe", "vocab_size": 280}}
    made = with_objective({"name": "ce"}, tmp_path, files, model=other)
    first = train(made, tmp_path / "ce", **QUIET)
    section = {"name": "asft", "reference": str(first / "model")}
    with pytest.raises(ModelError, match="has another vocabulary than the model"):
        train(with_objective(section, tmp_path, files), tmp_path / "run", **QUIET)
