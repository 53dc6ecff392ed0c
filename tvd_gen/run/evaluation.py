"""From a run folder to predictions and numbers."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tvd_gen.calibration import TokenMetrics, TokenScores, score_tokens
from tvd_gen.config import RunConfig, load_config
from tvd_gen.data import (
    Collator,
    GenerationCollator,
    LengthSortedBatchSampler,
    encode_corpus,
    encode_prompts,
    load_corpus,
)
from tvd_gen.errors import ConfigError
from tvd_gen.metrics import METRICS, as_scored, baseline_metrics, text_metrics
from tvd_gen.models import ModelSpec, describe_model, load_model, most_new_tokens
from tvd_gen.run.folder import RunFolder, write_json, write_lines
from tvd_gen.run.training import Progress, Say, lowercases, remarks, set_generation
from tvd_gen.tasks import TASKS
from tvd_gen.trainer import take_targets, target_logits

IGNORE = -100
CHANGEABLE = ("generation", "evaluation", "data")


def evaluate(
    run_dir: Path,
    *,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    say: Say,
    progress: Progress,
) -> dict[str, float]:
    """Score the run's model on a split; writes predictions.jsonl and metrics.json.

    nll, perplexity, accuracy and calibration are of the references under the model, token means,
    and predictions.jsonl has each row's; the text metrics are of what it generates, beside those
    of the task's baseline. `overrides` change the generation, evaluation and data sections. Raises
    ConfigError, DataError, ModelError.
    """
    folder, config, model, tokenizer = open_run(run_dir, overrides, say)
    task, groups = TASKS[config.task], config.evaluation.metrics
    needs = {METRICS[name].needs if name in METRICS else "pairs" for name in groups}
    if not task.has_source and needs - {"tokens"}:
        raise ConfigError(
            f"evaluation.metrics: {config.task} generates no texts; choose among "
            f"{', '.join(name for name, group in METRICS.items() if group.needs == 'tokens')}"
        )
    split = config.evaluation.split
    corpus = load_corpus(_limited(config), task.fields, splits=(split,), required=(split,))
    rows = corpus.splits[split]
    assert isinstance(rows, Dataset)
    encoder_decoder = bool(model.config.is_encoder_decoder)
    encoded = encode_corpus(
        corpus, task.kind, tokenizer, config.data, encoder_decoder=encoder_decoder
    )[split]
    say(f"{split}: {len(rows)} rows{remarks(corpus.report.splits[split])}")
    numbers, columns = {}, {}
    if "tokens" in needs:
        scores, metrics = score_rows(
            model, tokenizer, encoded, config.evaluation.batch_size, progress
        )
        columns, computed = scores.columns(), metrics.compute()
        asked = [METRICS[name] for name in groups if name in METRICS]
        keys = [key for group in asked if group.needs == "tokens" for key in group.keys]
        numbers = {key: computed[key] for key in keys}
    if needs - {"tokens"}:
        # Not the rows that encoding left out: all numbers speak of the same rows.
        rows = rows.select(sorted(set(encoded["row"][:])))
        outputs, _ = generate_texts(config, model, tokenizer, list(rows["source"]), progress)
        texts = {"source": rows["source"], "target": rows["target"], "prediction": outputs}
        write_lines(folder.predictions, _rows(texts | columns))
        numbers = _text_numbers(config, tokenizer, texts, say) | numbers
    else:
        folder.predictions.unlink(missing_ok=True)  # they are of an older evaluation
    numbers["rows"] = float(len(rows))
    write_json(folder.metrics, numbers)
    settings = _settings(config) | {"lower_cased": lowercases(tokenizer)}
    write_json(folder.evaluation, settings | corpus.report.as_dict())
    return numbers


def _text_numbers(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    columns: Mapping[str, Sequence[str]],
    say: Say,
) -> dict[str, float]:
    """The text metrics of the predictions, and those of the task's baseline."""
    lower_cased = lowercases(tokenizer)
    if lower_cased:
        say("the tokenizer lower-cases; so are the references and the baseline, to be scored")
    seen = {
        name: as_scored(texts, strip=config.evaluation.strip, lower_cased=lower_cased)
        for name, texts in columns.items()
    }
    groups, baseline = config.evaluation.metrics, TASKS[config.task].baseline
    numbers = text_metrics(groups, seen["prediction"], seen["target"])
    if baseline:
        numbers |= baseline_metrics(baseline, groups, seen["source"], seen["target"])
    return numbers


def _settings(config: RunConfig) -> dict[str, Any]:
    """What the numbers hang on, beside the model."""
    sections = config.model_dump(mode="json", exclude_none=True)
    return {name: sections[name] for name in CHANGEABLE} | {"seed": config.seed}


def generate(
    run_dir: Path,
    texts: Sequence[str],
    *,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    say: Say,
    progress: Progress,
) -> Iterator[str]:
    """The run's model on texts of one's own, in their order; `overrides` as for `evaluate`."""
    _, config, model, tokenizer = open_run(run_dir, overrides, say)
    made, cut = generate_texts(config, model, tokenizer, list(texts), progress)
    if cut:
        say(f"{cut} of {len(made)} texts were cut at data.max_source_tokens")
    yield from made


