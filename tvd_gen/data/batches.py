"""Encoded rows to batches: padding, and which rows go together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy
import torch
from torch import Tensor
from torch.utils.data import Sampler

from tvd_gen.errors import DataError

IGNORE = -100
Feature = Mapping[str, Any]
T = TypeVar("T")


def pad(
    rows: Sequence[Sequence[int]], value: int, *, left: bool = False, multiple: int = 1
) -> Tensor:
    """Rows of ids to (rows, longest) int64, filled with `value`; `multiple` divides the width."""
    width = -(-max(map(len, rows)) // multiple) * multiple
    filled = torch.full((len(rows), width), value, dtype=torch.int64)
    for i, row in enumerate(rows):
        start = width - len(row) if left else 0
        filled[i, start : start + len(row)] = torch.as_tensor(row, dtype=torch.int64)
    return filled


class Collator:
    """Encoded rows to `input_ids`, `attention_mask` and `labels` (-100), padded on the right.

    A column `row`, the place in the data set, goes with them: ObjectiveMixin takes it off and names
    rows by it. Other columns are left out: set `remove_unused_columns=False`, so that `length`
    survives for samplers. The mask comes from lengths, so a pad token may be any token, the end
    token too.
    """

    def __init__(self, pad_token_id: int, encoder_decoder: bool = False, multiple: int = 1):
        self.pad_token_id, self.encoder_decoder = pad_token_id, encoder_decoder
        self.multiple = multiple

    def __call__(self, features: Sequence[Feature]) -> dict[str, Tensor]:
        """One batch; source and target have widths of their own in encoder-decoders only."""
        ids = [feature["input_ids"] for feature in features]
        ones = [[1] * len(row) for row in ids]
        labels = [feature["labels"] for feature in features]
        batch = {
            "input_ids": pad(ids, self.pad_token_id, multiple=self.multiple),
            "attention_mask": pad(ones, 0, multiple=self.multiple),
            "labels": pad(labels, IGNORE, multiple=self.multiple),
        }
        if "row" in features[0]:
            batch["row"] = torch.tensor([feature["row"] for feature in features])
        return batch


class GenerationCollator:
    """What the model reads, as a batch to generate from, with `row`, the places of its rows.

    Features have `input_ids` (see `encode_prompts`) and `row`. Decoder-only models need the padding
    on the left, where the text goes on after it; encoders have it on the right, as in training.
    """

    def __init__(self, pad_token_id: int, encoder_decoder: bool):
        self.pad_token_id, self.left = pad_token_id, not encoder_decoder

    def __call__(self, features: Sequence[Feature]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (rows, longest), `row` (rows,)."""
        ids = [feature["input_ids"] for feature in features]
        return {
            "input_ids": pad(ids, self.pad_token_id, left=self.left),
            "attention_mask": pad([[1] * len(row) for row in ids], 0, left=self.left),
            "row": torch.tensor([feature["row"] for feature in features]),
        }


