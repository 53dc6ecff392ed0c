"""The row budget on a trained model: what it costs in exactness, and what it saves in time.

    python scripts/benchmark/row_budget.py MODEL [TEXT.txt ...]

MODEL is a causal language model's folder. Measured on the model's own sampled text (easy for it),
and on each text file. Errors are relative, of the gradients on hidden states and weight, to the
same head without a budget; `plain` is the error of the plain path in the same dtype. Cosine: how
much of the direction is kept. Times are medians of interleaved steps in one process, as ratios.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from cases import DTYPES
from tvd_gen import CrossEntropy, TaiLr, TokenObjective, linear_objective_loss

BUDGETS = (0.0, 1e-4, 1e-3, 1e-2, 3e-2)
ROWS, LENGTH = 8, 256


@torch.no_grad()
def own_text(model: Any) -> Tensor:
    """Token ids (ROWS, LENGTH) that the model itself samples."""
    torch.manual_seed(0)
    start = torch.full((ROWS, 1), model.config.bos_token_id)
    wanted = {"max_new_tokens": LENGTH, "min_new_tokens": LENGTH, "do_sample": True}
    ids: Tensor = model.generate(start, pad_token_id=0, top_k=0, **wanted)
    return ids[:, : LENGTH + 1]


def head_inputs(model: Any, ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """hidden, weight, targets of the model's own head on these tokens."""
    with torch.no_grad():
        hidden = model.base_model(ids[:, :-1]).last_hidden_state.flatten(0, 1)
    weight = model.get_output_embeddings().weight.detach()
    hidden, weight = (x.to(dtype).requires_grad_() for x in (hidden, weight))
    return hidden, weight, ids[:, 1:].flatten()


def gradients(
    inputs: tuple[Tensor, Tensor, Tensor], objective: TokenObjective, budget: float
) -> tuple[list[Tensor], float]:
    """Gradients on hidden and weight, and the seconds they took."""
    hidden, weight, targets = inputs
    start = time.perf_counter()
    out = linear_objective_loss(
        hidden, weight, targets, objective, token_weights=1 / len(targets), row_budget=budget
    )
    grads = [*torch.autograd.grad(out.loss, (hidden, weight))]
    return grads, time.perf_counter() - start


def plain(inputs: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Cross-entropy's gradients by all logits."""
    hidden, weight = (x.detach().to(dtype).requires_grad_() for x in inputs[:2])
    logits = F.linear(hidden, weight)
    loss = F.cross_entropy(logits.float() if dtype == torch.bfloat16 else logits, inputs[2])
    return [*torch.autograd.grad(loss, (hidden, weight))]


def error(got: Tensor, right: Tensor) -> float:
    """Relative, in the Frobenius norm."""
    return ((got.double() - right.double()).norm() / right.double().norm()).item()


def report(name: str, inputs: tuple[Tensor, Tensor, Tensor], steps: int) -> None:
    """One table."""
    hidden, weight, targets = inputs
    out = linear_objective_loss(hidden, weight, targets, CrossEntropy())
    print(f"### {name}, {hidden.dtype}: {len(targets)} tokens, nll {out.nll / out.tokens:.2f}\n")
    truth, own = plain(inputs, torch.float64), plain(inputs, hidden.dtype)
    rounding = [error(g, t) for g, t in zip(own, truth, strict=True)]
    print("| objective | budget | time | rows kept | dh error | dW error | dW cosine |")
    print("|---" * 7 + "|")
    print(f"| ce, plain path | | | | {rounding[0]:.1e} | {rounding[1]:.1e} | |")
    for objective in (CrossEntropy(), TaiLr(0.1, 0.3), TaiLr(0.1)):
        seconds: dict[float, list[float]] = {budget: [] for budget in BUDGETS}
        grads = {}
        for _ in range(steps):
            for budget in BUDGETS:
                grads[budget], spent = gradients(inputs, objective, budget)
                seconds[budget].append(spent)
        medians = {
            budget: statistics.median(times[1:] or times) for budget, times in seconds.items()
        }
        for budget in BUDGETS:
            dh, dw = grads[budget]
            errors = [error(g, t) for g, t in zip((dh, dw), grads[0.0], strict=True)]
            kept = (dh != 0).any(-1).float().mean()
            pair = (x.double().flatten() for x in (dw, grads[0.0][1]))
            cosine = F.cosine_similarity(*pair, dim=0)
            print(
                f"| {objective} | {budget:g} | {medians[budget] / medians[0.0]:.2f} | {kept:.0%} | "
                f"{errors[0]:.1e} | {errors[1]:.1e} | {cosine:.5f} |",
                flush=True,
            )
    print()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, nargs="*")
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--dtype", choices=[*DTYPES], default="bf16")
    given = parser.parse_args()
    if given.steps < 1:
        parser.error(f"--steps {given.steps}: at least 1")
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    dtype = DTYPES[given.dtype]
    report("text of its own", head_inputs(model, own_text(model), dtype), given.steps)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    for path in given.texts:
        ids = tokenizer(path.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][0]
        ids = ids[: ROWS * (LENGTH + 1)].view(ROWS, LENGTH + 1)
        report(path.name, head_inputs(model, ids, dtype), given.steps)


if __name__ == "__main__":
    main()
