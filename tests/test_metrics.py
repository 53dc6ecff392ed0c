"""Laws of the metrics; the oracles are published figures, and sacrebleu, rouge-score and NLTK."""

import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.translate.bleu_score import corpus_bleu as nltk_corpus_bleu
from rouge_score.rouge_scorer import RougeScorer

from tvd_gen import metrics
from tvd_gen.calibration import Calibration, TokenMetrics, score_tokens
from tvd_gen.errors import ConfigError
from tvd_gen.metrics import (
    METRICS,
    Bleu,
    CalibrationError,
    Chrf,
    CorpusBleu,
    Distinct,
    Perplexity,
    Repetition,
    Rouge,
    SelfBleu,
    TokenAccuracy,
    TokenizedBleu,
    baseline_metrics,
    counts,
    group_fault,
    lead,
    load_metric,
    split_sentences,
    text_metrics,
)

GOLDEN = json.loads((Path(__file__).parent / "golden/published_metrics.json").read_text("utf-8"))
OUTPUTS, REFERENCES = GOLDEN["system_output"], GOLDEN["references"]
TEXT_GROUPS = [name for name, group in METRICS.items() if group.needs != "tokens"]

WORDS = st.sampled_from(["a", "b", "c", "Qt", "der", "für", "語", "the"])
TEXTS = st.lists(st.lists(WORDS, max_size=12).map(" ".join), min_size=1, max_size=8)
ODD = st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=2, max_size=5)

# --- the published figures


@pytest.mark.parametrize("key", [key for key in GOLDEN if key.startswith(("rep_", "distinct_"))])
def test_repetition_and_distinct_are_the_published_scripts(key: str) -> None:
    """Figures that differ from the paper's by their counting cannot be set beside them."""
    found = text_metrics(["repetition", "diversity"], GOLDEN["texts"])
    assert found[key] == pytest.approx(GOLDEN[key], abs=1e-9)


def test_self_bleu_and_corpus_bleu_are_the_published_scripts() -> None:
    """The same, for the paper's synthetic and story experiments."""
    texts = SelfBleu().compute(predictions=GOLDEN["texts"])
    pairs = CorpusBleu().compute(predictions=OUTPUTS, references=REFERENCES)
    assert texts["self_bleu_4"] == pytest.approx(GOLDEN["self_bleu_4"], abs=1e-9)
    assert pairs["corpus_bleu_4"] == pytest.approx(GOLDEN["corpus_bleu_4"], abs=1e-9)


def published_rep(words: list[str], window: int) -> float:
    """The window as the published script masks it: l - 1 words, each compared with each."""
    hits = [word in words[max(0, i - window + 1) : i] for i, word in enumerate(words)]
    return sum(hits) / len(words) if words else 0.0


@settings(deadline=None)
@given(TEXTS)
def test_repetition_is_its_definition(texts: list[str]) -> None:
    """The fast count keeps the last place only; a wrong window shows in short texts first."""
    for window, share in counts.repetition(texts).items():
        wanted = np.mean([published_rep(text.split(), window) for text in texts])
        assert share == pytest.approx(wanted, abs=1e-7)


@settings(deadline=None)
@given(TEXTS.filter(lambda texts: len(texts) > 1))
def test_self_bleu_is_nltks_against_all_others(texts: list[str]) -> None:
    """The linear count goes wrong where two texts are equal, tied or empty."""
    rows = [text.split() for text in texts]
    smooth = SmoothingFunction().method1
    wanted = [
        sentence_bleu(rows[:i] + rows[i + 1 :], row, smoothing_function=smooth)
        for i, row in enumerate(rows)
    ]
    assert counts.self_bleu(texts) == pytest.approx(np.mean(wanted), abs=1e-12)


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_pooled_bleu_is_nltks(texts: list[str], references: list[str]) -> None:
    """One pool of references for all texts: what the published script scores against."""
    pool, smooth = [text.split() for text in references], SmoothingFunction().method1
    wanted = [sentence_bleu(pool, text.split(), smoothing_function=smooth) for text in texts]
    assert counts.pooled_bleu(texts, references) == pytest.approx(np.mean(wanted), abs=1e-12)
    with pytest.raises(ValueError, match="0 references"):
        counts.pooled_bleu(texts, [])


def test_pooled_bleu_reads_the_first_so_many_references() -> None:
    assert counts.pooled_bleu(["a b c d"], ["x", "a b c d"], limit=1) == 0.0
    assert counts.pooled_bleu(["a b c d"], ["x", "a b c d"]) == 1.0


