"""Batches: padding, the token budget, and what becomes of them on several processes."""

from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard, skip_first_batches
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from tvd_gen.data import (
    Collator,
    GenerationCollator,
    LengthSortedBatchSampler,
    MaxTokensBatchSampler,
)
from tvd_gen.errors import DataError

PAD = 0
lengths_of_rows = st.lists(st.integers(1, 60), min_size=1, max_size=120)


def flat(batches):
    return [row for batch in batches for row in batch]


@given(
    lengths=lengths_of_rows,
    budget=st.integers(60, 300),
    shuffle=st.booleans(),
    max_rows=st.none() | st.integers(1, 9),
    processes=st.integers(1, 4),
    seed=st.integers(0, 9),
)
@settings(max_examples=300, deadline=None)
def test_every_row_is_in_one_batch_within_the_budget(
    lengths, budget, shuffle, max_rows, processes, seed
):
    sampler = MaxTokensBatchSampler(
        lengths, budget, shuffle=shuffle, max_rows=max_rows, processes=processes, seed=seed
    )
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(flat(batches)) == list(range(len(lengths)))
        assert all(len(b) * max(lengths[row] for row in b) <= budget for b in batches)
        assert all(batches)
        assert len(batches) == len(sampler), "a resumed run counts epochs by this"
        assert max_rows is None or max(map(len, batches)) <= max_rows


LENGTHS = [5 + (n * 37) % 50 for n in range(400)]


def test_the_order_follows_from_seed_and_epoch_alone():
    def order(seed, epoch):
        torch.manual_seed(torch.seed() % 1000)
        sampler = MaxTokensBatchSampler(LENGTHS, 500, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_epochs_have_other_batches_not_only_another_order():
    sampler = MaxTokensBatchSampler(LENGTHS, 500)
    first = {frozenset(batch) for batch in sampler}
    sampler.set_epoch(1)
    assert len(first & {frozenset(batch) for batch in sampler}) < len(first) / 4


def test_short_and_long_batches_come_in_no_order():
    """From short to long, the model would end every epoch on the longest rows alone."""
    longest = [max(LENGTHS[row] for row in batch) for batch in MaxTokensBatchSampler(LENGTHS, 500)]
    falls = sum(a > b for a, b in pairwise(longest))
    assert 0.25 < falls / len(longest) < 0.75


def test_batches_are_little_but_padding():
    """Rows of any length together would be half padding."""
    sampler = MaxTokensBatchSampler(LENGTHS, 500)
    padded = sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in sampler)
    assert sum(LENGTHS) / padded > 0.9
    assert len(sampler) <= 1.15 * sum(LENGTHS) / 500


def test_without_shuffling_the_longest_batch_is_first():
    batches = list(MaxTokensBatchSampler(LENGTHS, 500, shuffle=False))
    longest = [max(LENGTHS[row] for row in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_a_row_over_the_budget_is_named():
    with pytest.raises(DataError, match=r"row 2: 90 tokens, more than training.max_tokens \(50\)"):
        MaxTokensBatchSampler([10, 90], 50)
    with pytest.raises(DataError, match=r"a.csv:3: 90 tokens"):
        MaxTokensBatchSampler([10, 90], 50, place=lambda row: f"a.csv:{row + 2}")
    with pytest.raises(DataError, match="no rows"):
        MaxTokensBatchSampler([], 50)


def shards(sampler, processes):
    return [list(BatchSamplerShard(sampler, processes, index)) for index in range(processes)]


@given(
    lengths=lengths_of_rows,
    budget=st.integers(60, 300),
    processes=st.sampled_from([2, 3]),
    epoch=st.integers(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_processes_share_the_rows_without_loss_or_repetition(lengths, budget, processes, epoch):
    """accelerate repeats the first batches to fill up the last round: rows would count twice."""
    sampler = MaxTokensBatchSampler(lengths, budget, processes=processes)
    sampler.set_epoch(epoch)
    parts = shards(sampler, processes)
    assert len({len(part) for part in parts}) == 1, "a process with fewer batches waits for ever"
    rows = sorted(row for part in parts for row in flat(part))
    if len(sampler) % processes == 0:
        assert rows == list(range(len(lengths)))
    else:
        assert len(sampler) == len(lengths), "no batch is left to cut"
        assert set(rows) == set(range(len(lengths)))


def test_without_knowing_the_processes_only_the_last_round_is_filled_up():
    sampler = MaxTokensBatchSampler(LENGTHS, 500)
    sampler = sampler if len(sampler) % 2 else MaxTokensBatchSampler([*LENGTHS, *[60] * 8], 500)
    assert len(sampler) % 2 == 1, "else this test shows nothing"
    first = next(iter(sampler))
    rows = sorted(row for part in shards(sampler, 2) for row in flat(part))
    assert rows == sorted([*range(len(sampler.lengths)), *first])


def test_processes_get_batches_of_like_length_at_a_time():
    """The process with the short batch waits for the one with the long."""
    sampler = MaxTokensBatchSampler(LENGTHS, 500, processes=2)
    pairs = zip(*shards(sampler, 2), strict=True)
    gaps = [abs(max(LENGTHS[r] for r in a) - max(LENGTHS[r] for r in b)) for a, b in pairs]
    assert sum(gaps) / len(gaps) < 6


def loader(sampler):
    rows = Dataset.from_dict({"row": list(range(len(sampler.lengths)))})
    return Accelerator(cpu=True).prepare(DataLoader(rows, batch_sampler=sampler))


def test_a_loader_that_skips_batches_goes_on_where_it_was():
    """A resumed run must see the rows that an uninterrupted one would have seen."""
    whole = loader(MaxTokensBatchSampler(LENGTHS, 500))
    whole.set_epoch(1)
    rows = [batch["row"].tolist() for batch in whole]
    sampler = MaxTokensBatchSampler(LENGTHS, 500)
    resumed = skip_first_batches(loader(sampler), 7)
    sampler.set_epoch(1)
    assert [batch["row"].tolist() for batch in resumed] == rows[7:]
    sampler.set_epoch(0)
    assert rows != list(sampler), "the epoch reaches the sampler through accelerate"


# --- collators


def test_rows_are_padded_on_the_right_and_labels_are_ignored_there():
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "length": 3, "row": 0},
        {"input_ids": [8, PAD], "labels": [8, PAD], "length": 2, "row": 1},
    ]
    batch = Collator(PAD)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]], "a pad id in a text is text"
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, PAD, -100]]
    assert set(batch) == {"input_ids", "attention_mask", "labels", "row"}
    assert batch["row"].tolist() == [0, 1]
    assert all(value.dtype == torch.int64 for value in batch.values())


