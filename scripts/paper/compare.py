"""Run folders side by side, on the same test items: differences, intervals and p values.

    python scripts/paper/compare.py runs/ce-1 runs/ce-2 runs/tailr-1 runs/tailr-2
    python scripts/paper/compare.py runs/ce runs/tailr --metrics bleu rougeL --json comparison.json

Runs that differ in their seed alone are one group, and so are those that begin with, or look at, a
model of their own seed (runs/ce-seed1/model with seed 1). Every other group is compared with the
first run's. Means and standard deviations (n - 1) are of a group's seeds. Each difference has up to
three p values, two-sided, which answer two questions and are not corrected for their number:

    items       would it be there on other test items? The paired bootstrap over predictions.jsonl,
                for the mean over these very seeds; it gives the 95 % interval too. For BLEU, chrF,
                ROUGE, repetition, nll, perplexity and accuracy, which follow from sums over items.
    t, signs    would it be there with other seeds? The paired t-test, and the exact test of
                flipped signs, over the seeds that both groups have. Of n seeds `signs` cannot make
                less than 2 / 2^n.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from significance import (
    RESAMPLES,
    Array,
    Estimate,
    Sums,
    average,
    bootstrap,
    difference,
    joined,
    mean_of,
    mean_sd,
    paired_t,
    ratio_of,
    sign_flip,
)
from tables import number, table
from tvd_gen.config.document import read_bytes
from tvd_gen.errors import ConfigError, TvdGenError
from tvd_gen.metrics import BASELINES, Bleu, Chrf, Rouge, as_scored, counts
from tvd_gen.run.folder import RunFolder, write_json


class Item(NamedTuple):
    """A line of predictions.jsonl."""

    source: str
    target: str
    prediction: str
    nll: float | None = None
    accuracy: float | None = None
    """of the reference's tokens, means; None where evaluation.metrics asks for no such metric"""
    tokens: int | None = None


SECTIONS = ("data", "generation", "evaluation")  # evaluation.json has them as they were in the end


@dataclass(frozen=True)
class Run:
    """A run that has been evaluated."""

    path: Path
    seed: int
    settings: dict[str, Any]
    """dotted name -> value, without the seed and the name; its own seedN in a path is seed*"""
    metrics: dict[str, float]
    items: list[Item]
    """in the order of their texts; none where the task generates nothing"""
    lower_cased: bool

    def sums(self, name: str) -> Sums | None:
        """A metric as sums over the items; None where it is not made of such.

        ConfigError where the predictions do not give the number in metrics.json.
        """
        if not self.items:
            return None
        if name in SUMS:
            strip = self.settings.get("evaluation.strip")
            predictions, references = (
                as_scored(texts, strip=strip, lower_cased=self.lower_cased)
                for texts in ([i.prediction for i in self.items], [i.target for i in self.items])
            )
            found = SUMS[name](predictions, references)
        elif name in TOKEN_SUMS and self.items[0].tokens is not None:
            found = TOKEN_SUMS[name](self.items)
        else:
            return None
        if not np.isclose(found.value, self.metrics[name], rtol=1e-6, atol=1e-9):
            raise ConfigError(
                f"{self.path}: {name} is {self.metrics[name]:g} in metrics.json and "
                f"{found.value:g} of predictions.jsonl; run tvd-gen eval again"
            )
        return found


def read_run(path: Path) -> Run:
    """A run folder's config, numbers and predictions; ConfigError where it has none."""
    folder = RunFolder(path)
    for file, maker in ((folder.config, "train"), (folder.metrics, "eval")):
        if not file.exists():
            raise ConfigError(f"{path}: has no {file.name}; tvd-gen {maker} makes it")
    config = read_bytes(folder.config.read_bytes(), str(folder.config)).value
    settled = json.loads(folder.evaluation.read_text()) if folder.evaluation.exists() else {}
    config |= {name: settled[name] for name in SECTIONS if name in settled}
    seed = config.get("seed", 42)
    lines = folder.predictions.read_text().splitlines() if folder.predictions.exists() else []
    rows = [json.loads(line) for line in lines]
    return Run(
        path,
        seed,
        {
            name: _seedless(value, seed)
            for name, value in _flat(config)
            if name not in ("seed", "name")
        },
        json.loads(folder.metrics.read_text()),
        # Stable: items of the same texts stay in their order.
        sorted((_item(row) for row in rows), key=lambda item: item[:2]),
        bool(settled.get("lower_cased", False)),
    )


