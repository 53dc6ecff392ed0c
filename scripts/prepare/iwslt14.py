#!/usr/bin/env python3
"""IWSLT14 German-English as the published translation experiments have it, for translation.yaml.

    python scripts/prepare/iwslt14.py de-en.tgz --output data/iwslt14
    python scripts/prepare/iwslt14.py --hub bbaaaa/iwslt14-de-en     # other rows, the same steps

The steps are those of fairseq's preparation: lines of tags are dropped, Moses tokens (pip install
'.[prepare]'; without it words stay as they are, and the manifest says so), pairs of 1 to 175 words
with a ratio of at most 1.5, lower case; every 23rd pair is for validation; the test set is dev2010,
dev2012, tst2010, tst2011 and tst2012 in this order. bpe is the config's matter.
Writes train, validation and test.jsonl (de, en) and manifest.json with the hashes of what was read
and written. Source: fairseq, examples/translation/prepare-iwslt14.sh.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from files import Row, hashed, inputs_of, lines, paired, parser, start, write_corpus

Pair = tuple[str, str]
Words = Callable[[str], str]

LANGUAGES = ("de", "en")
PUBLISHED = {"train": 160_239, "validation": 7_283, "test": 6_750}
TESTS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
NAMES = {
    "train": ("train.tags.de-en.de", "train.tags.de-en.en"),
    **{each: tuple(f"IWSLT14.{each}.de-en.{code}.xml" for code in LANGUAGES) for each in TESTS},
}
EVERY = 23
MOST_WORDS, RATIO = 175, 1.5
DROPPED = ("<url>", "<talkid>", "<keywords>")
TAGS = re.compile(r"</?(?:title|description)>")
SEGMENT = re.compile(r'<seg id="[0-9]*">\s*|\s*</seg>\s*')
NO_MOSES = (
    "sacremoses is not installed (pip install '.[prepare]'): words are not cut into Moses tokens, "
    "as the published ones are"
)


def transcript(texts: Iterable[str]) -> Iterator[str]:
    """The lines of a train.tags file without those of tags, titles and descriptions included."""
    for text in texts:
        if not any(tag in text for tag in DROPPED):
            yield TAGS.sub("", text)


def segments(texts: Iterable[str]) -> Iterator[str]:
    """The segments of an XML file."""
    for text in texts:
        if "<seg id" in text:
            yield SEGMENT.sub("", text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def moses(code: str) -> Words | None:
    """Moses tokens of a language, or None without sacremoses."""
    try:
        from sacremoses import MosesTokenizer
    except ImportError:
        return None
    tokenizer = MosesTokenizer(lang=code)

    def words(text: str) -> str:
        # tokenizer.perl lets a line that is a tag pass
        return text if re.match(r"<.+>$", text) else tokenizer.tokenize(text, return_str=True)

    return words


def tokenized(pairs: Iterable[Pair], words: tuple[Words, Words]) -> Iterator[Pair]:
    """Tokens with one blank between them."""
    for pair in pairs:
        left, right = (" ".join(cut(text).split()) for cut, text in zip(words, pair, strict=True))
        yield left, right


def is_clean(pair: Pair) -> bool:
    """1 to 175 words on both sides, none of them with over 1.5 times the other's."""
    low, high = sorted(len(text.split()) for text in pair)
    return low >= 1 and high <= MOST_WORDS and high / low <= RATIO


def rows_of(pairs: Iterable[Pair]) -> Iterator[Row]:
    """Lower-cased rows."""
    for pair in pairs:
        yield {code: text.lower() for code, text in zip(LANGUAGES, pair, strict=True)}


def parted(pairs: Iterable[Pair], *, validation: bool) -> Iterator[Pair]:
    """Every 23rd pair, or all others."""
    for number, pair in enumerate(pairs, start=1):
        if (number % EVERY == 0) is validation:
            yield pair


def splits_of(
    train: Callable[[], Iterable[Pair]], test: Callable[[], Iterable[Pair]]
) -> tuple[Mapping[str, Iterable[Row]], list[str]]:
    """The three splits of raw pairs, and what is to be said of them."""
    found = [moses(code) for code in LANGUAGES]
    words = (found[0] or str, found[1] or str)
    clean = [pair for pair in tokenized(train(), words) if is_clean(pair)]
    splits = {
        "train": rows_of(parted(clean, validation=False)),
        "validation": rows_of(parted(clean, validation=True)),
        "test": rows_of(tokenized(test(), words)),  # whole: a test set is not cleaned
    }
    return splits, [] if all(found) else [NO_MOSES]


def archive_pairs(place: Path, part: str) -> Iterator[Pair]:
    """The raw pairs of one of NAMES."""
    bare = transcript if part == "train" else segments
    sides = [bare(lines(place, name)) for name in NAMES[part]]
    return paired(sides[0], sides[1], f"{place}: {part}")


def test_pairs(place: Path) -> Iterator[Pair]:
    """The five test sets, one after the other."""
    for part in TESTS:
        yield from archive_pairs(place, part)


def hub_folder(name: str) -> Path:
    """A dataset's parquet files on the hub; the folder's name is their commit."""
    from huggingface_hub import snapshot_download

    # its main branch holds a script, which datasets no longer runs
    branch = "refs/convert/parquet"
    return Path(
        snapshot_download(name, repo_type="dataset", revision=branch, allow_patterns="de-en/*")
    )


def hub_pairs(files: Iterable[Path]) -> Iterator[Pair]:
    """The raw pairs of parquet files with translation.de and translation.en."""
    from pyarrow import parquet

    for file in files:
        for row in parquet.read_table(file)["translation"].to_pylist():
            yield row["de"], row["en"]


def prepare(place: Path, output: Path, sha256: str | None = None) -> dict[str, Any]:
    """From the archive, or the folder it unpacks to."""
    names = [name for both in NAMES.values() for name in both]
    inputs = inputs_of(place, names, sha256)
    splits, notes = splits_of(lambda: archive_pairs(place, "train"), lambda: test_pairs(place))
    return write_corpus(output, splits, inputs, PUBLISHED, notes)


def prepare_hub(name: str, output: Path) -> dict[str, Any]:
    """From the hub, whose rows and test set are others."""
    folder = hub_folder(name)
    read = {part: sorted(folder.glob(f"de-en/{part}/*.parquet")) for part in ("train", "test")}
    inputs = {
        f"{name}@{folder.name}/{file.relative_to(folder)}": hashed(file)
        for files in read.values()
        for file in files
    }
    splits, notes = splits_of(lambda: hub_pairs(read["train"]), lambda: hub_pairs(read["test"]))
    notes.append(f"{name}: the hub's rows, not those of the published archive")
    return write_corpus(output, splits, inputs, PUBLISHED, notes)


def main() -> None:
    """Read the command line, prepare."""
    options = parser(__doc__, "data/iwslt14")
    options.add_argument("--hub", help="a dataset on the hub in place of the archive")
    given = options.parse_args()
    if (given.place is None) == (given.hub is None):
        options.error("give the archive, or --hub")
    if given.hub and given.sha256:
        options.error("--sha256 is the hash of an archive; of --hub the manifest holds the hashes")
    if given.hub:
        prepare_hub(given.hub, given.output)
    else:
        prepare(given.place, given.output, given.sha256)


if __name__ == "__main__":
    start(main)
