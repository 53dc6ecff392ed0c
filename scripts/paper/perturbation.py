"""How probable models find spoilt texts: repeated, cut off, thinned out, with wrong words.

    python scripts/paper/perturbation.py runs/ce runs/tailr --limit 1000 --output perturbation
    python scripts/paper/perturbation.py gpt2 --texts test.txt
    python scripts/paper/perturbation.py runs/bart --texts a.src a.tgt

Models are run folders, or folders and hub names of plain models, causal or encoder-decoder; what is
spoilt is the target, the source stays. Without --texts they are those of the first run's test
split. Each text gets 1, 2, ... edits of each kind (edits.py), and every version is scored whole as
`tvd-gen eval` scores references: nll in nats over the target's tokens, its end token included. A
causal model without a begin token does not score a text's first token. Models
of one tokenizer can be compared; of several, only their shares.

perturbation.jsonl has every version with its scores. perturbation.json has for each model, kind and
number of edits, with 95 % bootstrap intervals over texts,

    nll                  token mean over the spoilt texts
    rise                 nll - the same, unspoilt texts' nll. Not their ratio: that is smaller for a
                         model that gives every text less probability
    more_probable        share of texts whose spoilt version has the lower nll a token
    more_probable_total  ... the lower nll in total: shorter texts have it easily
    rise_difference      rise - the first model's, with p

over those texts that have so many edits in them (`texts`). perturbation.svg and .png show two of
them, where there are 30 texts.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arguments import count
from edits import EDITS, versions, vocabulary_of
from provenance import made_with
from significance import Sums, bootstrap, difference, joined, mean_of, ratio_of
from tables import draw, number, table
from tvd_gen.config import load_config
from tvd_gen.data import DataSpec, encode, load_corpus
from tvd_gen.errors import ConfigError, TvdGenError
from tvd_gen.models import ModelSpec, describe_model, load_model
from tvd_gen.run.evaluation import device, open_run, score_rows
from tvd_gen.run.folder import RunFolder, write_json, write_lines
from tvd_gen.tasks import TASKS

NO_LIMIT = 10**6
DRAWN = 30  # texts that a point of the plot has at least: fewer tell nothing


@dataclass(frozen=True)
class Version:
    """A text after so many edits; `kind` is none for the text as it was."""

    text: int
    kind: str
    edits: int
    words: str


@dataclass(frozen=True)
class Scorer:
    """A model that gives texts their nll, after sources or without."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: DataSpec
    reads_source: bool

    def __call__(
        self, made: Sequence[Version], sources: Sequence[str] | None, batch_size: int
    ) -> np.ndarray:
        """(versions, 2) nll in nats and tokens of each. ConfigError where one has no room."""
        columns = {"text": [each.words for each in made]}
        if self.reads_source:
            assert sources is not None
            columns = {"source": [sources[each.text] for each in made], "target": columns["text"]}
        encoded = encode(
            Dataset.from_dict(columns),
            "sequence_to_sequence" if self.reads_source else "language_modeling",
            self.tokenizer,
            dataclasses.replace(
                self.spec,
                max_target_tokens=NO_LIMIT,
                block_size=None,
                too_long="truncate",
                on_bad_row="stop",
            ),
            encoder_decoder=bool(self.model.config.is_encoder_decoder),
            place=lambda row, _: self._place(made[row]),
        )
        assert isinstance(encoded, Dataset)
        self._check_room(encoded, made)
        rows, _ = score_rows(self.model, self.tokenizer, encoded, batch_size, lambda *_: None)
        return np.stack([rows.nll.numpy(), rows.tokens.numpy()], 1)

    def _place(self, version: Version) -> str:
        return f"{self.name}: text {version.text + 1} after {version.edits} edits ({version.kind})"

    def _check_room(self, encoded: Dataset, made: Sequence[Version]) -> None:
        positions, lengths = describe_model(self.model).positions, encoded["length"]
        longest = int(np.argmax(lengths))
        if positions is not None and lengths[longest] > positions:
            raise ConfigError(
                f"{self._place(made[longest])}: {lengths[longest]} tokens, and the model has "
                f"{positions} positions; use fewer --edits, or leave long texts out by --max-words"
            )


