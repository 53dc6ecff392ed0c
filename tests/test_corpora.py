"""The corpora that ship, and the script that builds them."""

import gzip
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORPORA = ROOT / "tvd_gen" / "corpora"
SPLITS = ("train", "validation", "test")
EXPECTED = {
    "debian-descriptions": (("source", "target", "package"), (6000, 500, 500)),
    "debian-translations": (("de", "en", "package"), (15000, 500, 500)),
    "jargon": (("text",), (1700, 253, 240)),
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(
        "build_corpora", ROOT / "scripts" / "build_corpora.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(corpus, split):
    with gzip.open(CORPORA / corpus / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def same(text):
    return re.sub(r"\W+", " ", text.casefold()).strip()


@pytest.mark.parametrize("corpus", EXPECTED)
def test_the_shipped_counts_and_fields_are_the_documented_ones(corpus):
    """A half-written corpus would train, and nobody would see that rows are missing."""
    fields, counts = EXPECTED[corpus]
    for split, count in zip(SPLITS, counts, strict=True):
        rows = rows_of(corpus, split)
        assert len(rows) == count
        assert {tuple(row) for row in rows} == {fields}


@pytest.mark.parametrize("corpus", EXPECTED)
def test_no_shipped_text_is_empty_or_holds_control_characters(corpus):
    """An empty target teaches a model to say nothing; control characters break terminals."""
    for split in SPLITS:
        for row in rows_of(corpus, split):
            assert all(text.strip() == text and text for text in row.values()), row
            assert not any(ord(c) < 32 and c != "\n" for text in row.values() for c in text), row


@pytest.mark.parametrize("corpus", EXPECTED)
def test_no_text_is_in_two_splits(corpus):
    """A test text seen in training would make every score a lie."""
    seen = {}
    for split in SPLITS:
        for row in rows_of(corpus, split):
            for field, text in row.items():
                if field != "package":
                    assert seen.setdefault(same(text), split) == split, text


@pytest.mark.parametrize("corpus", ["debian-descriptions", "debian-translations"])
def test_no_package_is_in_two_splits(corpus):
    """Texts of one package are near copies of each other."""
    seen = {}
    for split in SPLITS:
        for row in rows_of(corpus, split):
            assert seen.setdefault(row["package"], split) == split


@pytest.mark.parametrize("corpus", EXPECTED)
def test_each_corpus_says_where_it_comes_from(corpus):
    """Text without its origin and terms could not be passed on."""
    notice = (CORPORA / corpus / "NOTICE").read_text(encoding="utf-8")
    for word in ("Origin:", "Terms:", "dated", "scripts/build_corpora.py"):
        assert word in notice


def test_the_corpora_stay_small():
    """The wheel holds them: everyone who installs the package downloads them."""
    assert sum(f.stat().st_size for f in CORPORA.rglob("*") if f.is_file()) < 4_000_000


def test_the_scripts_check_passes_on_what_ships(script, capsys):
    """The script and these tests must hold the same laws."""
    script.check(CORPORA)
    assert "6000 train" in capsys.readouterr().out


def test_the_scripts_check_fails_on_a_text_in_two_splits(script, tmp_path, monkeypatch):
    """A check that cannot fail guards nothing."""
    monkeypatch.setattr(script, "FIELDS", {"tiny": ("text",)})
    splits = {
        "train": [{"text": "one"}],
        "validation": [{"text": "two"}],
        "test": [{"text": "One!"}],
    }
    script.write_corpus(tmp_path / "tiny", splits, "notice")
    with pytest.raises(AssertionError, match="also in test"):
        script.check(tmp_path)


def test_written_files_are_the_same_bytes_each_time(script, tmp_path):
    """gzip writes the time of day by default; a rebuild would change every file."""
    splits = {name: [{"text": f"für {name}"}] for name in SPLITS}
    for folder in ("a", "b"):
        script.write_corpus(tmp_path / folder, splits, "notice")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
        assert file.name == "NOTICE" or file.read_bytes()[4:8] == b"\0\0\0\0"


def test_a_description_is_a_synopsis_and_paragraphs(script):
    """ " ." parts paragraphs; wrapped lines belong together."""
    body = "small tool\n First line\n goes on.\n .\n  * an item\n  * another"
    found = script.parse_description(body)
    assert found.synopsis == "small tool"
    assert found.paragraphs == ("First line goes on.", "* an item * another")


def test_a_translation_of_an_older_text_is_not_used(script):
    """A paragraph may have moved since: only a translation of this very text is aligned."""
    packages = script.read_packages("Package: a\nSection: net\nDescription-md5: new\n")
    english = script.read_descriptions(
        "Package: a\nDescription-md5: new\nDescription-en: a small and useful tool\n", "en"
    )
    german = script.read_descriptions(
        "Package: a\nDescription-md5: old\nDescription-de: ein nützliches Werkzeug\n", "de"
    )
    splits = script.translations(packages, english, german)
    assert not any(splits.values())


def test_a_row_keeps_its_split_when_the_corpus_grows(script):
    """Else a model trained on last year's corpus would be tested on its own training rows."""
    rows = [(f"p{i}", {"text": "abcdefghij"[i % 10] * (i // 10 + 1)}) for i in range(200)]
    sizes = dict.fromkeys(SPLITS, 999)
    few, many = (
        script.split(part, sizes, lambda row: [row["text"]]) for part in (rows[:100], rows)
    )
    for name in SPLITS:
        assert {r["text"] for r in few[name]} <= {r["text"] for r in many[name]}
        assert few[name]


def test_every_description_is_in_one_split_by_its_source_package(script):
    """What the summarization of RESULTS.md is made of; its hashes are in there."""
    long = "A tool that does one thing,\n and does it as well as anybody could.\n .\n The end."

    def stanza(name, synopsis="A useful tool", text=long):
        return f"Package: {name}\nDescription-md5: {name}\nDescription-en: {synopsis}\n {text}\n"

    kept = [stanza(f"lib{i}", text=f"Library {i}. {long}") for i in range(300)]
    left_out = [
        stanza("again", text=f"Library 7. {long}"),
        stanza("short", text="Too short."),
        stanza("brief", "Brief"),
        stanza("old", "A transitional tool"),
        stanza("empty", text=f"{long} This is a dummy package."),
    ]
    packages = {f"lib{i}": script.Package(f"lib{i}", f"source{i // 3}", "", "") for i in range(299)}
    splits = script.every_description(packages, "\n".join(kept + left_out))
    rows = {row["package"]: (name, row) for name, own in splits.items() for row in own}
    assert rows.keys() == {f"lib{i}" for i in range(300)}
    assert all(splits.values())
    for i in range(299):
        split, row = rows[f"lib{i}"]
        assert split == rows[f"lib{i // 3 * 3}"][0]
        assert row["source"] == f"source{i // 3}"
    assert rows["lib299"][1] == {
        "package": "lib299",
        "source": "lib299",
        "text": "Library 299. A tool that does one thing, and does it as well as anybody could. "
        "The end.",
        "summary": "A useful tool",
    }
