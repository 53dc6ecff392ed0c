"""The preparations of the published data sets, on small archives of the same layout."""

import gzip
import hashlib
import importlib
import io
import json
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import pytest

from tvd_gen.config import load_config

FOLDER = Path(__file__).resolve().parent.parent / "scripts" / "prepare"


@pytest.fixture(params=["folder", "tar", "zip"])
def pack(request, tmp_path):
    """Texts by their names -> the archive, or the folder, that holds them."""

    def make(texts, inside="data"):
        if request.param == "folder":
            for name, text in texts.items():
                path = tmp_path / "raw" / inside / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8", newline="\n")
            return tmp_path / "raw"
        if request.param == "zip":
            with zipfile.ZipFile(tmp_path / "raw.zip", "w") as archive:
                for name, text in texts.items():
                    archive.writestr(f"{inside}/{name}", text)
            return tmp_path / "raw.zip"
        with tarfile.open(tmp_path / "raw.tgz", "w:gz") as archive:
            for name, text in texts.items():
                member = tarfile.TarInfo(f"{inside}/{name}")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
        return tmp_path / "raw.tgz"

    return make


@pytest.fixture
def script(monkeypatch):
    """A preparation by its name; they find their neighbour as a script does."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name):
        sys.modules.pop("files", None)
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    return load


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- IWSLT14 -----------------------------------------------------------------------------------

HEAD = (
    "<url>http://x</url>\n<keywords>a</keywords>\n<speaker>Someone</speaker>\n<talkid>1</talkid>\n"
)


def transcripts(code, title, texts):
    return f"{HEAD}<title>{title}</title>\n<description>{code}: x</description>\n" + "".join(
        f"{text}\n" for text in texts
    )


def xml(texts):
    segments = "".join(f'<seg id="{i}"> {text} </seg>\n' for i, text in enumerate(texts, 1))
    return f'<?xml version="1.0"?>\n<doc docid="1">\n{segments}</doc>\n'


def iwslt14():
    german = [f"Satz {i} ist hier ." for i in range(60)]
    english = [f"Sentence {i} is here ." for i in range(60)]
    german[10] = ""  # cleaned away, as are the next two
    german[11], english[11] = "eins zwei drei vier", "one two"
    german[12] = english[12] = "zu lang " * 100
    texts = {
        "train.tags.de-en.de": transcripts("de", "Ein Titel", german),
        "train.tags.de-en.en": transcripts("en", "A Title", english),
    }
    for at, part in enumerate(
        ["TED.tst2012", "TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011"]
    ):
        texts[f"IWSLT14.{part}.de-en.de.xml"] = xml([f"Das\u2019s {part}", f"Zwei {at}"])
        texts[f"IWSLT14.{part}.de-en.en.xml"] = xml([f"This\u2019s {part}", f"Two {at}"])
    return texts


def test_iwslt14_is_made_as_fairseq_makes_it(script, pack, tmp_path, capsys, monkeypatch):
    """A set that is cut or split otherwise cannot be set beside published figures."""
    monkeypatch.setitem(sys.modules, "sacremoses", None)  # not installed
    output = tmp_path / "out"
    manifest = script("iwslt14").prepare(pack(iwslt14(), "de-en"), output)
    train, validation = rows_of(output / "train.jsonl"), rows_of(output / "validation.jsonl")
    # 60 sentences, less 3, and speaker, title and description, whose lines are kept
    assert (len(train), len(validation)) == (58, 2)
    assert train[1] == {"de": "ein titel", "en": "a title"}
    assert train[3] == {"de": "satz 0 ist hier .", "en": "sentence 0 is here ."}
    assert [row["en"].split()[1] for row in validation] == ["22", "45"]
    test = rows_of(output / "test.jsonl")
    assert [row["en"] for row in test[::2]] == [
        f"this's {part}"
        for part in ("ted.dev2010", "tedx.dev2012", "ted.tst2010", "ted.tst2011", "ted.tst2012")
    ]
    said = capsys.readouterr().out
    assert "58 rows; published are 160239" in said
    assert "sacremoses is not installed" in said
    assert manifest["as_published"] is False


def test_moses_tokens_where_sacremoses_is(script, pack, tmp_path, monkeypatch):
    class Moses:
        def __init__(self, lang):
            self.lang = lang

        def tokenize(self, text, return_str):
            assert return_str
            return text.replace(".", " . @" + self.lang)

    monkeypatch.setitem(sys.modules, "sacremoses", types.SimpleNamespace(MosesTokenizer=Moses))
    texts = iwslt14()
    manifest = script("iwslt14").prepare(pack(texts), tmp_path / "out")
    assert not manifest["notes"]
    rows = rows_of(tmp_path / "out" / "train.jsonl")
    assert rows[0]["de"] == "<speaker>someone</speaker>"  # a tag passes, as in tokenizer.perl
    assert rows[3] == {"de": "satz 0 ist hier . @de", "en": "sentence 0 is here . @en"}


def test_iwslt14_comes_from_the_hub_too(script, tmp_path, monkeypatch):
    def load_dataset(name, subset, split, revision):
        assert (name, subset, revision) == ("some/where", "de-en", "refs/convert/parquet")
        return [{"translation": {"de": f"Wort {split} {i}", "en": f"Word {i}"}} for i in range(46)]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    manifest = script("iwslt14").prepare_hub("some/where", tmp_path)
    counts = {name: each["rows"] for name, each in manifest["outputs"].items()}
    assert counts == {"train.jsonl": 44, "validation.jsonl": 2, "test.jsonl": 46}
    assert "not those of the published archive" in manifest["notes"][-1]


def test_a_missing_part_or_a_lost_line_is_one_line(script, pack, tmp_path):
    texts = iwslt14()
    texts["IWSLT14.TED.tst2011.de-en.en.xml"] = xml(["one only"])
    with pytest.raises(ValueError, match=r"tst2011: the two sides differ in their number of lines"):
        script("iwslt14").prepare(pack(texts), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_earlier_manifest_does_not_vouch_for_half_a_run(script, tmp_path):
    files = script("files")
    (tmp_path / "manifest.json").write_text("{}")

    def cut_off():
        yield {"source": "a", "target": "b"}
        raise ValueError("the archive ends here")

    with pytest.raises(ValueError, match="ends here"):
        files.write_corpus(tmp_path, {"train": cut_off()}, {}, {})
    assert not [*tmp_path.iterdir()]


def test_a_file_that_is_not_there_is_named(script, pack, tmp_path):
    texts = iwslt14()
    del texts["IWSLT14.TED.tst2011.de-en.en.xml"]
    with pytest.raises(ValueError, match=r"no files IWSLT14.TED.tst2011.de-en.en.xml"):
        script("iwslt14").prepare(pack(texts), tmp_path / "out")


# --- Gigaword and WritingPrompts ---------------------------------------------------------------


def gigaword():
    return {
        f"{part}.{side}.txt": "".join(f"{side} {part} {i} #\n" for i in range(count))
        for part, count in (("train", 5), ("dev", 3), ("test", 2))
        for side in ("src", "tgt")
    }


def test_gigaword_rows_stay_as_they_are(script, pack, tmp_path):
    texts = gigaword()
    texts["dev.tgt.txt"] = "tgt dev 0\u2028 #\n\ntgt dev 2\n"  # a line ends at \\n alone
    script("gigaword").prepare(pack(texts, "ggw_data/org_data"), tmp_path / "out")
    rows = [json.loads(x) for x in (tmp_path / "out/validation.jsonl").read_text().split("\n")[:-1]]
    assert [row["target"] for row in rows] == ["tgt dev 0\u2028 #", "", "tgt dev 2"]
    assert rows[0]["source"] == "src dev 0 #"


def writing_prompts():
    return {
        f"{part}.{side}": f"[ WP ]  {part}\n" if side == "wp_source" else
        f"Once .  <newline> <newline> Then it was {'so ' * 2000}over .\n"
        for part in ("train", "valid", "test")
        for side in ("wp_source", "wp_target")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "story"),
    [
        ({}, f"Once . <newline> <newline> Then it was {'so ' * 2000}over ."),
        ({"words": 5}, "Once . <newline> <newline> Then"),
        ({"breaks": True}, f"Once .\n\nThen it was {'so ' * 2000}over ."),
    ],
)
def test_stories_are_whole_and_newlines_words_unless_told(script, pack, tmp_path, options, story):
    """A shorter reference is another brevity penalty. <newline> is learned, and not scored."""
    place = pack(writing_prompts(), "writingPrompts")
    script("writing_prompts").prepare(place, tmp_path / "out", **options)
    assert rows_of(tmp_path / "out/test.jsonl") == [{"source": "[ WP ] test", "target": story}]


# --- all of them -------------------------------------------------------------------------------

LAYOUTS = {"iwslt14": iwslt14, "gigaword": gigaword, "writing_prompts": writing_prompts}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_manifest_holds_the_hashes_of_what_was_read_and_written(script, pack, tmp_path, name):
    """Which data a figure is of must be known when the archive's page is gone."""
    texts, output = LAYOUTS[name](), tmp_path / "out"
    place = pack(texts)
    script(name).prepare(place, output)
    manifest = json.loads((output / "manifest.json").read_text())
    read = {each: hashlib.sha256(text.encode()).hexdigest() for each, text in texts.items()}
    if place.is_file():
        read = {place.name: hashlib.sha256(place.read_bytes()).hexdigest()}
    assert {each: found["sha256"] for each, found in manifest["inputs"].items()} == read
    for file, found in manifest["outputs"].items():
        assert hashlib.sha256((output / file).read_bytes()).hexdigest() == found["sha256"]
        assert found["rows"] == len((output / file).read_text().split("\n")) - 1


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("iwslt14", "translation"),
        ("gigaword", "summarization"),
        ("writing_prompts", "story_generation"),
    ],
)
def test_the_recipes_read_what_is_written(script, name, config):
    module, spec = script(name), load_config(config).data
    assert dict(spec.files) == {
        split: f"data/{name}/{split}.jsonl" for split in ("train", "validation", "test")
    }
    assert set(module.PUBLISHED) == set(spec.files)


