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

import pyarrow
import pytest
from pyarrow import parquet

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


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A dataset as the hub's converter lays it out, in a snapshot as huggingface_hub keeps it."""
    folder = tmp_path / "snapshots" / "0123abc"
    for split, parts in (("train", 2), ("validation", 1), ("test", 1)):
        (folder / "de-en" / split).mkdir(parents=True)
        for part in range(parts):
            rows = [{"de": f"Wort {split} {i}", "en": f"Word {part} {i}"} for i in range(23)]
            table = pyarrow.table({"translation": rows})
            parquet.write_table(table, folder / "de-en" / split / f"{part:04d}.parquet")

    def snapshot_download(name, **options):
        assert name == "some/where"
        assert options["repo_type"] == "dataset"
        assert options["revision"] == "refs/convert/parquet"
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return folder


def test_iwslt14_comes_from_the_hub_too(script, hub, tmp_path):
    """Which commit, and which bytes of it, must be known when the branch has moved on."""
    manifest = script("iwslt14").prepare_hub("some/where", tmp_path / "out")
    counts = {name: each["rows"] for name, each in manifest["outputs"].items()}
    assert counts == {"train.jsonl": 44, "validation.jsonl": 2, "test.jsonl": 23}
    assert rows_of(tmp_path / "out" / "validation.jsonl")[1]["en"] == "word 1 22"
    assert "not those of the published archive" in manifest["notes"][-1]
    assert manifest["inputs"] == {
        f"some/where@0123abc/{path}": {
            "sha256": hashlib.sha256((hub / path).read_bytes()).hexdigest(),
            "bytes": (hub / path).stat().st_size,
        }
        for path in (
            "de-en/train/0000.parquet",
            "de-en/train/0001.parquet",
            "de-en/test/0000.parquet",
        )
    }


def test_a_hash_of_an_archive_is_refused_where_none_is_read():
    done = run_script("iwslt14", "--hub", "some/where", "--sha256", "0" * 64)
    assert done.returncode == 2
    assert "--sha256 is the hash of an archive" in done.stderr


@pytest.mark.parametrize(
    ("german", "english", "kept"),
    [
        (175, 175, True), (176, 175, False), (175, 176, False), (1, 1, True), (0, 0, False),
        (150, 100, True), (151, 100, False), (100, 150, True), (100, 151, False),
    ],
)  # fmt: skip
def test_pairs_are_cleaned_as_moses_does(script, german, english, kept):
    """prepare-iwslt14.sh: clean-corpus-n.perl -ratio 1.5 ... 1 175.

    It leaves out what has more than 175 words, or more than 1.5 times the other side's.
    """
    assert script("iwslt14").is_clean(("w " * german, "w " * english)) is kept


def test_a_missing_part_or_a_lost_line_is_one_line(script, pack, tmp_path):
    texts = iwslt14()
    texts["IWSLT14.TED.tst2011.de-en.en.xml"] = xml(["one only"])
    with pytest.raises(ValueError, match=r"tst2011: the two sides differ in their number of lines"):
        script("iwslt14").prepare(pack(texts), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_run_that_fails_leaves_the_earlier_corpus_as_it_was(script, tmp_path):
    """Half of one and half of another: models would be tested on what they were trained on."""
    files = script("files")
    row = {"source": "a", "target": "b"}
    files.write_corpus(tmp_path, {"train": [row], "test": [row]}, {}, {})
    earlier = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(earlier) == {"train.jsonl", "test.jsonl", "manifest.json"}

    def cut_off():
        yield row
        raise ValueError("the archive ends here")

    for test, fault in ((cut_off(), "ends here"), ([], r"test.jsonl: would have no rows")):
        with pytest.raises(ValueError, match=fault):
            files.write_corpus(tmp_path, {"train": [row] * 2, "test": test}, {}, {})
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == earlier
    files.write_corpus(tmp_path, {"train": [row] * 2, "test": [row]}, {}, {})
    assert len(rows_of(tmp_path / "train.jsonl")) == 2


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


@pytest.mark.parametrize("sides", [("src",), ("tgt",), ("src", "tgt")], ids="-".join)
def test_an_empty_file_is_refused_by_its_name(script, pack, tmp_path, sides):
    """A download cut short at 0 bytes would pass for a test set."""
    texts = gigaword() | {f"test.{side}.txt": "" for side in sides}
    with pytest.raises(ValueError, match=rf"test\.{sides[0]}\.txt: is empty"):
        script("gigaword").prepare(pack(texts), tmp_path / "out")


def test_a_byte_order_mark_is_none_of_the_text(script, pack, tmp_path):
    texts = {name: "\ufeff" + text for name, text in gigaword().items()}
    texts["dev.src.txt"] = "one\n\ufefftwo\nthree\n"  # one in the text is the text's
    script("gigaword").prepare(pack(texts), tmp_path / "out")
    first = rows_of(tmp_path / "out/test.jsonl")[0]
    assert first == {"source": "src test 0 #", "target": "tgt test 0 #"}
    assert rows_of(tmp_path / "out/validation.jsonl")[1]["source"] == "\ufefftwo"


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
    assert "SHA-256: not that of the published archive, bc0c4a2e" in done.stdout


def test_the_published_archive_is_recognized(script, pack, tmp_path, monkeypatch):
    module, place = script("gigaword"), pack(gigaword())
    if place.is_file():
        monkeypatch.setattr(module, "ARCHIVE", hashlib.sha256(place.read_bytes()).hexdigest())
    notes = module.prepare(place, tmp_path / "out")["notes"]
    assert notes == (["SHA-256: as published"] if place.is_file() else [])


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