def load_scorer(place: str, with_source: bool) -> Scorer:
    """The scorer of a run folder or a plain model; ConfigError where it lacks a source."""
    path = Path(place)
    if RunFolder(path).config.exists():
        _, config, model, tokenizer = open_run(path, {}, print)
        spec, reads = config.data, TASKS[config.task].has_source
    else:
        model, tokenizer = load_model(ModelSpec(pretrained=place), texts=None, seed=0, say=print)
        model, spec = model.to(device()).eval(), DataSpec()
        reads = with_source or bool(model.config.is_encoder_decoder)
    if reads and not with_source:
        raise ConfigError(f"{place}: reads a source; give --columns source=... target=...")
    return Scorer(path.name, model, tokenizer, spec, reads)


def read_texts(
    files: Sequence[str], columns: Mapping[str, str], run: str, limit: int, max_words: int
) -> tuple[list[str] | None, list[str]]:
    """Sources, if there are any, and texts: of the files, or of the split a run is tested on."""
    if files:
        spec = DataSpec(
            files={"test": tuple(files) if len(files) > 1 else files[0]}, columns=columns
        )
        pairs = len(files) > 1 or "source" in columns
        fields: tuple[str, ...] = ("source", "target") if pairs else ("text",)
        split = "test"
    elif RunFolder(Path(run)).config.exists():
        config = load_config(RunFolder(Path(run)).config)
        spec, split = config.data, config.evaluation.split
        fields = TASKS[config.task].fields
    else:
        raise ConfigError(f"{run}: is no run folder; give --texts FILE")
    spec = dataclasses.replace(spec, streaming=False)
    try:
        rows = load_corpus(spec, fields, splits=(split,), required=(split,)).splits[split]
    except TvdGenError as error:
        if "data.columns" not in str(error):
            raise
        raise ConfigError(f"{error}\n(here data.columns is --columns FIELD=COLUMN ...)") from None
    assert isinstance(rows, Dataset)
    short = [i for i, text in enumerate(rows[fields[-1]]) if len(text.split()) <= max_words]
    print(f"{min(len(short), limit)} texts of {len(rows)}")
    rows = rows.select(short[:limit])
    return (list(rows["source"]) if len(fields) > 1 else None), list(rows[fields[-1]])


def make_versions(
    texts: Sequence[str], kinds: Sequence[str], edits: int, seed: int
) -> list[Version]:
    """Every text as it is, then its versions of each kind."""
    vocabulary = vocabulary_of(texts)
    found = [Version(i, "none", 0, " ".join(text.split())) for i, text in enumerate(texts)]
    for kind in kinds:
        for i, text in enumerate(texts):
            spoilt = versions(text, kind, edits, f"{seed}/{i}", vocabulary)[1:]
            found += [Version(i, kind, k, words) for k, words in enumerate(spoilt, start=1)]
    return found


def summarise(
    made: Sequence[Version], scores: Mapping[str, np.ndarray], resamples: int
) -> Iterator[dict[str, Any]]:
    """The numbers of each model, kind and number of edits; those without two texts are left out."""
    groups: dict[tuple[str, int], list[int]] = {}
    for row, version in enumerate(made):
        groups.setdefault((version.kind, version.edits), []).append(row)
    first = next(iter(scores))
    for name, own in scores.items():
        for (kind, edits), rows in groups.items():
            if len(rows) < 2:
                continue
            before = [made[row].text for row in rows]  # the rows of the unspoilt come first
            parts = _parts(own[rows], own[before])
            if name != first:
                theirs = _parts(scores[first][rows], scores[first][before])
                parts["rise_difference"] = difference(theirs["rise"], parts["rise"])
            numbers = {key: _described(key, sums, resamples) for key, sums in parts.items()}
            yield {"model": name, "kind": kind, "edits": edits, "texts": len(rows)} | numbers


def _parts(spoilt: np.ndarray, before: np.ndarray) -> dict[str, Sums]:
    nll, base = ratio_of(*spoilt.T), ratio_of(*before.T)
    mean, mean_before = (each[:, 0] / each[:, 1] for each in (spoilt, before))
    return {
        "nll": nll,
        "rise": joined([nll, base], lambda own, other: own - other),
        "more_probable": mean_of(mean < mean_before),
        "more_probable_total": mean_of(spoilt[:, 0] < before[:, 0]),
    }


def _described(key: str, sums: Sums, resamples: int) -> dict[str, float]:
    found = asdict(bootstrap(sums, resamples=resamples))
    if key != "rise_difference":
        del found["p"]  # of being 0, which nobody asks
    return found


