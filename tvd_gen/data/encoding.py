"""Texts to token ids and labels, with every row that is cut or left out counted.

Columns of an encoded dataset: `input_ids` and `labels` (int32 lists), `length` (the longer of the
two: what a row counts in a batch of so many tokens, and what transformers' group_by_length reads)
and `row` (the row of the dataset it was made from; a block's is that of its first token).

- language modelling: `labels` equal `input_ids`. Each text ends in the end token.
- decoder-only with a source: `input_ids` are prompt, target, end token; `labels` are -100 over the
  prompt. Prompt and target are tokenised apart, so that generation, which has only the prompt,
  starts from exactly the ids that training saw (`encode_prompts` makes the same ones).
- encoder-decoder: `input_ids` are the source, `labels` the target, each in the frame of special
  tokens that the tokenizer itself puts around it (none for the tokenizers we train), with an end
  token added where that has none. Labels have exactly one end token.

Labels are never shifted here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import pyarrow
import pyarrow.compute
from datasets import Dataset, Features, IterableDataset, Value
from datasets import List as ListOf
from datasets.table import InMemoryTable
from transformers import PreTrainedTokenizerBase

from tvd_gen.data.loading import Corpus, stream_of
from tvd_gen.data.prompts import (
    CHUNK,
    Frame,
    Ids,
    SourceEncoder,
    end_token,
    own_frame,
    tokenize,
    with_end,
)
from tvd_gen.data.report import SHOWN, SplitReport, describe_bad_rows
from tvd_gen.data.spec import DataSpec
from tvd_gen.errors import ConfigError, DataError

IGNORE = -100

Kind: TypeAlias = Literal["language_modeling", "sequence_to_sequence"]
Columns: TypeAlias = dict[str, list[Any]]
Place: TypeAlias = Callable[[int, str | None], str]
_LISTS = pyarrow.list_(pyarrow.int32())
SCHEMA = pyarrow.schema(
    {"input_ids": _LISTS, "labels": _LISTS, "length": pyarrow.int32(), "row": pyarrow.int64()}
)


@dataclass
class _Judge:
    """Decides on rows that cannot be used as they are, and counts them."""

    spec: DataSpec
    report: SplitReport
    place: Place
    split: str
    bad: SplitReport = field(default_factory=SplitReport)
    long: SplitReport = field(default_factory=SplitReport)

    def keep_long(self, row: int, name: str, tokens: str, limit: int) -> bool:
        """Whether a row over the limit stays (cut), by `spec.too_long`."""
        if self.spec.too_long == "truncate":
            self.report.cut[name] += 1
            return True
        what = f"long {name}"
        self.long.reject(what, f"{self.place(row, name)}: {what}: over {limit} tokens{tokens}")
        return False

    def drop(self, row: int, name: str, reason: str, detail: str) -> None:
        """Count a row that cannot be used."""
        self.bad.reject(reason, f"{self.place(row, name)}: {reason}: {detail}")

    def close(self, rows: int) -> None:
        """Raise for what must stop the run; else take the counts over into the report."""
        self.bad.rows_read = self.long.rows_read = rows
        if self.bad.rows_bad and self.spec.on_bad_row == "stop":
            raise DataError(describe_bad_rows({self.split: self.bad}))
        if self.long.rows_bad and self.spec.too_long == "stop":
            raise DataError(
                describe_bad_rows({self.split: self.long}).rsplit("\n", 1)[0]
                + "\nraise the limits, or set data.too_long to truncate or skip"
            )
        for part in (self.bad, self.long):
            self.report.bad.update(part.bad)
            self.report.first_bad += part.first_bad[: SHOWN - len(self.report.first_bad)]
            self.report.rows_kept -= part.rows_bad
        self.bad, self.long = SplitReport(), SplitReport()


class _Encoder(Protocol):
    def chunk(self, texts: dict[str, list[str]], start: int) -> Columns: ...

    def rest(self) -> Columns: ...


class _Pairs:
    """Sources and targets."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        spec: DataSpec,
        encoder_decoder: bool,
        judge: _Judge,
    ):
        self.tokenizer, self.spec, self.judge = tokenizer, spec, judge
        self.encoder_decoder = encoder_decoder
        self.end = end_token(tokenizer)
        self.limit = spec.max_target_tokens
        self.source: SourceEncoder | None = None
        self.target = Frame((), (self.end,))

    def _prepare(self, source: str, target: str) -> SourceEncoder:
        if self.source is None:
            self.source = SourceEncoder(self.tokenizer, self.spec, self.encoder_decoder, source)
            if self.encoder_decoder:
                self.target = with_end(
                    own_frame(self.tokenizer, target, target=True), self.tokenizer
                )
            if self.target.size >= self.limit:
                raise ConfigError(
                    f"data.max_target_tokens: {self.limit} leaves no room for a target; "
                    f"its special tokens alone take {self.target.size}"
                )
        return self.source

    def chunk(self, texts: dict[str, list[str]], start: int) -> Columns:
        """The usable rows of a chunk that starts at row `start`."""
        encoder = self._prepare(texts["source"][0], texts["target"][0])
        sources, cut = encoder(texts["source"])
        targets = tokenize(self.tokenizer, texts["target"], target=self.encoder_decoder)
        rows = empty_columns()
        for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
            if self._usable(start + i, source, target, i in cut):
                room = self.limit - self.target.size
                self._add(rows, start + i, source, self.target.around(target[:room]))
        return rows

    def _usable(self, row: int, source: Ids, target: Ids, cut: bool) -> bool:
        judge, size = self.judge, len(target) + self.target.size
        if self.source is not None and len(source) <= self.source.frame.size:
            judge.drop(row, "source", "no tokens", "the tokenizer makes nothing of the source")
        elif not target:
            judge.drop(row, "target", "no tokens", "the tokenizer makes nothing of the target")
        elif self.end in target:
            judge.drop(row, "target", "end token inside", "the target's text has the end token")
        else:
            kept = not cut or judge.keep_long(row, "source", "", self.spec.max_source_tokens)
            if size > self.limit:
                kept = judge.keep_long(row, "target", f" ({size})", self.limit) and kept
            return kept
        return False

    def _add(self, rows: Columns, row: int, source: Ids, target: Ids) -> None:
        if self.encoder_decoder:
            add_row(rows, row, source, target)
        else:
            add_row(rows, row, source + target, [IGNORE] * len(source) + target)

    def rest(self) -> Columns:
        """Nothing is held back."""
        return empty_columns()


