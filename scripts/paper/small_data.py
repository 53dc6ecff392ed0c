"""Rows for small runs: Tatoeba's sentence pairs, chosen and split; first sentences as targets."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvd_gen.data import DataSpec, load_corpus
from tvd_gen.metrics import lead
from tvd_gen.run.folder import write_lines

SPLITS = ("train", "validation", "test")
PLACES = ("source", "files", "columns")
Pair = dict[str, str]


def tatoeba(
    file: Path, most_words: int, sizes: Mapping[str, int], seed: int = 0
) -> dict[str, list[Pair]]:
    """Rows of German sources and English targets of at most `most_words` words on each side.

    `file` holds English TAB German. English sentences are shuffled and dealt to the splits with all
    their translations, `sizes` of them to validation and test, the rest to train; there a pair
    whose German is in train as well is left out, for it was seen with another translation.
    """
    pairs: dict[str, list[str]] = {}
    for english, german in _short(file, most_words):
        pairs.setdefault(english, []).append(german)
    sentences = sorted(pairs)
    random.Random(seed).shuffle(sentences)
    splits, start = {}, 0
    for split in reversed(SPLITS):
        end = start + sizes[split] if split in sizes else len(sentences)
        splits[split] = list(_rows(sentences[start:end], pairs))
        start = end
    seen = {row["source"] for row in splits["train"]}
    for split in SPLITS[1:]:
        splits[split] = [row for row in splits[split] if row["source"] not in seen]
    return {split: splits[split] for split in SPLITS}


def _short(file: Path, most_words: int) -> Iterator[tuple[str, str]]:
    with file.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            parts = line.rstrip("\r\n").split("\t")
            if len(parts) < 2:
                raise ValueError(f"{file}:{number}: needs English TAB German")
            if all(0 < len(text.split()) <= most_words for text in parts[:2]):
                yield parts[0], parts[1]


def _rows(sentences: Sequence[str], pairs: Mapping[str, list[str]]) -> Iterator[Pair]:
    for english in sentences:
        for german in dict.fromkeys(pairs[english]):
            yield {"source": german, "target": english}


def files_of(folder: Path) -> dict[str, str]:
    """split -> its JSON-lines file in a folder."""
    return {split: str(folder / f"{split}.jsonl") for split in SPLITS}


def write_splits(folder: Path, splits: Mapping[str, Iterable[Pair]]) -> None:
    """The JSON-lines files of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        write_lines(Path(files_of(folder)[split]), rows)


def write_leads(data: Mapping[str, Any], folder: Path) -> None:
    """The rows of a `data` section with the source's first sentence as their target."""
    spec = DataSpec(**{name: data[name] for name in PLACES if name in data}, limit=data["limit"])
    corpus = load_corpus(spec, ("source", "target"))
    splits = {
        split: [
            {"source": text, "target": first} for text in rows["source"] if (first := lead(text))
        ]
        for split, rows in corpus.splits.items()
    }
    write_splits(folder, splits)
