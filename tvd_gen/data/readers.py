"""Files to records, one reader a format, so that every fault has a file and a line.

A reader yields `(number, record)`, or `(number, Fault)` for what cannot be read; numbers start at 1
and are line numbers, in parquet row numbers. What breaks a whole file (it is missing, its
compression is broken, its header is wrong) is a DataError. Lines end at LF or CR LF and nowhere
else: U+2028 and its kind are text. No value is special: the texts "NA" and "null" stay texts.
"""

import bz2
import csv
import gzip
import hashlib
import json
import lzma
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from glob import glob, has_magic
from itertools import count
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from tvd_gen.data.report import SourceFile
from tvd_gen.data.rows import BLANK, Fault, Record, did_you_mean, kind_of
from tvd_gen.errors import DataError

Documents: TypeAlias = Literal["line", "paragraph"]
Numbered: TypeAlias = tuple[int, Record | Fault]
Line: TypeAlias = tuple[int, str | Fault]

MAX_LINE_BYTES = 10_000_000
MAX_ROW_LINES = 10_000
COMPRESSED: dict[str, Callable[..., Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}


def format_of(path: str | Path) -> str:
    """jsonl, csv, tsv, txt or parquet, from the name; DataError for any other."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    known = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv"}
    known |= {".txt": "txt", ".parquet": "parquet"}
    found = known.get(suffixes[-1] if suffixes else "")
    if found is None:
        raise DataError(
            f"{path}: cannot tell the format from the name; it must end in "
            f"{', '.join(known)} (also with {', '.join(COMPRESSED)})"
        )
    return found


def read_rows(path: str | Path, *, documents: Documents = "line") -> Iterator[Numbered]:
    """The records of one file, by its format; a text file's records have the one column `text`."""
    kind = format_of(path)
    if kind == "txt":
        return text_records(path, documents)
    readers = {"jsonl": json_records, "csv": csv_records, "tsv": tsv_records}
    return readers.get(kind, parquet_records)(path)


def columns_of(path: str | Path) -> list[str] | None:
    """The columns of a table; None for jsonl, where each row has its own."""
    kind = format_of(path)
    if kind == "parquet":
        return list(_parquet(path).schema_arrow.names)
    if kind in ("csv", "tsv"):
        return _header(path, kind)
    return ["text"] if kind == "txt" else None


# --- bytes and lines


@contextmanager
def open_bytes(path: str | Path) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file; every fault of opening or decompressing is a DataError."""
    try:
        with COMPRESSED.get(Path(path).suffix.lower(), open)(path, "rb") as stream:
            yield stream
    except FileNotFoundError:
        raise DataError(f"{path}: no such file{_nearby(Path(path))}") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: the compression is broken ({error}); fetch or make the file again"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _nearby(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return (
            f" (there is no folder {folder}); the config's comments say where its files come from, "
            "and the demo configs need none"
        )
    return did_you_mean(path.name, [each.name for each in folder.glob("[!.]*")])


def text_lines(path: str | Path, errors: str = "strict") -> Iterator[Line]:
    """(line number, line without its end), or a Fault for one that is too long or not UTF-8."""
    with open_bytes(path) as stream:
        for number in count(1):
            line = stream.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if number == 1:
                line = _without_mark(path, line)
            if len(line) > MAX_LINE_BYTES:
                _skip_line(stream, line)
                yield number, Fault("line too long", f"over {MAX_LINE_BYTES:,} bytes")
            else:
                yield number, _decoded(line, errors)


def _without_mark(path: str | Path, line: bytes) -> bytes:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}:1: this is UTF-16; save the file as UTF-8")
    return line.removeprefix(b"\xef\xbb\xbf")


def _skip_line(stream: IO[bytes], line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = stream.readline(MAX_LINE_BYTES)


def _decoded(line: bytes, errors: str) -> str | Fault:
    if line.endswith(b"\n"):
        line = line[:-2] if line.endswith(b"\r\n") else line[:-1]
    try:
        return line.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        byte, place = line[error.start], error.start + 1
        return Fault("bad UTF-8", f"byte 0x{byte:02X} at place {place} of the line")


def count_lines(path: str | Path) -> int:
    """How many lines a file has; a last one without an end counts."""
    lines, last = 0, b"\n"
    with open_bytes(path) as stream:
        while block := stream.read(1 << 20):
            lines, last = lines + block.count(b"\n"), block
    return lines + (not last.endswith(b"\n"))


def source_file(path: str | Path, name: str | None = None) -> SourceFile:
    """The file's hash and size as it is on disk."""
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
                size += len(block)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file{_nearby(Path(path))}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return SourceFile(name or str(path), digest.hexdigest(), size)


def expand(pattern: str) -> list[str]:
    """The files that a name with * or ? stands for, sorted; a plain name is itself."""
    name = str(Path(pattern).expanduser())
    if not has_magic(name) or Path(name).exists():
        return [name]
    found = sorted(glob(name))
    if not found:
        raise DataError(f"{pattern}: no file has such a name")
    return found


# --- jsonl


def json_records(path: str | Path) -> Iterator[Numbered]:
    """One JSON object a line; blank lines are passed on as blank."""
    for number, line in text_lines(path):
        if isinstance(line, Fault):
            yield number, line
        else:
            yield number, _json_object(line) if line.strip() else Fault(BLANK)


def _json_object(line: str) -> Record | Fault:
    try:
        value = json.loads(line, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        whole = line.strip() in ("[", "{", "[{")
        hint = "; is the file one JSON document? Write one object a line" if whole else ""
        return Fault("bad JSON", f"{error.msg} at column {error.colno}{hint}")
    except (ValueError, RecursionError) as error:
        return Fault("bad JSON", str(error)[:100])
    if isinstance(value, dict):
        return value
    hint = "; write one object a line" if isinstance(value, list) else ""
    return Fault("not an object", f"the line is {kind_of(value)}{hint}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{max(keys, key=keys.count)!r} is there twice")
    return result


# --- csv and tsv


def _header(path: str | Path, kind: str) -> list[str]:
    first = next(_csv_rows(path) if kind == "csv" else _tsv_rows(path), (1, Fault("empty")))[1]
    if isinstance(first, Fault):
        if first.reason == "empty":
            raise DataError(f"{path}: the file is empty; its first line must name the columns")
        raise DataError(f"{path}:1: the header cannot be read: {first}")
    if damage := _damage(first):
        raise DataError(f"{path}:1: the header cannot be read: {damage}")
    twice = [name for name in first if first.count(name) > 1]
    if twice or "" in first:
        what = f"the column {twice[0]!r} twice" if twice and twice[0] else "a column without a name"
        raise DataError(f"{path}:1: the header has {what}")
    return first


def csv_records(path: str | Path) -> Iterator[Numbered]:
    """Comma-separated rows under a header; fields in double quotes may run over lines."""
    return _table(path, "csv", _csv_rows(path))


def tsv_records(path: str | Path) -> Iterator[Numbered]:
    r"""Tab-separated rows under a header, one a line.

    Quotes are text, unless the header is quoted too (then every quoted field is), or a field has
    the form `"...""..."` that only a quoting writer makes.
    """
    return _table(path, "tsv", _tsv_rows(path))


def _table(
    path: str | Path, kind: str, rows: Iterator[tuple[int, list[str] | Fault]]
) -> Iterator[Numbered]:
    header = _header(path, kind)
    next(rows)
    for number, row in rows:
        if isinstance(row, Fault):
            yield number, row
        elif len(row) != len(header):
            what = f"{len(row)} where the header has {len(header)}"
            yield number, Fault("wrong number of columns", what)
        else:
            yield number, _damage(row) or dict(zip(header, row, strict=True))


def _damage(row: list[str]) -> Fault | None:
    # surrogateescape turns a byte that is no UTF-8 into U+DC80..U+DCFF, which UTF-8 cannot hold.
    for field in row:
        if not field.isascii():
            try:
                field.encode()
            except UnicodeEncodeError as error:
                return Fault("bad UTF-8", f"byte 0x{ord(field[error.start]) - 0xDC00:02X}")
    return None


def _tsv_rows(path: str | Path) -> Iterator[tuple[int, list[str] | Fault]]:
    quoted = False
    for number, line in text_lines(path, "surrogateescape"):
        if isinstance(line, Fault):
            yield number, line
            continue
        fields = line.split("\t")
        if number == 1:
            quoted = all(_enclosed(field) for field in fields)
        if line.strip() or len(fields) > 1:
            yield number, [_unquoted(field, quoted) for field in fields]
        else:
            yield number, Fault(BLANK)


def _enclosed(field: str) -> bool:
    inner = field[1:-1].replace('""', "")
    return len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner


def _unquoted(field: str, quoted: bool) -> str:
    if '"' in field and _enclosed(field) and (quoted or '""' in field[1:-1]):
        return field[1:-1].replace('""', '"')
    return field


class _BrokenRow(Exception):
    """A row that cannot go on; its text is the detail of the fault."""


class _Feed:
    """Lines for csv.reader; after a broken row they are given back, from its second line."""

    def __init__(self, lines: Iterable[Line]):
        self.lines = iter(lines)
        self.back: deque[Line] = deque()
        self.taken: list[Line] = []
        self.size = 0

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        number, line = self.back.popleft() if self.back else next(self.lines)
        self.taken.append((number, line))
        if isinstance(line, Fault):
            raise _BrokenRow("a line within quotes is too long")
        self.size += len(line)
        if self.size > MAX_LINE_BYTES or len(self.taken) > MAX_ROW_LINES:
            raise _BrokenRow("a quote is opened and never closed")
        return line + "\n"

    def start_row(self) -> None:
        self.taken.clear()
        self.size = 0

    def give_back(self) -> None:
        self.back.extendleft(reversed(self.taken[1:]))


def _csv_rows(path: str | Path) -> Iterator[tuple[int, list[str] | Fault]]:
    # The csv module's own limit is 131,072 characters a field, for the whole process.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    feed = _Feed(text_lines(path, "surrogateescape"))
    reader = csv.reader(feed, strict=True)
    while True:
        feed.start_row()
        try:
            row = next(reader)
        except StopIteration:
            return
        except (csv.Error, _BrokenRow) as error:
            number, line = feed.taken[0]
            yield number, line if isinstance(line, Fault) else Fault("bad CSV", _csv_words(error))
            feed.give_back()
            reader = csv.reader(feed, strict=True)
        else:
            yield feed.taken[0][0], row or Fault(BLANK)


def _csv_words(error: Exception) -> str:
    if "unexpected end" in str(error):
        return "a quote is opened and never closed"
    return "a carriage return outside quotes" if "new-line" in str(error) else str(error)


# --- text


def text_records(path: str | Path, documents: Documents = "line") -> Iterator[Numbered]:
    """A text a line, or a text a paragraph: lines up to the next blank one."""
    lines = text_lines(path)
    for number, text in lines if documents == "line" else _paragraphs(lines):
        if isinstance(text, Fault):
            yield number, text
        else:
            yield number, {"text": text} if text.strip() else Fault(BLANK)


def _paragraphs(lines: Iterable[Line]) -> Iterator[Line]:
    start, held = 0, list[str]()
    for number, line in lines:
        if isinstance(line, str) and line.strip():
            start = start if held else number
            held.append(line)
            continue
        if held:
            yield start, "\n".join(held)
            held.clear()
        yield number, line
    if held:
        yield start, "\n".join(held)


def pair_records(paths: Sequence[str | Path], fields: Sequence[str]) -> Iterator[Numbered]:
    """Line n of each file together make row n; DataError when they have not equally many lines."""
    counts = [count_lines(path) for path in paths]
    if len(set(counts)) > 1:
        both = " and ".join(f"{path} has {n} lines" for path, n in zip(paths, counts, strict=True))
        raise DataError(f"{both}: parallel files must have a line for each other's")
    for lines in zip(*map(text_lines, paths), strict=True):
        yield lines[0][0], _joined([line for _, line in lines], fields)


def _joined(lines: Sequence[str | Fault], fields: Sequence[str]) -> Record | Fault:
    for field, line in zip(fields, lines, strict=True):
        if isinstance(line, Fault):
            return Fault(line.reason, line.detail, field)
    return dict(zip(fields, lines, strict=True))


# --- parquet


def _parquet(path: str | Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file{_nearby(Path(path))}") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: this is no parquet file that can be read: {error}") from None


def parquet_records(path: str | Path) -> Iterator[Numbered]:
    """The rows of a parquet file; the number is the row's."""
    import pyarrow

    number = 0
    try:
        for batch in _parquet(path).iter_batches(batch_size=1000):
            for row in _batch_rows(batch):
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} row {number + 1}: the file is broken here: {error}") from None


def _batch_rows(batch: Any) -> Sequence[Record | Fault]:
    try:
        rows: list[Record] = batch.to_pylist()
    except UnicodeDecodeError:
        return [_one_row(batch, i) for i in range(batch.num_rows)]
    return rows


def _one_row(batch: Any, i: int) -> Record | Fault:
    try:
        row: Record = batch.slice(i, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return Fault("bad UTF-8", f"byte 0x{error.object[error.start]:02X}")
    return row
