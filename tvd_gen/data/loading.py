"""A config's data as datasets: read, checked row by row, counted, and traced back to its places."""

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from random import Random
from typing import Any, TypeAlias

import pyarrow
from datasets import Dataset, DatasetInfo, Features, IterableDataset, Value
from datasets.iterable_dataset import ExamplesIterable
from datasets.table import InMemoryTable

from tvd_gen.data.report import DataReport, SplitReport, check_bad_rows
from tvd_gen.data.rows import BLANK, Fault, Picker, did_you_mean
from tvd_gen.data.sources import SPLITS, Source, file_sources
from tvd_gen.data.spec import DataSpec
from tvd_gen.errors import ConfigError, DataError

Row: TypeAlias = dict[str, str]
CHUNK = 10_000


class Places:
    """Row i of a split -> where it was read; eight bytes a row."""

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self.starts: list[int] = []
        self.numbers = array("Q")

    def enter(self, source: Source) -> None:
        """The rows to come are from this source."""
        self.sources.append(source)
        self.starts.append(len(self.numbers))

    def __len__(self) -> int:
        return len(self.numbers)

    def __call__(self, row: int, field: str | None = None) -> str:
        """`file:line` of a row, in the file of that field."""
        source = self.sources[bisect_right(self.starts, row) - 1]
        return source.place(self.numbers[row], field)


@dataclass
class Corpus:
    """The splits with exactly the task's fields as text columns, what was counted, and the places.

    `places[split](row)` is the file and line of a row of `splits[split]`; a stream has none.
    """

    splits: dict[str, Dataset | IterableDataset]
    report: DataReport
    places: dict[str, Places] = field(default_factory=dict)

    def texts(self, split: str, most: int = 1_000_000) -> Iterator[str]:
        """All texts of up to `most` rows, a stream's of one pass: to train a tokenizer on."""
        rows, kept = self.splits[split], self.report.splits[split].rows_kept
        if isinstance(rows, IterableDataset):
            most = min(kept or most, most)
        for row in islice(rows, most):
            yield from row.values()


def load_corpus(
    spec: DataSpec,
    fields: Sequence[str],
    *,
    splits: Sequence[str] = SPLITS,
    required: Sequence[str] = ("train",),
    seed: int = 0,
) -> Corpus:
    """Read the splits that are wanted and there; all bad rows of all splits are told at once.

    A split of `required` that is not there is a DataError, another one is left out. With
    `spec.streaming` the training split is an IterableDataset without end, shuffled through a buffer
    anew in each pass, in an order that `seed` alone decides; its files are read once beforehand, to
    check and count every row (a streamed hub dataset is checked as it is read). Raises DataError
    for rows and files, ConfigError for a wrong spec.
    """
    picker = Picker(fields, spec.columns)
    sources = _open(spec, fields, splits, required)
    for source in (each for group in sources.values() for each in group):
        source.check(picker)
    corpus = Corpus({}, DataReport(choice=_choice(spec, fields)))
    for split, group in sources.items():
        _add_split(corpus, split, _Reading(spec, split, group, picker), seed)
    check_bad_rows(corpus.report.splits, spec.on_bad_row)
    for split, report in corpus.report.splits.items():
        if not report.rows_kept and not _unread(corpus, split):
            raise DataError(f"{split}: no rows in {', '.join(file.name for file in report.files)}")
    _count_overlap(corpus)
    return corpus


def _choice(spec: DataSpec, fields: Sequence[str]) -> dict[str, Any]:
    names = ("source", "hub", "subset", "revision", "documents", "on_bad_row", "streaming")
    chosen = {name: getattr(spec, name) for name in names}
    chosen |= {name: dict(getattr(spec, name)) for name in ("columns", "splits", "limit")}
    return {"fields": list(fields)} | {name: value for name, value in chosen.items() if value}


def _open(
    spec: DataSpec, fields: Sequence[str], splits: Sequence[str], required: Sequence[str]
) -> dict[str, list[Source]]:
    for name in (*spec.limit, *spec.splits):
        if name not in SPLITS:
            raise ConfigError(
                f"data: no split {name!r}; the splits are {', '.join(SPLITS)}"
                f"{did_you_mean(name, SPLITS)}"
            )
    if sum(each is not None for each in (spec.source, spec.files, spec.hub)) != 1:
        raise ConfigError("data: give exactly one of source, files and hub")
    if spec.hub is not None:
        return _open_hub(spec, splits, required)
    there = file_sources(spec, fields)
    for split in required:
        if split not in there:
            raise DataError(
                f"data.files: no {split} split; there are: {', '.join(there) or 'none'}"
            )
    return {split: there[split] for split in splits if split in there}


def _open_hub(
    spec: DataSpec, splits: Sequence[str], required: Sequence[str]
) -> dict[str, list[Source]]:
    from tvd_gen.data.hub import hub_source, hub_splits

    there: list[str] | None = None
    opened: dict[str, list[Source]] = {}
    for split in splits:
        if split not in required and split not in spec.splits:
            there = hub_splits(spec) if there is None else there
            if split not in there:
                continue
        opened[split] = [hub_source(spec, split, streaming=spec.streaming and split == "train")]
    return opened


