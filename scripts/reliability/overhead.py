"""What a whole checkpoint costs beside the stock trainer's, and what resuming checks."""

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from tvd_gen import ObjectiveTrainer
from tvd_gen.checkpoints import verify


def campaign(folder: Path, turns: int) -> dict[str, float]:
    """Medians of so many saves each, in turn; seconds. A GPT-2 of 30 million parameters."""
    model = GPT2LMHeadModel(GPT2Config(n_embd=384, n_layer=6, n_head=6))
    ids = list(range(16))
    rows = Dataset.from_list([{"input_ids": ids, "labels": ids}] * 4)
    settings = {"max_steps": 1, "report_to": "none", "save_strategy": "no", "use_cpu": True}
    arguments = TrainingArguments(str(folder), per_device_train_batch_size=4, **settings)
    trainer = ObjectiveTrainer(model, arguments, train_dataset=rows)
    trainer.train()
    taken: dict[str, list[float]] = {"ours": [], "stock": [], "verify": []}
    size = 0
    for turn in range(turns):
        trainer.state.global_step = turn + 2
        taken["ours"].append(_seconds(lambda: trainer._save_checkpoint(model, None)))
        path = folder / f"step-{turn + 2:06d}"
        taken["verify"].append(_seconds(lambda path=path: verify(path)))
        size = sum(file.stat().st_size for file in path.rglob("*"))
        shutil.rmtree(path)
        taken["stock"].append(_seconds(lambda: Trainer._save_checkpoint(trainer, model, None)))
        shutil.rmtree(folder / f"checkpoint-{turn + 2}")
    found = {name: round(statistics.median(values), 3) for name, values in taken.items()}
    return found | {"MiB": round(size / 2**20)}


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
