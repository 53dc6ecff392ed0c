"""The metrics as evaluate.Metric classes that need no network, no file and no downloaded script.

Made directly, `Rouge().compute(predictions=..., references=...)`, with `add_batch`, and together in
`evaluate.combine`. Rows stay in memory; with num_process > 1 they pass through evaluate's cache.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import evaluate
import numpy as np
from datasets import Features, List, Value
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from tvd_gen.metrics import counts
from tvd_gen.metrics.sentences import split_sentences

IGNORE = -100
Rows = Sequence[str | Sequence[str]]
"""one reference, or several, for each prediction"""

_TEXT, _NUMBER, _WHOLE = Value("string"), Value("float64"), Value("int64")
_OUTPUTS = [Features(predictions=_TEXT)]
_PAIRS = [
    Features(predictions=_TEXT, references=_TEXT),
    Features(predictions=_TEXT, references=List(_TEXT)),
]


class OfflineMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """What all metrics here share: rows in memory, no folder made, a clear error for no rows."""

    shapes: ClassVar[list[Features]] = _PAIRS

    def __init__(self, *, num_process: int = 1, **options: Any) -> None:
        options.setdefault("keep_in_memory", num_process == 1)
        super().__init__(num_process=num_process, **options)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> None:
        """Add rows: one list for each name in `features`; an empty batch adds nothing.

        ValueError for a text where a list of texts is due, and for lists of unequal length.
        """
        given = {"predictions": predictions, "references": references, **columns}
        for name in self._feature_names():
            if isinstance(given.get(name), str):
                raise ValueError(f"{self.name}: {name} must be a list, got one text")
        if any(len(given[name]) for name in self._feature_names() if given.get(name) is not None):
            super().add_batch(predictions=predictions, references=references, **columns)

    def _info(self) -> evaluate.MetricInfo:
        description = inspect.getdoc(type(self)) or ""
        return evaluate.MetricInfo(
            description=description, citation="", inputs_description="", features=self.shapes
        )

    def _build_data_dir(self) -> str:
        # evaluate makes its cache folder, in the user's home, even for rows kept in memory.
        return "" if self.keep_in_memory else str(super()._build_data_dir())

    def _finalize(self) -> None:
        if self.writer is None and self.num_process == 1:
            raise ValueError(f"{self.name}: nothing to score, no rows were added")
        super()._finalize()


class Bleu(OfflineMetric):
    """sacrebleu's corpus BLEU in 0..100, key bleu. After compute, `signature` says how it was made.

    tokenize: sacrebleu's names (13a, char, zh, intl, none); lowercase: ignore case. Each row may
    have several references, and not all rows the same number. Source: Post, WMT 2018.
    """

    def __init__(self, *, tokenize: str = "13a", lowercase: bool = False, **options: Any) -> None:
        super().__init__(**options)
        # force: sacrebleu warns on stderr about texts that look tokenized.
        self.scorer = BLEU(tokenize=tokenize, lowercase=lowercase, force=True)

    @property
    def signature(self) -> str:
        """sacrebleu's description of the last score; ValueError before the first."""
        return str(self.scorer.get_signature())

    def _compute(self, *, predictions: Sequence[str], references: Rows) -> dict[str, float]:
        rows = checked_references(predictions, references)
        return {"bleu": float(self.scorer.corpus_score(predictions, _streams(rows)).score)}


class TokenizedBleu(Bleu):
    """BLEU in 0..100 on words as they stand, key tokenized_bleu: for texts that are tokenized
    already, as those of published IWSLT14 figures (fairseq-score). Report `bleu` of plain text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(tokenize="none", **options)

    def _compute(self, *, predictions: Sequence[str], references: Rows) -> dict[str, float]:
        found = super()._compute(predictions=predictions, references=references)
        return {"tokenized_bleu": found["bleu"]}


class Chrf(OfflineMetric):
    """sacrebleu's chrF in 0..100, key chrf; word_order=2 makes it chrF++. `signature` as in Bleu.

    Source: Popovic, WMT 2015.
    """

    def __init__(self, *, word_order: int = 0, lowercase: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.scorer = CHRF(word_order=word_order, lowercase=lowercase)

    @property
    def signature(self) -> str:
        """sacrebleu's description of the last score; ValueError before the first."""
        return str(self.scorer.get_signature())

    def _compute(self, *, predictions: Sequence[str], references: Rows) -> dict[str, float]:
        rows = checked_references(predictions, references)
        return {"chrf": float(self.scorer.corpus_score(predictions, _streams(rows)).score)}