class _Reading:
    """The good rows of a split's sources, in order; everything else is counted."""

    def __init__(self, spec: DataSpec, split: str, sources: Sequence[Source], picker: Picker):
        self.sources, self.picker = sources, picker
        self.limit = spec.limit.get(split)
        self.streaming = spec.streaming and split == "train"
        self.stops = spec.on_bad_row == "stop"
        self.buffer = spec.shuffle_buffer
        self.hub = spec.hub is not None

    def rows(self, report: SplitReport, places: Places | None = None) -> Iterator[Row]:
        """Up to `limit` good rows; the report and the places are filled on the way."""
        for source in self.sources:
            if places is not None:
                places.enter(source)
            for number, record in source.records():
                if report.rows_kept == self.limit:
                    return
                row = record if isinstance(record, Fault) else self.picker.pick(record)
                if isinstance(row, Fault):
                    _count_fault(report, row, source, number)
                    continue
                report.rows_read += 1
                report.rows_kept += 1
                if places is not None:
                    places.numbers.append(number)
                yield row

    def endless(self, seed: int) -> Iterator[Row]:
        """Pass after pass, each shuffled through a buffer in an order of its own."""
        for turn in count():
            report, random = SplitReport(), Random(f"{seed}/{turn}")
            yield from _shuffled(self._checked(report), self.buffer, random)
            if not report.rows_kept:
                raise DataError(f"no rows in {self.sources[0].place(1)}")

    def _checked(self, report: SplitReport) -> Iterator[Row]:
        for row in self.rows(report):
            if self.stops:
                check_bad_rows({"train": report}, "stop")
            yield row
        check_bad_rows({"train": report}, "stop" if self.stops else "skip")


def _count_fault(report: SplitReport, fault: Fault, source: Source, number: int) -> None:
    if fault.reason == BLANK:
        report.blank += 1
        return
    report.rows_read += 1
    report.reject(fault.reason, f"{source.place(number, fault.field)}: {fault}")


def _shuffled(rows: Iterator[Row], size: int, random: Random) -> Iterator[Row]:
    held: list[Row] = []
    for row in rows:
        if len(held) < size:
            held.append(row)
            continue
        i = random.randrange(size)
        held[i], row = row, held[i]
        yield row
    random.shuffle(held)
    yield from held


def _add_split(corpus: Corpus, split: str, reading: _Reading, seed: int) -> None:
    report = corpus.report.splits[split] = SplitReport()
    report.files = [file for source in reading.sources for file in source.files()]
    if reading.streaming:
        if not reading.hub:
            for _ in reading.rows(report):
                pass
        corpus.splits[split] = _stream(reading, seed)
        return
    places = corpus.places[split] = Places()
    corpus.splits[split] = _table(reading.rows(report, places), tuple(reading.picker.columns))


def _unread(corpus: Corpus, split: str) -> bool:
    streamed = isinstance(corpus.splits[split], IterableDataset)
    return streamed and not corpus.report.splits[split].rows_read


def _stream(reading: _Reading, seed: int) -> IterableDataset:
    features = Features({name: Value("string") for name in reading.picker.columns})
    return stream_of(partial(reading.endless, seed), features)


def stream_of(rows: Callable[[], Iterator[dict[str, Any]]], features: Features) -> IterableDataset:
    """An IterableDataset of what `rows()` yields, begun anew by each reader of it."""
    # IterableDataset.from_generator would leave a lock file in the user's cache for each stream.
    examples = ExamplesIterable(lambda: enumerate(rows()), {})
    return IterableDataset(examples, info=DatasetInfo(features=features))


def _table(rows: Iterator[Row], fields: Sequence[str]) -> Dataset:
    schema = pyarrow.schema([(name, pyarrow.string()) for name in fields])
    digest = hashlib.sha256()
    batches = []
    for chunk in chunks(rows, CHUNK):
        columns = {name: [row[name] for row in chunk] for name in fields}
        batches.append(pyarrow.RecordBatch.from_pydict(columns, schema))
        digest.update("\0".join(text for column in columns.values() for text in column).encode())
    table = pyarrow.Table.from_batches(batches, schema)
    # Without a fingerprint of ours the whole table would be pickled to make one.
    return Dataset(InMemoryTable(table), fingerprint=digest.hexdigest()[:16])


def chunks(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` rows; the last may be shorter."""
    held: list[Any] = []
    for row in rows:
        held.append(row)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


def _count_overlap(corpus: Corpus) -> None:
    train = corpus.splits.get("train")
    if not isinstance(train, Dataset):
        return
    for name in train.column_names:
        seen = {hash(text) for text in train[name]}
        if len(seen) > 1:  # a source that all rows share says nothing; their targets do
            break
    for split, rows in corpus.splits.items():
        if split != "train":
            texts: Mapping[str, Any] | Any = rows[name]
            corpus.report.splits[split].in_train = sum(hash(text) in seen for text in texts)
