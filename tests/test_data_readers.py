"""Readers: every row of every file is a record or a fault with its line."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvd_gen.data import readers
from tvd_gen.data.readers import count_lines, expand, pair_records, read_rows
from tvd_gen.data.rows import BLANK, Fault
from tvd_gen.errors import DataError


def write(folder, name, content):
    path = Path(folder) / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, **options):
    return list(read_rows(path, **options))


def faults(path):
    return [(number, str(row)) for number, row in read(path) if isinstance(row, Fault)]


def records(path, **options):
    return [row for _, row in read(path, **options) if not isinstance(row, Fault)]


def test_a_jsonl_row_is_an_object_with_its_line(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"source": "a"}\n\n{"source": "NA"}')
    assert read(path) == [(1, {"source": "a"}), (2, Fault(BLANK)), (3, {"source": "NA"})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": "\xff"}', "bad UTF-8: byte 0xFF at place 8 of the line"),
        (b'{"a": 1', "bad JSON: Expecting ',' delimiter at column 8"),
        (b"[", "bad JSON: Expecting value at column 2; is the file one JSON document?"),
        (b"[1, 2]", "not an object: the line is a list; write one object a line"),
        (b"17", "not an object: the line is the number 17"),
        (b'{"a": "x", "a": "y"}', "bad JSON: 'a' is there twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "bad JSON: Exceeds the limit"),
        (b"[" * 100_000, "bad JSON: "),
    ],
)
def test_a_broken_jsonl_line_is_named_with_its_reason(tmp_path, line, message):
    """Stock tools end in a deep traceback without the line."""
    path = write(tmp_path, "a.jsonl", b'{"a": "ok"}\n' + line + b'\n{"a": "ok"}\n')
    [(number, found)] = faults(path)
    assert number == 2
    assert found.startswith(message)
    assert len(records(path)) == 2


def test_a_line_over_the_limit_is_a_fault_and_reading_goes_on(tmp_path, monkeypatch):
    """A 40 MB line is a broken file, and must not end as a 40 MB row."""
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 100)
    path = write(tmp_path, "a.txt", "x" * 99 + "\n" + "y" * 250 + "\n" + "z" * 101 + "\nlast\n")
    assert faults(path) == [(n, "line too long: over 100 bytes") for n in (2, 3)]
    assert [row["text"] for row in records(path)] == ["x" * 99, "last"]


def test_only_lf_and_crlf_end_a_line(tmp_path):
    """splitlines would cut at U+2028, and shift the rest of a parallel file."""
    text = "one\u2028still one\x0bstill\x85one\r\ntwo\rstill two\n"
    path = write(tmp_path, "a.txt", text)
    assert [row["text"] for row in records(path)] == [
        "one\u2028still one\x0bstill\x85one",
        "two\rstill two",
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    path = write(tmp_path, "a.csv", b"\xef\xbb\xbfsource,target\na,b\n")
    assert records(path) == [{"source": "a", "target": "b"}]


def test_utf16_is_refused_in_words(tmp_path):
    path = write(tmp_path, "a.txt", "text".encode("utf-16"))
    with pytest.raises(DataError, match=r"a\.txt:1: this is UTF-16; save the file as UTF-8"):
        read(path)


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
def test_a_compressed_file_reads_as_the_plain_one(tmp_path, suffix, pack):
    path = write(tmp_path, "a.jsonl" + suffix, pack(b'{"a": "x"}\n{"a": "y"}\n'))
    assert records(path) == [{"a": "x"}, {"a": "y"}]
    assert count_lines(path) == 2


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_broken_compression_is_one_message(tmp_path, suffix):
    """A download that broke off must not train on its first half."""
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    whole = pack("".join(f'{{"a": "{n * n}"}}\n' for n in range(20_000)).encode())
    for content in (whole[: len(whole) // 2], b"plain text\n"):
        path = write(tmp_path, "a.jsonl" + suffix, content)
        with pytest.raises(DataError, match=r"a.jsonl"):
            read(path)


def test_a_missing_file_is_named_with_its_neighbour(tmp_path):
    write(tmp_path, "train.jsonl", "{}\n")
    with pytest.raises(DataError, match=r"trian.jsonl: no such file; did you mean train.jsonl\?"):
        read(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match="there is no folder"):
        read(tmp_path / "nowhere" / "train.jsonl")
    (tmp_path / "train.jsonl").rename(tmp_path / ".train.jsonl.part")  # a writer's, cut off
    with pytest.raises(DataError, match=r"train.jsonl: no such file$"):
        read(tmp_path / "train.jsonl")


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(DataError, match=r"a.jsonl: cannot be read: Is a directory"):
        read(tmp_path / "a.jsonl")


def test_an_unknown_ending_names_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"a.docx: cannot tell the format.*\.jsonl.*\.parquet"):
        read(write(tmp_path, "a.docx", "x"))


def test_a_csv_value_is_what_is_written(tmp_path):
    """pandas and datasets turn NA, null, nan and None into no value, and targets are lost."""
    words = ["NA", "null", "nan", "None", "N/A", "1", "0012", "1e5", "true", " x "]
    path = write(tmp_path, "a.csv", "source,target\n" + "".join(f"a,{w}\n" for w in words))
    assert [row["target"] for row in records(path)] == words


@given(
    rows=st.lists(
        st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\r\0"))] * 2),
        max_size=8,
    ),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
)
@settings(max_examples=200, deadline=None)
def test_what_a_csv_writer_writes_is_read_back(rows, quoting, end):
    out = io.StringIO()
    writer = csv.writer(out, quoting=quoting, lineterminator=end)
    writer.writerows([("source", "target"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        found = records(write(folder, "a.csv", out.getvalue()))
    assert [(row["source"], row["target"]) for row in found] == rows


def test_a_broken_csv_row_takes_no_other_row_with_it(tmp_path):
    """A quote that is never closed swallows the rest of the file in the csv module."""
    lines = ["source,target", "a,b", '"open,c', "d,e", '"f"x,g', "h,i", "j", "k,l,m", "n,o", '"p,q']
    path = write(tmp_path, "a.csv", "\n".join(lines) + "\n")
    assert [row["source"] for row in records(path)] == ["a", "d", "h", "n"]
    assert faults(path) == [
        (3, "bad CSV: ',' expected after '\"'"),
        (5, "bad CSV: ',' expected after '\"'"),
        (7, "wrong number of columns: 1 where the header has 2"),
        (8, "wrong number of columns: 3 where the header has 2"),
        (10, "bad CSV: a quote is opened and never closed"),
    ]


def test_bad_utf8_in_a_csv_row_is_named(tmp_path):
    path = write(tmp_path, "a.csv", b"source,target\na,\xe4\nc,d\n")
    assert faults(path) == [(2, "bad UTF-8: byte 0xE4")]
    assert len(records(path)) == 1


def test_a_csv_field_may_be_long(tmp_path):
    """The csv module refuses fields over 131,072 characters."""
    path = write(tmp_path, "a.csv", "source,target\n" + "x" * 200_000 + ",y\n")
    assert len(records(path)[0]["source"]) == 200_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty; its first line must name the columns"),
        ("a,a\n1,2\n", "a.csv:1: the header has the column 'a' twice"),
        ("a,\n1,2\n", "a.csv:1: the header has a column without a name"),
        (b"\xff,b\n1,2\n", "a.csv:1: the header cannot be read: bad UTF-8: byte 0xFF"),
        ('"a,b\n1,2\n', "a.csv:1: the header cannot be read: bad CSV: a quote is opened and never"),
    ],
)
def test_a_broken_header_is_one_message(tmp_path, content, message):
    path = write(tmp_path, "a.csv", content)
    with pytest.raises(DataError, match=message):
        read(path)


def test_quotes_in_a_tsv_are_text(tmp_path):
    """Parallel corpora hold quoted speech; taking quotes off one side only harms the pair."""
    speech = ['"Hi," he said.\tx', '"Thank you."\ty', 'a "b" c\t"']
    path = write(tmp_path, "a.tsv", "source\ttarget\n" + "\n".join(speech) + "\n")
    assert ["\t".join(row.values()) for row in records(path)] == speech


def test_a_tsv_that_a_quoting_writer_made_loses_its_quotes(tmp_path):
    minimal = write(tmp_path, "a.tsv", 'source\ttarget\n"say ""hi"""\tx\n')
    assert records(minimal) == [{"source": 'say "hi"', "target": "x"}]
    every = write(tmp_path, "b.tsv", '"source"\t"target"\n"a"\t"say ""hi"""\n')
    assert records(every) == [{"source": "a", "target": 'say "hi"'}]


