"""Run by test_two_ranks.py under torchrun: a few steps, an evaluation, a file of results."""

import json
import sys

from families import arguments, collate, rows, tiny_model

from tvd_gen import Seq2SeqObjectiveTrainer, TaiLr


def main(family: str, folder: str, batch: int, accumulate: int) -> None:
    """Train three steps on 16, 16 and the 5 rows left, evaluate 13 rows, write what they gave."""
    model = tiny_model(family)
    data = rows(model.config.is_encoder_decoder, 37)
    trainer = Seq2SeqObjectiveTrainer(
        model,
        arguments(
            folder,
            max_steps=3,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            per_device_eval_batch_size=4,
            train_sampling_strategy="sequential",
        ),
        data_collator=collate,
        train_dataset=data,
        eval_dataset=data[:13],
        objective=TaiLr(0.02, 0.2),
    )
    trainer.train()
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        names = ("eval_loss", "eval_nll", "eval_accuracy", "eval_mean_weight")
        result = {
            "ranks": trainer.args.world_size,
            "steps": [[entry[k] for k in ("loss", "grad_norm", "nll")] for entry in logged],
            "eval": [metrics[name] for name in names],
        }
        with open(f"{folder}/result.json", "w") as file:
            json.dump(result, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