class _Texts:
    """Texts for language modelling: a row each, or joined and cut into blocks."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: DataSpec, judge: _Judge):
        self.tokenizer, self.spec, self.judge = tokenizer, spec, judge
        self.end = end_token(tokenizer)
        self.frame: Frame | None = None
        self.held: Ids = []
        self.owners: Ids = []

    def chunk(self, texts: dict[str, list[str]], start: int) -> Columns:
        """The rows, or the full blocks, of a chunk that starts at row `start`."""
        if self.frame is None:
            self.frame = Frame(own_frame(self.tokenizer, texts["text"][0]).prefix, (self.end,))
        rows = empty_columns()
        for i, ids in enumerate(tokenize(self.tokenizer, texts["text"]), start):
            if not ids:
                self.judge.drop(i, "text", "no tokens", "the tokenizer makes nothing of the text")
            elif self.spec.block_size is None:
                self._add(rows, i, ids, self.frame)
            else:
                framed = self.frame.around(ids)
                self.held += framed
                self.owners += [i] * len(framed)
        if self.spec.block_size is not None:
            self._cut_blocks(rows, self.spec.block_size)
        return rows

    def _add(self, rows: Columns, row: int, ids: Ids, frame: Frame) -> None:
        limit, size = self.spec.max_target_tokens, len(ids) + frame.size
        if size <= limit or self.judge.keep_long(row, "text", f" ({size})", limit):
            ids = frame.around(ids[: max(1, limit - frame.size)])
            add_row(rows, row, ids, ids)

    def _cut_blocks(self, rows: Columns, size: int) -> None:
        full = len(self.held) - len(self.held) % size
        for start in range(0, full, size):
            ids = self.held[start : start + size]
            add_row(rows, self.owners[start], ids, ids)
        self.held, self.owners = self.held[full:], self.owners[full:]

    def rest(self) -> Columns:
        """The last, short block; a single token has nothing to be predicted from and is counted."""
        rows = empty_columns()
        if len(self.held) == 1:
            self.judge.report.tokens["left over"] += 1
        elif self.held:
            add_row(rows, self.owners[0], self.held, self.held)
        return rows


def empty_columns() -> Columns:
    """An encoded dataset's columns, without rows."""
    return {name: [] for name in SCHEMA.names}


def add_row(rows: Columns, row: int, input_ids: Ids, labels: Ids) -> None:
    """Append one encoded row."""
    rows["input_ids"].append(input_ids)
    rows["labels"].append(labels)
    rows["length"].append(max(len(input_ids), len(labels)))
    rows["row"].append(row)