@settings(deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_corpus_bleu_is_nltks(rows: list[tuple[list[str], list[str]]]) -> None:
    """Several references, short texts and empty ones are where BLEUs part."""
    texts, references = [row[0][0] for row in rows], [row[1] for row in rows]
    split = [[reference.split() for reference in several] for several in references]
    orders = {1: (1,), 2: (0.5, 0.5), 3: (0.33, 0.33, 0.33), 4: (0.25,) * 4}  # as published
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NLTK warns of an order without matches
        wanted = {
            n: nltk_corpus_bleu(split, [text.split() for text in texts], weights)
            for n, weights in orders.items()
        }
    assert counts.corpus_bleu(texts, references) == pytest.approx(wanted, abs=1e-12)


def test_tokenized_bleu_counts_words_as_they_stand() -> None:
    """13a cuts "don't" and "&apos;" anew; figures of Moses tokens must not be cut twice."""
    outputs, references = ["a b c &apos;s d,e f"], ["a b c &apos;s d , e f"]
    found = text_metrics(["bleu", "tokenized_bleu"], outputs, references)
    assert found["bleu"] == pytest.approx(100)
    assert found["tokenized_bleu"] < 60


def test_self_bleu_compares_the_first_so_many() -> None:
    """The published figure is of 500; of more it would be another figure."""
    texts = ["a b c d e", "a b c d f", "x y z"]
    assert SelfBleu(limit=2).compute(predictions=texts) == SelfBleu().compute(predictions=texts[:2])


# --- sacrebleu and rouge-score


def test_bleu_and_chrf_are_sacrebleus_with_the_known_signature() -> None:
    """A BLEU without its signature cannot be compared with anyone's."""
    bleu, chrf = Bleu(), Chrf()
    scores = evaluate.combine([bleu, chrf]).compute(predictions=OUTPUTS, references=REFERENCES)
    assert scores["bleu"] == sacrebleu.corpus_bleu(OUTPUTS, [REFERENCES]).score
    assert scores["chrf"] == sacrebleu.corpus_chrf(OUTPUTS, [REFERENCES]).score
    version = sacrebleu.__version__
    assert bleu.signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    assert chrf.signature == f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"


def test_bleu_of_the_sacrebleu_documentation() -> None:
    """An oracle of fixed numbers: a swap of predictions and references would agree with itself."""
    references = [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ]
    outputs = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    found = evaluate.combine([Bleu(), Chrf()]).compute(predictions=outputs, references=references)
    assert found["bleu"] == pytest.approx(48.530827, abs=1e-5)
    assert found["chrf"] == pytest.approx(59.734, abs=1e-2)


def test_rows_may_have_different_numbers_of_references() -> None:
    """sacrebleu's layout is by stream; padding with empty texts would lower the score."""
    outputs, references = ["the cat sat on the mat", "hello there"], ["the cat sat on a mat"]
    several = [["x y", *references, "the cat sat on the mat"], ["hello there"]]
    for metric in (Bleu(), Chrf(), Rouge()):
        assert max(metric.compute(predictions=outputs, references=several).values()) == (
            pytest.approx(100)
        )
    long = {"predictions": outputs[:1], "references": several[:1]}
    assert CorpusBleu().compute(**long)["corpus_bleu_4"] == 1


def test_a_missing_reference_is_none_and_not_an_empty_text() -> None:
    """An empty reference is the nearest in length to a short output, and hides its brevity."""
    outputs, bleu = ["a b", "c"], Bleu()
    found = bleu.compute(predictions=outputs, references=[["a b"], ["c d e", "c d f g"]])
    streams = [["a b", "c d e"], [None, "c d f g"]]
    assert found["bleu"] == sacrebleu.corpus_bleu(outputs, streams).score
    assert bleu.signature.startswith("nrefs:var|")


def test_rouge_is_rouge_scorers() -> None:
    """The mean over rows, F1, stemmed, times 100: each has made tables that do not compare."""
    outputs, references = [*OUTPUTS, "it runs libraries"], [*REFERENCES, "running a library"]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    rows = [scorer.score(*pair) for pair in zip(references, outputs, strict=True)]
    found = Rouge().compute(predictions=outputs, references=references)
    for key in ("rouge1", "rouge2", "rougeL"):
        assert found[key] == pytest.approx(100 * np.mean([row[key].fmeasure for row in rows]))


def test_rouge_lsum_is_rouge_scorers_on_one_sentence_a_line() -> None:
    """Without line breaks rougeLsum is rougeL under another name."""
    output, reference = "It ran. The cat sat.", "The cat sat. It ran."
    scorer = RougeScorer(["rougeLsum"])
    lines = [text.replace(". ", ".\n") for text in (reference, output)]
    found = Rouge(stemmer=False).compute(predictions=[output], references=[reference])
    assert found["rougeLsum"] == pytest.approx(100 * scorer.score(*lines)["rougeLsum"].fmeasure)
    assert found["rougeLsum"] > found["rougeL"]
    plain = Rouge(newlines=True).compute(predictions=[output], references=[reference])
    assert plain["rougeLsum"] == pytest.approx(plain["rougeL"])


def test_rouge_gives_every_row_in_order() -> None:
    """A bootstrap over rows in another order pairs the wrong outputs."""
    rows = Rouge().rows(OUTPUTS, REFERENCES)
    whole = Rouge().compute(predictions=OUTPUTS, references=REFERENCES)
    assert {key: np.mean(scores) for key, scores in rows.items()} == pytest.approx(whole)
    last = Rouge().rows(OUTPUTS[-1:], REFERENCES[-1:])
    assert {key: scores[-1:] for key, scores in rows.items()} == last


# --- laws


@settings(deadline=None)
@given(TEXTS, st.integers(1, 4))
def test_distinct_is_a_share_and_doubling_the_corpus_halves_it(texts: list[str], n: int) -> None:
    """Distinct-n over texts instead of the corpus would stay the same."""
    share = counts.distinct(texts, n)
    has_ngrams = any(len(text.split()) >= n for text in texts)
    assert (0 < share <= 1) if has_ngrams else share == 0
    assert counts.distinct(texts * 2, n) == pytest.approx(share / 2)


@given(st.lists(st.text("abcdefghij", min_size=1), unique=True, max_size=20))
def test_a_text_without_repeats_has_no_repetition(words: list[str]) -> None:
    """Any other value is counted from the window's edge or from another text."""
    text = " ".join(words)
    assert set(counts.repetition([text, text]).values()) == {0.0}


@settings(deadline=None, max_examples=20)
@given(st.permutations(list(zip(OUTPUTS, REFERENCES, strict=True))[:6]))
def test_the_order_of_rows_changes_no_metric(rows: list[tuple[str, str]]) -> None:
    """Length-sorted generation must not move a figure."""
    outputs, references = zip(*rows, strict=True)
    wanted = text_metrics(TEXT_GROUPS, OUTPUTS[:6], REFERENCES[:6])
    assert text_metrics(TEXT_GROUPS, outputs, references) == pytest.approx(wanted, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(ODD)
def test_every_metric_is_finite_for_any_unicode_text(rows: list[tuple[str, str]]) -> None:
    """Empty outputs are common early in training; nan or a crash would lose the evaluation."""
    outputs, references = zip(*rows, strict=True)
    found = text_metrics(TEXT_GROUPS, outputs, references)
    assert set(found) == {key for name in TEXT_GROUPS for key in METRICS[name].keys}
    assert all(math.isfinite(value) and value >= 0 for value in found.values())


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("Qt Qt Qt Qt", 4),
        ("a library for Qt, qt Qt! and more", 3),
        ("Qt Qt is Qt", 2),
        ("for C, C++, C# and D", 1),
        ("- - - - title - - - -", 1),
        ("", 0),
    ],
)
def test_repeated_words_sees_degenerate_outputs_only(text: str, times: int) -> None:
    """The loop "Qt Qt Qt Qt" is what the gamma loss is said to prevent: it must be counted."""
    assert counts.repeated_words([text, "fine words"]) == (0.5 if times > 2 else 0)
    assert counts.repeated_words([text], times + 1) == 0


