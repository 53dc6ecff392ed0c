"""Measures methods side by side: each in its own process, one step in turn, medians."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cases import HeadCase, StepCase

HERE = Path(__file__).parent


class Worker:
    """A method's process; `failed` says why it cannot run here."""

    def __init__(self, arguments: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.steps: list[dict[str, Any]] = []
        self.failed: str | None = None

    def wait(self) -> None:
        """Until it is warm."""
        self.failed = self._read().get("failed")

    def step(self) -> None:
        """One measured step."""
        assert self.process.stdin
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.failed = "died"
            return
        answer = self._read()
        self.failed = answer.pop("failed", None)
        if not self.failed:
            self.steps.append(answer)

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"failed": "died"}

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def medians(self) -> dict[str, float]:
        """Each number's median over the steps."""
        return {k: statistics.median(s[k] for s in self.steps) for k in self.steps[0]}


def truth_of(case: HeadCase, path: Path) -> None:
    """Losses and gradients in fp32 maths on the case's own numbers, of ce and of tailr, saved.

    By chunks of rows: all logits of a large vocabulary would not fit. No loss for tailr: the plain
    program's is another one, of the same gradient.
    """
    hidden, weight, targets = (x.detach() for x in case.tensors(torch.float32))
    kept = (targets != -100).nonzero().squeeze(-1)
    nothing = torch.zeros_like(hidden), torch.zeros_like(weight)
    sums = {name: [x.clone() for x in nothing] for name in ("ce", "tailr")}
    loss = 0.0
    for rows in torch.split(kept, 256):
        target = targets[rows].unsqueeze(-1)
        logp = (hidden[rows] @ weight.T).double().log_softmax(-1)
        own = logp.gather(-1, target)
        loss -= own.sum().item() / len(kept)
        p = own.exp()
        weights = {"ce": torch.ones_like(p), "tailr": (p / (0.1 + 0.9 * p)).clamp(min=0.3)}
        slopes = logp.exp_().scatter_add_(-1, target, -torch.ones_like(own)) / len(kept)
        for name, (hidden_grad, weight_grad) in sums.items():
            part = (weights[name] * slopes).float()
            hidden_grad[rows] = part @ weight
            weight_grad += part.T @ hidden[rows]
    truth = {name: {"dh": x.cpu(), "dW": y.cpu()} for name, (x, y) in sums.items()}
    torch.save({**truth, "loss": loss}, path)


def measure(
    case: HeadCase | StepCase, methods: Iterable[str], steps: int
) -> dict[str, dict[str, Any]]:
    """method -> medians of seconds, peak MiB and errors; {"failed": why} where it cannot run."""
    kind = "head" if isinstance(case, HeadCase) else "step"
    with tempfile.TemporaryDirectory() as folder:
        truth = Path(folder) / "truth.pt"
        if isinstance(case, HeadCase):
            truth_of(case, truth)
        workers = {}
        for method in methods:  # one after the other: warming up needs the machine alone
            workers[method] = Worker([method, kind, json.dumps(asdict(case)), str(truth)])
            workers[method].wait()
        running = [worker for worker in workers.values() if not worker.failed]
        for turn in range(steps):
            for worker in [
                *running[turn % len(running) :],
                *running[: turn % len(running)],
            ]:  # each follows another one in turn
                if not worker.failed:
                    worker.step()
        for worker in workers.values():
            worker.close()
    return {
        method: {"failed": worker.failed} if worker.failed else worker.medians()
        for method, worker in workers.items()
    }
