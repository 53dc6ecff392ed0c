"""A source is what one split is read from; it names every place in it, and its own content."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from tvd_gen.data.corpora import corpora_folder, corpus_files
from tvd_gen.data.readers import (
    Documents,
    Numbered,
    columns_of,
    expand,
    format_of,
    pair_records,
    read_rows,
    source_file,
)
from tvd_gen.data.report import SourceFile
from tvd_gen.data.rows import Picker, did_you_mean
from tvd_gen.data.spec import DataSpec
from tvd_gen.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")


class Source(Protocol):
    """Numbered records, with words for where a number is."""

    def records(self) -> Iterator[Numbered]:
        """All records, from the start."""

    def place(self, number: int, field: str | None = None) -> str:
        """Where record `number` is, e.g. train.jsonl:17."""

    def check(self, picker: Picker) -> None:
        """Raise DataError when no record can have the wanted columns."""

    def files(self) -> list[SourceFile]:
        """The names and hashes of what is read; for a source without files what stands for them."""


class FileSource:
    """One file of any format that `read_rows` knows."""

    def __init__(self, path: str, documents: Documents = "line"):
        self.path, self.documents = path, documents
        self.is_table = format_of(path) == "parquet"

    def records(self) -> Iterator[Numbered]:
        """The file's records."""
        return read_rows(self.path, documents=self.documents)

    def place(self, number: int, field: str | None = None) -> str:
        """`file:line`, for parquet `file row n`."""
        return (
            f"{shown(self.path)} row {number}" if self.is_table else f"{shown(self.path)}:{number}"
        )

    def check(self, picker: Picker) -> None:
        """A table must have the columns; a text file has only the column text."""
        if format_of(self.path) == "txt" and "text" not in picker.columns:
            raise DataError(
                f"{shown(self.path)}: a text file has one text a row, and the task has "
                f"{' and '.join(picker.columns)}; give a pair of files, one for each"
            )
        names = columns_of(self.path)
        if names is not None:
            picker.check_columns(names, shown(self.path) if self.is_table else self.place(1))

    def files(self) -> list[SourceFile]:
        """This file."""
        return [source_file(self.path, shown(self.path))]


class PairSource:
    """Parallel text files: the first has the task's first field, the second its second."""

    def __init__(self, paths: Sequence[str], fields: Sequence[str]):
        self.paths, self.fields = paths, fields

    def records(self) -> Iterator[Numbered]:
        """Line n of each file is record n."""
        return pair_records(self.paths, self.fields)

    def place(self, number: int, field: str | None = None) -> str:
        """The line in the file of that field, by default the first."""
        i = self.fields.index(field) if field in self.fields else 0
        return f"{shown(self.paths[i])}:{number}"

    def check(self, picker: Picker) -> None:
        """Lines have no columns to choose from."""
        for field, column in picker.columns.items():
            if field != column:
                raise ConfigError(
                    f"data.columns.{field}: parallel text files have no columns; "
                    f"the order of the pair is {', '.join(self.fields)}"
                )

    def files(self) -> list[SourceFile]:
        """The files of the pair."""
        return [source_file(path, shown(path)) for path in self.paths]


def shown(path: str) -> str:
    """A path as messages write it: shipped corpora without the folder of the installation."""
    folder = corpora_folder()
    return str(Path(path).relative_to(folder)) if Path(path).is_relative_to(folder) else path


def file_sources(spec: DataSpec, fields: Sequence[str]) -> dict[str, list[Source]]:
    """Split -> its sources, for a shipped corpus or the user's files."""
    files = corpus_files(spec.source) if spec.source else dict(spec.files or {})
    for split in files:
        if split not in SPLITS:
            raise ConfigError(
                f"data.files.{split}: the splits are {', '.join(SPLITS)}{_known_split(split)}"
            )
    return {split: _sources(split, entry, spec, fields) for split, entry in files.items()}


def _known_split(name: str) -> str:
    return did_you_mean({"dev": "validation", "eval": "validation"}.get(name, name), SPLITS)


def _sources(
    split: str, entry: str | Sequence[str], spec: DataSpec, fields: Sequence[str]
) -> list[Source]:
    if isinstance(entry, str):
        return [FileSource(path, spec.documents) for path in expand(entry)]
    if len(entry) != len(fields) or len(fields) < 2:
        raise ConfigError(
            f"data.files.{split}: {len(entry)} files, but the task has the field(s) "
            f"{', '.join(fields)}; parallel text files are one for each of at least two fields "
            "(for several files of the same kind write a name with *)"
        )
    return [PairSource([str(Path(path).expanduser()) for path in entry], fields)]