def test_perfect_outputs_reach_the_top_and_foreign_ones_the_bottom() -> None:
    """A scale of 0 to 1 where 0 to 100 is written, or the reverse."""
    long = [text for text in REFERENCES if len(text.split()) > 3]  # NLTK counts shorter ones down
    perfect = text_metrics(["rouge", "bleu", "chrf", "corpus_bleu"], long, long)
    for n in range(1, 5):
        assert perfect.pop(f"corpus_bleu_{n}") == pytest.approx(1)
    assert perfect == pytest.approx(dict.fromkeys(perfect, 100.0))
    foreign = text_metrics(["rouge", "bleu", "corpus_bleu"], ["xyz"] * 2, ["abc def"] * 2)
    assert foreign == pytest.approx(dict.fromkeys(foreign, 0.0), abs=1e-9)


# --- token metrics


def test_token_metrics_agree_with_the_streaming_ones() -> None:
    """Two ways to the same figure, written apart: histogram sums and evaluate's columns."""
    source = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(400, 12, generator=source)
    targets = torch.randint(12, (400,), generator=source)
    scores, streamed = score_tokens(logits, targets), TokenMetrics()
    streamed.update(scores)
    sums = Perplexity().compute(nll=-scores.logp, tokens=[1] * 400)
    ece = CalibrationError().compute(confidence=scores.confidence, correct=scores.correct)
    right = TokenAccuracy().compute(predictions=logits.argmax(1), references=targets)
    assert {**sums, **ece, **right} == pytest.approx(streamed.compute(), abs=1e-6)