def open_run(
    run_dir: Path, overrides: Mapping[str, Any], say: Say
) -> tuple[RunFolder, RunConfig, PreTrainedModel, PreTrainedTokenizerBase]:
    """The folder, its config with the overrides, and the trained model, in eval mode on the device.

    Raises ConfigError where the training is not finished, or an override is of what is trained.
    """
    folder = RunFolder(Path(run_dir))
    folder.check_trained()
    for key in overrides:
        if key.split(".")[0] not in CHANGEABLE:
            raise ConfigError(
                f"--set {key}: the model is trained; only {', '.join(CHANGEABLE)} can change"
            )
    config = load_config(folder.config, overrides)
    spec = ModelSpec(pretrained=str(folder.model), dtype=config.model.dtype)
    model, tokenizer = load_model(spec, texts=None, seed=config.seed, say=say)
    set_generation(model, config)
    return folder, config, model.to(device()).eval(), tokenizer  # type: ignore[arg-type]  # its to() is wrapped


def device() -> torch.device:
    """The accelerator, where there is one."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def _limited(config: RunConfig) -> Any:
    """The data section with evaluation.limit on the split, if that is the smaller limit."""
    split, limit = config.evaluation.split, config.evaluation.limit
    limits = dict(config.data.limit)
    if limit is not None:
        limits[split] = min(limit, limits.get(split, limit))
    return dataclasses.replace(config.data, limit=limits, streaming=False)


def _rows(columns: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


class RowScores(NamedTuple):
    """What a model makes of each row's targets, in the rows' order."""

    nll: Tensor
    """(rows,) float64, the sum of -log p in nats"""
    tokens: Tensor
    """(rows,) int64"""
    correct: Tensor
    """(rows,) int64, targets that are the model's first choice"""

    def columns(self) -> dict[str, list[Any]]:
        """Each row's token means, as in metrics.json, and its number of tokens."""
        some = self.tokens.clamp(min=1)
        means = {"nll": self.nll / some, "accuracy": self.correct.double() / some}
        return {name: each.tolist() for name, each in means.items()} | {
            "tokens": self.tokens.tolist()
        }


def score_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Any,
    batch_size: int,
    progress: Progress,
) -> tuple[RowScores, TokenMetrics]:
    """What the model makes of the encoded rows' targets, each row's and all together.

    NonFiniteError where a target has no finite log p.
    """
    batches, metrics = LengthSortedBatchSampler(encoded["length"], batch_size), TokenMetrics()
    sums: list[tuple[float, int, int]] = []
    for scores, counts in _scored(model, tokenizer, encoded, batches, progress):
        metrics.update(scores)
        parts = (torch.split(each.cpu(), counts) for each in (scores.logp.double(), scores.correct))
        sums += [
            (-float(logp.sum()), len(logp), int(correct.sum()))
            for logp, correct in zip(*parts, strict=True)
        ]
    nll, tokens, correct = zip(*batches.restore(sums), strict=True)
    rows = torch.tensor(nll, dtype=torch.float64), torch.tensor(tokens), torch.tensor(correct)
    return RowScores(*rows), metrics


def _scored(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Any,
    batches: LengthSortedBatchSampler,
    progress: Progress,
) -> Iterator[tuple[TokenScores, list[int]]]:
    """The scores of each batch's targets, row after row, and how many are each row's."""
    collate = Collator(tokenizer.pad_token_id)
    for done, rows in enumerate(batches, start=1):
        batch = collate([encoded[row] for row in rows])
        batch.pop("row", None)  # no model reads it
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        targets = take_targets(dict(batch), shift=not model.config.is_encoder_decoder)
        assert targets is not None
        scores = score_tokens(*target_logits(model, inputs))
        yield scores, (targets != IGNORE).sum(1).tolist()
        progress("scoring", done, len(batches), {})


@torch.no_grad()
def generate_texts(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: list[str],
    progress: Progress,
) -> tuple[list[str], int]:
    """One text for each source, in their order, and how many sources were cut to be read.

    Batches go by length, the longest first.
    """
    encoder_decoder = bool(model.config.is_encoder_decoder)
    spec = config.data
    if not TASKS[config.task].has_source:
        spec = dataclasses.replace(spec, prompt="{source}")  # a text that goes on, as in training
    prompts, cut = encode_prompts(sources, tokenizer, spec, encoder_decoder=encoder_decoder)
    collate = GenerationCollator(tokenizer.pad_token_id, encoder_decoder)
    batches = LengthSortedBatchSampler([len(ids) for ids in prompts], config.evaluation.batch_size)
    torch.manual_seed(config.seed)  # sampling repeats itself
    texts: list[str] = []
    for done, rows in enumerate(batches, start=1):
        batch = collate([{"input_ids": prompts[row], "row": row} for row in rows])
        del batch["row"]
        _check_room(model, batch["input_ids"].shape[1])
        texts += _generate_batch(model, tokenizer, batch, encoder_decoder)
        progress("generating", done, len(batches), {})
    return batches.restore(texts), cut


def _check_room(model: PreTrainedModel, read: int) -> None:
    """Raise ConfigError where what is read or written runs over the model's positions."""
    positions, wanted = describe_model(model).positions, most_new_tokens(model, read)
    if positions is None:
        return
    left = positions - (0 if model.config.is_encoder_decoder else read)
    if read > positions or wanted > left:
        raise ConfigError(
            f"generation.max_new_tokens: {wanted} after {read} tokens read, and the model has "
            f"{positions} positions; set it to {max(left, 0)} or less, or lower "
            "data.max_source_tokens"
        )


def _generate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: dict[str, Tensor],
    encoder_decoder: bool,
) -> list[str]:
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    most = most_new_tokens(model, batch["input_ids"].shape[1])
    ids = model.generate(**inputs, max_new_tokens=most)  # type: ignore[operator]  # it has no types
    made = ids if encoder_decoder else ids[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(made, skip_special_tokens=True)]
