"""load_corpus: rows from files, shipped corpora and the hub, checked and counted."""

import gzip
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import datasets
import pytest

from tvd_gen.data import DataSpec, hub, load_corpus, shipped_corpora
from tvd_gen.data import corpora as corpora_module
from tvd_gen.errors import ConfigError, DataError

PAIR = ("source", "target")
GOOD = [{"source": f"s{n}", "target": f"t{n}"} for n in range(4)]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(path, fields=PAIR, **options):
    return load_corpus(DataSpec(files={"train": path}, **options), fields)


def refused(path, fields=PAIR, **options):
    with pytest.raises(DataError) as caught:
        load(path, fields, **options)
    return str(caught.value)


def test_a_corpus_has_exactly_the_fields_and_says_where_rows_are(tmp_path):
    rows = [{**row, "more": 1} for row in GOOD]
    path = jsonl(tmp_path / "a.jsonl", rows)
    corpus = load(path)
    assert list(corpus.splits["train"]) == GOOD
    assert corpus.splits["train"].column_names == ["source", "target"]
    assert corpus.places["train"](2) == f"{path}:3"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"source": "x", "target": ""}, "empty target"),
        ({"source": " \t\u3000", "target": "y"}, "empty source"),
        ({"source": "x", "target": None}, "not text: target is null"),
        ({"source": 17, "target": "y"}, "not text: source is the number 17"),
        ({"source": True, "target": "y"}, "not text: source is true or false"),
        ({"source": ["x"], "target": "y"}, "not text: source is a list"),
        ({"source": {}, "target": "y"}, "not text: source is an object"),
        (
            {"source": "x", "targt": "y"},
            "missing column: no column 'target'; there are: source, targt; did you mean targt?",
        ),
        ({"source": "x\0", "target": "y"}, "NUL character: in source"),
        ({"source": "\ud800", "target": "y"}, "bad Unicode: source has half a character, U+D800"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_file_line_and_reason(tmp_path, row, message):
    """Such rows train as loss 0.0, or stop the run hours later with an IndexError."""
    path = jsonl(tmp_path / "a.jsonl", [*GOOD, row])
    assert refused(path).splitlines()[:2] == [
        "1 of 5 rows of train cannot be used",
        f"  {path}:5: {message}",
    ]


def test_the_first_ten_bad_rows_of_all_splits_and_the_counts_are_told_at_once(tmp_path):
    bad = jsonl(tmp_path / "a.jsonl", GOOD + 8 * [{"source": "x", "target": ""}])
    worse = jsonl(tmp_path / "b.jsonl", GOOD + 8 * [{"source": 1, "target": "y"}])
    with pytest.raises(DataError) as caught:
        load_corpus(DataSpec(files={"train": bad, "test": worse}), PAIR)
    lines = str(caught.value).splitlines()
    assert lines[0] == "16 of 24 rows of train, test cannot be used"
    assert lines[1] == f"  {bad}:5: empty target"
    assert lines[9] == f"  {worse}:5: not text: source is the number 1"
    assert lines[11:] == [
        "  in all: 8 empty target, 8 not text",
        "mend them, or go on without: data.on_bad_row: skip",
    ]


def test_skipped_rows_are_counted_with_their_places(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [*GOOD[:2], {"source": "x", "target": ""}, *GOOD[2:]])
    corpus = load(path, on_bad_row="skip")
    report = corpus.report.splits["train"]
    assert (report.rows_read, report.rows_kept, dict(report.bad)) == (5, 4, {"empty target": 1})
    assert report.first_bad == [f"{path}:3: empty target"]
    assert corpus.places["train"](2) == f"{path}:4"
    assert json.loads(json.dumps(corpus.report.as_dict()))["splits"]["train"]["rows_kept"] == 4


def test_skip_stops_when_most_rows_would_go(tmp_path):
    """A wrong file with `skip` would otherwise train on the few rows that happen to parse."""
    path = jsonl(tmp_path / "a.jsonl", [GOOD[0], *3 * [{"source": "x", "target": ""}]])
    assert "3 of 4 rows cannot be used, more than half" in refused(path, on_bad_row="skip")


def test_when_the_columns_have_other_names_the_message_says_how_to_name_them(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"article": "x", "summary": "y"}])
    assert refused(path).endswith("say which column is which: data.columns: {field: column}")
    (tmp_path / "a.csv").write_text("article,target\nx,y\n")
    assert refused(str(tmp_path / "a.csv"), on_bad_row="skip") == (
        f"{tmp_path}/a.csv:1: no column 'source'; there are: article, target\n"
        "say which column is the source: data.columns: {source: ...}"
    )


