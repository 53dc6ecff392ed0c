"""One thread: bitwise laws hold, and tests that run side by side do not fight for cores."""

import gc
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from tiny import text

torch.set_num_threads(1)


def pytest_collection_finish():
    """Accelerate collects garbage when training ends: 0.3 s where all modules are looked at."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def files(tmp_path):
    """Three splits of source and target pairs, targets of uneven lengths."""
    for split, count in (("train", 40), ("validation", 11), ("test", 9)):
        rows = [
            {"source": text(i + len(split), 6 + i % 5), "target": text(i, 1 + i % 4)}
            for i in range(count)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines)
    return {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation", "test")}
