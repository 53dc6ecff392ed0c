"""The same global batch of 16 rows, cut in four ways, for 20 steps."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from runs import CASES, Child, ranks, write_case
from stops import wait_all

WAYS = {"1 x 16": (1, 16, 1), "4 x 4": (1, 4, 4), "2 ranks x 8": (2, 8, 1), "2 x 2 x 4": (2, 4, 2)}


def campaign(folder: Path) -> dict[str, dict[str, float]]:
    """The largest difference of a logged loss (relative) and of a weight, to the first way."""
    name = next(name for name in CASES if "stream" not in name)
    config = write_case(folder, name)
    found, ends = {}, {}
    for way, (processes, rows, accumulate) in WAYS.items():
        run = folder / way.replace(" ", "")
        settings = {
            "objective": '{"name": "tailr", "gamma": 0.1, "min_weight": 0.2}',
            "model.architecture.dropout": "0.0",
            "training.max_tokens": "null",
            "training.per_device_train_batch_size": rows,
            "training.gradient_accumulation_steps": accumulate,
            "training.max_steps": 20,
            "training.logging_steps": 1,
            "training.save_strategy": "no",
            "training.eval_strategy": "no",
        }
        children = ranks(config, run) if processes == 2 else [Child(config, run)]
        for child in children:
            child.overrides = [f"{key}={value}" for key, value in settings.items()]
            child.start()
        codes = wait_all(children)
        assert not any(codes), (codes, children[0].output[-2000:])
        losses = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
        ends[way] = torch.tensor(losses), load_file(run / "model" / "model.safetensors")
        first_losses, first_weights = ends[next(iter(WAYS))]
        loss = ((ends[way][0] - first_losses).abs() / first_losses).max().item()
        weight = max(
            (value - first_weights[key]).abs().max().item() for key, value in ends[way][1].items()
        )
        found[way] = {"steps": len(losses), "loss": loss, "weight": weight}
    return found