def test_sources_and_targets_have_widths_of_their_own():
    rows = [{"input_ids": [5, 6, 7], "labels": [1]}, {"input_ids": [8], "labels": [2, 3]}]
    batch = Collator(PAD, encoder_decoder=True)(rows)
    assert batch["input_ids"].shape == (2, 3)
    assert batch["labels"].tolist() == [[1, -100], [2, 3]]
    wide = Collator(PAD, encoder_decoder=True, multiple=8)(rows)
    assert wide["input_ids"].shape == wide["labels"].shape == (2, 8)


def test_prompts_are_padded_on_the_side_where_nothing_follows():
    """Right padding in a decoder-only model puts pad tokens between a prompt and its answer."""
    rows = [{"input_ids": [5, 6, 7], "row": 4}, {"input_ids": [8], "row": 2}]
    left = GenerationCollator(PAD, encoder_decoder=False)(rows)
    assert left["input_ids"].tolist() == [[5, 6, 7], [PAD, PAD, 8]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert left["row"].tolist() == [4, 2]
    right = GenerationCollator(PAD, encoder_decoder=True)(rows)
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, PAD, PAD]]


@given(lengths=st.lists(st.integers(1, 30), max_size=40), batch_size=st.integers(1, 7))
@settings(deadline=None)
def test_sorted_batches_go_from_long_to_short_and_back_into_order(lengths, batch_size):
    sampler = LengthSortedBatchSampler(lengths, batch_size)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    made = [lengths[row] for row in flat(batches)]
    assert made == sorted(lengths, reverse=True)
    assert sampler.restore(made) == lengths
    with pytest.raises(ValueError, match="results for"):
        sampler.restore([*made, 1])


@pytest.mark.parametrize("keep", [True, False])
def test_grouping_by_length_of_transformers_works_on_encoded_rows(tmp_path, keep):
    rows = [{"input_ids": [1] * n, "labels": [1] * n, "length": n, "row": n} for n in range(2, 34)]
    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16, n_positions=64)
    args = TrainingArguments(
        output_dir=str(tmp_path),
        train_sampling_strategy="group_by_length",
        per_device_train_batch_size=4,
        remove_unused_columns=not keep,
        report_to="none",
        use_cpu=True,
    )
    trainer = Trainer(
        GPT2LMHeadModel(config),
        args,
        train_dataset=Dataset.from_list(rows),
        data_collator=Collator(PAD),
    )
    batches = list(trainer.get_train_dataloader())
    assert sum(len(batch["input_ids"]) for batch in batches) == len(rows)
    sampler = trainer._get_train_sampler(Dataset.from_list(rows))
    assert isinstance(sampler, LengthGroupedSampler)
    assert list(sampler.lengths) == [row["length"] for row in rows]