def test_columns_are_mapped_and_dots_reach_into_objects(tmp_path):
    rows = [{"translation": {"de": "ja", "en": "yes"}}, {"translation": {"de": "nein"}}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    columns = {"source": "translation.de", "target": "translation.en"}
    corpus = load(path, columns=columns, on_bad_row="skip")
    assert list(corpus.splits["train"]) == [{"source": "ja", "target": "yes"}]
    assert corpus.report.splits["train"].bad == {"missing column": 1}
    dotted = jsonl(tmp_path / "b.jsonl", [{"a.b": "x", "target": "y"}])
    assert load(dotted, columns={"source": "a.b"}).splits["train"][0]["source"] == "x"


def test_a_field_that_the_task_has_not_is_a_config_fault(tmp_path):
    with pytest.raises(ConfigError, match=r"data.columns.sorce: .* did you mean source\?"):
        load(jsonl(tmp_path / "a.jsonl", GOOD), columns={"sorce": "x"})


def test_blank_texts_are_no_documents_and_no_faults(tmp_path):
    """WikiText has a blank line between any two; they must neither stop a run nor vanish."""
    (tmp_path / "a.txt").write_text("one\n\n \ntwo\n")
    report = load(str(tmp_path / "a.txt"), ("text",)).report.splits["train"]
    assert (report.rows_read, report.rows_kept, report.blank) == (2, 2, 2)


def test_a_text_file_is_refused_for_a_task_with_a_source(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    assert "one text a row, and the task has source and target" in refused(str(tmp_path / "a.txt"))


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_rows_is_refused(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    assert refused(str(tmp_path / "a.jsonl")) == f"train: no rows in {tmp_path}/a.jsonl"


def test_parallel_files_are_a_pair_in_the_order_of_the_fields(tmp_path):
    (tmp_path / "t.de").write_text("ja\n\nnein\n")
    (tmp_path / "t.en").write_text("yes\nno\n \n")
    pair = (str(tmp_path / "t.de"), str(tmp_path / "t.en"))
    assert refused(pair).splitlines()[1:3] == [
        f"  {pair[0]}:2: empty source",
        f"  {pair[1]}:3: empty target",
    ]
    with pytest.raises(ConfigError, match=r"data.files.train: 2 files, but .* field\(s\) text"):
        load(pair, ("text",))


def test_unequal_parallel_files_stop_the_run_even_under_skip(tmp_path):
    """Which lines belong together is unknowable, so there is nothing that could be skipped."""
    (tmp_path / "t.de").write_text("ja\nnein\n")
    (tmp_path / "t.en").write_text("yes\n")
    pair = (str(tmp_path / "t.de"), str(tmp_path / "t.en"))
    assert "t.de has 2 lines and" in refused(pair, on_bad_row="skip")


def test_a_limit_counts_good_rows(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"source": "x", "target": ""}, *GOOD])
    corpus = load(path, on_bad_row="skip", limit={"train": 2})
    assert list(corpus.splits["train"]) == GOOD[:2]


def test_several_files_are_one_split_with_their_own_places(tmp_path):
    jsonl(tmp_path / "a-1.jsonl", GOOD[:2])
    last = jsonl(tmp_path / "a-2.jsonl", GOOD[2:])
    corpus = load(str(tmp_path / "a-*.jsonl"))
    assert list(corpus.splits["train"]) == GOOD
    assert corpus.places["train"](3) == f"{last}:2"


def test_rows_that_are_also_in_the_training_split_are_counted(tmp_path):
    train = jsonl(tmp_path / "a.jsonl", GOOD)
    test = jsonl(tmp_path / "b.jsonl", [GOOD[0], {"source": "new", "target": "t"}])
    corpus = load_corpus(DataSpec(files={"train": train, "test": test}), PAIR)
    assert corpus.report.splits["test"].in_train == 1
    assert corpus.report.splits["train"].in_train is None


def test_rows_that_share_one_source_are_known_by_their_targets(tmp_path):
    """Texts without a source, as students of an oracle write them, are not all leaks."""
    train = [{"source": "write", "target": target} for target in "abc"]
    test = [{"source": "write", "target": target} for target in "cd"]
    files = {"train": jsonl(tmp_path / "a.jsonl", train), "test": jsonl(tmp_path / "b.jsonl", test)}
    assert load_corpus(DataSpec(files=files), PAIR).report.splits["test"].in_train == 1


def test_the_fingerprint_follows_content_and_choice_not_the_folder(tmp_path):
    """A resumed run must notice other data, and must not mind that the folder was moved."""
    path = jsonl(tmp_path / "a.jsonl", GOOD)
    mark = load(path).report.fingerprint
    (tmp_path / "moved").mkdir()
    assert load(jsonl(tmp_path / "moved" / "a.jsonl", GOOD)).report.fingerprint == mark
    assert load(path, limit={"train": 2}).report.fingerprint != mark
    changed = [*GOOD[:3], {"source": "s3", "target": "t4"}]
    assert load(jsonl(tmp_path / "a.jsonl", changed)).report.fingerprint != mark


def test_splits_have_three_names(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(ConfigError, match=r"data.files.valid: .* did you mean validation\?"):
        load_corpus(DataSpec(files={"valid": path}), PAIR)
    with pytest.raises(DataError, match="no train split; there are: test"):
        load_corpus(DataSpec(files={"test": path}), PAIR)
    with pytest.raises(ConfigError, match="exactly one of source, files and hub"):
        load_corpus(DataSpec(), PAIR)
    assert list(load_corpus(DataSpec(files={"train": path}), PAIR).splits) == ["train"]


def test_a_shipped_corpus_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora_module, "corpora_folder", lambda: tmp_path)
    monkeypatch.setattr("tvd_gen.data.sources.corpora_folder", lambda: tmp_path)
    (tmp_path / "tiny-corpus").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in GOOD)
    (tmp_path / "tiny-corpus" / "train.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert shipped_corpora() == ["tiny-corpus"]
    corpus = load_corpus(DataSpec(source="tiny-corpus"), PAIR)
    assert corpus.places["train"](0) == "tiny-corpus/train.jsonl.gz:1"
    with pytest.raises(DataError, match=r"'tiny-corps' ships .* did you mean tiny-corpus\?"):
        load_corpus(DataSpec(source="tiny-corps"), PAIR)


# --- streams


def streamed(path, seed=0, buffer=2):
    return load_corpus(
        DataSpec(files={"train": path}, streaming=True, shuffle_buffer=buffer), PAIR, seed=seed
    )


def test_a_stream_has_no_end_and_every_pass_has_every_row_once(tmp_path):
    """A stream with an end replays its start after a resume, in silence."""
    path = jsonl(tmp_path / "a.jsonl", GOOD)
    corpus = streamed(path)
    rows = [row["source"] for row in islice(corpus.splits["train"], 12 * len(GOOD))]
    passes = [rows[i : i + len(GOOD)] for i in range(0, len(rows), len(GOOD))]
    assert all(sorted(each) == ["s0", "s1", "s2", "s3"] for each in passes)
    assert len({tuple(each) for each in passes}) > 1
    assert corpus.report.splits["train"].rows_kept == 4


def test_a_stream_is_the_same_for_the_same_seed_only(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"source": str(n), "target": "t"} for n in range(50)])

    def first(seed):
        return [row["source"] for row in islice(streamed(path, seed).splits["train"], 120)]

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_a_stream_that_is_read_on_is_the_stream_that_was_left(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"source": str(n), "target": "t"} for n in range(9)])
    whole = list(islice(streamed(path).splits["train"], 40))
    assert list(islice(streamed(path).splits["train"].skip(25), 15)) == whole[25:]


