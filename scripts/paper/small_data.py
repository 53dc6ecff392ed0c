"""Rows for small runs: Tatoeba's sentence pairs, chosen and split; first sentences as targets."""

import random
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
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
    their translations, `sizes` of them to validation and test, the rest to train. A pair whose
    German is in an earlier split (train, validation, test) is left out, for it was seen with
    another translation. Sentences that differ in case and marks alone count as one.
    """
    pairs: dict[str, list[Pair]] = {}
    for english, german in _short(file, most_words):
        pairs.setdefault(_bare(english), []).append({"source": german, "target": english})
    sentences = sorted(pairs)
    random.Random(seed).shuffle(sentences)
    splits: dict[str, list[Pair]] = {}
    start = 0
    for split in reversed(SPLITS):
        end = start + sizes[split] if split in sizes else len(sentences)
        splits[split] = [pair for each in sentences[start:end] for pair in pairs[each]]
        start = end
    seen: set[str] = set()
    for split in SPLITS:
        splits[split] = [pair for pair in splits[split] if _bare(pair["source"]) not in seen]
        seen |= {_bare(pair["source"]) for pair in splits[split]}
    return {split: splits[split] for split in SPLITS}


def _bare(text: str) -> str:
    """Its words in lower case, without marks."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold()))


def _short(file: Path, most_words: int) -> Iterator[tuple[str, str]]:
    seen = set()
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                parts = line.decode().rstrip("\r\n").split("\t")
            except UnicodeDecodeError as error:
                raise ValueError(f"{file}:{number}: no UTF-8: {error.reason}") from None
            if len(parts) < 2:
                raise ValueError(f"{file}:{number}: needs English TAB German")
            pair = parts[0], parts[1]
            if pair not in seen and all(0 < len(text.split()) <= most_words for text in pair):
                seen.add(pair)
                yield pair


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