def test_a_tsv_row_with_a_tab_too_many_is_a_fault(tmp_path):
    path = write(tmp_path, "a.tsv", "source\ttarget\na\tb\tc\n\nd\te\n")
    assert faults(path) == [
        (2, "wrong number of columns: 3 where the header has 2"),
        (3, BLANK),
    ]


def test_a_text_file_is_a_text_a_line_or_a_paragraph(tmp_path):
    path = write(tmp_path, "a.txt", "one\ntwo\n\n \nthree\n")
    assert [(n, r["text"]) for n, r in read(path) if not isinstance(r, Fault)] == [
        (1, "one"),
        (2, "two"),
        (5, "three"),
    ]
    paragraphs = [row for row in read(path, documents="paragraph") if not isinstance(row[1], Fault)]
    assert paragraphs == [(1, {"text": "one\ntwo"}), (5, {"text": "three"})]


def test_parallel_files_of_unequal_length_are_refused_with_both_counts(tmp_path):
    """zip() would drop the longer file's end, and a missing line shifts all pairs after it."""
    a, b = write(tmp_path, "t.de", "eins\nzwei\ndrei"), write(tmp_path, "t.en", "one\ntwo\n")
    with pytest.raises(DataError, match=r"t\.de has 3 lines and .*t\.en has 2 lines"):
        list(pair_records([a, b], ["source", "target"]))