def test_a_confidence_on_an_edge_is_in_the_bin_below_as_in_the_streaming_ece() -> None:
    """Models of two sure classes sit on 0.5; the two ways would report two figures."""
    sure, right = torch.tensor([0.5, 0.4]), torch.tensor([1, 0])
    streamed = Calibration(bins=2)
    streamed.update(sure, right)
    found = CalibrationError(bins=2).compute(confidence=sure, correct=right)
    assert found["ece"] == pytest.approx(streamed.ece()) == pytest.approx(0.05)


def test_perplexity_weighs_tokens_not_texts() -> None:
    """The mean of perplexities over texts or batches changes with the batch size."""
    metric = Perplexity()
    metric.add_batch(nll=[2.0, 30.0], tokens=[2, 3])
    metric.add(nll=4.0, tokens=4)
    assert metric.compute() == pytest.approx({"nll": 4.0, "perplexity": math.exp(4)})
    assert math.isfinite(Perplexity().compute(nll=[1e6], tokens=[1])["perplexity"])


def test_accuracy_leaves_out_ignored_tokens_of_rows_and_of_flat_ids() -> None:
    """Padding predicted right would lift the accuracy of short texts."""
    rows = TokenAccuracy().compute(predictions=[[1, 2], [3]], references=[[1, -100], [4]])
    flat = TokenAccuracy().compute(predictions=[1, 2, 3], references=[1, -100, 4])
    assert rows == flat == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("metric", "columns", "message"),
    [
        (Perplexity, {"nll": [1.0], "tokens": [0]}, "1 token or more"),
        (Perplexity, {"nll": [math.nan], "tokens": [2]}, "finite nll"),
        (TokenAccuracy, {"predictions": [1], "references": [-100]}, "no tokens to score"),
        (TokenAccuracy, {"predictions": [[1, 2]], "references": [[1]]}, "2 predictions, 1 ref"),
        (CalibrationError, {"confidence": [1.5], "correct": [1]}, r"confidence must be in 0\.\.1"),
        (SelfBleu, {"predictions": ["alone"]}, "needs at least 2 texts"),
        (Bleu, {"predictions": "text", "references": ["text"]}, "must be a list, got one text"),
        (Bleu, {"predictions": ["a", "b"], "references": ["a"]}, "Mismatch in the number"),
        (Bleu, {"predictions": ["a", None], "references": ["a", "b"]}, "row 1: the prediction"),
        (Rouge, {"predictions": ["a"], "references": [[]]}, "row 0: the reference"),
    ],
)
def test_inputs_without_an_answer_are_one_clear_line(
    metric: Any, columns: dict[str, Any], message: str
) -> None:
    """nan, or numpy's words about shapes, tell a user nothing."""
    with pytest.raises(ValueError, match=message) as caught:
        metric().compute(**columns)
    assert "\n" not in str(caught.value)


# --- evaluate's interface


@pytest.mark.parametrize("name", METRICS)
def test_no_rows_is_one_clear_line(name: str) -> None:
    """evaluate itself answers with an AttributeError about None."""
    metric = METRICS[name]()
    empty: dict[str, list[Any]] = {column: [] for column in metric._feature_names()}
    for call in (lambda: metric.compute(**empty), metric.compute):
        with pytest.raises(ValueError, match="nothing to score, no rows were added"):
            call()