class MaxTokensBatchSampler(Sampler[list[int]]):
    """Batches of rows of like length, with rows * longest <= max_tokens: a budget of padded tokens.

    `lengths` is the encoded dataset's `length`, the longer of source and target for
    encoder-decoders, as fairseq counts for --max-tokens. Every epoch has each row exactly once and
    equally many batches, so `len()` holds for all of them and a resumed run can count back.

    Rows whose lengths differ by less than `spread` (5 percent) are shuffled among each other
    before they are cut into batches, then the batches are shuffled; all of it depends on (seed,
    epoch) alone. With `shuffle=False` the order is fixed, the longest batch first: too little
    memory shows at once. `max_rows` bounds the rows of a batch besides. A row longer than the
    budget is a DataError; `place` says where a row is.

    Several processes: accelerate (1.15, BatchSamplerShard) deals whole batches in turn, which needs
    `batch_size` and `drop_last` as they are set here, `even_batches` left at True, and
    `split_batches` and `dispatch_batches` off. It fills a last round up with batches of the first;
    with `processes` set to their number the batches are cut so that nothing has to be repeated
    (unless there are too few rows), and batches of one round are alike in length.
    `set_epoch` must be called before each epoch; transformers 5.23 does not reach it when a run of
    several processes resumes in the middle of an epoch.
    """

    batch_size = None
    drop_last = False

    def __init__(
        self,
        lengths: Sequence[int],
        max_tokens: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        spread: float = 0.05,
        max_rows: int | None = None,
        processes: int = 1,
        place: Callable[[int], str] = lambda row: f"row {row + 1}",
    ):
        # Of a slice: a Column of a dataset is slow to be asked for one row after the other.
        self.lengths = numpy.asarray(lengths[:], dtype=numpy.int64)
        self.max_tokens, self.shuffle, self.seed = max_tokens, shuffle, seed
        self.epoch, self.processes = 0, processes
        self._check(place)
        self.order = numpy.argsort(self.lengths, kind="stable")
        self.tiers = _tiers(self.lengths[self.order], spread)
        ends = _batch_ends(self.lengths[self.order], self.tiers, max_tokens, max_rows)
        self.ends = _even_out(ends, processes)

    def _check(self, place: Callable[[int], str]) -> None:
        if not len(self.lengths):
            raise DataError("no rows to make batches of")
        row = int(self.lengths.argmax())
        if self.lengths[row] > self.max_tokens:
            raise DataError(
                f"{place(row)}: {self.lengths[row]} tokens, more than training.max_tokens "
                f"({self.max_tokens}); raise it, or lower data.max_source_tokens, "
                "data.max_target_tokens or data.block_size"
            )

    def __len__(self) -> int:
        return len(self.ends)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is next; the first is 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._batches()
        if not self.shuffle:
            yield from reversed(batches)
            return
        rounds = [
            batches[start : start + self.processes]
            for start in range(0, len(batches), self.processes)
        ]
        for i in self._random(1).permutation(len(rounds)):
            yield from rounds[i]

    def _batches(self) -> list[list[int]]:
        order = self.order
        if self.shuffle:
            noise = self._random(0).random(len(order))
            order = order[numpy.lexsort((noise, self.tiers))]
        return [rows.tolist() for rows in numpy.split(order, self.ends[:-1])]

    def _random(self, use: int) -> numpy.random.Generator:
        return numpy.random.default_rng([self.seed, self.epoch, use])


def _tiers(ascending: numpy.ndarray, spread: float) -> numpy.ndarray:
    """The length that stands for each row: the longest of its tier, so tiers mix without harm."""
    tiers = ascending.copy()
    stop = len(ascending)
    while stop:
        longest = ascending[stop - 1]
        start = int(numpy.searchsorted(ascending, longest / (1 + spread), side="right"))
        start = min(start, stop - 1)
        tiers[start:stop] = longest
        stop = start
    return tiers


def _batch_ends(
    lengths: numpy.ndarray, tiers: numpy.ndarray, max_tokens: int, max_rows: int | None
) -> list[int]:
    ends, start = [], 0
    for stop in range(1, len(tiers) + 1):
        rows = stop - start
        if rows * tiers[stop - 1] > max_tokens or (max_rows is not None and rows > max_rows):
            ends.append(stop - 1)
            start = stop - 1
    return [*ends, len(lengths)]


def _even_out(ends: list[int], processes: int) -> list[int]:
    """Halve the batches of most rows until the processes share the batches evenly."""
    while len(ends) % processes:
        starts = [0, *ends[:-1]]
        i = max(range(len(ends)), key=lambda i: ends[i] - starts[i])
        if ends[i] - starts[i] < 2:
            return ends
        ends = [*ends[:i], (starts[i] + ends[i]) // 2, *ends[i:]]
    return ends


class LengthSortedBatchSampler(Sampler[list[int]]):
    """Batches of `batch_size` rows, the longest first: little padding, memory's peak at once.

    For evaluation and generation. `restore` puts results back into the order of the dataset.
    """

    drop_last = False

    def __init__(self, lengths: Sequence[int], batch_size: int):
        self.batch_size = batch_size
        negative = -numpy.asarray(lengths[:], dtype=numpy.int64)  # a slice, as above
        self.order: list[int] = negative.argsort(kind="stable").tolist()

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.order), self.batch_size):
            yield self.order[start : start + self.batch_size]

    def restore(self, results: Sequence[T]) -> list[T]:
        """Results in the order they were made -> in the order of the dataset."""
        if len(results) != len(self.order):
            raise ValueError(f"{len(results)} results for {len(self.order)} rows")
        placed = dict(zip(self.order, results, strict=True))
        return [placed[row] for row in range(len(placed))]
