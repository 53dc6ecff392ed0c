"""How good a text is: BLEU, chrF, ROUGE, diversity, repetition, and the token metrics.

This file is light, for configs name metrics before anything heavy is needed; the classes, which
import evaluate and with it torch, come when first used: `from tvd_gen.metrics import Rouge`.
"""

import difflib
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tvd_gen.errors import ConfigError
from tvd_gen.metrics.sentences import lead, split_sentences

if TYPE_CHECKING:
    from tvd_gen.metrics.modules import (
        Bleu,
        CalibrationError,
        Chrf,
        CorpusBleu,
        Distinct,
        OfflineMetric,
        Perplexity,
        Repetition,
        Rouge,
        SelfBleu,
        TokenAccuracy,
        TokenizedBleu,
    )

__all__ = [
    "BASELINES",
    "LOWER_IS_BETTER",
    "METRICS",
    "Bleu",
    "CalibrationError",
    "Chrf",
    "CorpusBleu",
    "Distinct",
    "Group",
    "OfflineMetric",
    "Perplexity",
    "Repetition",
    "Rouge",
    "SelfBleu",
    "TokenAccuracy",
    "TokenizedBleu",
    "as_scored",
    "baseline_metrics",
    "group_fault",
    "lead",
    "load_metric",
    "split_sentences",
    "text_metrics",
]

_MODULES = "tvd_gen.metrics.modules"


@dataclass(frozen=True)
class Group:
    """One name under `evaluation.metrics`. Calling it makes the metric, as calling its class would.

    needs: "outputs" (generated texts), "pairs" (those and references) or "tokens" (the model's
    probabilities of the references, which no generated text can give).
    """

    class_name: str
    needs: Literal["outputs", "pairs", "tokens"]
    keys: tuple[str, ...]
    units: str

    def __call__(self, **options: Any) -> "OfflineMetric":
        """Make the metric with its class's options."""
        metric: OfflineMetric = getattr(import_module(_MODULES), self.class_name)(**options)
        return metric


METRICS: dict[str, Group] = {
    "rouge": Group("Rouge", "pairs", ("rouge1", "rouge2", "rougeL", "rougeLsum"), "0 to 100"),
    "bleu": Group("Bleu", "pairs", ("bleu",), "0 to 100"),
    "tokenized_bleu": Group("TokenizedBleu", "pairs", ("tokenized_bleu",), "0 to 100"),
    "chrf": Group("Chrf", "pairs", ("chrf",), "0 to 100"),
    "diversity": Group(
        "Distinct", "outputs", tuple(f"distinct_{n}" for n in range(1, 5)), "0 to 1"
    ),
    "repetition": Group(
        "Repetition",
        "outputs",
        (*(f"rep_{window}" for window in (4, 8, 16, 32, 64)), "repeated_words"),
        "0 to 1",
    ),
    "self_bleu": Group("SelfBleu", "outputs", ("self_bleu_4",), "0 to 1"),
    "corpus_bleu": Group(
        "CorpusBleu", "pairs", tuple(f"corpus_bleu_{n}" for n in range(1, 5)), "0 to 1"
    ),
    "perplexity": Group("Perplexity", "tokens", ("nll", "perplexity"), "nats a token, its exp"),
    "accuracy": Group("TokenAccuracy", "tokens", ("accuracy",), "0 to 1"),
    "calibration": Group("CalibrationError", "tokens", ("ece",), "0 to 1"),
}

LOWER_IS_BETTER = ("loss", "nll", "perplexity", "ece")
"""Names that a best checkpoint has the least of; with a prefix (eval_nll) too."""

BASELINES: dict[str, Callable[[str], str]] = {"lead": lead, "copy": str}
"""What a baseline says for a source: its first sentence, or all of it."""


def group_fault(name: str) -> str | None:
    """Say in one line what is wrong with a name under `evaluation.metrics`; None where it is right.

    A name is one of METRICS or a local metric: a folder, or its script, written with a slash.
    """
    if name in METRICS:
        return None
    if _is_path(name):
        return _script_fault(name)
    near = difflib.get_close_matches(name, METRICS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(METRICS)}"
    return f"{name}: unknown metric; {hint}; a metric of your own is written as ./folder"