def paint(axes: Any, records: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> None:
    """Above the rise, below the share of texts that are more probable when spoilt."""
    drawn = [each for each in records if each["texts"] >= DRAWN] or records
    rows = (("rise", "nll - unspoilt"), ("more_probable", "share more probable, a token"))
    for row, (key, label) in zip(axes, rows, strict=True):
        for axis, kind in zip(row, kinds, strict=True):
            _paint_kind(axis, [each for each in drawn if each["kind"] == kind], key)
            axis.set(title=kind, xlabel="edits", ylabel=label)
            axis.axhline(0.0, color="0.7", lw=0.8, zorder=0)
            axis.xaxis.get_major_locator().set_params(integer=True)
    lines, names = axes[0][0].get_legend_handles_labels()
    columns = 1 + len(names) // 20  # beside the axes: in them, many models leave no room
    axes[0][0].figure.legend(lines, names, loc="outside right upper", ncols=columns)


def _paint_kind(axis: Any, records: Sequence[Mapping[str, Any]], key: str) -> None:
    for i, name in enumerate(dict.fromkeys(each["model"] for each in records)):
        own = [each for each in records if each["model"] == name]
        edits = [each["edits"] for each in own]
        values, style = [each[key]["value"] for each in own], ("-", "--", ":")[i // 10 % 3]
        (line,) = axis.plot(edits, values, style, label=name)  # there are ten colours
        low, high = ([each[key][end] for each in own] for end in ("low", "high"))
        axis.fill_between(edits, low, high, color=line.get_color(), alpha=0.2, lw=0)


def shown(records: Sequence[Mapping[str, Any]]) -> str:
    """A table of the first, some and the last numbers of edits."""
    last = max((each["edits"] for each in records), default=0)
    heads = ["model", "kind", "edits", "texts", "nll", "rise", "95 %", "more probable", "in total"]
    rows = [
        [each["model"], each["kind"], str(each["edits"]), str(each["texts"])]
        + [number(each["nll"]["value"]), number(each["rise"]["value"])]
        + [f"{number(each['rise']['low'])} to {number(each['rise']['high'])}"]
        + [number(each[key]["value"]) for key in ("more_probable", "more_probable_total")]
        for each in records
        if each["edits"] in (0, 1, 5, 10, last)
    ]
    return table(heads, rows)


def main() -> None:
    """Spoil, score, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--texts", nargs="+", default=[], metavar="FILE", help="two: in parallel")
    parser.add_argument("--columns", nargs="+", default=[], metavar="FIELD=COLUMN")
    parser.add_argument("--limit", type=count, default=1000, help="texts; default: 1000")
    parser.add_argument("--max-words", type=count, default=NO_LIMIT, help="leave longer texts out")
    parser.add_argument("--edits", type=count, default=20, help="of each kind; default: 20")
    parser.add_argument("--kinds", nargs="+", choices=EDITS, default=[*EDITS])
    parser.add_argument("--batch-size", type=count, default=64)
    parser.add_argument("--resamples", type=int, default=1999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("perturbation"), help="a folder")
    given = parser.parse_args()
    try:
        run(given)
    except (TvdGenError, ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run(given: argparse.Namespace) -> None:
    """What the options ask for."""
    if bad := [each for each in given.columns if "=" not in each]:
        raise ConfigError(f"--columns {bad[0]}: write FIELD=COLUMN")
    columns = dict(each.split("=", 1) for each in given.columns)
    sources, texts = read_texts(given.texts, columns, given.models[0], given.limit, given.max_words)
    made = make_versions(texts, given.kinds, given.edits, given.seed)
    scores = {}
    for place in given.models:
        scorer = load_scorer(place, sources is not None)
        name = scorer.name if scorer.name not in scores else place
        print(f"scoring {len(made)} versions with {name}", flush=True)
        scores[name] = scorer(made, sources, given.batch_size)
    records = list(summarise(made, scores, given.resamples))
    folder: Path = given.output
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(
        folder / "perturbation.jsonl",
        (
            asdict(version)
            | {"scores": {k: {"nll": v[i, 0], "tokens": int(v[i, 1])} for k, v in scores.items()}}
            for i, version in enumerate(made)
        ),
    )
    settings = {name: getattr(given, name) for name in ("models", "texts", "columns", "limit")}
    settings |= {name: getattr(given, name) for name in ("edits", "kinds", "resamples", "seed")}
    settings |= {"max_words": given.max_words, "versions": made_with()}
    write_json(folder / "perturbation.json", {"settings": settings, "results": records})
    print(shown(records))
    draw(
        folder / "perturbation",
        lambda axes: paint(axes, records, given.kinds),
        rows=2,
        columns=len(given.kinds),
        height=2.8,
    )


if __name__ == "__main__":
    main()