def test_bad_rows_of_a_stream_are_found_before_the_first_is_used(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [*GOOD, {"source": "x", "target": ""}])
    with pytest.raises(DataError, match=r"a.jsonl:5: empty target"):
        streamed(path)


def test_the_texts_of_a_stream_have_an_end(tmp_path):
    """A tokenizer that is trained on a stream without end is never done."""
    path = jsonl(tmp_path / "a.jsonl", GOOD)
    corpora = streamed(path), load(path)
    texts = [sorted(corpus.texts("train")) for corpus in corpora]
    assert texts[0] == texts[1] == sorted(text for row in GOOD for text in row.values())
    assert len(list(corpora[1].texts("train", most=2))) == 4


# --- the hub


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """load_dataset takes a folder for an id: the hub's code path without a hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(hub, "_reachable", lambda: False)
    folder = tmp_path / "data"
    folder.mkdir()
    jsonl(folder / "train.jsonl", [*GOOD, {"source": "x", "target": ""}])
    return str(folder)


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_rows_are_checked_as_rows_of_files(hub_folder, streaming):
    corpus = load_corpus(DataSpec(hub=hub_folder, on_bad_row="skip", streaming=streaming), PAIR)
    rows = islice(corpus.splits["train"], 4)
    assert sorted(row["source"] for row in rows) == ["s0", "s1", "s2", "s3"]
    with pytest.raises(DataError, match="train row 5: empty target"):
        list(
            islice(
                load_corpus(DataSpec(hub=hub_folder, streaming=streaming), PAIR).splits["train"], 9
            )
        )


def test_split_expressions_choose_rows(hub_folder):
    splits = {"train": "train[:2]", "validation": "train[2:4]"}
    corpus = load_corpus(DataSpec(hub=hub_folder, splits=splits), PAIR)
    assert list(corpus.splits["validation"]) == GOOD[2:4]
    with pytest.raises(DataError, match=r"no split 'test'.*choose one with data.splits"):
        load_corpus(DataSpec(hub=hub_folder), PAIR, required=("test",))


def test_wrong_columns_of_a_hub_dataset_name_those_there(hub_folder):
    with pytest.raises(DataError, match="train: no column 'targt'; there are: source, target; did"):
        load_corpus(DataSpec(hub=hub_folder, columns={"target": "targt"}), PAIR)


def test_an_unreachable_hub_is_one_line_with_what_to_do(monkeypatch):
    monkeypatch.setattr(hub, "_reachable", lambda: False)
    with pytest.raises(DataError) as caught:
        load_corpus(DataSpec(hub="some-one/some-dataset"), PAIR)
    [line] = str(caught.value).splitlines()
    assert line.startswith("data.hub: cannot reach some-one/some-dataset on the hub")
    assert "use data.files with local files, or data.source with a shipped corpus" in line


def test_a_dataset_script_is_never_run_and_the_parquet_copy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_reachable", lambda: False)
    mark = tmp_path / "ran"
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / "script.py").write_text(f"open({str(mark)!r}, 'w')")
    with pytest.raises(DataError, match=r"data.revision: refs/convert/parquet"):
        load_corpus(DataSpec(hub=str(folder)), PAIR)
    assert not mark.exists()


def test_the_spec_loads_without_torch_or_transformers():
    """The command line's --help must stay under 0.3 s."""
    code = (
        "import sys, types; package = types.ModuleType('tvd_gen'); package.__path__ = ['tvd_gen'];"
        "sys.modules['tvd_gen'] = package; import tvd_gen.data.spec;"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert run.stdout.strip() == "[]"
