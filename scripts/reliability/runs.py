"""Small real runs of `tvd-gen train` in processes to be killed, and what they must end with."""

import hashlib
import json
import os
import random
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from tvd_gen import cli
from tvd_gen.checkpoints import Store

WORDS = ["the", "a", "red", "green", "old", "loud", "cat", "dog", "bird", "fish", "runs", "sings"]
TIMES = re.compile("runtime|per_second")
BART = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 128}
BART |= {"model_type": "bart", "max_position_embeddings": 64, "dropout": 0.1}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64}
TOKENIZER = {"type": "bpe", "vocab_size": 300}
PAIRS = {
    "task": "summarization",
    "model": {"architecture": BART, "tokenizer": TOKENIZER},
    "objective": {"name": "tailr", "gamma": 0.1, "min_weight": 0.2},
    "generation": {"num_beams": 1, "max_new_tokens": 8, "no_repeat_ngram_size": 0},
}
STEPS = {"max_steps": 16, "save_steps": 2, "logging_steps": 3, "learning_rate": 0.003}
ROWS = {"per_device_train_batch_size": 4}
EACH_EPOCH = {"eval_strategy": "epoch", "save_strategy": "epoch"}
BEST = {"load_best_model_at_end": True, "save_total_limit": 2}
CASES: dict[str, dict[str, Any]] = {
    "batches of tokens, a scheduled gamma": PAIRS
    | {
        "objective": {"name": "tailr", "gamma": {"schedule": "linear", "start": 0.0, "end": 0.8}},
        "training": STEPS | {"max_tokens": 120, "eval_strategy": "steps", "eval_steps": 3},
    },
    "packed blocks, accumulation": {
        "task": "language_modeling",
        "model": {"architecture": GPT2, "tokenizer": TOKENIZER},
        "objective": {"name": "ce"},
        "training": STEPS | ROWS | {"gradient_accumulation_steps": 3, "max_steps": 9},
    },
    "a stream past its first epoch": PAIRS | {"training": STEPS | ROWS},
    "early stopping on the best": PAIRS
    | {
        "training": {**ROWS, **EACH_EPOCH, **BEST, "num_train_epochs": 12, "logging_steps": 4}
        | {"learning_rate": 0.05, "early_stopping_patience": 2, "gradient_accumulation_steps": 4},
    },
}


def write_case(folder: Path, name: str) -> Path:
    """The config of a case, with its data beside it; the path of the config."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    files = {}
    for split, count in (("train", 48), ("validation", 12), ("test", 4)):
        rows = [_row(draw) for _ in range(count)]
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[split] = str(path)
    tree = {**CASES[name], "name": "run", "data": {"files": files, "max_target_tokens": 16}}
    if tree["task"] == "language_modeling":
        tree["data"] = {"files": files, "columns": {"text": "source"}, "block_size": 24}
    if "stream" in name:
        tree["data"] |= {"streaming": True, "shuffle_buffer": 16}
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(tree, sort_keys=False))
    return config


def _row(draw: random.Random) -> dict[str, str]:
    words = draw.choices(WORDS, k=draw.randrange(6, 14))
    return {"source": " ".join(words), "target": " ".join(words[: draw.randrange(1, 5)])}


@dataclass
class Child:
    """A `tvd-gen train`, forked from this process, which has imported everything already."""

    config: Path
    run: Path
    prepare: Callable[[], None] = lambda: None
    """changes the child alone: what a control switches off"""
    environment: Mapping[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    out: Path | None = None
    """where it prints to; default: beside the run"""
    process: int = 0
    code: int | None = None

    def start(self) -> "Child":
        self.process = os.fork()
        if self.process == 0:
            self._be_the_child()
        return self

    def _be_the_child(self) -> None:
        os.environ.update(self.environment)
        out = os.open(self._out, os.O_CREAT | os.O_APPEND | os.O_RDWR)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = 99
        try:
            torch.set_num_threads(1)
            self.prepare()
            sys.argv = ["tvd-gen", "train", "--config", str(self.config), "--output", str(self.run)]
            sys.argv += [word for text in self.overrides for word in ("--set", text)]
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, limit: float = 120.0) -> int:
        """The exit code, minus the signal's number for one that was killed."""
        end = time.monotonic() + limit
        while (code := self.poll()) is None:
            time.sleep(0.002)
            if time.monotonic() > end:
                os.kill(self.process, signal.SIGKILL)
                os.waitpid(self.process, 0)
                raise TimeoutError(f"{self.run}: hangs")
        return code

    def poll(self) -> int | None:
        """The exit code where the child has ended."""
        if self.code is None:
            done, status = os.waitpid(self.process, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        return self.code

    def send(self, number: int) -> bool:
        """Send a signal; whether the child was still there."""
        if self.poll() is not None:
            return False
        os.kill(self.process, number)
        return True

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is half written."""
        folder = self.run / "checkpoints"
        stock = (p for p in folder.glob("checkpoint-*") if not (p / "trainer_state.json").exists())
        return any(folder.glob(".staged*")) or any(stock)

    @property
    def output(self) -> str:
        """What the children of this run have printed."""
        return self._out.read_text(errors="replace")

    @property
    def _out(self) -> Path:
        return self.out or self.run.parent / f"{self.run.name}.out"


def ranks(config: Path, run: Path) -> list[Child]:
    """Two children that are the two processes of one run, as torchrun would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        Child(config, run, environment=shared | {"RANK": str(i), "LOCAL_RANK": str(i)})
        for i in range(2)
    ]


def finish(config: Path, run: Path, **options: Any) -> None:
    """Run to the end; RuntimeError where it does not get there."""
    child = Child(config, run, **options).start()
    if code := child.wait():
        raise RuntimeError(f"{run}: exit code {code}: {child.output[-600:]}")


def digest(run: Path) -> str:
    """SHA-256 over all that must be equal: the model, the last checkpoint's tensors, the log."""
    total = hashlib.sha256()
    _add(total, load_file(run / "model" / "model.safetensors"))
    step = Store(run / "checkpoints").steps()[-1]
    last = Store(run / "checkpoints").path(step)
    _add(total, load_file(last / "model.safetensors"))
    for name in ("optimizer.pt", "scheduler.pt"):
        _add(total, torch.load(last / name, weights_only=True))
    for line in (run / "log.jsonl").read_text().splitlines():
        row = {key: value for key, value in json.loads(line).items() if not TIMES.search(key)}
        total.update(json.dumps(row, sort_keys=True).encode())
    return f"{step}:{total.hexdigest()}"


def _add(total: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        total.update(str((value.dtype, tuple(value.shape))).encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            total.update(str(key).encode())
            _add(total, value[key])
    elif isinstance(value, (list, tuple)):
        for each in value:
            _add(total, each)
    else:
        total.update(repr(value).encode())
