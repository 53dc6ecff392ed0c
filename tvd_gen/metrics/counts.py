"""Counts over the words of texts: how varied, how repetitive, how alike.

Words are what white space parts, case and punctuation included, as in the published figures.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby, islice

import numpy as np

WINDOWS = (4, 8, 16, 32, 64)
# of n-grams of order 1, 2, ... in corpus BLEU-n; the third as the published script rounds 1/3
BLEU_WEIGHTS = {1: (1.0,), 2: (0.5, 0.5), 3: (0.33, 0.33, 0.33), 4: (0.25,) * 4}
_AROUND = ".,;:!?()[]\"'\u2018\u2019\u201c\u201d\u2026"

Ngram = tuple[str, ...]


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams over all n-grams of the corpus, in (0, 1]; 0 when no text has n words.

    Source: Li et al., NAACL 2016; over the corpus, as the published TaiLr scripts count.
    """
    grams = [gram for text in texts for gram in _ngrams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(texts: Sequence[str], windows: Sequence[int] = WINDOWS) -> dict[int, float]:
    """Rep-l for each l: the share of a text's words that stand among the l - 1 words before them.

    The mean over texts, in [0, 1]; a text without words counts 0. The published script's window
    holds l - 1 words, not l: we follow it. Source: Welleck et al., ICLR 2020.
    """
    gaps = [_gaps(text.split()) for text in texts]
    return {
        window: math.fsum(_share(row, window) for row in gaps) / len(texts) for window in windows
    }


def repeated_words(texts: Sequence[str], times: int = 3) -> float:
    """Give the share of texts with one word `times` or more in a row ("Qt Qt Qt Qt"), in [0, 1].

    Case and the punctuation around a word are ignored ("Qt, qt Qt!"), signs of a name are not ("C,
    C++, C#"); rows of signs alone ("- - -") do not count.
    """
    return sum(_longest_run(text) >= times for text in texts) / len(texts)


def self_bleu(texts: Sequence[str], limit: int = 500) -> float:
    """Mean BLEU-4 of each text against all others, in [0, 1]: 1 is a model that says one thing.

    Of the first `limit` texts, as the published script. An order without a match counts 0.1 of one
    (method 1 of Chen & Cherry, WMT 2014); a text that shares no word with any other scores 0.
    Equals NLTK's sentence_bleu in time linear in the corpus. Source: Zhu et al., SIGIR 2018.
    """
    if len(texts) < 2:
        raise ValueError(f"self_bleu: needs at least 2 texts to compare, got {len(texts)}")
    rows = [text.split() for text in islice(texts, limit)]
    counts = [_counts(row) for row in rows]
    best, second = _two_highest(counts)
    lengths = Counter(map(len, rows))
    scores = []
    for row, count in zip(rows, counts, strict=True):
        # The highest count of the others: the second where this row itself may hold the first.
        matches = _by_order(
            (gram, min(n, second[gram] if n == best[gram] else best[gram]))
            for gram, n in count.items()
        )
        others = [n for n, rows_of_it in lengths.items() if n != len(row) or rows_of_it > 1]
        scores.append(_bleu(matches, _totals(row), len(row), _closest(others, len(row)), 0.1))
    return math.fsum(scores) / len(scores)


def pooled_bleu(texts: Sequence[str], references: Sequence[str], limit: int = 500) -> float:
    """Mean BLEU-4 of each text against all references at once, in [0, 1], smoothed as `self_bleu`.

    Of all texts against the first `limit` references, as the published script. Equals NLTK's
    sentence_bleu in time linear in both. ValueError without texts or references.
    """
    if not texts or not references:
        raise ValueError(f"pooled_bleu: {len(texts)} texts, {len(references)} references")
    rows = [reference.split() for reference in islice(references, limit)]
    best: Counter[Ngram] = Counter()
    for row in rows:
        best |= _counts(row)
    lengths = {len(row) for row in rows}
    scores = []
    for words in (text.split() for text in texts):
        matches = _by_order((gram, min(n, best[gram])) for gram, n in _counts(words).items())
        scores.append(
            _bleu(matches, _totals(words), len(words), _closest(lengths, len(words)), 0.1)
        )
    return math.fsum(scores) / len(scores)


def corpus_bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[int, float]:
    """BLEU-1 to BLEU-4 of the corpus on words as they stand, in [0, 1], unsmoothed, as NLTK counts.

    For figures beside the published ones, whose script weighs the orders of BLEU-3 by 0.33 each;
    sacrebleu's BLEU is the one to report. 0 where an order up to n has no match. Source: Papineni
    et al., ACL 2002.
    """
    matches, totals, length, reference_length = [0] * 4, [0] * 4, 0, 0
    for text, row in zip(texts, references, strict=True):
        words, others = text.split(), [reference.split() for reference in row]
        highest: Counter[Ngram] = Counter()
        for other in others:
            highest |= _counts(other)
        matches = _sum(matches, _by_order((_counts(words) & highest).items()))
        totals = _sum(totals, _totals(words))
        length += len(words)
        reference_length += _closest(map(len, others), len(words))
    return {
        n: _bleu(matches[:n], totals[:n], length, reference_length, 0.0, weights)
        for n, weights in BLEU_WEIGHTS.items()
    }


def _bleu(
    matches: list[int],
    totals: list[int],
    length: int,
    target: int,
    empty: float,
    weights: Sequence[float] = BLEU_WEIGHTS[4],
) -> float:
    """Geometric mean of the precisions times the brevity penalty; `empty` stands for 0 matches."""
    if not matches[0] or not (empty or all(matches)):
        return 0.0
    precisions = [(match or empty) / total for match, total in zip(matches, totals, strict=True)]
    penalty = 1.0 if length > target else math.exp(1 - target / length)
    logs = (w * math.log(precision) for w, precision in zip(weights, precisions, strict=True))
    return penalty * math.exp(math.fsum(logs))


def _ngrams(words: Sequence[str], n: int) -> Iterable[Ngram]:
    return zip(*(words[i:] for i in range(n)), strict=False)


def _counts(words: Sequence[str]) -> Counter[Ngram]:
    return Counter(gram for n in (1, 2, 3, 4) for gram in _ngrams(words, n))


def _totals(words: Sequence[str]) -> list[int]:
    # NLTK counts one n-gram, unmatched, in a text shorter than n: method 1 needs a denominator.
    return [max(1, len(words) - n + 1) for n in (1, 2, 3, 4)]


def _by_order(counts: Iterable[tuple[Ngram, int]]) -> list[int]:
    orders = [0] * 4
    for gram, n in counts:
        orders[len(gram) - 1] += n
    return orders


def _two_highest(counts: Iterable[Counter[Ngram]]) -> tuple[Counter[Ngram], Counter[Ngram]]:
    """For each n-gram its highest and second-highest count in any one text (equal where tied)."""
    best: Counter[Ngram] = Counter()
    second: Counter[Ngram] = Counter()
    for count in counts:
        for gram, n in count.items():
            second[gram] = max(second[gram], min(n, best[gram]))
            best[gram] = max(best[gram], n)
    return best, second


def _closest(lengths: Iterable[int], length: int) -> int:
    """Give the nearest reference length, the shorter of two equally near."""
    return min(lengths, key=lambda other: (abs(other - length), other))


def _sum(left: list[int], right: list[int]) -> list[int]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _share(gaps: Sequence[float], window: int) -> float:
    # float32, as the published script rounds each text's share: the exact one differs by 2e-9.
    return float(np.float32(sum(gap < window for gap in gaps) / max(1, len(gaps))))


def _gaps(words: Sequence[str]) -> list[float]:
    """How many words back each word stood last; infinity where it is new."""
    last: dict[str, int] = {}
    gaps = []
    for at, word in enumerate(words):
        gaps.append(at - last[word] if word in last else math.inf)
        last[word] = at
    return gaps


def _longest_run(text: str) -> int:
    words = [word.strip(_AROUND).casefold() for word in text.split()]
    runs = ((word, len(list(run))) for word, run in groupby(words))
    return max((n for word, n in runs if any(map(str.isalnum, word))), default=0)