def _item(row: Mapping[str, Any]) -> Item:
    return Item(**{name: row[name] for name in Item._fields if name in row})


def _seedless(value: Any, seed: int) -> Any:
    """A path that has the run's seed in it (ce-seed1, seed-1), as the other seeds have it."""
    return re.sub(rf"(seed[-_]?){seed}(?!\d)", r"\1*", value) if isinstance(value, str) else value


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Label -> runs that differ in their seed alone; the labels are what the groups differ in.

    ConfigError where there is one group, a seed twice in a group, or other test items.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.settings, sort_keys=True), []).append(run)
    if len(groups) < 2:
        raise ConfigError("the runs differ in their seeds at most: there is nothing to compare")
    for group in groups.values():
        if len({run.seed for run in group}) < len(group):
            raise ConfigError(f"{', '.join(str(run.path) for run in group)}: a seed is there twice")
    _check_items(runs)
    firsts = [group[0].settings for group in groups.values()]
    names = dict.fromkeys(name for settings in firsts for name in settings)
    varied = [n for n in names if len({json.dumps(each.get(n)) for each in firsts}) > 1]
    return {
        _label(settings, varied): group
        for settings, group in zip(firsts, groups.values(), strict=True)
    }


def _label(settings: Mapping[str, Any], varied: Sequence[str]) -> str:
    """The values in which the groups differ, the objective's name bare."""
    parts = [
        str(settings[name])
        if name == "objective.name"
        else f"{name.split('.')[-1]}={settings[name]}"
        for name in varied
        if name in settings
    ]
    return " ".join(parts) or "default"