class Rouge(OfflineMetric):
    """ROUGE F1 in 0..100 by rouge-score: rouge1, rouge2, rougeL, rougeLsum; the mean over rows.

    stemmer: Porter's, as in published figures. rougeLsum takes sentences from `split_sentences`;
    newlines=True: from newlines alone. Of several references the best counts, for each key. By
    default only a-z and 0-9 make words, so a text in another script scores 0: pass `tokenizer`
    (an object with tokenize(text) -> list of words) there. Source: Lin, 2004.
    """

    keys: ClassVar[tuple[str, ...]] = ("rouge1", "rouge2", "rougeL", "rougeLsum")

    def __init__(
        self, *, stemmer: bool = True, newlines: bool = False, tokenizer: Any = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.newlines = newlines
        self.scorer = RougeScorer(list(self.keys), use_stemmer=stemmer, tokenizer=tokenizer)

    def rows(self, predictions: Sequence[str], references: Rows) -> dict[str, list[float]]:
        """Score every row by itself, in 0..100, in order: what a bootstrap draws from."""
        checked = checked_references(predictions, references)
        scores = [
            self.scorer.score_multi([self._lines(one) for one in several], self._lines(prediction))
            for prediction, several in zip(predictions, checked, strict=True)
        ]
        return {key: [100.0 * float(row[key].fmeasure) for row in scores] for key in self.keys}

    def _lines(self, text: str) -> str:
        return text if self.newlines else "\n".join(split_sentences(text))

    def _compute(self, *, predictions: Sequence[str], references: Rows) -> dict[str, float]:
        rows = self.rows(predictions, references)
        return {key: math.fsum(scores) / len(scores) for key, scores in rows.items()}


class Distinct(OfflineMetric):
    """distinct_1 to distinct_4: different n-grams over all n-grams, in 0..1 (`counts.distinct`)."""

    shapes = _OUTPUTS

    def _compute(self, *, predictions: Sequence[str]) -> dict[str, float]:
        return {f"distinct_{n}": counts.distinct(checked(predictions), n) for n in (1, 2, 3, 4)}


class Repetition(OfflineMetric):
    """rep_4, rep_8, ... rep_64 (`counts.repetition`) and repeated_words, shares in 0..1.

    repeated_words is the share of outputs that say one word three times or more in a row.
    """

    shapes = _OUTPUTS

    def _compute(self, *, predictions: Sequence[str]) -> dict[str, float]:
        shares = counts.repetition(checked(predictions))
        named = {f"rep_{window}": share for window, share in shares.items()}
        return {**named, "repeated_words": counts.repeated_words(predictions)}


class SelfBleu(OfflineMetric):
    """self_bleu_4 in 0..1: how alike the outputs are to each other (`counts.self_bleu`).

    limit: how many outputs, from the first, are compared. ValueError for fewer than two.
    """

    shapes = _OUTPUTS

    def __init__(self, *, limit: int = 500, **options: Any) -> None:
        super().__init__(**options)
        self.limit = limit

    def _compute(self, *, predictions: Sequence[str]) -> dict[str, float]:
        return {"self_bleu_4": counts.self_bleu(checked(predictions), self.limit)}


class CorpusBleu(OfflineMetric):
    """corpus_bleu_1 to corpus_bleu_4 in 0..1, as the published story figures count
    (`counts.corpus_bleu`)."""

    def _compute(self, *, predictions: Sequence[str], references: Rows) -> dict[str, float]:
        rows = checked_references(predictions, references)
        scores = counts.corpus_bleu(predictions, rows)
        return {f"corpus_bleu_{n}": score for n, score in scores.items()}


class Perplexity(OfflineMetric):
    """From sums of -log p in nats and token counts: nll, the token mean, and perplexity = exp(nll).

    compute(nll=[...], tokens=[...]), one pair for each text, batch or rank. An nll over 700 gives
    exp(700), the largest float being near. ValueError for no tokens or a sum that is not finite.
    """

    shapes: ClassVar[list[Features]] = [Features(nll=_NUMBER, tokens=_WHOLE)]

    def _compute(self, *, nll: Sequence[float], tokens: Sequence[int]) -> dict[str, float]:
        total, count = math.fsum(nll), sum(tokens)
        if count <= 0 or not math.isfinite(total):
            raise ValueError(
                f"perplexity: needs a finite nll over 1 token or more, got {total} over {count}"
            )
        return {"nll": total / count, "perplexity": math.exp(min(total / count, 700.0))}


class TokenAccuracy(OfflineMetric):
    """accuracy in 0..1: the share of tokens predicted right; references of -100 are left out.

    predictions and references are token ids, flat or a list for each row. ValueError for no tokens.
    """

    shapes: ClassVar[list[Features]] = [
        Features(predictions=_WHOLE, references=_WHOLE),
        Features(predictions=List(_WHOLE), references=List(_WHOLE)),
    ]

    def _compute(
        self, *, predictions: Sequence[Any], references: Sequence[Any]
    ) -> dict[str, float]:
        given, wanted = _flat_ids(predictions), _flat_ids(references)
        if given.shape != wanted.shape:
            raise ValueError(f"token_accuracy: {given.size} predictions, {wanted.size} references")
        kept = wanted != IGNORE
        if not kept.any():
            raise ValueError("token_accuracy: no tokens to score, every reference is -100")
        return {"accuracy": float((given == wanted)[kept].mean())}


class CalibrationError(OfflineMetric):
    """ece, the expected calibration error in 0..1: the mean over tokens of |accuracy - confidence|.

    compute(confidence=[...], correct=[...]): the probability of the model's first choice, and 1
    where that choice is right. Both are averaged in `bins` bins (low, high] of equal width.
    ValueError for a confidence outside 0..1. Source: Guo et al., ICML 2017.
    """

    shapes: ClassVar[list[Features]] = [Features(confidence=_NUMBER, correct=_WHOLE)]

    def __init__(self, *, bins: int = 15, **options: Any) -> None:
        if bins < 1:
            raise ValueError(f"calibration_error: bins must be at least 1, got {bins}")
        super().__init__(**options)
        self.bins = bins

    def _compute(self, *, confidence: Sequence[float], correct: Sequence[int]) -> dict[str, float]:
        sure, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
        if not ((sure >= 0) & (sure <= 1)).all():
            raise ValueError("calibration_error: every confidence must be in 0..1")
        inner = np.linspace(0, 1, self.bins + 1)[1:-1]
        excess = np.bincount(np.digitize(sure, inner, right=True), weights=right - sure)
        return {"ece": float(np.abs(excess).sum() / sure.size)}


def checked(predictions: Sequence[str]) -> Sequence[str]:
    """Give the predictions; ValueError where one is not a text."""
    for row, prediction in enumerate(predictions):
        if not isinstance(prediction, str):
            raise ValueError(f"row {row}: the prediction must be a text, got {prediction!r}")
    return predictions


def checked_references(predictions: Sequence[str], references: Rows) -> list[list[str]]:
    """Give a list of references for each prediction; ValueError names the first faulty row."""
    checked(predictions)
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions, but references for {len(references)}")
    rows = [[one] if isinstance(one, str) else list(one or ()) for one in references]
    for row, several in enumerate(rows):
        if not several or not all(isinstance(one, str) for one in several):
            raise ValueError(f"row {row}: the reference must be a text or some, got {several!r}")
    return rows


def _streams(rows: list[list[str]]) -> Any:
    """sacrebleu's layout: the first reference of every row, then the second (None: has none)."""
    width = max(map(len, rows))
    return [[row[i] if i < len(row) else None for row in rows] for i in range(width)]


def _flat_ids(rows: Sequence[Any]) -> Any:
    lists = [np.atleast_1d(np.asarray(row, np.int64)) for row in rows]
    return np.concatenate(lists)
