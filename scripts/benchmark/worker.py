"""One method in a process of its own: says ready, then runs one step for each line it is sent.

python scripts/benchmark/worker.py METHOD CASE.json TRUTH.pt
"""

import ctypes
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cases import HeadCase, StepCase
from methods import METHODS, WITHOUT_TRUTH

MIB = 2**20


class CpuMeter:
    """Wall time, and the peak of resident memory over what was there before (Linux)."""

    @staticmethod
    def forget() -> None:
        """Give freed memory back, or what malloc keeps of an earlier step would not be counted."""
        ctypes.CDLL(None).malloc_trim(0)

    def __enter__(self) -> "CpuMeter":
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        self.before = self._status("VmRSS")
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.start
        self.peak = (self._status("VmHWM") - self.before) / 1024

    @staticmethod
    def _status(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
        assert found
        return int(found[1])


class CudaMeter:
    """Time by events, and the peak of allocated memory over what was there before."""

    @staticmethod
    def forget() -> None:
        """Nothing: allocated memory is counted, not what is kept for later."""

    def __enter__(self) -> "CudaMeter":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self.events[0].record()
        return self

    def __exit__(self, *_: object) -> None:
        self.events[1].record()
        torch.cuda.synchronize()
        self.seconds = self.events[0].elapsed_time(self.events[1]) / 1e3
        self.peak = (torch.cuda.max_memory_allocated() - self.before) / MIB


METERS: dict[str, type[CpuMeter] | type[CudaMeter]] = {"cpu": CpuMeter, "cuda": CudaMeter}


def head_step(method: str, case: HeadCase, truth: str) -> Callable[[], dict[str, Any]]:
    """A step of the head alone: loss and both gradients; and how far they are from the truth."""
    head = METHODS[method]()
    hidden, weight, targets = case.tensors()
    kind = METERS[case.device]

    def step() -> dict[str, Any]:
        hidden.grad = weight.grad = None
        with kind() as meter:
            loss = head(hidden, weight, targets)
            loss.backward()
        return {"seconds": meter.seconds, "peak": meter.peak, "loss": loss.item()}

    step()
    fixed = {"peak": peak_of(step, kind)}
    if truth and Path(truth).exists() and method not in WITHOUT_TRUTH:
        right = torch.load(truth, weights_only=True)
        loss, name = step()["loss"], "tailr" if "tailr" in method else "ce"
        if name == "ce":
            fixed["loss error"] = abs(loss - right["loss"]) / abs(right["loss"])
        for key, tensor in (("dh", hidden), ("dW", weight)):
            assert tensor.grad is not None
            exact = right[name][key]
            fixed[f"{key} error"] = (
                (tensor.grad.cpu().float() - exact).norm() / exact.norm()
            ).item()
    return lambda: {**step(), **fixed}


def peak_of(step: Callable[[], dict[str, Any]], kind: type[CpuMeter] | type[CudaMeter]) -> float:
    """The median peak of three steps, each after freed memory was given back."""
    peaks = []
    for _ in range(3):
        kind.forget()
        peaks.append(step()["peak"])
    return sorted(peaks)[1]


def training_step(method: str, case: StepCase) -> Callable[[], dict[str, Any]]:
    """Forward, backward and AdamW, each trainer by its own training_step."""
    import tempfile

    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    from tvd_gen import ObjectiveTrainer, TaiLr

    torch.manual_seed(0)
    sizes = {"n_layer": case.layers, "n_embd": case.width, "n_head": case.width // 64}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    if method == "body":  # stock, with next to no head: what no head can make faster
        case = replace(case, vocabulary=512)
    config = GPT2Config(vocab_size=case.vocabulary, n_positions=case.length, **sizes, **dropout)
    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        report_to="none",
        use_cpu=case.device == "cpu",
        bf16=case.precision == "autocast",
    )
    model = GPT2LMHeadModel(config)
    if method in ("stock", "body"):
        trainer = Trainer(model, arguments)
    else:
        objective = {"ours ce": "ce", "ours tailr": TaiLr(0.1, 0.3)}[method]
        trainer = ObjectiveTrainer(model, arguments, objective=objective)
    trainer.create_optimizer()
    prepared = trainer.accelerator.prepare_model(model)  # in train(), this is what puts autocast on
    ids = torch.randint(case.vocabulary, (case.rows, case.length), device=case.device)
    batch = {"input_ids": ids, "labels": ids}
    count = torch.tensor(case.rows * (case.length - 1))

    kind = METERS[case.device]

    def step() -> dict[str, Any]:
        with kind() as meter:
            loss = trainer.training_step(prepared, dict(batch), count)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
        return {"seconds": meter.seconds, "peak": meter.peak, "loss": loss.item()}

    step()
    peak = peak_of(step, kind)
    return lambda: {**step(), "peak": peak}


def main() -> None:
    """Serve steps until standard input ends."""
    method, kind, case, truth = sys.argv[1:5]
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like
    try:
        if kind == "step":
            step = training_step(method, StepCase(**json.loads(case)))
        else:
            step = head_step(method, HeadCase(**json.loads(case)), truth)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        print(json.dumps({"failed": reason[:160]}), file=channel, flush=True)
        return
    print(json.dumps({"ready": True}), file=channel, flush=True)
    for _ in sys.stdin:
        print(json.dumps(step()), file=channel, flush=True)


if __name__ == "__main__":
    main()
