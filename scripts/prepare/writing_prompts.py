#!/usr/bin/env python3
"""WritingPrompts as the published story experiments have it, for story_generation.yaml.

    python scripts/prepare/writing_prompts.py writingPrompts.tar.gz --output data/writing_prompts

The archive is fairseq's: {train,valid,test}.{wp_source,wp_target}, tokenized, with <newline> where
a line ends. Stories are whole, as in the published experiments; --words 1000 keeps the first 1,000
words, <newline> among them, as fairseq's own do. <newline> stays a word, which models learn, and
which published figures leave out (evaluation.strip of the config); --newlines break makes line
breaks of it. Writes train, validation and test.jsonl (source, target) and manifest.json with the
hashes of what was read and written.
Source: fairseq, examples/stories.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from files import Row, inputs_of, lines, paired, parser, start, write_corpus

PUBLISHED = {"train": 272_600, "validation": 15_620, "test": 15_138}
NAMES = {
    split: (f"{part}.wp_source", f"{part}.wp_target")
    for split, part in (("train", "train"), ("validation", "valid"), ("test", "test"))
}
NEWLINE = "<newline>"


def story(text: str, words: int, *, breaks: bool) -> str:
    """The first `words` words (all for 0), <newline> among them; `breaks` makes it a line break."""
    kept = text.split()[: words or None]
    if not breaks:
        return " ".join(kept)
    rows = " ".join(kept).split(NEWLINE)
    return "\n".join(row.strip() for row in rows).strip()


def rows_of(place: Path, split: str, words: int, *, breaks: bool) -> Iterator[Row]:
    """The prompt and the story."""
    source, target = (lines(place, name) for name in NAMES[split])
    for prompt, text in paired(source, target, f"{place}: {split}"):
        kept = " ".join(prompt.split())
        yield {"source": kept, "target": story(text, words, breaks=breaks)}


def prepare(
    place: Path,
    output: Path,
    sha256: str | None = None,
    *,
    words: int = 0,
    breaks: bool = False,
) -> dict[str, Any]:
    """From the archive, or the folder it unpacks to."""
    inputs = inputs_of(place, [name for both in NAMES.values() for name in both], sha256)
    splits = {split: rows_of(place, split, words, breaks=breaks) for split in NAMES}
    notes = [f"stories: {f'the first {words} words' if words else 'whole'}"]
    notes.append(f"{NEWLINE}: {'line breaks' if breaks else 'a word'}")
    return write_corpus(output, splits, inputs, PUBLISHED, notes)


def main() -> None:
    """Read the command line, prepare."""
    options = parser(__doc__, "data/writing_prompts")
    options.add_argument("--words", type=int, default=0, help="the first so many; 0: whole stories")
    options.add_argument("--newlines", choices=["word", "break"], default="word")
    given = options.parse_args()
    if given.place is None:
        options.error("give the archive")
    if given.words < 0:
        options.error("--words takes a number of words, or 0 for whole stories")
    prepare(
        given.place,
        given.output,
        given.sha256,
        words=given.words,
        breaks=given.newlines == "break",
    )


if __name__ == "__main__":
    start(main)