def encode(
    dataset: Dataset | IterableDataset,
    kind: Kind,
    tokenizer: PreTrainedTokenizerBase,
    spec: DataSpec,
    *,
    encoder_decoder: bool,
    report: SplitReport | None = None,
    place: Place | None = None,
    split: str = "the data",
) -> Dataset | IterableDataset:
    """Rows of texts to rows of ids; see the module's docstring for the columns.

    Rows over the limits are cut, left out or refused by `spec.too_long`, rows that cannot be used
    (no tokens, an end token inside the target) by `spec.on_bad_row`; both are counted in `report`,
    whose `rows_kept` goes down by those left out. `place(row, field)` says where a row is, `split`
    what messages call the data. A stream is encoded, and its faults found, as it is read.
    """
    report = report or SplitReport(rows_read=_size(dataset), rows_kept=_size(dataset))
    judge = _Judge(spec, report, place or (lambda row, _: f"row {row + 1}"), split)

    def fresh() -> _Encoder:
        if kind == "language_modeling":
            return _Texts(tokenizer, spec, judge)
        return _Pairs(tokenizer, spec, encoder_decoder, judge)

    if isinstance(dataset, IterableDataset):
        return _stream(dataset, fresh, judge)
    encoder = fresh()
    batches = [_batch(columns, report) for columns in _chunks(dataset, encoder)]
    judge.close(len(dataset))
    table = pyarrow.Table.from_batches(batches, SCHEMA)
    if not table.num_rows:
        raise DataError(f"{split}: no row is left to use")
    return Dataset(InMemoryTable(table), fingerprint=dataset._fingerprint + "-encoded")


def _size(dataset: Dataset | IterableDataset) -> int:
    return len(dataset) if isinstance(dataset, Dataset) else 0


def _chunks(dataset: Dataset | IterableDataset, encoder: _Encoder) -> Iterator[Columns]:
    start = 0
    for texts in dataset.iter(batch_size=CHUNK):
        yield encoder.chunk(texts, start)
        start += len(next(iter(texts.values())))
    yield encoder.rest()


def _batch(columns: Columns, report: SplitReport) -> pyarrow.RecordBatch:
    _count_tokens(columns, report)
    return pyarrow.RecordBatch.from_pydict(columns, SCHEMA)


def _count_tokens(columns: Columns, report: SplitReport) -> None:
    report.tokens["input"] += sum(map(len, columns["input_ids"]))
    report.tokens["target"] += sum(len(row) - row.count(IGNORE) for row in columns["labels"])


def _stream(
    dataset: IterableDataset, fresh: Callable[[], _Encoder], judge: _Judge
) -> IterableDataset:
    def rows() -> Iterator[dict[str, Any]]:
        for columns in _chunks(dataset, fresh()):
            judge.close(0)
            _count_tokens(columns, judge.report)
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))

    ids = ListOf(Value("int32"))
    features = {"input_ids": ids, "labels": ids, "length": Value("int32"), "row": Value("int64")}
    return stream_of(rows, Features(features))


def encode_corpus(
    corpus: Corpus,
    kind: Kind,
    tokenizer: PreTrainedTokenizerBase,
    spec: DataSpec,
    *,
    encoder_decoder: bool,
) -> dict[str, Dataset | IterableDataset]:
    """Every split of a corpus encoded, with its report filled and its places in all messages."""
    encoded: dict[str, Dataset | IterableDataset] = {}
    for split, rows in corpus.splits.items():
        encoded[split] = encode(
            rows,
            kind,
            tokenizer,
            spec,
            encoder_decoder=encoder_decoder,
            report=corpus.report.splits[split],
            place=corpus.places.get(split),
            split=split,
        )
    return encoded


def check_fits(
    dataset: Dataset,
    *,
    vocab_size: int,
    read_vocab_size: int | None = None,
    max_positions: int | None = None,
    place: Place | None = None,
    name: str = "the model",
) -> None:
    """Raise for rows the model has no room for: ids from `vocab_size` on, or too many of them.

    `read_vocab_size` is that of the input ids where it is another one; `name` what a message says.

    Without this check the model stops in the middle of training with an index out of range.
    """
    sizes = {"input_ids": read_vocab_size or vocab_size, "labels": vocab_size}
    for ids, size in sizes.items():
        column = dataset.data.column(ids).combine_chunks()
        highest = pyarrow.compute.max(column.flatten()).as_py()
        if highest is not None and highest >= size:
            raise ConfigError(
                f"the tokenizer makes the id {highest}, and {name}'s vocabulary ends at "
                f"{size - 1}; is it this model's tokenizer?"
            )
    lengths = dataset["length"][:]  # a list; a Column would be asked for each row
    longest = max(range(len(dataset)), key=lambda i: lengths[i])
    if max_positions is not None and lengths[longest] > max_positions:
        row = dataset[longest]["row"]
        where = place(row, None) if place else f"row {row + 1}"
        raise ConfigError(
            f"{where}: {lengths[longest]} tokens, and {name} has {max_positions} positions; "
            "lower data.max_source_tokens, data.max_target_tokens or data.block_size"
        )