def test_parallel_files_join_by_line(tmp_path):
    a, b = write(tmp_path, "t.de", "eins\nz\u2028wei\n"), write(tmp_path, "t.en", b"one\n\xff\n")
    first, second = pair_records([a, b], ["source", "target"])
    assert first == (1, {"source": "eins", "target": "one"})
    assert second[1] == Fault("bad UTF-8", "byte 0xFF at place 1 of the line", "target")


def test_parquet_rows_have_numbers_and_nested_values(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"t": [{"de": "a", "en": "b"}, None], "n": [1, 2]})
    pyarrow.parquet.write_table(table, path)
    assert read(path) == [(1, {"t": {"de": "a", "en": "b"}, "n": 1}), (2, {"t": None, "n": 2})]


def test_bad_utf8_in_parquet_costs_one_row(tmp_path):
    path = tmp_path / "a.parquet"
    column = pyarrow.array([b"ok", b"\xff", b"fine"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path)
    assert faults(path) == [(2, "bad UTF-8: byte 0xFF")]
    assert records(path) == [{"text": "ok"}, {"text": "fine"}]


def test_a_broken_parquet_file_is_one_message(tmp_path):
    with pytest.raises(DataError, match="no parquet file that can be read"):
        read(write(tmp_path, "a.parquet", "no"))


def test_a_pattern_stands_for_its_files_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "c.csv"):
        write(tmp_path, name, "x\n")
    assert expand(str(tmp_path / "*.txt")) == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    with pytest.raises(DataError, match="no file has such a name"):
        expand(str(tmp_path / "*.tsv"))


def reference_jsonl(content):
    """The rows of a jsonl file, read another way: (values of good lines, how many bad, blank)."""
    good, bad, blank = [], 0, 0
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for line in lines[:-1] if lines[-1] == b"" else lines:
        try:
            text = line.decode()
            if not text.strip():
                blank += 1
                continue
            pairs = json.JSONDecoder(object_pairs_hook=list).decode(text)
            value = json.loads(text)
        except (ValueError, RecursionError):
            bad += 1
            continue
        is_row = isinstance(value, dict) and len(pairs) == len(value)
        good, bad = ([*good, value], bad) if is_row else (good, bad + 1)
    return good, bad, blank


def reference_csv(content):
    """The rows of a csv file without quotes and of two columns."""
    good, bad, blank = [], 0, 0
    lines = content.split(b"\n")
    for line in lines[1:-1] if lines[-1] == b"" else lines[1:]:
        fields = line.rstrip(b"\r").split(b",")
        try:
            texts = [field.decode() for field in fields]
        except UnicodeDecodeError:
            bad += 1
            continue
        if texts == [""]:
            blank += 1
        elif len(texts) == 2 and "\r" not in "".join(texts):
            good.append({"source": texts[0], "target": texts[1]})
        else:
            bad += 1
    return good, bad, blank


JSONL = "".join(
    json.dumps({"source": f"Zeile {n} ä", "target": f"line {n}"}, ensure_ascii=n % 2 == 0) + "\n"
    for n in range(6)
).encode()
CSV = b"source,target\n" + b"".join(b"Zeile %d \xc3\xa4,line %d\n" % (n, n) for n in range(6))

edits = st.lists(
    st.tuples(
        st.integers(0, 400),
        st.sampled_from(["flip", "insert", "delete", "cut"]),
        st.sampled_from(
            [b"\xff", b"\n", b"\r\n", b"{", b"}", b"\\", b":", b",", b" ", b"\xe2\x80"]
        ),
    ),
    max_size=6,
)


FUZZ = settings(max_examples=400 * int(os.environ.get("TVD_FUZZ", "1")), deadline=None)


def mutate(content, edits, first=0):
    for place, kind, piece in edits:
        at = max(first, place % (len(content) + 1))
        if kind == "flip":
            content = content[:at] + piece[:1] + content[at + 1 :]
        elif kind == "insert":
            content = content[:at] + piece + content[at:]
        elif kind == "delete":
            content = content[:at] + content[at + 1 :]
        else:
            content = content[: max(at, len(content) // 2)]
    return content


def sorted_out(folder, name, content):
    rows = [row for _, row in read(write(folder, name, content))]
    blank = sum(isinstance(row, Fault) and row.reason == BLANK for row in rows)
    good = [row for row in rows if not isinstance(row, Fault)]
    return good, len(rows) - len(good) - blank, blank


@given(edits)
@FUZZ
def test_a_mutated_jsonl_file_loses_no_row_unreported(edits):
    """Rows kept and rows reported are the rows there, whatever happened to the file."""
    content = mutate(JSONL, edits)
    with tempfile.TemporaryDirectory() as folder:
        assert sorted_out(folder, "a.jsonl", content) == reference_jsonl(content)


@given(edits)
@FUZZ
def test_a_mutated_csv_file_loses_no_row_unreported(edits):
    content = mutate(CSV, edits, first=CSV.index(b"\n") + 1)
    with tempfile.TemporaryDirectory() as folder:
        assert sorted_out(folder, "a.csv", content) == reference_csv(content)