def test_batches_and_combine_give_what_one_compute_gives() -> None:
    """Batches lost or counted twice; an empty last batch must change nothing."""
    made = [Bleu(), Chrf(), Rouge(), Distinct(), Repetition(), SelfBleu(), CorpusBleu()]
    made.insert(1, TokenizedBleu())
    together = evaluate.combine(made)
    for rows in (slice(0, 7), slice(7, 40), slice(40, 50)):
        together.add_batch(predictions=OUTPUTS[rows], references=REFERENCES[rows])
    wanted = text_metrics(TEXT_GROUPS, OUTPUTS, REFERENCES)
    assert together.compute() == pytest.approx(wanted, abs=1e-9)


def test_a_metric_can_be_computed_again_and_after_a_fault() -> None:
    """Rows of the first call left behind would be scored with the second's."""
    metric = Rouge()
    first = metric.compute(predictions=OUTPUTS[:3], references=REFERENCES[:3])
    with pytest.raises(ValueError, match="row 0"):
        metric.compute(predictions=["a"], references=[[]])
    assert metric.compute(predictions=OUTPUTS[:3], references=REFERENCES[:3]) == first


def test_metrics_are_made_without_files_and_print_nothing(tmp_path: Path) -> None:
    """evaluate makes folders in the user's home, sacrebleu and NLTK warn on stderr."""
    program = """
from tvd_gen.metrics import METRICS, text_metrics
texts = [g for g in METRICS if METRICS[g].needs != "tokens"]
text_metrics(texts, ["It is tokenized ."] * 120, ["no match"] * 120)
METRICS["accuracy"]().compute(predictions=[1], references=[1])
"""
    home = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))}
    home |= {"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=home, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert list(tmp_path.rglob("*")) == []


def test_the_names_of_metrics_are_known_without_evaluate() -> None:
    """A config is checked, and help printed, before seconds of imports."""
    program = (
        "import sys, tvd_gen.metrics as metrics; metrics.group_fault('rouge'); metrics.lead('A.');"
        "assert not {'evaluate', 'sacrebleu', 'rouge_score', 'nltk'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_group_makes_a_metric_with_its_keys() -> None:
    """The table that configs, the README and the report read would be wrong about the classes."""
    tokens: dict[str, dict[str, list[float]]] = {
        "perplexity": {"nll": [1.0], "tokens": [1]},
        "accuracy": {"predictions": [1], "references": [1]},
        "calibration": {"confidence": [0.5], "correct": [1]},
    }
    texts = {"predictions": ["a b", "c d"], "references": ["a b", "c e"]}
    for name, group in METRICS.items():
        assert tuple(group().compute(**tokens.get(name, texts))) == group.keys
        assert (group.needs == "tokens") == (name in tokens)
    assert all(hasattr(metrics, name) for name in metrics.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Rogue'"):
        metrics.Rogue  # noqa: B018  # the look-up is the test


# --- names and local metrics

SCRIPT = """
import datasets
import evaluate
class {name}(evaluate.Metric):
    def _info(self):
        features = datasets.Features(
            predictions=datasets.Value("string"), references=datasets.Value("string"))
        return evaluate.MetricInfo(description="", citation="", features=features)
    def _compute(self, predictions, references):
        return {result}
"""


def written(folder: Path, name: str, result: str) -> str:
    (folder / name).mkdir()
    script = SCRIPT.format(name=name.title().replace("_", ""), result=result)
    (folder / name / f"{name}.py").write_text(script, "utf-8")
    return str(folder / name)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """evaluate copies a script into the user's cache before it runs it: not in a test."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        make = partial(evaluate.loading.init_dynamic_modules, hf_modules_cache=folder / "modules")
        patch.setattr("evaluate.loading.init_dynamic_modules", make)
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", folder / "metrics")
        yield folder


@pytest.fixture
def own(tmp_path: Path, caches: Path) -> Path:
    """A folder for local metrics."""
    return tmp_path


def test_a_local_metric_is_scored_beside_ours(own: Path) -> None:
    """A user's metric is why evaluate is the interface."""
    name = written(own, "same_length", '{"equal": 100, "bleu": 5}')
    scores = text_metrics(["bleu", name], OUTPUTS, REFERENCES)
    assert scores["equal"] == 100.0
    assert scores["same_length_bleu"] == 5.0
    assert scores["bleu"] == sacrebleu.corpus_bleu(OUTPUTS, [REFERENCES]).score
    assert group_fault(name) is None


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("1 / 0", "division by zero"),
        ("[1]", "must give a dict"),
        ('{"rows": [1, 2]}', "rows must be a number"),
    ],
)
def test_a_local_metric_that_fails_is_one_line(own: Path, result: str, message: str) -> None:
    """A traceback out of evaluate's cache names no file of the user's."""
    name = written(own, f"fails_{message.split()[0]}", result)
    with pytest.raises(ConfigError, match=message) as caught:
        text_metrics([name], ["a"], ["a"])
    assert str(caught.value).startswith(f"evaluation.metrics: {name}: ")
    assert "\n" not in str(caught.value)


def test_a_local_metric_that_cannot_be_loaded_is_one_line(own: Path) -> None:
    """evaluate asks the hub for what it does not find, waits, and says it is not there either."""
    (own / "broken").mkdir()
    (own / "broken" / "broken.py").write_text("import nothing_of_this_name\n", "utf-8")
    with pytest.raises(ConfigError, match="nothing_of_this_name"):
        load_metric(str(own / "broken"))
    with pytest.raises(ConfigError, match=r"no metric there; it needs the file .*none\.py"):
        load_metric(str(own / "none"))


def test_an_unknown_name_gets_the_nearest_one() -> None:
    """A typo must be found before the training, not after it."""
    assert "did you mean rouge?" in str(group_fault("rogue"))
    assert "known are rouge, bleu" in str(group_fault("zzzz"))
    assert group_fault("chrf") is None
    with pytest.raises(ConfigError, match="did you mean bleu"):
        text_metrics(["blue"], ["a"], ["a"])


def test_text_metrics_says_what_it_cannot_do() -> None:
    """An evaluation ends with one line, not with a traceback."""
    with pytest.raises(ConfigError, match="rouge: needs references"):
        text_metrics(["diversity", "rouge"], ["a"])
    with pytest.raises(ConfigError, match="self_bleu: needs at least 2 texts"):
        text_metrics(["self_bleu"], ["a"])
    with pytest.raises(ConfigError, match="no texts"):
        text_metrics(["rouge"], [], [])
    assert text_metrics(["perplexity", "accuracy", "calibration"], ["a"]) == {}


# --- sentences and baselines


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Version 3.0 is out. Next comes 4.", "Version 3.0 is out."),
        ("Tools, e.g. foo, i.e. bar vs. baz. Then", "Tools, e.g. foo, i.e. bar vs. baz."),
        ("Written in C. It is fast.", "Written in C."),
        ("By Donald E. Knuth and J. Doe. More.", "By Donald E. Knuth and J. Doe."),
        ("GNU R. This is a module.", "GNU R."),
        ("A ver. 2 thing, see no. 5 there. B", "A ver. 2 thing, see no. 5 there."),
        ("Use it. libfoo is next.", "Use it."),
        ("Node.js is here. Ok", "Node.js is here."),
        ("Foo, bar, etc. are in. Baz", "Foo, bar, etc. are in."),
        ("Foo, bar, etc. Baz is in.", "Foo, bar, etc."),
        ("Wait... what? Yes!", "Wait... what?"),
        ("Some (and others...) are here. libx too.", "Some (and others...) are here."),
        ('He said "go." Then left.', 'He said "go."'),
        ("1. First point. 2. Second.", "1. First point."),
        ("Hard\nwrapped line. Next.\n\nLast.", "Hard wrapped line."),
        ("Title\n\nBody. Text.", "Title"),
        ("\u65e5\u672c\u8a9e\u3002\u6b21\u3002", "\u65e5\u672c\u8a9e\u3002"),
        ("z.B. ein Haus bzw. ein Hof. Dann", "z.B. ein Haus bzw. ein Hof."),
        ("no mark at all", "no mark at all"),
        (" \n ", ""),
    ],
)
def test_the_lead_is_the_first_sentence(text: str, first: str) -> None:
    """A lead cut at "e.g." is a weak baseline, and beating it proves nothing."""
    assert lead(text) == first


@given(st.text('ab. !?\n("e.g.3', max_size=60))
def test_sentences_keep_every_character_but_white_space(text: str) -> None:
    """A splitter that drops text changes rougeLsum."""
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


def test_baselines_are_scored_under_their_own_names() -> None:
    """The model's figures must not be overwritten by the baseline's."""
    sources = ["The cat sat. It slept.", "A dog ran. It barked."]
    references = ["The cat sat.", "A dog ran."]
    found = baseline_metrics("lead", ["rouge"], sources, references)
    assert found == {f"lead_{key}": pytest.approx(100) for key in METRICS["rouge"].keys}
    copied = baseline_metrics("copy", ["bleu"], sources, sources)
    assert copied == {"copy_bleu": pytest.approx(100)}