def _check_items(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        counts = [each.metrics.get("rows", len(each.items)) for each in (run, first)]
        texts = [[item[:2] for item in each.items] for each in (run, first)]
        if texts[0] != texts[1] or counts[0] != counts[1]:
            raise ConfigError(
                f"{run.path}: not the test items of {first.path} ({counts[0]:g} and "
                f"{counts[1]:g}); evaluate both on the same split and rows"
            )


def _corpus(scorer: Any, predictions: Sequence[str], references: Sequence[str]) -> Sums:
    """A metric of sacrebleu: it keeps the counts of each segment for such tests itself."""
    rows = np.array(scorer._extract_corpus_statistics(predictions, [references]), np.float64)

    def score(sums: Array) -> Array:
        return np.array([scorer._compute_score_from_stats(list(each)).score for each in sums])

    return Sums(rows, score)


def _rouge(name: str) -> Callable[[Sequence[str], Sequence[str]], Sums]:
    return lambda predictions, references: mean_of(
        _rouge_rows(tuple(predictions), tuple(references))[name]
    )


@lru_cache(maxsize=64)  # slow, and all four are made at once
def _rouge_rows(predictions: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    return Rouge().rows(predictions, references)


def _repetition(window: int) -> Callable[[Sequence[str], Sequence[str]], Sums]:
    return lambda predictions, _: mean_of(
        [counts.repetition([text], (window,))[window] for text in predictions]
    )


SUMS: dict[str, Callable[[Sequence[str], Sequence[str]], Sums]] = {
    "bleu": lambda predictions, references: _corpus(Bleu().scorer, predictions, references),
    "chrf": lambda predictions, references: _corpus(Chrf().scorer, predictions, references),
    **{name: _rouge(name) for name in Rouge.keys},
    **{f"rep_{window}": _repetition(window) for window in counts.WINDOWS},
    "repeated_words": lambda predictions, _: mean_of(
        [counts.repeated_words([text]) for text in predictions]
    ),
}
"""metric -> (predictions, references) -> its sums over items"""


def _of_tokens(name: str) -> Callable[[Sequence[Item]], Sums]:
    """A mean over tokens, of the items' own."""

    def sums(items: Sequence[Item]) -> Sums:
        means, tokens = (np.array([getattr(i, n) for i in items], float) for n in (name, "tokens"))
        return ratio_of(means * tokens, tokens)

    return sums


TOKEN_SUMS: dict[str, Callable[[Sequence[Item]], Sums]] = {
    "nll": _of_tokens("nll"),
    "accuracy": _of_tokens("accuracy"),
    "perplexity": lambda items: joined([_of_tokens("nll")(items)], np.exp),
}
"""metric of the references' tokens -> items -> its sums over them"""


@dataclass(frozen=True)
class Comparison:
    """A metric of a group less that of the first; None where a test is not to be had."""

    group: str
    metric: str
    difference: float
    items: Estimate | None
    seeds: int
    """that both groups have"""
    t: float | None
    signs: float | None


def compare(
    groups: Mapping[str, Sequence[Run]], metrics: Sequence[str], resamples: int, seed: int
) -> Iterator[Comparison]:
    """Every metric of every other group against the first."""
    first = next(iter(groups))
    for metric in metrics:
        parts = {label: _averaged(runs, metric) for label, runs in groups.items()}
        base, theirs = parts[first], {run.seed: run.metrics[metric] for run in groups[first]}
        for label, runs in list(groups.items())[1:]:
            own, found = {run.seed: run.metrics[metric] for run in runs}, parts[label]
            gap = mean_sd(list(own.values()))[0] - mean_sd(list(theirs.values()))[0]
            shared = [own[s] - theirs[s] for s in own if s in theirs]
            many = len(shared) > 1
            yield Comparison(
                label,
                metric,
                gap,
                bootstrap(difference(base, found), resamples=resamples, seed=seed)
                if base and found
                else None,
                len(shared),
                paired_t(shared) if many else None,
                sign_flip(shared) if many else None,
            )


def _averaged(runs: Sequence[Run], metric: str) -> Sums | None:
    sums = [run.sums(metric) for run in runs]
    return average([each for each in sums if each]) if all(sums) else None


def chosen(runs: Sequence[Run], asked: Sequence[str]) -> list[str]:
    """The metrics that all runs have, without the baselines', or those asked for."""
    shared = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    for name in asked:
        if name not in shared:
            raise ConfigError(f"--metrics: {name}: not in every run; there are {', '.join(shared)}")
    baselines = tuple(f"{name}_" for name in BASELINES)
    return list(asked) or [n for n in shared if n != "rows" and not n.startswith(baselines)]


def means(groups: Mapping[str, Sequence[Run]], metrics: Sequence[str]) -> str:
    """A table of means and deviations over seeds."""
    rows = []
    for label, runs in groups.items():
        cells = [mean_sd([run.metrics[metric] for run in runs]) for metric in metrics]
        shown = [number(m) if len(runs) < 2 else f"{number(m)} ± {number(sd)}" for m, sd in cells]
        rows.append([label, ", ".join(str(run.seed) for run in runs), *shown])
    return table(["", "seeds", *metrics], rows)


def differences(found: Sequence[Comparison]) -> str:
    """A table of comparisons."""
    heads = ["", "metric", "difference", "95 %", "p items", "seeds", "p t", "p signs"]
    rows = []
    for each in found:
        one = each.items
        tests = ["-" if p is None else number(p, 4) for p in (each.t, each.signs)]
        rows.append(
            [each.group, each.metric, f"{each.difference:+.3f}"]
            + ([f"{one.low:+.3f} to {one.high:+.3f}", number(one.p, 4)] if one else ["-", "-"])
            + [str(each.seeds), *tests]
        )
    return table(heads, rows)


def main() -> None:
    """Read, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--metrics", nargs="+", default=[], metavar="METRIC")
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    parser.add_argument("--seed", type=int, default=0, help="of the resamples")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    try:
        runs = [read_run(path) for path in given.runs]
        groups, metrics = grouped(runs), chosen(runs, given.metrics)
        print(means(groups, metrics) + f"\n\nLess {next(iter(groups))}:\n")
        found = list(compare(groups, metrics, given.resamples, given.seed))
        print(differences(found))
        if given.json:
            write_json(given.json, [asdict(each) for each in found])
    except (TvdGenError, ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
