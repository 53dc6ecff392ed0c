#!/usr/bin/env python3
"""Gigaword headlines as the published summarization experiments have them, for summarization.yaml.

    python scripts/prepare/gigaword.py ggw_data.zip --output data/gigaword

The archive is UniLM's: {train,dev,test}.{src,tgt}.txt, tokenized and lower-cased, digits as #. On
the hub it is data/ggw_data.zip of the dataset Harvard/gigaword (578,402,958 bytes); whether yours
has its published SHA-256 is said, and stands in the manifest. Rows stay as they are, empty ones too
(data.on_bad_row of the config decides on those). Writes train, validation and test.jsonl (source,
target) and manifest.json with the hashes of what was read and written.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from files import Row, inputs_of, lines, paired, parser, start, write_corpus

# datasets' dataset_infos.json of Harvard/gigaword
ARCHIVE = "bc0c4a2e1aa19cf2123688b87bc2d778c0d8fc24a4090e3c10a27c5faa1b898b"
PUBLISHED = {"train": 3_803_957, "validation": 189_651, "test": 1_951}
NAMES = {
    split: (f"{part}.src.txt", f"{part}.tgt.txt")
    for split, part in (("train", "train"), ("validation", "dev"), ("test", "test"))
}


def rows_of(place: Path, split: str) -> Iterator[Row]:
    """The article's first sentence and the headline."""
    source, target = (lines(place, name) for name in NAMES[split])
    for article, headline in paired(source, target, f"{place}: {split}"):
        yield {"source": article, "target": headline}


def prepare(place: Path, output: Path, sha256: str | None = None) -> dict[str, Any]:
    """From the archive, or the folder it unpacks to."""
    inputs = inputs_of(place, [name for both in NAMES.values() for name in both], sha256)
    splits = {split: rows_of(place, split) for split in NAMES}
    notes = []
    if not place.is_dir():
        same = inputs[place.name]["sha256"] == ARCHIVE
        note = "as published" if same else f"not that of the published archive, {ARCHIVE}"
        notes = [f"SHA-256: {note}"]
    return write_corpus(output, splits, inputs, PUBLISHED, notes)


def main() -> None:
    """Read the command line, prepare."""
    options = parser(__doc__, "data/gigaword")
    given = options.parse_args()
    if given.place is None:
        options.error("give the archive")
    prepare(given.place, given.output, given.sha256)


if __name__ == "__main__":
    start(main)