def load_metric(name: str) -> Any:
    """Give the metric of a group, or of a local folder FOLDER/FOLDER.py through evaluate.load.

    Offline: nothing is fetched, for a metric on the hub is code from the hub; download its folder
    and name that. ConfigError, one line, where there is none or its script fails.
    """
    if fault := group_fault(name):
        raise ConfigError(f"evaluation.metrics: {fault}")
    return METRICS[name]() if name in METRICS else _load_script(name)


def as_scored(
    texts: Iterable[str], *, strip: Sequence[str] | None = None, lower_cased: bool = False
) -> list[str]:
    """Sources, references and predictions as `tvd-gen eval` gives them to the text metrics.

    What `strip` names is taken out wherever it stands, and nothing is put in its place, as by sed's
    s/<newline>//g. `lower_cased`: all in lower case, `strip` too.
    """
    case = str.lower if lower_cased else str
    made = [case(text) for text in texts]
    for each in map(case, strip or ()):
        made = [text.replace(each, "") for text in made]
    return made


def text_metrics(
    groups: Sequence[str],
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]] | None = None,
) -> dict[str, float]:
    """Score generated texts: one flat dict of finite numbers, for the groups that texts can answer.

    Groups of tokens (perplexity, accuracy, calibration) are passed over: see `calibration`. A local
    metric's key that is taken is written name_key. ConfigError for an unknown name, for a metric
    without the references it needs, and for one that cannot score these texts.
    """
    if not predictions:
        raise ConfigError("evaluation: no texts to score")
    scores: dict[str, float] = {}
    for name in groups:
        if name in METRICS and METRICS[name].needs == "tokens":
            continue
        for key, value in _scores(name, predictions, references).items():
            scores[key if key not in scores else f"{Path(name).stem}_{key}"] = value
    return scores


def baseline_metrics(
    baseline: str,
    groups: Sequence[str],
    sources: Sequence[str],
    references: Sequence[str | Sequence[str]],
) -> dict[str, float]:
    """Score what a baseline of BASELINES makes of the sources, under lead_ or copy_ keys."""
    predictions = [BASELINES[baseline](source) for source in sources]
    scores = text_metrics(groups, predictions, references)
    return {f"{baseline}_{key}": value for key, value in scores.items()}


def _scores(
    name: str, predictions: Sequence[str], references: Sequence[str | Sequence[str]] | None
) -> dict[str, float]:
    if references is None and name in METRICS and METRICS[name].needs == "pairs":
        raise ConfigError(f"evaluation.metrics: {name}: needs references, and the task has none")
    metric = load_metric(name)
    columns: dict[str, list[Any]] = {"predictions": list(predictions)}
    if references is not None:
        columns["references"] = list(references)
    try:
        result = metric.compute(**columns)
    except Exception as error:
        if name in METRICS and not isinstance(error, ValueError):
            raise
        raise ConfigError(f"evaluation.metrics: {name}: {_one_line(error)}") from error
    return _numbers(name, result)


def _numbers(name: str, result: Any) -> dict[str, float]:
    """Check a user's metric: a dict of numbers."""
    if not isinstance(result, Mapping):
        raise ConfigError(f"evaluation.metrics: {name}: compute must give a dict, got {result!r}")
    for key, value in result.items():
        if not isinstance(value, numbers.Real):
            raise ConfigError(f"evaluation.metrics: {name}: {key} must be a number, got {value!r}")
    return {str(key): float(value) for key, value in result.items()}


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.endswith(".py")


def _script(name: str) -> Path:
    path = Path(name).expanduser().resolve()
    return path if path.suffix == ".py" else path / f"{path.name}.py"


def _script_fault(name: str) -> str | None:
    script = _script(name)
    if script.is_file():
        return None
    return f"{name}: no metric there; it needs the file {script} (nothing is fetched from a hub)"


def _load_script(name: str) -> Any:
    import evaluate

    try:
        return evaluate.load(str(_script(name)), keep_in_memory=True)
    except Exception as error:  # a user's script may fail in any way
        raise ConfigError(f"evaluation.metrics: {name}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(_MODULES), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