def run_script(name, *words):
    command = [sys.executable, FOLDER / f"{name}.py", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_another_archive_than_the_pinned_one_is_refused(tmp_path):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as made:
        for name, text in gigaword().items():
            made.writestr(name, text)
    right = hashlib.sha256(archive.read_bytes()).hexdigest()
    output = ("--output", tmp_path / "out")
    done = run_script("gigaword", archive, "--sha256", "0" * 64, *output)
    assert done.returncode == 1
    assert done.stderr == f"ValueError: {archive}: its SHA-256 is {right}, not {'0' * 64}\n"
    assert not (tmp_path / "out").exists()
    done = run_script("gigaword", archive, "--sha256", right.upper(), *output)
    assert done.returncode == 0, done.stderr
    assert "5 rows; published are 3803957" in done.stdout


def test_a_changed_bit_of_an_archive_is_found(tmp_path):
    """Gzip's checksum stands at the end, and tarfile reads no further than its last member."""
    for name in gigaword():
        (tmp_path / name).write_text("abcdefg hijklmn\n" * 5)
    with tarfile.open(tmp_path / "x.tar", "w") as made:
        for name in gigaword():
            made.add(tmp_path / name, name)
    archive = tmp_path / "x.tgz"
    spoilt = bytearray(gzip.compress((tmp_path / "x.tar").read_bytes(), compresslevel=0))
    spoilt[spoilt.index(b"hijklmn")] ^= 1  # nothing is compressed: the text is iijklmn
    archive.write_bytes(spoilt)
    done = run_script("gigaword", archive, "--output", tmp_path / "out")
    assert done.returncode == 1
    assert f"{archive}: cannot be read as a zip or tar archive: CRC" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["no zip or tar", "cut short", None])
def test_what_is_no_archive_is_one_line(tmp_path, broken):
    archive = tmp_path / "x.tgz"
    if broken == "cut short":
        with tarfile.open(archive, "w:gz") as made:
            made.add(FOLDER)
        archive.write_bytes(archive.read_bytes()[:3000])
    elif broken:
        archive.write_text(broken)
    done = run_script("gigaword", archive, "--output", tmp_path / "out")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert str(archive) in done.stderr
