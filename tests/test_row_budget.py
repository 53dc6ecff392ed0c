"""What scripts/benchmark/row_budget.py measures is what the budget promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import text
from transformers import LlamaConfig, LlamaForCausalLM

from tvd_gen.models import TokenizerSpec, train_tokenizer

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark" / "row_budget.py"
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
SHAPE |= {"num_attention_heads": 2, "max_position_embeddings": 300}


def test_the_errors_it_prints_are_none_without_a_budget_and_grow_with_it(tmp_path):
    words = " ".join(text(i, 9) for i in range(600))
    tokenizer = train_tokenizer(TokenizerSpec(vocab_size=300), [words])
    tokenizer.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SHAPE, **ids))
    model.lm_head.weight.data *= 100  # sure of many tokens of its own
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "words.txt").write_text(words)
    order = [sys.executable, SCRIPT, "model", "words.txt", "--steps", "1", "--dtype", "fp32"]
    done = subprocess.run(
        [str(word) for word in order],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    tables = done.stdout.split("### ")[1:]
    assert [table.split(",")[0] for table in tables] == ["text of its own", "words.txt"]
    for table in tables:
        rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][2:]
        assert len(rows) == 3 * 5
        for name in {row[0] for row in rows}:
            own = [[float(cell.strip(" %")) for cell in row[1:]] for row in rows if row[0] == name]
            budgets, _, kept, _, errors, cosines = zip(*own, strict=True)
            assert budgets == (0, 1e-4, 1e-3, 1e-2, 3e-2)
            assert (kept[0], errors[0], cosines[0]) == (100, 0, 1)
            assert sorted(errors) == [*errors]
            assert sorted(kept, reverse=True) == [*kept]
            assert kept[-1] < 100
            assert cosines[-1] == pytest.approx(1, abs=0.1)
