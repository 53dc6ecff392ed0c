"""Run by test_two_ranks.py under torchrun: a few steps and an evaluation of each case."""

import json
import sys
from pathlib import Path
from typing import Any

from families import arguments, collate, rows, tiny_model

from tvd_gen import Seq2SeqObjectiveTrainer, TaiLr
from tvd_gen.objectives import GEM, GOLD, LossTruncation

OPTIONS: dict[str, dict[str, Any]] = {
    "tailr": {"objective": TaiLr(0.02, 0.2)},
    "truncation": {"objective": LossTruncation(0.4, 0, 8)},  # a quantile over both ranks
    "gold": {"objective": GOLD(), "weights_from": "lagged", "weights_every": 1},
    "gem": {"objective": GEM()},
    "normalized": {"objective": TaiLr(0.02, 0.2), "normalize_weights": True},
}
CASES = [
    *((family, "tailr", rows) for family in ("gpt2", "bart") for rows in (8, 4)),
    *(("gpt2", option, 8) for option in OPTIONS if option != "tailr"),
]
"""family, option, rows of a process in a micro-batch; 16 of all in a step"""


def result(case: tuple[str, str, int], folder: Path, processes: int) -> dict[str, Any]:
    """Train three steps on 16, 16 and the 5 rows left, evaluate 13 rows, or 12, of which the last
    batch of a second process has none of its own."""
    family, option, batch = case
    batch = batch if processes == 2 else 16
    model = tiny_model(family)
    data = rows(model.config.is_encoder_decoder, 37)
    trainer = Seq2SeqObjectiveTrainer(
        model,
        arguments(
            folder,
            max_steps=3,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=16 // (batch * processes),
            per_device_eval_batch_size=4,
            train_sampling_strategy="sequential",
        ),
        data_collator=collate,
        train_dataset=data,
        eval_dataset=data[: 12 if option == "gem" else 13],
        **OPTIONS[option],
    )
    trainer.train()
    metrics = trainer.evaluate()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = ("eval_loss", "eval_nll", "eval_accuracy", "eval_mean_weight")
    return {
        "ranks": trainer.args.world_size,
        "steps": [[entry[k] for k in ("loss", "grad_norm", "nll")] for entry in logged],
        "eval": [metrics[name] for name in names],
        "first": trainer.is_world_process_zero(),
    }


def main(folder: Path) -> None:
    """Write what two processes gave for each case."""
    results = [result(case, folder / str(n), 2) for n, case in enumerate(CASES)]
    if results[0]["first"]:
        (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
